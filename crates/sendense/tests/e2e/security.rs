//! Strangers, escapes, and what lies around on disk.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, SENDENSE, cli, field, holders, path, text, tree};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

#[test]
fn a_stranger_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path());
    for token in [None, Some("wrong")] {
        let mut command = cli(&hub.url, None);
        if let Some(token) = token {
            command.env("SENDENSE_TOKEN", token);
        }
        let output = command.args(["vm", "list"]).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    }
    let mode = |name: &str| fs::metadata(hub.data_dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("admin-token"), 0o600);
    assert_eq!(mode(""), 0o700);
    // The token is nowhere else in clear.
    let token = fs::read_to_string(hub.data_dir.join("admin-token")).unwrap();
    assert_eq!(holders(&hub.data_dir, token.trim()), ["admin-token"]);
}

#[test]
fn a_viewer_looks_and_does_not_touch() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web.raw"), 1 << 20, &mut Random::new(10));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let made = hub.json(&["token", "create", "--name", "eyes", "--role", "viewer"]);
    let as_viewer = |args: &[&str]| {
        let output = cli(&hub.url, None).env("SENDENSE_TOKEN", field(&made, "secret")).args(args).output().unwrap();
        output.status.code().unwrap()
    };
    assert_eq!(as_viewer(&["vm", "list"]), 0);
    assert_eq!(as_viewer(&["backup", "start", "web", "--repo", "main"]), 7);
    assert_eq!(as_viewer(&["repo", "delete", "main"]), 7);
    hub.ok(&["token", "revoke", field(&made["token"], "token_id")]);
    assert_eq!(as_viewer(&["vm", "list"]), 7);
}

#[test]
fn paths_stay_below_the_allowed_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    for folder in [&inside, &outside] {
        fs::create_dir(folder).unwrap();
    }
    Disk::create(&inside.join("vms/web.raw"), 1 << 20, &mut Random::new(11));
    let hub = Hub::start(&inside);
    hub.set_up_images(&inside);
    let backup = hub.backup("web", &[]);
    let id = field(&backup, "backup_id");
    symlink(&outside, inside.join("door")).unwrap();
    for target in [outside.join("x"), inside.join("../out/x"), inside.join("door/x"), "/etc/sendense-x".into()] {
        let said = hub.fails(2, &["restore", "disk", id, "--to", path(&target), "--wait"]);
        assert!(said.contains("allow") || said.contains("holds `..`"), "{said}");
    }
    hub.fails(2, &["repo", "add", "local", "--name", "other", "--path", path(&outside)]);
    hub.fails(2, &["source", "add", "image", "--name", "other", "--path", "/etc"]);
    // The hub's own folder is nobody's restore target or source, though it lies below an allowed path here.
    hub.fails(2, &["source", "add", "image", "--name", "own", "--path", path(&hub.data_dir)]);
    hub.fails(2, &["restore", "disk", id, "--to", path(&hub.data_dir.join("key")), "--wait"]);
    assert!(tree(&outside).is_empty());
}

#[test]
fn nothing_is_restored_into_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web.raw"), 1 << 20, &mut Random::new(12));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    let id = field(&backup, "backup_id");
    let before = tree(&dir.join("repo"));
    symlink(dir.join("repo"), dir.join("door")).unwrap();
    let image = dir.join("repo").join(field(&backup, "file_path"));
    for target in [image, dir.join("repo/new"), dir.join("door/new")] {
        let said = hub.fails(4, &["restore", "disk", id, "--to", path(&target), "--wait"]);
        assert!(said.contains("lies in a repository"), "{said}");
    }
    assert_eq!(tree(&dir.join("repo")), before);
}

