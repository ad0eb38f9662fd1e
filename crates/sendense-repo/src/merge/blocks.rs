//! The blocks of two images, or of more, as those of one: what the newest holds, else what the next older one holds.
//!
//! Compressed blocks are moved as the frames they are; raw ones are compared with their digests on the way. Both are
//! decoded and compared once more when the new image is read back. Where the new image begins as the copy of one of these, that one's
//! blocks are not moved.
//!
//! Invariant: a block reads through the new image as it did through the others: where an older one ends there are zeros,
//! never what lies below it.

use crate::chain::Link;
use crate::digests::{DigestFile, GROUP_BLOCKS, Group, State};
use crate::error::{Error, Result};
use crate::layout;
use crate::repository::Repository;
use crate::verify::{Pace, Progress, each};
use sendense_block::{BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, Cancel, Digest, Payload};
use sendense_qcow2::{Compression, Image, Mapping};
use sendense_types::VmContextId;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Payload bytes that are put at once, at most: 1 MiB, as a backup does it. With it a thread holds 1 MiB of payload and two
/// groups' digests (260 KiB).
const BATCH_BYTES: usize = 1 << 20;

/// An image with its digests.
pub(super) struct Layer {
    pub link: Link,
    pub path: PathBuf,
    pub image: Image,
    pub digests: DigestFile,
}

impl Layer {
    /// Opens both files, checked to be those that the manifest tells of.
    pub(super) fn open(repository: &Repository, vm: &VmContextId, link: Link) -> Result<Self> {
        let path = layout::image(vm, link.disk.disk_id, &link.backup_id);
        let image = repository.open_image(vm, &link)?;
        let digests = repository.open_digest_file(vm, &link)?.digests;
        Ok(Self { link, path, image, digests })
    }

    /// What it holds of a group's blocks; all absent beyond its end.
    fn group<'g>(&self, number: u64, group: &'g mut Group) -> Result<Option<&'g Group>> {
        let damaged = |error: Error| match error.kind {
            crate::Kind::Invalid => {
                let path = layout::digests_name(&self.link.backup_id);
                Error::corrupt(&self.path.with_file_name(path), None, "read the digests").caused_by(error)
            }
            _ => error,
        };
        let held = number < self.digests.groups() && self.digests.group(number, group).map_err(damaged)?;
        Ok(held.then_some(group))
    }

    /// Appends a block's payload to `out`; true when it is a frame.
    fn read(&self, index: BlockIndex, digest: Digest, frame: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<bool> {
        let corrupt = |what: &str| Error::corrupt(&self.path, None, format!("block {index} of the disk: {what}"));
        let at = index.offset();
        let len = self.image.size().0.saturating_sub(at.0).min(BLOCK_BYTES);
        let mapping = self.image.locate(at, ByteLen(len))?;
        match mapping {
            Mapping::Compressed { .. } if self.image.compression() == Compression::Zstd => {
                self.image.read_frame(&mapping, frame)?;
                out.extend_from_slice(frame);
                Ok(true)
            }
            // What another program has compressed in its own way becomes raw.
            Mapping::Raw { .. } | Mapping::Compressed { .. } if mapping.len().0 == len => {
                let start = out.len();
                out.resize(start + BLOCK_BYTES as usize, 0);
                let block = &mut out[start..];
                self.image.read(&mapping, &mut block[..len as usize])?;
                if Digest::of(block) != digest {
                    return Err(corrupt("it is not what was backed up"));
                }
                Ok(false)
            }
            _ => Err(corrupt("the image and the digests file disagree on whether it is held")),
        }
    }
}

/// The images whose blocks a new one gets, the newest first.
pub(super) struct Stack(Vec<Layer>);

/// Of each block of a group: which layer it is taken from, counted from the newest, and what that one holds.
pub(super) type Resolved = Vec<(usize, State)>;

impl Stack {
    /// Opens all images; there is one at least.
    pub(super) fn open(repository: &Repository, vm: &VmContextId, links: Vec<Link>) -> Result<Self> {
        if links.is_empty() {
            return Err(Error::invalid("a chain without a point"));
        }
        links.into_iter().map(|link| Layer::open(repository, vm, link)).collect::<Result<_>>().map(Self)
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.0
    }

    pub(super) fn newest(&self) -> &Layer {
        &self.0[0]
    }

