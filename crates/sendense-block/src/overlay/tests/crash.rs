//! Random work with crashes and full disks, every step of a fixed piece of work, and the journal's turn-over.

use super::model::{Op, Pair, SIZE};
use super::sim::{Crash, Sim};
use crate::backend::Memory;
use crate::device::{ChangeMap, Flush, ReadAt, WriteAt, ZeroRange};
use crate::error::Kind;
use crate::extent::Extent;
use crate::overlay::Overlay;
use crate::overlay::journal::{BATCH_PAGES_MAX, NAME, PAGE};
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use proptest::prelude::*;
use std::sync::Arc;

const B: usize = BLOCK_BYTES as usize;

fn range() -> impl Strategy<Value = (usize, usize)> {
    let any = (0..SIZE, prop_oneof![1..600usize, 1..2 * B, Just(SIZE)]);
    let blocks = (0..4usize, 1..4usize).prop_map(|(first, count)| (first * B, count * B));
    let sectors = (0..SIZE / 512, 1..9usize).prop_map(|(first, count)| (first * 512, count * 512));
    prop_oneof![any, blocks, sectors].prop_map(|(at, len)| (at, len.min(SIZE - at)))
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![Just(Crash::Keep), Just(Crash::Drop), any::<u64>().prop_map(Crash::Mix)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (range(), 1..=255u8).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
        3 => range().prop_map(|(at, len)| Op::Zero(at, len)),
        3 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        2 => (0..12usize, crash()).prop_map(|(changes, crash)| Op::Doom(changes, crash)),
        1 => (0..4usize, 0..B).prop_map(|(writes, bytes)| Op::Full(writes, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_sector_is_old_or_new(ops in prop::collection::vec(op(), 1..24), last in crash()) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.run(op);
        }
        pair.crash(last);
        pair.check();
    }
}

const CRASHES: [Crash; 6] = [Crash::Keep, Crash::Drop, Crash::Mix(1), Crash::Mix(2), Crash::Mix(3), Crash::Mix(4)];

#[test]
fn a_crash_at_every_step_of_some_work_loses_nothing_that_was_flushed() {
    use Op::{Flush, Reopen, Write, Zero};
    let work = [
        Write(100, 1000, 1),
        Write(B, B, 2),
        Flush,
        Write(B + 512, 512, 3),
        Zero(0, 2 * B),
        Write(700, 10, 4),
        Flush,
        Zero(2 * B, B),
        Flush,
        Write(2 * B + 5000, 3000, 5),
        Reopen,
        Write(3 * B, SIZE - 3 * B, 6),
        Zero(3 * B + 512, SIZE - 3 * B - 512),
        Flush,
        Zero(3 * B, SIZE - 3 * B),
        Write(0, SIZE, 7),
        Flush,
    ];
    let mut steps = 0;
    for changes in 0.. {
        let mut pairs = CRASHES.map(|crash| {
            let mut pair = Pair::new();
            pair.run(&Op::Doom(changes, crash));
            pair
        });
        let mut died = true;
        for (pair, crash) in pairs.iter_mut().zip(CRASHES) {
            let first = pair.sim.clone();
            work.iter().for_each(|op| pair.run(op));
            died &= first.is_dead();
            pair.crash(crash);
            pair.check();
        }
        if !died {
            break;
        }
        steps += 1;
    }
    assert!(steps > 30, "the work has {steps} steps only");
}

#[test]
fn a_long_journal_is_begun_anew_and_a_crash_meanwhile_loses_nothing() {
    // Each flush appends a page; the last one begins a new journal instead.
    let flushes = |pair: &mut Pair| {
        for round in 0..BATCH_PAGES_MAX {
            let op = if round % 2 == 0 { Op::Zero(B, B) } else { Op::Write(B, B, 9) };
            pair.run(&op);
            pair.run(&Op::Flush);
            assert_eq!(pair.sim.size_of(NAME), (2 + round) * PAGE);
        }
    };
    for changes in 0..9 {
        for crash in [Crash::Keep, Crash::Drop, Crash::Mix(changes as u64)] {
            let mut pair = Pair::new();
            flushes(&mut pair);
            pair.run(&Op::Zero(0, B));
            pair.run(&Op::Doom(changes, crash));
            pair.run(&Op::Flush);
            assert!(pair.sim.size_of(NAME) <= 2 * PAGE, "the journal was not begun anew");
            pair.crash(crash);
            pair.check();
        }
    }
    // Without room for a new journal the old one goes on.
    let mut pair = Pair::new();
    flushes(&mut pair);
    pair.run(&Op::Zero(0, B));
    pair.run(&Op::Full(0, 0));
    assert_eq!(pair.overlay.as_ref().unwrap().flush().unwrap_err().kind, Kind::NoSpace);
    pair.sim.fill_up_after(None);
    pair.run(&Op::Flush);
    pair.crash(Crash::Drop);
    pair.check();
}

#[test]
fn a_full_disk_fails_the_write_and_nothing_else() {
    let mut pair = Pair::new();
    pair.run(&Op::Write(0, 100, 1));
    pair.run(&Op::Flush);
    pair.run(&Op::Full(0, 3000));
    let overlay = pair.overlay.as_ref().unwrap();
    assert_eq!(overlay.write_at(ByteOffset(2 * B as u64), &[7; 512]).unwrap_err().kind, Kind::NoSpace);
    pair.check();
    // A flush that finds no room for its page may be tried again.
    let overlay = pair.overlay.as_ref().unwrap();
    overlay.zero_range(Extent::new(ByteOffset(B as u64), ByteLen(B as u64)).unwrap()).unwrap();
    assert_eq!(overlay.flush().unwrap_err().kind, Kind::NoSpace);
    pair.sim.fill_up_after(None);
    overlay.write_at(ByteOffset(2 * B as u64), &[7; 512]).unwrap();
    overlay.flush().unwrap();
    let left = pair.sim.crash(Crash::Drop);
    let base = Arc::new(Memory::from_bytes(vec![0xee; SIZE]));
    let overlay = Overlay::open_in(Arc::new(left), base, b"point 7").unwrap();
    let mut bytes = [0; 2];
    overlay.read_at(ByteOffset(2 * B as u64 + 511), &mut bytes).unwrap();
    assert_eq!(bytes[0], 7);
    assert_ne!(bytes[1], 0xee, "the rest of the block came from the base that there was");
}

#[test]
fn a_change_that_cannot_be_told_to_the_next_process_is_no_change() {
    let sim = Sim::new();
    sim.reserve_nothing();
    let base = || Arc::new(Memory::from_bytes(vec![7; SIZE]));
    let overlay = Overlay::create_in(Arc::new(sim.clone()), base(), b"x").unwrap();
    // The block's bytes find room, its state does not.
    sim.fill_up_after(Some((1, 0)));
    assert_eq!(overlay.write_at(ByteOffset(0), &[1; 512]).unwrap_err().kind, Kind::NoSpace);
    let first = Extent::new(ByteOffset(0), ByteLen(B as u64)).unwrap();
    assert_eq!(overlay.zero_range(first).unwrap_err().kind, Kind::NoSpace);
    assert!(overlay.changed(first).unwrap().is_empty());
    sim.fill_up_after(None);
    overlay.write_at(ByteOffset(0), &[2; 512]).unwrap();
    let killed = sim.crash(Crash::Keep);
    let overlay = Overlay::open_in(Arc::new(killed), base(), b"x").unwrap();
    let mut bytes = [0; 513];
    overlay.read_at(ByteOffset(0), &mut bytes).unwrap();
    assert!(bytes[0] == 2 && bytes[512] == 7, "what was told to be done is lost");
}

#[test]
fn a_floor_keeps_room_for_others() {
    let sim = Sim::new();
    let base = || Arc::new(Memory::zeroed(ByteLen(SIZE as u64)));
    let overlay = Overlay::create_in(Arc::new(sim.clone()), base(), b"x").unwrap().with_floor(ByteLen(1 << 20));
    sim.set_available((1 << 20) + BLOCK_BYTES);
    overlay.write_at(ByteOffset(0), &[1; 512]).unwrap();
    sim.set_available((1 << 20) + BLOCK_BYTES - 1);
    assert_eq!(overlay.write_at(ByteOffset(B as u64), &[1; 512]).unwrap_err().kind, Kind::NoSpace);
    // What takes no room goes on: blocks that are held already, whole blocks of zeros, and making it all durable.
    overlay.write_at(ByteOffset(512), &[2; 512]).unwrap();
    overlay.zero_range(Extent::new(ByteOffset(B as u64), ByteLen(B as u64)).unwrap()).unwrap();
    overlay.flush().unwrap();
    sim.set_available(u64::MAX);
    overlay.write_at(ByteOffset(B as u64), &[1; 512]).unwrap();
}

#[test]
fn a_failed_sync_ends_the_device_but_not_what_was_flushed() {
    let mut pair = Pair::new();
    pair.run(&Op::Write(0, SIZE, 1));
    pair.run(&Op::Flush);
    let overlay = pair.overlay.as_ref().unwrap();
    overlay.write_at(ByteOffset(0), &[2; 512]).unwrap();
    pair.sim.let_syncs_fail(true);
    assert_eq!(overlay.flush().unwrap_err().kind, Kind::Io);
    pair.sim.let_syncs_fail(false);
    assert_eq!(overlay.flush().unwrap_err().kind, Kind::Io, "a second try proves nothing");
    assert_eq!(overlay.write_at(ByteOffset(0), &[3; 512]).unwrap_err().kind, Kind::Io);
    overlay.read_at(ByteOffset(0), &mut [0; 512]).unwrap();
    let left = pair.sim.crash(Crash::Drop);
    let base = Arc::new(Memory::zeroed(ByteLen(SIZE as u64)));
    let overlay = Overlay::open_in(Arc::new(left), base, b"point 7").unwrap();
    let mut byte = [0];
    overlay.read_at(ByteOffset(0), &mut byte).unwrap();
    assert_eq!(byte, [1]);
    overlay.write_at(ByteOffset(0), &[3; 512]).unwrap();
    overlay.flush().unwrap();
}

#[test]
fn a_creation_that_was_cut_off_is_begun_again() {
    for changes in 0.. {
        let sim = Sim::new();
        sim.die_after(changes);
        let base = || Arc::new(Memory::zeroed(ByteLen(SIZE as u64)));
        let died = Overlay::create_in(Arc::new(sim.clone()), base(), b"x").is_err();
        for crash in CRASHES {
            let left = Arc::new(sim.crash(crash));
            match Overlay::open_in(left.clone(), base(), b"x") {
                Ok(_) => {}
                Err(error) => {
                    assert!(died && error.kind == Kind::NotFound, "{error:?}");
                    drop(Overlay::create_in(left.clone(), base(), b"x").unwrap());
                }
            }
            let again = Overlay::create_in(left, base(), b"x").map(|_| ());
            assert_eq!(again.unwrap_err().kind, Kind::Exists);
        }
        if !died {
            assert!(changes > 8);
            break;
        }
    }
}
