//! A disk as a file that stands alone: raw, or a QCOW2 image without a backing file.
//!
//! The file is written beside its final name as `.NAME.SUFFIX`, made durable, and only then renamed, without replacing
//! anything unless asked: a file of that name is whole. On an error or a cancellation what was begun is removed.

use crate::error::{Error, Kind, Result};
use crate::room;
use rustix::fs::{AtFlags, CWD, Gid, Mode as FileMode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use sendense_block::backend::File;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Backup, Mode, Options, Progress, Restore};
use sendense_block::{Cancel, Disk, Flush};
use sendense_qcow2::writer::{Deaf, Spec, Writer};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// What the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes, sparse.
    Raw,
    /// A QCOW2 image (version 3, zstd) that needs no other file.
    Qcow2,
}

/// How to write it.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// The format.
    pub format: Format,
    /// Threads that read and write at once.
    pub lanes: usize,
    /// Goes into the names of unfinished files: one path component, unique to this extraction.
    pub suffix: &'a str,
    /// What the disk is called in messages.
    pub disk_name: &'a str,
    /// Put the file in the place of one that exists.
    pub overwrite: bool,
    /// Whose it will be.
    pub owner: Owner,
    /// The room that it takes, where that is known; else it is counted.
    pub needed_bytes: Option<u64>,
    /// The file is all that is asked for: its name is the point of no return of the work ([`Cancel::commit`]).
    pub is_last: bool,
}

/// Whose the file will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Ours, and nobody else's.
    Us,
    /// Its folder's owner and group: a hypervisor's user must open it. It is given away by the handle that it was written
    /// through, before it has its name, so that nothing which that user puts in its place is ever given away. Where we may
    /// not (we are not root), it stays ours.
    OfFolder,
}

/// Bytes per read: enough that a spinning repository streams, little enough to stay in a core's cache.
const REQUEST_BYTES: usize = 512 * 1024;

impl How<'_> {
    /// The last moment at which it can be stopped.
    fn pass(&self, cancel: &Cancel) -> Result<()> {
        Ok(if self.is_last { cancel.commit() } else { cancel.check() }?)
    }

    const fn options(&self) -> Options {
        // An extracted image is for a machine to run on: compressed clusters would slow it down.
        Options { lanes: self.lanes, request_bytes: REQUEST_BYTES, level: Level::Off }
    }
}

/// Writes the disk to a file at `path`, which is absolute and whose folder exists. The folder's path must be resolved: a
/// symbolic link on the way, put there after somebody checked the path, is an error and leads nowhere.
///
/// # Errors
/// [`Kind::Exists`] when something of that name is there, before or at the end, and is not to be overwritten;
/// [`Kind::NotFound`] when the folder is not there; [`Kind::Denied`] for a link on the way; [`Kind::NoSpace`], before
/// anything is written where that can be known; whatever reading the disk gives.
pub fn extract(disk: &dyn Disk, path: &Path, how: How<'_>, progress: &Progress, cancel: &Cancel) -> Result<()> {
    let (folder, name) = split(path)?;
    let folder = Folder::open(folder)?;
    if !how.overwrite && folder.holds(name)? {
        return Err(exists(path));
    }
    let needed = match how.needed_bytes {
        Some(needed) => needed,
        None => room::needed_bytes(disk, how.disk_name, cancel)?,
    };
    room::check(how.disk_name, needed, room::free_bytes_of(&folder.handle, &folder.shown)?, 0, &folder.shown)?;
    let part = Part::create(&folder, name, how.suffix)?;
    match how.format {
        Format::Raw => raw(disk, &part.file, how, progress, cancel)?,
        Format::Qcow2 => {
            // The writer's scratch lies beside the file: where there is room for the disk, there is for 0.01 % more.
            let tables = Part::create(&folder, name, &format!("{}.tables", how.suffix))?;
            qcow2(disk, &part.file, &tables.file, how, progress, cancel)?;
        }
    }
    part.give(how.owner)?;
    how.pass(cancel)?;
    part.publish(name, path, how.overwrite)
}