#[test]
fn what_others_named_does_not_act_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // A guest's disk may be called anything; so may a tag's value be anything that is no control character.
    let evil = "disk\u{1b}[2J\u{9b}31m\nweb2  completed";
    Disk::create(&dir.join("vms/web").join(format!("{evil}.raw")), 1 << 20, &mut Random::new(13));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let turned = "note=\u{202e}gpj.exe";
    let backup = hub.backup("web", &["--tag", turned]);
    let id = field(&backup, "backup_id");
    assert_eq!(backup["tags"]["note"], "\u{202e}gpj.exe", "programs get what it is");
    for args in [
        &["vm", "show", "web"][..],
        &["vm", "show", "web", "--json"],
        &["backup", "show", id],
        &["backup", "show", id, "--json"],
        &["backup", "log", id],
        &["source", "discover", "images"],
    ] {
        let output = hub.run(args);
        for (letters, what) in [(text(&output.stdout), "stdout"), (text(&output.stderr), "stderr")] {
            let acts = |letter: char| (letter.is_control() && letter != '\n') || letter == '\u{202e}';
            assert!(!letters.contains(acts), "{args:?} prints {letters:?} to {what}");
            assert!(!letters.contains("\nweb2"), "{args:?} fakes a row: {letters}");
        }
    }
    let said = hub.fails(2, &["backup", "start", "web", "--repo", "main", "--tag", "a=\u{1b}[2J"]);
    assert!(said.contains("control character") && !said.contains('\u{1b}'), "{said:?}");
    let said = hub.fails(3, &["vm", "show", "x\u{1b}[2J\ny"]);
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn refusals_are_told_to_programs_as_json_and_to_people_with_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path());
    let output = hub.run(&["vm", "show", "nope", "--json"]);
    let problem: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!((field(&problem, "code"), &problem["success"]), ("vm_not_found", &false.into()));
    let said = hub.fails(3, &["vm", "show", "nope"]);
    assert!(said.contains("code vm_not_found") && said.contains("another try does not help"), "{said}");
    // Nobody listens here any more.
    let (url, token) = (hub.url.clone(), hub.data_dir.join("admin-token"));
    assert_eq!(hub.stop(), Some(0));
    let output = cli(&url, Some(&token)).args(["vm", "list", "--json"]).output().unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), field(&problem, "code")), (Some(5), "hub_unreachable"));
    assert!(text(&output.stderr).contains("try again"));
}

#[test]
fn two_hubs_do_not_share_a_data_folder_and_a_network_address_means_tls() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hub = Hub::start(dir);
    let second = Command::new(SENDENSE)
        .args(["hub", "--listen", "127.0.0.1:0", "--data-dir", path(&hub.data_dir)])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", text(&second.stderr));
    assert_eq!(hub.stop(), Some(0));
    let hub = Hub::try_start(dir, "0.0.0.0:0").unwrap_or_else(|log| panic!("{log}"));
    assert!(hub.url.starts_with("https://"), "{}", hub.url);
}

#[test]
fn hostile_images_are_refused_before_a_tool_opens_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let vms = dir.join("vms");
    for vm in ["vmdk", "qcow2", "link"] {
        fs::create_dir_all(vms.join(vm)).unwrap();
    }
    fs::write(
        vms.join("vmdk/disk.vmdk"),
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 4 FLAT \"/etc/passwd\" 0\n",
    )
    .unwrap();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u"])
        .args([path(&vms.join("qcow2/disk.qcow2")), "1M"])
        .status()
        .unwrap_or_else(|error| panic!("qemu-img: {error}; install the Debian package qemu-utils"));
    assert!(made.success());
    symlink("/etc/passwd", vms.join("link/disk.raw")).unwrap();
    let hub = Hub::start(dir);
    fs::create_dir(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    hub.ok(&["source", "add", "image", "--name", "images", "--path", path(&vms)]);
    hub.ok(&["source", "discover", "images"]);
    for vm in ["vmdk", "qcow2", "link"] {
        let output = hub.run(&["backup", "start", vm, "--repo", "main", "--wait"]);
        assert!(!output.status.success(), "{vm} was backed up");
    }
    assert!(!tree(&dir.join("repo")).iter().any(|file| file.ends_with(".qcow2")));
}
