//! FAT12, FAT16 and FAT32 with long names.
//!
//! There are no inodes: an entry is known by where it lies on the device. Times have no zone and are taken as UTC. Owner and
//! mode are what Linux shows by default. Short names are in code page 437.

use super::bytes::{label_text, le16, le32, slice, u8_at, wtf8};
use super::calendar;
use super::device::Device;
use super::volume::{Map, MappedFile, Name, Segment, Visit, Volume};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, FileType, GuestTime, Meta};
use crate::native::FileRead;
use sendense_block::ReadAt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

const ENTRY_BYTES: u64 = 32;
/// Linux reads no more of a folder either; 65,536 entries are what the format allows.
const FOLDER_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Clusters walked for one map, so that a call for the start of a file does not walk to its end.
const CLUSTERS_PER_MAP: u64 = 64 * 1024;
/// No entry lies here: the boot sector does.
const ROOT: u64 = 1;

const ATTRIBUTE_READ_ONLY: u8 = 0x1;
const ATTRIBUTE_LABEL: u8 = 0x8;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0xf;

const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// An open file system.
pub struct Fat {
    device: Device,
    width: Width,
    cluster_bytes: u64,
    clusters: u64,
    table_at: u64,
    /// The root folder of FAT12 and FAT16 lies before the clusters.
    root_at: u64,
    root_bytes: u64,
    root_cluster: u64,
    data_at: u64,
    facts: Facts,
}

/// An entry of a folder.
#[derive(Debug, Clone)]
pub struct Inode {
    number: u64,
    attributes: u8,
    first: u64,
    size: u64,
    modified: Option<GuestTime>,
    /// Where the last walk along the chain ended: index and cluster. The next one goes on there.
    hint: Arc<Mutex<(u64, u64)>>,
}

/// Whether the device begins as one; `exfat` is told apart and not read.
pub fn detect(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let Some(boot) = super::read_start(device, 0, 512)? else { return Ok(None) };
    if boot[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    if &boot[3..11] == b"EXFAT   " {
        return Ok(Some("exfat"));
    }
    let jumps = matches!(boot[0], 0xeb | 0xe9);
    Ok((jumps && matches!(boot[21], 0xf0 | 0xf8..) && layout(&boot).is_ok()).then_some("vfat"))
}

struct Layout {
    width: Width,
    sector_bytes: u64,
    cluster_bytes: u64,
    clusters: u64,
    reserved: u64,
    table_sectors: u64,
    tables: u64,
    root_entries: u64,
    sectors: u64,
}

fn layout(boot: &[u8]) -> Result<Layout> {
    let damaged = || Error::corrupt("FAT boot sector contradicts itself");
    let sector_bytes = u64::from(le16(boot, 11)?);
    let per_cluster = u64::from(u8_at(boot, 13)?);
    let (reserved, tables) = (u64::from(le16(boot, 14)?), u64::from(u8_at(boot, 16)?));
    let root_entries = u64::from(le16(boot, 17)?);
    let either = |short: u16, long: u32| if short == 0 { u64::from(long) } else { short.into() };
    let sectors = either(le16(boot, 19)?, le32(boot, 32)?);
    let table_sectors = either(le16(boot, 22)?, le32(boot, 36)?);
    let sound = sector_bytes.is_power_of_two()
        && (512..=4096).contains(&sector_bytes)
        && per_cluster.is_power_of_two()
        && reserved > 0
        && (1..=4).contains(&tables)
        && table_sectors > 0;
    if !sound {
        return Err(damaged());
    }
    let root_sectors = (root_entries * ENTRY_BYTES).div_ceil(sector_bytes);
    let before = reserved + tables * table_sectors + root_sectors;
    let clusters = sectors.checked_sub(before).ok_or_else(damaged)? / per_cluster;
    let width = match clusters {
        _ if le16(boot, 22)? == 0 => Width::Fat32,
        0..4085 => Width::Fat12,
        _ => Width::Fat16,
    };
    let cluster_bytes = sector_bytes * per_cluster;
    Ok(Layout { width, sector_bytes, cluster_bytes, clusters, reserved, table_sectors, tables, root_entries, sectors })
}

/// Opens the file system.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Fat> {
    let device = Device::new(device);
    let boot = device.read_vec(0, 512)?;
    let found = layout(&boot)?;
    let wide = found.width == Width::Fat32;
    let extended = if wide { 64 } else { 36 };
    // With its highest bit set, only the table that the lower ones name is kept up to date.
    let table = match if wide { le16(&boot, 40)? } else { 0 } {
        flags if flags & 0x80 != 0 => u64::from(flags & 0xf).min(found.tables - 1),
        _ => 0,
    };
    let root_at = (found.reserved + found.tables * found.table_sectors) * found.sector_bytes;
    let root_bytes = found.root_entries * ENTRY_BYTES;
    let dirty = u8_at(&boot, extended + 1)? & 1 != 0;
    let (serial, label) = (le32(&boot, extended + 3)?, label_text(slice(&boot, extended + 7, 11)?));
    let facts = Facts {
        kind: "vfat",
        label: label.filter(|label| label != "NO NAME"),
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
        size_bytes: found.sectors * found.sector_bytes,
        // There is no log; what a crash left half done stays so.
        consistency: if dirty { Consistency::LogNotReplayed } else { Consistency::Clean },
    };
    let mut volume = Fat {
        device,
        width: found.width,
        cluster_bytes: found.cluster_bytes,
        clusters: found.clusters,
        table_at: (found.reserved + table * found.table_sectors) * found.sector_bytes,
        root_at,
        root_bytes,
        root_cluster: if wide { le32(&boot, 44)?.into() } else { 0 },
        data_at: root_at + root_bytes.next_multiple_of(found.sector_bytes),
        facts,
    };
    if let Some(label) = volume.root_label()? {
        volume.facts.label = Some(label);
    }
    Ok(volume)
}

