//! LVM2: the label and metadata of one physical volume, and the logical volumes that lie wholly on it in linear segments.
//!
//! What does not live here: thin pools, stripes, mirrors, volume groups over several disks; they are named, with the reason.
//!
//! Invariant: metadata counts only with the right checksum, and no volume maps to anything but its own physical volume.

mod text;

use super::bytes::{crc32, le32, le64, read};
use super::mapping::{Mapping, Piece};
use crate::error::{Error, Result};
use crate::volume::VOLUMES_MAX;
use sendense_block::ReadAt;
use std::collections::BTreeMap;
use std::sync::Arc;
use text::{Section, Value};

const SECTOR: u64 = 512;
/// The label lies in one of the first four sectors.
const LABEL_SECTORS: u64 = 4;
/// LVM's checksums begin with this and are not inverted.
const CRC_SEED: u32 = 0xf597_a6cf;
/// The header of a metadata area; the ring of texts begins behind it.
const AREA_HEADER_BYTES: u64 = 512;
/// The longest metadata text. Areas have 1 MiB by default; a group of thousands of volumes is told to make them larger.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// How many metadata areas are tried; a physical volume has two at most.
const AREAS_MAX: usize = 4;
/// The most segments of one volume; one that was grown a thousand times.
const SEGMENTS_MAX: u64 = 65_536;

/// A logical volume.
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// Its UUID in LVM's form.
    pub uuid: Option<String>,
    /// Its length.
    pub size_bytes: u64,
    /// `linear`, `thin`, `striped` …
    pub kind: String,
    /// Its content, or why it cannot be read.
    pub content: Result<Arc<dyn ReadAt>>,
}

/// A physical volume and its group.
pub struct Group {
    /// The group's name.
    pub name: String,
    /// The visible volumes, in the order of their names.
    pub volumes: Vec<LogicalVolume>,
}

/// True when the device has an LVM2 label.
///
/// # Errors
/// The device cannot be read.
pub fn detect(device: &dyn ReadAt) -> Result<bool> {
    Ok(label(device)?.is_some())
}

/// Reads the group whose physical volume this is.
///
/// # Errors
/// [`Error::Corrupt`] when no metadata is sound, [`Error::Unsupported`] for a physical volume of no group.
pub fn open(device: &Arc<dyn ReadAt>) -> Result<Group> {
    let header = label(device.as_ref())?.ok_or_else(|| Error::corrupt("the LVM label is gone"))?;
    let (uuid, areas) = parse_header(&header).ok_or_else(|| Error::corrupt("the LVM label is cut off"))?;
    let mut seen_empty = false;
    for (at, len) in areas {
        match read_area(device.as_ref(), at, len)? {
            Area::Text(text) => {
                let root = text::parse(&text).ok_or_else(|| Error::corrupt("the LVM metadata is not of LVM's form"))?;
                return group(&root, &uuid, device)
                    .unwrap_or_else(|| Err(Error::corrupt("the LVM metadata lacks something")));
            }
            Area::Empty => seen_empty = true,
            Area::Unsound => {}
        }
    }
    if seen_empty {
        return Err(Error::unsupported("LVM physical volume without a volume group, or with its metadata elsewhere"));
    }
    Err(Error::corrupt("no copy of the LVM metadata is sound"))
}

/// The sector's physical volume header.
fn label(device: &dyn ReadAt) -> Result<Option<Vec<u8>>> {
    for sector in 0..LABEL_SECTORS {
        let Some(bytes) = read(device, sector * SECTOR, SECTOR as usize)? else { return Ok(None) };
        if !bytes.starts_with(b"LABELONE") || bytes.get(24..32) != Some(b"LVM2 001") {
            continue;
        }
        let sound = le64(&bytes, 8) == Some(sector) && le32(&bytes, 16) == Some(crc32(CRC_SEED, &bytes[20..]));
        let offset = le32(&bytes, 20).unwrap_or(0) as usize;
        if let (true, Some(header)) = (sound, bytes.get(offset..)) {
            return Ok(Some(header.to_vec()));
        }
    }
    Ok(None)
}

/// The physical volume's UUID, and where metadata areas lie: two lists of (offset, length), each ended by zeros, data first.
fn parse_header(header: &[u8]) -> Option<(String, Vec<(u64, u64)>)> {
    let uuid = String::from_utf8(header.get(..32)?.to_vec()).ok()?;
    let mut at = 40;
    let mut list = || {
        let mut areas = Vec::new();
        loop {
            let (offset, len) = (le64(header, at)?, le64(header, at + 8)?);
            at += 16;
            if offset == 0 {
                return Some(areas);
            }
            areas.push((offset, len));
        }
    };
    let _data = list()?;
    let mut metadata = list()?;
    metadata.truncate(AREAS_MAX);
    Some((uuid, metadata))
}

