//! One disk of a draft: takes blocks, keeps their digests, and becomes an image with its digests file.

use super::Core;
use super::mark::{Head, MARK_BYTES_MAX, Record};
use crate::capacity::Reservation;
use crate::chain::{BACKING_FORMAT, CHAIN_DEPTH_MAX};
use crate::crashsafe::{self, NewFile};
use crate::digests::{self, ChainDigests, Spill};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{Digests, HexDigest, Image};
use crate::repository::Repository;
use crate::segments::Tally;
use parking_lot::{Mutex, RwLock};
use sendense_block::{self as block, Block, BlockIndex, BlockSink, ByteLen, Digest, DigestMap, Payload};
use sendense_qcow2::{Backing, Held, Spec, Writer};
use sendense_types::{BackupId, DiskBinding, DiskNumber};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Scratch of the QCOW2 writer and of the digests, within the draft's folder. Their names end in none of the suffixes that
/// are published.
pub(super) const SCRATCH_SUFFIXES: [&str; 2] = [".tables", ".spill"];
/// How far the disk is durable, beside them.
const MARK_SUFFIX: &str = ".mark";

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
    pub(super) repository: Repository,
    pub(super) backup_id: BackupId,
    pub(super) spec: DiskSpec,
    pub(super) dir: PathBuf,
    pub(super) writer: Writer,
    pub(super) image: Arc<dyn NewFile>,
    pub(super) tables: Arc<dyn NewFile>,
    pub(super) segments: Segments,
    pub(super) spill: Spill,
    pub(super) parent: Option<Arc<ChainDigests>>,
    pub(super) reservation: Arc<Reservation>,
    /// Held shared while blocks are stored, and alone while it is told which are.
    pub(super) storing: RwLock<()>,
    /// Somebody may go on with it, so that all its files stay until the point exists.
    pub(super) marked: AtomicBool,
    /// A block was stored without its digest: the disk is of no use any more.
    pub(super) failed: AtomicBool,
    pub(super) sealed: Mutex<bool>,
}

/// How the digests of the image's segments become known.
pub(super) enum Segments {
    /// They are told while it is written.
    Tallied(Arc<Tally>),
    /// It began as the copy of another image: whoever began it reads them from the disk.
    ReadBack(Begun),
}

/// What a disk was that began as the copy of another image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// Bytes per segment.
    pub segment_bytes: u64,
    /// Payload bytes that stayed.
    pub stored_bytes: u64,
}

