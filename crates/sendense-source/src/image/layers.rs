//! A disk's files from the top down: found, gated, opened, and shown to be what they are declared to be.
//!
//! What lives here: following a disk image to everything that it is made of, before any byte of it is believed. What does
//! not: reading through foreign tools.
//!
//! Invariant: every file that a disk's bytes come from is in [`Layers::files`], was opened through a gate, and was stamped
//! before anything was read from it.

use super::format::{Format, HEAD_BYTES};
use super::stamp::Stamp;
use crate::error::{Error, Kind, Result};
use crate::paths::Roots;
use parking_lot::Mutex;
use sendense_block::backend::File;
use sendense_block::{ByteLen, Disk, ReadAt};
use sendense_qcow2::{BackingRef, Chain, Gate, Opened};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where a disk's files may lie.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The source's own folder: the disks found in it, and whatever any disk names (backing files, extents, parents).
    pub folder: Roots,
    /// What the hub's configuration allows: the disks that a `vm.toml` names.
    pub allowed: Roots,
}

/// Where a disk's own file may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It was found in the source's folder and may not lead out of it.
    Folder,
    /// An administrator named it.
    Allowed,
}

/// How to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// To tell what is there.
    Glance,
    /// To back it up: a file that is being written right now is refused, and later changes will be seen.
    Freeze,
}

/// What a file is to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The file that was declared.
    Top,
    /// An image below, which may be a disk of its own.
    Below,
}

/// One file of a disk.
#[derive(Debug)]
pub struct LayerFile {
    /// Its resolved path.
    pub path: PathBuf,
    /// Holds the inode that was looked at.
    pub handle: fs::File,
    /// What it was when it was opened.
    pub stamp: Stamp,
    /// What it is to the disk.
    pub role: Role,
}

/// A disk that was looked at.
pub struct Layers {
    /// All its files, the declared one first.
    pub files: Vec<LayerFile>,
    /// The disk's size.
    pub capacity: ByteLen,
    /// Its bytes.
    pub disk: Arc<dyn Disk>,
}

impl Layers {
    /// The first file that is no longer what it was.
    pub fn changed(&self) -> Option<&Path> {
        self.files.iter().find(|file| !file.stamp.still_holds(&file.handle, &file.path)).map(|file| file.path.as_path())
    }
}

/// Looks at a disk and everything below it.
pub fn examine(path: &Path, format: Format, place: Place, scope: &Scope, look: Look) -> Result<Layers> {
    let mut files = Vec::new();
    let roots = match place {
        Place::Folder => &scope.folder,
        Place::Allowed => &scope.allowed,
    };
    let top = open_file(path, format, roots, look, Role::Top)?;
    let device = as_disk(&top)?;
    match format {
        Format::Raw => {
            files.push(top);
            Ok(Layers { capacity: device.size(), files, disk: device })
        }
        Format::Qcow2 => {
            let id = top.path.display().to_string();
            files.push(top);
            let gate = FolderGate { scope, look, state: Mutex::new(GateState { files, refusal: None }) };
            let opened = Chain::open(Opened::Qcow2 { id, file: device }, &gate);
            let GateState { files, refusal } = gate.state.into_inner();
            match opened {
                Ok(chain) => Ok(Layers { capacity: chain.size(), files, disk: Arc::new(chain) }),
                // The gate's own words say more than the chain's "denied".
                Err(error) => Err(refusal.unwrap_or_else(|| unreadable(path, error))),
            }
        }
        Format::Vmdk | Format::Vhdx | Format::Vdi => {
            Err(Error::new(Kind::Unsupported, format!("{} images are not part of this build", format)))
        }
    }
}

/// Opens and stamps one file and compares its head with its declared format.
fn open_file(path: &Path, format: Format, roots: &Roots, look: Look, role: Role) -> Result<LayerFile> {
    let handle = roots.open_read(path)?;
    // The name that the handle was opened by is the one to look at again later.
    let path = roots.check_existing(path)?;
    let stamp = match look {
        Look::Glance => Stamp::of(&handle, &path)?,
        Look::Freeze => Stamp::settled(&handle, &path)?,
    };
    format.check_head(&head(&handle, &path)?, &path)?;
    Ok(LayerFile { path, handle, stamp, role })
}

