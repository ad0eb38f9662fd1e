//! The ext reader against mke2fs, debugfs and the kernel.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::meta::Consistency;
use sendense_guestfs::{Error, GuestPath};
use std::path::Path;

const VARIANTS: [(&str, &str, u32); 5] = [
    ("ext4", "-t ext4", 3000),
    ("ext4_old", "-t ext4 -b 1024 -O ^64bit,^metadata_csum", 1500),
    ("ext4_new", "-t ext4 -O meta_bg,^resize_inode,large_dir,metadata_csum_seed -I 512", 300),
    ("ext3", "-t ext3 -b 4096", 1500),
    ("ext2", "-t ext2 -b 2048", 1500),
];

fn image(dir: &Path, name: &str, options: &str, size: &str) -> std::path::PathBuf {
    need("mkfs.ext4", "e2fsprogs");
    sh(dir, &format!("truncate -s {size} {name}.img; mke2fs -q {options} -L lab-{name} {name}.img"));
    dir.join(format!("{name}.img"))
}

#[test]
fn every_variant_reads_as_the_kernel_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, entries) in VARIANTS {
        let image = image(dir.path(), name, options, "256M");
        let mounted = Mounted::new(&image, "");
        build_tree(&mounted.dir, entries as usize);
        let kernel = kernel_tree(&mounted.dir);
        drop(mounted);
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid), "{name}");
        assert_eq!(fs.facts().consistency, Consistency::Clean, "{name}");
        assert_eq!(fs.facts().size_bytes, 256 << 20);
        same(&kernel, &reader_tree(&mut *fs, 97));
        check_sparse(&mut *fs);
    }
}

#[test]
fn a_copy_of_a_mounted_image_reads_as_after_the_kernels_replay() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, _) in &VARIANTS[..4] {
        let image = image(dir.path(), name, &format!("{options} -J size=16"), "256M");
        let mounted = Mounted::new(&image, ",commit=300");
        build_tree(&mounted.dir, 300);
        sh(&mounted.dir, "sync -f .; rm -r many; mkdir after; rm hard; mv big after/; echo late > late");
        std::fs::write(mounted.dir.join("escaped"), [&0xc03b_3998_u32.to_be_bytes()[..], &[7; 9000]].concat()).unwrap();
        // Everything is in the log; little of it is where it belongs.
        sh(&mounted.dir, "for i in {1..200}; do echo $i > after/$i; done; rm after/1*; sync -f .");
        let copy = image.with_extension("copy");
        let oracle = image.with_extension("oracle");
        std::fs::copy(&image, &copy).unwrap();
        drop(mounted);
        std::fs::copy(&copy, &oracle).unwrap();
        let replayed = Mounted::new(&oracle, "");
        let kernel = kernel_tree(&replayed.dir);
        drop(replayed);
        let before = blake3::hash(&std::fs::read(&copy).unwrap());
        let mut fs = open(&copy);
        assert_eq!(fs.facts().consistency, Consistency::Replayed, "{name}");
        same(&kernel, &reader_tree(&mut *fs, 50));
        assert!(kernel.contains_key(&b"/after/27"[..]) && !kernel.contains_key(&b"/hard"[..]));
        assert_eq!(blake3::hash(&std::fs::read(&copy).unwrap()), before, "the image was written to");
    }
}

#[test]
fn data_in_the_journal_is_replayed_too() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "data", "-t ext4 -J size=16", "64M");
    let mounted = Mounted::new(&image, ",commit=300,data=journal");
    let mut content = vec![7; 50_000];
    content[4096..4100].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    std::fs::write(mounted.dir.join("file"), &content).unwrap();
    sh(&mounted.dir, "sync -f .");
    let copy = image.with_extension("copy");
    std::fs::copy(&image, &copy).unwrap();
    drop(mounted);
    let mut fs = open(&copy);
    assert_eq!(fs.facts().consistency, Consistency::Replayed);
    assert_eq!(cat(&mut *fs, "/file").unwrap(), content);
}

