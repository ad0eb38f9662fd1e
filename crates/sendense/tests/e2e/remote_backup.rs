//! Backups through a node: on a good line, on one that breaks, and when either side dies.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, SENDENSE, field, path, text, tool, tree};
use crate::nodes::{TlsHub, ended};
use crate::proxy::Proxy;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A node's process.
pub struct Node {
    child: Child,
    pub folder: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts an enrolled node that may read below `dir/site`; returns when its hub has answered it.
    pub fn start(dir: &Path, more: &[&str]) -> Self {
        let mut node = Self::spawn(dir, more);
        let mut line = String::new();
        BufReader::new(node.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("node SITE-A of https://"), "{line}\n{}", node.log());
        node
    }

    /// The same, and waits for nothing.
    pub fn spawn(dir: &Path, more: &[&str]) -> Self {
        let (folder, log) = (dir.join("node"), dir.join("node.log"));
        let child = Command::new(SENDENSE)
            .args(["node", "--name", "SITE-A", "--data-dir", path(&folder), "--allow-path", path(&dir.join("site"))])
            .args(more)
            .env("RUST_LOG", "debug,hyper=warn,reqwest=warn,rustls=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> Option<i32> {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < patience, "the node did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it has made and not taken away.
    pub fn open_entries(&self) -> Vec<String> {
        tree(&self.folder.join("journal"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A hub with the repository `main`, and the node's folder `dir/node` that has enrolled as SITE-A.
pub fn enrolled(dir: &Path, hub_more: &[&str], enrol_more: &[&str]) -> TlsHub {
    let hub = TlsHub::start_with(dir, hub_more);
    std::fs::create_dir_all(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    let code = hub.pair("SITE-A");
    let more = [&["--fingerprint", &hub.fingerprint][..], enrol_more].concat();
    ended(&hub.enrol(&dir.join("node"), &code, &more), 0);
    hub
}

/// A hub with a repository, a node's folder that has enrolled, and a machine of incompressible bytes at its site.
pub struct Site {
    dir: tempfile::TempDir,
    pub hub: TlsHub,
    pub disk: Disk,
    pub random: Random,
}

impl Site {
    pub fn new(seed: u64, size: usize, proxy: Option<&Proxy>) -> Self {
        Self::with(seed, size, proxy, &[])
    }

    /// The same with more arguments for the hub.
    pub fn with(seed: u64, size: usize, proxy: Option<&Proxy>, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(seed);
        let mut disk = Disk::create(&dir.path().join("site/vms/web/disk0.raw"), size, &mut random);
        disk.fill_with_noise(&mut random);
        let through = proxy.map(|proxy| format!("http://{}", proxy.address));
        let proxy: Vec<&str> = through.iter().flat_map(|through| ["--proxy", through]).collect();
        let hub = enrolled(dir.path(), more, &proxy);
        Self { dir, hub, disk, random }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn node(&self, more: &[&str]) -> Node {
        Node::start(self.path(), more)
    }

    /// Binds the folder of images to the node, and looks what is there.
    pub fn discover(&self) {
        let vms = self.path().join("site/vms");
        self.hub.ok(&["source", "add", "image", "--name", "images", "--path", path(&vms), "--node", "SITE-A"]);
        self.hub.ok(&["source", "discover", "images"]);
    }

    pub fn start_backup(&self) -> String {
        self.start_backup_of("web")
    }

    pub fn start_backup_of(&self, vm: &str) -> String {
        let started = self.hub.json(&["backup", "start", vm, "--repo", "main", "--type", "full"]);
        field(&started["backup"], "backup_id").to_owned()
    }

    fn show(&self, id: &str) -> Value {
        self.hub.json(&["backup", "show", id])["backup"].clone()
    }

    /// Starts the hub again where its node knows it.
    pub fn start_hub_again(&mut self, more: &[&str]) {
        self.hub.start_again(self.dir.path(), more);
    }

    /// Waits until a backup is as told.
    pub fn until(&self, id: &str, node: &Node, is: impl Fn(&Value) -> bool) -> Value {
        let patience = Instant::now() + PATIENCE;
        loop {
            let backup = self.show(id);
            if is(&backup) {
                return backup;
            }
            assert!(Instant::now() < patience, "{backup:#}\n{}\n{}", self.hub.hub.log(), node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the list says this of the node.
    fn listed(&self, node: &Node, is: impl Fn(&Value) -> bool) -> Value {
        let patience = Instant::now() + PATIENCE;
        loop {
            let listed = self.hub.json(&["node", "list"])["nodes"][0].clone();
            if is(&listed) {
                return listed;
            }
            assert!(Instant::now() < patience, "{listed:#}\n{}", node.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn until_moving(&self, id: &str, node: &Node) {
        self.until(id, node, |backup| {
            assert!(!["completed", "failed"].contains(&field(backup, "status")), "too early: {backup:#}");
            backup["bytes_read"].as_u64().is_some_and(|bytes| bytes > 1 << 20)
        });
    }

    /// Waits for the end; what is left of a point that is none is nothing.
    pub fn ends(&self, id: &str, node: &Node, status: &str) -> Value {
        let backup =
            self.until(id, node, |backup| ["completed", "failed", "cancelled"].contains(&field(backup, "status")));
        assert_eq!(field(&backup, "status"), status, "{backup:#}\n{}\n{}", self.hub.hub.log(), node.log());
        if status != "completed" {
            // After a kill the task is ended first, and what it had written is taken back then.
            let patience = Instant::now() + PATIENCE;
            while let Some(left) = find(&self.path().join("repo"), id) {
                assert!(Instant::now() < patience, "{}", left.display());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        backup
    }

    /// The point holds the disk, as our own restore and as a program of somebody else's reads it.
    pub fn holds(&self, id: &str) {
        let out = self.path().join(format!("out-{id}"));
        self.hub.ok(&["restore", "disk", id, "--to", path(&out), "--wait"]);
        assert_holds(&out, &self.disk.bytes);
        let chain = self.hub.json(&["backup", "show", id]);
        let image = self.path().join("repo").join(field(&chain["backup"], "file_path"));
        tool("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", path(&out), path(&image)]);
        self.hub.ok(&["backup", "verify", id, "--deep"]);
    }
}

/// Something below a folder, whose parts may go away meanwhile, that bears these letters in its name.
pub fn find(folder: &Path, letters: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| match entry.file_name().to_string_lossy() {
        name if name.contains(letters) => Some(entry.path()),
        _ => find(&entry.path(), letters),
    })
}

#[test]
fn a_machine_behind_a_node_is_backed_up_and_comes_back() {
    let mut site = Site::new(101, 12 << 20, None);
    let elsewhere = site.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    let add = ["source", "add", "image", "--name", "far", "--node", "SITE-A", "--path", path(&elsewhere)];
    assert!(
        ended(&site.hub.admin(&["source", "add", "image", "--name", "x", "--path", "/x", "--node", "NONE"]), 2)
            .contains("NONE")
    );
    site.hub.ok(&add);
    let away = ended(&site.hub.admin(&["source", "test", "far"]), 5);
    assert!(away.contains("SITE-A is not connected"), "{away}");

    let node = site.node(&[]);
    // What the node's machine does not allow, the hub cannot have.
    let refused = site.hub.admin(&["source", "discover", "far"]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    site.discover();
    let listed = site.hub.json(&["node", "list"])["nodes"][0].clone();
    assert_eq!((field(&listed, "status"), &listed["sources"]), ("online", &serde_json::json!(["far", "images"])));

    let full = site.hub.backup("web");
    assert_eq!(field(&full, "backup_type"), "full");
    site.holds(field(&full, "backup_id"));
    // Without tracking everything is read and compared with digests that the hub tells; what differs is sent.
    site.disk.write_somewhere(1 << 20, &mut site.random);
    let next = site.hub.backup("web");
    assert_eq!(field(&next, "backup_type"), "incremental");
    let (sent, all) = (next["bytes_transferred"].as_u64().unwrap(), full["bytes_transferred"].as_u64().unwrap());
    assert!(sent <= (1 << 20) + (128 << 10), "{sent} of {all} were sent");
    site.holds(field(&next, "backup_id"));
    assert_eq!(node.open_entries(), Vec::<String>::new(), "something is left open");
    assert!(!node.log().contains("panicked") && !site.hub.hub.log().contains("panicked"));
}

#[test]
fn a_broken_line_is_gone_on_over_and_a_killed_node_ends_its_backup() {
    let proxy = Proxy::start();
    let site = Site::new(102, 24 << 20, Some(&proxy));
    let mut node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_moving(&id, &node);
    let at_work = site.listed(&node, |listed| listed["bytes_per_second"] != 0);
    assert_eq!((&at_work["running_backups"], field(&at_work, "status")), (&1.into(), "online"), "{at_work:#}");
    assert_eq!((field(&at_work, "version"), &at_work["sources"]), (VERSION, &serde_json::json!(["images"])));
    // What may go and what goes: a limit of 2 MB a second, and what the hub says of its last seconds.
    let pace = at_work["bytes_per_second"].as_u64().unwrap();
    assert!(pace <= 4_000_000, "{at_work:#}");
    let shown = site.hub.ok(&["node", "list"]);
    for told in ["SITE-A", "online", VERSION, "images", "/s"] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    // It is heard again and again while it works.
    let seen = field(&at_work, "last_seen_at").to_owned();
    site.listed(&node, |listed| field(listed, "last_seen_at") > seen.as_str());
    // Every connection breaks at once and none comes through for some seconds.
    proxy.cut();
    std::thread::sleep(Duration::from_secs(4));
    proxy.mend();
    let done = site.ends(&id, &node, "completed");
    // What was stored was not sent again: the disk's bytes came once, and a batch of each of 16 streams at most twice.
    assert_eq!(done["bytes_transferred"].as_u64(), Some(24 << 20));
    site.holds(&id);
    site.listed(&node, |listed| (&listed["running_backups"], &listed["bytes_per_second"]) == (&0.into(), &0.into()));

    let id = site.start_backup();
    site.until_moving(&id, &node);
    node.kill_9();
    let node = site.node(&[]);
    let lost = site.ends(&id, &node, "failed");
    assert!(field(&lost, "error_message").contains("node"), "{lost:#}");
    let next = site.hub.backup("web");
    site.holds(field(&next, "backup_id"));
    assert_eq!(node.open_entries(), Vec::<String>::new());
}

#[test]
fn a_hub_that_is_killed_finds_its_node_again_and_a_revoked_node_is_out_at_once() {
    let mut site = Site::new(103, 16 << 20, None);
    let mut node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup();
    site.until_moving(&id, &node);
    site.hub.hub.kill_9();
    site.start_hub_again(&[]);
    // The node was not restarted; it comes back by itself, still holds the machine, and the backup goes on.
    site.ends(&id, &node, "completed");
    site.holds(&id);
    let patience = Instant::now() + PATIENCE;
    while !site.hub.admin(&["source", "test", "images"]).status.success() {
        assert!(Instant::now() < patience, "{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let id = site.start_backup();
    site.until_moving(&id, &node);
    site.hub.ok(&["backup", "cancel", &id]);
    site.ends(&id, &node, "cancelled");

    let id = site.start_backup();
    site.until_moving(&id, &node);
    site.hub.ok(&["node", "revoke", "SITE-A"]);
    let lost = site.ends(&id, &node, "failed");
    assert!(field(&lost, "error_message").contains("node"), "{lost:#}");
    assert_eq!(node.ended(), Some(7), "{}", node.log());
    assert_eq!(node.open_entries(), Vec::<String>::new());
}

#[test]
fn a_limit_by_the_time_of_day_holds_and_another_one_holds_at_once() {
    const BYTES_PER_SECOND: f64 = 64_000.0;
    let proxy = Proxy::start();
    let site = Site::new(107, 16 << 20, Some(&proxy));
    // Whatever time it is, one of both windows is open.
    let halves = ["--window", "00:00-12:00=512kbit", "--window", "12:00-00:00=64KB", "--time-zone", "Europe/Berlin"];
    site.hub.ok(&[&["node", "limit", "SITE-A", "--bandwidth", "1Gbit"][..], &halves].concat());
    let listed = site.hub.json(&["node", "list"])["nodes"][0].clone();
    assert_eq!((&listed["limit_now"], &listed["limit"]["bytes_per_second"]), (&64_000.into(), &125_000_000.into()));
    let node = site.node(&[]);
    site.discover();
    let (began, before) = (Instant::now(), proxy.sent());
    let id = site.start_backup();
    site.until_moving(&id, &node);
    site.until(&id, &node, |_| proxy.sent() - before > 600_000);
    // One batch goes at once and one may have just gone; the rest is heads, reports and handshakes.
    let sent = (proxy.sent() - before) as f64;
    let allowed = BYTES_PER_SECOND * began.elapsed().as_secs_f64() + f64::from(2 << 20);
    assert!(sent < allowed, "{sent} bytes were sent where {allowed} were allowed");
    // At that pace it would go on for four minutes.
    site.hub.ok(&["node", "limit", "SITE-A", "--none"]);
    site.ends(&id, &node, "completed");
    site.holds(&id);
    assert!(site.hub.json(&["node", "list"])["nodes"][0]["limit"].is_null());
    let refused = site.hub.admin(&["node", "limit", "SITE-A", "--window", "08:00-08:00=1MB"]);
    assert!(ended(&refused, 2).contains("different times"), "{}", text(&refused.stderr));
}

#[test]
fn what_a_killed_node_left_is_cleared_up_without_a_hub() {
    let mut site = Site::new(105, 16 << 20, None);
    // Read through a program of its own, which is the node's to end.
    let db = site.path().join("site/vms/db");
    std::fs::create_dir_all(&db).unwrap();
    let raw = path(&site.disk.path).to_owned();
    tool("qemu-utils", "qemu-img", &["convert", "-f", "raw", "-O", "vmdk", &raw, path(&db.join("disk0.vmdk"))]);
    let mut node = site.node(&["--bandwidth", "2MB"]);
    site.discover();
    let id = site.start_backup_of("db");
    site.until_moving(&id, &node);
    assert!(!node.open_entries().is_empty(), "nothing is in the journal:\n{}", node.log());
    let sources = node.folder.join("sources");
    assert_eq!(tree(&sources).len(), 1);
    let port = site.hub.hub.url.rsplit(':').next().unwrap().to_owned();
    node.kill_9();
    site.hub.hub.kill_9();

    let node = Node::spawn(site.path(), &[]);
    let patience = Instant::now() + PATIENCE;
    while !node.open_entries().is_empty() || !tree(&sources).is_empty() {
        assert!(Instant::now() < patience, "{:?}\n{}", node.open_entries(), node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    site.hub.hub = Hub::try_start(site.path(), &format!("0.0.0.0:{port}")).unwrap_or_else(|log| panic!("{log}"));
    site.ends(&id, &node, "failed");
    let patience = Instant::now() + PATIENCE;
    while !site.hub.admin(&["source", "test", "images"]).status.success() {
        assert!(Instant::now() < patience, "{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let next = site.hub.backup("db");
    site.holds(field(&next, "backup_id"));
}

#[test]
fn a_long_line_is_filled_and_what_compresses_goes_faster() {
    const LINE_BYTES_PER_SECOND: u64 = 12_500_000;
    // A longer transfer (`bench/node-line.sh`) tells how full the line is when what is done once does not count.
    let size = std::env::var("SENDENSE_LINE_MIB").map_or(48, |mib| mib.parse::<usize>().unwrap()) << 20;
    let proxy = Proxy::far_away(Duration::from_millis(150), LINE_BYTES_PER_SECOND);
    let mut site = Site::new(104, size, Some(&proxy));
    let node = site.node(&[]);
    site.discover();
    for content in ["noise", "text"] {
        if content == "text" {
            site.disk.fill_with_text();
        }
        let began = Instant::now();
        let id = site.start_backup();
        site.ends(&id, &node, "completed");
        let share = size as f64 / began.elapsed().as_secs_f64() / LINE_BYTES_PER_SECOND as f64;
        // How fast depends on the machine; that it arrives whole does not.
        println!("{content}: {:.0} % of 100 Mbit/s at 150 ms, from the request to the published point", share * 100.0);
        site.holds(&id);
    }
}
