//! From a disk into a sink: read, find zeros, digest, compare with the parent, compress, store.

use super::audit::{Sample, Sampling};
use super::feed::{Chunk, Feed, Span, Windows};
use super::{Options, Progress, Stop, add, run_lanes};
use crate::cancel::Cancel;
use crate::codec::Encoder;
use crate::device::{ChangeMap, Disk};
use crate::digest::{Digest, DigestMap, Known, is_zero};
use crate::error::Result;
use crate::extent::Extent;
use crate::plan::Doubt;
use crate::sink::{Block, BlockSink, Payload};
use crate::units::{BLOCK_BYTES, ByteLen};
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Against what a disk is backed up.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Against nothing: every block that is not zero is stored.
    Full,
    /// Against a parent, looking at every block: what differs is stored.
    Compare {
        /// What the parent holds.
        parent: &'a dyn DigestMap,
    },
    /// Against a parent, looking only at what the source says has changed since.
    Tracked {
        /// What the parent holds.
        parent: &'a dyn DigestMap,
        /// What changed since the parent was made.
        changes: &'a dyn ChangeMap,
    },
}

impl<'a> Mode<'a> {
    pub(super) fn parent(&self) -> Option<&'a dyn DigestMap> {
        match *self {
            Self::Full => None,
            Self::Compare { parent } | Self::Tracked { parent, .. } => Some(parent),
        }
    }
}

/// One disk's backup.
pub struct Backup<'a> {
    /// The disk's name, for messages: `disk 0`.
    pub name: &'a str,
    /// The disk. Its size may be odd: the last block is padded with zeros.
    pub disk: &'a dyn Disk,
    /// Against what.
    pub mode: Mode<'a>,
    /// Where blocks go.
    pub sink: &'a dyn BlockSink,
    /// How.
    pub options: Options,
    /// Told of the work as it is done.
    pub progress: &'a Progress,
    /// Asked between chunks.
    pub cancel: &'a Cancel,
}

/// What a backup will read, found out before the first byte is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Bytes to read.
    pub read: ByteLen,
    /// The first contradiction between change tracking and the parent. The delta must not be used: compare instead.
    pub doubt: Option<Doubt>,
    /// Blocks to try change tracking by; empty unless it is used and a sample was asked for.
    pub sample: Sample,
    /// What the source said, so that it is not asked twice; part of it on disks with very many extents.
    kept: Vec<Arc<Span>>,
}

/// What a backup did with the disk's bytes, the last block counted whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Read from the source.
    pub read: ByteLen,
    /// Stored as data, before compression.
    pub stored: ByteLen,
    /// Stored as data, after compression.
    pub frames: ByteLen,
    /// Stored as zero blocks.
    pub zeroed: ByteLen,
    /// Read and found equal to the parent's.
    pub same: ByteLen,
}

/// Plans the whole disk without reading any of it.
pub fn survey(name: &str, disk: &dyn Disk, mode: Mode<'_>, cancel: &Cancel) -> Result<Survey> {
    survey_and_sample(name, disk, mode, Sampling::NONE, cancel)
}

/// The same, and picks blocks among those that will not be read because the source calls them unchanged, for
/// [`super::audit()`].
pub fn survey_and_sample(
    name: &str,
    disk: &dyn Disk,
    mode: Mode<'_>,
    sampling: Sampling,
    cancel: &Cancel,
) -> Result<Survey> {
    let size = disk.size();
    let mut windows = Windows::new(disk, size, mode).keeping();
    let mut survey = Survey { sample: Sample::new(sampling), ..Survey::default() };
    while let Some((plan, known)) = windows.next().map_err(|error| error.within(format!("plan {name}")))? {
        cancel.check()?;
        survey.read.0 += plan.read_len(size).0;
        survey.doubt = survey.doubt.or(plan.doubt);
        survey.sample.offer(&plan.untouched, |index| known.as_ref().map_or(Known::Zero, |known| known.get(index)));
    }
    survey.kept = windows.kept();
    Ok(survey)
}

/// Copies a disk into a sink. Run [`survey`] first: it finds the doubts and the amount of work, which is also what
/// decides how many lanes start. The survey must be of this disk in this mode.
///
/// On an error or a cancellation the sink holds some of the blocks; the draft behind it must be given up.
pub fn backup(job: &Backup<'_>, survey: Survey) -> Result<Summary> {
    let size = job.disk.size();
    let windows = Windows::new(job.disk, size, job.mode).knowing(survey.kept);
    let feed = Feed::new(windows, job.options.request_bytes());
    let feed = Mutex::new(feed);
    let totals = Mutex::new(Summary::default());
    run_lanes(job.options.lanes(survey.read), job.cancel, |stop| {
        let mut lane = Lane::new(job, size)?;
        lane.run(&feed, stop)?;
        let mut totals = totals.lock();
        totals.read.0 += lane.summary.read.0;
        totals.stored.0 += lane.summary.stored.0;
        totals.frames.0 += lane.summary.frames.0;
        totals.zeroed.0 += lane.summary.zeroed.0;
        totals.same.0 += lane.summary.same.0;
        Ok(())
    })
    .map_err(|error| error.within(format!("back up {}", job.name)))?;
    Ok(totals.into_inner())
}