enum Area {
    Text(Vec<u8>),
    Empty,
    Unsound,
}

fn read_area(device: &dyn ReadAt, at: u64, len: u64) -> Result<Area> {
    let Some(header) = read(device, at, AREA_HEADER_BYTES as usize)? else { return Ok(Area::Unsound) };
    let sound = header.get(4..20) == Some(b" LVM2 x[5A%r0N*>")
        && le32(&header, 0) == Some(crc32(CRC_SEED, &header[4..]))
        && le64(&header, 24) == Some(at);
    let raw = (le64(&header, 40), le64(&header, 48), le32(&header, 56));
    let (true, (Some(offset), Some(size), Some(sum))) = (sound, raw) else { return Ok(Area::Unsound) };
    if offset == 0 || size == 0 {
        return Ok(Area::Empty);
    }
    if size > TEXT_BYTES_MAX || !(AREA_HEADER_BYTES..len).contains(&offset) || size > len - AREA_HEADER_BYTES {
        return Ok(Area::Unsound);
    }
    // The area is a ring behind its header: what passes its end goes on at the ring's begin.
    let first = size.min(len - offset);
    let Some(mut text) = at.checked_add(offset).map_or(Ok(None), |from| read(device, from, first as usize))? else {
        return Ok(Area::Unsound);
    };
    if first < size {
        match read(device, at + AREA_HEADER_BYTES, (size - first) as usize)? {
            Some(rest) => text.extend_from_slice(&rest),
            None => return Ok(Area::Unsound),
        }
    }
    Ok(if crc32(CRC_SEED, &text) == sum { Area::Text(text) } else { Area::Unsound })
}

/// The group: the first section is it; what stands beside it describes the text.
fn group(root: &Section, uuid: &str, device: &Arc<dyn ReadAt>) -> Option<Result<Group>> {
    let (name, vg) = root.sections.iter().next()?;
    let extent_bytes = vg.number("extent_size")?.checked_mul(SECTOR)?;
    let physical = vg.sections.get("physical_volumes")?;
    let plain = |id: &str| id.replace('-', "");
    let (own, pv) = physical.sections.iter().find(|(_, pv)| pv.text("id").is_some_and(|id| plain(id) == uuid))?;
    let data_at = pv.number("pe_start")?.checked_mul(SECTOR)?;
    let here = Place { device, own, data_at, extent_bytes };
    let none = Section::default();
    let volumes = vg.sections.get("logical_volumes").unwrap_or(&none);
    // By the names that people know.
    let mut named: BTreeMap<&str, LogicalVolume> = BTreeMap::new();
    for volume in volumes.sections.values() {
        if let Some(store) = snapshot_store(volume) {
            named.insert(store, here.snapshot(store, volume, volumes.sections.get(store)));
        }
    }
    for (name, volume) in volumes.sections.iter().filter(|(_, volume)| is_visible(volume)).take(VOLUMES_MAX) {
        if snapshot_store(volume).is_none() {
            named.entry(name).or_insert_with(|| here.volume(name, volume));
        }
    }
    Some(Ok(Group { name: name.clone(), volumes: named.into_values().take(VOLUMES_MAX).collect() }))
}

fn is_visible(volume: &Section) -> bool {
    let visible = Value::Text("VISIBLE".into());
    volume.list("status").is_some_and(|status| status.contains(&visible))
}

/// For a snapshot, which LVM itself names `snapshot0`, the volume with the old blocks, whose name is the one that people gave it.
/// Read as it lies, that one is no disk.
fn snapshot_store(volume: &Section) -> Option<&str> {
    volume.sections.values().find_map(|segment| segment.text("cow_store"))
}

/// What a segment's numbers count from.
struct Place<'a> {
    device: &'a Arc<dyn ReadAt>,
    own: &'a str,
    data_at: u64,
    extent_bytes: u64,
}

