//! kill -9 at random moments of a backup, again and again.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 50;

#[test]
fn the_hub_is_killed_fifty_times_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(50);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 24 << 20, &mut random);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut known = Vec::new();
    let begun = Instant::now();
    let first = hub.backup("web", &[]);
    // Any moment from before the freeze to after the publication. How long that takes is the machine's business, and it is busy
    // with other things at times: the window follows what was met.
    let mut window_ms = begun.elapsed().as_millis() as u64;
    known.push((field(&first, "backup_id").to_owned(), disk.bytes.clone()));

    let (mut interrupted, mut completed) = (0, 0);
    for round in 0..ROUNDS {
        disk.write_somewhere(6 << 20, &mut random);
        let kind = if round % 3 == 0 { "full" } else { "incremental" };
        let started = hub.json(&["backup", "start", "web", "--repo", "main", "--type", kind]);
        let id = field(&started["backup"], "backup_id").to_owned();
        std::thread::sleep(Duration::from_millis(random.below(window_ms.max(2))));
        hub.kill_9();
        hub = Hub::start(dir);

        if settled(&hub, &dir.join("repo"), &id, round) {
            completed += 1;
            window_ms -= window_ms / 8;
            known.push((id, disk.bytes.clone()));
        } else {
            interrupted += 1;
            window_ms += window_ms / 8 + 1;
        }
    }
    println!("{interrupted} interrupted, {completed} completed");
    assert!(interrupted >= ROUNDS / 5, "{interrupted} kills met a running backup");
    assert!(completed >= ROUNDS / 10, "{completed} kills came after the end");

    // The next backup succeeds, and every point that was ever published is whole.
    let last = hub.backup("web", &[]);
    known.push((field(&last, "backup_id").to_owned(), disk.bytes.clone()));
    assert_eq!(hub.json(&["backup", "list", "--status", "completed"])["total"], known.len());
    for (number, (id, bytes)) in known.iter().enumerate() {
        hub.ok(&["backup", "verify", id, "--deep"]);
        let out = dir.join(format!("out{number}"));
        hub.ok(&["restore", "disk", id, "--to", path(&out), "--wait"]);
        assert_holds(&out, bytes);
        std::fs::remove_file(&out).unwrap();
    }
    for file in tree(&dir.join("repo")).iter().filter(|file| file.ends_with(".qcow2")) {
        tool("qemu-utils", "qemu-img", &["check", "-q", path(&dir.join("repo").join(file))]);
    }
}

/// Waits until the restarted hub has put the backup in order: true when it is a point, false when nothing is left of it. A
/// point that was published just before the kill is `failed` until its repository has been looked through and it is adopted.
pub fn settled(hub: &Hub, repository: &Path, id: &str, round: usize) -> bool {
    let patience = Instant::now() + PATIENCE;
    loop {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        let left: Vec<_> = tree(repository).into_iter().filter(|file| file.contains(id)).collect();
        match field(&backup, "status") {
            "completed" => return true,
            "failed" if left.is_empty() => {
                assert_eq!(field(&backup, "error_code"), "interrupted", "{backup:#}");
                return false;
            }
            status => assert!(Instant::now() < patience, "round {round}: {status}, left {left:?}\n{}", hub.log()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
