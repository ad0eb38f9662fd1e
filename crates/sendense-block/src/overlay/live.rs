//! What the blocks' states are at this very moment, for the process that comes after one that was killed.
//!
//! A client that is told of a write and then loses the server goes on with the next one, and its next flush covers that
//! write; so a process that dies may lose nothing, flushed or not. What it has written to files is not lost either: it is in
//! the kernel's memory for as long as that runs. So the states are written here at once, and never synced, and
//! are believed only while the same kernel runs. After a power loss the journal alone counts, and the clients on this
//! machine are gone as well.
//!
//! What lives here: that file. What does not: the states themselves. Invariant: a state that is in memory is in the file, or
//! its writer was told of an error and the state is what it was before.

use super::folder::{Blob, Boot, Folder};
use super::states::{GROUP_BLOCKS, GROUP_BYTES, Group, State, States};
use crate::error::Result;
use crate::units::{ByteLen, ByteOffset};
use parking_lot::{Mutex, RwLock};
use std::ops::Range;
use std::sync::Arc;

/// The file's name.
pub(super) const NAME: &str = "live";

const MAGIC: &[u8; 8] = b"SENDLIVE";
const VERSION: u32 = 1;
const HEADER: usize = 4096;
const BOOT_AT: usize = 16;

/// The file, while the overlay is open.
pub(super) struct Live {
    /// None where the kernel cannot be told from another one.
    blob: Option<Arc<dyn Blob>>,
    /// Held while states are changed and written, so that who comes last writes the last ones.
    pen: Mutex<()>,
}

impl Live {
    /// Begins the file anew with what is held. The header comes last: a file without one says nothing.
    pub(super) fn begin(folder: &dyn Folder, blocks: u64, states: &RwLock<States>) -> Result<Self> {
        folder.remove(NAME)?;
        let Some(boot) = folder.boot() else { return Ok(Self { blob: None, pen: Mutex::new(()) }) };
        let blob = folder.create(NAME)?;
        let len = ByteLen(offset_of(blocks.div_ceil(GROUP_BLOCKS)));
        blob.set_len(len)?;
        // A state that finds no room fails a write that had found some for its block.
        blob.reserve(len);
        let numbers = states.read().numbers();
        for number in numbers {
            let group = states.read().group(number);
            blob.write_at(ByteOffset(offset_of(number)), &group)?;
        }
        blob.write_at(ByteOffset(0), &header(&boot))?;
        Ok(Self { blob: Some(blob), pen: Mutex::new(()) })
    }

    /// Changes states of blocks of one group, here and in memory.
    pub(super) fn set(&self, states: &RwLock<States>, blocks: Range<u64>, state: State) -> Result<()> {
        let _pen = self.pen.lock();
        let before = states.read().runs(blocks.clone());
        states.write().set(blocks.clone(), state);
        let Some(blob) = &self.blob else { return Ok(()) };
        let number = blocks.start / GROUP_BLOCKS;
        let group = states.read().group(number);
        let first = number * GROUP_BLOCKS;
        let bytes = ((blocks.start - first) / 4) as usize..((blocks.end - first).div_ceil(4) as usize).min(GROUP_BYTES);
        let at = ByteOffset(offset_of(number) + bytes.start as u64);
        let written = blob.write_at(at, &group[bytes]);
        if written.is_err() {
            let mut states = states.write();
            before.into_iter().for_each(|(run, state)| states.set(run, state));
        }
        written
    }
}

/// What a process of this very kernel left; `None` when there is nothing, or nothing that counts.
pub(super) fn load(folder: &dyn Folder, blocks: u64) -> Result<Option<States>> {
    let (Some(boot), Some(blob)) = (folder.boot(), folder.open(NAME)?) else { return Ok(None) };
    let groups = blocks.div_ceil(GROUP_BLOCKS);
    if blob.size().0 != offset_of(groups) {
        return Ok(None);
    }
    let mut found = [0; HEADER];
    blob.read_at(ByteOffset(0), &mut found)?;
    if found != header(&boot) {
        return Ok(None);
    }
    let mut states = States::new(blocks);
    let mut group: Group = [0; GROUP_BYTES];
    for number in 0..groups {
        blob.read_at(ByteOffset(offset_of(number)), &mut group)?;
        if group == [0; GROUP_BYTES] {
            continue;
        }
        if states.load(number, &group).is_err() {
            tracing::error!(group = number, "what an overlay held when its process was killed cannot be read");
            return Ok(None);
        }
    }
    Ok(Some(states))
}

/// A size is at most 2^63 - 1 bytes, so there are at most 2^34 groups.
const fn offset_of(group: u64) -> u64 {
    HEADER as u64 + group * GROUP_BYTES as u64
}

fn header(boot: &Boot) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[BOOT_AT..BOOT_AT + boot.len()].copy_from_slice(boot);
    header
}
