//! btrfs trees: nodes, verified once and kept, and walks in the order of keys.

use super::chunks::Chunks;
use super::kind;
use crate::error::{Error, Result};
use crate::native::fs::bytes::{le32, le64, slice, u8_at};
use crate::native::fs::crc32c;
use crate::native::fs::device::Device;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Levels are numbered from the leaves, 0, to 7.
const LEVEL_MAX: u8 = 7;
/// Verified nodes kept: 8 MiB, 512 of the usual size, enough for the upper levels and the leaves in use.
const NODE_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// The key of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn read(bytes: &[u8], at: usize) -> Result<Key> {
        Ok(Key { object: le64(bytes, at)?, kind: u8_at(bytes, at + 8)?, offset: le64(bytes, at + 9)? })
    }
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Root {
    pub(super) logical: u64,
    pub(super) level: u8,
    pub(super) generation: u64,
}

/// All trees of a file system.
pub(super) struct Trees {
    pub(super) device: Device,
    pub(super) chunks: Chunks,
    pub(super) root: Root,
    pub(super) sector_bytes: usize,
    node_bytes: usize,
    nodes: Mutex<Nodes>,
}

/// Verified nodes by address, with when they were last used.
#[derive(Default)]
struct Nodes {
    nodes: BTreeMap<u64, (u64, Arc<[u8]>)>,
    clock: u64,
}

type Each<'e> = dyn FnMut(Key, &[u8]) -> Result<ControlFlow<()>> + 'e;

impl Trees {
    pub(super) fn new(device: Device, chunks: Chunks, node_bytes: usize, sector_bytes: usize, root: Root) -> Trees {
        Trees { device, chunks, root, sector_bytes, node_bytes, nodes: Mutex::default() }
    }

