//! From the errors of guests' disks to problems that a caller understands.

use sendense_guestfs::meta::State;
use sendense_guestfs::{Error, Volume};
use sendense_types::{Problem, ProblemCode};

/// A problem of a guest's disk.
pub(crate) fn of_guestfs(error: &Error) -> Problem {
    let (code, message) = match error {
        Error::Unsupported(_) => (ProblemCode::VolumeUnreadable, "this cannot be read here"),
        Error::Corrupt(_) => (ProblemCode::VolumeUnreadable, "the guest's file system is damaged at this point"),
        Error::NotFound => (ProblemCode::FileNotFound, "no such file or folder"),
        Error::NotDirectory => (ProblemCode::InvalidInput, "path: not a folder"),
        Error::NotRegular => (ProblemCode::InvalidInput, "path: not a regular file"),
        Error::InvalidPath(_) => (ProblemCode::InvalidInput, "path: not a path of a guest"),
        Error::NoVolume => (ProblemCode::VolumeNotFound, "volume not found"),
        Error::Locked => (ProblemCode::VolumeLocked, "the volume is locked"),
        Error::WrongKey => (ProblemCode::WrongKey, "the key does not open the volume"),
        Error::Limit(_) => (ProblemCode::LimitReached, "a limit is reached"),
        Error::Io(_) | Error::WorkerDied(_) => (ProblemCode::ReaderFailed, "the disk cannot be read"),
        Error::Sandbox(_) => {
            (ProblemCode::Internal, "the reader of guests' disks cannot be confined, so nothing is opened")
        }
    };
    Problem::new(code, message, error.to_string())
}

/// There is no such volume.
pub(crate) fn no_volume(asked: &str, volumes: &[Volume]) -> Problem {
    let asked: String = asked.chars().take(80).collect();
    let details = format!("no volume named {asked:?}; there are: {}", named(volumes));
    Problem::new(ProblemCode::VolumeNotFound, "volume not found", details)
}

/// The call must say which volume it means.
pub(crate) fn which_volume(volumes: &[Volume]) -> Problem {
    let readable = volumes.iter().filter(|volume| volume.state == State::Readable).count();
    if readable > 0 {
        return Problem::new(ProblemCode::InvalidInput, "volume is required", format!("there are: {}", named(volumes)));
    }
    let code = match volumes.iter().any(|volume| volume.state == State::Locked) {
        true => ProblemCode::VolumeLocked,
        false => ProblemCode::VolumeUnreadable,
    };
    Problem::new(code, "no volume of the disk can be read", format!("there are: {}", named(volumes)))
}

fn named(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "none".to_owned();
    }
    // As many as a person reads.
    let named = volumes.iter().take(20).map(|volume| {
        let kind = if volume.kind.is_empty() { "unknown" } else { &volume.kind };
        format!("{} ({kind}, {})", volume.id, super::words::state(&volume.state).0)
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if volumes.len() > 20 {
        text.push_str(&format!(" and {} more", volumes.len() - 20));
    }
    text
}
