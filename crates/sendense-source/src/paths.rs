//! The gate for paths on the host: what lies below an allowed root may be touched, nothing else.
//!
//! What lives here: [`Roots`], the check of a path that a person, a request, a settings file or an image gave, and the
//! opening of files behind the check. What does not: who may ask.
//!
//! Invariant: a file opened here lies below a root at the moment it is opened. The check resolves symbolic links; the
//! opening then walks the resolved path from the root down with one `openat` per component, none of which follows a link,
//! so that a swap after the check leads to an error and never outside. What a file *is* is looked at on an `O_PATH`
//! handle, before it is opened: a FIFO cannot hang us and a tape does not rewind.

use crate::error::{Error, Kind, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The longest path taken, Linux' `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;

/// File systems whose files are not stored bytes but windows into the kernel; the magic numbers of `linux/magic.h`.
const PSEUDO_FILE_SYSTEMS: [u64; 17] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0xf97c_ff8c, // selinuxfs
    0x6e73_6673, // nsfs
    0x1980_0202, // mqueue
    0x1cd1,      // devpts
    0x4249_4e4d, // binfmt_misc
    0x6573_5543, // fusectl
];

/// The folders (or single files, or block devices) below which paths may lie. Empty: nothing may be touched.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    roots: Vec<PathBuf>,
    closed: Vec<PathBuf>,
}

/// Where a path leads: the part that exists, resolved, and what is still missing below it.
struct Place {
    existing: PathBuf,
    missing: Vec<std::ffi::OsString>,
}

