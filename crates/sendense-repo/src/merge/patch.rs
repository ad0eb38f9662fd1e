//! The new image begins as the copy of one of the old ones, most often the older: a clone that shares its room where the
//! file system can, else what is needed of it, byte by byte. Whole 4 KiB pieces that nobody needs any more become holes.
//!
//! What lives here: which image is copied, whether that is less work than moving every block, what stays of it, and which
//! segments of the file are as they were ([`Base::untouched`]). What does not: the copying ([`super::copying`]), moving the others' blocks,
//! and what is new in the other segments ([`super::clusters`]).
//!
//! Invariant: the tables of the old image are compared with its manifest before one entry of them is believed, and each entry with
//! the digests file when it is kept.

use super::blocks::{Layer, Resolved, Stack};
use super::clusters::{Anew, Changed, Copied, Taken, fold};
use super::copying::{Copying, Reserved};
use crate::digests::{GROUP_BLOCKS, Group, State};
use crate::draft::{self, DiskSpec, Over};
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::segments::{SEGMENTS_MAX, segment_bytes};
use crate::verify::{Pace, Progress, READ_BYTES, each, segment_digest};
use parking_lot::Mutex;
use sendense_block::backend::File;
use sendense_block::{self as block, BlockIndex, ByteOffset, Cancel, Digest, Extent, ReadAt};
use sendense_qcow2::{Held, Kept};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Where so much of an image would be dead, it is not copied: one part in four.
const DEAD_PART: u64 = 4;
/// What is new is known by clusters so far into a file, 8 MiB of bits at the very most; behind it by segments.
const PROVEN_BYTES_MAX: u64 = 4 << 40;

/// How the new images of a merge come about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    /// By a copy of the largest old image where less than a quarter of it would be dead, else block by block.
    #[default]
    Fitting,
    /// Block by block. All that the points hold is read, and damage in it is met.
    Rewrite,
    /// By a copy however much of it would be dead, where there can be one.
    Patch,
}

/// What all of a merge's work shares.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub repository: &'a Repository,
    pub threads: usize,
    pub progress: &'a Progress,
    pub pace: &'a Pace,
    pub cancel: &'a Cancel,
}

/// An old image that the new one begins as.
pub(super) struct Base<'a> {
    pub number: usize,
    pub layer: &'a Layer,
    pub file: File,
    pub kept: Kept,
    /// The segments of a clone that are not as they were. Behind its end, and in its last one, all are new.
    pub touched: BTreeSet<u64>,
    /// What was copied, by segments. A few bytes for each, and a bit for each cluster of those in which something is new.
    pub copied: Mutex<BTreeMap<u64, Copied>>,
    /// The room is shared: what was not touched was not read.
    pub is_clone: bool,
}

impl<'a> Base<'a> {
    /// Chooses the image to copy; none where every block is to be moved.
    pub(super) fn choose(means: Means<'_>, stack: &'a Stack, spec: &DiskSpec, way: Way) -> Result<Option<Self>> {
        let Some((number, layer)) = largest(stack, spec, way) else { return Ok(None) };
        let file = means.repository.open_file(&layer.path, layer.link.disk.image.file_bytes)?;
        let (kept, touched, copied) = (Kept::default(), BTreeSet::new(), Mutex::default());
        let mut base = Self { number, layer, file, kept, touched, copied, is_clone: false };
        base.check_tables(means)?;
        let mut stays = Stays::new(stack, number, spec);
        let mut wrong = None;
        let kept = layer.image.kept(spec.capacity, &mut |first, held| {
            stays.look(first, held, &mut Vec::new()).map_err(|error| {
                let told = block::Error::new(block::Kind::Invalid, "look at what stays");
                wrong = Some(error);
                told
            })
        });
        base.kept = match (kept, wrong) {
            (Ok(kept), _) => kept,
            (Err(_), Some(error)) => return Err(error),
            // The tables are as they were written, by another program than ours.
            (Err(error), None) if error.kind == block::Kind::Unsupported => return Ok(None),
            (Err(error), None) => return Err(base.damaged(error)),
        };
        let dead_bytes = base.file.size().0.saturating_sub(base.kept.kept_bytes);
        let is_worth_it = way == Way::Patch || dead_bytes.saturating_mul(DEAD_PART) < base.file.size().0;
        Ok(is_worth_it.then_some(base))
    }

