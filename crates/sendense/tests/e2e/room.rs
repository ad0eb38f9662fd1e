//! Restores to a place with too little room: refused before anything is written where that can be known, and never left half.

use crate::bad_day::{SmallDisk, fill};
use crate::disk::Random;
use crate::hub::{Hub, SENDENSE, field, path, tool, tree};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A sparse disk with this much noise in its middle.
fn sparse(at: &Path, size: u64, noise: u64, random: &mut Random) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    let file = fs::File::create_new(at).unwrap();
    file.set_len(size).unwrap();
    let noise: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(noise as usize / 8).flatten().collect();
    file.write_all_at(&noise, size / 2).unwrap();
}

fn free(folder: &Path) -> u64 {
    let figures = tool("coreutils", "stat", &["-f", "-c", "%a %S", path(folder)]);
    figures.split_whitespace().map(|figure| figure.parse::<u64>().unwrap()).product()
}

#[test]
fn a_restore_that_cannot_fit_is_refused_with_the_figures_and_one_that_runs_out_of_room_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (vms, out, repo) = (dir.join("vms"), dir.join("out"), dir.join("repo"));
    let _small = SmallDisk::mount(&out, "24m");
    let mut random = Random::new(62);
    sparse(&vms.join("big.raw"), 1 << 30, 32 * MIB, &mut random);
    sparse(&vms.join("small.raw"), 1 << 30, 8 * MIB, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let big = hub.backup("big", &["--compression", "off"]);
    let small = hub.backup("small", &["--compression", "off"]);
    let (big, small) = (field(&big, "backup_id"), field(&small, "backup_id"));

    // Its data counts, not its size: of 1 GiB, 8 MiB fit, and 32 MiB do not.
    let target = out.join("disk");
    let figures = [format!("takes {} bytes, and {} are free in", 32 * MIB, free(&out)), path(&out).to_owned()];
    for format in ["raw", "qcow2"] {
        let restore = ["restore", "disk", big, "--to", path(&target), "--format", format];
        let said = hub.fails(1, &restore);
        assert!(said.contains("no_space") && figures.iter().all(|figure| said.contains(figure)), "{said}");
        let refused = hub.run(&[&restore[..], &["--json"]].concat());
        let body: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!(field(&body, "code"), "no_space", "{body:#}");
    }
    let tasks = hub.json(&["task", "list"]);
    assert!(tasks["tasks"].as_array().unwrap().iter().all(|task| task["kind"] != "restore"), "no task was made");
    let offline = |id: &str, format: &str| {
        let mut command = Command::new(SENDENSE);
        command.args(["offline", "restore", "--repo-path", path(&repo), id, "--to", path(&target), "--format", format]);
        command.env_clear().output().unwrap()
    };
    let refused = offline(big, "raw");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && figures.iter().all(|figure| said.contains(figure)), "{said}");
    assert_eq!(tree(&out), [""; 0], "nothing was begun");

    // With the room for the data and none for the tables of an image it looks as if it fits, and does not.
    let ballast = out.join("ballast");
    fs::write(&ballast, vec![1; (free(&out) - 8 * MIB) as usize]).unwrap();
    assert_eq!(free(&out), 8 * MIB);
    let said = hub.fails(6, &["restore", "disk", small, "--to", path(&target), "--format", "qcow2", "--wait"]);
    assert!(said.contains("no_space") && said.contains("no space for the target"), "{said}");
    let ran_out = offline(small, "qcow2");
    assert!(!ran_out.status.success(), "{ran_out:?}");
    assert_eq!(tree(&out), ["ballast"], "nothing half is left");
    fill(&out.join("filled"));
    hub.fails(1, &["restore", "disk", small, "--to", path(&target)]);

    // With room it is all there.
    fs::remove_file(&ballast).unwrap();
    hub.ok(&["restore", "disk", small, "--to", path(&target), "--wait"]);
    tool("diffutils", "cmp", &[path(&target), path(&vms.join("small.raw"))]);
}