impl Roots {
    /// These roots, which the operator chose. A root may be missing now (a share that is mounted later) and may be a
    /// symbolic link: it is resolved at each check.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots, closed: Vec::new() }
    }

    /// The same without some folders, even where a root holds them: the hub's own data, whose keys nobody backs up.
    pub fn without(mut self, closed: impl IntoIterator<Item = PathBuf>) -> Self {
        self.closed.extend(closed);
        self
    }

    /// One folder only, less what is closed here. Whoever calls it has checked the folder.
    pub fn narrowed(&self, folder: PathBuf) -> Self {
        Self { roots: vec![folder], closed: self.closed.clone() }
    }

    /// The roots as they were given.
    pub fn as_slice(&self) -> &[PathBuf] {
        &self.roots
    }

    /// The resolved form of an absolute path to an existing folder, regular file or block device below a root.
    pub fn check_existing(&self, path: &Path) -> Result<PathBuf> {
        let place = self.place(path)?;
        if !place.missing.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("{} does not exist", path.display())));
        }
        let handle = self.handle(&place.existing, path)?;
        kind_of(&handle, path)?;
        Ok(place.existing)
    }

    /// The resolved form of an absolute path below a root at which nothing exists yet. Folders on the way may be
    /// missing too; whoever makes them makes them below the resolved path.
    pub fn check_new(&self, path: &Path) -> Result<PathBuf> {
        let Place { existing, missing } = self.place(path)?;
        if missing.is_empty() {
            return Err(Error::new(Kind::Invalid, format!("{} exists already", path.display())));
        }
        let handle = self.handle(&existing, path)?;
        if kind_of(&handle, path)? != FileType::Directory {
            return Err(Error::new(Kind::Invalid, format!("{} is not a folder", existing.display())));
        }
        Ok(missing.into_iter().fold(existing, |path, name| path.join(name)))
    }

    /// Opens an existing regular file or block device below a root for reading.
    pub fn open_read(&self, path: &Path) -> Result<fs::File> {
        self.open(path, OFlags::RDONLY)
    }

    /// Opens an existing regular file or block device below a root for reading and writing.
    pub fn open_write(&self, path: &Path) -> Result<fs::File> {
        self.open(path, OFlags::RDWR)
    }

    /// Opens an existing block device below a root for reading and writing, and for nobody else: [`Kind::Busy`] while it
    /// is mounted, swapped to, part of something else, or held open in this way by another.
    pub fn open_device(&self, path: &Path) -> Result<fs::File> {
        let file = self.open(path, OFlags::RDWR | OFlags::EXCL)?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| io_error("stat", path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Err(Error::new(Kind::Invalid, format!("{} is no block device", path.display())));
        }
        Ok(file)
    }

    /// Makes a new, empty file (mode 0600) in an existing folder below a root and opens it for reading and writing.
    pub fn create_new(&self, path: &Path) -> Result<fs::File> {
        let new = self.check_new(path)?;
        let (Some(parent), Some(name)) = (new.parent(), new.file_name()) else {
            return Err(outside(path));
        };
        let folder = self.handle(parent, path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)
            .map(fs::File::from)
            .map_err(|errno| io_error("create", path, errno))
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<fs::File> {
        let resolved = self.check_existing(path)?;
        let handle = self.handle(&resolved, path)?;
        if kind_of(&handle, path)? == FileType::Directory {
            return Err(Error::new(Kind::Invalid, format!("{} is a folder, not a file", path.display())));
        }
        // Opens the very inode that was looked at: the kernel resolves the link to the handle, not to a name.
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::open(link, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map(fs::File::from)
            .map_err(|errno| io_error("open", path, errno))
    }

    /// Resolves as much of the path as exists and shows that it lies below a root.
    fn place(&self, path: &Path) -> Result<Place> {
        let lexical = check_text(path)?;
        let (mut existing, mut missing) = (lexical.clone(), Vec::new());
        let resolved = loop {
            match fs::canonicalize(&existing) {
                Ok(resolved) => break resolved,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // A link that leads nowhere exists itself; whoever writes "through" it would write elsewhere.
                    if existing.symlink_metadata().is_ok() {
                        return Err(outside(path));
                    }
                    let Some(name) = existing.file_name() else { return Err(outside(path)) };
                    missing.push(name.to_owned());
                    existing.pop();
                }
                Err(error) => {
                    return Err(match error.kind() {
                        // Outside the roots nothing is told, not even why it cannot be read.
                        _ if !self.roots.iter().any(|root| lexical.starts_with(root)) => outside(path),
                        io::ErrorKind::PermissionDenied => {
                            Error::new(Kind::Denied, format!("resolve {}", path.display())).caused_by(error)
                        }
                        io::ErrorKind::NotADirectory => {
                            Error::new(Kind::NotFound, format!("{} does not exist", path.display())).caused_by(error)
                        }
                        _ => Error::new(Kind::Unsafe, format!("resolve {}", path.display())).caused_by(error),
                    });
                }
            }
        };
        missing.reverse();
        self.root_of(&resolved).ok_or_else(|| outside(path))?;
        Ok(Place { existing: resolved, missing })
    }

    /// The resolved root that a resolved path lies below or is, unless it lies below a closed folder.
    fn root_of(&self, resolved: &Path) -> Option<PathBuf> {
        if self
            .closed
            .iter()
            .filter_map(|closed| fs::canonicalize(closed).ok())
            .any(|closed| resolved.starts_with(closed))
        {
            return None;
        }
        self.roots.iter().filter_map(|root| fs::canonicalize(root).ok()).find(|root| resolved.starts_with(root))
    }

    /// An `O_PATH` handle of a resolved path, walked to from its root without following any link.
    fn handle(&self, resolved: &Path, asked: &Path) -> Result<OwnedFd> {
        let root = self.root_of(resolved).ok_or_else(|| outside(asked))?;
        let below = resolved.strip_prefix(&root).map_err(|_| outside(asked))?;
        let mut handle =
            rustix::fs::openat(CWD, &root, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| io_error("open", &root, errno))?;
        for component in below.components() {
            let Component::Normal(name) = component else { return Err(outside(asked)) };
            handle = step(handle.as_fd(), name, asked)?;
        }
        Ok(handle)
    }
}

/// One component down. `O_PATH | O_NOFOLLOW` gives the link itself, which then is neither folder nor file.
fn step(folder: BorrowedFd<'_>, name: &OsStr, asked: &Path) -> Result<OwnedFd> {
    let next = rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| io_error("open", asked, errno))?;
    let stat = rustix::fs::fstat(&next).map_err(|errno| io_error("stat", asked, errno))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(Error::new(
            Kind::Unsafe,
            format!("{} was replaced by a link while it was opened", asked.display()),
        ));
    }
    Ok(next)
}

