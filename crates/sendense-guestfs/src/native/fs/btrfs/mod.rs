//! btrfs on one device.
//!
//! What lives here: superblock, subvolumes, inodes, folders and links. Trees are in `tree`, the map from logical to device
//! offsets in `chunks`, file contents in `extent`. The root is the top-level subvolume, so that every subvolume can be
//! reached. Metadata checksums are verified, those of data are not. A tree log, which holds what was fsynced last, is never
//! skipped: the volume is refused.

mod chunks;
mod extent;
mod tree;

use super::bytes::{array, label_text, le16, le32, le64, slice, u8_at, uuid_text};
use super::crc32c;
use super::device::Device;
use super::volume::{Map, Name, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use chunks::Chunks;
use sendense_block::ReadAt;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};
use tree::{Key, Root, Trees};

const SUPERBLOCK_AT: u64 = 64 * 1024;
const SUPERBLOCK_BYTES: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Checksum algorithms by number; only the first is read.
const CHECKSUMS: [&str; 4] = ["crc32c", "xxhash64", "sha256", "blake2b"];
/// Backrefs, default subvolume, mixed groups, LZO, zstd, big metadata, extended references, RAID56 (refused where it is
/// met), skinny metadata, no-holes, metadata UUID, RAID1C34, simple quotas.
const INCOMPAT_KNOWN: u64 = 0x1_0fff;

const TOP_LEVEL: u64 = 5;
const FIRST_OBJECT: u64 = 256;
/// What a snapshot shows where a subvolume lies in the original.
const EMPTY_FOLDER: u64 = 2;
/// Inode numbers have 48 bits here; above them stands the subvolume's place in the list of those seen.
const OBJECT_BITS: u32 = 48;

/// Kinds of items.
mod kind {
    pub const INODE: u8 = 1;
    pub const DIR_INDEX: u8 = 96;
    pub const EXTENT_DATA: u8 = 108;
    pub const ROOT: u8 = 132;
    pub const ROOT_REF: u8 = 156;
    pub const CHUNK: u8 = 228;
}

/// An open file system.
pub struct Btrfs {
    trees: Trees,
    subvolumes: Mutex<Subvolumes>,
    facts: Facts,
}

/// The subvolumes seen so far: their ids in the order of discovery, and where their trees begin. At most 65,536.
#[derive(Default)]
struct Subvolumes {
    ids: Vec<u64>,
    roots: BTreeMap<u64, Root>,
}

/// An inode as it lies on the disk.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    subvolume: u64,
    root: Root,
    object: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    modified: Option<GuestTime>,
}

/// Whether the device holds one.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let superblock = super::read_start(device, SUPERBLOCK_AT, SUPERBLOCK_BYTES)?;
    Ok(superblock.filter(|bytes| &bytes[64..72] == MAGIC).map(|_| "btrfs"))
}

/// Opens the file system.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Btrfs> {
    let device = Device::new(device);
    let sb = device.read_vec(SUPERBLOCK_AT, SUPERBLOCK_BYTES)?;
    if &sb[64..72] != MAGIC {
        return Err(Error::corrupt("btrfs superblock without its magic"));
    }
    match le16(&sb, 196)? {
        0 => {}
        number => {
            let name = CHECKSUMS.get(usize::from(number)).copied().unwrap_or("unknown");
            return Err(Error::unsupported(format!("btrfs checksums {name}")));
        }
    }
    if crc32c::checksum(&[&sb[32..]]) != le32(&sb, 0)? {
        return Err(Error::corrupt("btrfs superblock fails its checksum"));
    }
    let incompat = le64(&sb, 188)?;
    if incompat & !INCOMPAT_KNOWN != 0 {
        return Err(Error::unsupported(format!("btrfs features {:#x}", incompat & !INCOMPAT_KNOWN)));
    }
    if le64(&sb, 136)? != 1 {
        return Err(Error::unsupported(format!("btrfs over {} devices", le64(&sb, 136)?)));
    }
    if le64(&sb, 96)? != 0 {
        return Err(Error::unsupported("btrfs tree log that must be replayed"));
    }
    let (sector_bytes, node_bytes) = (le32(&sb, 144)?, le32(&sb, 148)?);
    let sizes = |bytes: u32| bytes.is_power_of_two() && (4096..=65536).contains(&bytes);
    if !sizes(sector_bytes) || !sizes(node_bytes) {
        return Err(Error::corrupt("btrfs superblock contradicts itself"));
    }
    let facts = Facts {
        kind: "btrfs",
        label: label_text(slice(&sb, 299, 256)?),
        uuid: uuid_text(&array(&sb, 32)?),
        size_bytes: le64(&sb, 112)?,
        consistency: Consistency::Clean,
    };
    let chunk_root = Root { logical: le64(&sb, 88)?, level: u8_at(&sb, 199)?, generation: le64(&sb, 164)? };
    let tree_root = Root { logical: le64(&sb, 80)?, level: u8_at(&sb, 198)?, generation: le64(&sb, 72)? };
    let array_bytes = (le32(&sb, 160)? as usize).min(2048);
    let chunks = Chunks::bootstrap(slice(&sb, 811, array_bytes)?, le64(&sb, 201)?)?;
    let mut trees = Trees::new(device, chunks, node_bytes as usize, sector_bytes as usize, tree_root);
    trees.load_chunks(chunk_root)?;
    let volume = Btrfs { trees, subvolumes: Mutex::default(), facts };
    volume.number(TOP_LEVEL, FIRST_OBJECT)?;
    Ok(volume)
}

