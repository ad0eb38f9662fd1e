//! A disk of a restore point that gives what was backed up or an error: each block is compared with its digest as it is read.
//!
//! What lives here: reading with that comparison, for whoever writes a restored disk. What does not: telling all that is damaged
//! of a point ([`crate::verify`]), and readers that come for a few files of a disk ([`Repository::open_disk`]).
//!
//! ```text
//! read_at -> chain (image, or those below it) -> bytes --.
//!         -> digests of the same point                 --+-> equal: given; else Corrupt, with block, point and file
//! ```
//!
//! Invariants: [`ComparedDisk::read_at`] gives well only bytes whose digests are those that the point has; or, where somebody needs
//! what is left ([`OnDamage::Pass`]), keeps which blocks are others ([`ComparedDisk::damage`]). And whatever the point's
//! digests know of is data to [`ComparedDisk::allocation`]: a block that an image has lost is read and found missing, and is not
//! left out as a hole.

mod damage;

pub use damage::{Damage, Given};

use crate::chain::ChainReader;
use crate::digests::{ChainDigests, GROUP_BLOCKS};
use crate::error::{Error, Kind, Result, says_wrong_bytes};
use crate::layout;
use crate::lock::Operation;
use crate::repository::Repository;
use crate::{room, verify};
use parking_lot::Mutex;
use sendense_block::device::check_range;
use sendense_block::digest::is_zero;
use sendense_block::{
    self as block, AllocationMap, BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Cancel, Content, Digest, DigestMap,
    Extent, ExtentSet, Known, MappedExtent, ReadAt,
};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::fmt;

const BLOCK: usize = BLOCK_BYTES as usize;
/// How much of a disk is asked about at once for its next data: what the copy asks about, too.
const LOOK_BYTES: u64 = 16 << 30;

/// What reading damaged blocks does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// It fails.
    #[default]
    Fail,
    /// It gives what is left of them, and keeps which they are.
    Pass,
}

/// A disk of a restore point, of which only what was backed up is given.
pub struct ComparedDisk {
    repository: Repository,
    chain: ChainReader,
    /// None where they are damaged as a whole, and the disk is needed all the same.
    digests: Option<ChainDigests>,
    vm: VmContextId,
    name: String,
    on_damage: OnDamage,
    /// The first damage that ended a read.
    failure: Mutex<Option<String>>,
    /// What was given all the same.
    damage: Mutex<Damage>,
}

impl Repository {
    /// Opens a disk of a point for reading, with the digests that it is compared with. `who` is told to those who want to delete
    /// meanwhile.
    ///
    /// # Errors
    /// Those of [`Repository::open_disk`] and, unless damage is passed over, [`Repository::open_digests`].
    pub fn open_compared(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: DiskNumber,
        who: &str,
        on_damage: OnDamage,
    ) -> Result<ComparedDisk> {
        let (links, guard) = self.claim_chain(Operation::Read, vm, backup, disk, who)?;
        let digests = match self.chain_digests(vm, &links) {
            Err(Error { kind: Kind::Corrupt { .. }, .. }) if on_damage == OnDamage::Pass => None,
            opened => Some(opened?),
        };
        Ok(ComparedDisk {
            repository: self.clone(),
            chain: self.open_links(vm, links, Some(guard))?,
            digests,
            vm: vm.clone(),
            name: format!("disk {disk} of {backup}"),
            on_damage,
            failure: Mutex::default(),
            damage: Mutex::default(),
        })
    }
}

impl ComparedDisk {
    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk as it lies there, compared with nothing.
    pub fn chain(&self) -> &ChainReader {
        &self.chain
    }

    /// The first damage that ended a read, in a sentence.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// The blocks that were given though they are damaged.
    pub fn damage(&self) -> Damage {
        self.damage.lock().clone()
    }

    /// Bytes that a file with the disk's content takes. Where no digest is left all of the disk is read, for nobody can tell what an image
    /// has lost; but of a hole only zeros can be read, which take no room.
    pub fn needed_bytes(&self, cancel: &Cancel) -> Result<u64> {
        let held = self.digests.is_none().then(|| room::needed_bytes(&self.chain, &self.name, cancel));
        match held {
            Some(Ok(bytes)) => Ok(bytes),
            // Nor do the images say what they hold.
            _ => room::needed_bytes(self, &self.name, cancel),
        }
    }

    fn passes(&self) -> bool {
        self.on_damage == OnDamage::Pass
    }

