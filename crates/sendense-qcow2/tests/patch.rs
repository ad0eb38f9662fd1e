//! Going on with a copy of an image: what stays, what comes, and what nobody needs any more.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use proptest::prelude::*;
use sendense_block::backend::{File, Options};
use sendense_block::{BLOCK_BYTES, BlockIndex, ByteLen, Extent, Kind, ReadAt, WriteAt, ZeroRange};
use sendense_qcow2::check::check;
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Backing, Held, Image, Kept, Part, Patch, Spec, Writer};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use support::*;

const BLOCKS: u64 = 40;

/// What an image holds: per block its form and the seed of its content.
type Puts = BTreeMap<u64, (Form, u64)>;

fn puts() -> impl Strategy<Value = Puts> {
    let form = prop_oneof![Just(Form::Zero), Just(Form::Raw), Just(Form::Zstd), Just(Form::Zstd)];
    prop::collection::btree_map(0..BLOCKS, (form, 1u64..10_000), 0..38)
}

fn block((form, seed): (Form, u64)) -> Vec<u8> {
    if form == Form::Zero { vec![0; BLOCK_BYTES as usize] } else { content(seed) }
}

fn open(path: &Path) -> Image {
    Image::open(Arc::new(File::open(path, Options::Read).unwrap())).unwrap()
}

