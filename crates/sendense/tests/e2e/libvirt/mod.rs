//! Journeys with real libvirt domains. What lives here: a hub over the lab's daemon; each journey has its file.

mod audited;
mod checkpoints;
mod eventful;
mod frozen;
mod imported;
#[path = "../../../../../lab/libvirt/mod.rs"]
mod lab;
mod recovered;
mod remote;
mod restored;

use crate::hub::{Hub, field, path};
use lab::Lab;
use lab::guest::Guest;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where QEMU keeps what a guest overwrites while the hub of `dir` backs it up.
fn scratch(lab: &Lab, guest: &Guest<'_>) -> PathBuf {
    lab.dir.join(format!("scratch-{}", guest.name))
}

/// A hub with the repositories `main` and `second` in `dir` and the lab's daemon as its source.
fn start_hub(dir: &Path, guest: &Guest<'_>) -> Hub {
    start_hub_with(dir, guest, &[])
}

/// The same, with more arguments for the hub.
fn start_hub_with(dir: &Path, guest: &Guest<'_>, more: &[&str]) -> Hub {
    let lab = guest.lab;
    let hub = Hub::launch(dir, "hub", more).unwrap_or_else(|log| panic!("the hub did not start:\n{log}"));
    for name in ["main", "second"] {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        hub.ok(&["repo", "add", "local", "--name", name, "--path", path(&folder)]);
    }
    let scratch = scratch(lab, guest);
    std::fs::create_dir(&scratch).unwrap();
    lab.give(&scratch);
    let scratch = ["--scratch", path(&scratch), "--scratch-floor", "1MiB"];
    hub.ok(&[&["source", "add", "libvirt", "--name", "lab", "--uri", &lab.uri][..], &scratch].concat());
    hub.ok(&["source", "discover", "lab"]);
    hub
}

/// Backs the guest up and gives the backup when the task has ended.
fn back_up(hub: &Hub, guest: &Guest<'_>, repository: &str, more: &[&str]) -> Value {
    let args = ["backup", "start", &guest.name, "--repo", repository, "--wait"];
    let answer = hub.json(&[&args[..], more].concat())["backup"].clone();
    assert_eq!(field(&answer, "status"), "completed", "{answer:#}");
    answer
}

/// The disk of a backup with this target.
fn disk_of<'b>(backup: &'b Value, target: &str) -> &'b Value {
    let disks = backup["disks"].as_array().unwrap();
    disks.iter().find(|disk| disk["disk_key"] == target).unwrap_or_else(|| panic!("no {target} in {backup:#}"))
}

/// The tracking token that a disk of a point names.
fn token(backup: &Value, target: &str) -> Option<String> {
    disk_of(backup, target)["change_id"].as_str().map(str::to_owned)
}
