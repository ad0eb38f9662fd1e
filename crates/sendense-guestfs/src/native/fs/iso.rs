//! ISO 9660 with Rock Ridge or Joliet.
//!
//! There are no inodes: a file is known by where its record lies on the device. Where Rock Ridge is there it is used, else
//! Joliet, else the plain names as Linux shows them: in small letters, without version.

use super::bytes::{be16, label_text, le32, slice, u8_at, wtf8};
use super::calendar;
use super::device::Device;
use super::volume::{Map, MappedFile, Name, Segment, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use sendense_block::ReadAt;
use std::sync::Arc;

const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16 * SECTOR;
/// A disc has a handful.
const DESCRIPTORS_MAX: u64 = 64;
/// Records of one file: sections of 4 GiB.
const SECTIONS_MAX: usize = 256;
/// Continuations of one record's extension area.
const CONTINUATIONS_MAX: usize = 64;
/// The longest that Linux accepts.
const LINK_BYTES_MAX: usize = 4096;

const FLAG_FOLDER: u8 = 0x2;
const FLAG_MORE: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// With the bytes to skip in each extension area.
    RockRidge(usize),
    Joliet,
    Plain,
}

/// An open file system.
pub struct Iso {
    device: Device,
    root: u64,
    names: Names,
    block_bytes: u64,
    facts: Facts,
}

/// A file's record with its extensions.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    folder: bool,
    sections: Vec<(u64, u64)>,
    modified: Option<GuestTime>,
    extra: Extra,
}

/// What Rock Ridge says of a file.
#[derive(Debug, Clone, Default)]
struct Extra {
    name: Option<Vec<u8>>,
    /// Mode with type, links, owner, group.
    posix: Option<(u32, u32, u32, u32)>,
    link: Option<Vec<u8>>,
    modified: Option<GuestTime>,
    /// A folder that was moved up, for its depth: where it lies now.
    moved_to: Option<u64>,
    /// It is shown where it was moved from.
    hidden: bool,
    compressed: bool,
}

/// Whether the device holds one.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let descriptor = super::read_start(device, FIRST_DESCRIPTOR, 6)?;
    Ok(descriptor.filter(|bytes| &bytes[1..6] == b"CD001").map(|_| "iso9660"))
}

/// Opens the file system.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Iso> {
    let device = Device::new(device);
    let (mut primary, mut joliet) = (None, None);
    for index in 0..DESCRIPTORS_MAX {
        let at = FIRST_DESCRIPTOR + index * SECTOR;
        let descriptor = device.read_vec(at, SECTOR as usize)?;
        match (&descriptor[1..6], descriptor[0]) {
            (b"CD001", 1) if primary.is_none() => primary = Some((at, descriptor)),
            (b"CD001", 2) if matches!(&descriptor[88..91], b"%/@" | b"%/C" | b"%/E") => joliet = Some(at),
            (b"CD001", 0..=254) => {}
            _ => break,
        }
    }
    let (at, descriptor) = primary.ok_or_else(|| Error::corrupt("ISO 9660 without its descriptor"))?;
    let block_bytes = u64::from(be16(&descriptor, 130)?);
    if !matches!(block_bytes, 512 | 1024 | 2048) {
        return Err(Error::corrupt(format!("ISO 9660 with blocks of {block_bytes} bytes")));
    }
    let facts = Facts {
        kind: "iso9660",
        label: label_text(slice(&descriptor, 40, 32)?),
        uuid: uuid(&descriptor)?,
        size_bytes: u64::from(le32(&descriptor, 80)?) * block_bytes,
        consistency: Consistency::Clean,
    };
    let mut iso = Iso { device, root: at + 156, names: Names::Plain, block_bytes, facts };
    if let Some(skip) = iso.rock_ridge()? {
        iso.names = Names::RockRidge(skip);
    } else if let Some(at) = joliet {
        (iso.root, iso.names) = (at + 156, Names::Joliet);
    }
    Ok(iso)
}

