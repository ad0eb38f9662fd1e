//! Images that a foreign tool reads: what it would open, found by our own parsers before it runs.
//!
//! What lives here: from a VMDK, VHDX or VDI to its files and to the options that make QEMU open exactly these. What does
//! not: the parsers of the formats (`vmdk`, `vhdx`, `vdi`), running the tool (`server`).
//!
//! Invariant: the options name every driver and every image below explicitly, so that nothing is left for QEMU to guess.

use super::format::Format;
use super::layers::{LayerFile, Look, Role, Scope, as_device, named_in, named_path, open_file, read_start};
use super::{vdi, vhdx, vmdk};
use crate::error::{Error, Kind, Result};
use crate::paths::Roots;
use sendense_block::ByteLen;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

/// VMware makes at most 31 snapshots below each other.
const PARENTS_MAX: usize = 32;

/// What a tool is to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolImage {
    /// QEMU's `--image-opts`.
    pub options: OsString,
    /// The size that the tool must serve.
    pub capacity: ByteLen,
}

/// Follows an image, whose top file is open, to everything it is made of; adds that to `files`.
pub fn examine(
    top: LayerFile,
    format: Format,
    scope: &Scope,
    look: Look,
    files: &mut Vec<LayerFile>,
) -> Result<ToolImage> {
    if top.stamp.is_block_device() {
        let message = format!("{} is a block device; only raw and qcow2 are read from one", top.path.display());
        return Err(Error::new(Kind::Unsupported, message));
    }
    let mut options = b"read-only=on,force-share=on".to_vec();
    describe(&mut options, "", format, &top.path);
    let capacity = match format {
        Format::Vhdx => vhdx::parse(&*as_device(&top)?).map_err(|error| about(error, &top.path))?,
        Format::Vdi => vdi::parse(&read_start(&top, 0, vdi::HEADER_BYTES)?).map_err(|error| about(error, &top.path))?,
        _ => {
            files.push(top);
            let capacity = vmdk_chain(&mut options, scope, look, files)?;
            return Ok(ToolImage { options: OsString::from_vec(options), capacity: ByteLen(capacity) });
        }
    };
    files.push(top);
    Ok(ToolImage { options: OsString::from_vec(options), capacity: ByteLen(capacity) })
}

/// Adds one image to the options. QEMU's option syntax doubles a comma that is meant as one.
fn describe(options: &mut Vec<u8>, prefix: &str, format: Format, path: &Path) {
    options.extend_from_slice(
        format!(",{prefix}driver={format},{prefix}file.driver=file,{prefix}file.filename=").as_bytes(),
    );
    for byte in path.as_os_str().as_bytes() {
        options.push(*byte);
        if *byte == b',' {
            options.push(b',');
        }
    }
}

/// Follows the last of `files`, a VMDK, to its extents and parents; returns the top's capacity.
fn vmdk_chain(options: &mut Vec<u8>, scope: &Scope, look: Look, files: &mut Vec<LayerFile>) -> Result<u64> {
    let mut prefix = String::new();
    let mut capacity = None;
    for _ in 0..=PARENTS_MAX {
        let at = files.len().saturating_sub(1);
        let (own_capacity, parent) = vmdk_image(at, scope, look, files)?;
        let capacity = *capacity.get_or_insert(own_capacity);
        let Some(parent) = parent else { return Ok(capacity) };
        let named_by = files.get(at).map(|file| file.path.clone()).unwrap_or_default();
        let path = named_path(folder_of(&named_by), &parent, &named_by)?;
        let below = open_file(&path, Some(Format::Vmdk), &scope.folder, look, Role::Below)
            .map_err(|error| named_in(error, &named_by, "parent"))?;
        if files.iter().any(|file| file.path == below.path) {
            return Err(Error::new(Kind::Failed, format!("{} is its own parent", below.path.display())));
        }
        prefix.push_str("backing.");
        describe(options, &prefix, Format::Vmdk, &below.path);
        files.push(below);
    }
    Err(Error::new(Kind::Unsupported, format!("a VMDK with more than {PARENTS_MAX} parents: a loop?")))
}

