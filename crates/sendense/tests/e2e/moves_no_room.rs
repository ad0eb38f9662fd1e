//! Moves between real disks that are full: towards one that fills up while they copy, also when the hub dies in that moment, and away
//! from one without a free block.

use crate::bad_day::{SmallDisk, fill};
use crate::disk::Random;
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use crate::moves::{check, machines_in, set_up};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Somebody else takes all that is left of a file system.
fn take_all(folder: &Path) {
    fill(&folder.join("ballast"));
    tool("coreutils", "sync", &["-f", path(folder)]);
}

/// They give it back.
fn make_room(folder: &Path) {
    fs::remove_file(folder.join("ballast")).unwrap();
    tool("coreutils", "sync", &["-f", path(folder)]);
}

/// Asks for a move that takes some seconds and stops the hub when a part of the full is copied; gives the task's id.
pub fn stop_in_the_middle(hub: &Hub, to: &Path) -> String {
    let go = ["chain", "move", "web", "--to", "second", "--bandwidth", "4MB", "--yes", "--no-wait"];
    let task_id = hub.ok(&go).trim().to_owned();
    let copied = || {
        let images = machines_in(to).into_iter().filter(|file| file.ends_with(".qcow2"));
        images.map(|file| to.join(file).metadata().unwrap().len()).sum::<u64>()
    };
    let patience = Instant::now() + PATIENCE;
    while copied() < 4 * MIB {
        assert!(Instant::now() < patience, "it does not begin:\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    hub.pause();
    assert!(copied() < 20 * MIB, "it was faster than it should be");
    task_id
}

/// The points are where they were, and whoever asks is told so.
fn nothing_has_moved(hub: &Hub, from: &Path, to: &Path, known: &[(String, Vec<u8>)]) {
    let patience = Instant::now() + PATIENCE;
    while !machines_in(to).is_empty() {
        assert!(Instant::now() < patience, "{:?}\n{}", machines_in(to), hub.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    check(from, known);
    let main = hub.json(&["repo", "show", "main"])["repository"]["repository_id"].clone();
    let listed = hub.json(&["backup", "list"])["backups"].clone();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), known.len());
    assert!(listed.iter().all(|one| one["repository_id"] == main && one["status"] == "completed"), "{listed:#?}");
    let (id, bytes) = &known[1];
    let out = from.with_extension("out");
    hub.ok(&["restore", "disk", id, "--to", path(&out), "--wait"]);
    crate::disk::assert_holds(&out, bytes);
    fs::remove_file(out).unwrap();
}

#[test]
fn a_target_that_fills_up_gets_nothing_and_with_room_the_same_move_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // 64 MiB of it are left alone, as of every repository's.
    let small = dir.join("small");
    let _small = SmallDisk::ext4(&small, 160 * MIB);
    let mut hub = Hub::start(dir);
    let (from, to) = (dir.join("repo"), small.join("second"));
    let (_, known) = set_up(&hub, dir, &to, 24 << 20, &mut Random::new(74));
    let ended = |hub: &Hub, task_id: &str| {
        hub.run(&["task", "wait", task_id]);
        hub.json(&["task", "show", task_id])["task"].clone()
    };

    // In the middle of the copying.
    let task_id = stop_in_the_middle(&hub, &to);
    take_all(&small);
    hub.resume();
    let said = hub.fails(6, &["task", "wait", &task_id]);
    let wanted = ["no_space", "no space in repository second", "the points stay in main: make room for second"];
    assert!(wanted.iter().all(|words| said.contains(words)), "{said}");
    assert_eq!(field(&ended(&hub, &task_id), "state"), "failed");
    nothing_has_moved(&hub, &from, &to, &known);
    // As long as it is full nothing is begun.
    let said = hub.fails(1, &["chain", "move", "web", "--to", "second", "--yes"]);
    assert!(said.contains("no_space") && said.contains("bytes are needed in second"), "{said}");

    // The hub dies beside it, and begins again where there is no room: it says so once more, and takes away what it had copied.
    make_room(&small);
    let task_id = stop_in_the_middle(&hub, &to);
    take_all(&small);
    hub.kill_9();
    hub = Hub::start(dir);
    let task = ended(&hub, &task_id);
    assert_eq!((field(&task, "state"), field(&task["error"], "code")), ("failed", "no_space"), "{task:#}");
    nothing_has_moved(&hub, &from, &to, &known);

    // It dies once more, and room is made before it begins again: it goes on by itself.
    make_room(&small);
    let task_id = stop_in_the_middle(&hub, &to);
    take_all(&small);
    hub.kill_9();
    make_room(&small);
    hub = Hub::start(dir);
    let task = ended(&hub, &task_id);
    assert_eq!(field(&task, "state"), "completed", "{task:#}\n{}", hub.log());
    check(&to, &known);
    assert!(machines_in(&from).is_empty(), "{:?}", machines_in(&from));
    for name in ["main", "second"] {
        assert_eq!(hub.json(&["repo", "check", name])["report"]["findings_total"], 0, "{}", hub.log());
    }
    // And back, by the same command as any other.
    hub.ok(&["chain", "move", "web", "--to", "main", "--yes"]);
    check(&from, &known);
    assert_eq!(hub.stop(), Some(0));
}

/// A repository without a free block is what machines are moved away from. What they leave there is removed, and makes room.
#[test]
fn a_machine_moves_away_from_a_disk_without_a_free_block() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (from, to) = (dir.join("repo"), dir.join("second"));
    let _small = SmallDisk::ext4(&from, 160 * MIB);
    let mut hub = Hub::start(dir);
    let (mut disk, known) = set_up(&hub, dir, &to, 24 << 20, &mut Random::new(75));
    take_all(&from);
    // Also where the hub begins only now.
    assert_eq!(hub.end(), Some(0));
    hub = Hub::start(dir);
    let said = hub.ok(&["chain", "move", "web", "--to", "second", "--yes"]);
    assert!(said.contains("3 points of web were moved from main to second"), "{said}");
    check(&to, &known);
    assert_eq!(tree(&from).into_iter().filter(|file| !file.starts_with('.')).collect::<Vec<_>>(), ["ballast"]);
    disk.write_somewhere(100_000, &mut Random::new(76));
    let next = hub.json(&["backup", "start", "web", "--repo", "second", "--wait"])["backup"].clone();
    assert_eq!((field(&next, "backup_type"), field(&next, "parent_backup_id")), ("incremental", known[2].0.as_str()));
    assert_eq!(hub.stop(), Some(0));
}