    pub(super) fn load_chunks(&mut self, root: Root) -> Result<()> {
        let mut found = Vec::new();
        let first = Key { object: 0, kind: 0, offset: 0 };
        self.walk(root, first, &mut |key, item| {
            if key.kind == kind::CHUNK {
                found.push((key.offset, item.to_vec()));
                // The map itself has the limit; this one only keeps the list from growing past it.
                if found.len() > 64 * 1024 {
                    return Err(Error::unsupported("btrfs in too many chunks"));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        found.iter().try_for_each(|(logical, item)| self.chunks.add(*logical, item))
    }

    /// Reads `buf` from a logical address, whatever chunks it crosses.
    pub(super) fn read(&self, logical: u64, buf: &mut [u8], copy: usize) -> Result<bool> {
        let mut done = 0;
        while done < buf.len() {
            let at = logical.checked_add(done as u64).ok_or_else(|| Error::corrupt("a btrfs address beyond all"))?;
            let Some((place, whole)) = self.chunks.locate(at, copy)? else { return Ok(false) };
            let len = (buf.len() - done).min(usize::try_from(whole).unwrap_or(usize::MAX));
            self.device.read(place, &mut buf[done..done + len])?;
            done += len;
        }
        Ok(true)
    }

    fn node(&self, at: Root) -> Result<Arc<[u8]>> {
        let lock = || self.nodes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        {
            let mut nodes = lock();
            nodes.clock += 1;
            let clock = nodes.clock;
            if let Some((used, node)) = nodes.nodes.get_mut(&at.logical) {
                *used = clock;
                let node = node.clone();
                drop(nodes);
                check_place(&node, at)?;
                return Ok(node);
            }
        }
        let node: Arc<[u8]> = self.read_node(at)?.into();
        check_place(&node, at)?;
        let mut nodes = lock();
        if (nodes.nodes.len() + 1) * self.node_bytes > NODE_CACHE_BYTES {
            // The older half goes at once, so that looking for it is rare.
            let mut used: Vec<u64> = nodes.nodes.values().map(|(used, _)| *used).collect();
            let middle = used.len() / 2;
            let limit = *used.select_nth_unstable(middle).1;
            nodes.nodes.retain(|_, (used, _)| *used > limit);
        }
        let clock = nodes.clock;
        nodes.nodes.insert(at.logical, (clock, node.clone()));
        Ok(node)
    }

    fn read_node(&self, at: Root) -> Result<Vec<u8>> {
        let mut node = vec![0; self.node_bytes];
        let mut copy = 0;
        while self.read(at.logical, &mut node, copy)? {
            if crc32c::checksum(&[&node[32..]]) == le32(&node, 0)? {
                check_order(&node)?;
                return Ok(node);
            }
            // Metadata is usually there twice.
            copy += 1;
        }
        Err(Error::corrupt(format!("btrfs node {} fails its checksum", at.logical)))
    }

    /// Calls `each` with the items of a tree from a key on, in order, until it breaks.
    pub(super) fn walk(&self, root: Root, from: Key, each: &mut Each<'_>) -> Result<()> {
        self.walk_node(root, true, from, each).map(|_| ())
    }

    fn walk_node(&self, at: Root, top: bool, from: Key, each: &mut Each<'_>) -> Result<ControlFlow<()>> {
        let node = self.node(at)?;
        let count = le32(&node, 96)? as usize;
        // An empty node below the top would let a tree be walked for hours without a result.
        if count == 0 && !top {
            return Err(Error::corrupt(format!("btrfs node {} is empty", at.logical)));
        }
        if at.level == 0 {
            for index in position(&node, ITEM, count, |key| key < from)?..count {
                let (key, item) = leaf_item(&node, index)?;
                if each(key, item)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        // The last child that begins at or before the key may hold it.
        for index in position(&node, POINTER, count, |key| key <= from)?.saturating_sub(1)..count {
            if self.walk_node(child(&node, index, at.level)?, false, from, each)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The item with exactly this key.
    pub(super) fn find(&self, root: Root, key: Key) -> Result<Option<Vec<u8>>> {
        Ok(self.floor(root, key)?.filter(|(found, _)| *found == key).map(|(_, item)| item))
    }

    /// The last item at or before a key.
    pub(super) fn floor(&self, root: Root, key: Key) -> Result<Option<(Key, Vec<u8>)>> {
        let mut at = root;
        loop {
            let node = self.node(at)?;
            let count = le32(&node, 96)? as usize;
            let width = if at.level == 0 { ITEM } else { POINTER };
            let Some(index) = position(&node, width, count, |known| known <= key)?.checked_sub(1) else {
                return Ok(None);
            };
            if at.level == 0 {
                let (key, item) = leaf_item(&node, index)?;
                return Ok(Some((key, item.to_vec())));
            }
            at = child(&node, index, at.level)?;
        }
    }
}

/// A node must be the one that was asked for: its address, level and generation are in it and in what leads to it.
fn check_place(node: &[u8], at: Root) -> Result<()> {
    let same = le64(node, 48)? == at.logical && u8_at(node, 100)? == at.level && le64(node, 80)? == at.generation;
    if same && at.level <= LEVEL_MAX {
        Ok(())
    } else {
        Err(Error::corrupt(format!("btrfs node {} is another", at.logical)))
    }
}

/// Keys in a node grow, so that they can be searched by halves.
fn check_order(node: &[u8]) -> Result<()> {
    let width = if u8_at(node, 100)? == 0 { ITEM } else { POINTER };
    let count = le32(node, 96)? as usize;
    let keys = slice(node, HEADER, count.saturating_mul(width))?;
    let mut before = None;
    for item in keys.chunks_exact(width) {
        let key = Key::read(item, 0)?;
        if before.is_some_and(|before| before >= key) {
            return Err(Error::corrupt("the keys of a btrfs node are not in order"));
        }
        before = Some(key);
    }
    Ok(())
}

/// How many of a node's keys come before what is looked for.
fn position(node: &[u8], width: usize, count: usize, before: impl Fn(Key) -> bool) -> Result<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(Key::read(node, HEADER + middle * width)?) { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

fn leaf_item(node: &[u8], index: usize) -> Result<(Key, &[u8])> {
    let at = HEADER + index * ITEM;
    let (offset, len) = (le32(node, at + 17)? as usize, le32(node, at + 21)? as usize);
    Ok((Key::read(node, at)?, slice(node, HEADER.saturating_add(offset), len)?))
}

fn child(node: &[u8], index: usize, level: u8) -> Result<Root> {
    let at = HEADER + index * POINTER;
    Ok(Root { logical: le64(node, at + 17)?, level: level - 1, generation: le64(node, at + 25)? })
}
