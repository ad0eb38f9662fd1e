//! A point's disk, read through all images it stands on.
//!
//! What lives here: walking the parent links, opening every file before the first read (so that a deletion beside it cannot
//! take one away), and checking that manifests and images agree. Reading itself is the qcow2 crate's.
//!
//! Invariant: a [`ChainReader`] has the disk's true size and shows nothing of a parent beyond its child's end.

use crate::crashsafe;
use crate::digests::{ChainDigests, DigestFile, Layer};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::manifest::Disk;
use crate::repository::Repository;
use sendense_block::backend::File;
use sendense_block::device::check_range;
use sendense_block::{
    self as block, AllocationMap, BlockIndex, ByteLen, ByteOffset, DigestMap, Extent, ExtentSet, Known, MappedExtent,
    ReadAt,
};
use sendense_qcow2::{Chain, Image};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest chain that is read or grown. For one disk of a restore 512 files are open at once, images and digests: half of
/// the usual limit of 1024 open files.
pub const CHAIN_DEPTH_MAX: usize = sendense_qcow2::chain::DEPTH_MAX;

/// The format name that a QCOW2 header gives its backing file.
pub(crate) const BACKING_FORMAT: &str = "qcow2";

/// One image of a chain.
#[derive(Debug, Clone)]
pub struct Link {
    /// The point it belongs to.
    pub backup_id: BackupId,
    /// What its manifest says of the disk, without segment digests.
    pub disk: Disk,
}

/// A disk of a restore point: the bytes it had then.
pub struct ChainReader {
    pub(crate) chain: Chain,
    pub(crate) capacity: ByteLen,
    pub(crate) links: Vec<Link>,
    pub(crate) _guard: Option<ChainGuard>,
}

/// The digests of a disk of a restore point.
pub struct PointDigests {
    digests: ChainDigests,
    _guard: Option<ChainGuard>,
}

impl Repository {
    /// The images that a disk of a point stands on, the point's own first.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when the point or its disk does not exist; [`Kind::Corrupt`] when a parent is missing, is another
    /// disk's, or the chain is longer than [`CHAIN_DEPTH_MAX`] (a loop).
    pub fn chain(&self, vm: &VmContextId, backup: &BackupId, disk: DiskNumber) -> Result<Vec<Link>> {
        let mut links: Vec<Link> = Vec::new();
        let mut next = Some(backup.clone());
        while let Some(id) = next.take() {
            let path = layout::manifest(vm, &id);
            let broken = |why: String| Error::corrupt(&path, None, format!("follow the chain of {backup}: {why}"));
            if links.len() == CHAIN_DEPTH_MAX {
                return Err(broken(format!("it has more than {CHAIN_DEPTH_MAX} images")));
            }
            let manifest = match self.manifest(vm, &id) {
                Err(error) if error.kind == Kind::NotFound && !links.is_empty() => {
                    self.check_present()?;
                    return Err(broken(format!("its parent {id} is missing")).caused_by(error));
                }
                other => other?,
            };
            let found = manifest.disks.into_iter().find(|found| found.disk_id == disk);
            let Some(mut found) = found else {
                if links.is_empty() {
                    return Err(Error::new(Kind::NotFound, format!("{backup} has no disk {disk}")));
                }
                return Err(broken(format!("its parent {id} has no disk {disk}")));
            };
            if links.last().is_some_and(|child| child.disk.binding != found.binding) {
                return Err(broken(format!("disk {disk} of its parent {id} is another disk")));
            }
            found.image.segments = Vec::new();
            next = found.parent_backup_id.clone();
            links.push(Link { backup_id: id, disk: found });
        }
        Ok(links)
    }

    /// Opens a disk of a point for reading. `who` is told to those who want to delete meanwhile.
    pub fn open_disk(&self, vm: &VmContextId, backup: &BackupId, disk: DiskNumber, who: &str) -> Result<ChainReader> {
        let (links, guard) = self.claim_chain(Operation::Read, vm, backup, disk, who)?;
        self.open_links(vm, links, Some(guard))
    }

