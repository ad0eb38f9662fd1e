//! A writable copy-on-write device over a read-only one: the disk of a machine that was recovered in an instant.
//!
//! What lives here: [`Overlay`], its folder (`folder`), which blocks it holds (`states`), and how that survives a crash
//! (`journal`) and a kill (`live`). What does not: what the base is, who serves the device, and when the folder goes. The files are described
//! in `docs/formats.md`.
//!
//! A block is *base* (read from the base), *data* (in the data file at its own place) or *zero*. Writing to a block that is
//! not data fills the rest of it first, so that the data file alone has all of a data block.
//!
//! Invariant, and what a crash leaves: the journal on stable storage calls a block data only when all 64 KiB of it were
//! made durable before. Hence after a kill, a power loss, and an opening anew, each sector of 512 bytes holds what it held
//! at the last successful flush or something that was written to it since, as on any disk with a write cache; never bytes
//! of elsewhere or of before. A kill alone loses no write that was told to be done. Once [`Overlay::open`] has returned, what can be read is durable.
//!
//! ```text
//! flush: take the list of changed groups -> copy their states -> fdatasync data -> append to journal -> fdatasync journal
//! ```
//!
//! Locks, in the order in which they are taken: `journal` (one flush at a time), or turns (one writer per block) and then
//! the pen of `live`; `states` last, never across I/O. Nobody takes both of the first two.

mod folder;
mod journal;
mod live;
mod states;
#[cfg(test)]
mod tests;

use crate::device::{
    AllocationMap, ChangeMap, Content, Disk, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange, check_range,
};
use crate::error::{Error, Kind, Result};
use crate::extent::{Extent, ExtentSet};
use crate::units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, block_count};
use folder::{Blob, Folder, System};
use journal::{BATCH_PAGES_MAX, Draft, Header, Journal};
use live::Live;
use parking_lot::{Mutex, MutexGuard, RwLock};
use states::{GROUP_BLOCKS, State, States};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The longest identity of a base: it shares the journal's first page with the header.
pub const IDENTITY_BYTES_MAX: usize = journal::IDENTITY_BYTES_MAX;

/// Writers of different blocks seldom meet when there are several times as many turns as threads: a server has some
/// dozens of workers at most.
const TURNS: u64 = 64;

/// A copy-on-write device. Memory: 2 bits per block of those 512 MiB stretches that were written to, which is 4 MiB for a
/// terabyte that was written all over, and 64 KiB per thread that writes.
///
/// The size is the base's. A write that finds no room fails with [`Kind::NoSpace`]; everything else stays as it is, and
/// once there is room the same write succeeds. After a flush that failed for another reason the device takes no more
/// writes: open it again.
pub struct Overlay {
    base: Arc<dyn Disk>,
    size: ByteLen,
    data: Arc<dyn Blob>,
    states: RwLock<States>,
    live: Live,
    /// Who changes a block holds its turn, the block's number modulo [`TURNS`].
    turns: Vec<Mutex<()>>,
    journal: Mutex<Commits>,
    /// Flushes begun so far.
    begun: AtomicU64,
    broken: AtomicBool,
    /// Holds the lock on the folder for as long as the device lives.
    folder: Arc<dyn Folder>,
    /// Room that stays free.
    floor: ByteLen,
}

struct Commits {
    journal: Journal,
    /// The number of the last flush that succeeded.
    done: u64,
}

/// How much of the device is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes in blocks of data, the last block counted whole.
    pub data: ByteLen,
    /// Bytes in blocks that became zero, the last block counted whole.
    pub zero: ByteLen,
}

/// Why a flush did not succeed.
enum Failed {
    /// No room; nothing changed, and another flush may succeed.
    Room(Error),
    /// What is on stable storage is not known.
    Final(Error),
}

impl Overlay {
    /// Makes an overlay in a folder that exists and is this overlay's alone. `identity` is what the caller knows the base
    /// by, at most [`IDENTITY_BYTES_MAX`] bytes; opening demands the same.
    ///
    /// Fails with [`Kind::Exists`] when there is an overlay. What a creation that was cut off left behind is used again.
    pub fn create(folder: &Path, base: Arc<dyn Disk>, identity: &[u8]) -> Result<Self> {
        Self::create_in(Arc::new(System::lock(folder)?), base, identity)
            .map_err(|error| error.within(format!("make an overlay in {}", folder.display())))
    }

    /// Opens an overlay over the very base that it was made over: same identity, same size; else [`Kind::Invalid`].
    /// Everything written before the last successful flush is there.
    pub fn open(folder: &Path, base: Arc<dyn Disk>, identity: &[u8]) -> Result<Self> {
        Self::open_in(Arc::new(System::lock(folder)?), base, identity)
            .map_err(|error| error.within(format!("open the overlay in {}", folder.display())))
    }

