//! Looking whether a folder would do as a repository, without making it one.

use crate::error::{Error, Kind, Result};
use rustix::fs::{CWD, RenameFlags};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The file system, for people.
    pub file_system: String,
    /// Free space for us.
    pub available_bytes: u64,
}

/// Writes, syncs, renames and removes a small file in the folder, or in the nearest folder above it that exists.
///
/// # Errors
/// Whatever a repository would fail with, too: [`Kind::Denied`], [`Kind::NoSpace`], [`Kind::Unsupported`] when the file
/// system cannot rename without replacing.
pub fn probe(path: &Path) -> Result<Probe> {
    let folder = path.ancestors().find(|ancestor| ancestor.is_dir());
    let folder = folder.ok_or_else(|| Error::new(Kind::NotFound, format!("no folder above {}", path.display())))?;
    let io = |verb: &str, error: std::io::Error| Error::io(format!("{verb} in {}", folder.display()), error);
    let scratch = scratch_name();
    let (first, second) = (folder.join(format!("{scratch}.a")), folder.join(format!("{scratch}.b")));
    let tried = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&first).map_err(|error| io("create a file", error))?;
        file.write_all(b"sendense").map_err(|error| io("write", error))?;
        file.sync_all().map_err(|error| io("sync a file", error))?;
        rustix::fs::renameat_with(CWD, &first, CWD, &second, RenameFlags::NOREPLACE).map_err(|errno| match errno {
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => {
                Error::new(Kind::Unsupported, format!("{} cannot rename without replacing", folder.display()))
            }
            errno => io("rename a file", errno.into()),
        })?;
        File::open(folder).and_then(|handle| handle.sync_all()).map_err(|error| io("sync the folder", error))
    })();
    // One of the two names is there; the other removal says that it is not.
    let _ = (fs::remove_file(&first), fs::remove_file(&second));
    tried?;
    let space = rustix::fs::statvfs(folder).map_err(|errno| io("ask for the room", errno.into()))?;
    let kind = rustix::fs::statfs(folder).map_err(|errno| io("ask for the kind", errno.into()))?.f_type;
    Ok(Probe { file_system: name_of(i128::from(kind)), available_bytes: space.f_bavail.saturating_mul(space.f_frsize) })
}

/// A name that no other probe uses now: of this process by the count, of others by the process id.
fn scratch_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(".sendense-probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The kernel's numbers of file systems (`linux/magic.h`) that people keep backups on.
fn name_of(kind: i128) -> String {
    match kind {
        0xEF53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683E => "btrfs".into(),
        0x2FC1_2FC1 => "zfs".into(),
        0x6969 => "nfs".into(),
        0xFF53_4D42 | 0xFE53_4D42 => "smb".into(),
        0x0102_1994 => "tmpfs".into(),
        0x00C3_6400 => "ceph".into(),
        0x794C_7630 => "overlayfs".into(),
        other => format!("file system {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let found = probe(&dir.path().join("not/yet")).unwrap();
        assert!(found.available_bytes > 0 && !found.file_system.is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
