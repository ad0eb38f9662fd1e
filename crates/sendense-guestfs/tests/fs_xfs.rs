//! The XFS reader against mkfs.xfs and the kernel.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::Error;
use sendense_guestfs::meta::{Consistency, FileType};
use std::path::{Path, PathBuf};

const VARIANTS: [(&str, &str, usize); 3] = [
    ("plain", "", 3000),
    ("small", "-b size=2048 -n size=8192 -m bigtime=0,reflink=0,finobt=0 -i size=1024", 1500),
    ("new", "-i nrext64=1 -m bigtime=1,rmapbt=1 -d agcount=3", 1000),
];

fn image(dir: &Path, name: &str, options: &str) -> PathBuf {
    need("mkfs.xfs", "xfsprogs");
    sh(dir, &format!("truncate -s 320M {name}.img; mkfs.xfs -q -L lab-{name} {options} {name}.img"));
    dir.join(format!("{name}.img"))
}

/// A file in so many pieces that its extents need a tree.
fn fragment(dir: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(dir.join("pieces")).unwrap();
    for piece in 0..1500_u64 {
        file.write_all_at(&piece.to_le_bytes(), piece * 12288).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn every_variant_reads_as_the_kernel_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, entries) in VARIANTS {
        let image = image(dir.path(), name, options);
        let mounted = Mounted::new(&image, "");
        build_tree(&mounted.dir, entries);
        fragment(&mounted.dir);
        let kernel = kernel_tree(&mounted.dir);
        drop(mounted);
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid), "{name}");
        assert_eq!(fs.facts().consistency, Consistency::Clean, "{name}");
        same(&kernel, &reader_tree(&mut *fs, 97));
        check_sparse(&mut *fs);
    }
}

#[test]
fn a_copy_of_a_mounted_image_reads_as_after_the_kernels_replay() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, entries) in VARIANTS {
        let image = image(dir.path(), name, options);
        let mounted = Mounted::new(&image, "");
        build_tree(&mounted.dir, entries);
        fragment(&mounted.dir);
        // Folders that grow, shrink and go, so that their blocks are cancelled in the log and used again.
        sh(
            &mounted.dir,
            "sync -f .; rm -r many; mkdir after other; rm hard; mv big after/; echo late > late
             for i in {1..400}; do echo $i > after/$i; done; sync -f .; rm after/1* after/3*
             for i in {1..300}; do echo $i > other/name_that_is_rather_long_$i; done; sync -f .
             rm -r other; for i in {1..200}; do mkdir after/d$i; ln -s $i after/d$i/link; done
             truncate -s 5000 pieces; ln late after/d7/late; chmod 600 late; chown 7:8 late; sync -f .",
        );
        let (copy, oracle) = (image.with_extension("copy"), image.with_extension("oracle"));
        std::fs::copy(&image, &copy).unwrap();
        drop(mounted);
        std::fs::copy(&copy, &oracle).unwrap();
        let replayed = Mounted::new(&oracle, ",nouuid");
        let kernel = kernel_tree(&replayed.dir);
        drop(replayed);
        let before = blake3::hash(&std::fs::read(&copy).unwrap());
        let mut fs = open(&copy);
        assert_eq!(fs.facts().consistency, Consistency::Replayed, "{name}");
        same(&kernel, &reader_tree(&mut *fs, 50));
        assert!(kernel.contains_key(&b"/after/d7/late"[..]) && !kernel.contains_key(&b"/hard"[..]));
        assert_eq!(blake3::hash(&std::fs::read(&copy).unwrap()), before, "the image was written to");
    }
}

#[test]
fn version_4_is_read_when_clean_and_refused_when_not() {
    let dir = tempfile::tempdir().unwrap();
    need("mkfs.xfs", "xfsprogs");
    std::fs::write(dir.path().join("source"), vec![42; 70_000]).unwrap();
    // The kernel of today mounts no version 4: mkfs fills it from a description.
    std::fs::write(
        dir.path().join("proto"),
        "dummy\n0 0\nd--755 3 1\nfile ---644 5 6 source\nlink l--777 0 0 target\nfolder d--750 0 0\ninner ---600 0 0 source\n$\n$\n",
    )
    .unwrap();
    sh(dir.path(), "truncate -s 320M four.img; mkfs.xfs -q -m crc=0 -n ftype=0 -p proto four.img 2>/dev/null");
    let image = dir.path().join("four.img");
    let mut fs = open(&image);
    let tree = reader_tree(&mut *fs, 10);
    assert_eq!(tree.len(), 4);
    assert_eq!((tree[&b"/file"[..]].owner, tree[&b"/file"[..]].mode), ((5, 6), 0o644));
    assert_eq!(tree[&b"/link"[..]].file_type, FileType::Symlink);
    assert_eq!(cat(&mut *fs, "/folder/inner").unwrap(), vec![42; 70_000]);
    // One more record after the unmount record: the log is dirty.
    let log = sh(dir.path(), "xfs_db -r -c 'sb 0' -c 'p logstart' four.img | sed 's/.* //'");
    let log: u64 = log.trim().parse().unwrap();
    let at = sh(dir.path(), &format!("xfs_db -r -c 'convert fsblock {log} daddr' four.img | sed 's/ .*//'"));
    let at = u64::from_str_radix(at.trim().trim_start_matches("0x"), 16).unwrap() as usize * 512;
    let mut bytes = std::fs::read(&image).unwrap();
    let mut record = bytes[at..at + 1024].to_vec();
    record[40..44].copy_from_slice(&2u32.to_be_bytes());
    record[16..24].copy_from_slice(&(1u64 << 32 | 2).to_be_bytes());
    record[24..32].copy_from_slice(&(1u64 << 32 | 2).to_be_bytes());
    bytes[at + 1024..at + 2048].copy_from_slice(&record);
    std::fs::write(&image, bytes).unwrap();
    let error = try_open(&image).err().unwrap();
    assert!(matches!(&error, Error::Unsupported(reason) if reason.0.contains("version 4")), "{error}");
}

#[test]
fn what_is_not_readable_is_named() {
    let dir = tempfile::tempdir().unwrap();
    need("mkfs.xfs", "xfsprogs");
    sh(
        dir.path(),
        "truncate -s 320M outer.img; truncate -s 64M outer.log; mkfs.xfs -q -l logdev=outer.log,size=64m outer.img",
    );
    let error = try_open(&dir.path().join("outer.img")).err().unwrap();
    assert_eq!(error.to_string(), "not supported: XFS with its log on another device");
}

#[test]
fn a_busy_guest_reads_as_after_the_kernels_replay_at_every_moment() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [("busy", ""), ("busy_big", "-b size=1024 -n size=16384 -m rmapbt=1")] {
        let image = image(dir.path(), name, options);
        assert!(check_random_history(&image, "", ",nouuid", 3, 2000) >= 2, "few logs were dirty");
    }
}