#[test]
fn a_journal_that_does_not_check_is_refused_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "torn", "-t ext4 -b 4096 -J size=4", "64M");
    let mounted = Mounted::new(&image, ",commit=300");
    sh(&mounted.dir, "mkdir a b c; sync -f .; touch a/x; sync -f .");
    let copy = image.with_extension("copy");
    std::fs::copy(&image, &copy).unwrap();
    drop(mounted);
    open(&copy);
    // The first block after the first descriptor belongs to a committed transaction.
    let start = sh(dir.path(), "debugfs -R 'bmap <8> 0' torn.copy 2>/dev/null").trim().parse::<u64>().unwrap() * 4096;
    let mut bytes = std::fs::read(&copy).unwrap();
    bytes[start as usize + 2 * 4096 + 100] ^= 0xff;
    std::fs::write(&copy, bytes).unwrap();
    let error = try_open(&copy).err().unwrap();
    assert!(matches!(&error, Error::Unsupported(reason) if reason.0.contains("journal")), "{error}");
}

#[test]
fn what_lies_in_its_inode_reads_as_the_kernel_shows_it_clean_and_after_its_replay() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options, inside_min) in [
        ("inline", "-t ext4 -O inline_data -I 256 -J size=16", 84),
        ("inline_large", "-t ext4 -O inline_data -I 1024 -J size=16", 144),
        ("inline_old", "-t ext4 -O inline_data,^metadata_csum,^64bit -b 1024 -J size=16", 84),
    ] {
        let image = image(dir.path(), name, options, "128M");
        let mounted = Mounted::new(&image, ",commit=300");
        build_tree(&mounted.dir, 40);
        // Contents, targets and folders of every length around the first part's end and the inode's.
        for len in (0..64).chain(100..180).chain([880, 900, 960]) {
            std::fs::write(mounted.dir.join(format!("many/of-{len}")), vec![b'a' + (len % 26) as u8; len]).unwrap();
            if len > 0 {
                std::os::unix::fs::symlink("t".repeat(len), mounted.dir.join(format!("many/link-{len}"))).unwrap();
            }
        }
        for names in 0..12 {
            let folder = mounted.dir.join(format!("folder-{names}"));
            std::fs::create_dir(&folder).unwrap();
            for name in 0..names {
                std::fs::write(folder.join(format!("{name}{}", "n".repeat(name * 3))), [name as u8; 40]).unwrap();
            }
            // A name in the middle that is gone leaves its room to its neighbour.
            let _ = std::fs::remove_file(folder.join("1nnn"));
        }
        sh(
            &mounted.dir,
            "printf tiny > tiny; printf tiny > cut; truncate -s 1 cut; printf tiny > longer; truncate -s 50 longer; sync -f .",
        );
        // Everything is in the log; little of it is where it belongs.
        let copy = image.with_extension("copy");
        let oracle = image.with_extension("oracle");
        std::fs::copy(&image, &copy).unwrap();
        let kernel = kernel_tree(&mounted.dir);
        drop(mounted);
        same(&kernel, &reader_tree(&mut *open(&image), 7));
        std::fs::copy(&copy, &oracle).unwrap();
        let kernel = kernel_tree(&Mounted::new(&oracle, "").dir);
        let mut fs = open(&copy);
        assert_eq!(fs.facts().consistency, Consistency::Replayed, "{name}");
        same(&kernel, &reader_tree(&mut *fs, 1));
        assert_eq!(cat(&mut *fs, "/tiny").unwrap(), b"tiny");
        // As debugfs tells the flags of those that do: most of the 147, and not the largest.
        let asked: String = (0..180).chain([880, 900, 960]).map(|len| format!("stat /many/of-{len}\n")).collect();
        std::fs::write(dir.path().join("asked"), asked).unwrap();
        let told = sh(dir.path(), &format!("debugfs -f asked {name}.img 2>/dev/null"));
        let inside = told.lines().filter(|line| line.contains("Flags: 0x10000000")).count();
        assert!((inside_min..147).contains(&inside), "{name}: {inside} files lie in their inodes");
    }
}

