//! A disk into an NBD export.

use super::Job;
use crate::fault::{Result, invalid, of_block};
use sendense_block::copy::{self, Restore};
use sendense_block::nbd::{Address, Client, Options, Uri};
use sendense_block::{Error, Kind, ReadAt};
use sendense_source::paths::Roots;
use sendense_types::{Problem, ProblemCode};
use std::os::unix::fs::FileTypeExt;

/// Connections to the target, where the server says that several are safe: one per lane that writes.
const CONNECTIONS: usize = 2;

/// Reads a URI and checks that a socket it names lies below an allowed root, itself and not through a link.
pub(crate) fn check_uri(text: &str, roots: &Roots) -> Result<Uri> {
    let uri: Uri = text.parse().map_err(|error: Error| invalid(error.to_string()))?;
    if let Address::Unix(path) = uri.address() {
        let folder = path.parent().ok_or_else(|| invalid("the socket has no folder"))?;
        roots.check_existing(folder).map_err(|error| {
            Problem::new(ProblemCode::PathNotAllowed, "the socket's folder is not allowed", error.to_string())
        })?;
        // One that is not there yet may be there when the restore begins, which looks again.
        if path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket()) {
            let details = format!("{} is something else, or a link", path.display());
            return Err(Problem::new(ProblemCode::PathNotAllowed, "the target is not a socket", details));
        }
    }
    Ok(uri)
}

/// Restores a disk onto an export, which must be writable and at least as large. What lies beyond the disk's end is left.
pub(crate) fn restore_nbd(job: &Job<'_>, uri: Uri) -> Result<()> {
    let options = Options { connections: CONNECTIONS, ..Options::new(uri) };
    let client = Client::connect(&options, job.cancel).map_err(|error| target_problem(&error))?;
    if client.read_only() {
        return Err(Problem::new(ProblemCode::Conflict, "the target is read-only", options.uri.to_string()));
    }
    let (target, disk) = (client.size(), job.disk.size());
    if target.0 < disk.0 {
        let details = format!("the export has {target}, the disk {disk}");
        return Err(Problem::new(ProblemCode::Conflict, "the target is too small", details));
    }
    let restore = Restore {
        name: job.name,
        disk: &job.disk,
        target: &client,
        target_is_zero: false,
        options: job.options(),
        progress: job.progress,
        cancel: job.cancel,
    };
    copy::restore(&restore).map_err(|error| target_problem(&error))
}

fn target_problem(error: &Error) -> Problem {
    let problem = of_block("restore to the NBD export", error);
    match error.kind {
        Kind::Protocol | Kind::Unsupported | Kind::Denied | Kind::NotFound => {
            Problem { code: ProblemCode::SourceFailed, ..problem }
        }
        Kind::Unavailable | Kind::Deadline => Problem { code: ProblemCode::SourceUnavailable, ..problem },
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_outside_the_roots_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots::new(vec![folder.path().to_owned()]);
        let uri = |path: &str| format!("nbd+unix:///disk?socket={path}");
        assert!(check_uri(&uri(folder.path().join("nbd.sock").to_str().unwrap()), &roots).is_ok());
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("real.sock")).unwrap();
        assert!(check_uri(&uri(folder.path().join("real.sock").to_str().unwrap()), &roots).is_ok());
        // A link in an allowed folder could lead to any daemon's socket.
        std::os::unix::fs::symlink("real.sock", folder.path().join("link.sock")).unwrap();
        let link = folder.path().join("link.sock");
        for path in [link.to_str().unwrap(), "/run/libvirt/libvirt-sock", "/etc/x"] {
            assert_eq!(check_uri(&uri(path), &roots).unwrap_err().code, ProblemCode::PathNotAllowed);
        }
        assert_eq!(check_uri("http://x", &roots).unwrap_err().code, ProblemCode::InvalidInput);
        assert!(check_uri("nbd://localhost:1/x", &roots).is_ok());
    }
}
