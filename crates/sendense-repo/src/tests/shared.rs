//! Merging on file systems whose files can share room: XFS and btrfs, on loop devices.

use crate::error::{Kind, Result};
use crate::layout;
use crate::merge::{self, Way};
use crate::repository::Repository;
use crate::testing::stage::{Act, Renames, Script, Stage};
use crate::testing::world::{self, Amnesia, Point, back_up, tree, tree_of};
use crate::testing::{Dice, now, qemu};
use crate::verify::{Depth, Progress};
use parking_lot::Mutex;
use sendense_block::Cancel;
use sendense_types::DiskNumber;
use std::cell::Cell;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MIB: usize = 1 << 20;
/// Five segments of an image: some in the middle that nothing touches.
const DISK_BYTES: usize = 280 * MIB;
/// What a guest changes, in one place.
const CHANGED_BYTES: usize = 2 * MIB;

/// A file system in a file, mounted as long as this lives.
pub(super) struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    fn new(mkfs: &[&str]) -> Self {
        Self::sized(mkfs, 1200 * MIB as u64)
    }

    pub(super) fn sized(mkfs: &[&str], bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("at"));
        // Sparse: what is written to it is all that it takes.
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(&at).unwrap();
        let (tool, arguments) = mkfs.split_first().unwrap();
        qemu::run(tool, &[arguments, &[image.to_str().unwrap()]].concat());
        qemu::run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { folder }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("at/repository")
    }

    /// Bytes that are taken, once all is written.
    fn used_bytes(&self) -> u64 {
        let at = self.folder.path().join("at");
        qemu::run("sync", &["-f", at.to_str().unwrap()]);
        let stat = rustix::fs::statvfs(&at).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.folder.path().join("at");
        let _ = std::process::Command::new("umount").arg(at).status();
    }
}

/// Bytes that no compressor makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    std::iter::repeat_with(|| dice.roll().to_le_bytes()).flatten().take(len).collect()
}

/// How many extents of a file are shared with another one, as the file system tells.
fn shared_extents(file: &Path) -> usize {
    qemu::run("filefrag", &["-v", file.to_str().unwrap()]).lines().filter(|line| line.contains("shared")).count()
}

/// The full goes into a small successor: its extents are shared, the change takes room, and all points read as they did.
fn merge_shares_extents(mkfs: &[&str]) {
    let mounted = Mounted::new(mkfs);
    let repository = Repository::open(&mounted.root(), world::options(), now()).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&noise(1, DISK_BYTES)]);
    let mut second = first.child("bk-2");
    second.disk(0)[150 * MIB..150 * MIB + CHANGED_BYTES].copy_from_slice(&noise(2, CHANGED_BYTES));
    second.disk(0)[200 * MIB..201 * MIB].fill(0);
    for point in [&first, &second] {
        back_up(&repository, point, now()).unwrap();
    }
    let mut third = second.child("bk-3");
    third.disk(0)[..MIB].fill(5);
    back_up(&repository, &third, now()).unwrap();
    let old = repository.manifest(&first.vm, &first.id).unwrap();
    let before_bytes = mounted.used_bytes();
    let (peak_bytes, shared) = (Cell::new(0), Cell::new(0));
    // It is asked when the new files are there beside the old ones.
    let look = || -> Result<()> {
        peak_bytes.set(mounted.used_bytes());
        let folder = mounted.root().join(layout::merge_dir(&second.vm, &second.id));
        shared.set(shared_extents(&folder.join(layout::draft_image_name(DiskNumber(0)))));
        Ok(())
    };
    let plan = repository.plan_merge(&first.vm, &first.id, now()).unwrap().remove(0);
    let options = world::merging(Way::Fitting, 2);
    let merged = repository
        .execute_merge(&plan, &options, &Progress::default(), &Cancel::new(), now, look)
        .unwrap_or_else(|error| panic!("{}", sendense_block::error::chain(&error)));
    let grown_bytes = peak_bytes.get().saturating_sub(before_bytes);
    assert!(shared.get() > 0, "extents are shared");
    assert!(grown_bytes < 5 * CHANGED_BYTES as u64, "{grown_bytes} bytes more while both are there");
    let (was, is) = (&old.disks[0].image.segments, &merged.disks[0].image.segments);
    assert!(was.iter().zip(is).skip(1).any(|(was, is)| was == is), "what was not touched keeps its digest");
    for point in [&second, &third] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&mounted.root(), &[&second, &third]);
    // A clone of what began as a clone; then a full of its own beside the chain.
    world::merge(&repository, &second).unwrap();
    let mut fourth = third.child("bk-4");
    fourth.disk(0)[90 * MIB..91 * MIB].fill(6);
    back_up(&repository, &fourth, now()).unwrap();
    world::make_full(&repository, &fourth).unwrap();
    for point in [&third, &fourth] {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&mounted.root(), &[&third, &fourth]);
    assert!(repository.recover(&Amnesia, now()).unwrap().problems.is_empty());
    assert_eq!(tree(&mounted.root()), tree_of([&third, &fourth]));
}

