//! The copy pipeline against a stupid model: a sink that keeps blocks in a map.

#![allow(clippy::unwrap_used)]

use parking_lot::Mutex;
use proptest::prelude::*;
use sendense_block::backend::{Fault, Faulty, Memory, Operation};
use sendense_block::codec::{Decoder, Level};
use sendense_block::copy::{self, Backup, Mode, Options, Progress, Restore, Summary};
use sendense_block::{
    BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Cancel, ChangeMap, Digest, DigestMap, Error,
    Extent, ExtentSet, Kind, Known, Payload, ReadAt, Result, WriteAt, ZeroRange,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const B: usize = BLOCK_BYTES as usize;

/// A restore point in memory: block number to its bytes; `None` is a flagged zero.
#[derive(Default)]
struct Point(Mutex<BTreeMap<u64, Option<Vec<u8>>>>);

impl BlockSink for Point {
    fn put(&self, batch: &[Block<'_>]) -> Result<()> {
        assert!(batch.windows(2).all(|pair| pair[0].index < pair[1].index), "a batch rises");
        for block in batch {
            let bytes = match block.payload {
                Payload::Zero => None,
                Payload::Raw(bytes) => Some(bytes.to_vec()),
                Payload::Zstd(frame) => {
                    let mut bytes = vec![0; B];
                    Decoder::default().decode(frame, &mut bytes).unwrap();
                    Some(bytes)
                }
            };
            let digest = bytes.as_deref().map_or_else(Digest::of_zero_block, Digest::of);
            assert_eq!(digest, block.digest);
            let before = self.0.lock().insert(block.index.0, bytes);
            assert!(before.is_none(), "block {} was put twice", block.index);
        }
        Ok(())
    }
}

/// What a chain of points holds, as a digest map and as bytes.
struct Chain(Vec<Arc<Point>>);

impl Chain {
    fn block(&self, index: u64) -> Option<Vec<u8>> {
        let held = self.0.iter().rev().find_map(|point| point.0.lock().get(&index).cloned());
        held.flatten()
    }

    fn bytes(&self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for index in 0..size.div_ceil(B) as u64 {
            bytes.extend(self.block(index).unwrap_or_else(|| vec![0; B]));
        }
        assert!(bytes[size..].iter().all(|byte| *byte == 0), "the tail is padded with zeros");
        bytes.truncate(size);
        bytes
    }
}

impl DigestMap for Chain {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> Result<()> {
        for (number, known) in out.iter_mut().enumerate() {
            let block = self.block(first.0 + number as u64);
            *known = block.map_or(Known::Zero, |bytes| Known::Data(Digest::of(&bytes)));
        }
        Ok(())
    }
}

struct Changes(ExtentSet);

impl ChangeMap for Changes {
    fn changed(&self, within: Extent) -> Result<ExtentSet> {
        Ok(self.0.within(within))
    }
}

fn options(lanes: usize, level: Level) -> Options {
    Options { lanes, request_bytes: 3 * B, level }
}

fn run(disk: &Memory, mode: Mode<'_>, options: Options) -> Result<(Arc<Point>, Summary)> {
    let (point, progress, cancel) = (Arc::new(Point::default()), Progress::default(), Cancel::new());
    let survey = copy::survey("disk 0", disk, mode, &cancel)?;
    assert_eq!(survey.doubt, None);
    let job = Backup { name: "disk 0", disk, mode, sink: &*point, options, progress: &progress, cancel: &cancel };
    let planned = survey.read;
    let summary = copy::backup(&job, survey)?;
    assert_eq!(summary.read, planned);
    assert_eq!(progress.snapshot().done, summary.read);
    Ok((point, summary))
}

/// A write of the guest: where, how long, with what (0 trims).
fn write() -> impl Strategy<Value = (usize, usize, u8)> {
    (0usize..12 * B, 1usize..3 * B, prop_oneof![Just(0u8), any::<u8>()])
}

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::Off), Just(Level::Fast), Just(Level::Default)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_chain_of_points_gives_back_the_source(
        size in 1usize..12 * B,
        rounds in prop::collection::vec((prop::collection::vec(write(), 0..6), any::<bool>()), 1..5),
        lanes in 1usize..5, level in level(),
    ) {
        let disk = Memory::zeroed(ByteLen(size as u64));
        let mut chain = Chain(Vec::new());
        for (writes, tracked) in rounds {
            let mut changed = ExtentSet::new();
            for (at, len, byte) in writes {
                let (at, end) = (at.min(size), (at + len).min(size));
                disk.write_at(ByteOffset(at as u64), &vec![byte; end - at]).unwrap();
                changed.insert(Extent::between(ByteOffset(at as u64), ByteOffset(end as u64)));
            }
            let changes = Changes(changed);
            let mode = match (chain.0.is_empty(), tracked) {
                (true, _) => Mode::Full,
                (false, true) => Mode::Tracked { parent: &chain, changes: &changes },
                (false, false) => Mode::Compare { parent: &chain },
            };
            let (point, summary) = run(&disk, mode, options(lanes, level)).unwrap();
            prop_assert!(summary.frames <= summary.stored);
            chain.0.push(point);
            prop_assert_eq!(chain.bytes(size), disk.to_bytes());
        }
        // Nothing has changed: nothing is stored.
        let (point, _) = run(&disk, Mode::Compare { parent: &chain }, options(lanes, level)).unwrap();
        prop_assert!(point.0.lock().is_empty());
    }

    #[test]
    fn restoring_gives_the_bytes_back_and_leaves_the_rest(
        size in 1usize..10 * B, extra in 0usize..2 * B, writes in prop::collection::vec(write(), 0..6), fresh in any::<bool>(),
    ) {
        let disk = Memory::zeroed(ByteLen(size as u64));
        for (at, len, byte) in writes {
            let (at, end) = (at.min(size), (at + len).min(size));
            disk.write_at(ByteOffset(at as u64), &vec![byte; end - at]).unwrap();
        }
        let before = if fresh { 0 } else { 0xee };
        let target = Memory::from_bytes(vec![before; size + extra]);
        let (progress, cancel) = (Progress::default(), Cancel::new());
        copy::restore(&Restore {
            name: "disk 0", disk: &disk, target: &target, target_is_zero: fresh, options: options(3, Level::Off),
            progress: &progress, cancel: &cancel,
        }).unwrap();
        let bytes = target.to_bytes();
        prop_assert_eq!(&bytes[..size], &disk.to_bytes()[..]);
        prop_assert!(bytes[size..].iter().all(|byte| *byte == before));
        prop_assert_eq!(progress.snapshot().done, progress.snapshot().planned);
    }
}