/// How a block of the chunk is to be stored; ranges into the lane's frame buffer.
enum Found {
    Zero,
    Raw,
    Frame(Range<usize>),
}

struct Lane<'a> {
    job: &'a Backup<'a>,
    size: ByteLen,
    encoder: Encoder,
    data: Vec<u8>,
    frames: Vec<u8>,
    summary: Summary,
}

impl<'a> Lane<'a> {
    fn new(job: &'a Backup<'a>, size: ByteLen) -> Result<Self> {
        let request = job.options.request_bytes();
        Ok(Self {
            job,
            size,
            encoder: Encoder::new(job.options.level)?,
            data: vec![0; request],
            frames: vec![0; request / BLOCK * Encoder::FRAME_BYTES_MAX],
            summary: Summary::default(),
        })
    }

    fn run(&mut self, feed: &Mutex<Feed<'_>>, stop: &Stop<'_>) -> Result<()> {
        while !stop.asked() {
            let Some(chunk) = feed.lock().next()? else { break };
            if chunk.zero { self.zero(&chunk)? } else { self.copy(&chunk)? }
        }
        Ok(())
    }

    /// Stores zeros that need no reading.
    fn zero(&mut self, chunk: &Chunk) -> Result<()> {
        let digest = Digest::of_zero_block();
        let indices = chunk.extent.block_indices();
        let batch: Vec<_> = indices.map(|index| Block { index, digest, payload: Payload::Zero }).collect();
        self.job.sink.put(&batch)?;
        self.summary.zeroed.0 += chunk.extent.len().0;
        add(&self.job.progress.zero, chunk.extent.len().0);
        Ok(())
    }

    /// Reads a chunk and stores what differs from the parent.
    fn copy(&mut self, chunk: &Chunk) -> Result<()> {
        let on_disk = chunk.extent.intersect(Extent::whole(self.size));
        let (read, padded) = (on_disk.len().0 as usize, chunk.extent.len().0 as usize);
        self.job.disk.read_at(on_disk.start(), &mut self.data[..read])?;
        self.data[read..padded].fill(0);

        let mut found = Vec::with_capacity(padded / BLOCK);
        let mut frames_end = 0;
        let (mut stored, mut frames, mut zeroed, mut zero, mut same) = (0, 0, 0, 0, 0);
        for (index, block) in chunk.extent.block_indices().zip(self.data[..padded].chunks_exact(BLOCK)) {
            let parent = chunk.known.as_ref().map_or(Known::Zero, |known| known.get(index));
            if is_zero(block) {
                zero += BLOCK_BYTES;
                if parent != Known::Zero {
                    found.push((index, Digest::of_zero_block(), Found::Zero));
                    zeroed += BLOCK_BYTES;
                }
                continue;
            }
            let digest = Digest::of(block);
            if parent == Known::Data(digest) {
                same += BLOCK_BYTES;
                continue;
            }
            stored += BLOCK_BYTES;
            match self.encoder.encode(block, &mut self.frames[frames_end..]) {
                Some(len) => {
                    found.push((index, digest, Found::Frame(frames_end..frames_end + len)));
                    frames_end += len;
                    frames += len as u64;
                }
                None => {
                    found.push((index, digest, Found::Raw));
                    frames += BLOCK_BYTES;
                }
            }
        }
        self.put(chunk, &found)?;

        self.summary.read.0 += on_disk.len().0;
        self.summary.stored.0 += stored;
        self.summary.frames.0 += frames;
        self.summary.zeroed.0 += zeroed;
        self.summary.same.0 += same;
        let progress = self.job.progress;
        for (counter, bytes) in [
            (&progress.done, on_disk.len().0),
            (&progress.stored, stored),
            (&progress.frames, frames),
            (&progress.zero, zero),
            (&progress.same, same),
        ] {
            add(counter, bytes);
        }
        Ok(())
    }

    fn put(&self, chunk: &Chunk, found: &[(crate::BlockIndex, Digest, Found)]) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let first = chunk.extent.start().0;
        let batch: Vec<Block<'_>> = found
            .iter()
            .map(|(index, digest, found)| {
                let payload = match found {
                    Found::Zero => Payload::Zero,
                    Found::Raw => {
                        let at = (index.offset().0 - first) as usize;
                        Payload::Raw(&self.data[at..at + BLOCK])
                    }
                    Found::Frame(range) => Payload::Zstd(&self.frames[range.clone()]),
                };
                Block { index: *index, digest: *digest, payload }
            })
            .collect();
        self.job.sink.put(&batch)
    }
}
