//! Hands out the chunks of a plan to lanes, planning window by window as they are needed.

use super::backup::Mode;
use crate::device::{AllocationMap, MappedExtent};
use crate::digest::Known;
use crate::error::Result;
use crate::extent::{Extent, ExtentSet};
use crate::plan::{self, Parent, Plan, Step, WINDOW_BYTES};
use crate::units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset};
use std::sync::Arc;

/// How much of the disk the source is asked about at once: 32 windows (16 GiB). Large enough that a sparse terabyte costs
/// 64 questions, small enough that the worst answer (every second block) is 131,072 extents, 5 MiB.
const SPAN_BYTES: u64 = 32 * WINDOW_BYTES;

/// Blocks of zeros handed out at once; a batch costs 32 bytes a block.
const ZERO_BLOCKS_MAX: u64 = 4096;

/// A piece of work: whole blocks, the last of which may pass the disk's end.
pub(super) struct Chunk {
    pub extent: Extent,
    /// Zeros that need no reading.
    pub zero: bool,
    /// What the parent holds in the chunk's blocks; none when it holds nothing but zeros, or there is no parent.
    pub known: Option<KnownBlocks>,
}

/// The parent's blocks of one window.
#[derive(Clone)]
pub(super) struct KnownBlocks {
    first: BlockIndex,
    known: Arc<[Known]>,
}

impl KnownBlocks {
    pub fn get(&self, index: BlockIndex) -> Known {
        let known = index.0.checked_sub(self.first.0).and_then(|number| self.known.get(number as usize));
        known.copied().unwrap_or(Known::Zero)
    }
}

/// How many extents a survey keeps of what the source said, so that the copy need not ask again: 640 KiB a disk. What lies
/// beyond is asked twice.
const KEPT_EXTENTS_MAX: usize = 16_384;

/// What the source said about a span.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Span {
    extent: Extent,
    allocation: Vec<MappedExtent>,
    changed: Option<ExtentSet>,
}

/// The plans of a disk's windows, one after the other.
pub(super) struct Windows<'a> {
    map: &'a dyn AllocationMap,
    size: ByteLen,
    mode: Mode<'a>,
    next: u64,
    span: Option<Arc<Span>>,
    kept: Vec<Arc<Span>>,
    keep_extents: usize,
}

impl<'a> Windows<'a> {
    pub fn new(map: &'a dyn AllocationMap, size: ByteLen, mode: Mode<'a>) -> Self {
        Self { map, size, mode, next: 0, span: None, kept: Vec::new(), keep_extents: 0 }
    }

    /// Keeps the source's answers, up to a bound, for [`Windows::kept`].
    pub fn keeping(self) -> Self {
        Self { keep_extents: KEPT_EXTENTS_MAX, ..self }
    }

    /// The answers that were kept.
    pub fn kept(self) -> Vec<Arc<Span>> {
        self.kept
    }

    /// Takes these answers, of the same disk in the same mode, before it asks.
    pub fn knowing(self, kept: Vec<Arc<Span>>) -> Self {
        Self { kept, ..self }
    }

    /// The next window's plan with what the parent holds there; none at the end of the disk.
    pub fn next(&mut self) -> Result<Option<(Plan, Option<KnownBlocks>)>> {
        let blocks_end = Extent::whole(self.size).to_blocks().end().0;
        if self.next >= blocks_end {
            return Ok(None);
        }
        let end = self.next.saturating_add(WINDOW_BYTES).min(blocks_end);
        let window = Extent::between(ByteOffset(self.next), ByteOffset(end));
        self.next = end;
        let known = self.parent(window)?;
        let parent = match (&known, self.mode.parent()) {
            (Some(known), _) => Parent::Known(&known.known),
            (None, Some(_)) => Parent::Zero,
            (None, None) => Parent::None,
        };
        let size = self.size;
        let span = self.span(window)?;
        let range = plan::on_disk(window, size);
        let from = span.allocation.partition_point(|mapped| mapped.extent.end() <= range.start());
        let allocation: Vec<MappedExtent> = span.allocation[from..]
            .iter()
            .take_while(|mapped| mapped.extent.start() < range.end())
            .map(|mapped| MappedExtent { extent: mapped.extent.intersect(range), ..*mapped })
            .collect();
        let changed = span.changed.as_ref().map(|changed| changed.within(window));
        Ok(Some((plan::window(window, size, &allocation, changed.as_ref(), parent), known)))
    }

