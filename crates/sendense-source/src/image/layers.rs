//! A disk's files from the top down: found, gated, opened, and shown to be what they are declared to be.
//!
//! What lives here: following a disk image to everything that it is made of, before any byte of it is believed. What does
//! not: the formats that a foreign tool reads (`foreign`).
//!
//! Invariant: every file that a disk's bytes come from is in [`Layers::files`], was opened through a gate, and was stamped
//! before anything was read from it.

use super::foreign::{self, ToolImage};
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
    /// A piece that is no image by itself (a VMDK's extent).
    Part,
}

/// How a disk's bytes are read.
pub enum Reader {
    /// By ourselves.
    Own(Arc<dyn Disk>),
    /// Through a tool that is started when the disk is opened.
    Tool(ToolImage),
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
    pub reader: Reader,
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
    let top = open_file(path, Some(format), roots, look, Role::Top)?;
    let (capacity, reader) = match format {
        Format::Raw => {
            let device = as_device(&top)?;
            files.push(top);
            (device.size(), Reader::Own(device))
        }
        Format::Qcow2 => {
            let opened = Opened::Qcow2 { id: top.path.display().to_string(), file: as_device(&top)? };
            files.push(top);
            let gate = FolderGate { scope, look, state: Mutex::new(GateState { files, refusal: None }) };
            let chain = Chain::open(opened, &gate);
            let state = gate.state.into_inner();
            files = state.files;
            // The gate's own words say more than the chain's "denied".
            let chain = chain.map_err(|error| state.refusal.unwrap_or_else(|| unreadable(path, error)))?;
            (chain.size(), Reader::Own(Arc::new(chain)))
        }
        Format::Vmdk | Format::Vhdx | Format::Vdi => {
            let image = foreign::examine(top, format, scope, look, &mut files)?;
            (image.capacity, Reader::Tool(image))
        }
    };
    Ok(Layers { files, capacity, reader })
}

/// Opens and stamps one file and compares its head with its declared format, if it has one of its own.
pub fn open_file(path: &Path, format: Option<Format>, roots: &Roots, look: Look, role: Role) -> Result<LayerFile> {
    let handle = roots.open_read(path)?;
    // The name that the handle was opened by is the one to look at again later.
    let path = roots.check_existing(path)?;
    let stamp = match look {
        Look::Glance => Stamp::of(&handle, &path)?,
        Look::Freeze => Stamp::settled(&handle, &path)?.ok_or_else(|| {
            Error::new(Kind::Disturbed, format!("{} is being written", path.display()))
                .hint("back up a machine that is off, or a snapshot of its images")
        })?,
    };
    let file = LayerFile { path, handle, stamp, role };
    if let Some(format) = format {
        format.check_head(&read_start(&file, 0, HEAD_BYTES)?, &file.path)?;
    }
    Ok(file)
}

/// The bytes at `at`: `len` of them, or fewer where the file ends before.
pub fn read_start(file: &LayerFile, at: u64, len: usize) -> Result<Vec<u8>> {
    let left = file.stamp.size().saturating_sub(at);
    let mut bytes = vec![0; len.min(usize::try_from(left).unwrap_or(usize::MAX))];
    file.handle.read_exact_at(&mut bytes, at).map_err(|error| io_error("read", &file.path, error))?;
    Ok(bytes)
}

/// The file as a device.
pub fn as_device(file: &LayerFile) -> Result<Arc<File>> {
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
        let file = open_file(&path, Some(format), &self.scope.folder, self.look, Role::Below)
            .map_err(|error| named_in(error, named_by, "backing file"))?;
        let (id, disk) = (file.path.display().to_string(), as_device(&file)?);
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
