//! Differential restore against the stupidest model: afterwards the target's bytes are the disk's.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sendense_block::backend::{Fault, Faulty, File, Memory, Operation};
use sendense_block::codec::Level;
use sendense_block::copy::{self, Difference, Differential, Existing, MARK, Marked, Options, Progress};
use sendense_block::digest::is_zero;
use sendense_block::{BLOCK_BYTES, BlockIndex, ByteLen, Cancel, Digest, DigestMap, Disk, Kind, Known, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const B: usize = BLOCK_BYTES as usize;

/// The digests of bytes.
struct Digests(Vec<Known>);

impl Digests {
    fn of(bytes: &[u8]) -> Self {
        let known = |block: &[u8]| {
            let mut padded = block.to_vec();
            padded.resize(B, 0);
            if is_zero(&padded) { Known::Zero } else { Known::Data(Digest::of(&padded)) }
        };
        Self(bytes.chunks(B).map(known).collect())
    }
}

impl DigestMap for Digests {
    fn known(&self, first: BlockIndex, out: &mut [Known]) -> Result<()> {
        for (number, out) in out.iter_mut().enumerate() {
            *out = self.0.get(first.0 as usize + number).copied().unwrap_or(Known::Zero);
        }
        Ok(())
    }
}

fn run(disk: &dyn Disk, digests: &Digests, target: &dyn Existing, cancel: &Cancel) -> Result<Difference> {
    copy::differential(&Differential {
        name: "disk 0",
        disk,
        digests,
        target,
        options: Options { lanes: 3, request_bytes: 2 * B, level: Level::Off },
        progress: &Progress::default(),
        cancel,
    })
}

/// Each block is zeros, or filled with a byte; the last is cut.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![Just(0_u8), 1..4_u8];
    (prop::collection::vec(block, 1..12), 0..B).prop_map(|(blocks, cut)| {
        let mut bytes: Vec<u8> = blocks.into_iter().flat_map(|fill| vec![fill; B]).collect();
        bytes.truncate(bytes.len() - cut);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn only_what_differs_is_written(want in any_bytes(), had in any_bytes(), beyond in 0..3 * B, marked in any::<bool>()) {
        let mut had = had;
        had.resize(want.len() + beyond, 9);
        let differing = want.chunks(B).zip(had.chunks(B)).filter(|(want, had)| **want != had[..want.len()]).count();
        let (disk, digests) = (Memory::from_bytes(want.clone()), Digests::of(&want));
        let target = Memory::from_bytes(had.clone());
        let found = if marked {
            let target = Marked::new(&target, "test");
            let found = run(&disk, &digests, &target, &Cancel::new()).unwrap();
            target.finish().unwrap();
            found
        } else {
            run(&disk, &digests, &target, &Cancel::new()).unwrap()
        };
        had[..want.len()].copy_from_slice(&want);
        prop_assert!(target.to_bytes() == had);
        prop_assert_eq!(found.differing, ByteLen((differing * B) as u64));
        prop_assert_eq!(found.differing.0, found.written.0 + found.zeroed.0);
        // A second time there is nothing to do.
        let again = run(&disk, &digests, &target, &Cancel::new()).unwrap();
        prop_assert_eq!(again.differing, ByteLen(0));
    }

    /// Fails at any step: the target is untouched, bears its mark, or is whole; going on makes it whole.
    #[test]
    fn an_interrupted_restore_never_looks_complete(want in any_bytes(), had in any_bytes(), step in 0..30_usize, torn in any::<bool>()) {
        let mut had = had;
        had.resize(want.len(), 9);
        let (disk, digests, steps) = (Memory::from_bytes(want.clone()), Digests::of(&want), AtomicUsize::new(0));
        let memory = Arc::new(Memory::from_bytes(had.clone()));
        let target = Faulty::new(memory.clone(), false, move |_, operation| match operation {
            Operation::Read(_) => None,
            _ => (steps.fetch_add(1, Ordering::SeqCst) >= step).then_some(if torn { Fault::Torn(512) } else { Fault::Fail(Kind::Io) }),
        });
        let marked = Marked::new(&target, "test");
        let ended = run(&disk, &digests, &marked, &Cancel::new()).and_then(|_| marked.finish());
        let left = memory.to_bytes();
        if ended.is_ok() {
            prop_assert!(left == want, "it says that it is whole");
        } else {
            let mark = MARK.as_bytes();
            let shows = mark.len().min(left.len());
            prop_assert!(left == had || left == want || left[..shows] == mark[..shows], "neither untouched, nor marked, nor whole");
        }
        let target = Memory::from_bytes(left);
        let marked = Marked::new(&target, "test");
        run(&disk, &digests, &marked, &Cancel::new()).unwrap();
        marked.finish().unwrap();
        prop_assert!(target.to_bytes() == want);
    }
}

#[test]
fn a_damaged_chain_writes_nothing_of_what_is_damaged() {
    let want = vec![1; 4 * B];
    let digests = Digests::of(&want);
    let damaged = Memory::from_bytes([vec![1; 2 * B], vec![7; B], vec![1; B]].concat());
    let target = Memory::from_bytes(vec![0; 4 * B]);
    let error = run(&damaged, &digests, &target, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt);
    assert!(!target.to_bytes().contains(&7));
}

#[test]
fn a_target_that_lies_about_its_writes_is_found_out() {
    let want: Vec<u8> = (0..4 * B).map(|at| (at / B) as u8 + 1).collect();
    let target = Faulty::new(Arc::new(Memory::from_bytes(vec![0; 4 * B])), false, |_, operation| match operation {
        // What is read back has a bit that was not written.
        Operation::Read(_) => Some(Fault::Flip),
        _ => None,
    });
    let error = run(&Memory::from_bytes(want.clone()), &Digests::of(&want), &target, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt);
}

#[test]
fn a_small_target_and_a_stopped_restore_are_refused_untouched() {
    let want = vec![1; 2 * B];
    let (disk, digests, target) =
        (Memory::from_bytes(want.clone()), Digests::of(&want), Memory::from_bytes(vec![3; B]));
    assert_eq!(run(&disk, &digests, &target, &Cancel::new()).unwrap_err().kind, Kind::Invalid);
    let (stop, target) = (Cancel::new(), Memory::from_bytes(vec![3; 2 * B]));
    stop.cancel();
    assert_eq!(run(&disk, &digests, &target, &stop).unwrap_err().kind, Kind::Cancelled);
    assert!(target.to_bytes() == vec![3; 2 * B]);
}

#[test]
fn a_sparse_file_stays_sparse_and_its_holes_are_not_read() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let file = File::open(&path, sendense_block::backend::Options::CreateNew).unwrap();
    file.set_len(ByteLen(64 * BLOCK_BYTES)).unwrap();
    let want = [vec![0; 40 * B], vec![5; B], vec![0; 23 * B]].concat();
    let found = run(&Memory::from_bytes(want.clone()), &Digests::of(&want), &file, &Cancel::new()).unwrap();
    assert_eq!((found.compared, found.written, found.zeroed), (ByteLen(0), ByteLen(BLOCK_BYTES), ByteLen(0)));
    assert!(std::fs::read(&path).unwrap() == want);
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 8 * BLOCK_BYTES);
}

