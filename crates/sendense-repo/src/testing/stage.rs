//! A file system that plays a script: every change is announced before it is made, and told after it was made.
//!
//! Nothing is synced to the real disk, which would make the tests slow and prove nothing: the script knows what was asked.

use crate::crashsafe::{Fs, NewFile, System};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD};
use sendense_block::backend::File;
use sendense_block::{self as block, AllocationMap, ByteLen, ByteOffset, Extent, Flush, MappedExtent, ReadAt, WriteAt};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// One change, or one demand that changes be durable.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    CreateDir(&'a Path),
    CreateFile(&'a Path, u32),
    Write(u32, u64, &'a [u8]),
    SetLen(u32, u64),
    /// An empty file becomes what another one is.
    Clone(u32, &'a [u8]),
    Punch(u32, u64, u64),
    SyncFile(u32),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Link(&'a Path, &'a Path),
    RemoveFile(&'a Path),
    RemoveDir(&'a Path),
}

impl Act<'_> {
    /// True when it needs room on the disk.
    pub fn needs_room(&self) -> bool {
        matches!(
            self,
            Self::CreateDir(_)
                | Self::CreateFile(..)
                | Self::Write(..)
                | Self::SetLen(..)
                | Self::Clone(..)
                | Self::Punch(..)
                // A folder may grow by a name.
                | Self::Rename(..)
                | Self::Link(..)
        )
    }
}

/// Decides what happens to changes, and hears of those that were made.
pub trait Script: Send + Sync {
    /// Refuses the act, or lets it be done.
    fn before(&self, act: &Act<'_>) -> io::Result<()>;
    /// The act was done.
    fn after(&self, act: &Act<'_>);
    /// The number of a file that was there before.
    fn number(&self, _path: &Path) -> Option<u32> {
        None
    }
}

/// Lets everything happen.
pub struct Calm;

impl Script for Calm {
    fn before(&self, _act: &Act<'_>) -> io::Result<()> {
        Ok(())
    }

    fn after(&self, _act: &Act<'_>) {}
}

/// How the file system renames without replacing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renames {
    /// In one step.
    AtOnce,
    /// By a second name whose first is then removed, as on NFS.
    ByLink,
    /// In one step, and no file can have a second name.
    NoLinks,
}

/// The file system.
pub struct Stage {
    script: Arc<dyn Script>,
    renames: Renames,
    clones: bool,
    files: AtomicU32,
}

impl Stage {
    pub fn new(script: Arc<dyn Script>, renames: Renames) -> Arc<Self> {
        Self::sharing(script, renames, false)
    }

    /// One on which a file can be, or cannot be, a clone of another.
    pub fn sharing(script: Arc<dyn Script>, renames: Renames, clones: bool) -> Arc<Self> {
        Arc::new(Self { script, renames, clones, files: AtomicU32::new(1) })
    }

    /// One on which nothing goes wrong.
    pub fn calm() -> Arc<Self> {
        Self::new(Arc::new(Calm), Renames::AtOnce)
    }
}

fn play<T>(script: &dyn Script, act: Act<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    script.before(&act)?;
    let done = run()?;
    script.after(&act);
    Ok(done)
}

impl Fs for Stage {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        play(&*self.script, Act::CreateDir(path), || System.create_dir(path))
    }

    fn create_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>> {
        let number = self.files.fetch_add(1, Ordering::SeqCst);
        let inner = play(&*self.script, Act::CreateFile(path, number), || System.create_file(path))?;
        Ok(Arc::new(StageFile { inner, number, script: self.script.clone() }))
    }

    /// The room is not shared really: nobody here can tell.
    fn create_clone(&self, path: &Path, of: &std::fs::File) -> io::Result<(Arc<dyn NewFile>, bool)> {
        let number = self.files.fetch_add(1, Ordering::SeqCst);
        let inner = play(&*self.script, Act::CreateFile(path, number), || System.create_file(path))?;
        if self.clones {
            let mut bytes = vec![0; of.metadata()?.len() as usize];
            std::os::unix::fs::FileExt::read_exact_at(of, &mut bytes, 0)?;
            let copy = || inner.write_at(ByteOffset(0), &bytes).map_err(io::Error::other);
            play(&*self.script, Act::Clone(number, &bytes), copy)?;
        }
        Ok((Arc::new(StageFile { inner, number, script: self.script.clone() }), self.clones))
    }

    fn open_file(&self, path: &Path) -> io::Result<Arc<dyn NewFile>> {
        let number = self.script.number(path).unwrap_or_else(|| self.files.fetch_add(1, Ordering::SeqCst));
        Ok(Arc::new(StageFile { inner: System.open_file(path)?, number, script: self.script.clone() }))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        play(&*self.script, Act::SyncDir(path), || path.symlink_metadata().map(drop))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.renames != Renames::ByLink {
            return play(&*self.script, Act::Rename(from, to), || System.rename_new(from, to));
        }
        let link = || Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?);
        play(&*self.script, Act::Link(from, to), link)?;
        self.remove_file(from)
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        play(&*self.script, Act::Rename(from, to), || System.rename_over(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<bool> {
        match self.renames {
            Renames::NoLinks => Ok(false),
            Renames::AtOnce | Renames::ByLink => play(&*self.script, Act::Link(from, to), || System.link(from, to)),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        play(&*self.script, Act::RemoveFile(path), || System.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        play(&*self.script, Act::RemoveDir(path), || System.remove_dir(path))
    }
}

struct StageFile {
    inner: Arc<dyn NewFile>,
    number: u32,
    script: Arc<dyn Script>,
}

impl StageFile {
    fn play(&self, act: Act<'_>, run: impl FnOnce() -> block::Result<()>) -> block::Result<()> {
        self.script.before(&act).map_err(|error| block::Error::io("play the script", error))?;
        run()?;
        self.script.after(&act);
        Ok(())
    }
}

impl ReadAt for StageFile {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        self.inner.read_at(at, buf)
    }
}

impl WriteAt for StageFile {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> block::Result<()> {
        self.play(Act::Write(self.number, at.0, data), || self.inner.write_at(at, data))
    }
}

impl Flush for StageFile {
    fn flush(&self) -> block::Result<()> {
        self.play(Act::SyncFile(self.number), || Ok(()))
    }
}

impl AllocationMap for StageFile {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        self.inner.allocation(within)
    }
}

impl NewFile for StageFile {
    fn set_len(&self, len: ByteLen) -> block::Result<()> {
        self.play(Act::SetLen(self.number, len.0), || self.inner.set_len(len))
    }

    fn punch(&self, range: Extent) -> block::Result<()> {
        self.play(Act::Punch(self.number, range.start().0, range.len().0), || self.inner.punch(range))
    }

    /// A write like any other; what is refused is not taken.
    fn take(&self, of: &File, range: Extent) -> ByteLen {
        let mut bytes = vec![0; range.len().0 as usize];
        let mut taken = ByteLen(0);
        if of.read_at(range.start(), &mut bytes).is_ok() {
            let _ = self.play(Act::Write(self.number, range.start().0, &bytes), || {
                taken = self.inner.take(of, range);
                Ok(())
            });
        }
        taken
    }
}

/// What is done to one act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this number; all that follows works.
    Once(i32),
    /// It and everything after it fails: the process is gone, and what it had left to do is not done.
    Gone,
    /// From it on, whatever needs room fails for the lack of it.
    Full,
    /// The same until a file is removed.
    Tight,
}

/// Plays one fault at one act, counted from 0.
pub struct Faults {
    fault: Fault,
    at: u64,
    count: AtomicU64,
    met: Mutex<Option<String>>,
    /// A file was removed since the fault was met.
    has_room: AtomicBool,
}

/// `errno` of a full disk.
pub const ENOSPC: i32 = 28;
/// `errno` of a failed read or write.
pub const EIO: i32 = 5;

impl Faults {
    pub fn new(fault: Fault, at: u64) -> Arc<Self> {
        Arc::new(Self { fault, at, count: AtomicU64::new(0), met: Mutex::new(None), has_room: AtomicBool::new(false) })
    }

    /// The act that met the fault first; `None` when the work ended before.
    pub fn met(&self) -> Option<String> {
        self.met.lock().clone()
    }
}

impl Script for Faults {
    fn before(&self, act: &Act<'_>) -> io::Result<()> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let errno = match self.fault {
            Fault::Once(errno) if number == self.at => errno,
            Fault::Gone if number >= self.at => EIO,
            Fault::Full if number >= self.at && act.needs_room() => ENOSPC,
            Fault::Tight if number >= self.at && act.needs_room() && !self.has_room.load(Ordering::SeqCst) => ENOSPC,
            _ => return Ok(()),
        };
        self.met.lock().get_or_insert_with(|| told(act));
        Err(io::Error::from_raw_os_error(errno))
    }

    fn after(&self, act: &Act<'_>) {
        if matches!(act, Act::RemoveFile(_)) && self.met.lock().is_some() {
            self.has_room.store(true, Ordering::SeqCst);
        }
    }
}

/// An act in words, without the temporary folder and the bytes.
pub fn told(act: &Act<'_>) -> String {
    let short = |path: &Path| path.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect::<PathBuf>();
    match act {
        Act::CreateDir(path) => format!("create folder {}", short(path).display()),
        Act::CreateFile(path, number) => format!("create {} as file {number}", short(path).display()),
        Act::Write(file, at, bytes) => format!("write {} bytes at {at} of file {file}", bytes.len()),
        Act::SetLen(file, len) => format!("make file {file} {len} bytes long"),
        Act::Clone(file, bytes) => format!("clone {} bytes into file {file}", bytes.len()),
        Act::Punch(file, at, len) => format!("punch {len} bytes at {at} of file {file}"),
        Act::SyncFile(file) => format!("sync file {file}"),
        Act::SyncDir(path) => format!("sync folder {}", short(path).display()),
        Act::Rename(from, to) => format!("rename {} to {}", short(from).display(), short(to).display()),
        Act::Link(from, to) => format!("link {} to {}", short(from).display(), short(to).display()),
        Act::RemoveFile(path) => format!("remove {}", short(path).display()),
        Act::RemoveDir(path) => format!("remove folder {}", short(path).display()),
    }
}
