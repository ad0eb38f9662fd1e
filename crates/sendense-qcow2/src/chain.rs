//! A disk resolved over its images, from the newest down, as QEMU does it.
//!
//! What lives here: which image holds a byte, and reading it. What does not: opening files (the gate's) and what a chain
//! means (the repository's).
//!
//! Invariant: beyond an image's end there are zeros, never the data of the images below it, and an offset that no image
//! holds reads as zeros.

use crate::gate::{Gate, Opened};
use crate::header::Compression;
use crate::image::{Image, Mapping};
use crate::writer::Held;
use sendense_block::device::check_range;
use sendense_block::{
    AllocationMap, BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Content, Disk, Error, Extent, Kind, MappedExtent,
    ReadAt, Result,
};
use std::collections::HashSet;
use std::sync::Arc;

/// Longest chain: five times the daily points of the retention policies in use, and far from any limit on open files.
pub const DEPTH_MAX: usize = 256;

/// One file of a chain.
#[derive(Clone)]
pub enum Layer {
    /// An image, which may leave things to those below.
    Qcow2(Arc<Image>),
    /// A whole disk; nothing can lie below it.
    Raw(Arc<dyn Disk>),
}

impl Layer {
    fn size(&self) -> ByteLen {
        match self {
            Self::Qcow2(image) => image.size(),
            Self::Raw(disk) => disk.size(),
        }
    }
}

/// Which layer answers for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// No image holds it, or one that answers ends before it: zeros.
    Nobody,
    /// The layer of this number (0 is the newest) flags it zero.
    Zero(usize),
    /// The layer of this number holds its bytes.
    Data(usize),
}

/// Where a range lies.
enum Place<'a> {
    Zero,
    Image(&'a Image, Mapping),
    Raw(&'a dyn Disk),
}

/// A chain of images as one disk, read by any number of threads.
pub struct Chain {
    layers: Vec<Layer>,
    size: ByteLen,
}

impl Chain {
    /// Makes a chain of layers, the newest first. What the images name as backing file is not looked at.
    pub fn new(layers: Vec<Layer>) -> Result<Self> {
        let invalid = |why: String| Error::new(Kind::Invalid, format!("make a chain: {why}"));
        let size = layers.first().ok_or_else(|| invalid("it has no image".to_owned()))?.size();
        if layers.len() > DEPTH_MAX {
            return Err(invalid(format!("{} images are more than {DEPTH_MAX}", layers.len())));
        }
        if layers.iter().rev().skip(1).any(|layer| matches!(layer, Layer::Raw(_))) {
            return Err(invalid("only the last layer may be raw".to_owned()));
        }
        Ok(Self { layers, size })
    }

    /// Opens an image and everything below it, as far as the gate lets.
    pub fn open(top: Opened, gate: &dyn Gate) -> Result<Self> {
        let (mut layers, mut seen, mut next) = (Vec::new(), HashSet::new(), Some(top));
        while let Some(opened) = next.take() {
            let (Opened::Qcow2 { id, .. } | Opened::Raw { id, .. }) = &opened;
            if !seen.insert(id.clone()) {
                return Err(Error::new(Kind::Corrupt, format!("open a chain: {id} is its own backing file")));
            }
            if layers.len() == DEPTH_MAX {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("open a chain of more than {DEPTH_MAX} images: a loop?"),
                ));
            }
            match opened {
                Opened::Raw { disk, .. } => layers.push(Layer::Raw(disk)),
                Opened::Qcow2 { id, file } => {
                    let image = Image::open(file).map_err(|error| error.within(format!("open image {id}")))?;
                    if let Some(backing) = image.backing() {
                        next = Some(gate.open_backing(&id, backing)?);
                    }
                    layers.push(Layer::Qcow2(Arc::new(image)));
                }
            }
        }
        Self::new(layers)
    }

    /// The layers, the newest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Which layer answers for a block. Needs images whose clusters are blocks; of a raw layer every block is data.
    pub fn locate_block(&self, block: BlockIndex) -> Result<Holder> {
        let at = block.offset();
        for (number, layer) in self.layers.iter().enumerate() {
            if at.0 >= layer.size().0 {
                return Ok(Holder::Nobody);
            }
            match layer {
                Layer::Raw(_) => return Ok(Holder::Data(number)),
                Layer::Qcow2(image) => {
                    let mut held = [Held::Absent];
                    image.held(block, &mut held)?;
                    match held[0] {
                        Held::Absent => {}
                        Held::Zero => return Ok(Holder::Zero(number)),
                        Held::Data => return Ok(Holder::Data(number)),
                    }
                }
            }
        }
        Ok(Holder::Nobody)
    }

    /// The zstd frame that a block of the disk is stored as, all of it; false where it is not stored so, or passes the disk's
    /// end. To move it without decoding.
    pub fn read_frame(&self, block: BlockIndex, out: &mut Vec<u8>) -> Result<bool> {
        let at = block.offset();
        if at.0.saturating_add(BLOCK_BYTES) > self.size.0 {
            return Ok(false);
        }
        let (Place::Image(image, mapping), BLOCK_BYTES) = self.resolve(at.0, BLOCK_BYTES)? else { return Ok(false) };
        let is_frame = matches!(mapping, Mapping::Compressed { skip: ByteLen(0), .. })
            && image.compression() == Compression::Zstd
            && image.cluster_bytes().0 == BLOCK_BYTES;
        if is_frame {
            image
                .read_frame(&mapping, out)
                .map_err(|error| error.within(format!("read block {block} as it is stored")))?;
        }
        Ok(is_frame)
    }

    /// Where the bytes from `at` on lie, and how many of them, at most `max`, which is not 0.
    fn resolve(&self, at: u64, max: u64) -> Result<(Place<'_>, u64)> {
        let mut len = max;
        for layer in &self.layers {
            let Some(left) = layer.size().0.checked_sub(at).filter(|left| *left > 0) else {
                return Ok((Place::Zero, len));
            };
            len = len.min(left);
            match layer {
                Layer::Raw(disk) => return Ok((Place::Raw(&**disk), len)),
                Layer::Qcow2(image) => {
                    let mapping = image.locate(ByteOffset(at), ByteLen(len))?;
                    len = mapping.len().0;
                    match mapping {
                        Mapping::Unallocated { .. } => {}
                        Mapping::Zero { .. } => return Ok((Place::Zero, len)),
                        mapping => return Ok((Place::Image(image, mapping), len)),
                    }
                }
            }
        }
        Ok((Place::Zero, len))
    }
}