#[test]
fn a_lying_delta_is_doubted_before_anything_is_read() {
    let disk = Memory::from_bytes(vec![7; 4 * B]);
    let (full, _) = run(&disk, Mode::Full, options(2, Level::Off)).unwrap();
    let parent = Chain(vec![full]);
    // As after an offline shrink and growth: the second half is gone and the bitmap knows nothing of it.
    disk.zero_range(Extent::between(ByteOffset(2 * B as u64), ByteOffset(4 * B as u64))).unwrap();
    let changes = Changes(ExtentSet::new());
    let survey = copy::survey("disk 0", &disk, Mode::Tracked { parent: &parent, changes: &changes }, &Cancel::new());
    assert_eq!(survey.unwrap().doubt.unwrap().0, BlockIndex(2));
    // Comparing gets it right.
    let (point, summary) = run(&disk, Mode::Compare { parent: &parent }, options(2, Level::Off)).unwrap();
    assert_eq!((summary.zeroed, summary.stored), (ByteLen(2 * BLOCK_BYTES), ByteLen(0)));
    assert_eq!(Chain(vec![parent.0[0].clone(), point]).bytes(4 * B), disk.to_bytes());
}

#[test]
fn an_error_names_the_disk_and_the_offset_and_stops_the_other_lanes() {
    let disk = Faulty::new(Arc::new(Memory::from_bytes(vec![7; 64 * B])), false, |_, operation| match operation {
        Operation::Read(extent) if extent.start().0 == 6 * BLOCK_BYTES => Some(Fault::Fail(Kind::Io)),
        _ => None,
    });
    let (point, progress, cancel) = (Point::default(), Progress::default(), Cancel::new());
    let survey = copy::survey("disk 3", &disk, Mode::Full, &cancel).unwrap();
    let job = Backup {
        name: "disk 3",
        disk: &disk,
        mode: Mode::Full,
        sink: &point,
        options: options(2, Level::Off),
        progress: &progress,
        cancel: &cancel,
    };
    let error = copy::backup(&job, survey).unwrap_err();
    assert_eq!((error.kind, error.at), (Kind::Io, Some(ByteOffset(6 * BLOCK_BYTES))));
    assert_eq!(sendense_block::error::chain(&error), "back up disk 3: injected fault (offset 393216)");
    assert!(point.0.lock().len() < 64, "the other lane went on to the end");
}

/// A sink that never gets anywhere until it is cancelled.
struct Stuck(Cancel);