/// Like [`extract`], for a format that another program writes: `fill` is given the path of the unfinished file, which is
/// there and empty. [`How::format`] is not looked at.
///
/// # Errors
/// Those of [`extract`] and of `fill`.
pub fn extract_with(path: &Path, how: How<'_>, cancel: &Cancel, fill: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let (folder, name) = split(path)?;
    let place = Folder::open(folder)?;
    if !how.overwrite && place.holds(name)? {
        return Err(exists(path));
    }
    let part = Part::create(&place, name, how.suffix)?;
    fill(&folder.join(&part.name))?;
    part.file.flush()?;
    part.give(how.owner)?;
    how.pass(cancel)?;
    part.publish(name, path, how.overwrite)
}

/// Removes what an extraction that died left beside its target; gives the names of what was there.
pub fn remove_parts(path: &Path, suffix: &str) -> Result<Vec<OsString>> {
    let (folder, name) = split(path)?;
    let folder = Folder::open(folder)?;
    let mut removed = Vec::new();
    // The last one is the raw copy that a restore to VMDK made until it read the chain itself: as large as the disk, it may
    // lie there since a hub of that time was killed.
    for suffix in [suffix.to_owned(), format!("{suffix}.tables"), format!("{suffix}.raw")] {
        let part = part_name(name, &suffix);
        match rustix::fs::unlinkat(&folder.handle, &part, AtFlags::empty()) {
            Ok(()) => removed.push(part),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::io(format!("remove a file in {}", folder.shown), errno.into())),
        }
    }
    Ok(removed)
}

fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::invalid(format!("{} names no file", path.display())))?;
    let folder = path.parent().ok_or_else(|| Error::invalid(format!("{} has no folder", path.display())))?;
    Ok((folder, name))
}

fn part_name(name: &OsStr, suffix: &str) -> OsString {
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".");
    part.push(suffix);
    part
}

fn raw(disk: &dyn Disk, file: &File, how: How<'_>, progress: &Progress, cancel: &Cancel) -> Result<()> {
    file.set_len(disk.size())?;
    let options = how.options();
    let job = Restore { name: how.disk_name, disk, target: file, target_is_zero: true, options, progress, cancel };
    Ok(copy::restore(&job)?)
}

fn qcow2(
    disk: &dyn Disk,
    file: &Arc<File>,
    tables: &Arc<File>,
    how: How<'_>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let spec = Spec { capacity: disk.size(), backing: None };
    let writer = Writer::create(file.clone(), tables.clone(), spec, Arc::new(Deaf))?;
    let survey = copy::survey(how.disk_name, disk, Mode::Full, cancel)?;
    progress.plan(survey.read);
    let options = how.options();
    let job = Backup { name: how.disk_name, disk, mode: Mode::Full, sink: &writer, options, progress, cancel };
    copy::backup(&job, survey)?;
    writer.seal()?;
    Ok(file.flush()?)
}

/// The target's folder, held open: what happens to its name meanwhile does not lead us elsewhere.
struct Folder {
    handle: OwnedFd,
    shown: String,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let shown = path.display().to_string();
        let handle =
            rustix::fs::openat2(CWD, path, flags, FileMode::empty(), ResolveFlags::NO_SYMLINKS).map_err(|errno| {
                match errno {
                    Errno::LOOP => Error::new(Kind::Denied, format!("a symbolic link was put into the path {shown}")),
                    errno => Error::io(format!("open {shown}"), errno.into()),
                }
            })?;
        Ok(Self { handle, shown })
    }

    /// Also a link that leads nowhere is something.
    fn holds(&self, name: &OsStr) -> Result<bool> {
        match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io(format!("look into {}", self.shown), errno.into())),
        }
    }
}

/// An unfinished file; removed unless it is published.
struct Part<'a> {
    folder: &'a Folder,
    name: OsString,
    file: Arc<File>,
    published: bool,
}

