//! A hub that was recovered from a copy of the catalog while the old one is at work: it waits until the old one has ended.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, cli, field, path, text};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long something may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short, and yet a hub that only has to wait for a processor is not taken for dead.
const LEASE: [&str; 2] = ["--lease-seconds", "10"];

/// The hub that the repository's owner record names.
fn owner(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("repo/.sendense-repository.json")).unwrap();
    field(&serde_json::from_str(&text).unwrap(), "hub_id").to_owned()
}

#[test]
fn a_recovered_hub_takes_nothing_from_the_old_one_while_that_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(46);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), 2 << 20, &mut random);
    let mut old = Hub::launch(dir, "hub", &LEASE).unwrap();
    old.set_up_images(dir);
    let first = old.backup("web", &[]);
    old.ok(&["repo", "copy-catalog", "main"]);
    let old_id = owner(dir);

    let offline = |args: &[&str]| cli("http://127.0.0.1:1", None).arg("hub").args(args).output().unwrap();
    let key = dir.join("recovery-key");
    std::fs::write(&key, offline(&["recovery-key", "--data-dir", path(&old.data_dir)]).stdout).unwrap();
    let (repo, data) = (dir.join("repo"), dir.join("next"));
    let mut args =
        vec!["recover", "--from", path(&repo), "--data-dir", path(&data), "--recovery-key-file", path(&key), "--json"];
    let refused = offline(&args);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains(&old_id) && said.contains("must not run"), "{said}");
    assert!(!data.exists(), "nothing is written while the old hub may run");

    // An operator who is wrong does no harm.
    args.push("--old-hub-is-gone");
    let recovered = offline(&args);
    assert_eq!(recovered.status.code(), Some(0), "{}", text(&recovered.stderr));
    let told: Value = serde_json::from_slice(&recovered.stdout).unwrap();
    let next_id = field(&told, "hub_id");
    assert_ne!(next_id, old_id);
    let next = Hub::launch(dir, "next", &LEASE).unwrap();
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let patience = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < patience, "{what}\n{}", next.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("the new hub does not try", &|| next.log().contains("repository cannot be opened"));
    disk.write_somewhere(1 << 20, &mut random);
    let second = old.backup("web", &[]);
    assert_eq!(field(&second, "parent_backup_id"), field(&first, "backup_id"));
    assert_eq!(owner(dir), old_id);

    old.kill_9();
    until("the new hub takes over", &|| owner(dir) == next_id);
    until("the points are not taken in", &|| next.json(&["backup", "list", "--vm", "web"])["total"] == 2);
    disk.write_somewhere(1 << 20, &mut random);
    let third = next.backup("web", &[]);
    assert_eq!(field(&third, "parent_backup_id"), field(&second, "backup_id"));
    let restored = dir.join("restored.raw");
    next.ok(&["restore", "disk", field(&third, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &disk.bytes);
}

#[test]
fn an_older_copy_under_a_newer_name_is_refused_and_one_that_cannot_be_read_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut Random::new(47));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let older = field(&hub.json(&["repo", "copy-catalog", "main"])["catalog_copy"], "name").to_owned();
    let newest = field(&hub.json(&["repo", "copy-catalog", "main"])["catalog_copy"], "name").to_owned();
    let (repo, data) = (dir.join("repo"), dir.join("next"));
    let offline = |args: &[&str]| cli("http://127.0.0.1:1", None).arg("hub").args(args).output().unwrap();
    let key = dir.join("recovery-key");
    std::fs::write(&key, offline(&["recovery-key", "--data-dir", path(&hub.data_dir)]).stdout).unwrap();
    assert_eq!(hub.stop(), Some(0));
    let folder = repo.join(".sendense-catalog");
    let moved = newest.replacen(newest.split('.').next().unwrap(), "0002000000000000000", 1);
    std::fs::copy(folder.join(&older), folder.join(&moved)).unwrap();
    let large = newest.replacen(newest.split('.').next().unwrap(), "0000000000000000001", 1);
    std::fs::File::create(folder.join(&large)).unwrap().set_len((64 << 20) + 1).unwrap();

    let shown = offline(&["copies", "--from", path(&repo), "--json"]);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let shown = shown["catalog_copies"].as_array().unwrap();
    let problem = |name: &str| shown.iter().find(|copy| copy["name"] == name).unwrap()["problem"].clone();
    assert_eq!((problem(&older), problem(&newest)), (Value::Null, Value::Null));
    assert!(problem(&moved).as_str().unwrap().contains("renamed"), "{}", problem(&moved));
    assert!(problem(&large).as_str().unwrap().contains("cannot be read"), "{}", problem(&large));

    let mut args = vec!["recover", "--from", path(&repo), "--data-dir", path(&data), "--recovery-key-file", path(&key)];
    let refused = offline(&args);
    let said = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("renamed") && said.contains("--copy"), "{said}");
    assert!(!data.exists(), "nothing is written from a copy that was renamed");
    args.extend(["--copy", &newest]);
    let recovered = offline(&args);
    assert_eq!(recovered.status.code(), Some(0), "{}", text(&recovered.stderr));
    assert!(
        text(&recovered.stderr).contains("old: what was changed since then is undone"),
        "{}",
        text(&recovered.stderr)
    );
}