    /// Opens the digests of a disk of a point, every file checked to be the one its manifest tells of.
    pub fn open_digests(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: DiskNumber,
        who: &str,
    ) -> Result<PointDigests> {
        self.open_digests_knowing(vm, backup, disk, who, &BTreeMap::new())
    }

    /// Opens the digests of a disk of a point, where some points of its chain are known to have lost blocks of that disk.
    /// What the point takes from there is told as [`digests::LOST`](crate::digests::LOST).
    pub fn open_digests_knowing(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: DiskNumber,
        who: &str,
        lost: &BTreeMap<BackupId, ExtentSet>,
    ) -> Result<PointDigests> {
        let (links, guard) = self.claim_chain(Operation::Read, vm, backup, disk, who)?;
        let layers = links.iter().map(|link| {
            let layer = self.open_digest_file(vm, link)?;
            Ok(Layer { lost: lost.get(&link.backup_id).cloned().unwrap_or_default(), ..layer })
        });
        let digests = ChainDigests::new(layers.collect::<Result<_>>()?);
        Ok(PointDigests { digests, _guard: Some(guard) })
    }

    /// Opens every file of a disk's chain, which tells whether another point can stand on it. Blocks are not looked at.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] when a file is missing, or damaged where it begins.
    pub fn check_chain(&self, vm: &VmContextId, backup: &BackupId, disk: DiskNumber) -> Result<()> {
        let links = self.chain(vm, backup, disk)?;
        self.check_links(vm, &links).map(drop)
    }

    pub(crate) fn check_links(&self, vm: &VmContextId, links: &[Link]) -> Result<ChainDigests> {
        for link in links {
            self.open_image(vm, link)?;
        }
        self.chain_digests(vm, links)
    }

    /// Follows a chain and claims its points. The chain is followed again under the claim: a deletion may have come
    /// between.
    pub(crate) fn claim_chain(
        &self,
        operation: Operation,
        vm: &VmContextId,
        backup: &BackupId,
        disk: DiskNumber,
        who: &str,
    ) -> Result<(Vec<Link>, ChainGuard)> {
        // Twice: a merge may take a point away between the reading of its child and its own.
        let links = self.chain(vm, backup, disk).or_else(|_| self.chain(vm, backup, disk))?;
        let points: BTreeSet<BackupId> = links.into_iter().map(|link| link.backup_id).collect();
        let guard = self.lock(operation, vm, points, who)?;
        Ok((self.chain(vm, backup, disk)?, guard))
    }

    pub(crate) fn open_links(
        &self,
        vm: &VmContextId,
        links: Vec<Link>,
        guard: Option<ChainGuard>,
    ) -> Result<ChainReader> {
        let capacity = links.first().map(|link| link.disk.capacity()).unwrap_or_default();
        let mut layers = Vec::with_capacity(links.len());
        for link in &links {
            let image = self.open_image(vm, link)?;
            layers.push(sendense_qcow2::Layer::Qcow2(Arc::new(image)));
        }
        Ok(ChainReader { chain: Chain::new(layers)?, capacity, links, _guard: guard })
    }

    /// Opens an image and checks that it is the one its manifest tells of.
    pub(crate) fn open_image(&self, vm: &VmContextId, link: &Link) -> Result<Image> {
        self.open_image_at(&layout::image(vm, link.disk.disk_id, &link.backup_id), &link.disk)
    }

    /// The same for an image that may not have its final name yet.
    pub(crate) fn open_image_at(&self, path: &Path, disk: &Disk) -> Result<Image> {
        let file = self.open_file(path, disk.image.file_bytes)?;
        let parent = disk.parent_backup_id.as_ref().map(layout::image_name);
        image_of(file, path, disk.image_capacity(), parent.as_deref())
    }

