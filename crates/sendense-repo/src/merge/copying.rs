//! The copy of an old image while it is made: what stays of it is written where the file system cannot share it.
//!
//! What lives here: the copying, segment by segment, each synced and read back before its thread takes the next one, so that one reads
//! while another writes and what is not on the disk yet stays little. What does not: what stays ([`super::patch`]), and what the
//! digests of a segment tell ([`super::clusters`]).
//!
//! Invariant: nothing is written into a segment after it was read back. Whatever comes after the copy is written behind its end; the
//! header's segment and the last one, which that meets, are read back in the end.

use super::clusters::{Copied, Taken};
use super::patch::{Base, Means, Stays};
use crate::capacity::Reservation;
use crate::crashsafe::NewFile;
use crate::draft::Over;
use crate::error::Result;
use crate::verify::{READ_BYTES, cluster_digests, each};
use sendense_block::backend::File;
use sendense_block::{
    AllocationMap, BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Content, Digest, Extent, ReadAt, digest,
};
use sendense_qcow2::{Held, Part};
use std::path::Path;
use std::sync::atomic::Ordering;

/// Pieces that wait to be copied, beside those of one segment: 64 KiB of memory. A segment of 64 MiB has 8192 at the very most.
const PIECES_MAX: usize = 4096;

/// What was promised for a disk.
#[derive(Clone, Copy)]
pub(super) struct Reserved<'a> {
    pub reservation: &'a Reservation,
    /// Room for bytes that a clone shares is in it.
    pub for_copy: bool,
}

/// The copy while it is made.
pub(super) struct Copying<'a, 'b> {
    base: &'a mut Base<'b>,
    means: Means<'a>,
    stays: Stays<'a>,
    reserved: Reserved<'a>,
    /// The new file's name in the repository.
    path: &'a Path,
    /// To be copied, where the file system cannot share: in rising order, none across two segments.
    pieces: Vec<Extent>,
    /// Where the parts that were told end.
    told: u64,
    /// How many segments were copied.
    copied: u64,
}

/// What one thread works with.
struct Desk {
    buffer: Vec<u8>,
    clusters: Vec<Digest>,
}

impl<'a, 'b> Copying<'a, 'b> {
    pub(super) fn new(
        base: &'a mut Base<'b>,
        means: Means<'a>,
        stays: Stays<'a>,
        reserved: Reserved<'a>,
        path: &'a Path,
    ) -> Self {
        Self { base, means, stays, reserved, path, pieces: Vec::new(), told: 0, copied: 0 }
    }

    /// Copies what was told, as far as that is whole segments, or to its end.
    fn flush(&mut self, copy: &dyn NewFile, to_end: bool) -> Result<()> {
        let (bytes, end) = (self.base.segment_bytes(), self.base.file.size());
        let (first, until) = (self.copied, if to_end { end.0.div_ceil(bytes) } else { self.told / bytes });
        if until <= first {
            return Ok(());
        }
        let back = self.means.repository.open_file(self.path, end.0)?;
        let desk = || Desk { buffer: vec![0; READ_BYTES as usize], clusters: Vec::new() };
        each(self.means.cancel, self.means.threads, until - first, desk, |desk, at| {
            self.segment(copy, &back, first + at, desk)
        })?;
        self.copied = until;
        let rest = self.pieces.partition_point(|piece| piece.start().0 < until * bytes);
        self.pieces.drain(..rest);
        Ok(())
    }

    fn segment(&self, copy: &dyn NewFile, back: &File, number: u64, desk: &mut Desk) -> Result<()> {
        let range = self.base.segment(number, self.base.file.size().0);
        let taken = self.copy(copy, range, &mut desk.buffer)?;
        let copied = if number == 0 || range.len().0 < self.base.segment_bytes() {
            Copied::Taken(taken)
        } else {
            // From the disk and not from memory, where the kernel can let go of what was synced.
            copy.flush()?;
            back.forget(range);
            self.means.digest(back, range, &mut desk.buffer, &mut desk.clusters)?;
            let (digest, anew) = self.base.judge(number, Some(&taken), &desk.clusters, self.means)?;
            Copied::Checked(digest, anew)
        };
        self.base.copied.lock().insert(number, copied);
        Ok(())
    }

