//! Where a disk can go besides a new file: onto one that exists, a block device, a VMDK; and a hub that dies on the way.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, tool, tree};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

const BLOCK: usize = 65536;
/// What a target says while it is unfinished.
const MARK: &[u8] = b"SENDENSE UNFINISHED RESTORE\n";

/// A hub with one machine, and its point.
fn backed_up(dir: &Path, size: usize, seed: u64) -> (Hub, Disk, String) {
    let mut random = Random::new(seed);
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), size, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = field(&hub.backup("web", &[]), "backup_id").to_owned();
    (hub, disk, id)
}

/// Restores onto a target and gives the sentence that says what was done.
fn onto(hub: &Hub, id: &str, target: &Path, more: &[&str]) -> String {
    let args = [&["restore", "disk", id, "--onto", path(target), "--wait"], more].concat();
    field(&hub.json(&args)["task"], "summary").to_owned()
}

#[test]
fn only_what_differs_is_written_onto_a_file_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (hub, disk, id) = backed_up(dir, 24 << 20 | 4321, 3);
    let target = dir.join("disk.raw");
    std::fs::copy(&disk.path, &target).unwrap();
    assert!(onto(&hub, &id, &target, &[]).contains(": 0 bytes differed"), "an equal target is only read");

    // Three blocks of the target are changed, one of them the tail.
    let file = std::fs::File::options().write(true).open(&target).unwrap();
    for at in [5, 9 * BLOCK, disk.bytes.len() - 3] {
        file.write_all_at(&[disk.bytes[at] ^ 0xff], at as u64).unwrap();
    }
    let said = onto(&hub, &id, &target, &[]);
    assert!(said.contains(&format!(": {} bytes differed", 3 * BLOCK)), "{said}");
    assert_holds(&target, &disk.bytes);

    // Another size needs a word of its own.
    file.set_len(disk.bytes.len() as u64 + 100_000).unwrap();
    let said = hub.fails(6, &["restore", "disk", &id, "--onto", path(&target), "--wait"]);
    assert!(said.contains("another size"), "{said}");
    onto(&hub, &id, &target, &["--resize"]);
    assert_holds(&target, &disk.bytes);
    // What is not there cannot be written onto.
    let said = hub.run(&["restore", "disk", &id, "--onto", path(&dir.join("none")), "--wait"]);
    assert!(!said.status.success() && !dir.join("none").exists(), "{said:?}");
}

/// A loop device over a file, with a node of its own below the test's folder, which the hub may touch.
struct Loop {
    system: String,
    node: PathBuf,
}

impl Loop {
    fn over(file: &Path, node: PathBuf) -> Self {
        let system = tool("mount", "losetup", &["--find", "--show", path(file)]).trim().to_owned();
        let number = std::os::unix::fs::MetadataExt::rdev(&std::fs::metadata(&system).unwrap());
        let (major, minor) = (rustix::fs::major(number).to_string(), rustix::fs::minor(number).to_string());
        tool("coreutils", "mknod", &[path(&node), "b", &major, &minor]);
        Self { system, node }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.system]).status();
    }
}

#[test]
fn a_block_device_is_written_when_nobody_uses_it_and_it_was_forced() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches a loop device, which needs root");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (hub, disk, id) = backed_up(dir, 8 << 20, 4);
    let backing = dir.join("backing");
    std::fs::write(&backing, vec![0xaa; (8 << 20) + 4096]).unwrap();
    let device = Loop::over(&backing, dir.join("device"));
    let node = path(&device.node);

    let said = hub.fails(4, &["restore", "disk", &id, "--to", node, "--wait"]);
    assert!(said.contains("force"), "{said}");
    let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let held = std::fs::File::options().read(true).custom_flags(exclusive).open(&device.node).unwrap();
    let said = hub.run(&["restore", "disk", &id, "--to", node, "--force", "--wait"]);
    assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("in use"), "{said:?}");
    drop(held);
    assert!(std::fs::read(&backing).unwrap() == vec![0xaa; (8 << 20) + 4096], "a refused device is untouched");

    hub.ok(&["restore", "disk", &id, "--to", node, "--force", "--wait"]);
    let found = std::fs::read(&backing).unwrap();
    assert!(found[..8 << 20] == disk.bytes, "the device holds the disk");
    assert!(found[8 << 20..] == [0xaa; 4096], "what lies beyond it is left alone");
    std::fs::File::options().write(true).open(&device.node).unwrap().write_all_at(&[1], 3 * BLOCK as u64).unwrap();
    onto(&hub, &id, &device.node, &["--force"]);
    assert!(std::fs::read(&backing).unwrap()[..8 << 20] == disk.bytes);

    let small = dir.join("small-backing");
    std::fs::write(&small, vec![0; 1 << 20]).unwrap();
    let small = Loop::over(&small, dir.join("small"));
    let said = hub.run(&["restore", "disk", &id, "--to", path(&small.node), "--force", "--wait"]);
    assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("too small"), "{said:?}");
}