#[test]
fn what_is_not_readable_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "encrypted", "-t ext4 -O encrypt", "32M");
    let mounted = Mounted::new(&image, "");
    std::fs::write(mounted.dir.join("tiny"), "tiny").unwrap();
    std::fs::write(mounted.dir.join("large"), [1; 5000]).unwrap();
    drop(mounted);
    sh(dir.path(), "debugfs -w -R 'sif /tiny flags 0x80800' encrypted.img 2>/dev/null");
    let mut fs = open(&image);
    assert_eq!(cat(&mut *fs, "/large").unwrap(), [1; 5000]);
    let error = cat(&mut *fs, "/tiny").unwrap_err();
    assert_eq!(error.to_string(), "not supported: ext4 encrypted file or folder");
    sh(dir.path(), "truncate -s 16M ext.journal; mke2fs -q -O journal_dev ext.journal");
    assert!(matches!(try_open(&dir.path().join("ext.journal")), Err(Error::Unsupported(_))));
}

#[test]
fn errors_say_what_is_wrong_with_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "paths", "-t ext4", "32M");
    let mounted = Mounted::new(&image, "");
    build_tree(&mounted.dir, 300);
    drop(mounted);
    let mut fs = open(&image);
    let path = |text: &str| GuestPath::parse(text.as_bytes()).unwrap();
    assert_eq!(fs.stat(&path("/many/none")), Err(Error::NotFound));
    assert_eq!(fs.stat(&path("/nothing/none")), Err(Error::NotFound));
    assert_eq!(fs.stat(&path("/etc/few/none")), Err(Error::NotDirectory));
    assert_eq!(fs.stat(&path("/root/etc")), Err(Error::NotDirectory), "a link was followed");
    assert_eq!(fs.list(&path("/etc/few"), None, 10), Err(Error::NotDirectory));
    assert_eq!(fs.readlink(&path("/etc/few")), Err(Error::NotRegular));
    for special in ["/fifo", "/dev", "/evil", "/etc", "/"] {
        assert_eq!(fs.open(&path(special)).err(), Some(Error::NotRegular), "{special}");
    }
}

#[test]
fn a_folder_of_100_000_entries_comes_in_whole_pages() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "huge", "-t ext4 -N 120000", "128M");
    let mounted = Mounted::new(&image, "");
    sh(&mounted.dir, "mkdir huge; cd huge; seq -f %06g 1 100000 | xargs touch");
    drop(mounted);
    let mut fs = open(&image);
    let folder = GuestPath::parse(b"/huge").unwrap();
    let (mut after, mut names) = (None, std::collections::BTreeSet::new());
    loop {
        let page = fs.list(&folder, after, 1000).unwrap();
        for entry in page.entries {
            assert!(names.insert(entry.name));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(names.len(), 100_000);
    for number in (1..100_000).step_by(997) {
        fs.stat(&folder.join(format!("{number:06}").as_bytes()).unwrap()).unwrap();
    }
}

#[test]
fn a_busy_guest_reads_as_after_the_kernels_replay_at_every_moment() {
    let dir = tempfile::tempdir().unwrap();
    // A journal so small that it goes round several times.
    for (name, options) in [("busy", "-t ext4 -J size=4"), ("busy3", "-t ext3 -b 1024 -J size=4")] {
        let image = image(dir.path(), name, options, "256M");
        assert!(check_random_history(&image, "", "", 3, 2000) >= 2, "few journals were dirty");
    }
}

#[test]
fn fast_commits_are_refused_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "fast", "-t ext4 -O fast_commit", "128M");
    let mounted = Mounted::new(&image, ",commit=300");
    sh(&mounted.dir, "echo one > one; sync -f .");
    for number in 0..20 {
        let file = std::fs::File::create(mounted.dir.join(format!("file{number}"))).unwrap();
        std::io::Write::write_all(&mut &file, b"late").unwrap();
        file.sync_all().unwrap();
    }
    let copy = image.with_extension("copy");
    std::fs::copy(&image, &copy).unwrap();
    drop(mounted);
    match try_open(&copy) {
        Err(error) => assert_eq!(error, Error::unsupported("ext4 fast commits that must be replayed")),
        // A kernel that made full commits of them: then all is there.
        Ok(mut fs) => assert_eq!(cat(&mut *fs, "/file19").unwrap(), b"late"),
    }
    // Unmounted, there is nothing to replay.
    assert_eq!(cat(&mut *open(&image), "/file19").unwrap(), b"late");
}
