//! The FAT reader against mkfs.vfat and mtools.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::meta::{Consistency, FileType};
use sendense_guestfs::{Error, GuestPath};
use std::path::{Path, PathBuf};

fn image(dir: &Path, name: &str, options: &str, size: &str) -> PathBuf {
    need("mkfs.vfat", "dosfstools");
    sh(dir, &format!("truncate -s {size} {name}.img; mkfs.vfat {options} {name}.img >/dev/null"));
    dir.join(format!("{name}.img"))
}

/// What the file system can keep of a tree: times in steps of two seconds, no owners, no modes.
fn kept(mut tree: Tree) -> Tree {
    for shown in tree.values_mut() {
        (shown.inode, shown.links, shown.owner, shown.mode) = (0, 1, (0, 0), 0);
        shown.modified = (shown.modified.0 / 2 * 2, 0);
        if shown.file_type == FileType::Directory {
            (shown.size, shown.modified) = (0, (0, 0));
        }
    }
    tree
}

#[test]
fn every_width_reads_what_mtools_wrote() {
    need("mcopy", "mtools");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    build_plain_tree(&tree, 300);
    for name in ["A LONGER NAME with Case.text", "näme ☃", "UPPER.TXT", "x.y.z", &"n".repeat(255)] {
        std::fs::write(tree.join(name), name).unwrap();
    }
    for (name, options, size) in [
        ("twelve", "-F 12 -s 8 -n LAB", "8M"),
        ("sixteen", "-F 16 -n 'TWO WORDS'", "64M"),
        ("thirty", "-F 32 -s 1", "64M"),
        ("sectors", "-F 32 -S 4096", "300M"),
    ] {
        let image = image(dir.path(), name, options, size);
        sh(&tree, &format!("export TZ=UTC LC_ALL=C.UTF-8; mcopy -smQ -i {} ./* ::/", image.display()));
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid), "{name}");
        assert_eq!(fs.facts().consistency, Consistency::Clean);
        same(&kept(kernel_tree(&tree)), &kept(reader_tree(&mut *fs, 17)));
    }
}

#[test]
fn a_dirty_volume_says_so_and_a_circle_ends() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "circle", "-F 16 -s 4", "32M");
    sh(dir.path(), "head -c 100000 /dev/zero > file; mcopy -i circle.img file ::/; mmd -i circle.img ::/folder");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[37] |= 1;
    // The first table: every cluster but the first two leads to the first of the file.
    let table = u16::from_le_bytes([bytes[14], bytes[15]]) as usize * 512;
    for entry in bytes[table + 4..table + 400].chunks_exact_mut(2) {
        entry.copy_from_slice(&2u16.to_le_bytes());
    }
    std::fs::write(&image, bytes).unwrap();
    let mut fs = open(&image);
    assert_eq!(fs.facts().consistency, Consistency::LogNotReplayed);
    assert_eq!(cat(&mut *fs, "/file").unwrap().len(), 100_000);
    // The folder's first cluster comes again and again, until its limit.
    let folder = GuestPath::parse(b"/folder").unwrap();
    let mut after = None;
    for _ in 0..1000 {
        after = fs.list(&folder, after, 1000).unwrap().next;
        if after.is_none() {
            return;
        }
    }
    panic!("the folder has no end");
}

#[test]
fn exfat_is_named() {
    let dir = tempfile::tempdir().unwrap();
    need("mkfs.exfat", "exfatprogs");
    sh(dir.path(), "truncate -s 16M ex.img; mkfs.exfat ex.img >/dev/null");
    let error = try_open(&dir.path().join("ex.img")).err().unwrap();
    assert_eq!(error, Error::unsupported("file system exfat"));
}
