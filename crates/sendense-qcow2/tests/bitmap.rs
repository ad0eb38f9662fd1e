//! Dirty bitmaps that QEMU made tell what QEMU wrote.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use sendense_block::backend::{File, Options};
use sendense_block::{ByteLen, ByteOffset, ChangeMap, Extent, ExtentSet, Kind};
use sendense_qcow2::Image;
use sendense_qcow2::bitmap::{Changes, State};
use std::path::Path;
use std::sync::Arc;
use support::*;

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> Arc<Image> {
    Arc::new(Image::open(Arc::new(File::open(path, Options::Read).unwrap())).unwrap())
}

fn bitmap(arguments: &[&str], path: &Path, name: &str) {
    qemu("qemu-img", &[&["bitmap", "-f", "qcow2"], arguments, &[text(path), name]].concat());
}

/// The ranges of these writes grown to the granularity, cut at the disk's end.
fn grown(writes: &[(u64, u64)], granularity: u64, size: u64) -> ExtentSet {
    let ranges = writes.iter().map(|(at, len)| {
        let end = (at + len).next_multiple_of(granularity).min(size);
        Extent::between(ByteOffset(at / granularity * granularity), ByteOffset(end))
    });
    ranges.collect()
}

#[test]
fn bits_are_what_was_written_since_the_bitmap_began() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    let size = 40 * MIB + 512;
    qemu("qemu-img", &["create", "-f", "qcow2", "-o", "cluster_size=512", text(&path), &size.to_string()]);
    assert_eq!(open(&path).bitmaps().unwrap(), []);
    qemu_io(&path, &["write -P 1 0 2M".to_owned()]);
    bitmap(&["--add", "-g", "64k"], &path, "first");
    bitmap(&["--add", "-g", "512"], &path, "fine");
    let early = [(3 * MIB + 5 * 512, 512), (20 * MIB - 512, 70_144), (size - 512, 512)];
    let io = |writes: &[(u64, u64)]| {
        qemu_io(&path, &writes.iter().map(|(at, len)| format!("write -P 7 {at} {len}")).collect::<Vec<_>>());
    };
    io(&early);
    bitmap(&["--add", "-g", "1M"], &path, "second");
    bitmap(&["--add", "--disable", "-g", "64k"], &path, "idle");
    let late = [(0, 512), (30 * MIB, 3 * MIB)];
    io(&late);
    let all = [&early[..], &late[..]].concat();

    let image = open(&path);
    let bitmaps = image.bitmaps().unwrap();
    let told: Vec<_> = bitmaps.iter().map(|b| (b.name.as_str(), b.granularity.0, b.auto, b.state)).collect();
    assert_eq!(
        told,
        [
            ("first", 65536, true, State::Consistent),
            ("fine", 512, true, State::Consistent),
            ("second", MIB, true, State::Consistent),
            ("idle", 65536, false, State::Consistent),
        ]
    );
    let whole = Extent::whole(image.size());
    for (bitmap, writes) in bitmaps.iter().zip([&all[..], &all, &late, &[]]) {
        let want = grown(writes, bitmap.granularity.0, size);
        assert_eq!(image.dirty(bitmap, whole).unwrap(), want, "{}", bitmap.name);
        // Window by window, at odd places, gives the same.
        let parts = whole.pieces(ByteLen(777_777)).map(|window| image.dirty(bitmap, window).unwrap());
        assert_eq!(parts.fold(ExtentSet::new(), |all, part| all.union(&part)), want, "{}", bitmap.name);
    }
    let changes = Changes::new(image.clone(), "first").unwrap();
    assert_eq!(changes.changed(whole).unwrap(), grown(&all, 65536, size));
    assert_eq!(Changes::new(image, "none").map(|_| ()).unwrap_err().kind, Kind::NotFound);
    // Every bit of a bitmap set, as bits and as the table's word for it.
    bitmap(&["--add", "-g", "64k"], &path, "rest");
    qemu_io(&path, &[format!("write -P 9 0 {size}")]);
    let image = open(&path);
    let rest = image.bitmaps().unwrap().pop().unwrap();
    assert_eq!(image.dirty(&rest, whole).unwrap(), [whole].into_iter().collect());
    let mut bytes = std::fs::read(&path).unwrap();
    let entry = rest_table(&bytes);
    bytes[entry..entry + 8].copy_from_slice(&1u64.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(open(&path).dirty(&rest, whole).unwrap(), [whole].into_iter().collect());
}

/// Where the table of the last bitmap of the directory lies, of which the first entry covers the whole disk or its start.
fn rest_table(image: &[u8]) -> usize {
    // The name "rest" stands 24 bytes behind the entry's start in the directory.
    let name = image.windows(4).rposition(|bytes| bytes == b"rest").unwrap();
    u64::from_be_bytes(*image[name - 24..].first_chunk().unwrap()) as usize
}

#[test]
fn what_was_not_closed_properly_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", text(&path), "4M"]);
    bitmap(&["--add"], &path, "lost");
    // qemu-io that aborts leaves the bitmap in use, as a killed QEMU does.
    qemu_output("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "abort", text(&path)]);
    let image = open(&path);
    let bitmaps = image.bitmaps().unwrap();
    assert_eq!(bitmaps[0].state, State::Inconsistent);
    assert!(image.dirty(&bitmaps[0], Extent::whole(image.size())).is_err());
    assert_eq!(Changes::new(image, "lost").map(|_| ()).unwrap_err().kind, Kind::Corrupt);

    // The autoclear bit is gone: somebody who knows no bitmaps has written.
    let path = at(&dir, "cleared.qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", text(&path), "4M"]);
    bitmap(&["--add"], &path, "stale");
    assert_eq!(open(&path).bitmaps().unwrap()[0].state, State::Consistent);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[95] &= !1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(open(&path).bitmaps().unwrap()[0].state, State::Inconsistent);
}
