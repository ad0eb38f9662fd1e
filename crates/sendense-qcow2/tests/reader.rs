//! Images made by QEMU read as QEMU reads them.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use sendense_block::backend::{File, Options};
use sendense_block::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, Error, Kind, error};
use sendense_qcow2::gate::{Closed, Folder};
use sendense_qcow2::{BackingRef, Chain, Gate, Held, Holder, Image, Layer, Mapping, Opened};
use std::path::Path;
use std::sync::Arc;
use support::*;

const MIB: u64 = 1 << 20;

fn open_image(path: &Path) -> Result<Image, Error> {
    Image::open(Arc::new(File::open(path, Options::Read).unwrap()))
}

/// Random writes, zeroes, discards and, where `compressed`, compressed writes of whole clusters.
fn scribble(path: &Path, size: u64, cluster: u64, seed: u64, compressed: bool) {
    let mut dice = Dice(seed);
    let mut commands = Vec::new();
    for _ in 0..60 {
        let at = dice.roll(size - 512) / 512 * 512;
        let len = (dice.roll(300_000) / 512 + 1) * 512;
        let len = len.min(size - at);
        let pattern = dice.roll(255) + 1;
        commands.push(match dice.roll(8) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            2 => format!("discard {at} {len}"),
            3..=5 if compressed => {
                let at = at / cluster * cluster;
                format!("write -c -P {pattern} {at} {}", cluster.min(size - at))
            }
            _ => format!("write -P {pattern} {at} {len}"),
        });
    }
    // Some fail (version 2 has no zero flag); the comparison is with what QEMU reads afterwards.
    for commands in commands.chunks(20) {
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(path));
        qemu_output("qemu-io", &arguments);
    }
}

#[test]
fn every_cluster_size_version_and_refcount_width() {
    let dir = tempfile::tempdir().unwrap();
    for (n, options) in [
        "cluster_size=512",
        "cluster_size=512,compat=0.10",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=65536,compat=0.10",
        "cluster_size=65536,refcount_bits=64,compression_type=zstd",
        "cluster_size=65536,lazy_refcounts=on",
        "cluster_size=131072,compression_type=zstd",
        "cluster_size=2097152,compression_type=zstd,refcount_bits=8",
        "cluster_size=2097152,preallocation=metadata",
        "cluster_size=65536,preallocation=falloc",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{n}.qcow2");
        let path = at(&dir, &name);
        // Not a multiple of any of the cluster sizes but the smallest.
        let size = 9 * MIB + 512 * 3;
        qemu("qemu-img", &["create", "-f", "qcow2", "-o", options, text(&path), &size.to_string()]);
        let cluster = open_image(&path).unwrap().cluster_bytes().0;
        scribble(&path, size, cluster, n as u64 + 1, true);
        let image = open_image(&path).unwrap();
        // Version 2 has no zero clusters, allocated ones take no compressed writes, and 2 MiB make but five clusters.
        let [unallocated, zero, raw, compressed] = seen_forms(&image);
        let preallocated = options.contains("preallocation");
        let all = raw && (preallocated || (compressed && unallocated)) && (zero || options.contains("0.10"));
        assert!(all || cluster > MIB, "{options}: too few sorts of clusters to prove anything");
        check_chain(&open_chain(dir.path(), &name), &convert(&path, "qcow2"));
    }
}

/// Which sorts of mapping an image has: unallocated, zero, raw, compressed.
fn seen_forms(image: &Image) -> [bool; 4] {
    let (mut seen, mut at) = ([false; 4], 0);
    while at < image.size().0 {
        let mapping = image.locate(ByteOffset(at), image.size()).unwrap();
        let form = match mapping {
            Mapping::Unallocated { .. } => 0,
            Mapping::Zero { .. } => 1,
            Mapping::Raw { .. } => 2,
            Mapping::Compressed { .. } => 3,
        };
        seen[form] = true;
        at += mapping.len().0;
    }
    seen
}

#[test]
fn compressed_images_of_both_methods() {
    let dir = tempfile::tempdir().unwrap();
    let raw = at(&dir, "disk.raw");
    let mut disk: Vec<u8> = (0..150).flat_map(content).collect();
    disk[3_000_000..4_500_000].fill(0);
    disk.truncate(disk.len() - 1000);
    std::fs::write(&raw, &disk).unwrap();
    for (n, options) in [
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zlib,cluster_size=4096",
        "compression_type=zstd,cluster_size=2097152",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{n}.qcow2");
        let path = at(&dir, &name);
        qemu("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", options, text(&raw), text(&path)]);
        let model = convert(&path, "qcow2");
        assert!(model[..disk.len()] == disk);
        // Threads share the tables and the decoders.
        let chain = open_chain(dir.path(), &name);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| check_chain(&chain, &model));
            }
        });
    }
}

