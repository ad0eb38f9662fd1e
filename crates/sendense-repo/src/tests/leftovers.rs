//! What a crash leaves behind in rare cases, each met once and told by name.

use crate::layout;
use crate::testing::now;
use crate::testing::world::{self, Amnesia, Point, back_up, pattern, tree, tree_of};
use sendense_types::DiskNumber;

/// Power fails while a deletion moves the manifest: its old folder has lost the name, its new one has not got it.
#[test]
fn a_deletion_whose_manifest_was_lost_on_the_way_is_finished_by_its_list() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 70_000), &pattern(2, 10)]);
    let second = first.child("bk-2");
    for point in [&first, &second] {
        back_up(&repository, point, now()).unwrap();
    }
    let intent =
        crate::draft::intent::Intent { backup_id: second.id.clone(), disks: second.disks.keys().copied().collect() };
    let deletion = root.join(layout::delete_dir(&second.vm, &second.id));
    std::fs::create_dir(&deletion).unwrap();
    std::fs::write(deletion.join(layout::INTENT_FILE), intent.to_bytes()).unwrap();
    std::fs::remove_file(root.join(layout::manifest(&second.vm, &second.id))).unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(report.deleted, [(second.vm, second.id)]);
    assert!(report.strangers.is_empty(), "{report:?}");
    assert_eq!(tree(&root), tree_of([&first]));
}

/// A list without its point's manifest removes that point's files, and no other's.
#[test]
fn a_deletion_never_takes_files_of_another_point() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 70_000)]);
    back_up(&repository, &first, now()).unwrap();
    let forged = crate::draft::intent::Intent { backup_id: first.id.clone(), disks: [DiskNumber(0)].into() };
    let deletion = root.join(layout::delete_dir(&first.vm, &"bk-forged".parse().unwrap()));
    std::fs::create_dir(&deletion).unwrap();
    std::fs::write(deletion.join(layout::INTENT_FILE), forged.to_bytes()).unwrap();
    repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(tree(&root), tree_of([&first]));
    world::check_bytes(&repository, &first).unwrap();
}

/// A process dies after it has made the folder of a machine, and before the draft's.
#[test]
fn the_empty_folder_of_a_machine_is_removed_and_a_full_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    std::fs::create_dir(root.join("vm-empty")).unwrap();
    std::fs::create_dir(root.join("vm-full")).unwrap();
    std::fs::write(root.join("vm-full/notes.txt"), "mine").unwrap();
    let report = repository.recover(&Amnesia, now()).unwrap();
    assert_eq!(report.strangers, [std::path::PathBuf::from("vm-full/notes.txt")]);
    assert!(!root.join("vm-empty").exists() && root.join("vm-full/notes.txt").exists());
}

/// A backup has claimed the machine, whose folder it made a moment ago.
#[test]
fn the_folder_of_a_machine_that_is_being_backed_up_stays() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    std::fs::create_dir(root.join("vm-a")).unwrap();
    let claim = repository.lock(crate::lock::Operation::Backup, &"vm-a".parse().unwrap(), [].into(), "backup").unwrap();
    repository.recover(&Amnesia, now()).unwrap();
    assert!(root.join("vm-a").exists());
    drop(claim);
    repository.recover(&Amnesia, now()).unwrap();
    assert!(!root.join("vm-a").exists());
}

/// A later program died while it published; then this one is started on the repository.
#[test]
fn a_draft_of_a_later_version_is_left_to_the_program_that_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&pattern(1, 70_000)]);
    back_up(&repository, &first, now()).unwrap();
    let intent = crate::draft::intent::Intent { backup_id: "bk-2".parse().unwrap(), disks: [DiskNumber(0)].into() };
    let later = String::from_utf8(intent.to_bytes()).unwrap().replace("\"version\": 1", "\"version\": 2");
    for made in [layout::draft_dir(&first.vm, &intent.backup_id), layout::delete_dir(&first.vm, &intent.backup_id)] {
        std::fs::create_dir(root.join(&made)).unwrap();
        std::fs::write(root.join(&made).join(layout::INTENT_FILE), &later).unwrap();
        let before = tree(&root);
        let report = repository.recover(&Amnesia, now()).unwrap();
        let [(path, error)] = &report.problems[..] else { panic!("{report:?}") };
        assert_eq!((path, &error.kind), (&made, &crate::Kind::Unsupported));
        assert_eq!(error.to_string(), "the intent has version 2; this program knows 1");
        assert_eq!(tree(&root), before);
        std::fs::remove_dir_all(root.join(&made)).unwrap();
    }
}
