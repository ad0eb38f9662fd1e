//! Volumes that the native readers refuse, through the hub: the appliance reads them, and only them, and goes when it should.

use crate::files::{ask, json, open, point, sh, sha256};
use crate::hub::{Hub, PATIENCE, field, path, text, tree};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What is put on the disk, in `tree`.
const TREE: &str = r#"mkdir -p tree/etc tree/folder; echo guest > tree/etc/passwd; ln -s /etc/passwd tree/link
    seq 1 300000 > tree/folder/numbers; echo odd > "tree/$(printf 'a\nb')"; : > tree/empty"#;

/// The disk of `web`: an ext4, which the native readers know, an F2FS, which they do not, and an exFAT, which nobody reads here.
fn disk(dir: &Path) {
    let script = r#"mkdir -p vms/web; truncate -s 48M one; mkfs.ext4 -q -F -d tree one
        truncate -s 64M two; mkfs.f2fs -q -l second two > f2fs.log; sload.f2fs -f tree two >> f2fs.log
        truncate -s 8M three; mkfs.exfat three > exfat.log
        truncate -s 122M vms/web/disk0.raw
        printf 'label: gpt\nstart=2048, size=98304\nstart=100352, size=131072\nstart=231424, size=16384\n' | sfdisk -q vms/web/disk0.raw
        dd if=one of=vms/web/disk0.raw bs=1M seek=1 conv=notrunc,sparse status=none
        dd if=two of=vms/web/disk0.raw bs=1M seek=49 conv=notrunc,sparse status=none
        dd if=three of=vms/web/disk0.raw bs=1M seek=113 conv=notrunc,sparse status=none
        rm one two three"#;
    sh(dir, TREE);
    sh(dir, script);
}

/// The processes that descend from another, and what they are: an appliance's beside the readers.
fn family(ancestor: u32) -> BTreeMap<u32, String> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Some(id) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.insert(id, parent.unwrap_or(0));
    }
    let mut found = BTreeMap::new();
    let mut waiting = vec![ancestor];
    while let Some(next) = waiting.pop() {
        for child in parents.iter().filter(|(_, parent)| **parent == next).map(|(child, _)| *child) {
            let words = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            found.insert(child, text(&words).replace('\0', " "));
            waiting.push(child);
        }
    }
    found
}

/// Waits until none of them is there; a dead one that is not buried yet holds nothing.
fn wait_for_the_end_of(processes: &BTreeMap<u32, String>) {
    let is_alive = |id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    let patience = Instant::now() + PATIENCE;
    while processes.keys().any(is_alive) {
        assert!(Instant::now() < patience, "still there: {processes:#?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn mounted(hub: &Hub, point: &str) -> (String, BTreeMap<String, Value>) {
    let mount = hub.json(&["mount", point]);
    let volumes = mount["volumes"].as_array().unwrap().iter();
    let volumes = volumes.map(|volume| (field(volume, "volume_id").to_owned(), volume.clone())).collect();
    (field(&mount, "mount_id").to_owned(), volumes)
}

/// How an appliance is confined, as the hub says it of the only open point.
fn confined(hub: &Hub) -> String {
    let confined = hub.json(&["mounts"])["mounts"][0]["confinement"].as_str().unwrap().to_owned();
    let (_, appliance) = confined.split_once("; appliance: ").unwrap_or_else(|| panic!("{confined}"));
    appliance.to_owned()
}

/// What runs the guests of a hub: User Mode Linux, or a virtual machine where one has been proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launcher {
    UserMode,
    Virtual,
}

impl Launcher {
    /// What the hub says.
    fn said(confined: &str) -> Launcher {
        if confined.contains("virtual machine") { Launcher::Virtual } else { Launcher::UserMode }
    }

    fn program(self) -> &'static str {
        match self {
            Launcher::UserMode => "linux.uml",
            Launcher::Virtual => "qemu-system-x86_64",
        }
    }

    /// The reader, the appliance's two, and what runs the guest: QEMU; or the server of its disk, and User Mode Linux.
    fn processes_min(self) -> usize {
        match self {
            Launcher::UserMode => 5,
            Launcher::Virtual => 4,
        }
    }
}