#[test]
fn a_zstd_frame_is_read_as_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let (path, block) = (at(&dir, "disk.qcow2"), content(4));
    let frame = zstd::bulk::compress(&block, 1).unwrap();
    write_image(&path, 4 * BLOCK_BYTES, None, &[(1, content(3), Form::Zstd), (2, block, Form::Zstd)]);
    let image = open_image(&path).unwrap();
    let mapping = image.locate(ByteOffset(2 * BLOCK_BYTES), ByteLen(MIB)).unwrap();
    assert!(matches!(mapping, Mapping::Compressed { skip: ByteLen(0), len: ByteLen(BLOCK_BYTES), .. }), "{mapping:?}");
    let mut got = Vec::new();
    image.read_frame(&mapping, &mut got).unwrap();
    assert_eq!(got, frame);
}

#[test]
fn internal_snapshots_do_not_disturb() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", text(&path), "8M"]);
    scribble(&path, 8 * MIB, BLOCK_BYTES, 5, true);
    qemu("qemu-img", &["snapshot", "-c", "before", text(&path)]);
    scribble(&path, 8 * MIB, BLOCK_BYTES, 6, true);
    check_chain(&open_chain(dir.path(), "disk.qcow2"), &convert(&path, "qcow2"));
}

#[test]
fn chains_of_different_sizes_and_cluster_sizes() {
    let dir = tempfile::tempdir().unwrap();
    // The middle one is smaller than the base: what the base has beyond must not shine through a larger top.
    let layers = [(10 * MIB, "65536"), (6 * MIB + 512, "4096"), (12 * MIB, "131072"), (11 * MIB + 1024, "65536")];
    let mut below: Option<String> = None;
    for (n, (size, cluster)) in layers.into_iter().enumerate() {
        let name = format!("{n}.qcow2");
        let path = at(&dir, &name);
        let (size_text, options) = (size.to_string(), format!("cluster_size={cluster}"));
        let mut arguments = vec!["create", "-f", "qcow2", "-o", &options];
        if let Some(below) = &below {
            arguments.extend(["-b", below, "-F", "qcow2"]);
        }
        arguments.extend([text(&path), &size_text]);
        qemu("qemu-img", &arguments);
        scribble(&path, size, cluster.parse().unwrap(), 100 + n as u64, false);
        check_chain(&open_chain(dir.path(), &name), &convert(&path, "qcow2"));
        below = Some(name);
    }
}

#[test]
fn a_raw_base_and_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let raw = std::fs::File::create(at(&dir, "base.raw")).unwrap();
    raw.set_len(5 * MIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&raw, &content(3), MIB).unwrap();
    let path = at(&dir, "top.qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", text(&path), "8M"]);
    scribble(&path, 8 * MIB, BLOCK_BYTES, 9, false);
    let chain = open_chain(dir.path(), "top.qcow2");
    assert_eq!(chain.layers().len(), 2);
    check_chain(&chain, &convert(&path, "qcow2"));
}

#[test]
fn our_own_chain_tells_who_holds_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = vec![0; BLOCK_BYTES as usize];
    let base: Vec<_> = (0..6).map(|n| (n, content(n), Form::Raw)).collect();
    write_image(&at(&dir, "base.qcow2"), 6 * BLOCK_BYTES, None, &base);
    write_image(&at(&dir, "middle.qcow2"), 4 * BLOCK_BYTES, Some("base.qcow2"), &[(1, zeros, Form::Zero)]);
    let top = [(2, content(40), Form::Zstd), (7, content(41), Form::Raw)];
    write_image(&at(&dir, "top.qcow2"), 8 * BLOCK_BYTES, Some("middle.qcow2"), &top);
    let chain = open_chain(dir.path(), "top.qcow2");
    let holders: Vec<_> = (0..9).map(|n| chain.locate_block(BlockIndex(n)).unwrap()).collect();
    use Holder::{Data, Nobody, Zero};
    assert_eq!(holders, [Data(2), Zero(1), Data(0), Data(2), Nobody, Nobody, Nobody, Data(0), Nobody]);
    let Layer::Qcow2(image) = &chain.layers()[0] else { panic!("a qcow2 layer") };
    let mut held = [Held::Zero; 10];
    image.held(BlockIndex(1), &mut held).unwrap();
    let data: Vec<_> = held.iter().map(|held| *held == Held::Data).collect();
    assert_eq!(data, [false, true, false, false, false, false, true, false, false, false]);
    check_chain(&chain, &convert(&at(&dir, "top.qcow2"), "qcow2"));
}