/// The time of the last change, or else of creation, as blkid prints it.
fn uuid(descriptor: &[u8]) -> Result<Option<String>> {
    for at in [830, 813] {
        let digits = slice(descriptor, at, 16)?;
        if digits.iter().all(u8::is_ascii_digit) && digits.iter().any(|digit| *digit != b'0') {
            let text = String::from_utf8_lossy(digits);
            let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16].map(|range| &text[range]);
            return Ok(Some(parts.join("-")));
        }
    }
    Ok(None)
}

/// One directory record.
struct Record {
    bytes: Vec<u8>,
}

impl Record {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block(&self) -> Result<u64> {
        // The attributes that some discs put before the data are counted in blocks.
        Ok(u64::from(le32(&self.bytes, 2)?) + u64::from(u8_at(&self.bytes, 1)?))
    }

    fn size(&self) -> Result<u64> {
        Ok(le32(&self.bytes, 10)?.into())
    }

    fn flags(&self) -> Result<u8> {
        u8_at(&self.bytes, 25)
    }

    fn name(&self) -> Result<&[u8]> {
        slice(&self.bytes, 33, u8_at(&self.bytes, 32)?.into())
    }

    fn extensions(&self) -> Result<&[u8]> {
        let at = (33 + usize::from(u8_at(&self.bytes, 32)?)).next_multiple_of(2);
        Ok(self.bytes.get(at..).unwrap_or_default())
    }
}

impl Iso {
    /// The record at a place; none where the sector's rest is empty.
    fn record(&self, at: u64) -> Result<Option<Record>> {
        let len = usize::from(self.device.read_vec(at, 1)?[0]);
        if len == 0 {
            return Ok(None);
        }
        if len < 34 {
            return Err(Error::corrupt("an ISO 9660 record is too short"));
        }
        Ok(Some(Record { bytes: self.device.read_vec(at, len)? }))
    }

    /// Whether the root folder announces Rock Ridge, and how many bytes others use before it.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let Some(root) = self.record(self.root)? else { return Err(Error::corrupt("ISO 9660 without a root folder")) };
        let Some(own) = self.record(root.block()? * self.block_bytes)? else { return Ok(None) };
        let area = own.extensions()?;
        // Behind a CD-ROM XA record of 14 bytes on some discs.
        for skip in [0, 14] {
            if area.get(skip..skip + 7).is_some_and(|field| field.starts_with(b"SP\x07\x01\xbe\xef")) {
                let extra = self.extra(&own, skip)?;
                return Ok(extra.posix.map(|_| usize::from(area[skip + 6])));
            }
        }
        Ok(None)
    }

    fn extra(&self, record: &Record, skip: usize) -> Result<Extra> {
        let mut extra = Extra::default();
        let mut area = record.extensions()?.get(skip..).unwrap_or_default().to_vec();
        let mut link = LinkParts::default();
        for _ in 0..CONTINUATIONS_MAX {
            let mut rest = &area[..];
            let mut next = None;
            // What is left over at the end is padding.
            while let Some(field) = rest.get(2).and_then(|len| rest.get(..usize::from(*len))).filter(|f| f.len() >= 4) {
                match &field[..2] {
                    b"PX" => {
                        let number = |at| le32(field, at);
                        extra.posix = Some((number(4)?, number(12)?, number(20)?, number(28)?));
                    }
                    // A name in several fields; the flags for `.` and `..` have none.
                    b"NM" if u8_at(field, 4)? & 0x6 == 0 => {
                        let name = extra.name.get_or_insert_default();
                        name.extend_from_slice(&field[5..]);
                        name.truncate(crate::path::NAME_BYTES_MAX + 1);
                    }
                    b"SL" => link.add(field)?,
                    b"TF" => extra.modified = modified(field)?.or(extra.modified),
                    b"CL" => extra.moved_to = Some(u64::from(le32(field, 4)?)),
                    b"RE" => extra.hidden = true,
                    b"ZF" => extra.compressed = true,
                    b"CE" => next = Some((le32(field, 4)?, le32(field, 12)?, le32(field, 20)?)),
                    b"ST" => break,
                    _ => {}
                }
                rest = &rest[field.len()..];
            }
            let Some((block, offset, len)) = next else { break };
            let at = u64::from(block) * self.block_bytes + u64::from(offset);
            area = self.device.read_vec(at, (len as usize).min(SECTOR as usize * 16))?;
        }
        extra.link = link.target();
        Ok(extra)
    }

    fn name(&self, record: &Record, extra: &Extra) -> Result<Vec<u8>> {
        let own = record.name()?;
        Ok(match (self.names, own) {
            (_, [0]) => b".".to_vec(),
            (_, [1]) => b"..".to_vec(),
            (Names::RockRidge(_), _) if extra.name.is_some() => extra.name.clone().unwrap_or_default(),
            (Names::Joliet, _) => {
                let units = own.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                without_version(wtf8(units))
            }
            _ => without_version(own.to_ascii_lowercase()),
        })
    }
}