    /// Removes an overlay's files, and no others; the folder stays. Fails with [`Kind::Unavailable`] while it is open.
    /// What a removal that was cut off left behind goes too.
    pub fn remove(folder: &Path) -> Result<()> {
        System::lock(folder)?
            .clear()
            .map_err(|error| error.within(format!("remove the overlay in {}", folder.display())))
    }

    fn create_in(folder: Arc<dyn Folder>, base: Arc<dyn Disk>, identity: &[u8]) -> Result<Self> {
        let header = Header::new(base.size(), identity)?;
        if folder.open(journal::NAME)?.is_some() {
            return Err(Error::new(Kind::Exists, "there is an overlay"));
        }
        let data = match folder.open(folder::DATA)? {
            // An overlay exists once its journal does, so this was never written to, unless somebody took the journal away.
            Some(data) if data.is_hole()? => data,
            Some(_) => return Err(Error::new(Kind::Corrupt, "an overlay's data is there, but no journal")),
            None => folder.create(folder::DATA)?,
        };
        data.set_len(header.size)?;
        data.sync()?;
        let states = RwLock::new(States::new(block_count(header.size)));
        let journal = Draft::write(&folder, header, &states)?.publish()?;
        Self::assemble(folder, base, data, states, journal)
    }

    fn open_in(folder: Arc<dyn Folder>, base: Arc<dyn Disk>, identity: &[u8]) -> Result<Self> {
        let blob = folder.open(journal::NAME)?.ok_or_else(|| Error::new(Kind::NotFound, "there is no overlay"))?;
        let (header, states) = journal::load(&*blob)?;
        drop(blob);
        header.check_base(base.size(), identity)?;
        let data = folder
            .open(folder::DATA)?
            .ok_or_else(|| Error::new(Kind::Corrupt, "an overlay's journal is there, but no data"))?;
        if data.size() != header.size {
            let context = format!("the overlay's data file has {}; {} are right", data.size(), header.size);
            return Err(Error::new(Kind::Corrupt, context));
        }
        // What a process that was killed had written is visible now; so that it does not vanish later, it is made durable.
        data.sync()?;
        // A new journal forgets the torn end of the old one, whose pages must never be taken for valid once others follow.
        let states = RwLock::new(live::load(&*folder, block_count(header.size))?.unwrap_or(states));
        let journal = Draft::write(&folder, header.next(), &states)?.publish()?;
        Self::assemble(folder, base, data, states, journal)
    }

    fn assemble(
        folder: Arc<dyn Folder>,
        base: Arc<dyn Disk>,
        data: Arc<dyn Blob>,
        states: RwLock<States>,
        journal: Journal,
    ) -> Result<Self> {
        let live = Live::begin(&*folder, block_count(base.size()), &states)?;
        Ok(Self {
            size: base.size(),
            base,
            data,
            states,
            live,
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
            journal: Mutex::new(Commits { journal, done: 0 }),
            begun: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            folder,
            floor: ByteLen(0),
        })
    }

    /// Leaves so much room free on the file system: a write that would take from it fails with [`Kind::NoSpace`].
    #[must_use]
    pub fn with_floor(self, floor: ByteLen) -> Self {
        Self { floor, ..self }
    }

    fn check_room(&self) -> Result<()> {
        if self.floor.0 == 0 {
            return Ok(());
        }
        let available = self.folder.available()?;
        match available.0 >= self.floor.0.saturating_add(BLOCK_BYTES) {
            true => Ok(()),
            false => {
                let context = format!("{available} are free where the overlay lies, and {} stay so", self.floor);
                Err(Error::new(Kind::NoSpace, context))
            }
        }
    }

    /// How much was written since the overlay was made, whether flushed or not.
    pub fn held(&self) -> Held {
        let (data, zero) = self.states.read().counts();
        // Blocks lie inside the device, whose size is a number of bytes.
        let bytes = |blocks: u64| ByteLen(blocks.saturating_mul(BLOCK_BYTES));
        Held { data: bytes(data), zero: bytes(zero) }
    }