impl Place<'_> {
    /// A snapshot under the name of its store.
    fn snapshot(&self, name: &str, volume: &Section, store: Option<&Section>) -> LogicalVolume {
        LogicalVolume {
            name: name.to_owned(),
            uuid: store.and_then(|store| store.text("id")).and_then(crate::volume::shown),
            size_bytes: self.size(&segments(volume)),
            kind: "snapshot".into(),
            content: Err(Error::unsupported("LVM snapshot")),
        }
    }

    fn size(&self, segments: &[&Section]) -> u64 {
        let extents = segments.iter().filter_map(|segment| segment.number("extent_count"));
        extents.fold(0u64, |sum, count| sum.saturating_add(count)).saturating_mul(self.extent_bytes)
    }

    fn volume(&self, name: &str, volume: &Section) -> LogicalVolume {
        let segments = segments(volume);
        let kind = segments.first().and_then(|segment| segment.text("type")).unwrap_or("unknown");
        let kind = if is_linear(segments.first()) { "linear" } else { kind };
        let content = self.pieces(&segments).and_then(|pieces| {
            let mapping = Mapping::new(self.device.clone(), pieces)?;
            Ok(Arc::new(mapping) as Arc<dyn ReadAt>)
        });
        LogicalVolume {
            name: name.to_owned(),
            uuid: volume.text("id").and_then(crate::volume::shown),
            size_bytes: self.size(&segments),
            kind: crate::volume::shown(kind).unwrap_or_default(),
            content,
        }
    }

    /// Where the segments lie. They must follow one another without a gap.
    fn pieces(&self, segments: &[&Section]) -> Result<Vec<Piece>> {
        let gap = || Error::corrupt("the segments of the volume do not follow one another");
        let mut pieces = Vec::new();
        let mut expected = 0u64;
        for segment in segments {
            let count = segment.number("extent_count").ok_or_else(gap)?;
            if segment.number("start_extent") != Some(expected) || count == 0 {
                return Err(gap());
            }
            expected = expected.checked_add(count).ok_or_else(gap)?;
            if !is_linear(Some(segment)) {
                let kind = segment.text("type").unwrap_or("unknown");
                return Err(Error::unsupported(format!(
                    "LVM {} volume",
                    crate::volume::shown(kind).unwrap_or_default()
                )));
            }
            let Some([Value::Text(physical), Value::Number(extent)]) = segment.list("stripes") else {
                return Err(gap());
            };
            if physical != self.own {
                return Err(Error::unsupported("LVM volume that lies on another disk too"));
            }
            let extent = u64::try_from(*extent).map_err(|_| gap())?;
            let start = extent.checked_mul(self.extent_bytes).and_then(|at| at.checked_add(self.data_at));
            let len = count.checked_mul(self.extent_bytes);
            pieces.push(Piece { start: start.ok_or_else(gap)?, len: len.ok_or_else(gap)? });
        }
        if pieces.is_empty() { Err(gap()) } else { Ok(pieces) }
    }
}

/// LVM calls a linear segment "striped over one".
fn is_linear(segment: Option<&&Section>) -> bool {
    segment.is_some_and(|segment| {
        matches!(segment.text("type"), Some("striped" | "linear")) && segment.number("stripe_count").unwrap_or(1) == 1
    })
}

