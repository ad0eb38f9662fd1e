//! From what a guest's disk says to the words on the wire. Pure.

use sendense_api as dto;
use sendense_api::{FileKind, GuestFile, VolumeConsistency, VolumeState, encode_path};
use sendense_guestfs::meta::{Consistency, FileType, GuestTime, Meta, State};
use sendense_guestfs::{GuestPath, Volume};
use sendense_types::Timestamp;

/// Where a volume stands, as a word, a state and a reason.
pub(crate) fn state(state: &State) -> (&'static str, VolumeState, Option<String>) {
    match state {
        State::Readable => ("readable", VolumeState::Readable, None),
        State::Locked => ("locked", VolumeState::Locked, Some("it is encrypted; unlock it with a key".to_owned())),
        State::Empty => ("empty", VolumeState::Empty, Some("it holds no file system".to_owned())),
        State::Unsupported(reason) => ("unsupported", VolumeState::Unsupported, Some(reason.to_string())),
        State::Corrupt(reason) => ("corrupt", VolumeState::Corrupt, Some(reason.clone())),
    }
}

/// A volume, and what reads it.
pub(crate) fn volume(volume: Volume, backend: dto::Backend) -> dto::Volume {
    let (_, state, reason) = state(&volume.state);
    dto::Volume {
        volume_id: volume.id.to_string(),
        kind: volume.kind,
        label: volume.label,
        uuid: volume.uuid,
        size_bytes: volume.size_bytes,
        readable: state == VolumeState::Readable,
        backend: (state == VolumeState::Readable).then_some(backend),
        state,
        reason,
        consistency: volume.consistency.map(consistency),
    }
}

/// Whether a log was clean.
pub(crate) fn consistency(consistency: Consistency) -> VolumeConsistency {
    match consistency {
        Consistency::Clean => VolumeConsistency::Clean,
        Consistency::Replayed => VolumeConsistency::Replayed,
        Consistency::LogNotReplayed => VolumeConsistency::LogNotReplayed,
    }
}

/// An entry.
pub(crate) fn file(path: &GuestPath, meta: &Meta, target: Option<&[u8]>) -> GuestFile {
    let bytes = path.to_bytes();
    GuestFile {
        name: String::from_utf8_lossy(path.name().unwrap_or(b"/")).into_owned(),
        path: String::from_utf8_lossy(&bytes).into_owned(),
        path_encoded: encode_path(&bytes),
        kind: match meta.file_type {
            FileType::File => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Other => FileKind::Other,
        },
        size: meta.size_bytes,
        mode: format!("{:04o}", meta.mode & 0o7777),
        uid: meta.uid,
        gid: meta.gid,
        modified_time: meta.modified.map(time),
        target: target.map(|target| String::from_utf8_lossy(target).into_owned()),
    }
}

/// A guest's time; what no calendar can write is brought to its end.
fn time(time: GuestTime) -> Timestamp {
    let micros = time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanoseconds / 1000));
    Timestamp::from_micros(micros)
}
