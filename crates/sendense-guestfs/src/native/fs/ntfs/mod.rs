//! NTFS.
//!
//! What lives here: the boot sector, file records as inodes, links. Attributes and runs are in `record`, folders in
//! `folder`, compressed files in `compressed`. `$LogFile` is not replayed: a volume that was not cleanly unmounted says so.
//! Owner and group do not exist in the sense of Linux; what is shown is what ntfs-3g shows by default.

mod compressed;
mod folder;
mod record;

use super::bytes::{le16, le32, le64, slice, u8_at, utf16_le, wtf8};
use super::device::Device;
use super::volume::{Map, MappedFile, Segment, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use record::{Attribute, Body, Record, Run, kind};
use sendense_block::ReadAt;
use std::sync::Arc;

const OEM_NAME: &[u8] = b"NTFS    ";
const RECORD_LOG: u64 = 2;
const RECORD_VOLUME: u64 = 3;
const RECORD_ROOT: u64 = 5;
/// Records below this are the file system's own.
const RECORD_FIRST_USER: u64 = 16;
/// Pieces of the table of file records: 1.5 MiB, and a table of 256 MiB in pieces of one cluster.
const MFT_RUNS_MAX: usize = 64 * 1024;
/// What Windows allows an attribute list to grow to.
const ATTRIBUTE_LIST_MAX: u64 = 256 * 1024;
/// What Windows allows a reparse point to hold.
const REPARSE_BYTES_MAX: u64 = 16 * 1024;

const FILE_SYSTEM: u32 = 0x4;
const FILE_ENCRYPTED: u32 = 0x4000;
const STREAM_COMPRESSED: u16 = 0xff;
const STREAM_ENCRYPTED: u16 = 0x4000;
const VOLUME_DIRTY: u16 = 0x1;

const REPARSE_MOUNT_POINT: u32 = 0xa000_0003;
const REPARSE_SYMLINK: u32 = 0xa000_000c;
const REPARSE_LX_SYMLINK: u32 = 0xa000_001d;
const REPARSE_WOF: u32 = 0x8000_0017;
/// How ntfs-3g and Interix store a link: a system file that begins so.
const INTERIX_LINK: &[u8] = b"IntxLNK\x01";

/// An open file system.
pub struct Ntfs {
    device: Device,
    cluster_bytes: u64,
    clusters: u64,
    record_bytes: usize,
    /// Where the table of file records lies.
    mft: Vec<Segment>,
    mft_bytes: u64,
    facts: Facts,
}

/// A stream of bytes: an attribute's value, wherever it lies.
#[derive(Debug, Clone, Default)]
struct Stream {
    kind: u32,
    name: &'static [u8],
    /// Small values lie in the file record.
    resident: Option<Vec<u8>>,
    flags: u16,
    size: u64,
    /// What lies beyond reads as zeros.
    initialised: u64,
    /// Clusters compressed together, as a power of two.
    unit_log: u8,
    /// The first cluster and the file record of each part, sorted.
    parts: Vec<(u64, u64)>,
}

/// A file record with what is needed of its attributes.
#[derive(Debug, Clone)]
pub struct Inode(Arc<File>);

#[derive(Debug)]
struct File {
    number: u64,
    folder: bool,
    links: u32,
    modified: Option<GuestTime>,
    attributes: u32,
    reparse: Option<(u32, Vec<u8>)>,
    link: Option<Vec<u8>>,
    data: Stream,
    index_root: Vec<u8>,
    index: Stream,
    index_bitmap: Stream,
}

/// Whether the device begins as one.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let start = super::read_start(device, 0, 512)?;
    Ok(start.filter(|bytes| &bytes[3..11] == OEM_NAME).map(|_| "ntfs"))
}

