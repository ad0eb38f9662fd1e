//! Random images against a stupid model, and hostile bytes against nothing but survival.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use proptest::prelude::*;
use sendense_block::backend::{File, Options};
use sendense_block::{BLOCK_BYTES, BlockIndex};
use sendense_qcow2::check::check;
use sendense_qcow2::{Held, Image, Layer, fuzz};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::*;

const BLOCKS: u64 = 40;

/// What is put into one image: per block its form and the seed of its content.
type Puts = BTreeMap<u64, (Form, u64)>;

fn puts() -> impl Strategy<Value = Puts> {
    let form = prop_oneof![Just(Form::Zero), Just(Form::Raw), Just(Form::Zstd)];
    prop::collection::btree_map(0..BLOCKS, (form, 1u64..10_000), 0..30)
}

/// A chain: for each image its size in sectors and its blocks, the oldest first; and the order of batches.
fn chains() -> impl Strategy<Value = (Vec<(u64, Puts)>, u64)> {
    let image = (1..=BLOCKS * BLOCK_BYTES / 512, puts());
    (prop::collection::vec(image, 1..4), any::<u64>())
}

/// Writes the chain and gives each point's bytes, the oldest first.
fn write_chain(dir: &tempfile::TempDir, images: &[(u64, Puts)], seed: u64) -> Vec<Vec<u8>> {
    let (mut models, mut dice) = (Vec::<Vec<u8>>::new(), Dice(seed | 1));
    for (n, (sectors, puts)) in images.iter().enumerate() {
        let capacity = sectors * 512;
        let mut model = models.last().cloned().unwrap_or_default();
        model.resize(capacity as usize, 0);
        let mut blocks = Vec::new();
        for (index, (form, seed)) in puts.iter().filter(|(index, _)| *index * BLOCK_BYTES < capacity) {
            let mut block = if *form == Form::Zero { vec![0; BLOCK_BYTES as usize] } else { content(*seed) };
            let here = (capacity - index * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            block[here..].fill(0);
            model[(index * BLOCK_BYTES) as usize..][..here].copy_from_slice(&block[..here]);
            blocks.push((*index, block, *form));
        }
        let mut batches: Vec<Vec<_>> = Vec::new();
        for block in blocks {
            match batches.last_mut() {
                Some(batch) if dice.roll(4) != 0 => batch.push(block),
                _ => batches.push(vec![block]),
            }
        }
        // Lanes finish in any order.
        for n in (1..batches.len()).rev() {
            batches.swap(n, dice.roll(n as u64 + 1) as usize);
        }
        let backing = n.checked_sub(1).map(|below| format!("{below}.qcow2"));
        let writer = writer(&at(dir, &format!("{n}.qcow2")), capacity, backing.as_deref());
        for batch in &batches {
            put_all(&writer, batch);
        }
        writer.seal().unwrap();
        models.push(model);
    }
    models
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_point_of_a_chain_reads_as_the_model((images, seed) in chains()) {
        let dir = tempfile::tempdir().unwrap();
        for (n, model) in write_chain(&dir, &images, seed).iter().enumerate() {
            let chain = open_chain(dir.path(), &format!("{n}.qcow2"));
            check_chain(&chain, model);
            let Layer::Qcow2(image) = &chain.layers()[0] else { panic!("a qcow2 layer") };
            let mut held = [Held::Absent; BLOCKS as usize + 2];
            image.held(BlockIndex(0), &mut held).unwrap();
            for (index, held) in (0..).zip(held) {
                let put = images[n].1.get(&index).filter(|_| index * BLOCK_BYTES < model.len() as u64);
                let want = match put {
                    None => Held::Absent,
                    Some((Form::Zero, _)) => Held::Zero,
                    Some(_) => Held::Data,
                };
                prop_assert_eq!(held, want, "block {} of image {}", index, n);
                let is_whole = (index + 1) * BLOCK_BYTES <= model.len() as u64;
                if let Some((Form::Zstd, seed)) = put.filter(|_| is_whole)
                    && zstd::bulk::compress(&content(*seed), 1).unwrap().len() < BLOCK_BYTES as usize
                {
                    let moved = chain.read_frame(BlockIndex(index), &mut Vec::new()).unwrap();
                    prop_assert!(moved, "block {} of image {} is decoded to be moved", index, n);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn qemu_agrees_with_the_model((images, seed) in chains()) {
        let dir = tempfile::tempdir().unwrap();
        for (n, model) in write_chain(&dir, &images, seed).iter().enumerate() {
            let path = at(&dir, &format!("{n}.qcow2"));
            check_clean(&path);
            let image = Image::open(Arc::new(File::open(&path, Options::Read).unwrap())).unwrap();
            prop_assert!(check(&image).unwrap().is_clean());
            prop_assert!(convert(&path, "qcow2") == *model, "point {} differs", n);
        }
    }
}

/// A small image with everything in it, made by QEMU: zlib, zero and raw clusters, bitmaps, a backing name.
fn seed_image() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "seed.qcow2");
    write_image(&at(&dir, "base.qcow2"), 1 << 20, None, &[]);
    let options = "cluster_size=512,compression_type=zstd";
    qemu("qemu-img", &["create", "-f", "qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2", text(&path), "1M"]);
    qemu("qemu-img", &["bitmap", "--add", "-g", "512", text(&path), "bits"]);
    let commands = ["write -P 1 0 4k", "write -z 8k 4k", "write -c -P 3 16k 512", "write -P 2 1000k 24k"];
    qemu_io(&path, &commands.map(str::to_owned));
    std::fs::read(&path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn mutated_images_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)) {
        static SEED: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(seed_image);
        let mut bytes = SEED.clone();
        for (place, value, sort) in edits {
            match sort {
                // The header and its extensions, where every byte matters.
                0 | 1 => bytes[place.index(512)] = value,
                2 => {
                    let at = place.index(bytes.len());
                    bytes[at] ^= value;
                }
                _ => bytes.truncate(place.index(bytes.len()) + 1),
            }
            if bytes.len() < 512 {
                break;
            }
        }
        fuzz::exercise(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let start: &[u8] = if magic { b"QFI\xfb\0\0\0\x03" } else { b"" };
        fuzz::exercise(&[start, &bytes].concat());
    }
}