impl Fat {
    /// The cluster after this one in its chain; none at its end.
    fn next(&self, cluster: u64) -> Result<Option<u64>> {
        let (next, last) = match self.width {
            Width::Fat12 => {
                let pair = le16(&self.device.read_vec(self.table_at + cluster + cluster / 2, 2)?, 0)?;
                (u64::from(if cluster % 2 == 1 { pair >> 4 } else { pair & 0xfff }), 0xff8)
            }
            Width::Fat16 => (le16(&self.device.read_vec(self.table_at + cluster * 2, 2)?, 0)?.into(), 0xfff8),
            Width::Fat32 => {
                let entry = le32(&self.device.read_vec(self.table_at + cluster * 4, 4)?, 0)?;
                (u64::from(entry & 0x0fff_ffff), 0x0fff_fff8)
            }
        };
        if next >= last {
            return Ok(None);
        }
        self.cluster_at(next)?;
        Ok(Some(next))
    }

    fn cluster_at(&self, cluster: u64) -> Result<u64> {
        match cluster.checked_sub(2) {
            Some(index) if index < self.clusters => Ok(self.data_at + index * self.cluster_bytes),
            _ => Err(Error::corrupt(format!("FAT cluster {cluster} of {}", self.clusters))),
        }
    }

    /// The label that Windows shows is an entry of the root folder.
    fn root_label(&self) -> Result<Option<String>> {
        let mut label = None;
        let root = self.inode(ROOT)?;
        self.entries(&root, 0, &mut |entry, _, _| {
            let long = entry[11] & 0x3f == ATTRIBUTE_LONG_NAME;
            if entry[11] & (ATTRIBUTE_LABEL | ATTRIBUTE_FOLDER) == ATTRIBUTE_LABEL && !long && entry[0] != 0xe5 {
                label = label_text(&entry[..11]);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(label)
    }

    /// Calls `each` with the entries of a folder but those of long names: the entry, its place on the device, its place in
    /// the folder. Free ones are among them, for they end a long name.
    fn entries(&self, folder: &Inode, from: u64, each: &mut Each<'_>) -> Result<()> {
        let mut map = Map::default();
        let mut at = from / ENTRY_BYTES * ENTRY_BYTES;
        let mut map_from = at;
        while at < FOLDER_BYTES_MAX {
            if !(map_from..map.until).contains(&at) {
                (map, map_from) = (self.map(folder, at, 64)?, at);
            }
            let index = map.segments.partition_point(|segment| segment.start + segment.len <= at);
            let Some(segment) = map.segments.get(index).filter(|segment| segment.start <= at) else { break };
            let place = segment.at + (at - segment.start);
            let mut entry = [0; ENTRY_BYTES as usize];
            self.device.read(place, &mut entry)?;
            if entry[0] == 0 || each(&entry, place, at) == ControlFlow::Break(()) {
                break;
            }
            at += ENTRY_BYTES;
        }
        Ok(())
    }
}

type Each<'e> = dyn FnMut(&[u8; ENTRY_BYTES as usize], u64, u64) -> ControlFlow<()> + 'e;

/// The parts of a long name, which come last part first before their entry.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    /// The number that the next part must have; zero when the name is whole.
    expected: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let (order, checksum) = (entry[0], entry[13]);
        if order & 0x40 != 0 {
            *self = LongName { units: Vec::new(), expected: order & 0x1f, checksum };
        }
        if self.expected == 0 || order & 0x1f != self.expected || checksum != self.checksum {
            *self = LongName::default();
            return;
        }
        self.expected -= 1;
        let fields = [&entry[1..11], &entry[14..26], &entry[28..32]];
        let part = fields.iter().flat_map(|field| super::bytes::utf16_le(field)).take_while(|unit| *unit != 0);
        // At most 31 parts of 13 units.
        self.units.splice(0..0, part);
    }

    /// The name, when it is whole and belongs to this entry.
    fn take(&mut self, entry: &[u8]) -> Option<Vec<u8>> {
        let sum = entry[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        let long = std::mem::take(self);
        (long.expected == 0 && !long.units.is_empty() && long.checksum == sum).then(|| wtf8(long.units))
    }
}

/// An entry's own name: eight and three characters, each part perhaps to be shown in small letters.
fn short_name(entry: &[u8]) -> Vec<u8> {
    let mut name = String::new();
    let mut part = |bytes: &[u8], small: bool| {
        for byte in bytes {
            let character = match byte.checked_sub(0x80) {
                Some(index) => CODE_PAGE_437.chars().nth(index.into()).unwrap_or('?'),
                None => char::from(*byte),
            };
            name.push(if small { character.to_ascii_lowercase() } else { character });
        }
    };
    let mut base = entry[..8].to_vec();
    if base[0] == 0x05 {
        base[0] = 0xe5;
    }
    part(base.trim_ascii_end(), entry[12] & 0x8 != 0);
    let extension = entry[8..11].trim_ascii_end();
    if !extension.is_empty() {
        part(b".", false);
        part(extension, entry[12] & 0x10 != 0);
    }
    name.into_bytes()
}

impl Volume for Fat {
    type Inode = Inode;

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn root(&self) -> u64 {
        ROOT
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        if number == ROOT {
            let (first, attributes) = (self.root_cluster, ATTRIBUTE_FOLDER);
            return Ok(Inode { number, attributes, first, size: 0, modified: None, hint: Arc::default() });
        }
        let entry = self.device.read_vec(number, ENTRY_BYTES as usize)?;
        let high = if self.width == Width::Fat32 { u64::from(le16(&entry, 20)?) << 16 } else { 0 };
        let (time, date) = (u32::from(le16(&entry, 22)?), u32::from(le16(&entry, 24)?));
        let date = (i64::from(date >> 9) + 1980, date >> 5 & 0xf, date & 0x1f);
        Ok(Inode {
            number,
            attributes: entry[11],
            first: high | u64::from(le16(&entry, 26)?),
            size: le32(&entry, 28)?.into(),
            modified: calendar::point(date, (time >> 11, time >> 5 & 0x3f, (time & 0x1f) * 2), 0),
            hint: Arc::default(),
        })
    }

    fn meta(&self, inode: &Inode) -> Meta {
        let folder = inode.attributes & ATTRIBUTE_FOLDER != 0;
        Meta {
            inode: inode.number,
            file_type: if folder { FileType::Directory } else { FileType::File },
            size_bytes: if folder { 0 } else { inode.size },
            mode: if inode.attributes & ATTRIBUTE_READ_ONLY != 0 { 0o555 } else { 0o755 },
            uid: 0,
            gid: 0,
            links: 1,
            modified: inode.modified,
        }
    }

    fn names(&self, folder: &Inode, from: u64, visit: &mut Visit<'_>) -> Result<()> {
        let mut long = LongName::default();
        self.entries(folder, from, &mut |entry, place, at| {
            if entry[0] == 0xe5 {
                long = LongName::default();
            } else if entry[11] & 0x3f == ATTRIBUTE_LONG_NAME {
                long.add(entry);
            } else if entry[11] & ATTRIBUTE_LABEL != 0 {
                long = LongName::default();
            } else {
                let bytes = long.take(entry).unwrap_or_else(|| short_name(entry));
                return visit(Name { bytes: &bytes, inode: place, next: at + ENTRY_BYTES });
            }
            ControlFlow::Continue(())
        })
    }

    fn link(&self, _: &Inode) -> Result<Vec<u8>> {
        Err(Error::NotRegular)
    }

    fn map(&self, inode: &Inode, from: u64, max: usize) -> Result<Map> {
        let mut map = Map { segments: Vec::new(), until: u64::MAX };
        if inode.number == ROOT && self.width != Width::Fat32 {
            map.push(Segment { start: 0, len: self.root_bytes.max(1), at: self.root_at })?;
            return Ok(map);
        }
        let folder = inode.attributes & ATTRIBUTE_FOLDER != 0;
        if inode.first == 0 {
            // An empty file has no cluster. (`..` to the root has none either, but is never followed.)
            return if folder || inode.size == 0 {
                Ok(map)
            } else {
                Err(Error::corrupt("a FAT file without clusters"))
            };
        }
        let wanted = from / self.cluster_bytes;
        // A chain may be a circle; nobody needs more of it than the file is long.
        let end = if folder { FOLDER_BYTES_MAX } else { inode.size }.div_ceil(self.cluster_bytes);
        let mut hint = inode.hint.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (mut index, mut cluster) = if hint.1 != 0 && hint.0 <= wanted { *hint } else { (0, inode.first) };
        let first = wanted;
        while index < end {
            let at = self.cluster_at(cluster)?;
            if index >= wanted {
                if map.segments.len() >= max || index - first >= CLUSTERS_PER_MAP {
                    map.until = index * self.cluster_bytes;
                    break;
                }
                map.push(Segment { start: index * self.cluster_bytes, len: self.cluster_bytes, at })?;
            }
            if index + 1 == end {
                break;
            }
            match self.next(cluster)? {
                Some(next) => (index, cluster) = (index + 1, next),
                None if folder => break,
                None => return Err(Error::corrupt("a FAT chain ends before its file")),
            }
        }
        *hint = (index, cluster);
        Ok(map)
    }

    fn open(self: &Arc<Self>, inode: Inode) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(MappedFile::new(self.clone(), inode)))
    }
}