    /// Bytes of the file per segment.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.layer.link.disk.image.segment_bytes
    }

    /// The digest of a segment that is as it was.
    pub(super) fn untouched(&self, segment: u64) -> Option<Digest> {
        let segments = &self.layer.link.disk.image.segments;
        let was = segments.get(usize::try_from(segment).ok()?)?;
        // The header's, which is new, and the last one, which the file goes on in.
        let is_inner = segment > 0 && (segment + 1) * self.segment_bytes() <= self.file.size().0;
        (is_inner && !self.touched.contains(&segment)).then_some(was.0)
    }

    /// The segment of the file at that number, as long as the file is.
    pub(super) fn segment(&self, number: u64, file_bytes: u64) -> Extent {
        let start = number.saturating_mul(self.segment_bytes()).min(file_bytes);
        let end = start.saturating_add(self.segment_bytes()).min(file_bytes);
        Extent::between(ByteOffset(start), ByteOffset(end))
    }

    /// Compares a segment of the new file, as it was read from the disk, with the old one: its digest, and what is new in it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] when the old one is not what its manifest says; [`Kind::Io`] when the copy is not what was copied.
    pub(super) fn judge(
        &self,
        number: u64,
        taken: Option<&Taken>,
        clusters: &[Digest],
        means: Means<'_>,
    ) -> Result<(Digest, Anew)> {
        let digest = fold(clusters);
        if let Some(was) = self.untouched(number).filter(|_| taken.is_none_or(|taken| !taken.is_part)) {
            if was == digest {
                return Ok((digest, Anew::Nothing));
            }
            // What was read, or what was written?
            self.check_segment(number, &mut vec![0; READ_BYTES as usize], means)?;
            let why = format!("segment {number} of the copy of {} is not what was copied", self.layer.path.display());
            return Err(Error::new(Kind::Io, why));
        }
        let segments = &self.layer.link.disk.image.segments;
        let was = usize::try_from(number).ok().and_then(|number| segments.get(number));
        let is_proven = number.saturating_add(1).saturating_mul(self.segment_bytes()) <= PROVEN_BYTES_MAX;
        let anew = match (was, taken) {
            (Some(was), Some(taken)) if is_proven => Anew::of(taken, was.0, clusters),
            _ => Anew::All,
        };
        Ok((digest, anew))
    }

    /// Compares a segment of the old file with what its manifest says.
    pub(super) fn check_segment(&self, segment: u64, buffer: &mut [u8], means: Means<'_>) -> Result<()> {
        let image = &self.layer.link.disk.image;
        let range = self.segment(segment, image.file_bytes);
        let wanted = usize::try_from(segment).ok().and_then(|segment| image.segments.get(segment));
        let found =
            segment_digest(&self.file, range, buffer, means.cancel, &|bytes| means.pace.wait(bytes, means.cancel))?;
        if wanted.is_some_and(|wanted| wanted.0 == found) {
            return Ok(());
        }
        let why = format!("segment {segment} of {} is not what was written", self.layer.path.display());
        Err(Error::corrupt(&self.layer.path, Some(segment), why))
    }

    /// Reads the segments in which the tables lie.
    fn check_tables(&self, means: Means<'_>) -> Result<()> {
        let mut segments = BTreeSet::new();
        let image = &self.layer.link.disk.image;
        let told = self.layer.image.mapping_places(&mut |place| {
            let end = place.end().0.min(image.file_bytes);
            segments.extend(place.start().0 / image.segment_bytes..end.div_ceil(image.segment_bytes));
        });
        // What was told before tables were met that cannot be has damage in it.
        let segments: Vec<u64> = segments.into_iter().collect();
        each(
            means.cancel,
            means.threads,
            segments.len() as u64,
            || vec![0; READ_BYTES as usize],
            |buffer, at| {
                let at = usize::try_from(at).expect("they are counted in memory");
                self.check_segment(segments[at], buffer, means)
            },
        )?;
        told.map_err(|error| self.damaged(error))
    }

    fn damaged(&self, error: block::Error) -> Error {
        match error.kind {
            block::Kind::Corrupt | block::Kind::Invalid | block::Kind::OutOfRange => {
                Error::corrupt(&self.layer.path, None, "read the tables of the image").caused_by(error)
            }
            _ => error.into(),
        }
    }

    /// The new disk, over a copy, which gets the name `path` in the repository.
    pub(super) fn begin(
        &mut self,
        means: Means<'_>,
        stack: &Stack,
        spec: DiskSpec,
        reserved: Reserved<'_>,
        path: &Path,
        begin: impl FnOnce(&draft::Base<'_>, &mut dyn Over, DiskSpec) -> Result<draft::DiskDraft>,
    ) -> Result<draft::DiskDraft> {
        let layer = self.layer;
        let stays = Stays::new(stack, self.number, &spec);
        // The old file is read through a handle of its own, for this one is changed meanwhile.
        let file = means.repository.open_file(&layer.path, layer.link.disk.image.file_bytes)?;
        let mut copy = Copying::new(self, means, stays, reserved, path);
        let base = draft::Base { image: &layer.image, file: &file, disk: &layer.link.disk };
        begin(&base, &mut copy, spec)
    }
}