    fn usable(&self) -> Result<()> {
        match self.broken.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::new(Kind::Io, "the overlay was given up when a flush failed; open it again")),
        }
    }

    fn check(&self, range: Extent) -> Result<()> {
        check_range("the overlay", self.size, range.start(), usize::try_from(range.len().0).unwrap_or(usize::MAX))
    }

    fn turn(&self, block: u64) -> MutexGuard<'_, ()> {
        self.turns[(block % TURNS) as usize].lock()
    }

    /// The bytes of some blocks, as far as the device has them.
    fn extent_of(&self, blocks: &Range<u64>) -> Extent {
        let (start, end) = (BlockIndex(blocks.start).offset(), BlockIndex(blocks.end).offset());
        Extent::between(start, end).intersect(Extent::whole(self.size))
    }

    /// What a range holds, as ranges of bytes of the same state.
    fn runs(&self, within: Extent) -> Vec<(Extent, State)> {
        if within.is_empty() {
            return Vec::new();
        }
        let runs = self.states.read().runs(blocks_of(within));
        runs.into_iter().map(|(blocks, state)| (self.extent_of(&blocks).intersect(within), state)).collect()
    }

    /// Changes bytes of one block; `None` are zeros.
    fn write_piece(&self, piece: Extent, bytes: Option<&[u8]>) -> Result<()> {
        let block = BlockIndex::holding(piece.start()).0;
        let whole = self.extent_of(&(block..block + 1));
        let _turn = self.turn(block);
        let state = self.states.read().get(block);
        if state == State::Zero && bytes.is_none() {
            return Ok(());
        }
        if state != State::Data {
            self.check_room()?;
        }
        let (at, bytes) = match (state, bytes) {
            (State::Data, Some(bytes)) => (piece.start(), Cow::Borrowed(bytes)),
            // A piece lies inside its block, so this and what follows is at most 64 KiB.
            (State::Data, None) => (piece.start(), Cow::Owned(vec![0; piece.len().0 as usize])),
            (_, Some(bytes)) if piece == whole => (whole.start(), Cow::Borrowed(bytes)),
            (_, bytes) => {
                let mut filled = vec![0; whole.len().0 as usize];
                if state == State::Base {
                    self.base.read_at(whole.start(), &mut filled)?;
                }
                let start = (piece.start().0 - whole.start().0) as usize;
                let place = &mut filled[start..start + piece.len().0 as usize];
                match bytes {
                    Some(bytes) => place.copy_from_slice(bytes),
                    None => place.fill(0),
                }
                (whole.start(), Cow::Owned(filled))
            }
        };
        if let Err(error) = self.data.write_at(at, &bytes) {
            if state != State::Data {
                // The block stays what it was, and the room it took is given back where that is possible.
                let _ = self.data.punch(whole);
            }
            return Err(error);
        }
        if state != State::Data {
            self.live.set(&self.states, block..block + 1, State::Data)?;
        }
        Ok(())
    }

    /// Flags whole blocks, of one group at most, as zero.
    fn zero_blocks(&self, blocks: Range<u64>) -> Result<()> {
        let _turns: Vec<_> = match blocks.end - blocks.start {
            1 => vec![self.turn(blocks.start)],
            // In rising order, as everybody does who takes more than one.
            _ => self.turns.iter().map(Mutex::lock).collect(),
        };
        let before = self.states.read().runs(blocks.clone());
        self.live.set(&self.states, blocks, State::Zero)?;
        for (run, state) in before {
            if state == State::Data
                && let Err(error) = self.data.punch(self.extent_of(&run))
            {
                // The flag alone makes the blocks read as zeros; only their room is not given back.
                tracing::debug!(reason = crate::error::chain(&error), "no hole was made in an overlay's data");
            }
        }
        Ok(())
    }

    /// Makes what was changed durable. Groups are taken off the list of changed ones before their states are copied, and
    /// these before the data is synced: whatever changes meanwhile is on the list again.
    fn commit(&self, journal: &mut Journal) -> Result<(), Failed> {
        let changed = self.states.write().take_changed();
        let outcome = self.commit_groups(journal, &changed);
        if outcome.is_err() {
            self.states.write().put_back(changed);
        }
        outcome
    }

    fn commit_groups(&self, journal: &mut Journal, changed: &BTreeSet<u64>) -> Result<(), Failed> {
        if changed.is_empty() {
            return self.data.sync().map_err(Failed::Final);
        }
        let many = changed.len() > BATCH_PAGES_MAX;
        if many || journal.is_long() {
            match Draft::write(journal.folder(), journal.header().next(), &self.states) {
                Ok(draft) => {
                    self.data.sync().map_err(Failed::Final)?;
                    *journal = draft.publish().map_err(Failed::Final)?;
                    return Ok(());
                }
                // The journal that is there may have room for a few pages yet.
                Err(error) if error.kind == Kind::NoSpace && !many => {}
                Err(error) => return Err(by_kind(error)),
            }
        }
        let pages = journal.pages_of(changed, &self.states);
        self.data.sync().map_err(Failed::Final)?;
        journal.append(&pages).map_err(by_kind)?;
        journal.sync().map_err(Failed::Final)
    }
}