    /// Copies the pieces of a part of the file. What is taken over whole need not be looked at, and the kernel copies it; the rest of the old
    /// one is read, and digested: with what is read back of the new one, that proves the old segment.
    fn copy(&self, copy: &dyn NewFile, range: Extent, buffer: &mut [u8]) -> Result<Taken> {
        let (means, mut taken) = (self.means, Taken::default());
        let from = self.pieces.partition_point(|piece| piece.end().0 <= range.start().0);
        let mut pieces = self.pieces[from..].iter().copied().peekable();
        for chunk in range.pieces(ByteLen(READ_BYTES)) {
            means.cancel.check()?;
            let is_whole = |piece: &Extent| piece.start() <= chunk.start() && piece.end() >= chunk.end();
            if pieces.peek().is_some_and(is_whole) && copy.take(&self.base.file, chunk) == chunk.len() {
                pieces.next_if(|piece| piece.end() == chunk.end());
                taken.clusters.extend(chunk.pieces(ByteLen(BLOCK_BYTES)).map(|_| None));
                self.done(chunk);
                continue;
            }
            let bytes = &mut buffer[..chunk.len().0 as usize];
            crate::verify::read(|| self.base.file.read_at(chunk.start(), bytes))?;
            let within = |part: Extent| {
                let at = (part.start().0 - chunk.start().0) as usize;
                at..at + part.len().0 as usize
            };
            // What is taken over of it, and where that ends.
            let (mut parts, mut end) = (Vec::new(), 0);
            while let Some(piece) = pieces.peek().copied() {
                let part = piece.intersect(chunk);
                if part.is_empty() {
                    break;
                }
                copy.write_at(part.start(), &bytes[within(part)])?;
                taken.is_part |= !digest::is_zero(&bytes[end..within(part).start]);
                end = within(part).end;
                parts.push(within(part));
                if piece.end() > chunk.end() {
                    break;
                }
                pieces.next();
            }
            taken.is_part |= !digest::is_zero(&bytes[end..]);
            let mut parts = parts.into_iter().peekable();
            for (n, cluster) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                let (start, end) = (n * BLOCK_BYTES as usize, n * BLOCK_BYTES as usize + cluster.len());
                while parts.next_if(|part| part.end < end).is_some() {}
                let is_whole = parts.peek().is_some_and(|part| part.start <= start && part.end >= end);
                taken.clusters.push((!is_whole).then(|| Digest::of(cluster)));
            }
            self.done(chunk);
        }
        Ok(taken)
    }

    fn done(&self, chunk: Extent) {
        self.means.progress.done_bytes.fetch_add(chunk.len().0, Ordering::Relaxed);
        self.means.pace.wait(chunk.len().0, self.means.cancel);
    }
}

impl Means<'_> {
    /// The digests of the clusters of a part of a file, in order.
    pub(super) fn digest(
        &self,
        file: &File,
        range: Extent,
        buffer: &mut [u8],
        clusters: &mut Vec<Digest>,
    ) -> Result<()> {
        let told = &|bytes| {
            self.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.pace.wait(bytes, self.cancel);
        };
        clusters.clear();
        cluster_digests(file, range, buffer, self.cancel, told, &mut |digest| clusters.push(digest))
    }
}

impl Over for Copying<'_, '_> {
    fn stays(&mut self, first: BlockIndex, held: &mut [Held], digests: &mut Vec<Option<Digest>>) -> Result<()> {
        self.means.cancel.check()?;
        self.stays.look(first, held, digests)
    }

    fn begun(&mut self, is_clone: bool) -> Result<()> {
        self.base.is_clone = is_clone;
        if is_clone {
            return Ok(());
        }
        // Pieces are whole 4 KiB, of which a frame needs two more at most; no more than the file in any case.
        let blocks = self.base.kept.raw_blocks + self.base.kept.compressed_blocks;
        let most =
            self.base.kept.kept_bytes.saturating_add(blocks.saturating_mul(2 * 4096)).min(self.base.file.size().0);
        if !self.reserved.for_copy {
            self.reserved.reservation.grow(most)?;
        }
        Ok(())
    }

    fn part(&mut self, copy: &dyn NewFile, part: Part) -> Result<()> {
        match part {
            Part::Live(_) if self.base.is_clone => {}
            Part::Live(extent) => {
                self.reserved.reservation.spend(extent.len().0)?;
                let bytes = self.base.segment_bytes();
                let mut start = extent.start().0;
                while start < extent.end().0 {
                    let end = extent.end().0.min((start / bytes + 1) * bytes);
                    self.pieces.push(Extent::between(ByteOffset(start), ByteOffset(end)));
                    (self.told, start) = (end, end);
                    if self.pieces.len() >= PIECES_MAX {
                        self.flush(copy, false)?;
                    }
                }
            }
            Part::Stale(extent) => {
                self.means.cancel.check()?;
                self.told = extent.end().0;
                // What is copied is looked at then. To be asked for a hole, some file systems walk through all that follows.
                if !self.base.is_clone {
                    return Ok(());
                }
                // A hole there was one before.
                for mapped in self.base.file.allocation(extent)? {
                    if mapped.content == Content::Zero {
                        continue;
                    }
                    let (bytes, extent) = (self.base.segment_bytes(), mapped.extent);
                    self.base.touched.extend(extent.start().0 / bytes..extent.end().0.div_ceil(bytes));
                    copy.punch(extent)?;
                }
            }
        }
        Ok(())
    }

    fn all_told(&mut self, copy: &dyn NewFile) -> Result<()> {
        if self.base.is_clone { Ok(()) } else { self.flush(copy, true) }
    }
}
