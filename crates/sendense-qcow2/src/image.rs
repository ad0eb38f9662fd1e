//! One image: where each byte of its disk lies, and reading it.
//!
//! What lives here: the mapping of a single file (Cluster mapping). What does not: the images below it ([`crate::Chain`]).
//! Mapping and reading are apart: [`Image::locate`] reads tables only.
//!
//! Invariant: a mapping that is given out has been checked: aligned, and it starts inside the file.

use crate::decode::{decode, with_scratch};
use crate::format::{Entry, OFFSET_MASK, ZERO, entry};
use crate::header::{BackingRef, Compression, Header, first_cluster_bytes};
use crate::tables::{SLICE_BYTES, Slice, Tables};
use crate::writer::Held;
use sendense_block::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Error, Kind, ReadAt, Result};
use std::sync::Arc;

/// Where a range of the disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Not in this image: as in the image below, or zeros where there is none.
    Unallocated {
        /// So many bytes of the disk.
        len: ByteLen,
    },
    /// Zeros, whatever the image below holds.
    Zero {
        /// So many bytes of the disk.
        len: ByteLen,
    },
    /// In the file as it is.
    Raw {
        /// Where in the file.
        host: ByteOffset,
        /// So many bytes, of the file and of the disk.
        len: ByteLen,
    },
    /// In one compressed cluster.
    Compressed {
        /// Where its bytes start in the file.
        host: ByteOffset,
        /// At most so many bytes of the file belong to it (it is told in whole sectors).
        bytes: ByteLen,
        /// So many bytes of the decoded cluster come before the range.
        skip: ByteLen,
        /// So many bytes of the disk.
        len: ByteLen,
    },
}

impl Mapping {
    /// How many bytes of the disk it covers.
    pub const fn len(&self) -> ByteLen {
        match self {
            Self::Unallocated { len } | Self::Zero { len } | Self::Raw { len, .. } | Self::Compressed { len, .. } => {
                *len
            }
        }
    }

    /// The same for the first `limit` bytes only.
    #[must_use]
    pub fn cut(mut self, limit: ByteLen) -> Self {
        match &mut self {
            Self::Unallocated { len } | Self::Zero { len } | Self::Raw { len, .. } | Self::Compressed { len, .. } => {
                *len = (*len).min(limit);
            }
        }
        self
    }

    /// Takes in what follows it on the disk if both are one range of the same sort; false if not.
    fn join(&mut self, next: Self) -> bool {
        match (self, next) {
            (Self::Unallocated { len }, Self::Unallocated { len: more })
            | (Self::Zero { len }, Self::Zero { len: more }) => {
                len.0 += more.0;
                true
            }
            (Self::Raw { host, len }, Self::Raw { host: next, len: more }) if host.0 + len.0 == next.0 => {
                len.0 += more.0;
                true
            }
            _ => false,
        }
    }
}

/// An open image. Shared by threads; holds at most 512 KiB of tables.
pub struct Image {
    file: Arc<dyn ReadAt>,
    header: Header,
    tables: Tables,
}

/// What a table slice says of a position.
enum Found {
    /// No L2 table up to there.
    Hole { end: u64 },
    /// Entries of the clusters from the position's on.
    Entries(Slice, usize),
}

