//! Bytes that are not what was written: each is found, and the file and the segment are named.

use crate::error::Kind;
use crate::layout;
use crate::manifest::Manifest;
use crate::repository::Repository;
use crate::testing::before::Before;
use crate::testing::world::{self, Point};
use crate::testing::{Dice, now};
use crate::verify::{Depth, Finding, Options, Pace, Progress, Report, Scope};
use crate::{DiskSpec, DraftSpec};
use sendense_block::{Block, BlockIndex, BlockSink, ByteLen, Cancel, Digest, Payload};
use sendense_types::{DiskBinding, DiskNumber};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn verify(repository: &Repository, point: &Point, depth: Depth) -> crate::Result<Report> {
    let options = Options { depth, scope: Scope::Point, threads: 2, bytes_per_second: None, who: "test".into() };
    repository.verify(&point.vm, &point.id, None, &options, &Progress::default(), &Cancel::new())
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

/// Flips bits at both ends of each cluster and at some places between, one at a time.
#[test]
fn a_flipped_bit_is_found_and_named_and_nothing_else_is() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let point = &before.second;
    let mut dice = Dice(1);
    for (file, segment) in [
        (layout::image(&point.vm, DiskNumber(0), &point.id), Some(0)),
        (layout::digests(&point.vm, DiskNumber(1), &point.id), None),
    ] {
        let path = before.root().join(&file);
        let len = path.metadata().unwrap().len();
        let ends = (0..len).step_by(65536).flat_map(|start| [start, (start + 65535).min(len - 1)]);
        let places: Vec<u64> = ends.chain((0..10).map(|_| dice.roll() % len)).collect();
        for at in places {
            let bit = dice.below(8) as u8;
            flip(&path, at, bit);
            let report = verify(&repository, point, Depth::AtRest).unwrap();
            let named: Vec<_> = report.damaged.iter().map(|found| (found.file.clone(), found.segment)).collect();
            assert_eq!(named, [(file.clone(), segment)], "byte {at}");
            assert_eq!(report.unreadable, []);
            // What lies beside it is as it was.
            assert!(verify(&repository, &before.first, Depth::Deep).unwrap().is_sound());
            flip(&path, at, bit);
        }
        assert!(verify(&repository, point, Depth::Deep).unwrap().is_sound(), "nobody remembers damage that is gone");
    }
}

#[test]
fn a_point_is_sound_when_all_that_it_builds_on_is() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let point = &before.second;
    let of = |disk, depth| {
        let options = Options { depth, scope: Scope::Chain, threads: 2, bytes_per_second: None, who: "test".into() };
        repository.verify(&point.vm, &point.id, disk, &options, &Progress::default(), &Cancel::new()).unwrap()
    };
    let sound = of(None, Depth::Deep);
    assert!(sound.is_sound() && sound.checked_points == 2, "{sound:?}");
    // The parent's image of disk 0 rots: a restore of the child would meet it, one of its disk 1 would not.
    let file = layout::image(&before.first.vm, DiskNumber(0), &before.first.id);
    flip(&before.root().join(&file), 70_000, 1);
    for (disk, depth, found) in [
        (None, Depth::AtRest, true),
        (Some(DiskNumber(0)), Depth::AtRest, true),
        (Some(DiskNumber(0)), Depth::Deep, true),
        (Some(DiskNumber(1)), Depth::Deep, false),
    ] {
        let report = of(disk, depth);
        assert_eq!(report.damaged.iter().any(|damaged| damaged.file == file), found, "{disk:?} {depth:?} {report:?}");
    }
    assert!(verify(&repository, point, Depth::Deep).unwrap().is_sound(), "its own files are as they were written");
}

#[test]
fn a_file_that_is_gone_or_cut_is_found() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let point = &before.first;
    for file in
        [layout::image(&point.vm, DiskNumber(1), &point.id), layout::digests(&point.vm, DiskNumber(0), &point.id)]
    {
        let path = before.root().join(&file);
        let bytes = std::fs::read(&path).unwrap();
        for broken in [None, Some(&bytes[..bytes.len() - 1]), Some(&[][..])] {
            match broken {
                None => std::fs::remove_file(&path).unwrap(),
                Some(broken) => std::fs::write(&path, broken).unwrap(),
            }
            let report = verify(&repository, point, Depth::AtRest).unwrap();
            let [Finding { file: found, segment: None, .. }] = &report.damaged[..] else { panic!("{report:?}") };
            assert_eq!(*found, file);
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(verify(&repository, point, Depth::Deep).unwrap().is_sound());
}

/// A mount that goes away leaves an empty folder, or none: every file is missing, and none of them is damaged.
#[test]
fn a_repository_that_is_away_is_unreadable_and_not_damaged() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let (point, root) = (&before.second, before.root());
    let manifest = repository.manifest(&point.vm, &point.id).unwrap();
    let look = || {
        crate::verify::unnamed(&repository, &manifest, 2, &Pace::new(None), &Progress::default(), &Cancel::new())
            .unwrap()
    };
    assert!(look().is_sound());
    let elsewhere = root.with_extension("elsewhere");
    std::fs::rename(&root, &elsewhere).unwrap();
    for left in ["nothing", "an empty folder", "the repository of another"] {
        match left {
            "nothing" => {}
            "an empty folder" => std::fs::create_dir(&root).unwrap(),
            _ => drop(world::open(&root).unwrap()),
        }
        let report = look();
        assert_eq!(report.damaged, [], "{left}");
        assert_eq!(
            report.unreadable.iter().filter(|found| found.file.extension() == Some("qcow2".as_ref())).count(),
            2
        );
        let error = repository
            .check_links(&point.vm, &[crate::Link { backup_id: point.id.clone(), disk: manifest.disks[0].clone() }]);
        assert!(!matches!(error.err().unwrap().kind, Kind::Corrupt { .. }), "{left}");
    }
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::rename(&elsewhere, &root).unwrap();
    assert!(verify(&repository, point, Depth::Deep).unwrap().is_sound());
}

