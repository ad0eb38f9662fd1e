//! What a disk's parent holds, or the point that it is restored from, asked from the hub window by window.

use super::link::Link;
use super::message::{Call, OrderId, unpack};
use parking_lot::Mutex;
use sendense_block::{BlockIndex, Cancel, Digest, DigestMap, Error, Kind, Known, Result};
use sendense_types::DiskNumber;
use std::sync::Arc;
use std::time::Duration;

const DIGEST_BYTES: usize = sendense_block::digest::DIGEST_BYTES;
/// Blocks per question: the window that the copy pipeline plans with, 512 MiB of disk in 140 KiB.
pub const WINDOW_BLOCKS: u64 = 8192;
/// Bytes per block: whether it holds data, and its digest.
const ENTRY_BYTES: usize = 1 + DIGEST_BYTES;
/// Windows that are kept: 140 KiB each.
const WINDOWS_KEPT: usize = 2;

/// The parent of a disk, at the hub.
pub struct RemoteDigests {
    link: Arc<Link>,
    order: OrderId,
    disk: DiskNumber,
    patience: Duration,
    cancel: Cancel,
    /// The windows that were asked for last, the newest one last: reading goes from the start to the end, and threads that pass
    /// a window's end do not do so at one moment.
    windows: Mutex<Vec<(u64, Vec<Known>)>>,
}

impl RemoteDigests {
    /// The parent of `disk`; nothing is asked yet.
    pub fn new(link: Arc<Link>, order: OrderId, disk: DiskNumber, patience: Duration, cancel: Cancel) -> Self {
        Self { link, order, disk, patience, cancel, windows: Mutex::default() }
    }

    fn ask(&self, first: u64) -> Result<Vec<Known>> {
        let (order, disk, count) = (self.order.clone(), self.disk, WINDOW_BLOCKS as u32);
        let call = Call::Digests { order, disk, first, count };
        let answer = self.link.call(&call, &[], self.patience, &self.cancel)?;
        let known = decode(&answer)?;
        if known.len() as u64 != WINDOW_BLOCKS {
            return Err(Error::new(Kind::Protocol, "the hub told of another number of blocks than was asked"));
        }
        Ok(known)
    }
}

impl DigestMap for RemoteDigests {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> Result<()> {
        let mut windows = self.windows.lock();
        for (index, out) in (first.0..).zip(out) {
            let begin = index - index % WINDOW_BLOCKS;
            let held = windows.iter().position(|(first, _)| *first == begin);
            let held = match held {
                Some(held) => held,
                None => {
                    let asked = self.ask(begin)?;
                    if windows.len() == WINDOWS_KEPT {
                        windows.remove(0);
                    }
                    windows.push((begin, asked));
                    windows.len() - 1
                }
            };
            let known = windows.get(held).and_then(|(_, known)| known.get((index - begin) as usize));
            *out = *known.ok_or_else(|| Error::new(Kind::Protocol, "the hub told of too few blocks"))?;
        }
        Ok(())
    }

    /// Asks the hub, beyond what is known here: a disk that is mostly holes would else be told digest by digest.
    fn next_data(&self, from: BlockIndex, end: BlockIndex) -> Result<Option<BlockIndex>> {
        let mut from = from.0;
        let is_here = |(first, _): &&(u64, _)| (*first..first.saturating_add(WINDOW_BLOCKS)).contains(&from);
        if let Some((first, known)) = self.windows.lock().iter().find(is_here) {
            let mut here = (*first..).zip(known).skip_while(|(index, _)| *index < from);
            if let Some((index, _)) = here.find(|(_, known)| **known != Known::Zero) {
                return Ok((index < end.0).then_some(BlockIndex(index)));
            }
            from = first.saturating_add(WINDOW_BLOCKS);
        }
        if from >= end.0 {
            return Ok(None);
        }
        let call = Call::NextData { order: self.order.clone(), disk: self.disk, from, end: end.0 };
        let answer = self.link.call(&call, &[], self.patience, &self.cancel)?;
        let odd = |why: String| Error::new(Kind::Protocol, why);
        let (found, _) = unpack::<Option<u64>>(&answer).map_err(|error| odd(error.to_string()))?;
        match found {
            Some(index) if !(from..end.0).contains(&index) => {
                Err(odd(format!("the hub told of block {index} unasked")))
            }
            found => Ok(found.map(BlockIndex)),
        }
    }
}

/// Digests as they travel.
pub fn encode(known: &[Known]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(known.len() * ENTRY_BYTES);
    for known in known {
        match known {
            Known::Zero => bytes.extend_from_slice(&[0; ENTRY_BYTES]),
            Known::Data(digest) => {
                bytes.push(1);
                bytes.extend_from_slice(&digest.0);
            }
        }
    }
    bytes
}

/// Digests as they came.
pub fn decode(bytes: &[u8]) -> Result<Vec<Known>> {
    let (entries, []) = bytes.as_chunks::<ENTRY_BYTES>() else {
        return Err(Error::new(Kind::Protocol, "the hub's digests end in the middle of one"));
    };
    let known = entries.iter().map(|[kind, digest @ ..]| match kind {
        0 => Ok(Known::Zero),
        1 => Ok(Known::Data(Digest(*digest))),
        _ => Err(Error::new(Kind::Protocol, "the hub told of a block that is neither zero nor data")),
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digests_come_back(blocks in prop::collection::vec(prop::option::of(any::<[u8; DIGEST_BYTES]>()), 0..50)) {
            let known: Vec<Known> =
                blocks.into_iter().map(|block| block.map_or(Known::Zero, |bytes| Known::Data(Digest(bytes)))).collect();
            prop_assert_eq!(decode(&encode(&known)).unwrap(), known);
        }

        #[test]
        fn nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
