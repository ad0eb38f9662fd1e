//! The shapes on the wire of what has a secret in it, written out: a change of them is a change of the contract and must be seen in
//! review.

#![allow(clippy::unwrap_used, reason = "a test that fails to make its own input should stop there")]

use expect_test::{Expect, expect};
use sendense_api::reply::{NewTokenReply, SourceReply};
use sendense_api::{CreateSource, NbdOptions, NewToken, Role, Source, Token};
use sendense_types::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_780_000_000_000_000).plus_seconds(seconds)
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, expected: Expect) {
    let text = serde_json::to_string_pretty(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value);
    expected.assert_eq(&text);
}

#[test]
fn credentials_go_in_and_never_out() {
    let text = r#"{"name": "kvm", "kind": "libvirt", "uri": "qemu:///system",
        "credentials": {"username": "backup", "password": "correct horse"}}"#;
    let request: CreateSource = serde_json::from_str(text).unwrap();
    assert_eq!(request.address, "qemu:///system");
    assert_eq!(request.credentials.as_ref().unwrap().password.as_ref().unwrap().expose(), "correct horse");
    assert!(!format!("{request:?}").contains("horse"));
    let source = Source {
        source_id: "src-1".parse().unwrap(),
        name: request.name,
        kind: request.kind,
        address: request.address,
        has_credentials: true,
        thumbprint: None,
        scratch_path: None,
        scratch_floor_bytes: None,
        nbd: None,
        vsphere: None,
        running_tasks_max: None,
        node: None,
        vm_count: 0,
        discovered_at: None,
        created_at: at(0),
    };
    check(
        &SourceReply::new(source),
        expect![[r#"
        {
          "success": true,
          "source": {
            "source_id": "src-1",
            "name": "kvm",
            "kind": "libvirt",
            "address": "qemu:///system",
            "has_credentials": true,
            "thumbprint": null,
            "scratch_path": null,
            "scratch_floor_bytes": null,
            "nbd": null,
            "vsphere": null,
            "running_tasks_max": null,
            "node": null,
            "vm_count": 0,
            "discovered_at": null,
            "created_at": "2026-05-28T20:26:40Z"
          }
        }"#]],
    );
}

#[test]
fn what_an_nbd_server_takes_goes_there_and_back() {
    let text = r#"{"name": "n", "kind": "nbd", "address": "nbds://h/e",
        "credentials": {"tls_ca": "-----CA", "tls_certificate": "-----CERT", "tls_key": "-----KEY"},
        "nbd": {"dirty_bitmap": "b", "trust_bitmap": true, "bitmap_epoch": "1", "connections": 4, "tls_server_name": "x"}}"#;
    let request: CreateSource = serde_json::from_str(text).unwrap();
    assert_eq!(
        request.nbd.as_ref().unwrap(),
        &NbdOptions {
            dirty_bitmap: Some("b".to_owned()),
            trust_bitmap: true,
            bitmap_epoch: Some("1".to_owned()),
            connections: Some(4),
            tls_server_name: Some("x".to_owned()),
        }
    );
    assert!(!format!("{request:?}").contains("-----"));
    let again: CreateSource = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
    assert_eq!(again, request);
}

#[test]
fn a_new_token_shows_its_secret_once_and_not_in_logs() {
    let token = Token {
        token_id: "token-1".to_owned(),
        name: "grafana".to_owned(),
        role: Role::Viewer,
        created_at: at(0),
        last_used_at: None,
    };
    let new = NewToken { token, secret: "sdt_x".to_owned() };
    assert!(!format!("{new:?}").contains("sdt_x"));
    check(
        &NewTokenReply::from(new),
        expect![[r#"
            {
              "success": true,
              "token": {
                "token_id": "token-1",
                "name": "grafana",
                "role": "viewer",
                "created_at": "2026-05-28T20:26:40Z",
                "last_used_at": null
              },
              "secret": "sdt_x"
            }"#]],
    );
}
