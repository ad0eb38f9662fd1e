//! A disk into a file: raw or QCOW2, under a temporary name until it is whole.

use super::Job;
use crate::fault::{Result, invalid, of_block};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sendense_api::ImageFormat;
use sendense_block::backend::File;
use sendense_block::copy::{self, Backup, Mode as CopyMode, Restore};
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Spec, Writer};
use sendense_types::{Problem, ProblemCode, TaskId};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Restores a disk into a new file at `path`, an absolute path that was checked against the allowed roots. Its folder
/// must exist.
pub(crate) fn restore_file(
    job: &Job<'_>,
    path: &Path,
    format: ImageFormat,
    overwrite: bool,
    task_id: &TaskId,
) -> Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(format!("{} is not the path of a file", path.display())));
    };
    let folder = Folder::open(folder)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{task_id}"));
    if !overwrite && folder.exists(name)? {
        return Err(exists(path));
    }
    let file = Temporary::create(&folder, temporary)?;
    match format {
        ImageFormat::Raw => write_raw(job, &file.file)?,
        ImageFormat::Qcow2 => write_qcow2(job, &folder, &file, task_id)?,
        ImageFormat::Vmdk => return Err(invalid("format vmdk is not supported yet")),
    }
    job.cancel.check().map_err(|error| of_block("write the file", &error))?;
    file.publish(name, path, overwrite)
}

fn write_raw(job: &Job<'_>, file: &Arc<File>) -> Result<()> {
    let failed = |error: sendense_block::Error| of_block("restore to the file", &error);
    file.set_len(job.disk.size()).map_err(failed)?;
    let restore = Restore {
        name: job.name,
        disk: job.disk,
        target: file,
        target_is_zero: true,
        options: job.options(),
        progress: job.progress,
        cancel: job.cancel,
    };
    copy::restore(&restore).map_err(failed)
}

fn write_qcow2(job: &Job<'_>, folder: &Folder, file: &Temporary<'_>, task_id: &TaskId) -> Result<()> {
    let failed = |error: sendense_block::Error| of_block("restore to the file", &error);
    // The writer's scratch lies beside the file: there is room for the disk there, so there is for 0.01 % more.
    let mut name = OsString::from(".");
    name.push(format!("{task_id}.tables"));
    let spill = Temporary::create(folder, name)?;
    let spec = Spec { capacity: job.disk.size(), backing: None };
    let writer = Writer::create(file.file.clone(), spill.file.clone(), spec, Arc::new(Deaf)).map_err(failed)?;
    let survey = copy::survey(job.name, job.disk, CopyMode::Full, job.cancel).map_err(failed)?;
    job.progress.plan(survey.read);
    let backup = Backup {
        name: job.name,
        disk: job.disk,
        mode: CopyMode::Full,
        sink: &writer,
        options: job.options(),
        progress: job.progress,
        cancel: job.cancel,
    };
    copy::backup(&backup, survey).map_err(failed)?;
    writer.seal().map_err(failed)?;
    sendense_block::Flush::flush(&*file.file).map_err(failed)
}

/// The folder of the target, held open: what happens to its name meanwhile does not lead us elsewhere.
struct Folder {
    handle: OwnedFd,
    shown: String,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = path.display().to_string();
        let handle =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed("open", &shown, errno))?;
        Ok(Self { handle, shown })
    }

    fn exists(&self, name: &std::ffi::OsStr) -> Result<bool> {
        match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("look into", &self.shown, errno)),
        }
    }
}

/// A file that is removed again unless it is published.
struct Temporary<'a> {
    folder: &'a Folder,
    name: OsString,
    file: Arc<File>,
    published: bool,
}

impl<'a> Temporary<'a> {
    fn create(folder: &'a Folder, name: OsString) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(folder.handle.as_fd(), &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("create a file in", &folder.shown, errno))?;
        let shown = name.to_string_lossy().into_owned();
        let file = File::from_std(opened.into(), shown, true).map_err(|error| of_block("create the file", &error))?;
        Ok(Self { folder, name, file: Arc::new(file), published: false })
    }