/// One VMDK image: opens its extents; returns its capacity and the name of its parent.
fn vmdk_image(at: usize, scope: &Scope, look: Look, files: &mut Vec<LayerFile>) -> Result<(u64, Option<String>)> {
    let Some(file) = files.get(at) else { return Err(Error::new(Kind::Failed, "no image to follow")) };
    let path = file.path.clone();
    let head = read_start(file, 0, 512)?;
    if head.starts_with(b"COWD") {
        return Err(Error::new(
            Kind::Unsupported,
            format!("{} is a bare COWD extent: name its descriptor", path.display()),
        ));
    }
    if head.starts_with(b"KDMV") {
        let header = vmdk::parse_sparse_header(&head).map_err(|error| about(error, &path))?;
        let window = vmdk::parent_hint(&read_start(file, vmdk::EMBEDDED_AT, vmdk::PARENT_HINT_WINDOW)?);
        let window = window.map_err(|error| about(error, &path))?;
        let embedded = header.descriptor.map(|(at, len)| read_start(file, at, len)).transpose()?;
        let embedded =
            embedded.map(|text| vmdk::parse_descriptor(&text)).transpose().map_err(|error| about(error, &path))?;
        let parent = embedded.as_ref().and_then(|descriptor| descriptor.parent.clone());
        if parent != window {
            let message = format!("{} names one parent to QEMU and another to VMware", path.display());
            return Err(Error::new(Kind::Unsafe, message));
        }
        // The text describes the file itself, perhaps under an older name. Readers do not follow it, but nothing honest
        // names a place elsewhere.
        for extent in embedded.iter().flat_map(|descriptor| &descriptor.extents) {
            extent_name(&extent.file, &path)?;
        }
        return Ok((header.capacity_bytes, parent));
    }
    let text = read_start(file, 0, vmdk::DESCRIPTOR_BYTES_MAX)?;
    let descriptor = vmdk::parse_descriptor(&text).map_err(|error| about(error, &path))?;
    if descriptor.extents.is_empty() {
        return Err(Error::new(Kind::Unsupported, format!("{} names no extents", path.display())));
    }
    for extent in &descriptor.extents {
        let name = extent_name(&extent.file, &path)?;
        let part = open_extent(&folder_of(&path).join(name), extent, &scope.folder, look)
            .map_err(|error| named_in(error, &path, "extent"))?;
        files.push(part);
    }
    Ok((descriptor.capacity_bytes, descriptor.parent))
}

/// Extents are resolved by the tool, so their names must mean one thing only: a file in the descriptor's folder or below.
fn extent_name<'a>(name: &'a str, named_by: &Path) -> Result<&'a Path> {
    let path = Path::new(name);
    let plain = path.components().all(|component| matches!(component, Component::Normal(_))) && !name.contains(':');
    if plain {
        return Ok(path);
    }
    let message = format!("{} names the extent {name:?}, which leaves its folder", named_by.display());
    Err(Error::new(Kind::Unsafe, message))
}

fn open_extent(path: &Path, extent: &vmdk::Extent, roots: &Roots, look: Look) -> Result<LayerFile> {
    let part = open_file(path, None, roots, look, Role::Part)?;
    if part.path != path {
        // A link within the folder: the tool would take the name, we would watch the target.
        return Err(Error::new(Kind::Unsafe, format!("the extent {} is a link", path.display())));
    }
    match extent.kind {
        vmdk::ExtentKind::Flat => {
            let end = extent.offset_bytes.checked_add(extent.bytes);
            if end.is_none_or(|end| end > part.stamp.size()) {
                let message = format!("the extent {} is shorter than its descriptor says", path.display());
                return Err(Error::new(Kind::Failed, message));
            }
        }
        vmdk::ExtentKind::Sparse => {
            let head = read_start(&part, 0, 512)?;
            if head.starts_with(b"KDMV") {
                vmdk::parse_sparse_header(&head).map_err(|error| about(error, path))?;
            } else if !head.starts_with(b"COWD") && !head.starts_with(&SESPARSE_MAGIC) {
                return Err(Error::new(Kind::Invalid, format!("the extent {} is not sparse", path.display())));
            }
        }
    }
    Ok(part)
}

/// `0xcafebabe` as the low word of the constant header's first field (VMware's SESparse).
const SESPARSE_MAGIC: [u8; 8] = 0x0000_0000_cafe_babe_u64.to_le_bytes();

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn about(error: Error, path: &Path) -> Error {
    Error::new(error.kind, format!("{}: {}", path.display(), error.message))
}

/// The Debian package that has the tool.
pub const TOOL_PACKAGE: &str = "qemu-utils";
/// The tool.
pub const TOOL: &str = "qemu-nbd";

/// Fails when the tool is missing.
pub fn check_tool() -> Result<()> {
    crate::child::find_tool(OsStr::new(TOOL), TOOL_PACKAGE).map(drop)
}