#[test]
fn merging_on_xfs_shares_extents() {
    merge_shares_extents(&["mkfs.xfs", "-q", "-m", "reflink=1"]);
}

#[test]
fn merging_on_btrfs_shares_extents() {
    merge_shares_extents(&["mkfs.btrfs", "-q"]);
}

/// A full and a small successor of it.
fn pair(repository: &Repository) -> (Point, Point) {
    let first = Point::full("vm-a", "bk-1", &[&noise(1, DISK_BYTES)]);
    let mut second = first.child("bk-2");
    second.disk(0)[..MIB].fill(7);
    for point in [&first, &second] {
        back_up(repository, point, now()).unwrap();
    }
    (first, second)
}

/// A byte in the middle of the third segment of a point's image rots.
fn rot(repository: &Repository, point: &Point) {
    let image = repository.root().join(layout::image(&point.vm, DiskNumber(0), &point.id));
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let (mut byte, at) = ([0], 160 * MIB as u64);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// What was shared was not read, and is not called right: its old digest stays, and the next look finds the damage.
#[test]
fn rot_in_what_is_shared_is_not_sealed() {
    let mounted = Mounted::new(&["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let repository = Repository::open(&mounted.root(), world::options(), now()).unwrap();
    let (first, second) = pair(&repository);
    rot(&repository, &first);
    world::merge(&repository, &first).unwrap();
    let found = world::check_sound(&repository, &second, Depth::AtRest).unwrap_err();
    assert!(found.contains("segment 2 of vm-a/disk-0/bk-2.qcow2 is not what was written"), "{found}");
}

/// What is copied is read, and the old image is what is told to be damaged.
#[test]
fn rot_in_what_is_copied_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let repository = world::open(&folder.path().join("repository")).unwrap();
    let (first, second) = pair(&repository);
    let there = tree(repository.root());
    rot(&repository, &first);
    let error = world::merge(&repository, &first).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt { file: "vm-a/disk-0/bk-1.qcow2".into(), segment: Some(2) }, "{error:?}");
    assert_eq!(tree(repository.root()), there);
    rot(&repository, &first);
    world::merge(&repository, &first).unwrap();
    world::check_bytes(&repository, &second).unwrap();
    world::check_sound(&repository, &second, Depth::Deep).unwrap();
}

/// A full, and a successor with changes all over it.
fn scattered(repository: &Repository) -> (Point, Point) {
    let mut first = Point::full("vm-a", "bk-1", &[&noise(1, DISK_BYTES)]);
    // Frames: several blocks in a cluster, of which some go.
    first.disk(0)[100 * MIB..140 * MIB].fill(9);
    let mut second = first.child("bk-2");
    for at in (0..DISK_BYTES - MIB).step_by(9 * MIB) {
        second.disk(0)[at..at + 100_000].fill(7);
    }
    for point in [&first, &second] {
        back_up(repository, point, now()).unwrap();
    }
    (first, second)
}

#[test]
fn a_copy_with_changes_in_each_segment_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let repository = world::open(&folder.path().join("repository")).unwrap();
    let (first, second) = scattered(&repository);
    world::merge_by(Way::Patch, &repository, &first).unwrap();
    world::check_bytes(&repository, &second).unwrap();
    world::check_sound(&repository, &second, Depth::AtRest).unwrap();
    world::check_sound(&repository, &second, Depth::Deep).unwrap();
    qemu::check(repository.root(), &[&second]);
}