    fn span(&mut self, window: Extent) -> Result<Arc<Span>> {
        let range = plan::on_disk(window, self.size);
        let holds = |span: &&Arc<Span>| span.extent.contains(range);
        let span = match self.span.iter().chain(&self.kept).find(holds) {
            Some(span) => span.clone(),
            None => self.ask(range)?,
        };
        self.span = Some(span.clone());
        Ok(span)
    }

    fn ask(&mut self, range: Extent) -> Result<Arc<Span>> {
        let end = range.start().0.saturating_add(SPAN_BYTES).min(self.size.0);
        let extent = Extent::between(range.start(), ByteOffset(end));
        let changed = match self.mode {
            Mode::Tracked { changes, .. } => Some(changes.changed(extent)?),
            Mode::Full | Mode::Compare { .. } => None,
        };
        let span = Arc::new(Span { extent, allocation: self.map.allocation(extent)?, changed });
        let extents = span.allocation.len() + span.changed.as_ref().map_or(0, |changed| changed.as_slice().len());
        if let Some(left) = self.keep_extents.checked_sub(extents) {
            self.keep_extents = left;
            self.kept.push(span.clone());
        }
        Ok(span)
    }

    fn parent(&self, window: Extent) -> Result<Option<KnownBlocks>> {
        let Some(parent) = self.mode.parent() else { return Ok(None) };
        let first = BlockIndex::holding(window.start());
        let count = window.len().0 / BLOCK_BYTES;
        if parent.next_data(first, BlockIndex(first.0 + count))?.is_none() {
            return Ok(None);
        }
        let mut known = vec![Known::Zero; count as usize];
        parent.known(first, &mut known)?;
        Ok(Some(KnownBlocks { first, known: known.into() }))
    }
}

/// Cuts the plans into chunks. Lanes share it behind a mutex.
pub(super) struct Feed<'a> {
    windows: Windows<'a>,
    request_bytes: u64,
    steps: std::vec::IntoIter<Step>,
    rest: Option<Step>,
    known: Option<KnownBlocks>,
}

impl<'a> Feed<'a> {
    pub fn new(windows: Windows<'a>, request_bytes: usize) -> Self {
        Self { windows, request_bytes: request_bytes as u64, steps: Vec::new().into_iter(), rest: None, known: None }
    }

    /// The next chunk; none at the end. The plan's doubts are not looked at here: `survey` has found them before.
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        let step = loop {
            if let Some(step) = self.rest.take().or_else(|| self.steps.next()) {
                break step;
            }
            match self.windows.next()? {
                None => return Ok(None),
                Some((plan, known)) => {
                    self.steps = plan.steps.into_iter();
                    self.known = known;
                }
            }
        };
        let (extent, zero) = match step {
            Step::Read(extent) => (extent, false),
            Step::Zero(extent) => (extent, true),
        };
        let limit = if zero { ZERO_BLOCKS_MAX * BLOCK_BYTES } else { self.request_bytes };
        let cut = ByteOffset(extent.start().0.saturating_add(limit).min(extent.end().0));
        let rest = Extent::between(cut, extent.end());
        if !rest.is_empty() {
            self.rest = Some(if zero { Step::Zero(rest) } else { Step::Read(rest) });
        }
        Ok(Some(Chunk { extent: Extent::between(extent.start(), cut), zero, known: self.known.clone() }))
    }
}