/// Opens the file system.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Ntfs> {
    let device = Device::new(device);
    let boot = device.read_vec(0, 512)?;
    let sector_bytes = u64::from(le16(&boot, 11)?);
    // Above 128 it is a power of two, counted down from 256.
    let per_cluster = match u8_at(&boot, 13)? {
        count @ 0..=128 => u64::from(count),
        count @ 244..=255 => 1 << (256 - u32::from(count)),
        _ => 0,
    };
    let cluster_bytes = sector_bytes * per_cluster;
    let record_bytes = match u8_at(&boot, 64)? as i8 {
        clusters @ 1.. => clusters as u64 * cluster_bytes,
        log => 1u64.checked_shl(u32::from(log.unsigned_abs())).unwrap_or(0),
    };
    let sectors = le64(&boot, 40)?;
    let sound = sector_bytes.is_power_of_two()
        && (256..=4096).contains(&sector_bytes)
        && cluster_bytes.is_power_of_two()
        && (512..=2 << 20).contains(&cluster_bytes)
        && record_bytes.is_power_of_two()
        && (512..=4096).contains(&record_bytes)
        && sectors.checked_mul(sector_bytes).is_some();
    if &boot[3..11] != OEM_NAME || !sound {
        return Err(Error::corrupt("NTFS boot sector contradicts itself"));
    }
    let size_bytes = sectors * sector_bytes;
    let facts = Facts {
        kind: "ntfs",
        label: None,
        uuid: Some(format!("{:016X}", le64(&boot, 72)?)),
        size_bytes,
        consistency: Consistency::Clean,
    };
    let mut volume = Ntfs {
        device,
        cluster_bytes,
        clusters: size_bytes / cluster_bytes,
        record_bytes: record_bytes as usize,
        mft: Vec::new(),
        mft_bytes: 0,
        facts,
    };
    volume.load_mft(le64(&boot, 48)?)?;
    volume.read_facts()?;
    Ok(volume)
}

impl Ntfs {
    fn cluster_at(&self, cluster: u64, count: u64) -> Result<u64> {
        match cluster.checked_add(count) {
            Some(end) if end <= self.clusters => Ok(cluster * self.cluster_bytes),
            _ => Err(Error::corrupt(format!("NTFS cluster {cluster} of {}", self.clusters))),
        }
    }