/// A disk that takes a merge's new image and has other bytes in one place afterwards.
struct Liar {
    at: u64,
    image: Mutex<Option<(PathBuf, u32)>>,
}

impl Script for Liar {
    fn before(&self, _act: &Act<'_>) -> io::Result<()> {
        Ok(())
    }

    fn after(&self, act: &Act<'_>) {
        match act {
            Act::CreateFile(path, number) if path.ends_with(layout::draft_image_name(DiskNumber(0))) => {
                *self.image.lock() = Some(((*path).to_owned(), *number));
            }
            Act::SyncFile(number) => {
                let mut image = self.image.lock();
                let Some((path, _)) = image.as_ref().filter(|(_, image)| image == number) else { return };
                let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, self.at).unwrap();
                if bytes != [0; 8] {
                    file.write_all_at(&bytes.map(|byte| !byte), self.at).unwrap();
                    *image = None;
                }
            }
            _ => {}
        }
    }
}

/// What was written is believed when it was read back: in a segment that stays as it is, and in one with changes.
#[test]
fn a_disk_that_lies_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    for (n, make) in [pair, scattered].into_iter().enumerate() {
        let root = folder.path().join(n.to_string());
        let (first, second) = make(&world::open(&root).unwrap());
        let there = tree(&root);
        let liar = Arc::new(Liar { at: 170 * MIB as u64, image: Mutex::default() });
        let repository = world::open_on(Stage::sharing(liar.clone(), Renames::AtOnce, false), &root);
        let error = world::merge_by(Way::Patch, &repository, &first).unwrap_err();
        assert!(liar.image.lock().is_none(), "it has lied");
        match n {
            0 => {
                let chain = sendense_block::error::chain(&error);
                assert!(error.kind == Kind::Io && chain.contains("is not what was copied"), "{error:?}");
            }
            _ => assert!(matches!(error.kind, Kind::Corrupt { .. }), "{error:?}"),
        }
        drop(repository);
        assert_eq!(tree(&root), there);
        let repository = world::open(&root).unwrap();
        world::merge_by(Way::Patch, &repository, &first).unwrap();
        world::check_bytes(&repository, &second).unwrap();
    }
}

/// A limit on a merge is kept, however its image is made.
#[test]
fn a_pace_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (way, clones)) in world::WAYS.into_iter().enumerate() {
        let repository = world::open_sharing(&folder.path().join(n.to_string()), clones).unwrap();
        let first = Point::full("vm-a", "bk-1", &[&noise(1, MIB)]);
        let mut second = first.child("bk-2");
        second.disk(0)[..65536].fill(7);
        for point in [&first, &second] {
            back_up(&repository, point, now()).unwrap();
        }
        let plan = repository.plan_merge(&first.vm, &first.id, now()).unwrap().remove(0);
        let options = merge::Options { bytes_per_second: Some(MIB as u64), ..world::merging(way, 2) };
        let began = std::time::Instant::now();
        repository.execute_merge(&plan, &options, &Progress::default(), &Cancel::new(), now, || Ok(())).unwrap();
        // Moved, or copied, and read back; a clone's segments are only read.
        let least = if clones { 1.0 } else { 1.9 };
        let took = began.elapsed().as_secs_f64();
        assert!(took >= least, "{way:?}: {took} s");
    }
}
