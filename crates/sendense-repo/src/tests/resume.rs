//! Drafts that are gone on with: whatever a crash or a power loss left, the point is the disk's bytes, or there is none.

use crate::draft::{DiskDraft, DiskSpec, Draft, DraftSpec, Resumed};
use crate::error::{Kind, Result};
use crate::layout;
use crate::repository::Repository;
use crate::testing::before::Before;
use crate::testing::medium::Store;
use crate::testing::record::Record;
use crate::testing::stage::{Act, Renames, Script, Stage};
use crate::testing::world::{self, Amnesia, Care, Disk, Point, pattern};
use crate::testing::{Dice, now, qemu};
use crate::verify::Depth;
use parking_lot::Mutex;
use proptest::prelude::*;
use sendense_block::codec::{Encoder, Level};
use sendense_block::{BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, Digest, Payload};
use sendense_types::{DiskBinding, DiskNumber};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const BLOCK: usize = BLOCK_BYTES as usize;

/// The blocks of a disk that a copy would put.
struct Content(Vec<(u64, Digest, Kept)>);

enum Kept {
    Zero,
    Raw(Vec<u8>),
    Frame(Vec<u8>),
}

impl Content {
    /// All of a full's blocks but those of zeros; of an incremental all, as if each had changed.
    fn of(disk: &Disk) -> Self {
        let mut encoder = Encoder::new(Level::Fast).unwrap();
        let mut frame = vec![0; Encoder::FRAME_BYTES_MAX];
        let blocks = (0..).zip(disk.bytes.chunks(BLOCK)).filter_map(|(index, bytes)| {
            let mut block = bytes.to_vec();
            block.resize(BLOCK, 0);
            let digest = Digest::of(&block);
            if digest == Digest::of_zero_block() {
                return disk.parent.is_some().then_some((index, digest, Kept::Zero));
            }
            let kept = match encoder.encode(&block, &mut frame) {
                Some(len) => Kept::Frame(frame[..len].to_vec()),
                None => Kept::Raw(block),
            };
            Some((index, digest, kept))
        });
        Self(blocks.collect())
    }

    fn block(&self, at: usize) -> Block<'_> {
        let (index, digest, kept) = &self.0[at];
        let payload = match kept {
            Kept::Zero => Payload::Zero,
            Kept::Raw(bytes) => Payload::Raw(bytes),
            Kept::Frame(bytes) => Payload::Zstd(bytes),
        };
        Block { index: BlockIndex(*index), digest: *digest, payload }
    }

    fn put(&self, disk: &DiskDraft, positions: impl IntoIterator<Item = usize>) {
        for at in positions {
            disk.put(&[self.block(at)]).unwrap();
        }
    }

    fn put_missing(&self, disk: &DiskDraft) -> Result<()> {
        let all: Vec<_> = (0..self.0.len()).map(|at| self.block(at)).collect();
        all.chunks(3).try_for_each(|batch| disk.put_missing(batch))
    }
}

fn spec(point: &Point) -> DraftSpec {
    DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: point.parents(),
        expected_bytes: 0,
        who: "test".into(),
    }
}

fn disks(point: &Point) -> Vec<DiskSpec> {
    let spec = |(number, disk): (&DiskNumber, &Disk)| DiskSpec {
        number: *number,
        binding: DiskBinding(format!("disk {number}")),
        capacity: ByteLen(disk.bytes.len() as u64),
        parent: disk.parent.clone(),
    };
    point.disks.iter().map(spec).collect()
}

/// Begins the draft of a point, each disk marked before its first block.
fn begin(repository: &Repository, point: &Point) -> (Draft, Vec<Arc<DiskDraft>>) {
    let mut draft = repository.begin_draft(spec(point), now()).unwrap();
    let begun: Vec<_> = disks(point).into_iter().map(|disk| draft.begin_disk(disk).unwrap()).collect();
    for disk in &begun {
        disk.mark(b"begun").unwrap();
    }
    (draft, begun)
}

