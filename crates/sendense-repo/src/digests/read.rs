//! Reads one digests file, believing nothing.

use super::{
    DIGEST_FILE_HEADER_BYTES, DIGEST_INDEX_ENTRY_BYTES, GROUP_BLOCKS, GROUP_STATE_BYTES, Header, u32_at, u64_at,
};
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use sendense_block::digest::DIGEST_BYTES;
use sendense_block::{ByteOffset, Digest, ReadAt};

/// Index entries read at a time: 8 KiB, 128 GiB of disk.
const PAGE_ENTRIES: u64 = 256;

/// What an image holds of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing: it is as in the image below.
    Absent,
    /// Zeros, flagged.
    Zero,
    /// Bytes with this digest.
    Data(Digest),
}

/// Where a group lies and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where it starts; 0 when nothing of it is held.
    pub start: ByteOffset,
    /// Blocks of data.
    pub data_blocks: u32,
    /// Blocks flagged zero.
    pub zero_blocks: u32,
    /// The digest of its bytes.
    pub digest: Digest,
}

impl IndexEntry {
    /// True when the image holds none of its blocks.
    pub fn is_empty(&self) -> bool {
        self.data_blocks == 0 && self.zero_blocks == 0
    }

    fn len(&self) -> u64 {
        if self.is_empty() { 0 } else { GROUP_STATE_BYTES + u64::from(self.data_blocks) * DIGEST_BYTES as u64 }
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&bytes[16..32]);
        Self {
            start: ByteOffset(u64_at(bytes, 0)),
            data_blocks: u32_at(bytes, 8),
            zero_blocks: u32_at(bytes, 12),
            digest: Digest(digest),
        }
    }
}

/// A digests file that was opened and whose header and index are sound.
pub struct DigestFile {
    file: Box<dyn ReadAt>,
    header: Header,
    index_at: u64,
    root: Digest,
    page: Mutex<Option<(u64, Vec<u8>)>>,
}

/// A checked group in memory; reused, so that reading a file allocates once.
#[derive(Debug, Clone, Default)]
pub struct Group {
    bytes: Vec<u8>,
}

impl Group {
    /// The states of its blocks, in order. Blocks beyond the end of the disk are absent.
    pub fn states(&self) -> impl Iterator<Item = State> {
        let (map, digests) = self.bytes.split_at(self.bytes.len().min(GROUP_STATE_BYTES as usize));
        let mut digests = digests.as_chunks::<DIGEST_BYTES>().0.iter();
        (0..map.len() * 4).map(move |at| match map[at / 4] >> (at % 4 * 2) & 3 {
            1 => State::Zero,
            // `DigestFile::group` has counted: there is a digest for each.
            2 => digests.next().map_or(State::Absent, |digest| State::Data(Digest(*digest))),
            _ => State::Absent,
        })
    }
}

impl DigestFile {
    /// Opens a file and reads header and index once, from end to end, which checks that the groups lie without gaps and
    /// fill the file. With `root` (from the manifest) they are also checked to be the ones that were written.
    ///
    /// [`Kind::Invalid`] when they are not; the caller who knows the file's name turns that into "corrupt".
    pub fn open(file: Box<dyn ReadAt>, root: Option<Digest>) -> Result<Self> {
        let size = file.size().0;
        if size < DIGEST_FILE_HEADER_BYTES {
            return Err(Error::invalid("the digests file is shorter than its header"));
        }
        let mut bytes = [0; DIGEST_FILE_HEADER_BYTES as usize];
        file.read_at(ByteOffset(0), &mut bytes)?;
        let header = Header::parse(&bytes)?;
        let index_bytes = header.groups().checked_mul(DIGEST_INDEX_ENTRY_BYTES);
        let index_at = index_bytes
            .and_then(|bytes| size.checked_sub(bytes))
            .filter(|at| *at >= DIGEST_FILE_HEADER_BYTES)
            .ok_or_else(|| Error::invalid("the digests file is shorter than its index"))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        let mut opened = Self { file, header, index_at, root: Digest([0; 16]), page: Mutex::new(None) };
        opened.read_index(&mut hasher)?;
        opened.root.0.copy_from_slice(&hasher.finalize().as_bytes()[..DIGEST_BYTES]);
        if root.is_some_and(|root| root != opened.root) {
            return Err(Error::invalid("the digests file is not the one that its manifest tells of"));
        }
        Ok(opened)
    }