#[test]
fn a_vmdk_holds_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (hub, disk, id) = backed_up(dir, 6 << 20, 5);
    for (format, subformat) in [("vmdk", "monolithicSparse"), ("vmdk-stream", "streamOptimized")] {
        let out = dir.join(format!("out-{format}.vmdk"));
        hub.ok(&["restore", "disk", &id, "--to", path(&out), "--format", format, "--wait"]);
        let compare = ["compare", "-f", "raw", "-F", "vmdk", path(&disk.path), path(&out)];
        tool("qemu-utils", "qemu-img", &compare);
        let info = tool("qemu-utils", "qemu-img", &["info", "-f", "vmdk", path(&out)]);
        assert!(info.contains(subformat), "{info}");
    }
    let left: Vec<_> = tree(dir).into_iter().filter(|file| file.starts_with('.')).collect();
    assert_eq!(left, [""; 0]);
}

/// Looks until it is so.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// True while a program runs that was told of this path.
fn somebody_works_on(path: &Path) -> bool {
    let name = path.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == name)
    })
}

#[test]
fn a_hub_that_is_killed_takes_its_conversion_along() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut hub, disk, id) = backed_up(dir, 48 << 20, 7);
    let (mut met, mut rounds) = (0, 0);
    while met < 1 {
        rounds += 1;
        assert!(rounds < 20, "no kill ever met a running conversion");
        let out = dir.join(format!("out{rounds}.vmdk"));
        let task = hub.json(&["restore", "disk", &id, "--to", path(&out), "--format", "vmdk-stream"])["task"].clone();
        let task = field(&task, "task_id").to_owned();
        let part = dir.join(format!(".out{rounds}.vmdk.{task}"));
        until("qemu-img or the file", || (somebody_works_on(&part) || out.exists()).then_some(()));
        hub.kill_9();
        assert!(part.exists() != out.exists(), "it is whole or it is not there");
        until("the end of qemu-img", || (!somebody_works_on(&part)).then_some(()));
        hub = Hub::start(dir);
        if out.exists() {
            continue;
        }
        met += 1;
        assert_eq!(until("the end of the task", || ended(&hub, &task)), "failed");
        until("the part to be removed", || (!part.exists()).then_some(()));
        hub.ok(&["restore", "disk", &id, "--to", path(&out), "--format", "vmdk-stream", "--wait"]);
        tool("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "vmdk", path(&disk.path), path(&out)]);
    }
}

fn ended(hub: &Hub, task_id: &str) -> Option<String> {
    let task = hub.json(&["task", "show", task_id])["task"].clone();
    let state = field(&task, "state").to_owned();
    (state != "running" && state != "pending").then_some(state)
}

#[test]
fn a_hub_that_is_killed_leaves_no_target_that_looks_complete() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let size = 48 << 20;
    let mut random = Random::new(6);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), size, &mut random);
    // Nothing to skip, so that there is a moment to be met.
    let noise: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(size).collect();
    std::fs::write(&disk.path, &noise).unwrap();
    disk.bytes = noise;
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = field(&hub.backup("web", &[]), "backup_id").to_owned();

    let (mut met, mut rounds) = (0, 0);
    while met < 2 {
        rounds += 1;
        assert!(rounds < 20, "no kill ever met a running restore");
        let out = dir.join(format!("out{rounds}.raw"));
        let task = hub.json(&["restore", "disk", &id, "--to", path(&out)])["task"].clone();
        let task = field(&task, "task_id").to_owned();
        let part = dir.join(format!(".out{rounds}.raw.{task}"));
        until("a part or the file", || (part.exists() || out.exists()).then_some(()));
        hub.kill_9();
        let interrupted = part.exists();
        assert!(interrupted != out.exists(), "it is whole or it is not there");
        hub = Hub::start(dir);
        let state = until("the end of the task", || ended(&hub, &task));
        if interrupted {
            assert_eq!(state, "failed");
            until("the part to be removed", || (!part.exists()).then_some(()));
            hub.ok(&["restore", "disk", &id, "--to", path(&out), "--wait"]);
            met += 1;
        }
        assert_holds(&out, &disk.bytes);
        std::fs::remove_file(&out).unwrap();
    }

    // Onto a file: it is untouched, marked, or whole, and a second try makes it whole.
    let target = dir.join("target.raw");
    let (mut met, mut rounds) = (0, 0);
    while met < 2 {
        rounds += 1;
        assert!(rounds < 20, "no kill ever met a restore that writes");
        std::fs::write(&target, vec![7; size]).unwrap();
        let first = || {
            let mut bytes = vec![0; MARK.len()];
            std::fs::File::open(&target).unwrap().read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        hub.json(&["restore", "disk", &id, "--onto", path(&target)]);
        until("the first write", || (first() != vec![7; MARK.len()]).then_some(()));
        hub.kill_9();
        if first() == MARK {
            met += 1;
        } else {
            assert_holds(&target, &disk.bytes);
        }
        hub = Hub::start(dir);
        onto(&hub, &id, &target, &[]);
        assert_holds(&target, &disk.bytes);
    }
}