impl BlockSink for Stuck {
    fn put(&self, _: &[Block<'_>]) -> Result<()> {
        while !self.0.is_cancelled() {
            std::thread::yield_now();
        }
        Err(Error::new(Kind::Unavailable, "connection closed"))
    }
}

#[test]
fn cancelling_stops_within_a_second_and_says_cancelled() {
    let (disk, progress, cancel) = (Memory::from_bytes(vec![7; 64 * B]), Progress::default(), Cancel::new());
    let sink = Stuck(cancel.clone());
    let survey = copy::survey("disk 0", &disk, Mode::Full, &cancel).unwrap();
    let error = std::thread::scope(|scope| {
        let job = Backup {
            name: "disk 0",
            disk: &disk,
            mode: Mode::Full,
            sink: &sink,
            options: options(4, Level::Off),
            progress: &progress,
            cancel: &cancel,
        };
        let work = scope.spawn(move || copy::backup(&job, survey).unwrap_err());
        let asked = Instant::now();
        cancel.cancel();
        let error = work.join().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1));
        error
    });
    assert_eq!(error.kind, Kind::Cancelled);
    assert_eq!(disk.size(), ByteLen(64 * BLOCK_BYTES));
}

/// A disk of a terabyte that holds nothing; fails the test when somebody reads it.
struct Empty;

impl ReadAt for Empty {
    fn size(&self) -> ByteLen {
        ByteLen(1 << 40)
    }
    fn read_at(&self, at: ByteOffset, _: &mut [u8]) -> Result<()> {
        panic!("read at {at} of an empty disk")
    }
}

impl sendense_block::AllocationMap for Empty {
    fn allocation(&self, within: Extent) -> Result<Vec<sendense_block::MappedExtent>> {
        Ok(vec![sendense_block::MappedExtent { extent: within, content: sendense_block::Content::Zero }])
    }
}

#[test]
fn a_sparse_terabyte_is_not_read() {
    struct Nothing;
    impl DigestMap for Nothing {
        fn known(&self, _: BlockIndex, _: &mut [Known]) -> Result<()> {
            panic!("asked for digests where there are none")
        }
        fn next_data(&self, _: BlockIndex, _: BlockIndex) -> Result<Option<BlockIndex>> {
            Ok(None)
        }
    }
    let (point, progress, cancel) = (Point::default(), Progress::default(), Cancel::new());
    let changes = Changes(ExtentSet::new());
    let mode = Mode::Tracked { parent: &Nothing, changes: &changes };
    let survey = copy::survey("disk 0", &Empty, mode, &cancel).unwrap();
    let job = Backup {
        name: "disk 0",
        disk: &Empty,
        mode,
        sink: &point,
        options: options(2, Level::Off),
        progress: &progress,
        cancel: &cancel,
    };
    assert_eq!(copy::backup(&job, survey).unwrap(), Summary::default());
    assert!(point.0.lock().is_empty());
}

/// A disk whose map counts the questions. Every `every`-th block holds data, the others are holes.
struct Asked {
    size: u64,
    every: u64,
    asked: Mutex<ExtentSet>,
    twice: Mutex<u64>,
}

impl ReadAt for Asked {
    fn size(&self) -> ByteLen {
        ByteLen(self.size)
    }
    fn read_at(&self, _: ByteOffset, buf: &mut [u8]) -> Result<()> {
        buf.fill(1);
        Ok(())
    }
}

impl sendense_block::AllocationMap for Asked {
    fn allocation(&self, within: Extent) -> Result<Vec<sendense_block::MappedExtent>> {
        let mut asked = self.asked.lock();
        *self.twice.lock() += u64::from(asked.overlaps(within));
        asked.insert(within);
        let mapped = within.block_indices().map(|index| sendense_block::MappedExtent {
            extent: Extent::new(index.offset(), ByteLen(BLOCK_BYTES)).unwrap().intersect(within),
            content: match index.0 % self.every {
                0 => sendense_block::Content::Data,
                _ => sendense_block::Content::Zero,
            },
        });
        Ok(mapped.collect())
    }
}

#[test]
fn what_the_survey_asked_is_not_asked_again_up_to_a_bound() {
    struct Count(Mutex<u64>);
    impl BlockSink for Count {
        fn put(&self, batch: &[Block<'_>]) -> Result<()> {
            *self.0.lock() += batch.len() as u64;
            Ok(())
        }
    }
    // One extent a block: the second disk has more of them than are kept.
    for (size, kept) in [(16_000 * BLOCK_BYTES, true), (17_000 * BLOCK_BYTES, false)] {
        let disk = Asked { size, every: 1000, asked: Mutex::default(), twice: Mutex::default() };
        let (sink, progress, cancel) = (Count(Mutex::new(0)), Progress::default(), Cancel::new());
        let survey = copy::survey("disk 0", &disk, Mode::Full, &cancel).unwrap();
        let job = Backup {
            name: "disk 0",
            disk: &disk,
            mode: Mode::Full,
            sink: &sink,
            options: options(2, Level::Off),
            progress: &progress,
            cancel: &cancel,
        };
        copy::backup(&job, survey).unwrap();
        assert_eq!(*sink.0.lock(), (size / BLOCK_BYTES).div_ceil(1000));
        assert_eq!(*disk.twice.lock() == 0, kept, "{size}");
    }
}
