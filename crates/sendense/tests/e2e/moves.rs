//! A machine's points go to another repository, and a hub that is killed in the middle of that goes on with it.

use crate::disk::{Disk, Random, assert_holds};
use crate::files::point;
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use std::path::Path;
use std::time::{Duration, Instant};

/// A machine of so many bytes with a full and two incrementals in `main`, and an empty repository `second` in a folder.
pub fn set_up(
    hub: &Hub,
    dir: &Path,
    second: &Path,
    size: usize,
    random: &mut Random,
) -> (Disk, Vec<(String, Vec<u8>)>) {
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), size, random);
    disk.fill_with_noise(random);
    hub.set_up_images(dir);
    std::fs::create_dir_all(second).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "second", "--path", path(second)]);
    let mut known = Vec::new();
    for _ in 0..3 {
        disk.write_somewhere(200_000, random);
        known.push((point(hub), disk.bytes.clone()));
    }
    (disk, known)
}

/// What lies in a repository of machines.
pub fn machines_in(repository: &Path) -> Vec<String> {
    tree(repository).into_iter().filter(|file| !file.starts_with(".sendense")).collect()
}

/// Each point, as other people's program reads it: sound, and byte for byte what it was.
pub fn check(repository: &Path, known: &[(String, Vec<u8>)]) {
    for (id, bytes) in known {
        let image = tree(repository).into_iter().find(|file| file.ends_with(&format!("{id}.qcow2")));
        let image = repository.join(image.unwrap_or_else(|| panic!("{id} is not in {}", repository.display())));
        tool("qemu-utils", "qemu-img", &["check", "-q", path(&image)]);
        let raw = repository.with_extension("raw");
        tool("qemu-utils", "qemu-img", &["convert", "-O", "raw", path(&image), path(&raw)]);
        assert_holds(&raw, bytes);
        std::fs::remove_file(raw).unwrap();
    }
}

