//! One disk of a draft: takes blocks, keeps their digests, and becomes an image with its digests file.

use super::Core;
use crate::capacity::Reservation;
use crate::chain::{BACKING_FORMAT, CHAIN_DEPTH_MAX};
use crate::crashsafe::{self, NewFile};
use crate::digests::{self, ChainDigests, Spill};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{Digests, HexDigest, Image};
use crate::repository::Repository;
use crate::segments::Tally;
use parking_lot::Mutex;
use sendense_block::{self as block, Block, BlockIndex, BlockSink, ByteLen, DigestMap, Payload};
use sendense_qcow2::{Backing, Held, Spec, Writer};
use sendense_types::{BackupId, DiskBinding, DiskNumber};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Scratch of the QCOW2 writer and of the digests, within the draft's folder. Their names end in none of the suffixes that
/// are published.
const SCRATCH_SUFFIXES: [&str; 2] = [".tables", ".spill"];

/// What disk is begun.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    /// Its number.
    pub number: DiskNumber,
    /// What it is. Must be the parent's.
    pub binding: DiskBinding,
    /// Its true size.
    pub capacity: ByteLen,
    /// The point whose image it stands on; `None` makes a full.
    pub parent: Option<BackupId>,
}

/// One disk of a draft. Blocks may be put by several threads at once.
pub struct DiskDraft {
    repository: Repository,
    backup_id: BackupId,
    spec: DiskSpec,
    dir: PathBuf,
    writer: Writer,
    image: Arc<dyn NewFile>,
    tally: Arc<Tally>,
    spill: Spill,
    parent: Option<Arc<ChainDigests>>,
    reservation: Arc<Reservation>,
    /// A block was stored without its digest: the disk is of no use any more.
    failed: AtomicBool,
    sealed: Mutex<bool>,
}

/// A disk whose files are complete.
#[derive(Debug, Clone)]
pub(crate) struct SealedDisk {
    pub spec: DiskSpec,
    pub image: Image,
    pub digests: Digests,
}

impl DiskDraft {
    pub(super) fn begin(core: &Core, spec: DiskSpec) -> Result<Self> {
        let parent = match &spec.parent {
            None => None,
            Some(parent) => Some(Arc::new(open_parent(core, parent, &spec)?)),
        };
        let (repository, backup_id) = (core.repository.clone(), core.backup_id.clone());
        Self::begin_in(repository, backup_id, core.dir(), core.reservation.clone(), spec, parent)
    }

    /// Begins a disk of a point in any folder of that point's VM; what it may stand on is the caller's to know.
    pub(crate) fn begin_in(
        repository: Repository,
        backup_id: BackupId,
        dir: PathBuf,
        reservation: Arc<Reservation>,
        spec: DiskSpec,
        parent: Option<Arc<ChainDigests>>,
    ) -> Result<Self> {
        if spec.capacity.0 > crate::manifest::CAPACITY_BYTES_MAX {
            return Err(Error::new(Kind::Unsupported, format!("a disk of {}", spec.capacity)));
        }
        let create = |name: String| crashsafe::create_file(repository.fs(), &dir.join(name));
        let image = create(layout::draft_image_name(spec.number))?;
        let [tables, digests] = SCRATCH_SUFFIXES.map(|suffix| create(scratch_name(spec.number, suffix)));
        let tally = Arc::new(Tally::new(spec.capacity));
        let backing = spec.parent.as_ref().map(|parent| Backing {
            // Read by nobody before the image lies in its disk's folder, beside its parent.
            name: layout::image_name(parent),
            format: BACKING_FORMAT.into(),
        });
        let writer = Writer::create(image.clone(), tables?, Spec { capacity: spec.capacity, backing }, tally.clone())?;
        let spill = Spill::new(digests?, block::block_count(spec.capacity))?;
        Ok(Self {
            repository,
            backup_id,
            spec,
            dir,
            writer,
            image,
            tally,
            spill,
            parent,
            reservation,
            failed: AtomicBool::new(false),
            sealed: Mutex::new(false),
        })
    }

    /// What it is.
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// The digests of the point it stands on, resolved over its chain; `None` for a full.
    pub fn parent(&self) -> Option<&dyn DigestMap> {
        self.parent.as_deref().map(|parent| parent as &dyn DigestMap)
    }

    /// Tells what was put so far for the blocks from `first` on: after a broken connection, what need not be sent again.
    pub fn held(&self, first: BlockIndex, out: &mut [Held]) -> Result<()> {
        Ok(self.writer.held(first, out)?)
    }

