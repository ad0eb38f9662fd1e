//! Storage that does not answer: writes into a frozen file system wait in the kernel, where no signal reaches them.

use crate::bad_day::wait_for;
use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use crate::servers::slow_nbd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// An ext4 of its own on a loop device; thawed and unmounted when dropped.
pub struct Volume(pub PathBuf);

impl Volume {
    pub fn mount(dir: &Path, name: &str) -> Self {
        let (image, at) = (dir.join(format!("{name}.ext4")), dir.join(name));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        tool("e2fsprogs", "mkfs.ext4", &["-q", "-F", path(&image)]);
        tool("mount", "mount", &["-o", "loop", path(&image), path(&at)]);
        Self(at)
    }

    pub fn freeze(&self) {
        tool("util-linux", "fsfreeze", &["--freeze", path(&self.0)]);
    }

    pub fn thaw(&self) {
        tool("util-linux", "fsfreeze", &["--unfreeze", path(&self.0)]);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").args(["--unfreeze", path(&self.0)]).output();
        let _ = Command::new("umount").args(["--lazy", path(&self.0)]).status();
    }
}

#[test]
fn writes_that_hang_in_the_kernel_cost_their_own_backups_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let volume = Volume::mount(dir, "icy");
    let mut random = Random::new(41);
    let disk = Disk::create(&dir.join("vms/web.raw"), 4 << 20, &mut random);
    Disk::create(&dir.join("vms/other.raw"), 1 << 20, &mut random);
    let (_server, uri) = slow_nbd(dir, "slow", "50ms");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["repo", "add", "local", "--name", "icy", "--path", path(&volume.0)]);
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    let slow = field(&found["vms"][0], "vm_context_id");
    let start = |vm: &str| {
        let started = hub.json(&["backup", "start", vm, "--repo", "icy", "--type", "full"]);
        field(&started["backup"], "backup_id").to_owned()
    };
    let first = hub.json(&["backup", "start", "web", "--repo", "icy", "--wait"])["backup"].clone();
    let whole = tree(&volume.0);

    // One hangs in the middle of its data, one before its first byte.
    let in_transfer = start(slow);
    wait_for(&hub, &in_transfer, "transferring");
    volume.freeze();
    let at_begin = start("web");
    assert_eq!(field(&hub.backup("other", &[]), "status"), "completed", "another repository does not wait for them");
    for id in [&in_transfer, &at_begin] {
        hub.ok(&["backup", "cancel", id]);
    }
    for id in [&in_transfer, &at_begin] {
        assert_eq!(end_of(&hub, id), "cancelled");
    }
    assert_eq!(field(&hub.backup("web", &[]), "status"), "completed", "the machine is free");

    // What hung comes back, and finds that there is nothing left to do.
    volume.thaw();
    let next = hub.json(&["backup", "start", "web", "--repo", "icy", "--wait"])["backup"].clone();
    assert_eq!((field(&next, "status"), field(&next, "backup_type")), ("completed", "incremental"));
    let patience = Instant::now() + PATIENCE;
    while tree(&volume.0).iter().any(|file| file.contains(&in_transfer) || file.contains(&at_begin)) {
        assert!(Instant::now() < patience, "left: {:#?}", tree(&volume.0));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let now = tree(&volume.0);
    assert!(whole.iter().all(|file| now.contains(file)), "{whole:#?}\n{now:#?}");
    for point in [&first, &next] {
        let id = field(point, "backup_id");
        hub.ok(&["backup", "verify", id, "--deep"]);
        let out = dir.join(format!("{id}.raw"));
        hub.ok(&["restore", "disk", id, "--to", path(&out), "--format", "raw", "--wait"]);
        assert_holds(&out, &disk.bytes);
    }
}

fn end_of(hub: &Hub, id: &str) -> String {
    let patience = Instant::now() + PATIENCE;
    loop {
        let backup = hub.json(&["backup", "show", id])["backup"].clone();
        match field(&backup, "status") {
            "running" | "pending" => assert!(Instant::now() < patience, "it does not end: {backup:#}"),
            ended => return ended.to_owned(),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
