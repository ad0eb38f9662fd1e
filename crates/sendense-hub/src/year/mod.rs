//! A simulated year: the real hub, with its scheduler, jobs, retention, merging and start-up, on a clock that is passed, over guests
//! whose disks change, grow, shrink and vanish, with points deleted, and machines moved to another repository and back, at random, and a
//! process that dies at any step.
//!
//! What is proved at the end: every point that is listed gives back exactly what the guest had when it was made; the repositories and
//! the catalog list the same points, each in one place; and a repository holds not one file that its points do not name.
//!
//! What lives here: the run and the final check. [`guests`] are the machines and what they had, [`kill`] the faults, [`play`] the days.
//! The seed decides what happens; how tasks that run side by side interleave is the machine's.
//!
//! `SENDENSE_YEAR_VMS`, `SENDENSE_YEAR_DAYS` and `SENDENSE_YEAR_SEED` choose; `make soak` plays the whole year.

mod guests;
mod kill;
mod play;

use play::{Model, Play, REPOSITORIES, Scale};
use sendense_repo::{Repository, layout};
use sendense_types::BackupId;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_point_of_a_year_gives_back_what_was_there() {
    let scale = Scale {
        vms: setting("SENDENSE_YEAR_VMS", 9) as usize,
        days: setting("SENDENSE_YEAR_DAYS", 24),
        seed: setting("SENDENSE_YEAR_SEED", 1),
    };
    println!("{scale:?}");
    let mut play = Play::begin(scale).await;
    for day in 0..scale.days {
        // The last days are calm: what faults have kept from being done is made up for.
        let calm = day + 3 >= scale.days;
        play.day(calm).await;
        if day % 30 == 29 {
            println!("day {}: {}", day + 1, play.tally());
        }
    }
    let (tally, points) = (play.tally().clone(), play.points().await);
    println!("{tally}; {} points are left", points.len());
    play.check_retention(&points);
    let known: BTreeSet<_> =
        points.iter().map(|point| (play.name_of(&point.repository_id), point.backup_id.clone())).collect();
    let (folder, model) = play.end().await;

    let mut listed = BTreeSet::new();
    for name in REPOSITORIES {
        listed.extend(check(&folder.path().join(name), &model).into_iter().map(|id| (name, id)));
    }
    assert_eq!(listed, known, "the repositories and the catalog list the same points");
    assert!(tally.backups > 0 && tally.deaths > 0 && tally.moves > 0, "{tally}");
}

/// Every point of a repository is what was backed up, and nothing else lies there; gives the points.
fn check(root: &Path, model: &Model) -> BTreeSet<BackupId> {
    let repository = Repository::open_read_only(root).unwrap();
    let mut wanted = BTreeSet::from([PathBuf::from(layout::OWNER_FILE), PathBuf::from(layout::OWNER_LOCK_FILE)]);
    let mut listed = BTreeSet::new();
    for vm in repository.vms().unwrap() {
        for point in repository.list(&vm).unwrap().complete().unwrap() {
            let had = model.get(&point.backup_id).unwrap_or_else(|| panic!("{} was never made", point.backup_id));
            assert_eq!(point.disks.len(), had.len(), "{}", point.backup_id);
            wanted.extend([layout::vm_dir(&vm), layout::manifest(&vm, &point.backup_id)]);
            for disk in &point.disks {
                let reader = repository.open_disk(&vm, &point.backup_id, disk.disk_id, "the check").unwrap();
                let found = guests::Fingerprint::of(&reader);
                assert_eq!(had.get(&disk.disk_key), Some(&found), "{} {}", point.backup_id, disk.disk_key);
                wanted.extend([
                    layout::disk_dir(&vm, disk.disk_id),
                    layout::image(&vm, disk.disk_id, &point.backup_id),
                    layout::digests(&vm, disk.disk_id, &point.backup_id),
                ]);
            }
            listed.insert(point.backup_id);
        }
    }
    let found = tree(root);
    let (more, less): (Vec<_>, Vec<_>) = (found.difference(&wanted).collect(), wanted.difference(&found).collect());
    assert!(more.is_empty() && less.is_empty(), "left behind: {more:?}; missing: {less:?}");
    listed
}

/// Every file and folder below a folder, but for the copies of the catalog and the spare room.
fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if entry.file_name() == layout::CATALOG_DIR || entry.file_name() == layout::SPARE_FILE {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    found
}
