//! The journal: which states were made durable, as pages that only ever follow each other.
//!
//! What lives here: the format (a page of header, pages of one group each; the last page of a group counts), reading it,
//! appending, and beginning a new journal in the place of a long one. What does not: when data is synced (the caller's
//! `commit`). Invariant: a page that was synced is either found again or its loss is reported; only pages of the last
//! append, which nobody was told of, are ignored when they are torn.

use super::folder::{Blob, Folder};
use super::states::{GROUP_BLOCKS, GROUP_BYTES, Group, States};
use crate::digest::{DIGEST_BYTES, Digest};
use crate::error::{Error, Kind, Result};
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset, block_count};
use parking_lot::RwLock;
use std::sync::Arc;

/// The journal's name.
pub(super) const NAME: &str = "journal";
/// The name of one that is not complete yet.
pub(super) const NEW: &str = "journal.new";

/// A page: no less than what disks write at once, so that writing a page that is cut off harms no other.
pub(super) const PAGE: usize = 4096;
/// Pages appended by one flush: 1 MiB. More changed groups begin a new journal, which is written as a stream.
pub(super) const BATCH_PAGES_MAX: usize = 256;
/// What follows the fields of the header in its page.
pub(super) const IDENTITY_BYTES_MAX: usize = 1024;

const MAGIC: &[u8; 8] = b"SENDOVLY";
const VERSION: u32 = 1;
const IDENTITY_AT: usize = 64;
const STATES_AT: usize = 32;
const DIGEST_AT: usize = PAGE - DIGEST_BYTES;
const _: () = assert!(IDENTITY_AT + IDENTITY_BYTES_MAX <= DIGEST_AT && STATES_AT + GROUP_BYTES <= DIGEST_AT);

type Page = [u8; PAGE];

/// What a journal says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) size: ByteLen,
    pub(super) identity: Vec<u8>,
    /// Counts the journals that this overlay had; pages of another one are no pages of this.
    generation: u64,
    /// Pages it was begun with, besides the header.
    begun_with: u64,
}

impl Header {
    /// The header of the first journal.
    pub(super) fn new(size: ByteLen, identity: &[u8]) -> Result<Self> {
        if identity.len() > IDENTITY_BYTES_MAX {
            let context = format!("identity of {} bytes; {IDENTITY_BYTES_MAX} are possible", identity.len());
            return Err(Error::new(Kind::Invalid, context));
        }
        if i64::try_from(size.0).is_err() {
            return Err(Error::new(Kind::Invalid, format!("a disk of {size}; files have at most 2^63 - 1")));
        }
        Ok(Self { size, identity: identity.to_vec(), generation: 1, begun_with: 0 })
    }

    /// The header of the journal that follows.
    pub(super) fn next(&self) -> Self {
        // It would take 2^64 new journals to come round.
        Self { generation: self.generation.wrapping_add(1), begun_with: 0, ..self.clone() }
    }

    /// Whether this is the base that the overlay was made over.
    pub(super) fn check_base(&self, size: ByteLen, identity: &[u8]) -> Result<()> {
        if self.identity != identity {
            return Err(Error::new(Kind::Invalid, "the overlay was made over another base"));
        }
        if self.size != size {
            let context = format!("the overlay was made over a base of {}; this one has {size}", self.size);
            return Err(Error::new(Kind::Invalid, context));
        }
        Ok(())
    }

    fn encode(&self) -> Page {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(MAGIC);
        put_u32(&mut page, 8, VERSION);
        put_u32(&mut page, 12, BLOCK_BYTES as u32);
        put_u32(&mut page, 16, GROUP_BLOCKS as u32);
        put_u32(&mut page, 20, PAGE as u32);
        put_u64(&mut page, 24, self.size.0);
        put_u64(&mut page, 32, self.generation);
        put_u64(&mut page, 40, self.begun_with);
        // At most `IDENTITY_BYTES_MAX`.
        put_u32(&mut page, 48, self.identity.len() as u32);
        page[IDENTITY_AT..IDENTITY_AT + self.identity.len()].copy_from_slice(&self.identity);
        seal(&mut page);
        page
    }

