//! Does an image's bookkeeping hold? Every reference to a host cluster is counted and held against the stored refcounts.
//!
//! What lives here: what `qemu-img check` says, for images without internal snapshots and bitmaps, such as ours, on a
//! machine without QEMU. What does not: whether the data is right (digests tell) and repair.
//!
//! Memory: the file is checked in windows of 2 Mi clusters (128 GiB of file with 64 KiB clusters), 4 bytes each: 8 MiB,
//! whatever its size. Each window costs one pass over the tables.

use crate::format::{COMPRESSED, COPIED, Entry, OFFSET_MASK, entry};
use crate::image::Image;
use sendense_block::{ByteOffset, Error, Kind, Result};

/// Clusters per window.
const WINDOW: u64 = 2 << 20;
/// Most windows: 512 TiB of file with 64 KiB clusters. A sparse file of any claimed size must not keep us for ever.
const WINDOWS_MAX: u64 = 4096;
/// Findings kept in words; the rest is counted.
const FINDINGS_MAX: usize = 100;
/// L1 and refcount tables are read in pieces of this size.
const PIECE_BYTES: u64 = 64 << 10;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Entries that point nowhere, clusters used more often than counted, wrong flags: the image must not be written to,
    /// and what it holds may be wrong.
    pub corruptions: u64,
    /// Clusters counted more often than used: lost space, nothing worse.
    pub leaks: u64,
    /// Clusters of the file that are in use.
    pub used_clusters: u64,
    /// The first hundred findings in words.
    pub findings: Vec<String>,
}

impl Report {
    /// True when nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }

    fn corrupt(&mut self, what: impl FnOnce() -> String) {
        self.corruptions += 1;
        self.note(what);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what());
        }
    }
}

/// Checks an image. An error means that it could not be checked; what is wrong with the image is in the report.
pub fn check(image: &Image) -> Result<Report> {
    let header = image.header();
    if header.snapshots > 0 || header.bitmaps.is_some() {
        return Err(Error::new(Kind::Unsupported, "check an image with internal snapshots or bitmaps"));
    }
    let clusters = image.file().size().0.div_ceil(header.cluster_bytes());
    if clusters.div_ceil(WINDOW) > WINDOWS_MAX {
        return Err(Error::new(Kind::Unsupported, format!("check an image of {clusters} clusters")));
    }
    let mut report = Report::default();
    for first in (0..clusters).step_by(WINDOW as usize) {
        let mut pass = Pass::new(image, first, WINDOW.min(clusters - first), &mut report)?;
        pass.count_references()?;
        pass.compare();
    }
    Ok(report)
}

/// One window of host clusters.
struct Pass<'a> {
    image: &'a Image,
    report: &'a mut Report,
    first: u64,
    /// Refcounts as stored; beyond 16 bits they saturate.
    stored: Vec<u16>,
    /// References found.
    found: Vec<u16>,
    /// L2 tables that may still be read in this pass. There cannot be more tables than clusters in the file, and a table
    /// that a hostile L1 table names a million times shall not be read a million times.
    tables_left: u64,
}

impl<'a> Pass<'a> {
    fn new(image: &'a Image, first: u64, count: u64, report: &'a mut Report) -> Result<Self> {
        let zeros = vec![0; count as usize];
        let tables_left = image.file().size().0 / image.header().cluster_bytes();
        let mut pass = Self { image, report, first, stored: zeros.clone(), found: zeros, tables_left };
        pass.read_refcounts()?;
        Ok(pass)
    }

    /// Findings of entries are noted in one window only, or they would be told once per window.
    fn is_first(&self) -> bool {
        self.first == 0
    }

    fn read_refcounts(&mut self) -> Result<()> {
        let header = self.image.header();
        let (cluster_bytes, bits) = (header.cluster_bytes(), 1u64 << header.refcounts.order);
        let per_block = cluster_bytes * 8 / bits;
        let entries = u64::from(header.refcounts.table_clusters) * cluster_bytes / 8;
        let end = self.first + self.stored.len() as u64;
        let mut block = vec![0; cluster_bytes as usize];
        for index in self.first / per_block..end.div_ceil(per_block).min(entries) {
            let mut raw = [0; 8];
            self.read(ByteOffset(header.refcounts.table.0.saturating_add(index * 8)), &mut raw)?;
            // Refcount table entry, bits 9 to 63.
            let at = u64::from_be_bytes(raw) & !0x1ff;
            if at == 0 {
                continue;
            }
            if !self.is_place(at) {
                self.report.corrupt(|| format!("refcount table entry {index} ({at:#x}) is no place for a block"));
                continue;
            }
            self.read(ByteOffset(at), &mut block)?;
            let from = (index * per_block).max(self.first);
            for cluster in from..((index + 1) * per_block).min(end) {
                self.stored[(cluster - self.first) as usize] = refcount(&block, bits, cluster % per_block);
            }
        }
        Ok(())
    }