impl<'a> Part<'a> {
    fn create(folder: &'a Folder, name: &OsStr, suffix: &str) -> Result<Self> {
        let part = part_name(name, suffix);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&folder.handle, &part, flags, FileMode::RUSR | FileMode::WUSR)
            .map_err(|errno| Error::io(format!("create a file in {}", folder.shown), errno.into()))?;
        let file = Arc::new(File::from_std(opened.into(), name.to_string_lossy().into_owned(), true)?);
        Ok(Self { folder, name: part, file, published: false })
    }

    /// Lets its owner have it.
    fn give(&self, owner: Owner) -> Result<()> {
        if owner == Owner::Us {
            return Ok(());
        }
        let given = rustix::fs::fstat(&self.folder.handle).and_then(|folder| {
            let (user, group) = (Uid::from_raw(folder.st_uid), Gid::from_raw(folder.st_gid));
            rustix::fs::fchown(self.file.as_std(), Some(user), Some(group))
        });
        match given {
            // A system's hypervisor takes it itself when it starts a machine, and elsewhere the owner is the same.
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(errno) => Err(Error::io(format!("give a file to the owner of {}", self.folder.shown), errno.into())),
        }
    }

    /// Gives the file its name, unless something bears it by now, and makes that durable.
    fn publish(mut self, name: &OsStr, path: &Path, overwrite: bool) -> Result<()> {
        let handle = &self.folder.handle;
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let named = match rustix::fs::renameat_with(handle, &self.name, handle, name, flags) {
            // Some file systems (NFS among them) know no rename that refuses to replace; a link refuses too.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !overwrite => {
                rustix::fs::linkat(handle, &self.name, handle, name, AtFlags::empty())
            }
            renamed => renamed.inspect(|()| self.published = true),
        };
        match named {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(exists(path)),
            Err(errno) => return Err(Error::io(format!("name {}", path.display()), errno.into())),
        }
        rustix::fs::fsync(handle).map_err(|errno| Error::io(format!("flush {}", self.folder.shown), errno.into()))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(errno) = rustix::fs::unlinkat(&self.folder.handle, &self.name, AtFlags::empty())
        {
            tracing::warn!(folder = %self.folder.shown, name = ?self.name, %errno, "remove an unfinished file");
        }
    }
}