impl Image {
    /// Opens an image for reading. Nothing but the header is read; the image below is only named.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self> {
        let file_size = file.size();
        let mut start = vec![0; file_size.0.min(24) as usize];
        file.read_at(ByteOffset(0), &mut start)?;
        let mut bytes = vec![0; file_size.0.min(first_cluster_bytes(&start)) as usize];
        file.read_at(ByteOffset(0), &mut bytes)?;
        let header = Header::parse(&bytes, file_size)?;
        Ok(Self { file, header, tables: Tables::new() })
    }

    /// The disk's size.
    pub fn size(&self) -> ByteLen {
        self.header.size
    }

    /// The size of a cluster, a power of two from 512 to 2 MiB.
    pub fn cluster_bytes(&self) -> ByteLen {
        ByteLen(self.header.cluster_bytes())
    }

    /// How compressed clusters are compressed.
    pub fn compression(&self) -> Compression {
        self.header.compression
    }

    /// The image below, as named. A file's word: open it through a gate.
    pub fn backing(&self) -> Option<&BackingRef> {
        self.header.backing.as_ref()
    }

    /// The file that holds it.
    pub fn file(&self) -> &Arc<dyn ReadAt> {
        &self.file
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Where the bytes from `at` on lie: the longest range of one sort, at most `max` bytes and not beyond the disk's end.
    /// Reads tables, no data.
    pub fn locate(&self, at: ByteOffset, max: ByteLen) -> Result<Mapping> {
        let left = self.header.size.0.checked_sub(at.0).filter(|left| *left > 0 && max.0 > 0);
        let left = left.ok_or_else(|| {
            Error::new(Kind::OutOfRange, format!("look up {max} of an image of {}", self.header.size)).at(at)
        })?;
        let end = at.0 + left.min(max.0);
        let (mut whole, mut open) = self.locate_in_slice(at.0, end)?;
        while open && at.0 + whole.len().0 < end {
            let (next, goes_on) = self.locate_in_slice(at.0 + whole.len().0, end)?;
            if !whole.join(next) {
                break;
            }
            open = goes_on;
        }
        Ok(whole)
    }

    /// As `locate` with what one table slice tells; true when the range reaches to the slice's end and may go on.
    fn locate_in_slice(&self, at: u64, end: u64) -> Result<(Mapping, bool)> {
        let (slice, first) = match self.find(at)? {
            Found::Hole { end: hole } => return Ok((Mapping::Unallocated { len: ByteLen(hole.min(end) - at) }, true)),
            Found::Entries(slice, first) => (slice, first),
        };
        // `find` gives an index inside of its slice.
        let mut whole = self.mapping(at, end, slice[first])?;
        for raw in &slice[first + 1..] {
            let next = at + whole.len().0;
            if next >= end || !whole.join(self.mapping(next, end, *raw)?) {
                return Ok((whole, false));
            }
        }
        Ok((whole, true))
    }

    /// Fills `out` with what this image holds of the blocks from `first` on; blocks beyond its end are absent. Only for
    /// images whose clusters are blocks.
    pub fn held(&self, first: BlockIndex, out: &mut [Held]) -> Result<()> {
        if self.header.cluster_bytes() != BLOCK_BYTES {
            return Err(Error::new(Kind::Unsupported, "tell the blocks of an image whose clusters are not 64 KiB"));
        }
        out.fill(Held::Absent);
        let size = self.header.size.0;
        let mut next = first.0;
        let last = first.0.saturating_add(out.len() as u64).min(size.div_ceil(BLOCK_BYTES));
        while next < last {
            let (slice, from) = match self.find(next * BLOCK_BYTES)? {
                Found::Hole { end } => {
                    next = end / BLOCK_BYTES;
                    continue;
                }
                Found::Entries(slice, from) => (slice, from),
            };
            for (raw, block) in slice[from..].iter().zip(next..last) {
                // `last` and `next` lie in the range that `out` stands for.
                out[(block - first.0) as usize] = match self.mapping(block * BLOCK_BYTES, size, *raw)? {
                    Mapping::Unallocated { .. } => Held::Absent,
                    Mapping::Zero { .. } => Held::Zero,
                    Mapping::Raw { .. } | Mapping::Compressed { .. } => Held::Data,
                };
            }
            next += (slice.len() - from) as u64;
        }
        Ok(())
    }

    /// Reads what a mapping of this image points to; `buf` has its length. Unallocated ranges read as zeros here.
    pub fn read(&self, mapping: &Mapping, buf: &mut [u8]) -> Result<()> {
        debug_assert_eq!(mapping.len().0, buf.len() as u64);
        match *mapping {
            Mapping::Unallocated { .. } | Mapping::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            Mapping::Raw { host, .. } => {
                // The file may end inside of its last cluster; QEMU reads zeros from there on.
                let there = self.file.size().0.saturating_sub(host.0).min(buf.len() as u64) as usize;
                let (data, beyond) = buf.split_at_mut(there);
                beyond.fill(0);
                self.file.read_at(host, data)
            }
            Mapping::Compressed { host, bytes, skip, .. } => {
                let cluster_bytes = self.header.cluster_bytes() as usize;
                with_scratch(|scratch| {
                    let (mut contexts, input, cluster) = scratch.split();
                    // `bytes` is at most two clusters by its bits in the entry, and cut at the file's end.
                    input.resize(bytes.0 as usize, 0);
                    self.file.read_at(host, input)?;
                    if buf.len() == cluster_bytes {
                        return decode(&mut contexts, self.header.compression, input, buf);
                    }
                    cluster.resize(cluster_bytes, 0);
                    decode(&mut contexts, self.header.compression, input, cluster)?;
                    let from = skip.0 as usize;
                    let part = cluster.get(from..from.saturating_add(buf.len()));
                    buf.copy_from_slice(
                        part.ok_or_else(|| {
                            Error::new(Kind::OutOfRange, "read beyond the end of a compressed cluster")
                        })?,
                    );
                    Ok(())
                })
                .map_err(|error: Error| error.at(host))
            }
        }
    }

    /// The zstd frame that a mapping points to, as it is stored and no longer: to move it without decoding.
    pub fn read_frame(&self, mapping: &Mapping, out: &mut Vec<u8>) -> Result<()> {
        let Mapping::Compressed { host, bytes, .. } = *mapping else {
            return Err(Error::new(Kind::Invalid, "read the frame of a cluster that is not compressed"));
        };
        if self.header.compression != Compression::Zstd {
            return Err(Error::new(Kind::Unsupported, "read a frame of an image without zstd"));
        }
        out.resize(bytes.0 as usize, 0);
        self.file.read_at(host, out)?;
        let length = zstd_safe::find_frame_compressed_size(out).map_err(|code| {
            Error::new(Kind::Corrupt, format!("find a frame's end: {}", zstd_safe::get_error_name(code))).at(host)
        })?;
        out.truncate(length);
        Ok(())
    }

    /// The slice of L2 entries for a position on the disk.
    fn find(&self, at: u64) -> Result<Found> {
        let (bits, cluster_bytes) = (self.header.cluster_bits, self.header.cluster_bytes());
        let table_entries = cluster_bytes / 8;
        let table_bits = 2 * bits - 3;
        let l1_index = at >> table_bits;
        let Some(table) = self.table_at(l1_index).map_err(|error| error.at(ByteOffset(at)))? else {
            return Ok(Found::Hole { end: (l1_index + 1) << table_bits });
        };
        let (slice, first) = self.entry_slice(table, (at >> bits) % table_entries, table_entries)?;
        Ok(Found::Entries(slice, first))
    }

    /// Where an L2 table lies that the disk has; none where nothing of it is held.
    pub(crate) fn table_at(&self, number: u64) -> Result<Option<ByteOffset>> {
        let (bits, cluster_bytes) = (self.header.cluster_bits, self.header.cluster_bytes());
        let entries = self.header.size.0.div_ceil(1 << (2 * bits - 3));
        let l1 = self.entry_slice(self.header.l1_table_offset, number, entries)?;
        let raw = l1.0[l1.1];
        let table = ByteOffset(raw & OFFSET_MASK);
        if table.0 == 0 {
            return Ok(None);
        }
        if !table.0.is_multiple_of(cluster_bytes) || table.0 + cluster_bytes > self.file.size().0 {
            return Err(Error::new(Kind::Corrupt, format!("L1 entry {number} ({raw:#x}) is no place for a table")));
        }
        Ok(Some(table))
    }

    /// The slice of a table of `entries` that holds `index`, and where in it.
    fn entry_slice(&self, table: ByteOffset, index: u64, entries: u64) -> Result<(Slice, usize)> {
        let per_slice = SLICE_BYTES / 8;
        let first = index / per_slice * per_slice;
        let count = per_slice.min(entries - first) as usize;
        let slice = self.tables.slice(&*self.file, ByteOffset(table.0 + first * 8), count)?;
        Ok((slice, (index - first) as usize))
    }

    /// What an L2 entry says of the disk's bytes from `at` to the cluster's end, or to `end` if that comes first.
    fn mapping(&self, at: u64, end: u64, raw: u64) -> Result<Mapping> {
        let cluster_bytes = self.header.cluster_bytes();
        let file_size = self.file.size().0;
        let skip = at % cluster_bytes;
        let len = ByteLen((cluster_bytes - skip).min(end - at));
        let wrong = |why: &str| {
            Err(Error::new(Kind::Corrupt, format!("map a cluster: its entry {raw:#x} {why}")).at(ByteOffset(at)))
        };
        match entry(raw, self.header.cluster_bits) {
            Entry::Unallocated => Ok(Mapping::Unallocated { len }),
            Entry::Zero if self.header.version < 3 => wrong("is flagged zero, which version 2 does not have"),
            Entry::Zero if !(raw & OFFSET_MASK).is_multiple_of(cluster_bytes) => wrong("is not aligned to a cluster"),
            Entry::Zero => Ok(Mapping::Zero { len }),
            Entry::Raw(host) if !host.0.is_multiple_of(cluster_bytes) => wrong("is not aligned to a cluster"),
            Entry::Raw(host) if host.0 >= file_size => wrong("points beyond the end of the file"),
            Entry::Raw(host) => Ok(Mapping::Raw { host: ByteOffset(host.0 + skip), len }),
            Entry::Compressed(host, _) if host.0 >= file_size => wrong("points beyond the end of the file"),
            Entry::Compressed(host, bytes) => {
                let bytes = ByteLen(bytes.0.min(file_size - host.0));
                Ok(Mapping::Compressed { host, bytes, skip: ByteLen(skip), len })
            }
        }
    }
}

// A zero entry's flag is also what the writer keeps; both sides must mean the same bit.
const _: () = assert!(ZERO == 1);
