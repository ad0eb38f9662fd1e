//! The verbs that need neither a hub nor a database: what lies in a repository's folder, and whether it is sound.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, SENDENSE, field, path, text, tree};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a verb on a repository's folder, in an environment that knows of no hub.
fn offline(verb: &str, repository: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(SENDENSE);
    command.args(["offline", verb, "--repo-path", path(repository)]).args(more).env_clear();
    command.output().unwrap()
}

#[track_caller]
fn ok(verb: &str, repository: &Path, more: &[&str]) -> String {
    let output = offline(verb, repository, more);
    assert_eq!(output.status.code(), Some(0), "{verb} {more:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

/// Flips a bit in the middle of a file.
fn flip(file: &Path) {
    let at = fs::metadata(file).unwrap().len() / 2;
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_folder_alone_lists_its_points_and_says_which_of_them_is_damaged_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(71);
    let mut web = Disk::create(&dir.join("vms/web/disk0.raw"), 9_000_000, &mut random);
    Disk::create(&dir.join("vms/web/disk1.raw"), 2_000_000, &mut random);
    Disk::create(&dir.join("vms/db.raw"), 3_000_000, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut backups = vec![hub.backup("web", &[]), hub.backup("db", &[])];
    web.write_somewhere(1 << 20, &mut random);
    backups.push(hub.backup("web", &[]));
    // Nothing is left but the repository's folder, and that lies elsewhere.
    assert_eq!(hub.stop(), Some(0));
    let repository = dir.join("moved");
    fs::rename(dir.join("repo"), &repository).unwrap();
    fs::remove_dir_all(dir.join("hub")).unwrap();
    fs::remove_dir_all(dir.join("vms")).unwrap();

    let listed = json(&offline("list", &repository, &["--json"]));
    assert_eq!((&listed["success"], &listed["unreadable_manifests"]), (&true.into(), &0.into()));
    let points = listed["points"].as_array().unwrap();
    assert_eq!(points.len(), backups.len());
    for backup in &backups {
        let id = field(backup, "backup_id");
        let point = points.iter().find(|point| point["backup_id"] == id).unwrap_or_else(|| panic!("{id}: {listed:#}"));
        for same in ["vm_context_id", "vm_name", "backup_type"] {
            assert_eq!(point[same], backup[same], "{same} of {point:#}");
        }
        let disks = backup["disks"].as_array().unwrap();
        assert_eq!(point["disks"].as_array().unwrap().len(), disks.len());
        for (found, disk) in point["disks"].as_array().unwrap().iter().zip(disks) {
            for same in ["disk_id", "disk_key", "capacity_bytes", "backup_type"] {
                assert_eq!(found[same], disk[same], "{same} of {point:#}");
            }
            assert_eq!(found["parent_backup_id"], backup["parent_backup_id"]);
        }
    }
    let table = ok("list", &repository, &[]);
    assert!(backups.iter().all(|backup| table.contains(field(backup, "backup_id"))), "{table}");

    let (full, last) = (field(&backups[0], "backup_id"), field(&backups[2], "backup_id"));
    for more in [&[][..], &["--deep"], &[last], &[last, "--deep"]] {
        let said = ok("verify", &repository, more);
        assert!(said.lines().all(|line| line.starts_with("ok ")), "{more:?}: {said}");
        assert_eq!(said.lines().count(), if more.contains(&last) { 1 } else { 3 }, "{more:?}: {said}");
    }

    // A bit of the full point's image rots.
    let image = tree(&repository).into_iter().find(|file| file.ends_with(&format!("{full}.qcow2"))).unwrap();
    flip(&repository.join(&image));
    for more in [&[][..], &["--deep"], &[full]] {
        let output = offline("verify", &repository, more);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(6), "{more:?}: {said}{}", text(&output.stderr));
        let bad = said.lines().find(|line| line.starts_with("corrupt")).unwrap_or_else(|| panic!("{said}"));
        assert!(bad.contains(full), "{said}");
        let file = format!("{full}.qcow2");
        assert!(said.lines().any(|line| line.contains(&file) && line.contains(" segment 0")), "{said}");
    }
    let output = offline("verify", &repository, &["--json"]);
    assert_eq!(output.status.code(), Some(6));
    let said = json(&output);
    assert_eq!(said["success"], false);
    let damaged = said["points"].as_array().unwrap().iter().find(|point| point["backup_id"] == full).unwrap();
    assert_eq!(damaged["sound"], false);
    let finding = &damaged["damaged"][0];
    assert!(field(finding, "file").ends_with(&format!("{full}.qcow2")), "{damaged:#}");
    assert_eq!(finding["segment"], 0, "{damaged:#}");
}