    /// Finds the whole table of file records, beginning with its first record, which describes it.
    fn load_mft(&mut self, cluster: u64) -> Result<()> {
        let at = self.cluster_at(cluster, 1)?;
        let own = Record::parse(self.device.read_vec(at, self.record_bytes)?, 0)?;
        // Until its runs are known, only its first record is.
        self.mft = vec![Segment { start: 0, len: self.record_bytes as u64, at }];
        self.mft_bytes = self.record_bytes as u64;
        let mut table = Map { segments: Vec::new(), until: u64::MAX };
        let add = |volume: &Ntfs, attribute: &Attribute<'_>, table: &mut Map| -> Result<u64> {
            let Body::Runs { runs, data, .. } = &attribute.body else {
                return Err(Error::corrupt("the NTFS file table lies inside itself"));
            };
            for run in Run::decode(runs, attribute.first_cluster)? {
                volume.add_run(&run, 0, u64::MAX, table)?;
            }
            if table.segments.len() > MFT_RUNS_MAX {
                return Err(Error::unsupported("NTFS file table in too many pieces"));
            }
            Ok(*data)
        };
        let first = own.find(kind::DATA, &[], 0)?.ok_or_else(|| Error::corrupt("the NTFS file table has no data"))?;
        let bytes = add(self, &first, &mut table)?;
        (self.mft, self.mft_bytes) = (table.segments.clone(), bytes);
        for (first_cluster, record) in self.parts(&own, 0, kind::DATA, &[])?.into_iter().skip(1) {
            let extension = self.read_record(record)?;
            let attribute = extension.find(kind::DATA, &[], first_cluster)?;
            let attribute = attribute.ok_or_else(|| Error::corrupt("the NTFS file table lacks a part"))?;
            add(self, &attribute, &mut table)?;
            self.mft = table.segments.clone();
        }
        Ok(())
    }

    fn read_facts(&mut self) -> Result<()> {
        let record = self.read_record(RECORD_VOLUME)?;
        let mut dirty = false;
        for attribute in record.attributes() {
            let attribute = attribute?;
            match (attribute.kind, &attribute.body) {
                (kind::VOLUME_NAME, Body::Resident(name)) => {
                    let label = String::from_utf16_lossy(&utf16_le(name).collect::<Vec<_>>());
                    self.facts.label = Some(label).filter(|label| !label.is_empty());
                }
                (kind::VOLUME_INFORMATION, Body::Resident(bytes)) => dirty = le16(bytes, 10)? & VOLUME_DIRTY != 0,
                _ => {}
            }
        }
        if dirty || !self.log_is_clean()? {
            self.facts.consistency = Consistency::LogNotReplayed;
        }
        Ok(())
    }

    /// Whether `$LogFile` was closed. Its restart pages, two of which the newer one counts, say who has it open.
    fn log_is_clean(&self) -> Result<bool> {
        let log = self.read_file(RECORD_LOG)?;
        let mut newest: Option<(u64, bool)> = None;
        let mut page_at = 0;
        for _ in 0..2 {
            let mut page = vec![0; 4096];
            if self.read_stream(&log.0.data, page_at, &mut page)? < page.len() {
                break;
            }
            if page.iter().all(|byte| *byte == 0xff) {
                // How a log is emptied.
                return Ok(newest.is_none_or(|(_, clean)| clean));
            }
            let page_bytes = u64::from(le32(&page, 16)?);
            if page.starts_with(b"RSTR") {
                record::fix_up(&mut page, 512)?;
                let area = usize::from(le16(&page, 24)?);
                let (lsn, user, flags) = (le64(&page, area)?, le16(&page, area + 12)?, le16(&page, area + 14)?);
                if newest.is_none_or(|(newest, _)| lsn > newest) {
                    newest = Some((lsn, user == 0xffff || flags & 0x2 != 0));
                }
            }
            page_at = page_bytes.clamp(512, 65536);
        }
        Ok(newest.is_some_and(|(_, clean)| clean))
    }

    /// A file record by its reference: the number, and in the upper 16 bits how often it was used.
    fn read_record(&self, reference: u64) -> Result<Record> {
        let (number, sequence) = (reference & 0xffff_ffff_ffff, (reference >> 48) as u16);
        let damaged = |what: &str| Error::corrupt(format!("NTFS file record {number}: {what}"));
        let start = number.checked_mul(self.record_bytes as u64).ok_or_else(|| damaged("it is none"))?;
        if start.saturating_add(self.record_bytes as u64) > self.mft_bytes {
            return Err(damaged("it lies beyond the table"));
        }
        let mut bytes = vec![0; self.record_bytes];
        let mut done = 0;
        // Records may be larger than clusters, so that one can lie in several pieces.
        while done < bytes.len() {
            let at = start + done as u64;
            let index = self.mft.partition_point(|segment| segment.start + segment.len <= at);
            let segment =
                self.mft.get(index).filter(|segment| segment.start <= at).ok_or_else(|| damaged("it lies nowhere"))?;
            let len = ((segment.start + segment.len - at) as usize).min(bytes.len() - done);
            self.device.read(segment.at + (at - segment.start), &mut bytes[done..done + len])?;
            done += len;
        }
        let record = Record::parse(bytes, number)?;
        if sequence != 0 && record.sequence()? != sequence {
            return Err(damaged("it was used again for another file"));
        }
        Ok(record)
    }

    fn add_run(&self, run: &Run, from: u64, limit: u64, map: &mut Map) -> Result<()> {
        let Some(cluster) = run.cluster else { return Ok(()) };
        let at = self.cluster_at(cluster, run.count)?;
        let bytes = |clusters: u64| {
            let bytes = clusters.checked_mul(self.cluster_bytes);
            bytes.ok_or_else(|| Error::corrupt("an NTFS run lies beyond all files"))
        };
        let (start, end) = (bytes(run.first)?, bytes(run.first.saturating_add(run.count))?.min(limit));
        if start < end && end > from {
            map.push(Segment { start, len: end - start, at })?;
        }
        Ok(())
    }

    /// The parts of an attribute: in the record itself, or as its attribute list says.
    fn parts(&self, record: &Record, reference: u64, kind: u32, name: &[u8]) -> Result<Vec<(u64, u64)>> {
        let Some(list) = self.attribute_list(record)? else {
            let found = record.find(kind, name, 0)?;
            return Ok(found.map(|_| vec![(0, reference)]).unwrap_or_default());
        };
        let mut parts = Vec::new();
        let mut at = 0;
        while at + 26 <= list.len() {
            let len = usize::from(le16(&list, at + 4)?);
            if len < 26 {
                break;
            }
            let name_at = at + usize::from(u8_at(&list, at + 7)?);
            let entry_name = slice(&list, name_at, usize::from(u8_at(&list, at + 6)?) * 2)?;
            if le32(&list, at)? == kind && entry_name == name {
                parts.push((le64(&list, at + 8)?, le64(&list, at + 16)?));
            }
            at += len;
        }
        parts.sort_unstable();
        parts.dedup_by_key(|part| part.0);
        Ok(parts)
    }

    fn attribute_list(&self, record: &Record) -> Result<Option<Vec<u8>>> {
        let Some(list) = record.find(kind::ATTRIBUTE_LIST, &[], 0)? else { return Ok(None) };
        match list.body {
            Body::Resident(bytes) => Ok(Some(bytes.to_vec())),
            Body::Runs { runs, data, .. } => {
                if data > ATTRIBUTE_LIST_MAX {
                    return Err(Error::corrupt("an NTFS attribute list is too long"));
                }
                let mut bytes = vec![0; data as usize];
                for run in Run::decode(runs, 0)? {
                    let mut map = Map::default();
                    self.add_run(&run, 0, data, &mut map)?;
                    for segment in map.segments {
                        let range = segment.start as usize..(segment.start + segment.len) as usize;
                        self.device.read(segment.at, &mut bytes[range])?;
                    }
                }
                Ok(Some(bytes))
            }
        }
    }

    fn stream(&self, record: &Record, reference: u64, kind: u32, name: &'static [u8]) -> Result<Stream> {
        let mut stream = Stream { kind, name, ..Stream::default() };
        stream.parts = self.parts(record, reference, kind, name)?;
        let Some((_, first)) = stream.parts.first().filter(|part| part.0 == 0).copied() else { return Ok(stream) };
        let other;
        let holder = if first & 0xffff_ffff_ffff == record.number {
            record
        } else {
            other = self.read_record(first)?;
            &other
        };
        let attribute = holder.find(kind, name, 0)?.ok_or_else(|| Error::corrupt("an NTFS attribute is missing"))?;
        stream.flags = attribute.flags;
        match attribute.body {
            Body::Resident(bytes) => {
                (stream.size, stream.initialised) = (bytes.len() as u64, bytes.len() as u64);
                stream.resident = Some(bytes.to_vec());
            }
            Body::Runs { data, initialised, unit_log, .. } => {
                (stream.size, stream.initialised, stream.unit_log) = (data, initialised.min(data), unit_log);
            }
        }
        Ok(stream)
    }

    fn read_file(&self, reference: u64) -> Result<Inode> {
        let record = self.read_record(reference)?;
        let number = record.number;
        if !record.in_use()? || record.base()? != 0 {
            return Err(Error::corrupt(format!("NTFS file record {number} is not a file")));
        }
        let mut file = File {
            number,
            folder: record.is_folder()?,
            links: 0,
            modified: None,
            attributes: 0,
            reparse: None,
            link: None,
            data: self.stream(&record, reference, kind::DATA, &[])?,
            index_root: Vec::new(),
            index: Stream::default(),
            index_bitmap: Stream::default(),
        };
        for attribute in record.attributes() {
            let attribute = attribute?;
            match (attribute.kind, &attribute.body) {
                (kind::STANDARD_INFORMATION, Body::Resident(bytes)) => {
                    file.modified = Some(time(le64(bytes, 8)?));
                    file.attributes = le32(bytes, 32)?;
                }
                // The DOS alias of a name is not a link of its own.
                (kind::FILE_NAME, Body::Resident(bytes)) => {
                    file.links += u32::from(u8_at(bytes, 65)? != folder::NAMESPACE_DOS)
                }
                _ => {}
            }
        }
        if self.attribute_list(&record)?.is_some() {
            // Names that moved out of the record are counted with their aliases.
            file.links = file.links.max(1);
        }
        let reparse = self.stream(&record, reference, kind::REPARSE_POINT, &[])?;
        if !reparse.parts.is_empty() {
            let mut bytes = vec![0; reparse.size.min(REPARSE_BYTES_MAX) as usize];
            self.read_stream(&reparse, 0, &mut bytes)?;
            file.reparse = Some((le32(&bytes, 0)?, bytes));
        }
        if file.folder {
            let root = self.stream(&record, reference, kind::INDEX_ROOT, folder::INDEX_NAME)?;
            file.index_root =
                root.resident.ok_or_else(|| Error::corrupt(format!("NTFS folder {number} has no index")))?;
            file.index = self.stream(&record, reference, kind::INDEX_ALLOCATION, folder::INDEX_NAME)?;
            file.index_bitmap = self.stream(&record, reference, kind::BITMAP, folder::INDEX_NAME)?;
        }
        file.link = self.link_target(&file)?;
        Ok(Inode(Arc::new(file)))
    }

    fn link_target(&self, file: &File) -> Result<Option<Vec<u8>>> {
        if let Some((tag, bytes)) = &file.reparse {
            // Sizes and places of the substitute and the printed name; a link has its flags before the text.
            let text_at = match *tag {
                REPARSE_MOUNT_POINT => 16,
                REPARSE_SYMLINK => 20,
                REPARSE_LX_SYMLINK => return Ok(bytes.get(12..).map(<[u8]>::to_vec)),
                _ => return Ok(None),
            };
            let (mut at, mut len) = (usize::from(le16(bytes, 12)?), usize::from(le16(bytes, 14)?));
            if len == 0 {
                (at, len) = (usize::from(le16(bytes, 8)?), usize::from(le16(bytes, 10)?));
            }
            let mut target = wtf8(utf16_le(slice(bytes, text_at + at, len)?));
            for byte in &mut target {
                if *byte == b'\\' {
                    *byte = b'/';
                }
            }
            return Ok(Some(target));
        }
        if file.attributes & FILE_SYSTEM == 0 || file.folder || file.data.size > 8 + 2 * 4096 {
            return Ok(None);
        }
        let mut bytes = vec![0; file.data.size as usize];
        self.read_stream(&file.data, 0, &mut bytes)?;
        Ok(bytes.strip_prefix(INTERIX_LINK).map(|name| wtf8(utf16_le(name))))
    }

    /// Where a stream's bytes lie, up to `limit` bytes of it.
    fn map_stream(&self, stream: &Stream, from: u64, max: usize, limit: u64) -> Result<Map> {
        let mut map = Map { segments: Vec::new(), until: u64::MAX };
        let cluster = from / self.cluster_bytes;
        let first = stream.parts.partition_point(|part| part.0 <= cluster).saturating_sub(1);
        for (first_cluster, reference) in &stream.parts[first.min(stream.parts.len())..] {
            let start = first_cluster.saturating_mul(self.cluster_bytes);
            if start >= limit {
                break;
            }
            if map.segments.len() >= max {
                map.until = start;
                break;
            }
            let record = self.read_record(*reference)?;
            let attribute = record.find(stream.kind, stream.name, *first_cluster)?;
            let attribute = attribute.ok_or_else(|| Error::corrupt("an NTFS attribute lacks a part"))?;
            if let Body::Runs { runs, .. } = attribute.body {
                for run in Run::decode(runs, *first_cluster)? {
                    self.add_run(&run, from, limit, &mut map)?;
                }
            }
        }
        Ok(map)
    }

    /// Reads a stream of the file system's own; answers how much there was.
    fn read_stream(&self, stream: &Stream, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let len = stream.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        if let Some(bytes) = &stream.resident {
            buf.copy_from_slice(slice(bytes, offset as usize, len)?);
            return Ok(len);
        }
        buf.fill(0);
        let end = offset + len as u64;
        let map = self.map_stream(stream, offset, usize::MAX, stream.initialised.min(end))?;
        for segment in map.segments {
            let (start, stop) = (segment.start.max(offset), (segment.start + segment.len).min(end));
            if start < stop {
                let range = (start - offset) as usize..(stop - offset) as usize;
                self.device.read(segment.at + (start - segment.start), &mut buf[range])?;
            }
        }
        Ok(len)
    }
}

