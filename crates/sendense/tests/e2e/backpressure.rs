//! A repository that takes nothing for a while: the reader of a node far away waits, and memory does not grow by what it could read.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{PATIENCE, field, path};
use crate::hung::Volume;
use crate::memory::peak_mib;
use crate::remote_backup::{Node, enrolled};
use std::time::{Duration, Instant};

/// Twice what may be on its way from the reader to the repository.
const SIZE: usize = 128 << 20;

/// What a process has read from files until now, in bytes.
fn has_read(pid: u32) -> u64 {
    let figures = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    figures.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().trim().parse().unwrap()
}

/// Waits until a process reads no more; gives what it has read.
fn until_still(pid: u32) -> u64 {
    /// Looks without news, at ten a second. In that time a reader that waits for nothing reads some hundred MiB, and one that waits
    /// for its share of the line 8.
    const LOOKS: u32 = 20;
    /// What its talk with the hub takes.
    const NOTHING: u64 = 64 << 10;
    let patience = Instant::now() + PATIENCE;
    let (mut read, mut looks) = (has_read(pid), 0);
    while looks < LOOKS {
        assert!(Instant::now() < patience, "it reads on and on: {read}");
        std::thread::sleep(Duration::from_millis(100));
        let now = has_read(pid);
        looks = if now - read > NOTHING { 0 } else { looks + 1 };
        read = if looks == 0 { now } else { read };
    }
    read
}

#[test]
fn a_repository_that_takes_nothing_makes_the_reader_of_a_node_wait() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(79);
    let mut disk = Disk::create(&dir.join("site/vms/web/disk0.raw"), SIZE, &mut random);
    disk.fill_with_noise(&mut random);
    let hub = enrolled(dir, &[], &[]);
    // Dropped before its hub, which does not end while it is frozen.
    let volume = Volume::mount(dir, "icy");
    hub.ok(&["repo", "add", "local", "--name", "icy", "--path", path(&volume.0)]);
    // Slow enough that the repository can be stopped in the middle; then as fast as it goes.
    hub.ok(&["node", "limit", "SITE-A", "--bandwidth", "4MB"]);
    let node = Node::start(dir, &[]);
    hub.ok(&["source", "add", "image", "--name", "images", "--path", path(&dir.join("site/vms")), "--node", "SITE-A"]);
    hub.ok(&["source", "discover", "images"]);
    let started = hub.json(&["backup", "start", "web", "--repo", "icy", "--type", "full"]);
    let id = field(&started["backup"], "backup_id");
    let show = || hub.json(&["backup", "show", id])["backup"].clone();
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let patience = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < patience, "{what}: {:#}\n{}\n{}", show(), hub.hub.log(), node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("nothing moves", &|| show()["bytes_read"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    volume.freeze();
    hub.ok(&["node", "limit", "SITE-A", "--none"]);

    let read = until_still(node.id());
    println!("{} of {} MiB were read when the reader stood", read >> 20, SIZE >> 20);
    assert!(read < SIZE as u64 / 2, "{read} bytes were read for a repository that takes nothing");
    assert_eq!(field(&show(), "status"), "running", "it waits");
    let stood = [node.id(), hub.hub.id()].map(peak_mib);

    volume.thaw();
    until("it does not end", &|| field(&show(), "status") != "running");
    let done = show();
    assert_eq!((field(&done, "status"), &done["bytes_transferred"]), ("completed", &SIZE.into()), "{done:#}");
    let out = dir.join("out");
    hub.ok(&["restore", "disk", id, "--to", path(&out), "--wait"]);
    assert_holds(&out, &disk.bytes);
    println!("node and hub held at most {stood:?} MiB while it stood");
    assert!(stood.iter().all(|peak| *peak < 128), "{stood:?} MiB were held while it stood");
}