/// What a hub found out of virtual machines on this machine: whether they run, and whether it made files for one.
fn proof(hub: &Hub) -> (bool, bool) {
    let patience = Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let log = hub.log();
        if log.contains("a virtual machine was proven") {
            return (true, true);
        }
        if let Some(why) = log.lines().find(|line| line.contains("no virtual machine was proven")) {
            let nothing_to_try = why.contains("open /dev/kvm") || why.contains("install the Debian package");
            return (false, !nothing_to_try);
        }
        assert!(Instant::now() < patience, "the proof does not end:\n{log}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn what_the_readers_refuse_is_read_by_a_guest_that_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let point = point(&hub);
    let stored = || -> Vec<String> {
        let files = tree(&dir.join("repo")).into_iter().map(|file| dir.join("repo").join(file));
        files.filter(|file| file.extension().is_some_and(|end| end == "qcow2")).map(|file| sha256(&file)).collect()
    };
    let before = stored();
    // The first one never waits for the proof of a virtual machine; where that succeeds, everything is shown with both.
    let mut shown = read_and_killed(dir, &hub, &point);
    assert_eq!(shown, Launcher::UserMode);
    let (is_proven, tried) = proof(&hub);
    if is_proven {
        shown = read_and_killed(dir, &hub, &point);
        assert_eq!(shown, Launcher::Virtual);
    }

    // Closed, and killed with its hub: no process is left, and no file but the guest's first ones, which the next hub uses again.
    let run = || {
        let files = std::fs::read_dir(dir.join("hub/run")).unwrap();
        let mut names: Vec<String> = files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let kept: &[&str] = if tried { &["appliance-files.cpio", "machine-files.cpio"] } else { &["appliance-files.cpio"] };
    // A room's mounts are its own. Other tests mount their images meanwhile.
    let rooms = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_rooms = |line: &&str| {
            ["appliance-files", "machine-files", "linux.uml", "qemu-storage-daemon", "qemu-system-x86_64"]
                .iter()
                .any(|part| line.contains(part))
        };
        mounts.lines().filter(is_rooms).count()
    };
    for end in ["umount", "kill"] {
        let (mount, volumes) = mounted(&hub, &point);
        assert_eq!(volumes["p2"]["backend"], "appliance");
        assert_eq!(Launcher::said(&confined(&hub)), shown);
        let left = family(hub.id());
        assert!(left.len() >= shown.processes_min(), "{left:#?}");
        assert!(left.values().any(|words| words.contains(shown.program())), "{left:#?}");
        match end {
            "umount" => drop(hub.ok(&["umount", &mount])),
            _ => hub.kill_9(),
        }
        wait_for_the_end_of(&left);
        assert_eq!(run(), kept);
        assert_eq!(rooms(), 0);
    }
    let hub = Hub::start(dir);
    assert_eq!(hub.json(&["mounts"])["total"], 0);
    assert_eq!(mounted(&hub, &point).1["p2"]["backend"], "appliance");
    let left = family(hub.id());
    assert_eq!(hub.stop(), Some(0));
    wait_for_the_end_of(&left);
    assert_eq!(stored(), before, "the chain was written to");
}

/// Reads all of the point through an appliance, kills that, and closes the point; what the guest ran in.
fn read_and_killed(dir: &Path, hub: &Hub, point: &str) -> Launcher {
    let (mount, volumes) = mounted(hub, point);
    let told = |id: &str| {
        let volume = &volumes[id];
        (field(volume, "type").to_owned(), field(volume, "state").to_owned(), volume["backend"].as_str())
    };
    assert_eq!(told("p1"), ("ext4".into(), "readable".into(), Some("native")));
    assert_eq!(told("p2"), ("f2fs".into(), "readable".into(), Some("appliance")), "{volumes:#?}\n{}", hub.log());
    assert_eq!(told("p3"), ("exfat".into(), "unsupported".into(), None));
    assert!(field(&volumes["p3"], "reason").contains("exfat"), "{volumes:#?}");
    let confined = confined(hub);
    assert!(confined.contains("pid namespace") && confined.contains("no capabilities"), "{confined}");
    let launcher = Launcher::said(&confined);

    // Both file systems hold the same tree; nobody can tell who read it.
    for volume in ["p1", "p2"] {
        let whole = ask(hub, &[], &format!("/restore/{mount}/download?path=/folder/numbers&volume={volume}"));
        assert_eq!((whole.0, whole.2 == std::fs::read(dir.join("tree/folder/numbers")).unwrap()), (200, true));
        let part =
            ask(hub, &["-r", "6-11"], &format!("/restore/{mount}/download?path=/folder/numbers&volume={volume}"));
        assert_eq!((part.0, text(&part.2)), (206, "4\n5\n6\n".to_owned()));
        let link = ask(hub, &[], &format!("/restore/{mount}/download?path=/link&volume={volume}"));
        assert_eq!(text(&link.2), "guest\n");
        let archive = dir.join(format!("{volume}.tgz"));
        hub.ok(&["get", &mount, "/", "--volume", volume, "--to", path(&archive)]);
        sh(
            dir,
            &format!("rm -rf {volume}; mkdir {volume}; tar -C {volume} -xzf {volume}.tgz; rm -rf {volume}/lost+found"),
        );
        sh(dir, &format!("diff -r --no-dereference tree {volume}"));
        let found = hub.json(&["find", &mount, "/", "--volume", volume, "--name", "pass*"]);
        assert_eq!(field(&found["files"][0], "path"), "/etc/passwd");
    }
    let (status, _, body) = ask(hub, &[], &format!("/restore/{mount}/files?path=/&volume=p3"));
    assert_eq!((status, json(&body)["code"].as_str()), (409, Some("volume_unreadable")), "{}", text(&body));

    // An appliance that dies costs its volumes; the others are read as before. A machine that is being proven is none of this
    // point's.
    let all = family(hub.id());
    let outside = all.iter().filter(|(_, words)| words.contains("__appliance ")).map(|(id, _)| (*id, family(*id)));
    let runs_it = |guest: &BTreeMap<u32, String>| guest.values().any(|words| words.contains(launcher.program()));
    let ours: Vec<_> = outside.filter(|(_, guest)| runs_it(guest)).collect();
    let [(outside, guest)] = &ours[..] else { panic!("{launcher:?}: {ours:#?} of {all:#?}") };
    let outside_id = rustix::process::Pid::from_raw(*outside as i32).unwrap();
    rustix::process::kill_process(outside_id, rustix::process::Signal::KILL).unwrap();
    wait_for_the_end_of(guest);
    let list = |volume: &str| ask(hub, &[], &format!("/restore/{mount}/files?path=/&volume={volume}")).0;
    assert_eq!((list("p2"), list("p1")), (502, 200));

    hub.ok(&["umount", &mount]);
    launcher
}

/// A hub that has no rights on this machine: its reader and its appliance get user namespaces in their place.
#[test]
fn a_hub_that_is_not_root_opens_and_confines_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    let hub = Hub::start_as_nobody(dir);
    hub.set_up_images(dir);
    let point = point(&hub);
    let (mount, volumes) = mounted(&hub, &point);
    let confined = hub.json(&["mounts"])["mounts"][0]["confinement"].as_str().unwrap().to_owned();
    for wall in
        ["seccomp", "user namespace", "network namespace", "mount namespace", "no capabilities", "resource limits"]
    {
        assert_eq!(confined.matches(wall).count(), 2, "{wall}: {confined}\n{volumes:#?}");
    }
    for volume in ["p1", "p2"] {
        let link = ask(&hub, &[], &format!("/restore/{mount}/download?path=/link&volume={volume}"));
        assert_eq!((link.0, text(&link.2)), (200, "guest\n".to_owned()), "{volume}: {}", hub.log());
    }
    let root: Vec<PathBuf> = family(hub.id())
        .into_keys()
        .map(|id| PathBuf::from(format!("/proc/{id}/status")))
        .filter(|status| std::fs::read_to_string(status).unwrap_or_default().contains("Uid:\t0"))
        .collect();
    assert!(root.is_empty(), "{root:?}");
    let left = family(hub.id());
    hub.ok(&["umount", &mount]);
    wait_for_the_end_of(&left);
    open(&hub, &point);
}

/// Where the guest's kernel or its namespaces are not to be had, the volume says so and the others are read.
#[test]
fn without_an_appliance_its_reason_stands_beside_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let point = point(&hub);
    drop(hub);
    // In a user namespace of its own, in which nobody may make a pid namespace.
    let script = "echo 0 > /proc/sys/user/max_pid_namespaces; exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=1000", "--keep-caps", "bash", "-euc", script, "-"]);
    let hub = Hub::start_below(dir, command);
    let (mount, volumes) = mounted(&hub, &point);
    let reason = field(&volumes["p2"], "reason");
    assert!(
        reason.contains("f2fs") && reason.contains("cannot be confined") && reason.contains("namespaces"),
        "{reason}"
    );
    assert_eq!(volumes["p1"]["backend"], "native");
    assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/files?path=/&volume=p1")).0, 200);
    assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/files?path=/&volume=p2")).0, 409);
}
