//! Dirty bitmaps that lie: the audit finds it, the point is right all the same, and no chain stands on such a bitmap.

use super::lab::{MIB, guest::Guest, lab};
use super::{back_up, disk_of, start_hub_with, token};
use crate::disk::assert_holds;
use crate::hub::{field, path};
use serde_json::{Value, json};

const TWO: [(&str, &str, u64); 2] = [("vda", "qcow2", 8 * MIB), ("vdb", "qcow2", 4 * MIB)];

/// Has QEMU forget what a bitmap has recorded of a disk.
fn clear(guest: &Guest<'_>, disk: &str, bitmap: &str) {
    let ask = |command: Value| guest.lab.virsh(&["qemu-monitor-command", &guest.uuid, &command.to_string()]);
    let nodes: Value = serde_json::from_str(&ask(json!({"execute": "query-named-block-nodes"}))).unwrap();
    let is_it = |node: &&Value| {
        node["drv"] == "qcow2" && node["file"].as_str().is_some_and(|file| file.ends_with(&format!("-{disk}.qcow2")))
    };
    let node = &nodes["return"].as_array().unwrap().iter().find(is_it).unwrap()["node-name"];
    let answer = ask(json!({"execute": "block-dirty-bitmap-clear", "arguments": {"node": node, "name": bitmap}}));
    assert!(!answer.contains("error"), "{answer}");
}

#[test]
fn a_bitmap_that_forgets_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start_new(lab(), &TWO);
    let hub = start_hub_with(dir.path(), &guest, &["--audit-per-million", "1000000"]);
    guest.write("vda", 1, 0, 4 * MIB);
    let first = token(&back_up(&hub, &guest, "main", &[]), "vda").unwrap();
    let second = back_up(&hub, &guest, "second", &[]);
    let honest = back_up(&hub, &guest, "main", &[]);
    assert_eq!((&honest["type_reason"], &honest["cbt_audit"]["blocks_different"]), (&Value::Null, &0.into()));
    assert!(honest["cbt_audit"]["blocks_checked"].as_u64().unwrap() >= 64, "{honest:#}");
    let now = token(&honest, "vda").unwrap();
    assert_ne!(now, first);

    guest.write("vda", 2, MIB, 4096);
    clear(&guest, "vda", &now);
    let saved = back_up(&hub, &guest, "main", &[]);
    let (vda, vdb) = (disk_of(&saved, "vda"), disk_of(&saved, "vdb"));
    assert!(field(vda, "type_reason").contains("change tracking is wrong: 1 of "), "{saved:#}");
    assert_eq!((&vda["bytes_transferred"], &vdb["type_reason"]), (&65536.into(), &Value::Null), "{saved:#}");
    // The freeze made a bitmap of its own, which holds; the others, also those of other chains, are gone.
    assert_eq!(guest.checkpoints(), [token(&saved, "vda").unwrap()]);
    guest.write("vda", 3, 2 * MIB, 4096);
    let next = back_up(&hub, &guest, "main", &[]);
    assert_eq!((&next["type_reason"], &next["bytes_transferred"]), (&Value::Null, &65536.into()), "{next:#}");
    let elsewhere = back_up(&hub, &guest, "second", &[]);
    assert!(field(disk_of(&elsewhere, "vda"), "type_reason").contains("is missing"), "{second:#} {elsewhere:#}");
    for (number, point) in [&next, &elsewhere].into_iter().enumerate() {
        let restored = dir.path().join(format!("restored-{number}.raw"));
        hub.ok(&["restore", "disk", field(point, "backup_id"), "--disk", "0", "--to", path(&restored), "--wait"]);
        assert_holds(&restored, &guest.model["vda"]);
    }
}