fn by_kind(error: Error) -> Failed {
    if error.kind == Kind::NoSpace { Failed::Room(error) } else { Failed::Final(error) }
}

fn blocks_of(range: Extent) -> Range<u64> {
    let blocks = range.to_blocks();
    // Inside a device, rounding up does not saturate before the division.
    blocks.start().0 / BLOCK_BYTES..blocks.end().0.div_ceil(BLOCK_BYTES)
}

impl ReadAt for Overlay {
    fn size(&self) -> ByteLen {
        self.size
    }

    /// Takes no turn: whoever reads what is being written gets old or new bytes.
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        check_range("the overlay", self.size, at, buf.len())?;
        let range = Extent::between(at, ByteOffset(at.0 + buf.len() as u64));
        let mut rest = buf;
        for (extent, state) in self.runs(range) {
            // The runs cover the range, so together they are as long as the buffer.
            let (part, after) = rest.split_at_mut(extent.len().0 as usize);
            match state {
                State::Base => self.base.read_at(extent.start(), part)?,
                State::Data => self.data.read_at(extent.start(), part)?,
                State::Zero => part.fill(0),
            }
            rest = after;
        }
        Ok(())
    }
}

impl WriteAt for Overlay {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        check_range("the overlay", self.size, at, data.len())?;
        self.usable()?;
        let mut rest = data;
        for piece in Extent::between(at, ByteOffset(at.0 + data.len() as u64)).pieces(ByteLen(BLOCK_BYTES)) {
            let (part, after) = rest.split_at(piece.len().0 as usize);
            self.write_piece(piece, Some(part))?;
            rest = after;
        }
        Ok(())
    }
}

impl ZeroRange for Overlay {
    /// Whole blocks become a flag, and their data a hole; parts of blocks are written.
    fn zero_range(&self, range: Extent) -> Result<()> {
        self.check(range)?;
        self.usable()?;
        for stretch in range.pieces(ByteLen(GROUP_BLOCKS * BLOCK_BYTES)) {
            let at_end = stretch.end().0 == self.size.0;
            let end = if at_end { stretch.end().0.div_ceil(BLOCK_BYTES) } else { stretch.end().0 / BLOCK_BYTES };
            let whole = stretch.start().0.div_ceil(BLOCK_BYTES)..end;
            let covered = match whole.is_empty() {
                true => Extent::between(stretch.end(), stretch.end()),
                false => self.extent_of(&whole),
            };
            for part in
                [Extent::between(stretch.start(), covered.start()), Extent::between(covered.end(), stretch.end())]
            {
                for piece in part.pieces(ByteLen(BLOCK_BYTES)) {
                    self.write_piece(piece, None)?;
                }
            }
            if !whole.is_empty() {
                self.zero_blocks(whole)?;
            }
        }
        Ok(())
    }
}

impl Flush for Overlay {
    /// Durable is what was written before the call. Callers that wait for each other share a flush.
    fn flush(&self) -> Result<()> {
        let arrived = self.begun.load(Ordering::SeqCst);
        let mut commits = self.journal.lock();
        if commits.done > arrived {
            // While we waited, a flush began and succeeded.
            return Ok(());
        }
        self.usable()?;
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        match self.commit(&mut commits.journal) {
            Ok(()) => {
                commits.done = number;
                Ok(())
            }
            Err(Failed::Room(error)) => Err(error.within("flush the overlay")),
            Err(Failed::Final(error)) => {
                self.broken.store(true, Ordering::SeqCst);
                tracing::error!(reason = crate::error::chain(&error), "an overlay was given up: its flush failed");
                Err(error.within("flush the overlay"))
            }
        }
    }
}

impl AllocationMap for Overlay {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        self.check(within)?;
        let mut map = Vec::new();
        for (extent, state) in self.runs(within) {
            match state {
                State::Base => map.extend(self.base.allocation(extent)?),
                State::Data => map.push(MappedExtent { extent, content: Content::Data }),
                State::Zero => map.push(MappedExtent { extent, content: Content::Zero }),
            }
        }
        Ok(map)
    }
}

impl ChangeMap for Overlay {
    /// Whole blocks that were written or zeroed since the overlay was made, even to what they held before.
    fn changed(&self, within: Extent) -> Result<ExtentSet> {
        self.check(within)?;
        Ok(self.runs(within).into_iter().filter(|(_, state)| *state != State::Base).map(|(extent, _)| extent).collect())
    }
}
