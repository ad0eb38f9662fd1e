//! The btrfs reader against mkfs.btrfs and the kernel.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::meta::Consistency;
use sendense_guestfs::{Error, GuestPath};
use std::path::{Path, PathBuf};

fn image(dir: &Path, name: &str, options: &str) -> PathBuf {
    need("mkfs.btrfs", "btrfs-progs");
    sh(dir, &format!("truncate -s 400M {name}.img; mkfs.btrfs -q -L lab-{name} {options} {name}.img"));
    dir.join(format!("{name}.img"))
}

/// Numbers are those of the subvolume; a folder's link count is always 1.
fn kept(mut tree: Tree) -> Tree {
    for shown in tree.values_mut() {
        shown.inode &= 0xffff_ffff_ffff;
    }
    tree
}

fn build(dir: &Path, entries: usize) {
    build_tree(dir, entries);
    sh(
        dir,
        "btrfs -q subvolume create home; echo mine > home/file; btrfs -q subvolume create home/inner; echo deep > home/inner/file
         btrfs -q subvolume snapshot . snapshot; echo changed > etc/passwd; btrfs -q subvolume snapshot home home2
         (seq 1 50000; head -c 200000 /dev/urandom; head -c 500000 /dev/zero; seq 1 90000) > mixed
         printf tiny > tiny; seq 1 300 > inline; truncate -s 70000 inline_hole; printf x >> inline_hole
         cp --reflink=always mixed clone; fallocate -l 100000 allocated; printf y > allocated",
    );
    // Whatever was written is overwritten in places, so that extents are used in part.
    sh(
        dir,
        "for n in 1 5 9; do dd if=/dev/urandom of=mixed bs=4096 seek=$((n * 7)) count=3 conv=notrunc status=none; done",
    );
}

#[test]
fn every_variant_reads_as_the_kernel_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, mount, entries) in [
        ("plain", "", "", 3000),
        ("zlib", "-M -n 4096", ",compress-force=zlib", 300),
        ("lzo", "-m dup -O ^no-holes", ",compress-force=lzo", 300),
        ("zstd", "-n 65536", ",compress-force=zstd", 300),
    ] {
        let image = image(dir.path(), name, options);
        let mounted = Mounted::new(&image, mount);
        build(&mounted.dir, entries);
        drop(mounted);
        let mounted = Mounted::new(&image, ",ro");
        let kernel = kernel_tree(&mounted.dir);
        drop(mounted);
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid), "{name}");
        assert_eq!(fs.facts().consistency, Consistency::Clean);
        let read = kept(reader_tree(&mut *fs, 97));
        // A subvolume that is not in a snapshot is shown as an empty folder there.
        assert!(kernel.contains_key(&b"/home/inner/file"[..]) && !kernel.contains_key(&b"/home2/inner/file"[..]));
        let placeholders = |path: &[u8]| path.ends_with(b"/inner") || path.ends_with(b"/home");
        let without = |tree: Tree| -> Tree { tree.into_iter().filter(|(path, _)| !placeholders(path)).collect() };
        assert!(read.contains_key(&b"/home2/inner"[..]) && !read.contains_key(&b"/home2/inner/file"[..]));
        same(&without(kept(kernel)), &without(read));
        check_sparse(&mut *fs);
    }
}

#[test]
fn a_tree_log_is_refused_and_a_commit_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "dirty", "");
    let mounted = Mounted::new(&image, ",commit=300");
    build(&mounted.dir, 100);
    sh(&mounted.dir, "btrfs -q filesystem sync .");
    let (copy, logged) = (image.with_extension("copy"), image.with_extension("logged"));
    std::fs::copy(&image, &copy).unwrap();
    std::fs::write(mounted.dir.join("last"), vec![3; 30_000]).unwrap();
    std::fs::File::open(mounted.dir.join("last")).unwrap().sync_all().unwrap();
    std::fs::copy(&image, &logged).unwrap();
    drop(mounted);
    // Committed while mounted: whole as it is, for nothing is ever overwritten.
    let mut fs = open(&copy);
    assert_eq!(cat(&mut *fs, "/tiny").unwrap(), b"tiny");
    // Fsynced since: in the log only.
    let error = try_open(&logged).err().unwrap();
    assert_eq!(error, Error::unsupported("btrfs tree log that must be replayed"));
}

#[test]
fn what_is_not_readable_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, reason) in
        [("xxhash", "--csum xxhash", "btrfs checksums xxhash64"), ("blake", "--csum blake2", "btrfs checksums blake2b")]
    {
        let error = try_open(&image(dir.path(), name, options)).err().unwrap();
        assert_eq!(error, Error::unsupported(reason));
    }
    sh(dir.path(), "truncate -s 300M a.img b.img; mkfs.btrfs -q -d raid1 -m raid1 a.img b.img");
    let error = try_open(&dir.path().join("a.img")).err().unwrap();
    assert_eq!(error, Error::unsupported("btrfs over 2 devices"));
}

#[test]
fn a_damaged_copy_of_metadata_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "dup", "-m dup");
    let mounted = Mounted::new(&image, "");
    sh(&mounted.dir, "mkdir folder; echo x > folder/x");
    drop(mounted);
    let mut bytes = std::fs::read(&image).unwrap();
    let mut fs = open(&image);
    let names = |fs: &mut dyn sendense_guestfs::native::FileSystem| {
        fs.list(&GuestPath::parse(b"/folder").unwrap(), None, 10).unwrap().entries
    };
    let before = names(&mut *fs);
    // The first copy of every node of the file tree: leaves whose owner is tree 5.
    let mut seen = std::collections::BTreeSet::new();
    for at in (0..bytes.len() - 16384).step_by(16384) {
        let logical = bytes[at + 48..at + 56].to_vec();
        let owner = u64::from_le_bytes(bytes[at + 88..at + 96].try_into().unwrap());
        if owner == 5 && bytes[at + 100] == 0 && at > 1 << 20 && seen.insert(logical) {
            bytes[at + 200] ^= 0xff;
        }
    }
    assert!(!seen.is_empty());
    std::fs::write(&image, bytes).unwrap();
    assert_eq!(names(&mut *open(&image)), before);
}
