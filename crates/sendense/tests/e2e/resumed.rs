//! Backups through a node that go on when the hub was restarted, from what is durable, and those that do not.

use crate::hub::{field, path, tool, tree};
use crate::nodes::TlsHub;
use crate::proxy::Proxy;
use crate::remote_backup::{Node, Site, find};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// How long anything may take that a test waits for here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until so many bytes of a backup's image are written, and its disk was marked as durable after that.
pub fn until_durable(hub: &TlsHub, dir: &Path, id: &str, node: &Node, bytes: u64) {
    let patience = Instant::now() + PATIENCE;
    let wait = |what: &str| {
        assert!(Instant::now() < patience, "{what}\n{}\n{}", hub.hub.log(), node.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    let draft = || find(&dir.join("repo"), &format!(".draft-{id}"));
    let file = |name: &str| draft()?.join(name).metadata().ok();
    while file("disk-0.qcow2").is_none_or(|image| image.len() < bytes) {
        wait("too little is stored");
    }
    // The mark that comes next may have been begun before; the one after it was not.
    for _ in 0..2 {
        let before = file("disk-0.mark").map(|mark| mark.ino());
        while file("disk-0.mark").map(|mark| mark.ino()) == before {
            wait("no mark");
        }
    }
}

/// What each restart of the hub found durable, by the task's log.
pub fn durable(hub: &TlsHub, id: &str) -> Vec<u64> {
    let log = hub.ok(&["backup", "log", id]);
    let found = log.lines().filter_map(|line| line.split_once(" bytes are durable and are not sent again"));
    found.map(|(before, _)| before.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

impl Site {
    fn until_durable(&self, id: &str, node: &Node, bytes: u64) {
        until_durable(&self.hub, self.path(), id, node, bytes);
    }

    fn durable(&self, id: &str) -> Vec<u64> {
        durable(&self.hub, id)
    }

    fn has_no_records(&self) -> bool {
        tree(&self.hub.hub.data_dir.join("transfers")).is_empty()
    }
}

#[test]
fn a_backup_goes_on_from_what_is_durable_when_the_hub_was_killed_and_when_it_was_stopped() {
    const SIZE: u64 = 40 * MIB;
    let proxy = Proxy::start();
    let mut site = Site::new(111, SIZE as usize, Some(&proxy));
    let node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let before = proxy.sent();
    let id = site.start_backup();
    site.until_durable(&id, &node, 6 * MIB);
    site.hub.hub.kill_9();
    site.start_hub_again(&[]);
    let done = site.ends(&id, &node, "completed");
    assert_eq!(done["bytes_transferred"].as_u64(), Some(SIZE), "{done:#}");
    let durable = site.durable(&id);
    assert!(matches!(durable[..], [bytes] if bytes >= 5 * MIB), "{durable:?}");
    // Noise does not shrink: what went through beyond the disk was sent twice, heads and questions included.
    let twice = (proxy.sent() - before).saturating_sub(SIZE);
    assert!(twice < durable[0], "{twice} bytes were sent again of {SIZE}, of which {durable:?} were durable");
    site.holds(&id);
    assert!(site.has_no_records());

    // Onto it, with a parent whose digests are asked for; and the hub is asked to end.
    site.disk.fill_with_noise(&mut site.random);
    let before = proxy.sent();
    let started = site.hub.json(&["backup", "start", "web", "--repo", "main", "--type", "incremental"]);
    let next = field(&started["backup"], "backup_id").to_owned();
    site.until_durable(&next, &node, 6 * MIB);
    assert_eq!(site.hub.hub.end(), Some(0));
    site.start_hub_again(&[]);
    let done = site.ends(&next, &node, "completed");
    assert_eq!(field(&done, "backup_type"), "incremental");
    let durable = site.durable(&next);
    let twice = (proxy.sent() - before).saturating_sub(SIZE);
    assert!(matches!(durable[..], [bytes] if bytes > twice), "{twice} bytes were sent again, {durable:?} were durable");
    site.holds(&next);
    assert_eq!(node.open_entries(), Vec::<String>::new());
    assert!(!node.log().contains("panicked") && !site.hub.hub.log().contains("panicked"));
}

#[test]
fn a_transfer_that_was_paused_for_longer_than_the_lease_is_over() {
    let lease = ["--node-lease-seconds", "5"];
    let mut site = Site::with(112, 32 << 20, None, &lease);
    let node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_durable(&id, &node, MIB);
    site.hub.hub.kill_9();
    let patience = Instant::now() + PATIENCE;
    while !node.log().contains("give the order up") {
        assert!(Instant::now() < patience, "{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(find(&site.path().join("repo"), &id).is_some(), "the draft of a dead hub waits for it");
    site.start_hub_again(&lease);
    let lost = site.ends(&id, &node, "failed");
    assert!(field(&lost, "error_message").contains("node"), "{lost:#}");
    assert!(site.has_no_records());
    until_reached(&site, &node);
    let next = site.hub.backup("web");
    site.holds(field(&next, "backup_id"));
    assert_eq!(node.open_entries(), Vec::<String>::new());
}

#[test]
fn a_node_that_was_killed_while_the_hub_was_away_leaves_nothing() {
    let mut site = Site::new(113, 32 << 20, None);
    let mut node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_durable(&id, &node, MIB);
    site.hub.hub.kill_9();
    node.kill_9();
    site.start_hub_again(&[]);
    let node = site.node(&[]);
    let lost = site.ends(&id, &node, "failed");
    assert!(field(&lost, "error_message").contains("node"), "{lost:#}");
    assert!(site.has_no_records());
    let id = site.start_backup();
    site.ends(&id, &node, "completed");
    site.holds(&id);
}

/// Waits until something is so.
fn wait(site: &Site, node: &Node, what: &str, is: impl Fn() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < patience, "{what}\n{}\n{}", site.hub.hub.log(), node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node comes back to a hub that has started again when its pause is over.
fn until_reached(site: &Site, node: &Node) {
    wait(site, node, "the node does not come back", || site.hub.admin(&["source", "test", "images"]).status.success());
}

#[test]
fn a_backup_that_cannot_be_gone_on_with_lets_its_machine_go_while_the_node_lives() {
    let mut site = Site::new(114, 32 << 20, None);
    // Read through a program of its own, which is there for as long as the machine is held.
    let db = site.path().join("site/vms/db");
    std::fs::create_dir_all(&db).unwrap();
    let raw = path(&site.disk.path).to_owned();
    tool("qemu-utils", "qemu-img", &["convert", "-f", "raw", "-O", "vmdk", &raw, path(&db.join("disk0.vmdk"))]);
    let node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup_of("db");
    site.until_durable(&id, &node, MIB);
    site.hub.hub.kill_9();
    let draft = find(&site.path().join("repo"), &format!(".draft-{id}")).unwrap();
    File::options().write(true).open(draft.join("disk-0.mark")).unwrap().set_len(100).unwrap();
    assert!(!node.open_entries().is_empty(), "the machine is not held any more\n{}", node.log());
    site.start_hub_again(&[]);
    site.ends(&id, &node, "failed");
    assert!(site.has_no_records());
    wait(&site, &node, "the machine is held for nobody", || node.open_entries().is_empty());
    until_reached(&site, &node);
    let next = site.hub.backup("db");
    site.holds(field(&next, "backup_id"));
}

#[test]
fn a_hub_that_ends_again_before_its_repository_is_there_loses_nothing() {
    let mut site = Site::new(115, 24 << 20, None);
    let node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_durable(&id, &node, 2 * MIB);
    site.hub.hub.kill_9();
    let (repo, away) = (site.path().join("repo"), site.path().join("away"));
    std::fs::rename(&repo, &away).unwrap();
    site.start_hub_again(&[]);
    wait(&site, &node, "it does not go on", || site.hub.ok(&["backup", "log", &id]).contains("the hub was restarted"));
    assert_eq!(site.hub.hub.end(), Some(0));
    assert!(!site.has_no_records(), "{}", site.hub.hub.log());
    std::fs::rename(&away, &repo).unwrap();
    site.start_hub_again(&[]);
    site.ends(&id, &node, "completed");
    assert!(matches!(site.durable(&id)[..], [bytes] if bytes >= MIB));
    site.holds(&id);
    assert!(site.has_no_records());
}

#[test]
fn a_point_that_was_published_in_the_moment_the_hub_died_is_one() {
    let mut site = Site::new(116, 12 << 20, None);
    let node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_durable(&id, &node, MIB);
    site.hub.hub.kill_9();
    // The folder as it was before the end of the backup, which the node and the repository have then seen.
    let (data, before) = (site.hub.hub.data_dir.clone(), site.path().join("before"));
    tool("coreutils", "cp", &["-a", path(&data), path(&before)]);
    site.start_hub_again(&[]);
    site.ends(&id, &node, "completed");
    site.hub.hub.kill_9();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&before, &data).unwrap();
    site.start_hub_again(&[]);
    let done = site.ends(&id, &node, "completed");
    assert_eq!(done["bytes_transferred"].as_u64(), Some(12 << 20), "{done:#}");
    assert!(site.hub.ok(&["backup", "log", &id]).contains("it was published as"), "{}", site.hub.hub.log());
    assert!(site.has_no_records());
    site.holds(&id);
    let next = site.hub.backup("web");
    assert_eq!(field(&next, "backup_type"), "incremental");
}