    fn decode(page: &Page) -> Result<Self> {
        if &page[..8] != MAGIC {
            return Err(Error::new(Kind::Corrupt, "this is no journal of an overlay"));
        }
        let version = get_u32(page, 8);
        if version != VERSION {
            let context = format!("an overlay's journal of version {version}; this program knows {VERSION}");
            return Err(Error::new(Kind::Unsupported, context));
        }
        let damaged = || Error::new(Kind::Corrupt, "the header of an overlay's journal is damaged");
        let layout = [get_u32(page, 12), get_u32(page, 16), get_u32(page, 20)];
        if !is_sealed(page) || layout != [BLOCK_BYTES as u32, GROUP_BLOCKS as u32, PAGE as u32] {
            return Err(damaged());
        }
        let len = usize::try_from(get_u32(page, 48)).unwrap_or(usize::MAX);
        let identity = page[IDENTITY_AT..DIGEST_AT].get(..len).filter(|_| len <= IDENTITY_BYTES_MAX);
        let size = ByteLen(get_u64(page, 24));
        let header = Self::new(size, identity.ok_or_else(damaged)?)?;
        Ok(Self { generation: get_u64(page, 32), begun_with: get_u64(page, 40), ..header })
    }
}

/// A page with a group's states.
struct Entry<'a> {
    /// Pages that were on stable storage when this one was written, the header included.
    synced: u64,
    group: u64,
    states: &'a Group,
}

fn encode_entry(header: &Header, number: u64, entry: &Entry<'_>, page: &mut Page) {
    page.fill(0);
    put_u64(page, 0, header.generation);
    put_u64(page, 8, number);
    put_u64(page, 16, entry.synced);
    put_u64(page, 24, entry.group);
    page[STATES_AT..STATES_AT + GROUP_BYTES].copy_from_slice(entry.states);
    seal(page);
}

fn decode_entry<'a>(header: &Header, number: u64, page: &'a Page) -> Option<Entry<'a>> {
    if !is_sealed(page) || get_u64(page, 0) != header.generation || get_u64(page, 8) != number {
        return None;
    }
    let states = page[STATES_AT..].first_chunk()?;
    Some(Entry { synced: get_u64(page, 16), group: get_u64(page, 24), states })
}

/// Reads a journal from its beginning to its end, or to where it is torn. Memory: the states, and a page.
pub(super) fn load(blob: &dyn Blob) -> Result<(Header, States)> {
    let lost = |number: u64| {
        let context = format!("page {number} of an overlay's journal is damaged: which blocks it holds is not known");
        Err(Error::new(Kind::Corrupt, context))
    };
    let total = blob.size().0 / PAGE as u64;
    let mut page = [0; PAGE];
    let read = |number: u64, page: &mut Page| blob.read_at(ByteOffset(number * PAGE as u64), page);
    if total == 0 {
        return Err(Error::new(Kind::Corrupt, "an overlay's journal has no header"));
    }
    read(0, &mut page)?;
    let header = Header::decode(&page)?;
    let mut states = States::new(block_count(header.size));
    let mut number = 1;
    while number < total {
        read(number, &mut page)?;
        let Some(entry) = decode_entry(&header, number, &page) else { break };
        if states.load(entry.group, entry.states).is_err() {
            return lost(number);
        }
        number += 1;
    }
    // The pages it was begun with were synced before it had its name.
    if number.saturating_sub(1) < header.begun_with {
        return lost(number);
    }
    // One append is all that can be torn: more pages follow only what was synced.
    if total - number > BATCH_PAGES_MAX as u64 {
        return lost(number);
    }
    for later in number + 1..total {
        read(later, &mut page)?;
        if decode_entry(&header, later, &page).is_some_and(|entry| entry.synced > number) {
            return lost(number);
        }
    }
    Ok((header, states))
}

/// A journal that is written, but neither durable nor in its place yet.
pub(super) struct Draft {
    journal: Journal,
}

