//! What we write, QEMU finds clean and reads as the model says.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use parking_lot::Mutex;
use sendense_block::{BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Digest, Kind, Payload};
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Backing, Held, Observer, Spec, Writer};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::*;

#[test]
fn empty_images_of_every_size_are_clean_and_small() {
    let dir = tempfile::tempdir().unwrap();
    for (n, capacity) in [0, 1, 512, 65536, 1 << 30, (1 << 40) + 513, 10 << 40].into_iter().enumerate() {
        let path = at(&dir, &format!("{n}.qcow2"));
        let sealed = writer(&path, capacity, None).seal().unwrap();
        assert_eq!(sealed.file_bytes.0, std::fs::metadata(&path).unwrap().len());
        assert!(sealed.file_bytes.0 <= 512 * 1024, "{sealed:?}");
        check_clean(&path);
        let info: serde_json::Value =
            serde_json::from_str(&qemu("qemu-img", &["info", "--output=json", text(&path)])).unwrap();
        assert_eq!(info["virtual-size"], capacity.next_multiple_of(512));
        assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
        assert_eq!(info["cluster-size"], 65536);
    }
}

#[test]
fn raw_compressed_and_zero_blocks_read_back_through_qemu() {
    let dir = tempfile::tempdir().unwrap();
    // Not a multiple of a block: the tail block reaches beyond the end of the disk and is padded with zeros.
    let capacity = 40 * BLOCK_BYTES + 512 * 3;
    let mut model = vec![0; capacity as usize];
    let blocks: Vec<_> = (0..=40)
        .filter(|n| n % 7 != 3)
        .map(|n| {
            let form = [Form::Raw, Form::Zstd, Form::Zstd, Form::Zero, Form::Raw][n as usize % 5];
            let mut block = if form == Form::Zero { vec![0; BLOCK_BYTES as usize] } else { content(n) };
            let here = (capacity - n * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            block[here..].fill(0);
            model[(n * BLOCK_BYTES) as usize..][..here].copy_from_slice(&block[..here]);
            (n, block, form)
        })
        .collect();
    let path = at(&dir, "disk.qcow2");
    let sealed = write_image(&path, capacity, None, &blocks);
    check_clean(&path);
    assert!(convert(&path, "qcow2") == model, "the disk differs");
    assert_eq!(sealed.raw_blocks + sealed.compressed_blocks + sealed.zero_blocks, blocks.len() as u64);
    assert!(sealed.zero_blocks > 0 && sealed.compressed_blocks > 0 && sealed.raw_blocks > 0);
}

#[test]
fn an_incremental_names_its_parent_and_hides_it_with_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (at(&dir, "base.qcow2"), at(&dir, "top.qcow2"));
    let blocks: Vec<_> = (0..8).map(|n| (n, content(n), Form::Raw)).collect();
    write_image(&base, 8 * BLOCK_BYTES, None, &blocks);
    // The disk grew: the parent ends within it.
    let zeros = vec![0; BLOCK_BYTES as usize];
    let changed = [(1, zeros, Form::Zero), (2, content(77), Form::Zstd), (9, content(78), Form::Zstd)];
    write_image(&top, 12 * BLOCK_BYTES, Some("base.qcow2"), &changed);
    let mut model = vec![0; 12 * BLOCK_BYTES as usize];
    for (n, block, _) in blocks.iter().chain(&changed) {
        model[(n * BLOCK_BYTES) as usize..][..block.len()].copy_from_slice(block);
    }
    let moved = tempfile::tempdir().unwrap();
    for path in [&base, &top] {
        std::fs::copy(path, moved.path().join(path.file_name().unwrap())).unwrap();
    }
    drop(dir);
    let top = at(&moved, "top.qcow2");
    check_clean(&top);
    assert!(convert(&top, "qcow2") == model, "the chain differs");
    let info = qemu("qemu-img", &["info", text(&top)]);
    assert!(info.contains("backing file: base.qcow2 ("), "{info}");
    assert!(info.contains("backing file format: qcow2"), "{info}");
}

#[test]
fn a_sparse_disk_of_10_tib_seals_with_its_far_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let (path, capacity) = (at(&dir, "disk.qcow2"), 10u64 << 40);
    let last = capacity / BLOCK_BYTES - 1;
    let blocks: Vec<_> =
        [0, 1, 8191, 8192, 16 << 20, last - 1, last].map(|n| (n, content(n % 251), Form::Zstd)).to_vec();
    let sealed = write_image(&path, capacity, None, &blocks);
    assert!(sealed.file_bytes.0 < 2 << 20, "{sealed:?}");
    check_clean(&path);
    for (n, block, _) in &blocks {
        assert!(convert_range(&path, n * BLOCK_BYTES, BLOCK_BYTES) == *block, "block {n} differs");
    }
}