/// What it is; an error for what is neither folder, regular file nor block device, or is not stored bytes.
fn kind_of(handle: &OwnedFd, asked: &Path) -> Result<FileType> {
    let stat = rustix::fs::fstat(handle).map_err(|errno| io_error("stat", asked, errno))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let what = match kind {
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice => None,
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice => Some("a character device"),
        FileType::Symlink => Some("a link"),
        FileType::Unknown => Some("of an unknown type"),
    };
    if let Some(what) = what {
        let message = format!("{} is {what}; only folders, regular files and block devices are taken", asked.display());
        return Err(Error::new(Kind::Unsafe, message));
    }
    let file_system = rustix::fs::fstatfs(handle).map_err(|errno| io_error("stat the file system of", asked, errno))?;
    if PSEUDO_FILE_SYSTEMS.contains(&u64::try_from(file_system.f_type).unwrap_or(0)) {
        let message = format!("{} lies on a file system of the kernel's own (proc, sysfs …)", asked.display());
        return Err(Error::new(Kind::Unsafe, message));
    }
    Ok(kind)
}

/// The path without `.` and doubled separators; refuses what is not absolute, has `..` or NUL, or is too long.
fn check_text(path: &Path) -> Result<PathBuf> {
    let shown: String = path.display().to_string().chars().take(200).collect();
    let refuse = |why: &str| Err(Error::new(Kind::Unsafe, format!("path {shown:?} {why}")));
    if path.as_os_str().as_bytes().contains(&0) {
        return refuse("holds a NUL byte");
    }
    if path.as_os_str().len() >= PATH_BYTES_MAX {
        return refuse("is too long");
    }
    if !path.is_absolute() {
        return refuse("is not absolute");
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return refuse("holds `..`");
    }
    Ok(path.components().collect())
}

fn outside(path: &Path) -> Error {
    Error::new(Kind::Unsafe, format!("path {:?} lies outside the allowed folders", path.display().to_string()))
        .hint("allow its folder with --allow-path")
}

