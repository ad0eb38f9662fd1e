//! A domain whose hub is lost with its catalog: its points are imported, and its chain goes on.

use super::lab::guest::Guest;
use super::lab::{MIB, lab};
use super::{back_up, disk_of, start_hub, token};
use crate::disk::assert_holds;
use crate::hub::{Hub, field, path, tree};
use serde_json::Value;
use std::path::Path;

const CARD: &str = "<interface type='user'><mac address='52:54:00:5d:00:07'/><model type='virtio'/></interface>";

fn manifest(repository: &Path, backup: &str) -> Value {
    let name = tree(repository).into_iter().find(|file| file.ends_with(&format!("{backup}.json"))).unwrap();
    let text: Value = serde_json::from_slice(&std::fs::read(repository.join(name)).unwrap()).unwrap();
    text["manifest"].clone()
}

#[test]
fn a_domain_is_described_in_its_points_and_its_chain_goes_on_after_an_import() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut guest = Guest::define_with(lab(), &[("vda", "qcow2", 8 * MIB)], CARD, "");
    guest.start();
    guest.write("vda", 1, 0, 3 * MIB);
    let hub = start_hub(dir, &guest);
    let shown = hub.json(&["vm", "show", &guest.name])["vm"].clone();
    let cards = shown["networks"].as_array().unwrap();
    assert_eq!(cards.len(), 1, "{shown:#}");
    assert_eq!((field(&cards[0], "mac"), field(&cards[0], "model")), ("52:54:00:5d:00:07", "virtio"), "{shown:#}");
    assert_eq!(field(&cards[0], "network"), "user", "{shown:#}");

    let full = back_up(&hub, &guest, "main", &[]);
    let old = token(&full, "vda").unwrap();
    let documents = manifest(&dir.join("main"), field(&full, "backup_id"))["documents"].clone();
    let xml = documents.as_array().unwrap().iter().find(|document| document["name"] == "libvirt-domain-xml");
    let xml = xml.unwrap_or_else(|| panic!("no domain in {documents:#}"))["text"].as_str().unwrap().to_owned();
    for part in [&guest.uuid[..], &guest.name, "52:54:00:5d:00:07", path(&guest.disks[0].path)] {
        assert!(xml.contains(part), "no {part} in {xml}");
    }
    assert!(xml.trim_start().starts_with("<domain"), "{xml}");

    // The hub's folder is lost: the next hub is of another deployment, and finds the repository and nothing else.
    assert_eq!(hub.stop(), Some(0));
    std::fs::remove_dir_all(dir.join("hub")).unwrap();
    guest.write("vda", 2, 5 * MIB, 100_000);
    let hub = Hub::start(dir);
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("main"))]);
    hub.ok(&["repo", "import", "main"]);
    let scratch = super::scratch(guest.lab, &guest);
    let add = ["source", "add", "libvirt", "--name", "lab", "--uri", &guest.lab.uri, "--scratch", path(&scratch)];
    hub.ok(&[&add[..], &["--scratch-floor", "1MiB"]].concat());
    hub.ok(&["source", "discover", "lab"]);
    let found = hub.json(&["vm", "show", &guest.name])["vm"].clone();
    assert_eq!(field(&found, "vm_context_id"), field(&shown, "vm_context_id"), "the domain is another machine now");

    let next = back_up(&hub, &guest, "main", &[]);
    assert_eq!(field(&next, "backup_type"), "incremental", "{next:#}");
    assert_eq!(field(&next, "parent_backup_id"), field(&full, "backup_id"));
    let reason = field(disk_of(&next, "vda"), "type_reason");
    assert!(reason.contains("compared") && reason.contains("is no checkpoint of this deployment"), "{reason}");
    assert!(next["bytes_transferred"].as_u64().unwrap() <= 3 * 65536, "only what differs is sent: {next:#}");
    let out = dir.join("out");
    hub.ok(&["restore", "disk", field(&next, "backup_id"), "--to", path(&out), "--wait"]);
    assert_holds(&out, &guest.model["vda"]);
    // The lost deployment's checkpoint is not ours to take away, and tracking begins anew with our own.
    let new = token(&next, "vda").unwrap();
    let checkpoints = guest.checkpoints();
    assert!(checkpoints.contains(&old) && checkpoints.contains(&new), "{checkpoints:?}");
    guest.write("vda", 3, 6 * MIB, 4096);
    let last = back_up(&hub, &guest, "main", &[]);
    assert!(last["type_reason"].is_null(), "{last:#}");
}