/// Puts what is missing and publishes.
fn finish(resumed: Resumed, point: &Point) -> Result<()> {
    for (number, disk) in &point.disks {
        Content::of(disk).put_missing(resumed.draft.disk(*number).unwrap())?;
    }
    resumed.draft.seal()?.publish(world::facts(point), now()).map(drop)
}

fn check(repository: &Repository, point: &Point) -> Result<(), String> {
    world::check_bytes(repository, point)?;
    world::check_sound(repository, point, Depth::Deep)
}

/// A point of a disk with blocks of all sorts, and one that stands on another point.
fn third(before: &Before) -> Point {
    let mut third = before.second.child("bk-3");
    *third.disk(0) = pattern(11, 9 * BLOCK + 700);
    third.disks.insert(DiskNumber(2), Disk { bytes: pattern(12, 6 * BLOCK), parent: None });
    third
}

#[test]
fn a_draft_goes_on_from_its_mark_and_the_point_is_what_qemu_reads() {
    let before = Before::new();
    let point = third(&before);
    let contents: Vec<_> = point.disks.values().map(Content::of).collect();
    {
        let repository = world::open(&before.root()).unwrap();
        let (draft, disks) = begin(&repository, &point);
        for (disk, content) in disks.iter().zip(&contents) {
            let half = content.0.len() / 2;
            content.put(disk, 0..half);
            disk.mark(b"half").unwrap();
            // These come to nothing, with what they wrote behind the mark.
            content.put(disk, half..content.0.len());
        }
        drop(draft);
    }
    let repository = world::open(&before.root()).unwrap();
    let resumed = repository.resume_draft(spec(&point), disks(&point), now()).unwrap();
    assert!(resumed.notes.values().all(|note| note == b"half"));
    for (number, content) in point.disks.keys().zip(&contents) {
        let disk = resumed.draft.disk(*number).unwrap();
        let mut held = vec![sendense_qcow2::Held::Absent; content.0.last().unwrap().0 as usize + 1];
        disk.held(BlockIndex(0), &mut held).unwrap();
        for (at, (index, ..)) in content.0.iter().enumerate() {
            let is_held = held[*index as usize] != sendense_qcow2::Held::Absent;
            // A zero block has no bytes that could be lost.
            assert!(is_held == (at < content.0.len() / 2) || matches!(content.0[at].2, Kept::Zero), "block {index}");
        }
        // What is held is not taken twice, and never with other bytes.
        if content.0.len() < 2 {
            continue;
        }
        let lie = Block { digest: Digest([9; 16]), ..content.block(0) };
        assert_eq!(disk.put_missing(&[lie]).unwrap_err().kind, Kind::Invalid);
    }
    finish(resumed, &point).unwrap();
    check(&repository, &point).unwrap();
    qemu::check(&before.root(), &[&point]);
    assert_eq!(repository.recover(&Amnesia, now()).unwrap().undone, []);
    assert!(!before.root().join(layout::draft_dir(&point.vm, &point.id)).exists());
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_and_taken_away() {
    let before = Before::new();
    let point = third(&before);
    let repository = world::open(&before.root()).unwrap();
    let resume = |disks| repository.resume_draft(spec(&point), disks, now()).err().map(|error| error.kind);
    assert_eq!(resume(disks(&point)), Some(Kind::NotFound), "there is none");
    let (draft, begun) = begin(&repository, &point);
    Content::of(&point.disks[&DiskNumber(2)]).put(&begun[2], 0..2);
    begun[2].mark(&[]).unwrap();
    assert!(matches!(resume(disks(&point)), Some(Kind::Conflict { .. })), "somebody works on it");
    drop((draft, begun));
    let mut others = disks(&point);
    others[2].capacity = ByteLen(others[2].capacity.0 + 1);
    assert_eq!(resume(others), Some(Kind::Invalid), "another disk");
    let dir = before.root().join(layout::draft_dir(&point.vm, &point.id));
    let image = dir.join(layout::draft_image_name(DiskNumber(2)));
    let bytes = std::fs::read(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(resume(disks(&point)), Some(Kind::Corrupt { .. })), "cut short");
    std::fs::write(&image, &bytes).unwrap();
    std::fs::write(dir.join("disk-2.tables"), []).unwrap();
    assert!(matches!(resume(disks(&point)), Some(Kind::Corrupt { .. })), "blocks are not in the tables");
    std::fs::write(dir.join(layout::INTENT_FILE), "{").unwrap();
    assert_eq!(resume(disks(&point)), Some(Kind::Exists), "it was being published");
    repository.discard_draft(&point.vm, &point.id, now()).unwrap();
    assert!(!dir.exists());
    assert_eq!(resume(disks(&point)), Some(Kind::NotFound));
}

#[test]
fn a_hub_that_is_not_the_owner_any_more_marks_nothing() {
    let before = Before::new();
    let point = third(&before);
    let stale = world::open(&before.root()).unwrap();
    let (_draft, disks) = begin(&stale, &point);
    let mark = before.root().join(layout::draft_dir(&point.vm, &point.id)).join("disk-0.mark");
    let kept = std::fs::read(&mark).unwrap();
    let _next = world::open(&before.root()).unwrap();
    assert_eq!(disks[0].mark(b"late").unwrap_err().kind, Kind::Fenced);
    assert_eq!(std::fs::read(&mark).unwrap(), kept);
}

/// Gives every file below a folder to it alone: what is built for a test shares its files. Two names of one file stay that.
fn detach(root: &Path) {
    let mut copies = BTreeMap::new();
    for path in world::tree(root) {
        let path = root.join(&path);
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            continue;
        }
        let new = root.join(".copy");
        match copies.get(&metadata.ino()) {
            Some(copy) => std::fs::hard_link(copy, &new).unwrap(),
            None => _ = std::fs::copy(&path, &new).unwrap(),
        }
        std::fs::rename(&new, &path).unwrap();
        copies.insert(metadata.ino(), path);
    }
}

