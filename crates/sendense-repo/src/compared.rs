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
//! Invariants: [`ComparedDisk::read_at`] gives well only bytes whose digests are those that the point has. And whatever the point's
//! digests know of is data to [`ComparedDisk::allocation`]: a block that an image has lost is read and found missing, and is not
//! left out as a hole.

use crate::chain::ChainReader;
use crate::digests::ChainDigests;
use crate::error::{Error, Result, says_wrong_bytes};
use crate::layout;
use crate::lock::Operation;
use crate::repository::Repository;
use parking_lot::Mutex;
use sendense_block::device::check_range;
use sendense_block::{
    self as block, AllocationMap, BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Content, DigestMap, Extent, ExtentSet,
    Known, MappedExtent, ReadAt,
};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::fmt;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A disk of a restore point, of which only what was backed up is given.
pub struct ComparedDisk {
    chain: ChainReader,
    digests: ChainDigests,
    vm: VmContextId,
    name: String,
    /// The first damage that was met.
    damage: Mutex<Option<String>>,
}

impl Repository {
    /// Opens a disk of a point for reading, with the digests that it is compared with. `who` is told to those who want to delete
    /// meanwhile.
    ///
    /// # Errors
    /// Those of [`Repository::open_disk`] and [`Repository::open_digests`].
    pub fn open_compared(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: DiskNumber,
        who: &str,
    ) -> Result<ComparedDisk> {
        let (links, guard) = self.claim_chain(Operation::Read, vm, backup, disk, who)?;
        let digests = self.chain_digests(vm, &links)?;
        let chain = self.open_links(vm, links, Some(guard))?;
        let name = format!("disk {disk} of {backup}");
        Ok(ComparedDisk { chain, digests, vm: vm.clone(), name, damage: Mutex::default() })
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

    /// The first damage that was met, in a sentence.
    pub fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// Reads whole blocks, the last of which may be the disk's last one, and compares them.
    fn read_blocks(&self, first: BlockIndex, buf: &mut [u8]) -> block::Result<()> {
        let mut known = vec![Known::Zero; buf.len().div_ceil(BLOCK)];
        self.known(first, &mut known)?;
        match self.chain.read_at(first.offset(), buf) {
            Err(error) if says_wrong_bytes(error.kind) => self.read_each(first, buf)?,
            read => read?,
        }
        for ((index, block), known) in (first.0..).map(BlockIndex).zip(buf.chunks(BLOCK)).zip(&known) {
            if !known.is_of(block) {
                return Err(self.damaged(index, "does not hold what was backed up", None));
            }
        }
        Ok(())
    }

    /// Reads block by block where not all of them can be read, so that the error names the one that cannot.
    fn read_each(&self, first: BlockIndex, buf: &mut [u8]) -> block::Result<()> {
        for (index, block) in (first.0..).map(BlockIndex).zip(buf.chunks_mut(BLOCK)) {
            match self.chain.read_at(index.offset(), block) {
                Err(error) if says_wrong_bytes(error.kind) => {
                    return Err(self.damaged(index, "cannot be decoded", Some(error)));
                }
                read => read?,
            }
        }
        Ok(())
    }

    /// Keeps what says that stored bytes are wrong.
    fn met<T>(&self, done: block::Result<T>) -> block::Result<T> {
        done.inspect_err(|error| {
            if says_wrong_bytes(error.kind) {
                self.damage.lock().get_or_insert_with(|| format!("{}: {}", self.name, block::error::chain(error)));
            }
        })
    }

    fn damaged(&self, index: BlockIndex, what: &str, cause: Option<block::Error>) -> block::Error {
        let (start, end) = (index.offset().0, (index.offset().0 + BLOCK_BYTES).min(self.size().0));
        let file = self.file(index);
        let lies = file.as_ref().map(|file| format!(", which lies in {file},")).unwrap_or_default();
        let told = format!("block {index} (bytes {start}..{end}) of {}{lies} {what}", self.name);
        self.damage.lock().get_or_insert_with(|| told.clone());
        let error = Error::corrupt(file.as_deref().unwrap_or_default().as_ref(), None, told);
        let error = match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        };
        block::Error::new(block::Kind::Corrupt, "compare what is read with its digests").caused_by(error)
    }

    /// The image that a block is to be in.
    fn file(&self, index: BlockIndex) -> Option<String> {
        let link = self.chain.links().get(self.digests.told_by(index).ok()??)?;
        Some(layout::image(&self.vm, link.disk.disk_id, &link.backup_id).display().to_string())
    }

    /// Blocks that the digests know of and the chain does not hold.
    fn missing(&self, gaps: &ExtentSet) -> block::Result<ExtentSet> {
        let mut missing = ExtentSet::new();
        for gap in gaps.as_slice() {
            let mut from = BlockIndex::holding(gap.start());
            let end = BlockIndex(gap.end().0.div_ceil(BLOCK_BYTES));
            while let Some(index) = self.next_data(from, end)? {
                missing.insert(Extent::block(index));
                from = BlockIndex(index.0 + 1);
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
        let map = self.met(self.chain.allocation(within))?;
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

impl DigestMap for ComparedDisk {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> block::Result<()> {
        self.met(self.digests.known(first, out))
    }

    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> block::Result<Option<BlockIndex>> {
        self.met(self.digests.next_data(from, end))
    }
}