    /// Finds out of each block of a group which layer holds it. One layer's digests are in memory at a time, however many there are.
    pub(super) fn resolve(&self, number: u64, group: &mut Group, resolved: &mut Resolved) -> Result<()> {
        let first = number * GROUP_BLOCKS;
        let count = GROUP_BLOCKS.min(self.newest().digests.blocks() - first) as usize;
        resolved.clear();
        resolved.resize(count, (0, State::Absent));
        for (number_of_layer, layer) in self.0.iter().enumerate() {
            if resolved.iter().all(|(_, state)| *state != State::Absent) {
                return Ok(());
            }
            // Beyond the end of an older layer there are zeros.
            let held = layer.digests.blocks().saturating_sub(first).min(count as u64) as usize;
            let open = |(_, state): &&mut (usize, State)| *state == State::Absent;
            if let Some(group) = layer.group(number, group)? {
                for (slot, state) in resolved.iter_mut().take(held).zip(group.states()) {
                    if slot.1 == State::Absent {
                        *slot = (number_of_layer, state);
                    }
                }
            }
            resolved.iter_mut().skip(held).filter(open).for_each(|slot| *slot = (number_of_layer, State::Zero));
        }
        Ok(())
    }
}

/// Moves the blocks of several images into another one.
pub(super) struct Move<'a> {
    pub stack: &'a Stack,
    /// The layer that the new image began as the copy of: what is taken from it is there.
    pub base: Option<usize>,
    pub sink: &'a crate::draft::DiskDraft,
    pub progress: &'a Progress,
    pub pace: &'a Pace,
}

/// What one thread works with.
#[derive(Default)]
struct Desk {
    group: Group,
    resolved: Resolved,
    frame: Vec<u8>,
    payload: Vec<u8>,
    batch: Vec<Found>,
}

/// A block that waits to be put.
struct Found {
    index: BlockIndex,
    digest: Digest,
    /// Where its payload lies, and whether it is a frame; none for zeros.
    payload: Option<(Range<usize>, bool)>,
}

impl Move<'_> {
    pub(super) fn run(&self, threads: usize, cancel: &Cancel) -> Result<()> {
        each(cancel, threads, self.stack.newest().digests.groups(), Desk::default, |desk, number| {
            self.group(number, desk, cancel)
        })
    }

    fn group(&self, number: u64, desk: &mut Desk, cancel: &Cancel) -> Result<()> {
        let Desk { group, resolved, frame, payload, batch } = desk;
        let first = number * GROUP_BLOCKS;
        self.stack.resolve(number, group, resolved)?;
        // Below what remains, an unflagged block would show through.
        let stands_alone = self.sink.spec().parent.is_none();
        for (index, (layer, state)) in (first..).map(BlockIndex).zip(resolved.drain(..)) {
            let is_there = self.base == Some(layer);
            let layer = &self.stack.layers()[layer];
            match state {
                State::Absent => {}
                // Flagged in the copy; what lies behind its end is not, and is put.
                State::Zero if is_there && !stands_alone && index.0 < layer.digests.blocks() => {}
                State::Data(_) if is_there => {}
                State::Zero if stands_alone => {}
                State::Zero => batch.push(Found { index, digest: Digest::of_zero_block(), payload: None }),
                State::Data(digest) => {
                    cancel.check()?;
                    let start = payload.len();
                    let is_frame = layer.read(index, digest, frame, payload)?;
                    batch.push(Found { index, digest, payload: Some((start..payload.len(), is_frame)) });
                }
            }
            if payload.len() + BLOCK_BYTES as usize > BATCH_BYTES {
                self.put(payload, batch, cancel)?;
            }
        }
        self.put(payload, batch, cancel)
    }

    fn put(&self, payload: &mut Vec<u8>, batch: &mut Vec<Found>, cancel: &Cancel) -> Result<()> {
        let blocks: Vec<Block<'_>> = batch
            .iter()
            .map(|found| Block {
                index: found.index,
                digest: found.digest,
                payload: match &found.payload {
                    None => Payload::Zero,
                    Some((range, true)) => Payload::Zstd(&payload[range.clone()]),
                    Some((range, false)) => Payload::Raw(&payload[range.clone()]),
                },
            })
            .collect();
        if !blocks.is_empty() {
            self.sink.put(&blocks)?;
        }
        let data = batch.iter().filter(|found| found.payload.is_some()).count() as u64;
        self.progress.done_bytes.fetch_add(data * BLOCK_BYTES, Ordering::Relaxed);
        self.pace.wait(payload.len() as u64, cancel);
        payload.clear();
        batch.clear();
        Ok(())
    }
}