fn io_error(verb: &str, path: &Path, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NOTDIR => Kind::NotFound,
        Errno::ACCESS | Errno::PERM => Kind::Denied,
        Errno::EXIST => Kind::Invalid,
        Errno::LOOP => Kind::Unsafe,
        Errno::BUSY => Kind::Busy,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("{verb} {}", path.display())).caused_by(io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    struct Lab {
        _dir: tempfile::TempDir,
        root: PathBuf,
        outside: PathBuf,
        roots: Roots,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir_all(root.join("vm")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("vm/disk.raw"), "inside").unwrap();
        fs::write(outside.join("secret"), "outside").unwrap();
        Lab { roots: Roots::new(vec![root.clone()]), _dir: dir, root, outside }
    }

    fn kind<T>(result: Result<T>) -> Option<Kind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn what_lies_below_a_root_is_taken_also_through_links() {
        let lab = lab();
        symlink("vm/disk.raw", lab.root.join("link.raw")).unwrap();
        assert_eq!(lab.roots.check_existing(&lab.root.join("link.raw")).unwrap(), lab.root.join("vm/disk.raw"));
        assert_eq!(lab.roots.check_existing(&lab.root).unwrap(), lab.root);
        let text = io::read_to_string(lab.roots.open_read(&lab.root.join("link.raw")).unwrap()).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(lab.roots.check_new(&lab.root.join("a/b")).unwrap(), lab.root.join("a/b"));
        lab.roots.create_new(&lab.root.join("vm/new")).unwrap();
        assert_eq!(kind(lab.roots.create_new(&lab.root.join("vm/new"))), Some(Kind::Invalid));
        assert_eq!(kind(lab.roots.check_existing(&lab.root.join("nothing"))), Some(Kind::NotFound));
    }

    #[test]
    fn what_leads_out_is_refused() {
        let lab = lab();
        symlink(lab.outside.join("secret"), lab.root.join("out.raw")).unwrap();
        symlink(&lab.outside, lab.root.join("out")).unwrap();
        symlink(lab.outside.join("not there yet"), lab.root.join("dangling")).unwrap();
        for path in ["out.raw", "out/secret", "vm/../../outside/secret", "dangling", "dangling/below", "out/new"] {
            let path = lab.root.join(path);
            assert_eq!(kind(lab.roots.check_existing(&path)), Some(Kind::Unsafe), "{path:?}");
            assert_eq!(kind(lab.roots.check_new(&path)), Some(Kind::Unsafe), "{path:?}");
            assert_eq!(kind(lab.roots.open_read(&path)), Some(Kind::Unsafe), "{path:?}");
            assert_eq!(kind(lab.roots.create_new(&path)), Some(Kind::Unsafe), "{path:?}");
        }
        for path in ["/etc/passwd", "/", "/no/such/thing", "relative", "", "/proc/self/environ", "/tmp\0/x"] {
            assert_eq!(kind(lab.roots.check_existing(Path::new(path))), Some(Kind::Unsafe), "{path:?}");
        }
        // A sibling whose name begins with the root's name is not below the root.
        fs::create_dir(lab.root.with_file_name("root2")).unwrap();
        assert_eq!(kind(lab.roots.check_existing(&lab.root.with_file_name("root2"))), Some(Kind::Unsafe));
        assert_eq!(kind(Roots::default().check_existing(&lab.root)), Some(Kind::Unsafe));
    }

    #[test]
    fn closed_folders_stay_closed_below_an_allowed_root() {
        let lab = lab();
        fs::write(lab.root.join("open.raw"), "x").unwrap();
        symlink("vm/disk.raw", lab.root.join("link.raw")).unwrap();
        let roots = lab.roots.clone().without([lab.root.join("vm")]);
        for roots in [roots.narrowed(lab.root.clone()), roots] {
            roots.check_existing(&lab.root.join("open.raw")).unwrap();
            for path in ["vm", "vm/disk.raw", "link.raw", "vm/new"] {
                let path = lab.root.join(path);
                assert_eq!(kind(roots.check_existing(&path)), Some(Kind::Unsafe), "{path:?}");
                assert_eq!(kind(roots.check_new(&path)), Some(Kind::Unsafe), "{path:?}");
                assert_eq!(kind(roots.open_read(&path)), Some(Kind::Unsafe), "{path:?}");
            }
        }
    }

    #[test]
    fn fifos_sockets_devices_and_kernel_files_are_refused_and_do_not_hang() {
        let lab = lab();
        rustix::fs::mkfifoat(CWD, lab.root.join("fifo.raw"), Mode::RWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(lab.root.join("socket.raw")).unwrap();
        for name in ["fifo.raw", "socket.raw"] {
            assert_eq!(kind(lab.roots.open_read(&lab.root.join(name))), Some(Kind::Unsafe), "{name}");
        }
        let host = Roots::new(vec!["/proc".into(), "/dev".into()]);
        assert_eq!(kind(host.open_read(Path::new("/proc/version"))), Some(Kind::Unsafe));
        assert_eq!(kind(host.open_read(Path::new("/dev/zero"))), Some(Kind::Unsafe));
        assert_eq!(kind(lab.roots.open_read(&lab.root)), Some(Kind::Invalid));
    }

    #[test]
    fn a_swap_between_check_and_open_does_not_lead_out() {
        let lab = lab();
        let path = lab.root.join("vm/disk.raw");
        let checked = lab.roots.check_existing(&path).unwrap();
        // The file becomes a link; then the folder above it does.
        fs::remove_file(&path).unwrap();
        symlink(lab.outside.join("secret"), &path).unwrap();
        assert_eq!(kind(lab.roots.handle(&checked, &path)), Some(Kind::Unsafe));
        fs::remove_file(&path).unwrap();
        fs::remove_dir(lab.root.join("vm")).unwrap();
        fs::write(lab.outside.join("disk.raw"), "outside").unwrap();
        symlink(&lab.outside, lab.root.join("vm")).unwrap();
        assert_eq!(kind(lab.roots.handle(&checked, &path)), Some(Kind::Unsafe));
    }

    proptest! {
        #[test]
        fn any_text_stays_below_the_root(text in "[a-z./\u{0}-]{0,40}") {
            let lab = lab();
            let path = lab.root.join("vm").join(&text);
            for result in [lab.roots.check_existing(&path), lab.roots.check_new(&path)].into_iter().flatten() {
                prop_assert!(result.starts_with(&lab.root));
                prop_assert!(result.components().all(|part| !matches!(part, Component::ParentDir)));
            }
        }
    }
}
