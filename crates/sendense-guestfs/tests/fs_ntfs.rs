//! The NTFS reader against mkntfs and ntfs-3g. No image made by Windows is at hand.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_guestfs::meta::{Consistency, FileType};
use sendense_guestfs::{Error, GuestPath};
use std::path::{Path, PathBuf};

fn image(dir: &Path, name: &str, options: &str) -> PathBuf {
    need("mkntfs", "ntfs-3g");
    sh(dir, &format!("truncate -s 300M {name}.img; mkntfs -q -F -L 'lab {name}' {options} {name}.img 2>/dev/null"));
    dir.join(format!("{name}.img"))
}

/// What ntfs-3g shows of a folder's size and links is its own invention.
fn plain(mut tree: Tree) -> Tree {
    for shown in tree.values_mut().filter(|shown| shown.file_type == FileType::Directory) {
        (shown.size, shown.links) = (0, 1);
    }
    tree
}

fn build(dir: &Path) {
    build_plain_tree(dir, 3000);
    sh(dir, "ln -s etc/passwd link; ln etc/few hard; ln -s 'näme ☃' snow");
    for name in ["line\nbreak", "näme ☃ 😀", &"ñ".repeat(127)] {
        std::fs::write(dir.join(name), name).unwrap();
    }
    sparse_file(&dir.join("sparse"));
    // Enough pieces that the list of attributes leaves the file record.
    use std::os::unix::fs::FileExt;
    let pieces: Vec<_> = (0..3).map(|n| std::fs::File::create(dir.join(format!("pieces{n}"))).unwrap()).collect();
    for piece in 0..600_u64 {
        for file in &pieces {
            file.write_all_at(&[piece as u8; 4096], piece * 8192).unwrap();
        }
    }
}

#[test]
fn every_cluster_size_reads_as_ntfs_3g_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [("plain", ""), ("small", "-c 512"), ("large", "-c 65536")] {
        let image = image(dir.path(), name, options);
        let mounted = Mounted::new(&image, ",noatime");
        build(&mounted.dir);
        drop(mounted);
        let mounted = Mounted::new(&image, ",ro");
        let shown = plain(kernel_tree(&mounted.dir));
        drop(mounted);
        let mut fs = open(&image);
        let (kind, label, uuid) = blkid(&image);
        assert_eq!((fs.facts().kind, &fs.facts().label, &fs.facts().uuid), (&*kind, &label, &uuid), "{name}");
        assert_eq!(fs.facts().consistency, Consistency::Clean, "{name}");
        same(&shown, &plain(reader_tree(&mut *fs, 97)));
        check_sparse(&mut *fs);
    }
}

#[test]
fn compressed_files_are_unpacked() {
    need("setfattr", "attr");
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "packed", "");
    let mounted = Mounted::new(&image, ",compression");
    sh(
        &mounted.dir,
        "mkdir packed; setfattr -h -v 0x00080000 -n system.ntfs_attrib packed
         seq 1 60000 > packed/numbers; head -c 300000 /dev/urandom > packed/noise; head -c 1000000 /dev/zero > packed/zeros
         (seq 1 5000; head -c 100000 /dev/urandom; head -c 200000 /dev/zero; seq 1 9000) > packed/mixed",
    );
    drop(mounted);
    let mounted = Mounted::new(&image, ",ro");
    let shown = plain(kernel_tree(&mounted.dir));
    drop(mounted);
    let mut fs = open(&image);
    same(&shown, &plain(reader_tree(&mut *fs, 10)));
    assert_eq!(shown.len(), 5);
    let file = std::fs::read(&image).unwrap();
    assert!(!file.windows(14).any(|window| window == b"\n31234\n31235\n3"), "the file was not compressed");
}

#[test]
fn a_copy_of_a_mounted_image_says_that_its_log_was_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "dirty", "");
    let mut bytes = std::fs::read(&image).unwrap();
    drop(open(&image));
    // The log's restart pages name an owner, as while Windows has the volume mounted.
    let log = sh(dir.path(), "ntfsinfo -f -i 2 -v dirty.img 2>/dev/null | grep -A1 'VCN.*LCN' | tail -1");
    let lcn = log.split_whitespace().nth(1).map(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap());
    let at = lcn.unwrap() as usize * 4096;
    bytes[at..at + 4096].copy_from_slice(&restart_page());
    std::fs::write(&image, bytes).unwrap();
    assert_eq!(open(&image).facts().consistency, Consistency::LogNotReplayed);
}

/// A restart page of a log that is in use.
fn restart_page() -> [u8; 4096] {
    let mut page = [0; 4096];
    page[..4].copy_from_slice(b"RSTR");
    page[4..8].copy_from_slice(&[30, 0, 9, 0]);
    page[16..20].copy_from_slice(&4096u32.to_le_bytes());
    page[20..24].copy_from_slice(&4096u32.to_le_bytes());
    page[24..26].copy_from_slice(&64u16.to_le_bytes());
    page[30] = 1;
    for sector in page.chunks_exact_mut(512) {
        sector[510] = 1;
    }
    page[64..72].copy_from_slice(&77u64.to_le_bytes());
    page
}

#[test]
fn encrypted_and_overlay_compressed_files_are_refused_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "refused", "");
    let mounted = Mounted::new(&image, "");
    sh(&mounted.dir, "echo one > plain; echo two > secret; echo three > wof");
    // FILE_ATTRIBUTE_ENCRYPTED in the standard information; a reparse point of the Windows overlay filter.
    sh(
        &mounted.dir,
        "setfattr -h -n system.ntfs_reparse_data -v 0x170000801000000001000000020000000100000000000000 wof",
    );
    drop(mounted);
    let mut bytes = std::fs::read(&image).unwrap();
    let record = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"FILE").map(|(at, _)| at).find(|at| {
        let name: Vec<u8> = "secret".encode_utf16().flat_map(u16::to_le_bytes).collect();
        bytes[*at..*at + 1024].windows(name.len()).any(|window| window == name)
    });
    let attributes = record.unwrap() + 56 + 24 + 32;
    bytes[attributes + 1] |= 0x40;
    std::fs::write(&image, bytes).unwrap();
    let mut fs = open(&image);
    assert_eq!(cat(&mut *fs, "/plain").unwrap(), b"one\n");
    assert_eq!(cat(&mut *fs, "/secret").unwrap_err().to_string(), "not supported: NTFS encrypted file");
    assert!(matches!(cat(&mut *fs, "/wof"), Err(Error::Unsupported(_))));
    assert_eq!(fs.list(&GuestPath::root(), None, 100).unwrap().entries.len(), 3);
}
