//! Who may open a backing file. An image names another file, and that name is hostile: nothing is opened but by a gate.
//!
//! Invariant: formats are declared, never guessed: a guest that writes a QCOW2 header into its raw disk must not be
//! believed.

use crate::header::BackingRef;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sendense_block::backend::File;
use sendense_block::{Disk, Error, Kind, ReadAt, Result};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A file that a gate has opened, as the format it is declared to be.
pub enum Opened {
    /// A QCOW2 image.
    Qcow2 {
        /// Names the file to the gate and in messages; the same file twice in a chain is a loop.
        id: String,
        /// Its bytes.
        file: Arc<dyn ReadAt>,
    },
    /// The disk itself.
    Raw {
        /// As above.
        id: String,
        /// Its bytes.
        disk: Arc<dyn Disk>,
    },
}

/// Opens backing files, or refuses to.
pub trait Gate: Send + Sync {
    /// Opens the file that the image `named_by` (an [`Opened`]'s id) names. A missing format is the gate's to refuse.
    fn open_backing(&self, named_by: &str, backing: &BackingRef) -> Result<Opened>;
}

/// Opens nothing: for images that must stand alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Closed;

impl Gate for Closed {
    fn open_backing(&self, named_by: &str, backing: &BackingRef) -> Result<Opened> {
        Err(Error::new(
            Kind::Denied,
            format!("open {:?}, the backing file of {named_by}: not allowed here", backing.name),
        ))
    }
}

/// Opens what lies below one folder, for reading. Names are resolved by the kernel and cannot leave it: not by `..`, not by
/// a symbolic link, not in a race (`openat2` with `RESOLVE_BENEATH`, Linux 5.6).
#[derive(Debug)]
pub struct Folder {
    root: std::fs::File,
    path: PathBuf,
}

impl Folder {
    /// The folder that nothing leaves.
    pub fn new(path: &Path) -> Result<Self> {
        let failed = |error| Error::io(format!("open folder {}", path.display()), error);
        let path = path.canonicalize().map_err(failed)?;
        let root = std::fs::File::open(&path).map_err(failed)?;
        Ok(Self { root, path })
    }

    /// Opens the first file of a chain: `name` is relative to the folder, `format` is `qcow2` or `raw`.
    pub fn open_top(&self, name: &str, format: &str) -> Result<Opened> {
        self.open(name, name, Some(format))
    }

    fn open(&self, path: &str, name: &str, format: Option<&str>) -> Result<Opened> {
        let context = || format!("open backing file or image {name:?} below {}", self.path.display());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file =
            rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
                Errno::XDEV | Errno::LOOP => {
                    Error::new(Kind::Denied, context()).caused_by("the name leads out of the folder")
                }
                Errno::NOSYS => Error::new(Kind::Unsupported, context()).caused_by("it needs openat2 (Linux 5.6)"),
                errno => Error::io(context(), errno.into()),
            })?;
        let file = Arc::new(File::from_std(file.into(), self.path.join(path).display().to_string(), false)?);
        let id = path.to_owned();
        match format {
            Some("qcow2") => Ok(Opened::Qcow2 { id, file }),
            Some("raw") => Ok(Opened::Raw { id, disk: file }),
            Some(other) => Err(Error::new(Kind::Unsupported, context()).caused_by(format!("its format is {other:?}"))),
            None => Err(Error::new(Kind::Denied, context())
                .caused_by("the image does not declare its format, and formats are not guessed")),
        }
    }
}

impl Gate for Folder {
    fn open_backing(&self, named_by: &str, backing: &BackingRef) -> Result<Opened> {
        let name = Path::new(&backing.name);
        let path = match name.strip_prefix(&self.path) {
            // An absolute name is understood when it lies below the folder.
            Ok(below) => below.to_owned(),
            Err(_) => Path::new(named_by).parent().unwrap_or(Path::new("")).join(name),
        };
        // Dots that change nothing go, so that a file has one id in most cases. `..` stays: only the kernel can follow it.
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        let path = path.to_str().ok_or_else(|| Error::new(Kind::Invalid, "a path that is not UTF-8"))?;
        self.open(path, &backing.name, backing.format.as_deref())
    }
}
