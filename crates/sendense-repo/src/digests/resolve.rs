//! The digests of a restore point, over its whole chain.
//!
//! A block is what the nearest image that holds it says; beyond an image's end it is zero, whatever the images below say,
//! and zero too when no image holds it: exactly as QEMU reads the chain. What an image has lost is told as [`LOST`], so that
//! whoever compares with it stores the block again.
//!
//! Memory: a few resolved groups (200 KiB each) and one group of a file, whatever the disk's size and the chain's length.

use super::read::says_damaged;
use super::{DigestFile, GROUP_BLOCKS, Group, State};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use sendense_block::{
    self as block, BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Digest, DigestMap, Extent, ExtentSet, Known,
};
use std::path::PathBuf;
use std::sync::Arc;

/// Resolved groups kept: one for whoever plans, and some for threads that check blocks around it.
const GROUPS_KEPT: usize = 4;

/// What a block holds that is lost: something that no block is equal to (but one of 2^128).
pub const LOST: Known = Known::Data(Digest([0; block::digest::DIGEST_BYTES]));

/// One image's digests, with the name to tell when they are damaged.
pub struct Layer {
    /// The file, relative to the repository.
    pub path: PathBuf,
    /// Its digests.
    pub digests: DigestFile,
    /// Whole blocks of which the image or its digests are damaged: nothing is believed of them.
    pub lost: ExtentSet,
}

/// Answers what a restore point holds, block by block.
pub struct ChainDigests {
    /// The point's own image first, the full one last.
    layers: Vec<Layer>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Most recently used last.
    groups: Vec<(u64, Arc<[Known]>)>,
    scratch: Group,
}

impl ChainDigests {
    /// The digests of a chain, the point's own first.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, cache: Mutex::default() }
    }

    /// Blocks of the point's disk.
    pub fn blocks(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.digests.blocks())
    }

    fn resolved(&self, group: u64) -> Result<Arc<[Known]>> {
        let mut cache = self.cache.lock();
        if let Some(at) = cache.groups.iter().position(|(number, _)| *number == group) {
            let found = cache.groups.remove(at);
            let known = found.1.clone();
            cache.groups.push(found);
            return Ok(known);
        }
        let known = self.resolve(group, &mut cache.scratch)?;
        if cache.groups.len() == GROUPS_KEPT {
            cache.groups.remove(0);
        }
        cache.groups.push((group, known.clone()));
        Ok(known)
    }

    fn resolve(&self, group: u64, scratch: &mut Group) -> Result<Arc<[Known]>> {
        let mut known: Vec<Option<Known>> = vec![None; GROUP_BLOCKS as usize];
        let mut open = known.len();
        for layer in &self.layers {
            let first = group * GROUP_BLOCKS;
            // Beyond this image's end all is zero for the images above, which did not hold it.
            let here = layer.digests.blocks().saturating_sub(first).min(GROUP_BLOCKS) as usize;
            for beyond in &mut known[here..] {
                if beyond.is_none() {
                    *beyond = Some(Known::Zero);
                    open -= 1;
                }
            }
            for extent in layer.lost.within(extent_of(group)).as_slice() {
                for index in extent.block_indices() {
                    let known = &mut known[(index.0 - first) as usize];
                    if known.is_none() {
                        *known = Some(LOST);
                        open -= 1;
                    }
                }
            }
            if open == 0 {
                break;
            }
            let held = layer.digests.group(group, scratch).map_err(|error| layer.blame(error))?;
            if !held {
                continue;
            }
            for (known, state) in known.iter_mut().zip(scratch.states()).filter(|(known, _)| known.is_none()) {
                *known = match state {
                    State::Absent => continue,
                    State::Zero => Some(Known::Zero),
                    State::Data(digest) => Some(Known::Data(digest)),
                };
                open -= 1;
            }
        }
        Ok(known.into_iter().map(|known| known.unwrap_or(Known::Zero)).collect())
    }

    /// How many blocks of the point are lost: those that an image has lost and none above it holds.
    pub fn lost_blocks(&self) -> Result<u64> {
        let all: ExtentSet = self.layers.iter().fold(ExtentSet::new(), |all, layer| all.union(&layer.lost));
        let group_of = |at: u64| at / BLOCK_BYTES / GROUP_BLOCKS;
        let (mut count, mut next) = (0, 0);
        for extent in all.as_slice() {
            let groups = group_of(extent.start().0).max(next)..=group_of(extent.end().0.saturating_sub(1));
            next = groups.end() + 1;
            for group in groups {
                count += self.resolved(group)?.iter().filter(|known| **known == LOST).count() as u64;
            }
        }
        Ok(count)
    }

    /// Which layer says what a block holds, 0 being the point's own; `None` where none does.
    pub(crate) fn told_by(&self, block: BlockIndex) -> Result<Option<usize>> {
        let (number, at) = (block.0 / GROUP_BLOCKS, (block.0 % GROUP_BLOCKS) as usize);
        let mut group = Group::default();
        for (layer, told) in self.layers.iter().zip(0..) {
            if block.0 >= layer.digests.blocks() {
                return Ok(None);
            }
            let held = layer.digests.group(number, &mut group).map_err(|error| layer.blame(error))?;
            if held && group.states().nth(at).is_some_and(|state| state != State::Absent) {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    /// True when some image of the chain may hold data in the group.
    fn may_hold_data(&self, group: u64) -> Result<bool> {
        for layer in &self.layers {
            if group >= layer.digests.groups() {
                return Ok(false);
            }
            if layer.lost.overlaps(extent_of(group)) {
                return Ok(true);
            }
            if layer.digests.entry(group).map_err(|error| layer.blame(error))?.data_blocks > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The bytes of the disk that a group stands for.
fn extent_of(group: u64) -> Extent {
    const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK_BYTES;
    let start = ByteOffset(group.saturating_mul(GROUP_BYTES));
    Extent::new(start, ByteLen(GROUP_BYTES)).unwrap_or(Extent::between(start, start))
}

impl Layer {
    pub(crate) fn blame(&self, error: Error) -> Error {
        if says_damaged(&error) {
            Error::corrupt(&self.path, None, format!("read {}", self.path.display())).caused_by(error)
        } else {
            error.within(format!("read {}", self.path.display()))
        }
    }
}

impl DigestMap for ChainDigests {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> block::Result<()> {
        let mut at = first.0;
        let mut out = out;
        while !out.is_empty() {
            if at >= self.blocks() {
                out.fill(Known::Zero);
                return Ok(());
            }
            let (group, offset) = (at / GROUP_BLOCKS, (at % GROUP_BLOCKS) as usize);
            let known = self.resolved(group)?;
            let count = out.len().min(known.len() - offset);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&known[offset..offset + count]);
            out = later;
            at += count as u64;
        }
        Ok(())
    }

    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> block::Result<Option<BlockIndex>> {
        let mut at = from.0;
        let end = end.0.min(self.blocks());
        while at < end {
            let group = at / GROUP_BLOCKS;
            let group_end = ((group + 1) * GROUP_BLOCKS).min(end);
            if self.may_hold_data(group)? {
                let known = self.resolved(group)?;
                let offset = |index: u64| (index - group * GROUP_BLOCKS) as usize;
                let found = known[offset(at)..offset(group_end)].iter().position(|known| *known != Known::Zero);
                if let Some(found) = found {
                    return Ok(Some(BlockIndex(at + found as u64)));
                }
            }
            at = group_end;
        }
        Ok(None)
    }
}
