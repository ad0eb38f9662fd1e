//! What ranges hold and what changed: block status requests.
//!
//! What lives here: one loop over `NBD_CMD_BLOCK_STATUS` ("Metadata querying"), [`AllocationMap`] for the client, and
//! [`DirtyBitmap`]. What does not: connections. Invariant: an answer covers the whole window; what the server does not
//! tell counts as data, and as an error where a bitmap was asked for.

use super::client::{Client, Shared};
use super::connection::{Body, Call};
use super::frame::{Command, DIRTY_BITMAP_DIRTY, allocation, protocol};
use super::reply::Descriptor;
use crate::device::{AllocationMap, ChangeMap, Content, MappedExtent, check_range};
use crate::error::Result;
use crate::extent::{Extent, ExtentSet};
use crate::units::{ByteLen, ByteOffset};
use std::sync::Arc;

/// The context that tells holes from data.
pub(super) const BASE_ALLOCATION: &str = "base:allocation";

/// One request asks about at most 1 GiB: a thousand round trips for a disk of 1 TiB, and positive in servers that keep
/// lengths in signed 32-bit numbers.
const WINDOW_BYTES: u64 = 1 << 30;

impl Shared {
    /// Calls `found` with ranges that follow each other and cover `within`, and the context's flags there.
    fn status(&self, context: &str, within: Extent, mut found: impl FnMut(Extent, u32)) -> Result<()> {
        let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
        check_range(&self.name, self.size(), within.start(), len)?;
        let aligned = self.align_out(within);
        let (mut at, end) = (aligned.start().0, aligned.end().0);
        while at < end {
            let len = (end - at).min(WINDOW_BYTES) as u32;
            for descriptor in self.ask_status(context, at, len)? {
                let next = at + u64::from(descriptor.len);
                let extent = Extent::between(ByteOffset(at), ByteOffset(next)).intersect(within);
                if !extent.is_empty() {
                    found(extent, descriptor.flags);
                }
                at = next;
            }
        }
        Ok(())
    }

    /// At least one descriptor: `reply` refuses empty ones, so that each request gets further.
    fn ask_status(&self, context: &str, offset: u64, len: u32) -> Result<Vec<Descriptor>> {
        self.attempt(|connection| {
            let number = connection.export().contexts.get(context).copied();
            let mut found = Vec::new();
            let body = Body::Status(&mut found);
            connection.run(&mut [Call { command: Command::BlockStatus, flags: 0, offset, len, body }])?;
            let ours = found.into_iter().find(|(id, _)| Some(*id) == number);
            ours.map(|(_, descriptors)| descriptors).ok_or_else(|| {
                protocol(format!("block status reply says nothing about {context:?}")).at(ByteOffset(offset))
            })
        })
    }
}

impl AllocationMap for Client {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let shared = self.shared();
        let mut map: Vec<MappedExtent> = Vec::new();
        let mut push = |extent: Extent, content| match map.last_mut().filter(|last| last.content == content) {
            Some(last) => last.extent = Extent::between(last.extent.start(), extent.end()),
            None => map.push(MappedExtent { extent, content }),
        };
        if within.is_empty() {
            return Ok(map);
        }
        if !self.has_context(BASE_ALLOCATION) {
            let len = usize::try_from(within.len().0).unwrap_or(usize::MAX);
            check_range(&shared.name, shared.size(), within.start(), len)?;
            push(within, Content::Data);
            return Ok(map);
        }
        // A hole without the zero flag may read as anything.
        let content = |flags| if flags & allocation::ZERO != 0 { Content::Zero } else { Content::Data };
        shared.status(BASE_ALLOCATION, within, |extent, flags| push(extent, content(flags)))?;
        Ok(map)
    }
}

/// A dirty bitmap of a QEMU export: what changed since it was made.
#[derive(Clone)]
pub struct DirtyBitmap {
    shared: Arc<Shared>,
    context: String,
}

impl DirtyBitmap {
    pub(super) fn new(shared: Arc<Shared>, context: String) -> Self {
        Self { shared, context }
    }

    /// The context's name, such as `qemu:dirty-bitmap:NAME`.
    pub fn context(&self) -> &str {
        &self.context
    }
}

impl ChangeMap for DirtyBitmap {
    fn changed(&self, within: Extent) -> Result<ExtentSet> {
        let mut set = ExtentSet::new();
        if within.is_empty() {
            return Ok(set);
        }
        self.shared.status(&self.context, within, |extent, flags| {
            if flags & DIRTY_BITMAP_DIRTY != 0 {
                set.insert(extent);
            }
        })?;
        Ok(set)
    }
}

impl Shared {
    fn align_out(&self, range: Extent) -> Extent {
        let step = u64::from(self.export.blocks.minimum);
        let end = range.end().0.checked_next_multiple_of(step).unwrap_or(u64::MAX);
        Extent::between(ByteOffset(range.start().0 / step * step), ByteOffset(end.min(self.size().0)))
    }

    /// The export's size.
    pub(super) fn size(&self) -> ByteLen {
        self.export.size
    }
}