/// `name.txt;1` is `name.txt`, and `name.;1` is `name`.
fn without_version(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(at) = name.iter().rposition(|byte| *byte == b';') {
        name.truncate(at);
    }
    if name.len() > 1 && name.ends_with(b".") {
        name.pop();
    }
    name
}

/// A link's target, in components that may be cut.
#[derive(Default)]
struct LinkParts {
    target: Option<Vec<u8>>,
    /// The last component goes on in the next part.
    open: bool,
}

impl LinkParts {
    fn add(&mut self, field: &[u8]) -> Result<()> {
        let target = self.target.get_or_insert_default();
        let mut at = 5;
        while at + 2 <= field.len() {
            let (flags, len) = (field[at], usize::from(field[at + 1]));
            if !self.open && !target.is_empty() && !target.ends_with(b"/") {
                target.push(b'/');
            }
            match flags & 0xe {
                0x2 => target.push(b'.'),
                0x4 => target.extend_from_slice(b".."),
                0x8 => {
                    target.clear();
                    target.push(b'/');
                }
                _ => target.extend_from_slice(slice(field, at + 2, len)?),
            }
            self.open = flags & 1 != 0;
            at += 2 + len;
        }
        if target.len() > LINK_BYTES_MAX {
            return Err(Error::corrupt("an ISO 9660 link is too long"));
        }
        Ok(())
    }

    fn target(self) -> Option<Vec<u8>> {
        self.target
    }
}

/// The time of the last change in a Rock Ridge field of times.
fn modified(field: &[u8]) -> Result<Option<GuestTime>> {
    let flags = u8_at(field, 4)?;
    if flags & 0x2 == 0 {
        return Ok(None);
    }
    let index = usize::from(flags & 1);
    if flags & 0x80 == 0 {
        return Ok(short_time(slice(field, 5 + index * 7, 7)?));
    }
    let text = slice(field, 5 + index * 17, 17)?;
    let number = |range: std::ops::Range<usize>| {
        std::str::from_utf8(&text[range]).ok().and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(0)
    };
    let date = (number(0..4).into(), number(4..6), number(6..8));
    Ok(calendar::point(date, (number(8..10), number(10..12), number(12..14)), i64::from(text[16] as i8) * 15))
}

/// Seven bytes: year, month, day, hour, minute, second, and the zone in quarters of an hour.
fn short_time(bytes: &[u8]) -> Option<GuestTime> {
    let field = |index: usize| bytes.get(index).copied().map(u32::from);
    let date = (i64::from(field(0)?) + 1900, field(1)?, field(2)?);
    calendar::point(date, (field(3)?, field(4)?, field(5)?), i64::from(*bytes.get(6)? as i8) * 15)
}