    /// True when somebody needs what is left where this went wrong. What is away for now is not gone.
    pub(crate) fn passes_over(&self, kind: block::Kind) -> bool {
        self.passes() && (says_wrong_bytes(kind) || kind == block::Kind::Io && self.repository.check_present().is_ok())
    }

    /// What the digests say of blocks; nothing where they are damaged, and the disk is needed all the same.
    fn told(&self, first: BlockIndex, count: usize) -> block::Result<Option<Vec<Known>>> {
        let Some(digests) = &self.digests else { return Ok(None) };
        let mut known = vec![Known::Zero; count];
        match digests.known(first, &mut known) {
            Err(error) if self.passes_over(error.kind) => Ok(None),
            told => self.met(told).map(|()| Some(known)),
        }
    }

    /// Reads whole blocks, the last of which may be the disk's last one, and compares them.
    fn read_blocks(&self, first: BlockIndex, buf: &mut [u8]) -> block::Result<()> {
        let known = self.told(first, buf.len().div_ceil(BLOCK))?;
        let is_read = match self.chain.read_at(first.offset(), buf) {
            Err(error) if says_wrong_bytes(error.kind) || self.passes_over(error.kind) => false,
            read => read.map(|()| true)?,
        };
        for ((index, block), number) in (first.0..).map(BlockIndex).zip(buf.chunks_mut(BLOCK)).zip(0..) {
            let known = known.as_ref().map(|known| known[number]);
            // Block by block where not all of them can be read: one that cannot does not cost the others.
            let read = match is_read {
                true => Ok(()),
                false => verify::read(|| self.chain.read_at(index.offset(), block)),
            };
            match read {
                Ok(()) => self.compare(index, block, known)?,
                Err(error) if self.passes_over(error.kind) => {
                    block.fill(0);
                    if known != Some(Known::Zero) {
                        self.damage.lock().note(index, Given::Zeros);
                    }
                }
                Err(error) if says_wrong_bytes(error.kind) => {
                    return Err(self.damaged(index, "cannot be decoded", Some(error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn compare(&self, index: BlockIndex, block: &mut [u8], known: Option<Known>) -> block::Result<()> {
        match known {
            Some(known) if known.is_of(block) => {}
            Some(_) if !self.passes() => return Err(self.damaged(index, "does not hold what was backed up", None)),
            // This much is known of it.
            Some(Known::Zero) => block.fill(0),
            Some(Known::Data(_)) => self.damage.lock().note(index, Given::AsRead),
            None => self.damage.lock().note(index, Given::Unproved),
        }
        Ok(())
    }

    /// Keeps what says that stored bytes are wrong.
    fn met<T>(&self, done: block::Result<T>) -> block::Result<T> {
        done.inspect_err(|error| {
            if says_wrong_bytes(error.kind) {
                self.failure.lock().get_or_insert_with(|| format!("{}: {}", self.name, block::error::chain(error)));
            }
        })
    }

    fn damaged(&self, index: BlockIndex, what: &str, cause: Option<block::Error>) -> block::Error {
        let (start, end) = (index.offset().0, (index.offset().0 + BLOCK_BYTES).min(self.size().0));
        let file = self.file(index);
        let lies = file.as_ref().map(|file| format!(", which lies in {file},")).unwrap_or_default();
        let told = format!("block {index} (bytes {start}..{end}) of {}{lies} {what}", self.name);
        self.failure.lock().get_or_insert_with(|| told.clone());
        let error = Error::corrupt(file.as_deref().unwrap_or_default().as_ref(), None, told);
        let error = match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        };
        block::Error::new(block::Kind::Corrupt, "compare what is read with its digests").caused_by(error)
    }

    /// The image that a block is to be in.
    fn file(&self, index: BlockIndex) -> Option<String> {
        let link = self.chain.links().get(self.digests.as_ref()?.told_by(index).ok()??)?;
        Some(layout::image(&self.vm, link.disk.disk_id, &link.backup_id).display().to_string())
    }

    /// Blocks that the digests know of and the chain does not hold.
    fn missing(&self, gaps: &ExtentSet) -> block::Result<ExtentSet> {
        let Some(digests) = &self.digests else { return Ok(gaps.clone()) };
        let mut missing = ExtentSet::new();
        for gap in gaps.as_slice() {
            let mut from = BlockIndex::holding(gap.start());
            let end = BlockIndex(gap.end().0.div_ceil(BLOCK_BYTES));
            while from < end {
                from = match digests.next_data(from, end) {
                    Ok(None) => break,
                    Ok(Some(index)) => {
                        missing.insert(Extent::block(index));
                        BlockIndex(index.0 + 1)
                    }
                    // What nobody knows anything of is looked at.
                    Err(error) if self.passes_over(error.kind) => {
                        let group_end = BlockIndex((from.0 / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(end);
                        missing.insert(Extent::between(from.offset(), group_end.offset()));
                        group_end
                    }
                    Err(error) => return self.met(Err(error)),
                };
            }
        }
        Ok(missing)
    }
}

impl fmt::Debug for ComparedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComparedDisk").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ReadAt for ComparedDisk {
    fn size(&self) -> ByteLen {
        self.chain.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        let size = self.size().0;
        check_range("the restore point's disk", self.size(), at, buf.len())?;
        let (mut at, mut rest) = (at.0, buf);
        while !rest.is_empty() {
            // `check_range` has shown that `at` and what is asked from there lie on the disk.
            let index = BlockIndex::holding(ByteOffset(at));
            let start = index.offset().0;
            let len = (size - start).min(BLOCK_BYTES) as usize;
            let taken = if at == start && rest.len() >= len {
                let is_to_the_end = rest.len() as u64 == size - at;
                let whole = if is_to_the_end { rest.len() } else { rest.len() / BLOCK * BLOCK };
                self.read_blocks(index, &mut rest[..whole])?;
                whole
            } else {
                // A part of a block is taken out of all of it.
                let mut block = vec![0; len];
                self.read_blocks(index, &mut block)?;
                let part = &block[(at - start) as usize..];
                let taken = part.len().min(rest.len());
                rest[..taken].copy_from_slice(&part[..taken]);
                taken
            };
            at += taken as u64;
            rest = &mut rest[taken..];
        }
        Ok(())
    }
}

impl AllocationMap for ComparedDisk {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range("the restore point's disk", self.size(), within.start(), len)?;
        let map = match self.chain.allocation(within) {
            // The digests tell what there is to be read.
            Err(error) if self.passes_over(error.kind) => Vec::new(),
            map => self.met(map)?,
        };
        let data: ExtentSet =
            map.iter().filter(|mapped| mapped.content == Content::Data).map(|mapped| mapped.extent).collect();
        let blocks = within.to_blocks();
        let data = data.to_blocks(blocks.end());
        let data = data.union(&self.missing(&data.gaps(blocks))?);
        let (mut map, mut next) = (Vec::new(), within.start());
        let mut push = |from, to, content| {
            if from < to {
                map.push(MappedExtent { extent: Extent::between(from, to), content });
            }
        };
        for run in data.as_slice() {
            let run = run.intersect(within);
            push(next, run.start(), Content::Zero);
            push(run.start(), run.end(), Content::Data);
            next = run.end().max(next);
        }
        push(next, within.end(), Content::Zero);
        Ok(map)
    }
}

/// What the disk holds as it is read: what was backed up or, where what is left is needed, that.
impl DigestMap for ComparedDisk {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> block::Result<()> {
        if let (false, Some(digests)) = (self.passes(), &self.digests) {
            return self.met(digests.known(first, out));
        }
        out.fill(Known::Zero);
        let end = BlockIndex(first.0.saturating_add(out.len() as u64)).offset().0.min(self.size().0);
        let within = Extent::between(first.offset().min(ByteOffset(end)), ByteOffset(end));
        let mut block = vec![0; BLOCK];
        for held in self.allocation(within)?.iter().filter(|mapped| mapped.content == Content::Data) {
            for index in held.extent.block_indices() {
                let block = &mut block[..(self.size().0 - index.offset().0).min(BLOCK_BYTES) as usize];
                self.read_blocks(index, block)?;
                if !is_zero(block) {
                    // The index lies in the range that was asked for.
                    out[(index.0 - first.0) as usize] = Known::Data(Digest::of_block(block));
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> block::Result<Option<BlockIndex>> {
        if let (false, Some(digests)) = (self.passes(), &self.digests) {
            return self.met(digests.next_data(from, end));
        }
        let end = ByteOffset(end.offset().0.min(self.size().0));
        for piece in Extent::between(from.offset().min(end), end).pieces(ByteLen(LOOK_BYTES)) {
            let map = self.allocation(piece)?;
            if let Some(held) = map.iter().find(|mapped| mapped.content == Content::Data) {
                return Ok(Some(BlockIndex::holding(held.extent.start())));
            }
        }
        Ok(None)
    }
}
