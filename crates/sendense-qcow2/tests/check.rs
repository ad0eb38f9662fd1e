//! Our check and `qemu-img check` say the same of good images and of damaged ones.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use sendense_block::BLOCK_BYTES;
use sendense_block::backend::{File, Options};
use sendense_qcow2::Image;
use sendense_qcow2::check::{Report, check};
use std::path::Path;
use std::sync::Arc;
use support::*;

fn report(path: &Path) -> Report {
    check(&Image::open(Arc::new(File::open(path, Options::Read).unwrap())).unwrap()).unwrap()
}

/// What `qemu-img check` counts: corruptions and leaks.
fn qemu_counts(path: &Path) -> (u64, u64) {
    let output = qemu_output("qemu-img", &["check", "--output=json", "-f", "qcow2", text(path)]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (found["corruptions"].as_u64().unwrap_or(0), found["leaks"].as_u64().unwrap_or(0))
}

#[test]
fn images_of_qemu_with_every_refcount_width_are_clean() {
    let dir = tempfile::tempdir().unwrap();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let path = at(&dir, &format!("{bits}.qcow2"));
        let options = format!("cluster_size=4096,refcount_bits={bits}");
        qemu("qemu-img", &["create", "-f", "qcow2", "-o", &options, text(&path), "70M"]);
        let writes = ["write -P 1 0 9M", "write -z 1M 70k", "write -P 3 65M 1M", "write -z -u 65M 8k"];
        qemu_io(&path, &writes.map(str::to_owned));
        assert_eq!(qemu_counts(&path), (0, 0));
        let report = report(&path);
        assert!(report.is_clean(), "{bits} bits: {report:?}");
        assert!(report.used_clusters > 9 * 256);
    }
}

#[test]
fn damage_is_counted_as_qemu_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    let blocks: Vec<_> = (0..100).map(|n| (n, content(n), if n % 4 == 0 { Form::Raw } else { Form::Zstd })).collect();
    write_image(&path, 1 << 30, None, &blocks);
    let clean = std::fs::read(&path).unwrap();
    assert!(report(&path).is_clean(), "{:?}", report(&path));
    let number = |at: usize| u64::from_be_bytes(*clean[at..].first_chunk().unwrap()) as usize;
    let (l1, refcount_table) = (number(40), number(48));
    let (l2, refcounts) = (number(l1) & 0x00ff_ffff_ffff_fe00, number(refcount_table));
    let raw_0 = number(l2) & 0x00ff_ffff_ffff_fe00;
    let cluster = BLOCK_BYTES as usize;
    let count_of = |host: usize| refcounts + host / cluster * 2;
    let cases: Vec<(&str, usize, Vec<u8>)> = vec![
        ("a raw cluster that nobody counts", count_of(raw_0), vec![0, 0]),
        ("a raw cluster counted twice", count_of(raw_0), vec![0, 2]),
        ("a table that nobody counts", count_of(l2), vec![0, 0]),
        ("an entry lost", l2, vec![0; 8]),
        ("two blocks in one cluster", l2 + 4 * 8, clean[l2..l2 + 8].to_vec()),
        ("an entry that is not aligned", l2, (1u64 << 63 | raw_0 as u64 | 0x200).to_be_bytes().to_vec()),
        ("a flag missing", l2, vec![0]),
        ("a compressed entry flagged copied", l2 + 8, vec![clean[l2 + 8] | 0x80]),
        ("a compressed entry lost", l2 + 8, vec![0; 8]),
    ];
    for (what, at, bytes) in cases {
        let mut damaged = clean.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&path, damaged).unwrap();
        let (report, (corruptions, leaks)) = (report(&path), qemu_counts(&path));
        assert!(corruptions + leaks > 0, "{what}: qemu-img finds nothing");
        if what.ends_with("not aligned") {
            // QEMU takes the two clusters that it touches for used, we take none: the verdict is what must agree.
            assert!(report.corruptions > 0 && corruptions > 0, "{report:?}");
        } else {
            assert_eq!((report.corruptions, report.leaks), (corruptions, leaks), "{what}: {report:?}");
        }
    }
}

#[test]
fn an_l1_table_that_repeats_itself_does_not_keep_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    write_image(&path, 1 << 40, None, &[(0, content(1), Form::Raw)]);
    let mut bytes = std::fs::read(&path).unwrap();
    let l1 = u64::from_be_bytes(*bytes[40..].first_chunk().unwrap()) as usize;
    let entry = bytes[l1..l1 + 8].to_vec();
    for n in 1..2048 {
        bytes[l1 + n * 8..][..8].copy_from_slice(&entry);
    }
    std::fs::write(&path, bytes).unwrap();
    let report = report(&path);
    assert!(report.corruptions > 1000 && report.findings.len() == 100, "{} found", report.corruptions);
    let clusters = std::fs::metadata(&path).unwrap().len() / BLOCK_BYTES;
    assert!(report.used_clusters <= clusters);
}
