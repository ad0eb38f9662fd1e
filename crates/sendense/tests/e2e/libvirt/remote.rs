//! A domain behind a node: its disks are read, and its checkpoints kept, by the node alone.

use super::lab::{MIB, guest::Guest, lab, until};
use super::{disk_of, scratch, token};
use crate::disk::assert_holds;
use crate::hub::{field, path, text};
use crate::nodes::ended;
use crate::remote_backup::{Node, enrolled};
use serde_json::Value;

const TWO: [(&str, &str, u64); 2] = [("vda", "qcow2", 16 * MIB), ("vdb", "raw", 4 * MIB)];

#[test]
fn a_domain_behind_a_node_is_backed_up_block_by_block_and_outlives_its_node() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut guest = Guest::start_new(lab(), &TWO);
    let hub = enrolled(dir, &["--audit-per-million", "1000000"], &[]);
    let mut node = Node::start(dir, &[]);
    let scratch = scratch(guest.lab, &guest);
    std::fs::create_dir(&scratch).unwrap();
    guest.lab.give(&scratch);
    let add = ["source", "add", "libvirt", "--name", "far", "--uri", &guest.lab.uri, "--node", "SITE-A"];
    hub.ok(&[&add[..], &["--scratch", path(&scratch), "--scratch-floor", "1MiB"]].concat());
    hub.ok(&["source", "test", "far"]);
    hub.ok(&["source", "discover", "far"]);

    guest.write("vda", 1, 0, 4 * MIB);
    guest.write("vdb", 2, MIB, 70_000);
    let full = hub.backup(&guest.name);
    assert_eq!((field(&full, "status"), field(&full, "backup_type")), ("completed", "full"), "{full:#}");
    assert_eq!(guest.checkpoints(), [token(&full, "vda").unwrap()]);
    // What QEMU records of the changes is all that is read, and the audit finds it right.
    guest.write("vda", 3, 9 * MIB, 4096);
    let next = hub.backup(&guest.name);
    let (vda, vdb) = (disk_of(&next, "vda"), disk_of(&next, "vdb"));
    assert_eq!((&vda["type_reason"], &vda["bytes_transferred"]), (&Value::Null, &65536.into()), "{next:#}");
    // A raw disk has no tracking: it is compared with digests that the hub tells.
    assert!(field(vdb, "type_reason").contains("compared") && vdb["bytes_transferred"] == 0, "{next:#}");
    assert_eq!(next["cbt_audit"]["blocks_different"], 0, "{next:#}");
    assert_eq!(guest.checkpoints(), [token(&next, "vda").unwrap()], "the older one is of no use any more");
    assert_eq!(node.open_entries(), Vec::<String>::new());

    // The node dies while it reads; started again, it ends the job in QEMU by itself.
    hub.ok(&["node", "limit", "SITE-A", "--bandwidth", "512kbit"]);
    guest.write("vda", 4, 0, 6 * MIB);
    let started = hub.json(&["backup", "start", &guest.name, "--repo", "main", "--compression", "off"]);
    let id = field(&started["backup"], "backup_id").to_owned();
    let is_job = || guest.lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_ok();
    until("a job runs in QEMU", || is_job().then_some(()));
    node.kill_9();
    assert!(!node.open_entries().is_empty(), "what was made is written down");
    let node = Node::start(dir, &[]);
    until("the job is ended", || (!is_job() && node.open_entries().is_empty()).then_some(()));
    let show = || hub.json(&["backup", "show", &id])["backup"].clone();
    until("the backup has ended", || (field(&show(), "status") == "failed").then_some(()));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "a scratch file is left");
    hub.ok(&["node", "limit", "SITE-A", "--none"]);
    let last = hub.backup(&guest.name);
    assert_eq!(disk_of(&last, "vda")["type_reason"], Value::Null, "{last:#}");
    assert_eq!(guest.checkpoints(), [token(&last, "vda").unwrap()]);

    for (number, target) in ["vda", "vdb"].into_iter().enumerate() {
        let restored = dir.join(format!("restored-{target}.raw"));
        let disk = number.to_string();
        hub.ok(&["restore", "disk", field(&last, "backup_id"), "--disk", &disk, "--to", path(&restored), "--wait"]);
        assert_holds(&restored, &guest.model[target]);
    }
    // What a node cannot do is said before anything is begun, and what can be done instead.
    let pool = dir.join("pool");
    std::fs::create_dir(&pool).unwrap();
    let vm = ["restore", "vm", field(&last, "backup_id"), "--source", "far", "--name", "again", "--pool", path(&pool)];
    let recovery = ["recover", "instant", field(&last, "backup_id"), "--name", "again", "--libvirt", "far"];
    for asked in [&vm[..], &recovery[..]] {
        let refused = ended(&hub.admin(asked), 2);
        assert!(refused.contains("bound to node SITE-A") && refused.contains("restore disk"), "{asked:?}: {refused}");
    }
    assert_eq!(std::fs::read_dir(&pool).unwrap().count(), 0);
    assert!(!text(node.log().as_bytes()).contains("panicked"));
}
