//! The targets of a restore as they are asked for: what may be left out, and what it means then.

#![allow(clippy::unwrap_used, reason = "a test that fails to make its own input should stop there")]

use sendense_api::*;
use std::collections::BTreeMap;

#[test]
fn restore_targets_are_told_by_their_kind() {
    let read = |text: &str| serde_json::from_str::<RestoreBackup>(text).unwrap().target;
    assert_eq!(read(r#"{"target": {"kind": "file", "path": "/x"}}"#), RestoreTarget::raw_file("/x"));
    let damaged = |text: &str| serde_json::from_str::<RestoreBackup>(text).unwrap().allow_damaged;
    assert!(!damaged(r#"{"target": {"kind": "nbd", "uri": "nbd://x"}}"#), "nobody gets what is damaged unasked");
    assert!(damaged(r#"{"target": {"kind": "nbd", "uri": "nbd://x"}, "allow_damaged": true}"#));
    let onto = r#"{"target": {"kind": "file", "path": "/dev/x", "onto": true, "force": true, "resize": true}}"#;
    let RestoreTarget::File { onto: true, force: true, resize: true, overwrite: false, .. } = read(onto) else {
        panic!("{onto}")
    };
    let vmdk = r#"{"target": {"kind": "file", "path": "/x", "format": "vmdk", "subformat": "streamOptimized"}}"#;
    let RestoreTarget::File { format: ImageFormat::Vmdk, subformat: Some(VmdkSubformat::StreamOptimized), .. } =
        read(vmdk)
    else {
        panic!("{vmdk}")
    };
    assert_eq!(
        read(r#"{"target": {"kind": "nbd", "uri": "nbd://x"}}"#),
        RestoreTarget::Nbd { uri: "nbd://x".to_owned() }
    );
    assert_eq!(
        read(r#"{"target": {"kind": "vm", "source_id": "s", "name": "n"}}"#),
        RestoreTarget::Vm {
            source_id: "s".to_owned(),
            name: "n".to_owned(),
            onto: false,
            force: false,
            pool: "default".to_owned(),
            format: ImageFormat::Qcow2,
            networks: BTreeMap::new(),
            keep_identity: false,
            folder: None,
            cluster: None,
        }
    );
}