/// A disk whose files are complete.
#[derive(Debug, Clone)]
pub(crate) struct SealedDisk {
    pub spec: DiskSpec,
    /// Without the digests of its segments, where it began as a copy.
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
        // The folder is found by its name, which another hub's may bear by now.
        let turn = repository.ownership()?.hold()?;
        let create = |name: String| crashsafe::create_file(repository.fs(), &dir.join(name));
        let image = create(layout::draft_image_name(spec.number))?;
        let [tables, digests] = SCRATCH_SUFFIXES.map(|suffix| create(scratch_name(spec.number, suffix)));
        drop(turn);
        let (tables, tally) = (tables?, Arc::new(Tally::new(spec.capacity)));
        let writer = Writer::create(image.clone(), tables.clone(), image_spec(&spec), tally.clone())?;
        let spill = Spill::new(digests?, block::block_count(spec.capacity))?;
        Ok(Self {
            repository,
            backup_id,
            spec,
            dir,
            writer,
            image,
            tables,
            segments: Segments::Tallied(tally),
            spill,
            parent,
            reservation,
            storing: RwLock::default(),
            marked: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            sealed: Mutex::new(false),
        })
    }

    /// Goes on from the last mark; gives what was noted with it.
    pub(super) fn resume(core: &Core, spec: DiskSpec) -> Result<(Self, Vec<u8>)> {
        let parent = match &spec.parent {
            None => None,
            Some(parent) => Some(Arc::new(open_parent(core, parent, &spec)?)),
        };
        let (repository, dir) = (core.repository.clone(), core.dir());
        let relative = |name: String| layout::draft_dir(&core.vm, &core.backup_id).join(name);
        let mark = relative(scratch_name(spec.number, MARK_SUFFIX));
        let record = Record::parse(&crashsafe::read_small(repository.root(), &mark, MARK_BYTES_MAX)?)?;
        let (head, mark) = (&record.head, record.head.mark());
        let told = (&head.backup_id, head.disk_id, &head.binding, head.capacity_bytes, &head.parent_backup_id);
        if told != (&core.backup_id, spec.number, &spec.binding, spec.capacity.0, &spec.parent) {
            return Err(Error::invalid("the mark is of another disk"));
        }
        let corrupt = |name: &str, why: &str| {
            let file = relative(name.to_owned()).display().to_string();
            Error::new(Kind::Corrupt { file, segment: None }, why.to_owned())
        };
        let open = |name: &str| {
            let path = dir.join(name);
            repository.fs().open_file(&path).map_err(|error| crashsafe::failed("open", &path, error))
        };
        let image_name = layout::draft_image_name(spec.number);
        let [tables_name, digests_name] = SCRATCH_SUFFIXES.map(|suffix| scratch_name(spec.number, suffix));
        let (image, tables, digests) = (open(&image_name)?, open(&tables_name)?, open(&digests_name)?);
        let length =
            mark.image_bytes().ok_or_else(|| corrupt(&image_name, "its mark tells of more than a file holds"))?;
        // An image without blocks has no byte yet; its header comes last.
        if image.size() < length && mark.clusters > 1 {
            return Err(corrupt(&image_name, "it is shorter than its mark says"));
        }
        image.set_len(length)?;
        let scratch = mark.scratch_bytes(spec.capacity).ok_or_else(|| Error::invalid("the mark tells of too much"))?;
        if tables.size() > scratch {
            tables.set_len(scratch)?;
        }
        let tally = Arc::new(Tally::resume(spec.capacity, &record.segments)?);
        let spill = Spill::open(digests, block::block_count(spec.capacity))?;
        let mut agree = |first: BlockIndex, held: &mut [Held]| Ok(spill.agree(first, held)?);
        let writer =
            Writer::resume(image.clone(), tables.clone(), image_spec(&spec), tally.clone(), &mark, &mut agree)?;
        // What came after the mark is gone for good before anything takes its place.
        for file in [&image, &tables] {
            crashsafe::sync_file(&**file)?;
        }
        spill.sync()?;
        crashsafe::remove_file_if_there(repository.fs(), &dir.join(layout::draft_digests_name(spec.number)))?;
        core.reservation.resumed(mark.data_bytes);
        let disk = Self {
            repository,
            backup_id: core.backup_id.clone(),
            dir,
            writer,
            image,
            tables,
            segments: Segments::Tallied(tally),
            spill,
            parent,
            reservation: core.reservation.clone(),
            storing: RwLock::default(),
            marked: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            sealed: Mutex::new(false),
            spec,
        };
        Ok((disk, record.note))
    }

    /// Makes everything that was put before this call durable, with a note, so that after the death of this process
    /// [`Repository::resume_draft`] goes on from here. Blocks may be put meanwhile; those may be in it or not. After an error
    /// the disk is of no use.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it is sealed, or the note is longer than [`super::NOTE_BYTES_MAX`].
    pub fn mark(&self, note: &[u8]) -> Result<()> {
        let context = || format!("mark disk {} of {}", self.spec.number, self.backup_id);
        let Segments::Tallied(tally) = &self.segments else {
            return Err(Error::invalid("it began as a copy, with which nobody goes on").within(context()));
        };
        // One at a time, and none beside the sealing.
        let sealed = self.sealed.lock();
        if *sealed || self.failed.load(Ordering::SeqCst) {
            return Err(Error::invalid("it is sealed, or a write failed").within(context()));
        }
        self.marked.store(true, Ordering::SeqCst);
        self.write_mark(tally, note).map_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            error.within(context())
        })
    }

    fn write_mark(&self, tally: &Tally, note: &[u8]) -> Result<()> {
        let (mark, segments) = {
            let _nobody_stores = self.storing.write();
            self.writer.mark(|| tally.snapshot())?
        };
        let head = Head {
            backup_id: self.backup_id.clone(),
            disk_id: self.spec.number,
            binding: self.spec.binding.clone(),
            capacity_bytes: self.spec.capacity.0,
            parent_backup_id: self.spec.parent.clone(),
            clusters: mark.clusters,
            arena_clusters: mark.arena_clusters,
            raw_blocks: mark.raw_blocks,
            compressed_blocks: mark.compressed_blocks,
            data_bytes: mark.data_bytes,
        };
        let bytes = Record { head, note: note.to_vec(), segments }.to_bytes()?;
        crashsafe::sync_file(&*self.image)?;
        crashsafe::sync_file(&*self.tables)?;
        self.spill.sync()?;
        let path = self.dir.join(scratch_name(self.spec.number, MARK_SUFFIX));
        // Found by its name, as its folder is.
        let _turn = self.repository.ownership()?.hold()?;
        crashsafe::replace(self.repository.fs(), &path, &bytes)
    }

    /// As [`BlockSink::put`], for blocks that may have been put before: those that the disk holds are left out.
    ///
    /// # Errors
    /// [`Kind::Invalid`] also when a block was put with other bytes before.
    pub fn put_missing(&self, batch: &[Block<'_>]) -> Result<()> {
        let mut missing = Vec::with_capacity(batch.len());
        let mut known = Vec::new();
        for run in batch.chunk_by(|a, b| a.index.0 + 1 == b.index.0) {
            self.spill.get(run[0].index, &mut known, run.len())?;
            for (block, known) in run.iter().zip(&known) {
                match known {
                    None => missing.push(*block),
                    Some(digest) if *digest == block.digest => {}
                    Some(Digest(_)) => {
                        let context = format!("block {} was stored before with other bytes", block.index);
                        return Err(Error::invalid(context));
                    }
                }
            }
        }
        self.store(&missing)
    }

    /// Bytes of blocks that it holds.
    pub fn stored_bytes(&self) -> u64 {
        self.writer.data_bytes()
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
        let _stores = self.storing.read();
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
        let (segment_bytes, segments, stayed_bytes) = match &self.segments {
            Segments::Tallied(tally) => (tally.segment_bytes(), tally.finish(written.file_bytes)?, 0),
            Segments::ReadBack(begun) => (begun.segment_bytes, Vec::new(), begun.stored_bytes),
        };
        let image_path = self.dir.join(layout::draft_image_name(self.spec.number));
        let length =
            image_path.symlink_metadata().map_err(|error| crashsafe::failed("stat", &image_path, error))?.len();
        if length != written.file_bytes.0 {
            return Err(Error::invalid(format!("the image has {length} bytes instead of {}", written.file_bytes)));
        }
        crashsafe::sync_file(&*self.image)?;
        let digests_path = self.dir.join(layout::draft_digests_name(self.spec.number));
        let turn = self.repository.ownership()?.hold()?;
        let file = crashsafe::create_file(fs, &digests_path)?;
        drop(turn);
        let digests = digests::write(&*file, self.spec.capacity, &self.spill)?;
        crashsafe::sync_file(&*file)?;
        if digests.zero_blocks != written.zero_blocks
            || digests.data_blocks != written.raw_blocks + written.compressed_blocks
        {
            return Err(Error::invalid("the image and its digests do not hold the same blocks"));
        }
        let _turn = self.repository.ownership()?.hold()?;
        // Whoever goes on with it needs them; they go with the draft's folder.
        let scratch = if self.marked.load(Ordering::SeqCst) { &[][..] } else { &SCRATCH_SUFFIXES[..] };
        for suffix in scratch {
            crashsafe::remove_file_if_there(fs, &self.dir.join(scratch_name(self.spec.number, suffix)))?;
        }
        let prefix = layout::disk_dir_name(self.spec.number);
        Ok(SealedDisk {
            image: Image {
                file: format!("{prefix}/{}", layout::image_name(&self.backup_id)),
                file_bytes: written.file_bytes.0,
                // What stayed of frames is known about only.
                stored_bytes: stayed_bytes
                    .saturating_add(written.data_bytes.0)
                    .min(digests.data_blocks.saturating_mul(block::BLOCK_BYTES)),
                data_blocks: digests.data_blocks,
                zero_blocks: digests.zero_blocks,
                segment_bytes,
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

pub(super) fn image_spec(spec: &DiskSpec) -> Spec {
    let backing = spec.parent.as_ref().map(|parent| Backing {
        // Read by nobody before the image lies in its disk's folder, beside its parent.
        name: layout::image_name(parent),
        format: BACKING_FORMAT.into(),
    });
    Spec { capacity: spec.capacity, backing }
}

pub(super) fn scratch_name(number: DiskNumber, suffix: &str) -> String {
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