fn head(handle: &fs::File, path: &Path) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        match handle.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", path, error)),
        }
    }
    head.truncate(filled);
    Ok(head)
}

fn as_disk(file: &LayerFile) -> Result<Arc<File>> {
    let handle = file.handle.try_clone().map_err(|error| io_error("open", &file.path, error))?;
    let name = file.path.display().to_string();
    File::from_std(handle, name, false).map(Arc::new).map_err(|error| unreadable(&file.path, error))
}

/// The path that an image in `folder` means by `name`. A name with a protocol (`nbd:…`, `json:{…}`) is refused: it would
/// make a tool open something that no gate sees.
pub fn named_path(folder: &Path, name: &str, named_by: &Path) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let shown: String = name.chars().take(200).collect();
        Err(Error::new(Kind::Unsafe, format!("{} names {shown:?}, which {why}", named_by.display())))
    };
    if name.is_empty() || name.contains('\0') {
        return refuse("is no file name");
    }
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return refuse("is not a plain path");
    }
    let mut path = PathBuf::new();
    // `folder` is resolved, so taking its last component off is what `..` means.
    for component in folder.join(name).components() {
        match component {
            Component::ParentDir if !path.pop() => return refuse("leads above the root"),
            Component::ParentDir | Component::CurDir => {}
            other => path.push(other),
        }
    }
    Ok(path)
}

/// Opens backing files that lie in the source's folder and declare their format.
struct FolderGate<'a> {
    scope: &'a Scope,
    look: Look,
    state: Mutex<GateState>,
}

struct GateState {
    files: Vec<LayerFile>,
    refusal: Option<Error>,
}

impl Gate for FolderGate<'_> {
    fn open_backing(&self, _: &str, backing: &BackingRef) -> sendense_block::Result<Opened> {
        let mut state = self.state.lock();
        match self.follow(&state.files, backing) {
            Ok((file, opened)) => {
                state.files.push(file);
                Ok(opened)
            }
            Err(error) => {
                state.refusal = Some(error);
                Err(sendense_block::Error::new(sendense_block::Kind::Denied, "open a backing file"))
            }
        }
    }
}

impl FolderGate<'_> {
    fn follow(&self, files: &[LayerFile], backing: &BackingRef) -> Result<(LayerFile, Opened)> {
        let named_by = files.last().map(|file| file.path.as_path()).unwrap_or(Path::new("/"));
        let format = match backing.format.as_deref() {
            Some("raw") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some(other) => {
                let message = format!("{} has a backing file of format {other:?}", named_by.display());
                return Err(Error::new(Kind::Unsupported, message).hint("raw and qcow2 are read"));
            }
            None => {
                let message = format!("{} does not declare the format of its backing file", named_by.display());
                return Err(
                    Error::new(Kind::Unsafe, message).hint("declare it: qemu-img rebase -u -b BACKING -F FORMAT IMAGE")
                );
            }
        };
        let path = named_path(named_by.parent().unwrap_or(Path::new("/")), &backing.name, named_by)?;
        let file = open_file(&path, format, &self.scope.folder, self.look, Role::Below)
            .map_err(|error| named_in(error, named_by, "backing file"))?;
        let (id, disk) = (file.path.display().to_string(), as_disk(&file)?);
        let opened = match format {
            Format::Qcow2 => Opened::Qcow2 { id, file: disk },
            _ => Opened::Raw { id, disk },
        };
        Ok((file, opened))
    }
}

/// Says which image named the file that could not be opened. A path outside the source's folder cannot be allowed by a
/// setting, so the hint of the general gate would mislead.
pub fn named_in(error: Error, named_by: &Path, what: &str) -> Error {
    let place = if error.kind == Kind::Unsafe { ", outside the source's folder or not a plain file" } else { "" };
    Error::new(error.kind, format!("the {what} that {} names{place}: {}", named_by.display(), error.message))
}

fn unreadable(path: &Path, error: sendense_block::Error) -> Error {
    Error::of_device(format!("open image {}", path.display()), error)
}

fn io_error(verb: &str, path: &Path, error: std::io::Error) -> Error {
    unreadable(path, sendense_block::Error::io(verb, error))
}