/// Power is lost in a folder that was met, and perhaps again while it is gone on. Afterwards it is gone on to the end, or there is
/// no such point; whatever is there is right.
fn go_on(root: &Path, before: &Before, point: &Point, is_marked: bool) -> Result<(), String> {
    let told = |error: crate::Error| sendense_block::error::chain(&error);
    let must = [&before.first, &before.second, &before.other];
    let repository = world::open(root).map_err(told)?;
    match repository.resume_draft(spec(point), disks(point), now()) {
        Ok(resumed) => {
            finish(resumed, point).map_err(told)?;
            check(&repository, point)?;
        }
        // The publication had begun.
        Err(error) if error.kind == Kind::Exists => {}
        Err(error) if is_marked => return Err(format!("it was marked, but: {}", told(error))),
        Err(_) => {}
    }
    drop(repository);
    world::survive(root, &must, &[point], Care::Now)
}

#[test]
fn power_may_be_lost_at_every_step_of_a_draft_that_is_gone_on_with() {
    let before = Before::new();
    let mut point = Point::full("vm-a", "bk-3", &[&pattern(21, 8 * BLOCK + 9)]);
    point.disks.insert(DiskNumber(1), Disk { bytes: pattern(22, 4 * BLOCK), parent: Some(before.second.id.clone()) });
    let contents: Vec<_> = point.disks.values().map(Content::of).collect();
    let work = |repository: &Repository| {
        let (draft, disks) = begin(repository, &point);
        for part in 0..3 {
            for (disk, content) in disks.iter().zip(&contents) {
                content.put(disk, (0..content.0.len()).filter(|at| at % 3 == part));
                if part < 2 {
                    disk.mark(&[part as u8]).unwrap();
                }
            }
        }
        draft.seal().unwrap().publish(world::facts(&point), now()).unwrap();
    };
    let record = Record::of(&before.root());
    work(&world::open_on(Stage::new(record.clone(), Renames::AtOnce), &before.root()));
    let (mut medium, steps) = record.take();
    let mark_of = |number: usize| format!("disk-{number}.mark");
    let (mut store, mut dice, mut marked) = (Store::new(), Dice(3), [false; 2]);
    let mut again = 0;
    for (number, step) in steps.iter().enumerate() {
        step.changes.iter().for_each(|change| medium.apply(change));
        // A mark counts when the folder was synced that has its name.
        for (disk, marked) in marked.iter_mut().enumerate() {
            let named = |what: &str| what.starts_with("rename") && what.ends_with(&mark_of(disk));
            *marked |= step.what.starts_with("sync folder") && steps[..number].iter().any(|step| named(&step.what));
        }
        let is_marked = marked == [true; 2];
        for fate in medium.fates(3, &mut dice) {
            let why = |why: String| {
                let steps: Vec<&str> = steps[..=number].iter().map(|step| step.what.as_str()).collect();
                panic!("{why}\nafter power loss behind step {number}, fate {fate:?}, of\n{}", steps.join("\n"));
            };
            let root = store.place("met");
            medium.build(&fate, &root, &mut store);
            detach(&root);
            // Now and then the power fails once more, on the way.
            if is_marked && dice.below(12) == 0 {
                again += 1;
                twice(&root, &before, &point, &mut dice).unwrap_or_else(why);
            } else {
                go_on(&root, &before, &point, is_marked).unwrap_or_else(why);
            }
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
    assert!(again > 3, "{again} of {} steps", steps.len());
}

/// Goes on, is cut off at some steps of that, and goes on from there.
fn twice(root: &Path, before: &Before, point: &Point, dice: &mut Dice) -> Result<(), String> {
    let record = Record::of(root);
    {
        let repository = world::open_on(Stage::new(record.clone(), Renames::AtOnce), root);
        if let Ok(resumed) = repository.resume_draft(spec(point), disks(point), now()) {
            for (number, disk) in &point.disks {
                let (disk, content) = (resumed.draft.disk(*number).unwrap(), Content::of(disk));
                let some: Vec<_> = (0..content.0.len() / 2).map(|at| content.block(at)).collect();
                disk.put_missing(&some).unwrap();
                disk.mark(b"again").unwrap();
            }
            finish(resumed, point).unwrap();
        }
    }
    let (mut medium, steps) = record.take();
    let mut store = Store::new();
    for (number, step) in steps.iter().enumerate() {
        step.changes.iter().for_each(|change| medium.apply(change));
        if dice.below(4) != 0 {
            continue;
        }
        for fate in medium.fates(2, dice) {
            let root = store.place("again");
            medium.build(&fate, &root, &mut store);
            detach(&root);
            go_on(&root, before, point, true).map_err(|why| format!("{why}\nand again at its step {number}"))?;
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
    Ok(())
}

/// Records, and takes its time to keep digests: a put is under way for so long that marks come meanwhile.
struct SlowDigests {
    record: Arc<Record>,
    files: Mutex<BTreeSet<u32>>,
}

impl Script for SlowDigests {
    fn before(&self, act: &Act<'_>) -> std::io::Result<()> {
        match act {
            Act::CreateFile(path, number) if path.extension().is_some_and(|extension| extension == "spill") => {
                self.files.lock().insert(*number);
            }
            Act::Write(number, ..) if self.files.lock().contains(number) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => {}
        }
        Ok(())
    }

    fn after(&self, act: &Act<'_>) {
        self.record.after(act);
    }

    fn number(&self, path: &Path) -> Option<u32> {
        self.record.number(path)
    }
}

#[test]
fn threads_put_while_another_marks_and_each_mark_can_be_gone_on_from() {
    let before = Before::new();
    let point = Point::full("vm-a", "bk-3", &[&pattern(31, 48 * BLOCK)]);
    let content = Content::of(&point.disks[&DiskNumber(0)]);
    let record = Record::of(&before.root());
    {
        let slow = SlowDigests { record: record.clone(), files: Mutex::default() };
        let repository = world::open_on(Stage::new(Arc::new(slow), Renames::AtOnce), &before.root());
        let (draft, disks) = begin(&repository, &point);
        let (disk, left) = (&disks[0], AtomicUsize::new(3));
        std::thread::scope(|scope| {
            for lane in 0..3 {
                let (content, left) = (&content, &left);
                scope.spawn(move || {
                    content.put(disk, (lane..content.0.len()).step_by(3));
                    left.fetch_sub(1, Ordering::SeqCst);
                });
            }
            while left.load(Ordering::SeqCst) > 0 {
                disk.mark(b"meanwhile").unwrap();
            }
        });
        drop((draft, disks));
    }
    let (mut medium, steps) = record.take();
    let (mut store, mut dice, mut is_named, mut marks) = (Store::new(), Dice(5), false, 0);
    for step in &steps {
        step.changes.iter().for_each(|change| medium.apply(change));
        is_named |= step.what.starts_with("rename") && step.what.ends_with("disk-0.mark");
        if !step.what.starts_with("sync folder") || !std::mem::take(&mut is_named) {
            continue;
        }
        marks += 1;
        for fate in medium.fates(1, &mut dice) {
            let root = store.place("met");
            medium.build(&fate, &root, &mut store);
            detach(&root);
            go_on(&root, &before, &point, true).unwrap_or_else(|why| panic!("{why}\nat mark {marks}, fate {fate:?}"));
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
    assert!(marks > 3, "{marks}");
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Put(usize),
    Mark,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![6 => (0..4_usize).prop_map(Step::Put), 2 => Just(Step::Mark), 1 => Just(Step::Crash)];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn whatever_is_put_marked_and_lost_the_point_is_the_disk(steps in steps(), seed in any::<u64>(), len in 1..14 * BLOCK) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("repository");
        let point = Point::full("vm-a", "bk-1", &[&pattern(seed, len)]);
        let content = Content::of(&point.disks[&DiskNumber(0)]);
        let mut repository = world::open(&root).unwrap();
        let (mut draft, mut disks_begun) = begin(&repository, &point);
        // Which blocks are there for sure, and which were put.
        let (mut durable, mut put) = (vec![false; content.0.len()], vec![false; content.0.len()]);
        let mut dice = Dice(seed);
        for step in steps {
            match step {
                Step::Put(count) => for _ in 0..=count {
                    let at = dice.below(content.0.len().max(1));
                    if content.0.get(at).is_some() {
                        disks_begun[0].put_missing(&[content.block(at)]).unwrap();
                        put[at] = true;
                    }
                },
                Step::Mark => {
                    disks_begun[0].mark(&[]).unwrap();
                    durable.clone_from(&put);
                }
                Step::Crash => {
                    drop((draft, disks_begun, repository));
                    repository = world::open(&root).unwrap();
                    let resumed = repository.resume_draft(spec(&point), disks(&point), now()).unwrap();
                    draft = resumed.draft;
                    disks_begun = vec![draft.disk(DiskNumber(0)).unwrap().clone()];
                    let mut held = vec![sendense_qcow2::Held::Absent; len.div_ceil(BLOCK)];
                    disks_begun[0].held(BlockIndex(0), &mut held).unwrap();
                    for (at, (index, ..)) in content.0.iter().enumerate() {
                        prop_assert_eq!(held[*index as usize] != sendense_qcow2::Held::Absent, durable[at]);
                    }
                    put.clone_from(&durable);
                }
            }
        }
        content.put_missing(&disks_begun[0]).unwrap();
        draft.seal().unwrap().publish(world::facts(&point), now()).unwrap();
        check(&repository, &point).map_err(TestCaseError::fail)?;
    }
}