/// Files are gone, and at the end so is the manifest that tells of them, or all of the repository.
#[test]
fn damage_is_told_only_while_the_manifest_is_there() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let point = &before.second;
    std::fs::remove_file(before.root().join(layout::image(&point.vm, DiskNumber(0), &point.id))).unwrap();
    let report = verify(&repository, point, Depth::AtRest).unwrap();
    assert!(!report.is_sound());
    repository.check_still_told(&point.vm, &report).unwrap();
    for gone in [layout::manifest(&point.vm, &point.id), layout::OWNER_FILE.into()] {
        let (path, aside) = (before.root().join(&gone), before.root().with_extension("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let error = repository.check_still_told(&point.vm, &report).unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{}", gone.display());
        std::fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn a_damaged_manifest_hides_no_other_and_keeps_what_it_may_name() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let file = layout::manifest(&before.second.vm, &before.second.id);
    flip(&before.root().join(&file), 300, 0);
    let corrupt = Kind::Corrupt { file: file.display().to_string(), segment: None };
    assert_eq!(verify(&repository, &before.second, Depth::AtRest).unwrap_err().kind, corrupt);
    let listing = repository.list(&before.second.vm).unwrap();
    assert_eq!(listing.points.iter().map(|point| &point.backup_id).collect::<Vec<_>>(), [&before.first.id]);
    assert_eq!(listing.problems.iter().map(|problem| &problem.error.kind).collect::<Vec<_>>(), [&corrupt]);
    // It may stand on anything, so nothing is deleted; its files are no strangers.
    let named = [before.first.id.clone()].into();
    let refused = repository.plan_delete(&before.first.vm, &named, crate::delete::Extent::Cascade).unwrap_err();
    assert_eq!(refused.kind, corrupt);
    assert!(repository.recover(&world::Amnesia, now()).unwrap().strangers.is_empty());
    world::check_bytes(&repository, &before.first).unwrap();
}

/// An image of more than one segment names the one that is damaged; a deep verification the block.
#[test]
fn the_segment_and_the_block_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let noise = world::pattern(1, 2 * 65536).split_off(65536);
    let digest = Digest::of(&noise);
    // A little more than 64 MiB of blocks that are all the same.
    let blocks = 1100;
    let mut point = Point::full("vm-big", "bk-big", &[]);
    point.disks.insert(DiskNumber(0), world::Disk { bytes: Vec::new(), parent: None });
    let spec = DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: [].into(),
        expected_bytes: blocks * 65536,
        who: "test".into(),
    };
    let mut draft = repository.begin_draft(spec, now()).unwrap();
    let disk = draft
        .begin_disk(DiskSpec {
            number: DiskNumber(0),
            binding: DiskBinding("disk".into()),
            capacity: ByteLen(blocks * 65536),
            parent: None,
        })
        .unwrap();
    let all: Vec<Block<'_>> =
        (0..blocks).map(|n| Block { index: BlockIndex(n), digest, payload: Payload::Raw(&noise) }).collect();
    disk.put(&all).unwrap();
    let manifest: Manifest = draft.seal().unwrap().publish(world::facts(&point), now()).unwrap();
    assert_eq!(manifest.disks[0].image.segments.len(), 2);
    let file = layout::image(&point.vm, DiskNumber(0), &point.id);
    // Cluster 0 is the header's, so block n lies in cluster n + 1.
    flip(&root.join(&file), (64 << 20) + 65536 + 5, 3);
    let report = verify(&repository, &point, Depth::AtRest).unwrap();
    let named: Vec<_> = report.damaged.iter().map(|found| (found.file.clone(), found.segment)).collect();
    assert_eq!(named, [(file, Some(1))]);
    let report = verify(&repository, &point, Depth::Deep).unwrap();
    let blocks: Vec<_> =
        report.damaged.iter().filter(|found| found.segment.is_none()).map(|found| found.range).collect();
    assert_eq!(blocks, [Some(sendense_block::Extent::block(BlockIndex(1024)))], "{:?}", report.damaged);
}