    /// Goes through the index once.
    fn read_index(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let mut end = DIGEST_FILE_HEADER_BYTES;
        let mut page = Vec::new();
        for first in (0..self.groups()).step_by(PAGE_ENTRIES as usize) {
            self.read_page(first, &mut page)?;
            hasher.update(&page);
            for (number, bytes) in (first..).zip(page.chunks_exact(DIGEST_INDEX_ENTRY_BYTES as usize)) {
                let entry = IndexEntry::parse(bytes);
                let sound = if entry.is_empty() {
                    bytes.iter().all(|byte| *byte == 0)
                } else {
                    let held = u64::from(entry.data_blocks) + u64::from(entry.zero_blocks);
                    held <= self.blocks_of(number) && entry.start.0 == end
                };
                if !sound {
                    return Err(Error::invalid(format!("group {number} of the digests file is not where it must be")));
                }
                // At most `groups` times 130 KiB, and the groups' index fits the file, so this cannot overflow.
                end += entry.len();
            }
        }
        if end != self.index_at {
            return Err(Error::invalid("the groups of the digests file do not fill it"));
        }
        Ok(())
    }

    fn read_page(&self, first: u64, page: &mut Vec<u8>) -> Result<()> {
        let count = PAGE_ENTRIES.min(self.groups() - first);
        page.resize((count * DIGEST_INDEX_ENTRY_BYTES) as usize, 0);
        Ok(self.file.read_at(ByteOffset(self.index_at + first * DIGEST_INDEX_ENTRY_BYTES), page)?)
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.header.blocks
    }

    /// Groups of the disk.
    pub fn groups(&self) -> u64 {
        self.header.groups()
    }

    /// The digest of header and index.
    pub fn root(&self) -> Digest {
        self.root
    }

    fn blocks_of(&self, group: u64) -> u64 {
        GROUP_BLOCKS.min(self.header.blocks - group * GROUP_BLOCKS)
    }

    /// The index entry of a group.
    pub fn entry(&self, group: u64) -> Result<IndexEntry> {
        if group >= self.groups() {
            return Err(Error::invalid(format!("the digests file has no group {group}")));
        }
        let first = group / PAGE_ENTRIES * PAGE_ENTRIES;
        let mut cached = self.page.lock();
        let (_, mut page) = match cached.take() {
            Some((at, page)) if at == first => (at, page),
            other => {
                let mut page = other.map(|(_, page)| page).unwrap_or_default();
                self.read_page(first, &mut page)?;
                (first, page)
            }
        };
        let at = ((group - first) * DIGEST_INDEX_ENTRY_BYTES) as usize;
        let entry = IndexEntry::parse(&page[at..at + DIGEST_INDEX_ENTRY_BYTES as usize]);
        page.truncate((PAGE_ENTRIES * DIGEST_INDEX_ENTRY_BYTES) as usize);
        *cached = Some((first, page));
        Ok(entry)
    }

    /// Reads and checks a group; false when the image holds nothing of it.
    pub fn group(&self, number: u64, group: &mut Group) -> Result<bool> {
        let entry = self.entry(number)?;
        let wrong = || Error::invalid(format!("group {number} of the digests file is damaged"));
        if entry.is_empty() {
            return Ok(false);
        }
        // Bounded by `read_index`; asked again because the file may have changed since.
        if u64::from(entry.data_blocks) + u64::from(entry.zero_blocks) > self.blocks_of(number) {
            return Err(wrong());
        }
        group.bytes.resize(entry.len() as usize, 0);
        self.file.read_at(entry.start, &mut group.bytes).map_err(|error| match error.kind {
            sendense_block::Kind::OutOfRange => wrong().caused_by(error),
            _ => error.into(),
        })?;
        if Digest::of(&group.bytes) != entry.digest {
            return Err(wrong());
        }
        let (mut data, mut zero, mut beyond) = (0u32, 0u32, false);
        let blocks = self.blocks_of(number);
        for at in 0..GROUP_BLOCKS {
            let state = group.bytes[(at / 4) as usize] >> (at % 4 * 2) & 3;
            data += u32::from(state == 2);
            zero += u32::from(state == 1);
            beyond |= state == 3 || (state != 0 && at >= blocks);
        }
        if beyond || (data, zero) != (entry.data_blocks, entry.zero_blocks) {
            return Err(wrong());
        }
        Ok(true)
    }
}

/// True for failures that say "these bytes are wrong", not "they could not be read".
pub(crate) fn says_damaged(error: &Error) -> bool {
    matches!(error.kind, Kind::Invalid | Kind::Corrupt { .. })
}
