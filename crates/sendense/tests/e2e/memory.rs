//! Memory of the hub while it does one of each at once. The bound has nothing to do with time: what would keep more than a few
//! requests of a disk passes it on any machine.

use crate::disk::Random;
use crate::hub::{Hub, cli, field, path};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};

const MIB: u64 = 1 << 20;
/// What a hub may use, with four tasks at once; here it has five.
const BOUND_MIB: u64 = 256;
/// Data of the disk: each task reads or writes as much as the whole hub may hold.
const DATA_MIB: u64 = 256;

/// Lines as logs have them, all different.
fn text(at: u64) -> Vec<u8> {
    let lines = (at..).flat_map(|number| format!("{number:012} a line of a log file that shrinks well\n").into_bytes());
    lines.take(MIB as usize).collect()
}

/// The most memory that a process ever held.
pub fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() / 1024
}

#[test]
fn one_of_each_at_once_stays_within_the_hubs_memory() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // One disk of 1 GiB with four names, every second mebibyte of its first half noise or text.
    let disk = dir.join("vms/zstd/disk.raw");
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    let file = fs::File::create_new(&disk).unwrap();
    file.set_len(1024 * MIB).unwrap();
    let mut random = Random::new(63);
    let mut noise =
        |_| std::iter::repeat_with(|| random.next().to_le_bytes()).take(MIB as usize / 8).flatten().collect();
    for number in 0..DATA_MIB {
        let bytes: Vec<u8> = if number % 2 == 0 { noise(number) } else { text(number) };
        file.write_all_at(&bytes, number * 2 * MIB).unwrap();
    }
    for name in ["off", "compared", "kept"] {
        fs::create_dir(dir.join("vms").join(name)).unwrap();
        fs::hard_link(&disk, dir.join("vms").join(name).join("disk.raw")).unwrap();
    }
    let hub = Hub::launch(dir, "hub", &["--running-tasks-max", "5"]).unwrap();
    fs::create_dir(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo")), "--running-tasks-max", "5"]);
    let vms = dir.join("vms");
    hub.ok(&["source", "add", "image", "--name", "images", "--path", path(&vms), "--running-tasks-max", "5"]);
    hub.ok(&["source", "discover", "images"]);
    hub.backup("compared", &["--compression", "fast"]);
    let kept = hub.backup("kept", &["--compression", "fast"]);
    for number in (0..DATA_MIB).step_by(8) {
        file.write_all_at(&noise(number), number * 2 * MIB + 4096).unwrap();
    }
    drop(file);

    let token = hub.data_dir.join("admin-token");
    let begin =
        |args: &[&str]| -> Child { cli(&hub.url, Some(&token)).args(args).stdout(Stdio::null()).spawn().unwrap() };
    let backup = |vm: &str, how: &[&str]| begin(&[&["backup", "start", vm, "--repo", "main", "--wait"], how].concat());
    let target = dir.join("restored.raw");
    let kept = field(&kept, "backup_id");
    let at_work = [
        backup("zstd", &["--type", "full", "--compression", "high"]),
        backup("off", &["--type", "full", "--compression", "off"]),
        backup("compared", &["--type", "incremental"]),
        begin(&["restore", "disk", kept, "--to", path(&target), "--wait"]),
        begin(&["backup", "verify", kept, "--deep"]),
    ];
    for mut work in at_work {
        assert!(work.wait().unwrap().success(), "{}", hub.log());
    }
    let is_restored = |target: &Path| fs::metadata(target).unwrap().len() == 1024 * MIB;
    assert!(is_restored(&target));
    let peak = peak_mib(hub.id());
    println!("peak memory of the hub: {peak} MiB");
    assert!(peak <= BOUND_MIB, "the hub held {peak} MiB at once");
}
