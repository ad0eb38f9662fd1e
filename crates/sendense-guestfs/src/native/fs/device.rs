//! The device under a file system: a bounded cache, and the blocks that a replayed log puts over it.
//!
//! Invariant: the device is only read. What a log changes lives in a [`Patch`] beside it.

use super::sectors::Sectors;
use crate::error::{Error, Result};
use sendense_block::{ByteOffset, ReadAt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes in a cached page. A chain is compressed in clusters of this size, so that a smaller page would decompress the same
/// cluster again for its neighbour.
pub const PAGE_BYTES: u64 = 64 * 1024;
/// 12 MiB of pages: a fifth of what a worker may use, and the inode table of 49,000 ext4 inodes.
const PAGES_MAX: usize = 192;
/// 3 MiB of pages, and 6,000 inodes of XFS: a log names them almost in the order in which they lie.
const REPLAY_PAGES_MAX: usize = 48;

/// What a replayed log changes.
#[derive(Debug, Default)]
pub enum Patch {
    /// Nothing.
    #[default]
    None,
    /// Whole blocks whose newer contents lie elsewhere on the device (an ext4 journal).
    Moved {
        /// Bytes in a block; not zero.
        block_bytes: u64,
        /// Where the contents are, by block number.
        blocks: BTreeMap<u64, Moved>,
    },
    /// Sectors whose contents were computed (an XFS log).
    Sectors(Sectors),
}

/// Where a block's newer contents lie.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Byte offset on the device.
    pub at: u64,
    /// The journal's magic number stood at the block's start and was replaced by zeros.
    pub escaped: bool,
}

/// The first bytes of a journal block, which a block of data may not begin with.
const JOURNAL_MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// A device and its cache.
pub struct Device {
    inner: Arc<dyn ReadAt>,
    size: u64,
    cache: Mutex<Cache>,
    patch: Patch,
}

struct Cache {
    /// Pages that it may hold.
    max: usize,
    /// Page number to slot.
    slots: BTreeMap<u64, usize>,
    pages: Vec<Page>,
    /// The clock's hand.
    hand: usize,
}

struct Page {
    number: u64,
    used: bool,
    bytes: Box<[u8]>,
}

impl Device {
    /// Wraps a device whose log is clean or not read yet.
    pub fn new(inner: Arc<dyn ReadAt>) -> Device {
        let size = inner.size().0;
        Device { inner, size, cache: Cache::of(PAGES_MAX), patch: Patch::None }
    }

    /// The same, with the small cache that is enough while a log is replayed, which needs its memory for what the log changes.
    pub fn while_replaying(inner: Arc<dyn ReadAt>) -> Device {
        Device { cache: Cache::of(REPLAY_PAGES_MAX), ..Device::new(inner) }
    }

    /// The device with a replayed log over it.
    pub fn patched(self, patch: Patch) -> Device {
        Device { cache: Cache::of(PAGES_MAX), patch, ..self }
    }