#[test]
fn a_chain_moves_and_the_next_backup_goes_on_in_its_new_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(71);
    let hub = Hub::start(dir);
    let (mut disk, mut known) = set_up(&hub, dir, &dir.join("second"), 3 << 20, &mut random);
    hub.ok(&["backup", "protect", &known[0].0]);
    check(&dir.join("repo"), &known);

    let plan = hub.json(&["chain", "move", "web", "--to", "second", "--plan"])["chain_move"].clone();
    let planned: Vec<&str> = plan["backups"].as_array().unwrap().iter().map(|one| field(one, "backup_id")).collect();
    assert_eq!(planned, known.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>());
    assert!(machines_in(&dir.join("second")).is_empty(), "a plan changes nothing");
    // Nobody is there to say yes.
    hub.fails(1, &["chain", "move", "web", "--to", "second"]);

    let said = hub.ok(&["chain", "move", "web", "--to", "second", "--yes"]);
    assert!(said.contains("3 points of web were moved from main to second"), "{said}");
    assert!(machines_in(&dir.join("repo")).is_empty(), "{:?}", machines_in(&dir.join("repo")));
    check(&dir.join("second"), &known);
    let shown = hub.json(&["backup", "show", &known[0].0])["backup"].clone();
    assert_eq!(shown["protected"], true);
    for (id, _) in &known {
        hub.ok(&["backup", "verify", id, "--deep"]);
    }

    disk.write_somewhere(100_000, &mut random);
    let next = hub.json(&["backup", "start", "web", "--repo", "second", "--wait"])["backup"].clone();
    assert_eq!((field(&next, "backup_type"), field(&next, "parent_backup_id")), ("incremental", known[2].0.as_str()));
    known.push((field(&next, "backup_id").to_owned(), disk.bytes.clone()));
    check(&dir.join("second"), &known);

    // A policy that would go on elsewhere is named.
    hub.ok(&["policy", "create", "nightly", "--vm", "web", "--repo", "second"]);
    let told = hub.fails(4, &["chain", "move", "web", "--to", "main", "--yes"]);
    assert!(told.contains("nightly"), "{told}");
    hub.ok(&["chain", "move", "web", "--to", "main", "--leave-policies", "--yes"]);
    check(&dir.join("repo"), &known);
    assert!(machines_in(&dir.join("second")).is_empty());
    for name in ["main", "second"] {
        assert_eq!(hub.json(&["repo", "check", name])["report"]["findings_total"], 0);
    }
    hub.fails(3, &["chain", "move", "nobody", "--to", "second", "--yes"]);
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_hub_that_is_killed_in_a_move_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(72);
    let mut hub = Hub::start(dir);
    // Half a second of copying and reading back, at the least.
    let (mut disk, mut known) = set_up(&hub, dir, &dir.join("second"), 64 << 20, &mut random);
    let folders = [dir.join("repo"), dir.join("second")];
    let under_way = |of: &Path| tree(of).into_iter().any(|file| file.ends_with(".move-in/plan.json"));
    let (mut at, mut caught) = (0, 0);
    // In two directions, and once more where the machine was faster than the kill.
    for _ in 0..6 {
        let (from, to) = (&folders[at], &folders[1 - at]);
        let name = if at == 0 { "second" } else { "main" };
        let task_id = hub.ok(&["chain", "move", "web", "--to", name, "--yes", "--no-wait"]).trim().to_owned();
        let patience = Instant::now() + PATIENCE;
        while !under_way(to) && !machines_in(from).is_empty() {
            assert!(Instant::now() < patience, "it does not begin:\n{}", hub.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        hub.kill_9();
        let was_under_way = under_way(to);
        if was_under_way {
            check(from, &known);
        }
        hub = Hub::start(dir);
        let task = hub.json(&["task", "wait", &task_id])["task"].clone();
        assert_eq!(field(&task, "state"), "completed", "{task:#}\n{}", hub.log());
        let patience = Instant::now() + PATIENCE;
        while !machines_in(from).is_empty() {
            assert!(Instant::now() < patience, "{:?}\n{}", machines_in(from), hub.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        check(to, &known);
        at = 1 - at;
        caught += usize::from(was_under_way);
        if caught == 2 {
            break;
        }
    }
    assert_eq!(caught, 2, "it was never caught in the middle");
    // The chain goes on.
    disk.write_somewhere(100_000, &mut random);
    let name = if at == 0 { "main" } else { "second" };
    let next = hub.json(&["backup", "start", "web", "--repo", name, "--wait"])["backup"].clone();
    assert_eq!((field(&next, "backup_type"), field(&next, "parent_backup_id")), ("incremental", known[2].0.as_str()));
    known.push((field(&next, "backup_id").to_owned(), disk.bytes.clone()));
    check(&folders[at], &known);
    for name in ["main", "second"] {
        assert_eq!(hub.json(&["repo", "check", name])["report"]["findings_total"], 0, "{}", hub.log());
    }
    assert_eq!(hub.stop(), Some(0));
}

/// Cancelled, and a hub that ends in the middle: the one leaves nothing, the other goes on.
#[test]
fn a_move_that_is_cancelled_leaves_nothing_and_one_whose_hub_ends_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(73);
    let mut hub = Hub::start(dir);
    let (_, known) = set_up(&hub, dir, &dir.join("second"), 64 << 20, &mut random);
    let (from, to) = (dir.join("repo"), dir.join("second"));
    let begin = |hub: &Hub| {
        let task_id = hub.ok(&["chain", "move", "web", "--to", "second", "--yes", "--no-wait"]).trim().to_owned();
        let patience = Instant::now() + PATIENCE;
        while machines_in(&to).is_empty() {
            assert!(Instant::now() < patience, "it does not begin:\n{}", hub.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        task_id
    };
    let task_id = begin(&hub);
    hub.ok(&["task", "cancel", &task_id]);
    hub.run(&["task", "wait", &task_id]);
    let task = hub.json(&["task", "show", &task_id])["task"].clone();
    assert_eq!(field(&task, "state"), "cancelled", "{task:#}");
    assert!(machines_in(&to).is_empty(), "{:?}", machines_in(&to));
    check(&from, &known);

    let task_id = begin(&hub);
    assert_eq!(hub.end(), Some(0));
    hub = Hub::start(dir);
    let task = hub.json(&["task", "wait", &task_id])["task"].clone();
    assert_eq!(field(&task, "state"), "completed", "{task:#}\n{}", hub.log());
    check(&to, &known);
    assert!(machines_in(&from).is_empty());
    assert_eq!(hub.stop(), Some(0));
}