    /// Gives the file its name, unless something bears it by now, and makes that durable.
    fn publish(mut self, name: &std::ffi::OsStr, path: &Path, overwrite: bool) -> Result<()> {
        let handle = self.folder.handle.as_fd();
        let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match rustix::fs::renameat_with(handle, &self.name, handle, name, flags) {
            // Some file systems (NFS among them) know no rename that refuses to replace; a link refuses too.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !overwrite => {
                rustix::fs::linkat(handle, &self.name, handle, name, AtFlags::empty())
            }
            renamed => renamed.inspect(|()| self.published = true),
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(exists(path)),
            Err(errno) => return Err(failed("name the file in", &self.folder.shown, errno)),
        }
        rustix::fs::fsync(handle).map_err(|errno| failed("sync", &self.folder.shown, errno))
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.published
            && let Err(errno) = rustix::fs::unlinkat(self.folder.handle.as_fd(), &self.name, AtFlags::empty())
        {
            tracing::warn!(folder = %self.folder.shown, name = ?self.name, %errno, "remove an unfinished file");
        }
    }
}

fn exists(path: &Path) -> Problem {
    let details = format!("{} exists; nothing is overwritten", path.display());
    Problem::new(ProblemCode::Conflict, "the target exists already", details)
}

fn failed(verb: &str, what: &str, errno: Errno) -> Problem {
    let error = sendense_block::Error::io(format!("{verb} {what}"), io::Error::from(errno));
    match error.kind {
        sendense_block::Kind::NotFound => invalid(format!("folder {what} does not exist")),
        sendense_block::Kind::Denied => {
            Problem::new(ProblemCode::InvalidInput, format!("{verb} {what}"), "the hub may not write there")
        }
        _ => of_block("write the target", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::backend::Memory;
    use sendense_block::copy::Progress;
    use sendense_block::{ByteLen, ByteOffset, Cancel, Disk, WriteAt};
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    fn disk() -> Memory {
        let disk = Memory::zeroed(ByteLen(3 * 65536 + 512));
        disk.write_at(ByteOffset(65536), &[7; 4096]).unwrap();
        disk.write_at(ByteOffset(3 * 65536), &[9; 512]).unwrap();
        disk
    }

    fn content(disk: &dyn Disk) -> Vec<u8> {
        let mut bytes = vec![0; disk.size().0 as usize];
        disk.read_at(ByteOffset(0), &mut bytes).unwrap();
        bytes
    }

    fn run(disk: &dyn Disk, path: &Path, format: ImageFormat, cancel: &Cancel) -> Result<()> {
        let job = Job { name: "disk 0", disk, lanes: 2, progress: &Progress::default(), cancel };
        restore_file(&job, path, format, false, &TaskId::generate())
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_formats_give_every_byte_back() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, cancel) = (disk(), Cancel::new());
        let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
        run(&disk, &raw, ImageFormat::Raw, &cancel).unwrap();
        run(&disk, &qcow2, ImageFormat::Qcow2, &cancel).unwrap();
        assert_eq!(std::fs::read(&raw).unwrap(), content(&disk));
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
    fn what_exists_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, "mine").unwrap();
        let problem = run(&disk(), &path, ImageFormat::Raw, &Cancel::new()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::Conflict);
        // A link that leads nowhere exists, too.
        let link = folder.path().join("link.raw");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(run(&disk(), &link, ImageFormat::Raw, &Cancel::new()).unwrap_err().code, ProblemCode::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["disk.raw", "link.raw"]);
    }

    #[test]
    fn a_restore_that_is_stopped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let problem = run(&disk(), &folder.path().join("disk"), format, &cancel).unwrap_err();
            assert_eq!(problem.code, ProblemCode::Cancelled);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }
}