    fn count_references(&mut self) -> Result<()> {
        let header = self.image.header();
        let cluster_bytes = header.cluster_bytes();
        self.refer(0, cluster_bytes);
        let table_bytes = u64::from(header.refcounts.table_clusters) * cluster_bytes;
        self.refer(header.refcounts.table.0, table_bytes);
        self.for_each_entry(header.refcounts.table, table_bytes / 8, &mut |pass, _, raw| {
            let at = raw & !0x1ff;
            if at != 0 && pass.is_place(at) {
                pass.refer(at, cluster_bytes);
            }
            Ok(())
        })?;
        let l1_entries = u64::from(header.l1_entries);
        self.refer(header.l1_table_offset.0, l1_entries * 8);
        self.for_each_entry(header.l1_table_offset, l1_entries, &mut |pass, index, raw| {
            let table = raw & OFFSET_MASK;
            if table == 0 {
                return Ok(());
            }
            if !pass.is_place(table) {
                if pass.is_first() {
                    pass.report.corrupt(|| format!("L1 entry {index} ({raw:#x}) is no place for a table"));
                }
                return Ok(());
            }
            pass.refer(table, cluster_bytes);
            pass.check_copied("L1", index, raw, table);
            let Some(left) = pass.tables_left.checked_sub(1) else {
                if pass.is_first() {
                    pass.report
                        .corrupt(|| format!("L1 entry {index} ({raw:#x}) is one more than the file has clusters"));
                }
                return Ok(());
            };
            pass.tables_left = left;
            let first = index * (cluster_bytes / 8);
            pass.for_each_entry(ByteOffset(table), cluster_bytes / 8, &mut |pass, n, raw| {
                pass.count_entry(first + n, raw);
                Ok(())
            })
        })
    }

    /// A reference by the L2 entry of a guest cluster.
    fn count_entry(&mut self, guest: u64, raw: u64) {
        let cluster_bytes = self.image.header().cluster_bytes();
        let host = match entry(raw, self.image.header().cluster_bits) {
            Entry::Compressed(host, bytes) => {
                let nowhere = host.0 >= self.image.file().size().0;
                if (nowhere || raw & COPIED != 0) && self.is_first() {
                    let what =
                        if nowhere { "points beyond the end of the file" } else { "is compressed and flagged copied" };
                    self.report.corrupt(|| format!("L2 entry of guest cluster {guest} ({raw:#x}) {what}"));
                }
                return self.refer(host.0, bytes.0);
            }
            Entry::Unallocated => return,
            // A zero cluster may keep a host cluster.
            Entry::Zero | Entry::Raw(_) => raw & OFFSET_MASK & !COMPRESSED,
        };
        if host == 0 {
            return;
        }
        if !self.is_place(host) {
            if self.is_first() {
                self.report.corrupt(|| format!("L2 entry of guest cluster {guest} ({raw:#x}) is no place for data"));
            }
            return;
        }
        self.refer(host, cluster_bytes);
        self.check_copied("L2", guest, raw, host);
    }

    /// "Copied" must say just that the refcount is one.
    fn check_copied(&mut self, table: &str, index: u64, raw: u64, host: u64) {
        let cluster = host / self.image.header().cluster_bytes();
        let Some(stored) = cluster.checked_sub(self.first).and_then(|n| self.stored.get(n as usize)) else { return };
        if (*stored == 1) != (raw & COPIED != 0) {
            let stored = *stored;
            self.report
                .corrupt(|| format!("{table} entry {index} ({raw:#x}) has a wrong flag: its refcount is {stored}"));
        }
    }

    /// Counts a reference to every cluster that the range touches.
    fn refer(&mut self, at: u64, bytes: u64) {
        let cluster_bytes = self.image.header().cluster_bytes();
        let end = at.saturating_add(bytes).div_ceil(cluster_bytes);
        let window_end = self.first + self.found.len() as u64;
        for cluster in (at / cluster_bytes).max(self.first)..end.min(window_end) {
            let found = &mut self.found[(cluster - self.first) as usize];
            *found = found.saturating_add(1);
        }
    }

    fn compare(&mut self) {
        for (n, (found, stored)) in self.found.iter().zip(&self.stored).enumerate() {
            let cluster = self.first + n as u64;
            self.report.used_clusters += u64::from(*found > 0);
            if found > stored {
                self.report.corrupt(|| format!("cluster {cluster} is used {found} times and counted {stored} times"));
            } else if found < stored {
                self.report.leaks += 1;
                self.report.note(|| format!("cluster {cluster} is used {found} times and counted {stored} times"));
            }
        }
    }

    /// Runs over a table's entries, as far as they lie in the file.
    fn for_each_entry(
        &mut self,
        table: ByteOffset,
        count: u64,
        each: &mut dyn FnMut(&mut Self, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let there = self.image.file().size().0.saturating_sub(table.0) / 8;
        let mut bytes = vec![0; PIECE_BYTES.min(count * 8) as usize];
        let mut index = 0;
        while index < count.min(there) {
            let entries = (count.min(there) - index).min(PIECE_BYTES / 8);
            let piece = &mut bytes[..entries as usize * 8];
            self.image.file().read_at(ByteOffset(table.0 + index * 8), piece)?;
            for raw in bytes[..entries as usize * 8].as_chunks::<8>().0 {
                each(self, index, u64::from_be_bytes(*raw))?;
                index += 1;
            }
        }
        Ok(())
    }

    /// Reads a piece of a table; what lies beyond the file's end is zero.
    fn read(&self, at: ByteOffset, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        let there = self.image.file().size().0.saturating_sub(at.0).min(out.len() as u64) as usize;
        if there == 0 { Ok(()) } else { self.image.file().read_at(at, &mut out[..there]) }
    }

    /// A cluster can lie there: aligned, and it starts in the file.
    fn is_place(&self, at: u64) -> bool {
        at.is_multiple_of(self.image.header().cluster_bytes()) && at < self.image.file().size().0
    }
}

/// A refcount of a block (Refcount block entry): big-endian, and below a byte the least significant bits come first.
fn refcount(block: &[u8], bits: u64, index: u64) -> u16 {
    let at = (index * bits / 8) as usize;
    let wide = |len: usize| block[at..at + len].iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    let count = match bits {
        1 | 2 | 4 => u64::from(block[at]) >> (index * bits % 8) & ((1 << bits) - 1),
        _ => wide(bits as usize / 8),
    };
    u16::try_from(count).unwrap_or(u16::MAX)
}