impl Btrfs {
    fn lock(&self) -> MutexGuard<'_, Subvolumes> {
        // Nothing is left half done when a holder panics: both tables only grow.
        self.subvolumes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The number under which an object of a subvolume is known.
    fn number(&self, subvolume: u64, object: u64) -> Result<u64> {
        if object >> OBJECT_BITS != 0 {
            return Err(Error::corrupt(format!("btrfs inode {object:#x}")));
        }
        let mut known = self.lock();
        let index = match known.ids.iter().position(|id| *id == subvolume) {
            Some(index) => index,
            None if known.ids.len() < 1 << (64 - OBJECT_BITS) => {
                known.ids.push(subvolume);
                known.ids.len() - 1
            }
            None => return Err(Error::Limit("btrfs subvolumes".into())),
        };
        Ok((index as u64) << OBJECT_BITS | object)
    }

    fn subvolume_root(&self, id: u64) -> Result<Root> {
        if let Some(root) = self.lock().roots.get(&id) {
            return Ok(*root);
        }
        let mut found = None;
        // A root has several items when it was a snapshot; the last one counts.
        self.trees.walk(self.trees.root, Key { object: id, kind: kind::ROOT, offset: 0 }, &mut |key, item| {
            if (key.object, key.kind) != (id, kind::ROOT) {
                return Ok(ControlFlow::Break(()));
            }
            found = Some(Root { logical: le64(item, 176)?, level: u8_at(item, 238)?, generation: le64(item, 160)? });
            Ok(ControlFlow::Continue(()))
        })?;
        let root = found.ok_or(Error::NotFound)?;
        self.lock().roots.insert(id, root);
        Ok(root)
    }

    /// Whether a subvolume lies in this folder, rather than in the one that this is a snapshot of.
    fn is_mounted_at(&self, parent: u64, folder: u64, child: u64) -> Result<bool> {
        let key = Key { object: parent, kind: kind::ROOT_REF, offset: child };
        let item = self.trees.find(self.trees.root, key)?;
        item.map_or(Ok(false), |item| Ok(le64(&item, 0)? == folder))
    }
}

impl Volume for Btrfs {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.trees.device
    }

    fn root(&self) -> u64 {
        // The top-level subvolume was seen first.
        FIRST_OBJECT
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let object = number & ((1 << OBJECT_BITS) - 1);
        let subvolume = self.lock().ids.get((number >> OBJECT_BITS) as usize).copied().ok_or(Error::NotFound)?;
        if object == EMPTY_FOLDER {
            let (root, mode) = (Root::default(), 0o40755);
            return Ok(Inode {
                number,
                subvolume,
                root,
                object,
                mode,
                uid: 0,
                gid: 0,
                links: 1,
                size: 0,
                modified: None,
            });
        }
        let root = self.subvolume_root(subvolume)?;
        let item = self.trees.find(root, Key { object, kind: kind::INODE, offset: 0 })?;
        let item =
            item.ok_or_else(|| Error::corrupt(format!("btrfs inode {object} of subvolume {subvolume} is missing")))?;
        Ok(Inode {
            number,
            subvolume,
            root,
            object,
            mode: le32(&item, 52)?,
            uid: le32(&item, 44)?,
            gid: le32(&item, 48)?,
            links: le32(&item, 40)?,
            size: le64(&item, 16)?,
            modified: Some(GuestTime {
                seconds: le64(&item, 136)? as i64,
                nanoseconds: le32(&item, 144)?.min(999_999_999),
            }),
        })
    }

    fn meta(&self, inode: &Inode) -> Meta {
        Meta {
            inode: inode.number,
            file_type: match inode.mode & 0xf000 {
                0x8000 => FileType::File,
                0x4000 => FileType::Directory,
                0xa000 => FileType::Symlink,
                _ => FileType::Other,
            },
            size_bytes: inode.size,
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            links: inode.links,
            modified: inode.modified,
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        if folder.object == EMPTY_FOLDER {
            return Ok(());
        }
        let first = Key { object: folder.object, kind: kind::DIR_INDEX, offset: from };
        self.trees.walk(folder.root, first, &mut |key, item| {
            if (key.object, key.kind) != (folder.object, kind::DIR_INDEX) {
                return Ok(ControlFlow::Break(()));
            }
            let bytes = slice(item, 30, le16(item, 27)?.into())?;
            let target = Key::read(item, 0)?;
            let inode = match target.kind {
                kind::INODE => self.number(folder.subvolume, target.object)?,
                kind::ROOT if self.is_mounted_at(folder.subvolume, folder.object, target.object)? => {
                    self.number(target.object, FIRST_OBJECT)?
                }
                _ => self.number(folder.subvolume, EMPTY_FOLDER)?,
            };
            Ok(visit(Name { bytes, inode, next: key.offset.saturating_add(1) }))
        })
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        let item = self.trees.find(inode.root, Key { object: inode.object, kind: kind::EXTENT_DATA, offset: 0 })?;
        let item = item.ok_or_else(|| Error::corrupt(format!("btrfs link {} without its target", inode.object)))?;
        // Targets are inline and not compressed.
        Ok(slice(&item, 21, usize::try_from(inode.size).unwrap_or(usize::MAX))?.to_vec())
    }

    fn map(&self, _: &Inode, _: u64, _: usize) -> Result<Map> {
        // Files have a reader of their own: extents may be compressed, and lie in chunks.
        Err(Error::unsupported("btrfs file map"))
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(extent::File::new(self.clone(), inode)))
    }
}