#[test]
fn blocks_are_put_once_and_inside_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    let writer = writer(&path, 3 * BLOCK_BYTES, None);
    put(&writer, 1, &content(1), Form::Raw);
    let block = content(2);
    let refused = |indices: &[u64], payload: Payload<'_>| {
        let batch: Vec<_> =
            indices.iter().map(|n| Block { index: BlockIndex(*n), digest: Digest::of(&block), payload }).collect();
        assert_eq!(writer.put(&batch).unwrap_err().kind, Kind::Invalid);
    };
    refused(&[0, 1], Payload::Raw(&block));
    refused(&[1], Payload::Zero);
    refused(&[3], Payload::Raw(&block));
    refused(&[2, 0], Payload::Raw(&block));
    refused(&[0, 0], Payload::Raw(&block));
    refused(&[0], Payload::Raw(&block[..100]));
    refused(&[0], Payload::Zstd(&block));
    refused(&[0], Payload::Zstd(&[]));
    let mut held = [Held::Data; 5];
    writer.held(BlockIndex(0), &mut held).unwrap();
    assert_eq!(held, [Held::Absent, Held::Data, Held::Absent, Held::Absent, Held::Absent]);
    // A refused batch does no harm.
    put(&writer, 2, &vec![0; BLOCK_BYTES as usize], Form::Zero);
    writer.held(BlockIndex(2), &mut held[..1]).unwrap();
    assert_eq!(held[0], Held::Zero);
    writer.seal().unwrap();
    assert_eq!(writer.put(&[]).unwrap_err().kind, Kind::Invalid);
    assert_eq!(writer.seal().unwrap_err().kind, Kind::Invalid);
    check_clean(&path);
}

#[test]
fn specs_that_qemu_would_misread_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, format: &str, capacity: u64, n: usize| {
        let backing = Some(Backing { name: name.to_owned(), format: format.to_owned() });
        let (file, spill) = (create(&at(&dir, &format!("{n}"))), create(&at(&dir, &format!("{n}.spill"))));
        Writer::create(file, spill, Spec { capacity: ByteLen(capacity), backing }, Arc::new(Deaf)).map(|_| ())
    };
    let cases = ["", "/abs.qcow2", "nbd:host:1", "json:{}", "a\0b", &"x".repeat(1024)];
    for (n, name) in cases.iter().enumerate() {
        assert_eq!(make(name, "qcow2", 1 << 20, n).unwrap_err().kind, Kind::Invalid, "{name}");
    }
    assert_eq!(make("a", "", 1 << 20, 20).unwrap_err().kind, Kind::Invalid);
    assert_eq!(make("a", "qcow2", u64::MAX, 21).unwrap_err().kind, Kind::Unsupported);
    assert_eq!(make("a", "qcow2", (2 << 50) + 1, 22).unwrap_err().kind, Kind::Unsupported);
    make(&"x".repeat(1023), "qcow2", 2 << 50, 23).unwrap();
}

/// Remembers what it heard, cluster by cluster.
#[derive(Default)]
struct Heard(Mutex<BTreeMap<u64, Digest>>);

impl Observer for Heard {
    fn wrote(&self, at: ByteOffset, data: &[u8], digests: Option<&[Digest]>) {
        assert_eq!((at.0 % BLOCK_BYTES, data.len() as u64 % BLOCK_BYTES), (0, 0));
        let mut heard = self.0.lock();
        for (n, cluster) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            let digest = Digest::of(cluster);
            assert!(digests.is_none_or(|digests| digests[n] == digest));
            assert!(heard.insert(at.0 + n as u64 * BLOCK_BYTES, digest).is_none(), "cluster told twice");
        }
    }
}

/// Threads put raw and compressed blocks at once; with `raw_last` a raw block lies behind the last arena, so that the
/// arena's empty clusters stay as a hole.
fn many_threads(raw_last: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (path, blocks) = (at(&dir, "disk.qcow2"), 1200u64);
    let heard = Arc::new(Heard::default());
    let spec = Spec { capacity: ByteLen((blocks + 1) * BLOCK_BYTES), backing: None };
    let writer = Writer::create(create(&path), create(&path.with_extension("spill")), spec, heard.clone()).unwrap();
    let form = |n: u64| if n.is_multiple_of(11) { Form::Raw } else { Form::Zstd };
    std::thread::scope(|scope| {
        for lane in 0..3 {
            let writer = &writer;
            scope.spawn(move || {
                for first in (lane * 16..blocks).step_by(48) {
                    let batch: Vec<_> = (first..(first + 16).min(blocks)).map(|n| (n, content(n), form(n))).collect();
                    put_all(writer, &batch);
                }
            });
        }
    });
    if raw_last {
        put(&writer, blocks, &content(5), Form::Raw);
    }
    let sealed = writer.seal().unwrap();
    check_clean(&path);
    let file = std::fs::read(&path).unwrap();
    assert_eq!(file.len() as u64, sealed.file_bytes.0);
    let heard = heard.0.lock();
    assert_eq!(heard.len() as u64, sealed.file_bytes.0 / BLOCK_BYTES);
    for (n, cluster) in file.chunks(BLOCK_BYTES as usize).enumerate() {
        assert_eq!(heard[&(n as u64 * BLOCK_BYTES)], Digest::of(cluster), "cluster {n}");
    }
    let disk = convert(&path, "qcow2");
    for n in 0..blocks {
        assert!(disk[(n * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize] == content(n), "block {n} differs");
    }
}

#[test]
fn threads_together_write_one_image_and_every_cluster_is_told_once() {
    many_threads(false);
}

#[test]
fn what_an_arena_leaves_is_free() {
    many_threads(true);
}