/// Goes on with a copy of `from` in `to`; what nobody needs is overwritten, so that whoever reads it sees it.
fn patch(
    from: &Path,
    to: &Path,
    capacity: u64,
    backing: Option<&str>,
    stays: &dyn Fn(u64) -> bool,
) -> sendense_block::Result<(Writer, Kept, Vec<Part>)> {
    std::fs::copy(from, to).unwrap();
    let (base, file) = (open(from), Arc::new(File::open(to, Options::Write).unwrap()));
    let mut parts = Vec::new();
    let mut keep = |first: BlockIndex, held: &mut [Held]| {
        for (held, index) in held.iter_mut().zip(first.0..) {
            if !stays(index) {
                *held = Held::Absent;
            }
        }
        Ok(())
    };
    let capacity = ByteLen(capacity);
    assert_eq!(base.kept(capacity, &mut keep).ok(), base.kept(capacity, &mut keep).ok());
    let copy = file.clone();
    let mut part = |part: Part| {
        parts.push(part);
        match part {
            Part::Live(_) => Ok(()),
            Part::Stale(extent) => copy.write_at(extent.start(), &vec![0xee; extent.len().0 as usize]),
        }
    };
    let patch = Patch { base: &base, keep: &mut keep, part: &mut part };
    let backing = backing.map(|name| Backing { name: name.into(), format: "qcow2".into() });
    let spill = create(&to.with_extension("spill"));
    let (writer, kept) = Writer::patch(file, spill, Spec { capacity, backing }, Arc::new(Deaf), patch)?;
    Ok((writer, kept, parts))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Twice in a row: a copy of a patched image is patched as well. QEMU finds neither errors nor leaks.
    #[test]
    fn what_stays_and_what_comes_reads_as_the_model(
        first in puts(),
        rounds in prop::collection::vec((1..=BLOCKS * BLOCK_BYTES / 512, puts(), any::<u64>()), 1..3),
        sectors in 1..=BLOCKS * BLOCK_BYTES / 512,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let within = |sectors: u64, index: u64| index * BLOCK_BYTES < sectors * 512;
        let mut model: Puts = first.into_iter().filter(|(index, _)| within(sectors, *index)).collect();
        let mut path = at(&dir, "0.qcow2");
        let blocks: Vec<_> = model.iter().map(|(index, put)| (*index, block(*put), put.0)).collect();
        write_image(&path, sectors * 512, None, &blocks);
        let mut size = sectors;
        for (n, (sectors, new, mask)) in rounds.into_iter().enumerate() {
            let stays = |index: u64| mask >> index & 1 != 0;
            let to = at(&dir, &format!("{}.qcow2", n + 1));
            model.retain(|index, _| stays(*index) && within(sectors, *index));
            let (writer, kept, parts) = patch(&path, &to, sectors * 512, None, &|index| {
                stays(index) && model.contains_key(&index)
            }).unwrap();
            let count = |wanted: &[Form]| model.values().filter(|(form, _)| wanted.contains(form)).count() as u64;
            prop_assert_eq!(kept.zero_blocks, count(&[Form::Zero]));
            prop_assert_eq!(kept.raw_blocks + kept.compressed_blocks, count(&[Form::Raw, Form::Zstd]));
            // The parts are all of the copy but its first cluster.
            let mut end = BLOCK_BYTES;
            for part in &parts {
                let (Part::Live(extent) | Part::Stale(extent)) = part;
                prop_assert_eq!(extent.start().0, end);
                end = extent.end().0;
            }
            prop_assert_eq!(end, path.metadata().unwrap().len());
            // Not an image yet.
            prop_assert!(Image::open(Arc::new(File::open(&to, Options::Read).unwrap())).is_err());
            let mut held = [Held::Absent; BLOCKS as usize];
            writer.held(BlockIndex(0), &mut held).unwrap();
            for (index, held) in (0..).zip(held) {
                prop_assert_eq!(held != Held::Absent, model.contains_key(&index));
            }
            let new: Vec<_> =
                new.into_iter().filter(|(index, _)| within(sectors, *index) && !model.contains_key(index)).collect();
            let blocks: Vec<_> = new.iter().map(|(index, put)| (*index, block(*put), put.0)).collect();
            blocks.chunks(3).for_each(|batch| put_all(&writer, batch));
            let sealed = writer.seal().unwrap();
            model.extend(new);
            prop_assert_eq!(sealed.zero_blocks, count_of(&model, Form::Zero));
            prop_assert_eq!(sealed.raw_blocks + sealed.compressed_blocks + sealed.zero_blocks, model.len() as u64);
            prop_assert_eq!(sealed.file_bytes.0, to.metadata().unwrap().len());
            (path, size) = (to, sectors);
            prop_assert!(check(&open(&path)).unwrap().is_clean());
        }
        let mut bytes = vec![0; (size * 512).next_multiple_of(BLOCK_BYTES) as usize];
        for (index, put) in &model {
            bytes[(index * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize].copy_from_slice(&block(*put));
        }
        bytes.truncate(size as usize * 512);
        check_chain(&open_chain(dir.path(), path.file_name().unwrap().to_str().unwrap()), &bytes);
        check_clean(&path);
        prop_assert!(convert(&path, "qcow2") == bytes);
    }
}

fn count_of(puts: &Puts, form: Form) -> u64 {
    puts.values().filter(|put| put.0 == form).count() as u64
}

/// Where an overlay becomes one of another image, what it does not hold is that image's.
#[test]
fn the_image_below_may_be_another() {
    let dir = tempfile::tempdir().unwrap();
    let capacity = 4 * BLOCK_BYTES;
    let one = |seed| content(seed);
    write_image(&at(&dir, "base.qcow2"), capacity, None, &[(3, one(3), Form::Raw)]);
    write_image(
        &at(&dir, "old.qcow2"),
        capacity,
        Some("gone.qcow2"),
        &[(0, one(1), Form::Raw), (1, one(2), Form::Zstd)],
    );
    let stays = |index: u64| index != 0;
    let (writer, kept, parts) =
        patch(&at(&dir, "old.qcow2"), &at(&dir, "new.qcow2"), capacity, Some("base.qcow2"), &stays).unwrap();
    assert_eq!((kept.raw_blocks, kept.compressed_blocks, kept.dropped_bytes), (0, 1, BLOCK_BYTES));
    assert!(parts.contains(&Part::Stale(Extent::block(BlockIndex(1)))), "{parts:?}");
    assert_eq!(writer.seal().unwrap().compressed_blocks, 1);
    let mut wanted = vec![0; capacity as usize];
    wanted[BLOCK_BYTES as usize..][..BLOCK_BYTES as usize].copy_from_slice(&one(2));
    wanted[3 * BLOCK_BYTES as usize..].copy_from_slice(&one(3));
    check_clean(&at(&dir, "new.qcow2"));
    assert!(convert(&at(&dir, "new.qcow2"), "qcow2") == wanted);
}

/// An image of another program, a copy that is cut off, and tables that contradict themselves are refused.
#[test]
fn what_is_not_one_of_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (foreign, to) = (at(&dir, "foreign.qcow2"), |n: u32| at(&dir, &format!("to-{n}.qcow2")));
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", text(&foreign), "1M"]);
    let refused = |from: &Path, n: u32| patch(from, &to(n), 1 << 20, None, &|_| true).err().unwrap().kind;
    assert_eq!(refused(&foreign, 0), Kind::Unsupported);
    let good = at(&dir, "good.qcow2");
    write_image(
        &good,
        1 << 20,
        None,
        &[(0, content(15), Form::Raw), (1, content(15), Form::Raw), (2, content(2), Form::Zstd)],
    );
    assert!(patch(&good, &to(1), 1 << 20, None, &|_| true).is_ok());
    let table = {
        let mut places = Vec::new();
        open(&good).mapping_places(&mut |extent| places.push(extent)).unwrap();
        assert_eq!(places.len(), 3, "header, L1, one L2: {places:?}");
        places[2].start()
    };
    let (bytes, image) = (std::fs::read(&good).unwrap(), open(&good));
    let entry = |n: u64| u64::from_be_bytes(bytes[(table.0 + 8 * n) as usize..][..8].try_into().unwrap());
    // Two entries of one cluster that both call it their own.
    let twice = [entry(1), entry(2) & !0xffff_ffff | (entry(1) & 0xffff_ffff)].map(|wrong| (wrong, Kind::Corrupt));
    // One that points to the header, to the tables' end, to an odd place; flags that we do not set, or leave out.
    let others =
        [1 << 63, image.file().size().0 | 1 << 63, entry(1) + 512, entry(1) & !(1 << 63), entry(2) | 1 << 63, 3];
    // Zeros over a cluster that stays the block's own.
    let others = others.into_iter().chain([entry(0) | 1]).map(|wrong| (wrong, Kind::Unsupported));
    for (n, (wrong, kind)) in (10..).zip(twice.into_iter().chain(others)) {
        let bad = at(&dir, &format!("bad-{n}.qcow2"));
        let mut bytes = bytes.clone();
        bytes[table.0 as usize..][..8].copy_from_slice(&wrong.to_be_bytes());
        std::fs::write(&bad, bytes).unwrap();
        assert_eq!(refused(&bad, n), kind, "{wrong:#x}");
    }
    let short = Arc::new(File::open(&at(&dir, "short"), Options::CreateNew).unwrap());
    short.zero_range(Extent::whole(ByteLen(BLOCK_BYTES))).unwrap();
    let patch = Patch { base: &image, keep: &mut |_, _| Ok(()), part: &mut |_| Ok(()) };
    let spec = Spec { capacity: ByteLen(1 << 20), backing: None };
    let refused = Writer::patch(short, create(&at(&dir, "spill")), spec, Arc::new(Deaf), patch).err().unwrap();
    assert_eq!(refused.kind, Kind::Invalid);
    assert_eq!(image.file().size().0 % BLOCK_BYTES, 0);
}