/// The segments in their order. They are named `segment1`, `segment2` …
fn segments(volume: &Section) -> Vec<&Section> {
    let count = volume.number("segment_count").unwrap_or(0).min(SEGMENTS_MAX);
    (1..=count).map_while(|number| volume.sections.get(&format!("segment{number}"))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::disk;
    use super::*;

    /// A physical volume with the given metadata text, beginning near the ring's end when `wrapped`.
    fn physical(text: &str, wrapped: bool) -> Vec<u8> {
        let mut disk = vec![0u8; 8 << 20];
        let (area_at, area_len) = (4096usize, 1_044_480usize);
        let mut label = vec![0u8; 512];
        label[..8].copy_from_slice(b"LABELONE");
        label[8..16].copy_from_slice(&1u64.to_le_bytes());
        label[20..24].copy_from_slice(&32u32.to_le_bytes());
        label[24..32].copy_from_slice(b"LVM2 001");
        label[32..64].copy_from_slice(&[b'u'; 32]);
        label[64..72].copy_from_slice(&(8u64 << 20).to_le_bytes());
        label[72..80].copy_from_slice(&(1u64 << 20).to_le_bytes());
        label[104..112].copy_from_slice(&(area_at as u64).to_le_bytes());
        label[112..120].copy_from_slice(&(area_len as u64).to_le_bytes());
        let sum = crc32(CRC_SEED, &label[20..]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[512..1024].copy_from_slice(&label);
        let offset = if wrapped { area_len - 50 } else { 512 };
        for (n, byte) in text.bytes().enumerate() {
            let at = offset + n;
            disk[area_at + if at < area_len { at } else { at - area_len + 512 }] = byte;
        }
        let mut header = vec![0u8; 512];
        header[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
        header[20..24].copy_from_slice(&1u32.to_le_bytes());
        header[24..32].copy_from_slice(&(area_at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(area_len as u64).to_le_bytes());
        header[40..48].copy_from_slice(&(offset as u64).to_le_bytes());
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        header[56..60].copy_from_slice(&crc32(CRC_SEED, text.as_bytes()).to_le_bytes());
        let sum = crc32(CRC_SEED, &header[4..]);
        header[..4].copy_from_slice(&sum.to_le_bytes());
        disk[area_at..area_at + 512].copy_from_slice(&header);
        disk
    }

    fn metadata(volumes: &str) -> String {
        format!(
            "vg0 {{ id = \"g\" extent_size = 2048 physical_volumes {{ pv0 {{ id = \"{}\" pe_start = 2048 pe_count = 6 }} \
             pv1 {{ id = \"other\" pe_start = 2048 }} }} logical_volumes {{ {volumes} }} }} contents = \"x\"",
            "u".repeat(32)
        )
    }

    fn volume(name: &str, segments: &[&str]) -> String {
        let mut text =
            format!("{name} {{ id = \"l\" status = [\"READ\", \"VISIBLE\"] segment_count = {}", segments.len());
        for (start, body) in segments.iter().enumerate() {
            let number = start + 1;
            text += &format!(" segment{number} {{ start_extent = {start} extent_count = 1 {body} }}");
        }
        text + " }"
    }

    #[test]
    fn linear_volumes_map_segment_by_segment_also_from_a_wrapped_text() {
        let linear = |pv: &str, extent| format!("type = \"striped\" stripe_count = 1 stripes = [\"{pv}\", {extent}]");
        let (a, b, far) = (linear("pv0", 4), linear("pv0", 1), linear("pv1", 0));
        let text = metadata(&[
            volume("root", &[&a, &b]),
            volume("far", &[&a, &far]),
            volume("pool", &["type = \"thin-pool\""]),
            volume("beyond", &[&linear("pv0", 700)]),
            volume("store", &[&b]),
            "hidden { id = \"h\" status = [\"READ\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"snapshot\" cow_store = \"store\" } }".into(),
            // As LVM writes it: the store is not visible, what refers to it is.
            volume("snapshot0", &["type = \"snapshot\" origin = \"root\" cow_store = \"before\""]),
            "before { id = \"b\" status = [\"READ\", \"WRITE\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"striped\" } }".into(),
            volume("cached", &["type = \"cache\" cache_pool = \"fast\""]),
        ].join(" "));
        for wrapped in [false, true] {
            let mut bytes = physical(&text, wrapped);
            bytes[(1 << 20) + (4 << 20)] = 0xaa;
            bytes[(1 << 20) + (1 << 20)] = 0xbb;
            let device = disk(bytes);
            assert!(detect(device.as_ref()).unwrap());
            let group = open(&device).unwrap();
            assert_eq!(group.name, "vg0");
            let names: Vec<_> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
            assert_eq!(names, ["before", "beyond", "cached", "far", "pool", "root", "store"]);
            let [before, beyond, cached, far, pool, root, store] = &group.volumes[..] else { panic!() };
            assert!(matches!(&before.content, Err(Error::Unsupported(why)) if why.0.contains("snapshot")));
            assert_eq!((&*before.kind, before.uuid.as_deref(), before.size_bytes), ("snapshot", Some("b"), 1 << 20));
            assert!(matches!(&cached.content, Err(Error::Unsupported(why)) if why.0.contains("cache")));
            assert!(matches!(beyond.content, Err(Error::Corrupt(_))));
            assert!(matches!(&far.content, Err(Error::Unsupported(why)) if why.0.contains("another disk")));
            assert!(matches!(&pool.content, Err(Error::Unsupported(why)) if why.0.contains("thin-pool")));
            assert!(matches!(&store.content, Err(Error::Unsupported(why)) if why.0.contains("snapshot")));
            let root = root.content.as_ref().unwrap();
            let mut byte = [0];
            root.read_at(sendense_block::ByteOffset(0), &mut byte).unwrap();
            assert_eq!(byte, [0xaa]);
            root.read_at(sendense_block::ByteOffset(1 << 20), &mut byte).unwrap();
            assert_eq!((byte, root.size().0), ([0xbb], 2 << 20));
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let sound = physical(&metadata(""), false);
        for at in [512 + 40, 4096 + 30, 4096 + 512 + 5] {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            assert!(open(&disk(bytes)).is_err(), "{at}");
        }
        assert!(open(&disk(sound)).is_ok());
    }
}