fn exists(path: &Path) -> Error {
    Error::new(Kind::Exists, format!("{} exists and is not overwritten", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::backend::Memory;
    use sendense_block::{ByteLen, ByteOffset, WriteAt};
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    fn disk() -> Memory {
        let disk = Memory::zeroed(ByteLen(3 * 65536 + 512));
        disk.write_at(ByteOffset(65536), &[7; 4096]).unwrap();
        disk.write_at(ByteOffset(3 * 65536), &[9; 512]).unwrap();
        disk
    }

    fn run(disk: &dyn Disk, path: &Path, format: Format, cancel: &Cancel) -> Result<()> {
        let how = How {
            format,
            lanes: 2,
            suffix: "part",
            disk_name: "disk 0",
            overwrite: false,
            owner: Owner::Us,
            needed_bytes: None,
            is_last: true,
        };
        extract(disk, path, how, &Progress::default(), cancel)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_formats_give_every_byte_back() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, cancel) = (disk(), Cancel::new());
        let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
        run(&disk, &raw, Format::Raw, &cancel).unwrap();
        run(&disk, &qcow2, Format::Qcow2, &cancel).unwrap();
        assert_eq!(std::fs::read(&raw).unwrap(), disk.to_bytes());
        assert!(std::fs::metadata(&raw).unwrap().blocks() * 512 < 3 * 65536, "zeros take no room");
        let tool = |args: &[&str]| {
            let output = Command::new("qemu-img").args(args).output().expect("qemu-img (Debian package qemu-utils)");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
        tool(&["check", "-f", "qcow2", qcow2]);
        tool(&["compare", "-f", "raw", "-F", "qcow2", raw, qcow2]);
        assert_eq!(names(folder.path()), ["disk.qcow2", "disk.raw"]);
    }

    #[test]
    fn a_file_is_its_folders_owners_when_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        // Only root can give anything away; whoever else runs this is the owner of the folder and of the file.
        let owner = if rustix::process::geteuid().is_root() { 1234 } else { rustix::process::geteuid().as_raw() };
        std::os::unix::fs::chown(folder.path(), Some(owner), None).unwrap();
        for (name, format, whose, expected) in [
            ("given.raw", Format::Raw, Owner::OfFolder, owner),
            ("given.qcow2", Format::Qcow2, Owner::OfFolder, owner),
            ("kept.raw", Format::Raw, Owner::Us, rustix::process::geteuid().as_raw()),
        ] {
            let path = folder.path().join(name);
            let how = How {
                format,
                lanes: 2,
                suffix: "part",
                disk_name: "disk 0",
                overwrite: false,
                owner: whose,
                needed_bytes: None,
                is_last: false,
            };
            extract(&disk(), &path, how, &Progress::default(), &Cancel::new()).unwrap();
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o777), (expected, 0o600), "{name}");
        }
    }

    #[test]
    fn what_exists_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(run(&disk(), &path, Format::Raw, &Cancel::new()).unwrap_err().kind, Kind::Exists);
        let link = folder.path().join("link.raw");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(run(&disk(), &link, Format::Raw, &Cancel::new()).unwrap_err().kind, Kind::Exists);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["disk.raw", "link.raw"]);
    }

    #[test]
    fn overwriting_is_asked_for_and_replaces_the_name_not_what_a_link_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("mine"), folder.path().join("link.raw"));
        std::fs::write(&path, "mine").unwrap();
        std::os::unix::fs::symlink("mine", &link).unwrap();
        let how = How {
            format: Format::Raw,
            lanes: 2,
            suffix: "part",
            disk_name: "disk 0",
            overwrite: true,
            owner: Owner::Us,
            needed_bytes: None,
            is_last: true,
        };
        extract(&disk(), &link, how, &Progress::default(), &Cancel::new()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(std::fs::read(&link).unwrap(), disk().to_bytes());
        assert!(std::fs::symlink_metadata(&link).unwrap().is_file());
    }

    #[test]
    fn a_folder_that_became_a_link_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::create_dir_all(outside.join("deep")).unwrap();
        // After the check of `in/deep/disk` somebody swaps `in` for a link to another folder.
        std::os::unix::fs::symlink(&outside, &inside).unwrap();
        let error = run(&disk(), &inside.join("deep/disk"), Format::Raw, &Cancel::new()).unwrap_err();
        assert_eq!(error.kind, Kind::Denied, "{error}");
        assert_eq!(names(&outside.join("deep")), [""; 0]);
    }

    #[test]
    fn what_another_program_filled_gets_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.x");
        let how = How {
            format: Format::Raw,
            lanes: 2,
            suffix: "part",
            disk_name: "disk 0",
            overwrite: false,
            owner: Owner::Us,
            needed_bytes: None,
            is_last: true,
        };
        let run = |fill: &dyn Fn(&Path) -> Result<()>| extract_with(&path, how, &Cancel::new(), fill);
        let failed = run(&|part| {
            assert_eq!(std::fs::read(part).unwrap(), b"");
            Err(Error::invalid("no"))
        });
        assert_eq!((failed.unwrap_err().kind, names(folder.path())), (Kind::Invalid, vec![]));
        run(&|part| {
            std::fs::write(part, "converted").unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"converted");
        assert_eq!(names(folder.path()), ["disk.x"]);
    }

    #[test]
    fn what_a_dead_extraction_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [".disk.task-1", ".disk.task-1.tables", ".disk.task-1.raw"];
        for name in parts.into_iter().chain(["disk", ".disk.task-2", ".disk.task-2.raw", ".disc.task-1"]) {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let path = folder.path().join("disk");
        assert_eq!(remove_parts(&path, "task-1").unwrap(), parts);
        assert_eq!(remove_parts(&path, "task-1").unwrap().len(), 0);
        assert_eq!(names(folder.path()), [".disc.task-1", ".disk.task-2", ".disk.task-2.raw", "disk"]);
    }

    #[test]
    fn an_extraction_that_is_stopped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        for format in [Format::Raw, Format::Qcow2] {
            let error = run(&disk(), &folder.path().join("disk"), format, &cancel).unwrap_err();
            assert_eq!(error.kind, Kind::Cancelled);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }
}