    /// Opens a file of the repository that must have this length. It is missing only where the repository was seen before a second
    /// look for it and after: a file system that is away for a moment has lost nothing.
    pub(crate) fn open_file(&self, path: &Path, bytes: u64) -> Result<File> {
        let open = || crashsafe::open_beneath(self.root(), path);
        let mut opened = open();
        if matches!(&opened, Err(error) if error.kind == Kind::NotFound) {
            self.check_present()?;
            opened = open();
        }
        let file = match opened {
            Err(error) if error.kind == Kind::NotFound => {
                self.check_present()?;
                return Err(Error::corrupt(path, None, format!("{} is missing", path.display())).caused_by(error));
            }
            opened => opened?,
        };
        let file = File::from_std(file, path.display().to_string(), false)?;
        if file.size().0 != bytes {
            let context = format!("{} has {}, its manifest says {}", path.display(), file.size(), ByteLen(bytes));
            return Err(Error::corrupt(path, None, context));
        }
        Ok(file)
    }

    pub(crate) fn chain_digests(&self, vm: &VmContextId, links: &[Link]) -> Result<ChainDigests> {
        links.iter().map(|link| self.open_digest_file(vm, link)).collect::<Result<_>>().map(ChainDigests::new)
    }

    pub(crate) fn open_digest_file(&self, vm: &VmContextId, link: &Link) -> Result<Layer> {
        self.open_digest_file_at(layout::digests(vm, link.disk.disk_id, &link.backup_id), &link.disk)
    }

    /// The same for a file that may not have its final name yet.
    pub(crate) fn open_digest_file_at(&self, path: PathBuf, disk: &Disk) -> Result<Layer> {
        let file = self.open_file(&path, disk.digests.file_bytes)?;
        // A later version is not damage.
        let corrupt = |error: Error| match error.kind {
            Kind::Invalid => Error::corrupt(&path, None, format!("open {}", path.display())).caused_by(error),
            _ => error.within(format!("open {}", path.display())),
        };
        let digests = DigestFile::open(Box::new(file), Some(disk.digests.root.0)).map_err(corrupt)?;
        if digests.blocks() != block::block_count(disk.capacity()) {
            return Err(corrupt(Error::invalid("it is of a disk of another size")));
        }
        Ok(Layer { path, digests, lost: ExtentSet::new() })
    }
}

/// The image in a file, checked to be the one that its manifest tells of.
pub(crate) fn image_of(file: File, path: &Path, capacity: ByteLen, parent: Option<&str>) -> Result<Image> {
    let corrupt = |why: String| Error::corrupt(path, None, format!("open {}: {why}", path.display()));
    let image = Image::open(Arc::new(file)).map_err(|error| match error.kind {
        block::Kind::Corrupt | block::Kind::Invalid | block::Kind::Unsupported | block::Kind::OutOfRange => {
            corrupt("it is not the image that was written".into()).caused_by(error)
        }
        _ => error.into(),
    })?;
    if image.size() != capacity {
        return Err(corrupt(format!("it is of {}, its manifest says {capacity}", image.size())));
    }
    let named = image.backing().map(|backing| (backing.name.as_str(), backing.format.as_deref()));
    if named != parent.map(|name| (name, Some(BACKING_FORMAT))) {
        return Err(corrupt(format!("it names {named:?} as backing file, its manifest {parent:?}")));
    }
    Ok(image)
}

impl ChainReader {
    /// The images it reads, the point's own first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The zstd frame that a block is stored as; false where it is not stored so. Whether it is right its digest tells.
    pub fn read_frame(&self, block: BlockIndex, out: &mut Vec<u8>) -> block::Result<bool> {
        self.chain.read_frame(block, out)
    }
}

impl ReadAt for ChainReader {
    fn size(&self) -> ByteLen {
        self.capacity
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        check_range("the restore point's disk", self.capacity, at, buf.len())?;
        self.chain.read_at(at, buf)
    }
}

impl AllocationMap for ChainReader {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range("the restore point's disk", self.capacity, within.start(), len)?;
        self.chain.allocation(within)
    }
}

impl PointDigests {
    /// How many blocks of the point's disk are lost.
    pub fn lost_blocks(&self) -> Result<u64> {
        self.digests.lost_blocks()
    }
}

impl DigestMap for PointDigests {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> block::Result<()> {
        self.digests.known(first, out)
    }

    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> block::Result<Option<BlockIndex>> {
        self.digests.next_data(from, end)
    }
}