    /// Bytes in the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` with the bytes at `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] beyond the device's end: only a structure on the disk can have asked for it.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match at.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size => {}
            _ => return Err(Error::corrupt(format!("{} bytes at {at} lie beyond the device's end", buf.len()))),
        }
        if buf.len() as u64 >= PAGE_BYTES {
            return self.read_through(at, buf);
        }
        let (mut at, mut buf) = (at, buf);
        while !buf.is_empty() {
            let within = (at % PAGE_BYTES) as usize;
            let len = buf.len().min(PAGE_BYTES as usize - within);
            let (part, rest) = buf.split_at_mut(len);
            self.read_page(at / PAGE_BYTES, within, part)?;
            at += len as u64;
            buf = rest;
        }
        Ok(())
    }

    /// `len` bytes at `at`. `len` is the caller's bound, never a number from the disk alone.
    pub fn read_vec(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    fn read_page(&self, number: u64, within: usize, part: &mut [u8]) -> Result<()> {
        let mut cache = self.lock();
        let slot = match cache.slots.get(&number) {
            Some(slot) => *slot,
            None => {
                let at = number * PAGE_BYTES;
                let mut bytes = vec![0; PAGE_BYTES.min(self.size - at) as usize].into_boxed_slice();
                self.read_through(at, &mut bytes)?;
                cache.insert(number, bytes)
            }
        };
        let page = &mut cache.pages[slot];
        page.used = true;
        part.copy_from_slice(&page.bytes[within..within + part.len()]);
        Ok(())
    }

    fn read_through(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(ByteOffset(at), buf)?;
        match &self.patch {
            Patch::None => Ok(()),
            Patch::Moved { block_bytes, blocks } => {
                for (block, moved) in blocks.range(units(at, buf.len(), *block_bytes)) {
                    let mut contents = vec![0; *block_bytes as usize];
                    self.inner.read_at(ByteOffset(moved.at), &mut contents)?;
                    if moved.escaped {
                        contents[..4].copy_from_slice(&JOURNAL_MAGIC);
                    }
                    lay_over(at, buf, block * block_bytes, &contents);
                }
                Ok(())
            }
            Patch::Sectors(sectors) => {
                sectors.lay_over(at, buf);
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        // A panic while the lock was held leaves whole pages behind, for a slot is filled last.
        self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The numbers of the units of `unit` bytes that the range touches.
fn units(at: u64, len: usize, unit: u64) -> std::ops::Range<u64> {
    at / unit..at.saturating_add(len as u64).div_ceil(unit)
}

/// Copies the part of `from`, which lies at `from_at`, that falls into `buf`, which lies at `at`.
pub(super) fn lay_over(at: u64, buf: &mut [u8], from_at: u64, from: &[u8]) {
    let start = at.max(from_at);
    let end = (at + buf.len() as u64).min(from_at + from.len() as u64);
    if start < end {
        buf[(start - at) as usize..(end - at) as usize]
            .copy_from_slice(&from[(start - from_at) as usize..(end - from_at) as usize]);
    }
}

impl Cache {
    fn of(max: usize) -> Mutex<Cache> {
        Mutex::new(Cache { max, slots: BTreeMap::new(), pages: Vec::new(), hand: 0 })
    }

    fn insert(&mut self, number: u64, bytes: Box<[u8]>) -> usize {
        let page = Page { number, used: true, bytes };
        if self.pages.len() < self.max {
            self.pages.push(page);
            self.slots.insert(number, self.pages.len() - 1);
            return self.pages.len() - 1;
        }
        // Each round of the clock clears marks, so that it ends within two rounds.
        while std::mem::take(&mut self.pages[self.hand].used) {
            self.hand = (self.hand + 1) % self.max;
        }
        let slot = self.hand;
        self.slots.remove(&self.pages[slot].number);
        self.slots.insert(number, slot);
        self.pages[slot] = page;
        slot
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use sendense_block::ByteLen;

    struct Bytes(Vec<u8>);
    impl ReadAt for Bytes {
        fn size(&self) -> ByteLen {
            ByteLen(self.0.len() as u64)
        }
        fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
            buf.copy_from_slice(&self.0[at.0 as usize..at.0 as usize + buf.len()]);
            Ok(())
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index / 7 + index) as u8).collect()
    }

    /// A whole number of the blocks that the patch moves.
    const BLOCKS: u64 = 3600;
    const SIZE: u64 = BLOCKS * 4096;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        /// A patched and cached device reads as one that was written to, and the cache stays within its bound.
        #[test]
        fn reads_what_a_written_device_would(reads in prop::collection::vec((0..SIZE, 0usize..200_000), 1..40),
                                             moved in prop::collection::btree_map(0u64..3000, 3000..BLOCKS, 0..20)) {
            let disk = pattern(SIZE as usize);
            let mut model = disk.clone();
            let mut blocks = BTreeMap::new();
            for (block, from) in &moved {
                let (to, at) = ((block * 4096) as usize, (from * 4096) as usize);
                model[to..to + 4096].copy_from_slice(&disk[at..at + 4096]);
                blocks.insert(*block, Moved { at: from * 4096, escaped: false });
            }
            let device = Device::new(Arc::new(Bytes(disk))).patched(Patch::Moved { block_bytes: 4096, blocks });
            for (at, len) in reads {
                let mut buf = vec![0; len];
                match device.read(at, &mut buf) {
                    Ok(()) => prop_assert_eq!(&buf, &model[at as usize..at as usize + len]),
                    Err(error) => prop_assert!(at + len as u64 > SIZE, "{}", error),
                }
                prop_assert!(device.lock().pages.len() <= PAGES_MAX);
            }
        }
    }

    #[test]
    fn an_escaped_block_gets_its_magic_back() {
        let blocks = BTreeMap::from([(2, Moved { at: 8192, escaped: true })]);
        let device = Device::new(Arc::new(Bytes(vec![0; 16384]))).patched(Patch::Moved { block_bytes: 1024, blocks });
        assert_eq!(device.read_vec(2046, 8).unwrap(), [0, 0, 0xc0, 0x3b, 0x39, 0x98, 0, 0]);
    }

    #[test]
    fn a_page_that_is_read_again_stays() {
        let device = Device::new(Arc::new(Bytes(pattern(PAGE_BYTES as usize * (PAGES_MAX + 50)))));
        for page in 0..PAGES_MAX as u64 + 50 {
            device.read_vec(page * PAGE_BYTES, 16).unwrap();
            device.read_vec(0, 16).unwrap();
        }
        assert!(device.lock().slots.contains_key(&0));
    }
}