/// The image that a new one would begin as, by what is known before its tables are read.
pub(super) fn largest<'a>(stack: &'a Stack, spec: &DiskSpec, way: Way) -> Option<(usize, &'a Layer)> {
    let fits = |layer: &Layer| way != Way::Rewrite && can_begin(stack, layer, spec);
    let layers = stack.layers().iter().enumerate().filter(|(_, layer)| fits(layer));
    layers.max_by_key(|(_, layer)| layer.link.disk.image.stored_bytes)
}

/// An image can be gone on with for a disk: it was not larger, is in segments of the same size, and the file stays short enough.
fn can_begin(stack: &Stack, layer: &Layer, spec: &DiskSpec) -> bool {
    let image = &layer.link.disk.image;
    // All that the others hold, and tables, refcounts and what is left of arenas beside it: far less than a sixty-fourth and 64 MiB.
    let others = stack.layers().iter().map(|layer| layer.link.disk.image.file_bytes);
    let most = others.fold(spec.capacity.0 / 64 + (64 << 20), u64::saturating_add);
    layer.link.disk.capacity() <= spec.capacity
        && layer.image.is_ours()
        && image.segment_bytes == segment_bytes(spec.capacity)
        && most.div_ceil(image.segment_bytes) <= SEGMENTS_MAX
}

/// Which blocks of the copied image stay.
pub(super) struct Stays<'a> {
    stack: &'a Stack,
    base: usize,
    stands_alone: bool,
    group: Group,
    resolved: Resolved,
}

impl<'a> Stays<'a> {
    fn new(stack: &'a Stack, base: usize, spec: &DiskSpec) -> Self {
        let stands_alone = spec.parent.is_none();
        Self { stack, base, stands_alone, group: Group::default(), resolved: Resolved::new() }
    }

    pub(super) fn look(
        &mut self,
        first: BlockIndex,
        held: &mut [Held],
        digests: &mut Vec<Option<Digest>>,
    ) -> Result<()> {
        self.stack.resolve(first.0 / GROUP_BLOCKS, &mut self.group, &mut self.resolved)?;
        let layer = &self.stack.layers()[self.base];
        digests.clear();
        for (n, (held, (number, state))) in held.iter_mut().zip(self.resolved.drain(..)).enumerate() {
            let index = first.0 + n as u64;
            let is_beyond = index >= layer.digests.blocks();
            // What the copied image holds of it, by the digests; nobody needs to know of what a newer one hides.
            let listed = match state {
                _ if is_beyond => Some(Held::Absent),
                State::Absent => Some(Held::Absent),
                _ if number > self.base => Some(Held::Absent),
                _ if number < self.base => None,
                State::Zero => Some(Held::Zero),
                State::Data(_) => Some(Held::Data),
            };
            if listed.is_some_and(|listed| listed != *held) {
                let why = "the image and the digests file disagree on whether it is held";
                return Err(Error::corrupt(&layer.path, None, format!("block {index} of the disk: {why}")));
            }
            let digest = match state {
                _ if number != self.base || is_beyond => None,
                State::Data(digest) => Some(digest),
                State::Zero if !self.stands_alone => Some(Digest::of_zero_block()),
                State::Zero | State::Absent => None,
            };
            if digest.is_none() {
                *held = Held::Absent;
            }
            digests.push(digest);
        }
        Ok(())
    }
}

/// Reads those of the image's segments from the disk that were not yet; those that a clone left as they were keep their digests, unread.
/// Tells what is new in the others.
pub(super) fn segments(means: Means<'_>, base: &Base<'_>, file: &File) -> Result<(Vec<Digest>, Changed)> {
    let count = file.size().0.div_ceil(base.segment_bytes());
    let found = Mutex::new(vec![None; usize::try_from(count).unwrap_or_default()]);
    let desk = || (vec![0; READ_BYTES as usize], Vec::new());
    each(means.cancel, means.threads, count, desk, |(buffer, clusters), segment| {
        let copied = base.copied.lock().remove(&segment);
        let (digest, anew) = match (copied, base.untouched(segment)) {
            (Some(Copied::Checked(digest, anew)), _) => (digest, anew),
            (_, Some(digest)) if base.is_clone => (digest, Anew::Nothing),
            (copied, _) => {
                means.digest(file, base.segment(segment, file.size().0), buffer, clusters)?;
                let taken = match &copied {
                    Some(Copied::Taken(taken)) => Some(taken),
                    _ => None,
                };
                base.judge(segment, taken, clusters, means)?
            }
        };
        let at = usize::try_from(segment).expect("segments are counted in memory");
        found.lock()[at] = Some((digest, anew));
        Ok(())
    })?;
    let found: Option<Vec<(Digest, Anew)>> = found.into_inner().into_iter().collect();
    let (digests, segments) = found.ok_or_else(|| Error::invalid("a segment was left out"))?.into_iter().unzip();
    Ok((digests, Changed { segment_bytes: base.segment_bytes(), segments }))
}