impl ReadAt for Chain {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        check_range("image chain", self.size, at, buf.len())?;
        let (mut at, mut rest) = (at.0, buf);
        while !rest.is_empty() {
            let (place, len) = self.resolve(at, rest.len() as u64)?;
            // `len` is at most the buffer's.
            let (part, behind) = rest.split_at_mut(len as usize);
            match place {
                Place::Zero => part.fill(0),
                Place::Raw(disk) => disk.read_at(ByteOffset(at), part)?,
                Place::Image(image, mapping) => image
                    .read(&mapping, part)
                    .map_err(|error| error.within(format!("read {len} bytes of the disk at {at}")))?,
            }
            at += len;
            rest = behind;
        }
        Ok(())
    }
}

impl AllocationMap for Chain {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range("image chain", self.size, within.start(), len)?;
        let mut map: Vec<MappedExtent> = Vec::new();
        let mut push = |extent: Extent, content| match map.last_mut().filter(|last| last.content == content) {
            Some(last) => last.extent = Extent::between(last.extent.start(), extent.end()),
            None => map.push(MappedExtent { extent, content }),
        };
        let mut at = within.start().0;
        while at < within.end().0 {
            let (place, len) = self.resolve(at, within.end().0 - at)?;
            let extent = Extent::between(ByteOffset(at), ByteOffset(at + len));
            match place {
                Place::Zero => push(extent, Content::Zero),
                Place::Image(..) => push(extent, Content::Data),
                Place::Raw(disk) => {
                    for mapped in disk.allocation(extent)? {
                        push(mapped.extent, mapped.content);
                    }
                }
            }
            at += len;
        }
        Ok(map)
    }
}

// Blocks and clusters of our images are the same thing; `locate_block` relies on it.
const _: () = assert!(BLOCK_BYTES == crate::format::CLUSTER_BYTES);