impl Draft {
    /// Writes a journal of all states, beside the one that is there. Takes the list of changed groups to be its own: the
    /// caller has emptied it before. Fails without leaving a file.
    pub(super) fn write(folder: &Arc<dyn Folder>, header: Header, states: &RwLock<States>) -> Result<Self> {
        // One that a process left that died here.
        folder.remove(NEW)?;
        let draft = Self::write_pages(folder, header, states);
        if draft.is_err() {
            let _ = folder.remove(NEW);
        }
        draft
    }

    fn write_pages(folder: &Arc<dyn Folder>, mut header: Header, states: &RwLock<States>) -> Result<Self> {
        let blob = folder.create(NEW)?;
        // Groups that come into being from here on are on the list of changed ones.
        let numbers = states.read().numbers();
        header.begun_with = numbers.len() as u64;
        let mut journal = Journal { folder: folder.clone(), blob, header, pages: 1, synced: 1 };
        // What it grows by before the next one is begun: a flush shall find room.
        let room = journal.pages_max().saturating_mul(PAGE as u64);
        journal.blob.reserve(ByteLen(room));
        journal.blob.write_at(ByteOffset(0), &journal.header.encode())?;
        for some in numbers.chunks(BATCH_PAGES_MAX) {
            let pages = journal.pages_of(some, states);
            journal.append(&pages)?;
        }
        Ok(Self { journal })
    }

    /// Makes it durable and puts it in the place of the one that was there.
    pub(super) fn publish(mut self) -> Result<Journal> {
        self.journal.sync()?;
        self.journal.folder.rename(NEW, NAME)?;
        self.journal.folder.sync()?;
        Ok(self.journal)
    }
}

/// The journal that is being written.
pub(super) struct Journal {
    folder: Arc<dyn Folder>,
    blob: Arc<dyn Blob>,
    header: Header,
    pages: u64,
    synced: u64,
}

impl Journal {
    pub(super) const fn folder(&self) -> &Arc<dyn Folder> {
        &self.folder
    }

    pub(super) const fn header(&self) -> &Header {
        &self.header
    }

    /// True when a new one should be begun: it has doubled, so that what is written for new ones is no more than what was
    /// appended; and the first is not shorter than 1 MiB, so that small ones are not begun anew all the time.
    pub(super) fn is_long(&self) -> bool {
        self.pages >= self.pages_max()
    }

    fn pages_max(&self) -> u64 {
        1 + self.header.begun_with + self.header.begun_with.max(BATCH_PAGES_MAX as u64)
    }

    /// The pages to append for groups, as their states are now.
    pub(super) fn pages_of<'a>(&self, groups: impl IntoIterator<Item = &'a u64>, states: &RwLock<States>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut page = [0; PAGE];
        for (group, number) in groups.into_iter().zip(self.pages..) {
            let entry = Entry { synced: self.synced, group: *group, states: &states.read().group(*group) };
            encode_entry(&self.header, number, &entry, &mut page);
            bytes.extend_from_slice(&page);
        }
        bytes
    }

    /// Appends pages. When there is no room for them, the journal ends where it did.
    pub(super) fn append(&mut self, pages: &[u8]) -> Result<()> {
        let end = self.pages * PAGE as u64;
        if let Err(error) = self.blob.write_at(ByteOffset(end), pages) {
            // Should this fail too, the journal is given up, for its end is not known.
            let cut = self.blob.set_len(ByteLen(end));
            cut.map_err(|error| Error::new(Kind::Io, "cut the journal where it ended before").caused_by(error))?;
            return Err(error);
        }
        self.pages += (pages.len() / PAGE) as u64;
        Ok(())
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.blob.sync()?;
        self.synced = self.pages;
        Ok(())
    }
}

fn seal(page: &mut Page) {
    let digest = Digest::of(&page[..DIGEST_AT]);
    page[DIGEST_AT..].copy_from_slice(&digest.0);
}

fn is_sealed(page: &Page) -> bool {
    Digest::of(&page[..DIGEST_AT]).0 == page[DIGEST_AT..]
}

fn put_u32(page: &mut Page, at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(page: &mut Page, at: usize, value: u64) {
    page[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(page: &Page, at: usize) -> u32 {
    page[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn get_u64(page: &Page, at: usize) -> u64 {
    page[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