#[test]
fn what_we_cannot_read_rightly_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |options: &str, words: &str| {
        let path = at(&dir, "refused.qcow2");
        qemu("qemu-img", &["create", "-f", "qcow2", "-o", options, text(&path), "1M"]);
        let error = open_image(&path).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused("extended_l2=on", "extended L2 entries");
    refused(&format!("data_file={}", text(&at(&dir, "outside.raw"))), "external data file");
    // Feature bits set by hand, as a crash or another program leaves them.
    let path = at(&dir, "bits.qcow2");
    qemu("qemu-img", &["create", "-f", "qcow2", text(&path), "1M"]);
    let clean = std::fs::read(&path).unwrap();
    for (bit, kind, words) in [
        (0, Kind::Unsupported, "qemu-img check -r all"),
        (1, Kind::Corrupt, "marked corrupt"),
        (17, Kind::Unsupported, "bit 17"),
        (3, Kind::Corrupt, "contradict"),
    ] {
        let mut bytes = clean.clone();
        bytes[79 - bit / 8] |= 1 << (bit % 8);
        std::fs::write(&path, bytes).unwrap();
        let error = open_image(&path).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for crypt in [1, 2] {
        let mut bytes = clean.clone();
        bytes[35] = crypt;
        std::fs::write(&path, bytes).unwrap();
        let error = open_image(&path).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("encrypted"), "{error}");
    }
}

#[test]
fn entries_that_point_nowhere_are_corrupt_with_their_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    write_image(&path, 4 * BLOCK_BYTES, None, &[(2, content(1), Form::Raw)]);
    let clean = std::fs::read(&path).unwrap();
    // Header, data, L2, L1: our layout.
    let entry = 2 * BLOCK_BYTES as usize + 2 * 8;
    for wrong in [1u64 << 40, 0x1_0200, 1 << 62 | 1 << 50] {
        let mut bytes = clean.clone();
        bytes[entry..entry + 8].copy_from_slice(&wrong.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = open_image(&path).unwrap().locate(ByteOffset(2 * BLOCK_BYTES), ByteLen(1)).unwrap_err();
        assert_eq!((error.kind, error.at), (Kind::Corrupt, Some(ByteOffset(2 * BLOCK_BYTES))));
    }
}

#[test]
fn gates_keep_hostile_names_inside() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    std::fs::create_dir_all(inside.join("vm")).unwrap();
    std::fs::write(dir.path().join("secret.raw"), [7; 512]).unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret.raw"), inside.join("vm/link.raw")).unwrap();
    std::fs::write(inside.join("base.raw"), [1; 512]).unwrap();
    let folder = Folder::new(&inside).unwrap();
    let open = |name: &str, format: Option<&str>| {
        let backing = BackingRef { name: name.to_owned(), format: format.map(str::to_owned) };
        folder.open_backing("vm/top.qcow2", &backing).map(|_| ()).map_err(|error| (error.kind, error::chain(&error)))
    };
    for outside in ["../../secret.raw", "/etc/passwd", "link.raw", "../../../../../../etc/passwd"] {
        assert_eq!(open(outside, Some("raw")).unwrap_err().0, Kind::Denied, "{outside}");
    }
    assert_eq!(open("../base.raw", None).unwrap_err().0, Kind::Denied);
    assert_eq!(open("../base.raw", Some("vmdk")).unwrap_err().0, Kind::Unsupported);
    assert_eq!(open("missing", Some("raw")).unwrap_err().0, Kind::NotFound);
    assert_eq!(open("nbd:localhost:1", Some("raw")).unwrap_err().0, Kind::NotFound);
    open("../base.raw", Some("raw")).unwrap();
    open(inside.join("base.raw").canonicalize().unwrap().to_str().unwrap(), Some("raw")).unwrap();
    let closed = Closed.open_backing("top", &BackingRef { name: "base.raw".into(), format: None });
    assert_eq!(closed.map(|_| ()).unwrap_err().kind, Kind::Denied);
}

#[test]
fn loops_and_endless_chains_end() {
    let dir = tempfile::tempdir().unwrap();
    write_image(&at(&dir, "a.qcow2"), 512, Some("./b.qcow2"), &[]);
    write_image(&at(&dir, "b.qcow2"), 512, Some("a.qcow2"), &[]);
    let folder = Folder::new(dir.path()).unwrap();
    let looped = Chain::open(folder.open_top("a.qcow2", "qcow2").unwrap(), &folder).map(|_| ()).unwrap_err();
    assert_eq!(looped.kind, Kind::Corrupt, "{looped}");

    /// Gives the same image under ever new names.
    struct Endless(Arc<File>, std::sync::atomic::AtomicU32);
    impl Gate for Endless {
        fn open_backing(&self, _: &str, _: &BackingRef) -> Result<Opened, Error> {
            let n = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(Opened::Qcow2 { id: n.to_string(), file: self.0.clone() })
        }
    }
    let file = Arc::new(File::open(&at(&dir, "a.qcow2"), Options::Read).unwrap());
    let endless = Endless(file.clone(), 0.into());
    let error = Chain::open(Opened::Qcow2 { id: "top".into(), file }, &endless).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
}