/// 100-nanosecond steps since 1601.
fn time(steps: u64) -> GuestTime {
    const TO_1970: i64 = 11_644_473_600;
    GuestTime { seconds: (steps / 10_000_000) as i64 - TO_1970, nanoseconds: (steps % 10_000_000) as u32 * 100 }
}

impl Volume for Ntfs {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn root(&self) -> u64 {
        RECORD_ROOT
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        self.read_file(number)
    }

    fn meta(&self, inode: &Inode) -> Meta {
        let file = &*inode.0;
        let (file_type, size_bytes) = match &file.link {
            Some(target) => (FileType::Symlink, target.len() as u64),
            None if file.folder => (FileType::Directory, 0),
            None => (FileType::File, file.data.size),
        };
        Meta {
            inode: file.number,
            file_type,
            size_bytes,
            mode: 0o777,
            uid: 0,
            gid: 0,
            links: file.links.max(1),
            modified: file.modified,
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        folder::names(self, &folder.0, from, visit)
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        inode.0.link.clone().ok_or(Error::NotRegular)
    }

    fn map(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        self.map_stream(&inode.0.data, from, max, inode.0.data.initialised)
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        let file = &inode.0;
        match &file.reparse {
            Some((REPARSE_WOF, _)) => {
                return Err(Error::unsupported("NTFS file compressed by the Windows overlay filter"));
            }
            Some((tag, _)) => return Err(Error::unsupported(format!("NTFS reparse point {tag:#010x}"))),
            None => {}
        }
        if file.attributes & FILE_ENCRYPTED != 0 || file.data.flags & STREAM_ENCRYPTED != 0 {
            return Err(Error::unsupported("NTFS encrypted file"));
        }
        if file.data.resident.is_some() {
            return Ok(Box::new(compressed::Resident(inode)));
        }
        if file.data.flags & STREAM_COMPRESSED != 0 {
            return Ok(Box::new(compressed::Compressed::open(self.clone(), inode)?));
        }
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}