impl Volume for Iso {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let record = self.record(number)?.ok_or_else(|| Error::corrupt("an ISO 9660 record is empty"))?;
        let mut described = None;
        if number == self.root {
            // Its extensions are in its own first record.
            described = self.record(record.block()? * self.block_bytes)?;
        }
        let mut extra = match self.names {
            Names::RockRidge(skip) => self.extra(described.as_ref().unwrap_or(&record), skip)?,
            _ => Extra::default(),
        };
        let (mut folder, mut sections) = (record.flags()? & FLAG_FOLDER != 0, Vec::new());
        if let Some(block) = extra.moved_to {
            let moved =
                self.record(block * self.block_bytes)?.ok_or_else(|| Error::corrupt("a moved folder is gone"))?;
            sections.push((moved.block()?, moved.size()?));
            if let Names::RockRidge(skip) = self.names {
                extra.posix = self.extra(&moved, skip)?.posix.or(extra.posix);
            }
            folder = true;
        } else {
            let (mut at, mut section) = (number, record);
            loop {
                let more = section.flags()? & FLAG_MORE != 0;
                sections.push((section.block()?, section.size()?));
                if !more || folder || sections.len() >= SECTIONS_MAX {
                    break;
                }
                at += section.len();
                section = match self.record(at)? {
                    Some(next) => next,
                    None => {
                        at = at.next_multiple_of(SECTOR);
                        self.record(at)?.ok_or_else(|| Error::corrupt("an ISO 9660 file lacks a section"))?
                    }
                };
            }
        }
        let record = self.device.read_vec(number + 18, 7)?;
        let modified = extra.modified.or_else(|| short_time(&record));
        Ok(Inode { number, folder, sections, modified, extra })
    }

    fn meta(&self, inode: &Inode) -> Meta {
        let (mode, links, uid, gid) =
            inode.extra.posix.unwrap_or((if inode.folder { 0o40555 } else { 0o100_555 }, 1, 0, 0));
        let file_type = match mode & 0o170_000 {
            _ if inode.folder => FileType::Directory,
            0o120_000 => FileType::Symlink,
            0o100_000 => FileType::File,
            _ => FileType::Other,
        };
        let bytes = inode.sections.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
        Meta {
            inode: inode.number,
            file_type,
            size_bytes: inode.extra.link.as_ref().map_or(bytes, |target| target.len() as u64),
            mode: mode & 0o7777,
            uid,
            gid,
            links,
            modified: inode.modified,
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        let Some((block, size)) = folder.sections.first().copied() else { return Ok(()) };
        let start = block * self.block_bytes;
        let (mut at, mut first) = (from, None);
        while at < size {
            let Some(record) = self.record(start + at)? else {
                at = (at + 1).next_multiple_of(SECTOR);
                continue;
            };
            let (number, next) = (start + at, at + record.len());
            let first_of_file = *first.get_or_insert(number);
            if record.flags()? & FLAG_MORE == 0 {
                first = None;
                let extra = match self.names {
                    Names::RockRidge(skip) => self.extra(&record, skip)?,
                    _ => Extra::default(),
                };
                let bytes = self.name(&record, &extra)?;
                if !extra.hidden && visit(Name { bytes: &bytes, inode: first_of_file, next }).is_break() {
                    break;
                }
            }
            at = next;
        }
        Ok(())
    }

    fn link(&self, inode: &Inode) -> Result<Vec<u8>> {
        inode.extra.link.clone().ok_or(Error::NotRegular)
    }

    fn map(&self, inode: &Inode, _: u64, _: usize) -> Result<Map> {
        let mut map = Map { segments: Vec::new(), until: u64::MAX };
        let mut start = 0;
        for (block, len) in inode.sections.iter().copied().filter(|(_, len)| *len > 0) {
            map.push(Segment { start, len, at: block * self.block_bytes })?;
            start += len;
        }
        Ok(map)
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        if inode.extra.compressed {
            return Err(Error::unsupported("ISO 9660 file compressed with zisofs"));
        }
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}