    fn store(&self, batch: &[Block<'_>]) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(Error::invalid("store blocks: an earlier write failed"));
        }
        let mut bytes = 0;
        for block in batch {
            digests::check(block)?;
            bytes += match block.payload {
                Payload::Zero => 0,
                Payload::Raw(data) | Payload::Zstd(data) => data.len() as u64,
            };
        }
        self.reservation.spend(bytes)?;
        self.writer.put(batch)?;
        // After the image, which refuses a block that it holds already: so the digest kept is that of the block kept.
        self.spill.put(batch).inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }

    pub(crate) fn seal(&self) -> Result<SealedDisk> {
        let context = format!("disk {}", self.spec.number);
        let mut sealed = self.sealed.lock();
        if std::mem::replace(&mut *sealed, true) || self.failed.load(Ordering::SeqCst) {
            return Err(Error::invalid(format!("{context} cannot be sealed: sealed before, or a write failed")));
        }
        self.complete().map_err(|error| error.within(context))
    }

    fn complete(&self) -> Result<SealedDisk> {
        let fs = self.repository.fs();
        let written = self.writer.seal()?;
        let segments = self.tally.finish(written.file_bytes)?;
        let image_path = self.dir.join(layout::draft_image_name(self.spec.number));
        let length =
            image_path.symlink_metadata().map_err(|error| crashsafe::failed("stat", &image_path, error))?.len();
        if length != written.file_bytes.0 {
            return Err(Error::invalid(format!("the image has {length} bytes instead of {}", written.file_bytes)));
        }
        crashsafe::sync_file(&*self.image)?;
        let digests_path = self.dir.join(layout::draft_digests_name(self.spec.number));
        let file = crashsafe::create_file(fs, &digests_path)?;
        let digests = digests::write(&*file, self.spec.capacity, &self.spill)?;
        crashsafe::sync_file(&*file)?;
        if digests.zero_blocks != written.zero_blocks
            || digests.data_blocks != written.raw_blocks + written.compressed_blocks
        {
            return Err(Error::invalid("the image and its digests do not hold the same blocks"));
        }
        for suffix in SCRATCH_SUFFIXES {
            crashsafe::remove_file_if_there(fs, &self.dir.join(scratch_name(self.spec.number, suffix)))?;
        }
        let prefix = layout::disk_dir_name(self.spec.number);
        Ok(SealedDisk {
            image: Image {
                file: format!("{prefix}/{}", layout::image_name(&self.backup_id)),
                file_bytes: written.file_bytes.0,
                stored_bytes: written.data_bytes.0,
                data_blocks: digests.data_blocks,
                zero_blocks: digests.zero_blocks,
                segment_bytes: self.tally.segment_bytes(),
                segments: segments.into_iter().map(HexDigest).collect(),
            },
            digests: Digests {
                file: format!("{prefix}/{}", layout::digests_name(&self.backup_id)),
                file_bytes: digests.file_bytes,
                blake3: digests.blake3,
                root: HexDigest(digests.root),
            },
            spec: self.spec.clone(),
        })
    }
}

impl BlockSink for DiskDraft {
    fn put(&self, batch: &[Block<'_>]) -> block::Result<()> {
        self.store(batch)
            .map_err(|error| error.within(format!("disk {} of {}", self.spec.number, self.backup_id)).into())
    }
}

fn scratch_name(number: DiskNumber, suffix: &str) -> String {
    format!("{}{suffix}", layout::disk_dir_name(number))
}

/// Opens the digests of the point below and checks that the disk may stand on it.
fn open_parent(core: &Core, parent: &BackupId, spec: &DiskSpec) -> Result<ChainDigests> {
    if !core.parents.contains(parent) {
        return Err(Error::invalid(format!("{parent} was not claimed as a parent")));
    }
    let links = core.repository.chain(&core.vm, parent, spec.number)?;
    if links.len() >= CHAIN_DEPTH_MAX {
        let context = format!("the chain of {parent} has {} images already; make a full", links.len());
        return Err(Error::invalid(context));
    }
    if links.first().is_none_or(|link| link.disk.binding != spec.binding) {
        return Err(Error::invalid(format!("disk {} of {parent} is another disk", spec.number)));
    }
    // The image is opened too: a parent that is gone or damaged at its head must not get a child.
    core.repository.check_links(&core.vm, &links)
}
