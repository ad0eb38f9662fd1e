//! A target that says of itself that its restore is unfinished, until it is finished.
//!
//! With the first write the target's first block is replaced by a text, durably; what belongs there is kept in memory and
//! written last, after everything else is on stable storage. Whatever interrupts the restore, the target has no partition
//! table, no boot code and no image header, and whoever looks at it reads why. Nothing lies beside the target, so this
//! holds for block devices and exports too, and a file that is moved away takes its mark along.
//!
//! ```text
//! untouched --first write--> marked (durable) --writes, flush--> marked --finish--> whole, compared
//! ```

use super::differential::Existing;
use crate::device::{AllocationMap, Content, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange, check_range};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use parking_lot::Mutex;

/// What the mark begins with.
pub const MARK: &str = "SENDENSE UNFINISHED RESTORE\n";

/// What any disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// See the module.
pub struct Marked<T> {
    target: T,
    text: String,
    /// What belongs into the first block; none as long as the target is untouched.
    head: Mutex<Option<Vec<u8>>>,
}

impl<T: Existing> Marked<T> {
    /// A target that is untouched as yet. `why` is for whoever finds it unfinished.
    pub fn new(target: T, why: &str) -> Self {
        Self { target, text: format!("{MARK}{why}\n"), head: Mutex::new(None) }
    }

    /// Marks the target now, before something is done to it that is no write.
    pub fn mark(&self) -> Result<()> {
        self.with_head(|_| ())
    }

    /// The target itself.
    pub fn inner(&self) -> &T {
        &self.target
    }

    /// Puts the first block in its place when everything else is durable, and looks whether it is there. An untouched
    /// target stays so.
    pub fn finish(self) -> Result<()> {
        let Some(head) = self.head.into_inner() else { return Ok(()) };
        self.target.flush()?;
        // The target may have been cut since it was marked.
        let head = &head[..head.len().min(usize::try_from(self.target.size().0).unwrap_or(usize::MAX))];
        // The first sector, which bears the mark, comes last: devices write a sector whole or not at all, not a block.
        let (first, rest) = head.split_at(head.len().min(SECTOR_BYTES));
        if !rest.is_empty() {
            self.target.write_at(ByteOffset(first.len() as u64), rest)?;
            self.target.flush()?;
        }
        self.target.write_at(ByteOffset(0), first)?;
        self.target.flush()?;
        let mut found = vec![0; head.len()];
        self.target.forget(Extent::whole(ByteLen(head.len() as u64)));
        self.target.read_at(ByteOffset(0), &mut found)?;
        if found != head {
            let context = "the target does not give back what was written to it";
            return Err(Error::new(Kind::Corrupt, context).at(ByteOffset(0)));
        }
        Ok(())
    }

    /// What the first block holds. Bad sectors of it are lost, and heal when they are written to.
    fn read_head(&self, head: &mut [u8]) -> Result<()> {
        match self.target.read_at(ByteOffset(0), head) {
            Err(error) if error.kind == Kind::Io => {}
            read => return read,
        }
        for (sector, at) in head.chunks_mut(SECTOR_BYTES).zip((0..).step_by(SECTOR_BYTES)) {
            match self.target.read_at(ByteOffset(at), sector) {
                Err(error) if error.kind == Kind::Io => sector.fill(0),
                read => read?,
            }
        }
        Ok(())
    }

    fn with_head<R>(&self, act: impl FnOnce(&mut Vec<u8>) -> R) -> Result<R> {
        let mut held = self.head.lock();
        if held.is_none() {
            let len = self.target.size().0.min(BLOCK_BYTES) as usize;
            let mut head = vec![0; len];
            self.read_head(&mut head)?;
            let mut mark = self.text.clone().into_bytes();
            mark.resize(len, 0);
            self.target.write_at(ByteOffset(0), &mark)?;
            self.target.flush()?;
            *held = Some(head);
        }
        Ok(act(held.as_mut().expect("it was filled above")))
    }
}

/// The part of a range that lies in the first block, and the rest.
fn split(at: ByteOffset, len: usize) -> usize {
    usize::try_from(BLOCK_BYTES.saturating_sub(at.0)).unwrap_or(usize::MAX).min(len)
}

impl<T: Existing> ReadAt for Marked<T> {
    fn size(&self) -> ByteLen {
        self.target.size()
    }

    /// The first block as it will be, not the mark.
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.target.read_at(at, buf)?;
        let in_head = split(at, buf.len());
        if in_head > 0
            && let Some(head) = &*self.head.lock()
        {
            // The target was long enough for the read; it may have been shorter when it was marked.
            let start = (at.0 as usize).min(head.len());
            let end = (at.0 as usize + in_head).min(head.len());
            buf[..end - start].copy_from_slice(&head[start..end]);
        }
        Ok(())
    }
}

impl<T: Existing> WriteAt for Marked<T> {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let (in_head, rest) = data.split_at(split(at, data.len()));
        check_range("the target", self.size(), at, data.len())?;
        self.with_head(|head| {
            if !in_head.is_empty() {
                let (start, end) = (at.0 as usize, at.0 as usize + in_head.len());
                head.resize(head.len().max(end), 0);
                head[start..end].copy_from_slice(in_head);
            }
        })?;
        if rest.is_empty() { Ok(()) } else { self.target.write_at(ByteOffset(at.0 + in_head.len() as u64), rest) }
    }
}

impl<T: Existing> ZeroRange for Marked<T> {
    fn zero_range(&self, range: Extent) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let cut = ByteOffset(range.end().0.min(BLOCK_BYTES).max(range.start().0));
        let in_head = Extent::between(range.start(), cut);
        if in_head.is_empty() {
            self.mark()?;
        } else {
            // At most a block.
            self.write_at(in_head.start(), &vec![0; in_head.len().0 as usize])?;
        }
        let rest = Extent::between(cut, range.end());
        if rest.is_empty() { Ok(()) } else { self.target.zero_range(rest) }
    }
}

impl<T: Existing> Flush for Marked<T> {
    fn flush(&self) -> Result<()> {
        self.target.flush()
    }
}

impl<T: Existing> AllocationMap for Marked<T> {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        let map = self.target.allocation(within)?;
        if within.start().0 >= BLOCK_BYTES || self.head.lock().is_none() {
            return Ok(map);
        }
        // What will be in the first block is in memory: it must be read to be known.
        let cut = ByteOffset(within.end().0.min(BLOCK_BYTES));
        let head = MappedExtent { extent: Extent::between(within.start(), cut), content: Content::Data };
        let rest = Extent::between(cut, within.end());
        let below = map.into_iter().map(|m| MappedExtent { extent: m.extent.intersect(rest), ..m });
        Ok(std::iter::once(head).chain(below.filter(|m| !m.extent.is_empty())).collect())
    }
}

impl<T: Existing> Existing for Marked<T> {
    fn forget(&self, range: Extent) {
        self.target.forget(range);
    }
}

impl<T: Existing + ?Sized> Existing for &T {
    fn forget(&self, range: Extent) {
        (**self).forget(range);
    }
}
