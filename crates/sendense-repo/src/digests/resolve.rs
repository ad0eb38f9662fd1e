//! The digests of a restore point, over its whole chain.
//!
//! A block is what the nearest image that holds it says; beyond an image's end it is zero, whatever the images below say,
//! and zero too when no image holds it: exactly as QEMU reads the chain.
//!
//! Memory: a few resolved groups (200 KiB each) and one group of a file, whatever the disk's size and the chain's length.

use super::read::says_damaged;
use super::{DigestFile, GROUP_BLOCKS, Group, State};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use sendense_block::{self as block, BlockIndex, DigestMap, Known};
use std::path::PathBuf;
use std::sync::Arc;

/// Resolved groups kept: one for whoever plans, and some for threads that check blocks around it.
const GROUPS_KEPT: usize = 4;

/// One image's digests, with the name to tell when they are damaged.
pub struct Layer {
    /// The file, relative to the repository.
    pub path: PathBuf,
    /// Its digests.
    pub digests: DigestFile,
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

    /// True when some image of the chain may hold data in the group.
    fn may_hold_data(&self, group: u64) -> Result<bool> {
        for layer in &self.layers {
            if group >= layer.digests.groups() {
                return Ok(false);
            }
            if layer.digests.entry(group).map_err(|error| layer.blame(error))?.data_blocks > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
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