#[test]
fn a_target_that_is_right_is_only_read() {
    for size in [4 * B, 3 * B + 4321] {
        let mut want: Vec<u8> = (0..size).map(|at| (at / B) as u8 + 1).collect();
        want[B..2 * B].fill(0);
        let target = Faulty::new(Arc::new(Memory::from_bytes(want.clone())), true, |_, _| None);
        let marked = Marked::new(&target, "test");
        let found = run(&Memory::from_bytes(want.clone()), &Digests::of(&want), &marked, &Cancel::new()).unwrap();
        marked.finish().unwrap();
        assert_eq!(found.differing, ByteLen(0));
        let asked = target.operations();
        assert!(!asked.is_empty() && asked.iter().all(|asked| matches!(asked, Operation::Read(_))), "{asked:?}");
    }
}

#[test]
fn bad_sectors_of_the_target_are_written_whatever_they_held() {
    let mut want: Vec<u8> = (0..7 * B + 4321).map(|at| (at / B) as u8 + 1).collect();
    want[5 * B..6 * B].fill(0);
    // The first block, one in the middle, one that shall be zero, and the tail, each until it is written to.
    let bad = [0, 2 * B + 512, 5 * B + 4096, 7 * B];
    let healed: Arc<[AtomicUsize; 4]> = Arc::default();
    let heal = healed.clone();
    // A hole has no sectors, so nothing of it is bad.
    let mut had = want.clone();
    had[5 * B] = 9;
    let target = Faulty::new(Arc::new(Memory::from_bytes(had)), true, move |_, operation| {
        let covers = |start: u64, len: u64, at: usize| (start..start + len).contains(&(at as u64));
        for (at, healed) in bad.into_iter().zip(heal.iter()) {
            match operation {
                Operation::Read(extent)
                    if covers(extent.start().0, extent.len().0, at) && healed.load(Ordering::SeqCst) == 0 =>
                {
                    return Some(Fault::Fail(Kind::Io));
                }
                Operation::Write(start, bytes) if covers(start.0, bytes.len() as u64, at) => {
                    healed.fetch_add(1, Ordering::SeqCst);
                }
                Operation::Zero(extent) if covers(extent.start().0, extent.len().0, at) => {
                    healed.fetch_add(1, Ordering::SeqCst);
                }
                _ => {}
            }
        }
        None
    });
    let (disk, digests) = (Memory::from_bytes(want.clone()), Digests::of(&want));
    let marked = Marked::new(&target, "test");
    let found = run(&disk, &digests, &marked, &Cancel::new()).unwrap();
    marked.finish().unwrap();
    let blocks = |count: usize| ByteLen((count * B) as u64);
    // The mark may have healed the first block before it was looked at.
    assert!([blocks(3), blocks(4)].contains(&found.unreadable), "{found:?}");
    assert_eq!((found.differing, found.zeroed), (blocks(4), blocks(1)));
    assert!(healed.iter().all(|healed| healed.load(Ordering::SeqCst) > 0));
    assert_eq!(run(&disk, &digests, &target, &Cancel::new()).unwrap().differing, ByteLen(0));

    // A target that neither gives nor takes anything is no target.
    let dead = Faulty::new(Arc::new(Memory::from_bytes(want.clone())), false, |_, _| Some(Fault::Fail(Kind::Io)));
    assert_eq!(run(&disk, &digests, &dead, &Cancel::new()).unwrap_err().kind, Kind::Io);
}
