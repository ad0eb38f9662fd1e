//! Disks of uncommon sizes: a sparse one of 1 TiB, one that holds nothing but zeros, one that holds nothing at all. What they
//! take is what they hold, wherever they go.

use crate::disk::Random;
use crate::hub::{Hub, field, path, text, tool, tree};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

const TIB: u64 = 1 << 40;

fn image(path: &Path, size: u64) -> File {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file
}

/// What a file takes on disk.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Compares two images byte for byte, by a stranger who looks at sparse images in a moment.
#[track_caller]
fn assert_same(one: (&str, &Path), other: (&str, &Path)) {
    let output = Command::new("qemu-img")
        .args(["compare", "-f", one.0, "-F", other.0, path(one.1), path(other.1)])
        .output()
        .unwrap_or_else(|error| panic!("qemu-img: {error}; install the Debian package qemu-utils"));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Restores a disk in both formats; each equals what the chain in the moved folder gives, and takes little room.
fn check(hub: &Hub, dir: &Path, moved: &Path, backup: &Value, name: &str, most_bytes: u64) {
    let id = field(backup, "backup_id");
    let chain = tree(moved).into_iter().find(|file| file.ends_with(&format!("{id}.qcow2"))).unwrap();
    let chain = moved.join(chain);
    tool("qemu-utils", "qemu-img", &["check", "-q", path(&chain)]);
    for format in ["raw", "qcow2"] {
        let out = dir.join(format!("{name}.{format}"));
        hub.ok(&["restore", "disk", id, "--to", path(&out), "--format", format, "--wait"]);
        assert_same((format, &out), ("qcow2", &chain));
        assert!(allocated(&out) <= most_bytes, "{name}, {format}: {} bytes are allocated", allocated(&out));
        if format == "qcow2" {
            tool("qemu-utils", "qemu-img", &["check", "-q", path(&out)]);
        }
    }
}

#[test]
fn a_sparse_tebibyte_takes_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let source = dir.join("vms/big.raw");
    let mut random = Random::new(81);
    // An odd size, and writes that are aligned to nothing: the first and the last byte, across the middle, on both sides of a hole.
    let size = TIB + 513;
    let file = image(&source, size);
    let mut write = |at: u64, len: usize| {
        let noise: Vec<u8> = std::iter::repeat_with(|| (random.next() >> 8) as u8 | 1).take(len).collect();
        file.write_all_at(&noise, at).unwrap();
    };
    for (at, len) in [(0, 1), (65_535, 2), (TIB / 2 - 777, 200_001), (size / 3, 70_000), (size - 1, 1)] {
        write(at, len);
    }
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let full = hub.backup("big", &[]);
    assert_eq!(full["total_bytes"], size);
    let first = dir.join("first.raw");
    hub.ok(&["restore", "disk", field(&full, "backup_id"), "--to", path(&first), "--wait"]);
    assert_eq!(fs::metadata(&first).unwrap().len(), size);
    assert_same(("raw", &first), ("raw", &source));

    write(TIB / 4 + 13, 66_000);
    write(TIB / 2 - 10, 20);
    let next = hub.backup("big", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental");
    assert!(next["bytes_transferred"].as_u64().unwrap() <= 5 * 65536, "{next:#}");
    let moved = dir.join("moved");
    tool("coreutils", "cp", &["-r", path(&dir.join("repo")), path(&moved)]);
    // Tables of a QCOW2 image of that size come to little when it holds little.
    check(&hub, dir, &moved, &next, "big", 16 << 20);
    let last = dir.join("big.raw");
    assert_eq!(fs::metadata(&last).unwrap().len(), size);
    assert_same(("raw", &last), ("raw", &source));
    assert!(allocated(&dir.join("repo").join(field(&next, "file_path"))) < 16 << 20);
}

#[test]
fn disks_of_zeros_and_of_nothing_are_points_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (zeros, nothing) = (dir.join("vms/zeros.raw"), dir.join("vms/nothing.raw"));
    // Written zeros, which lie on the disk, and not a hole.
    let file = image(&zeros, 0);
    file.write_all_at(&vec![0; 8 << 20], 0).unwrap();
    let empty = image(&nothing, 0);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let before = [hub.backup("zeros", &[]), hub.backup("nothing", &[])];
    for (backup, size) in before.iter().zip([8 << 20, 0]) {
        assert_eq!((field(backup, "backup_type"), &backup["total_bytes"]), ("full", &size.into()), "{backup:#}");
        assert_eq!(backup["bytes_transferred"], 0, "{backup:#}");
    }
    // One gets a byte and loses it again, the other begins to be.
    file.write_all_at(&[1], 5 << 20).unwrap();
    empty.write_all_at(b"it is", 70_000).unwrap();
    let middle = [hub.backup("zeros", &[]), hub.backup("nothing", &[])];
    file.write_all_at(&[0], 5 << 20).unwrap();
    empty.set_len(0).unwrap();
    let after = [hub.backup("zeros", &[]), hub.backup("nothing", &[])];
    assert!(middle.iter().chain(&after).all(|backup| field(backup, "backup_type") == "incremental"));
    let moved = dir.join("moved");
    tool("coreutils", "cp", &["-r", path(&dir.join("repo")), path(&moved)]);
    for (when, backups) in [("before", before), ("middle", middle), ("after", after)] {
        for (backup, name) in backups.iter().zip(["zeros", "nothing"]) {
            check(&hub, dir, &moved, backup, &format!("{name}-{when}"), 1 << 20);
        }
    }
    assert_same(("raw", &dir.join("zeros-after.raw")), ("raw", &zeros));
    assert_eq!(fs::metadata(dir.join("nothing-middle.raw")).unwrap().len(), 70_005);
    for when in ["before", "after"] {
        assert_eq!(fs::metadata(dir.join(format!("nothing-{when}.raw"))).unwrap().len(), 0, "{when}");
    }
}
