//! Nodes and the codes that let them in.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use serde_json::json;

fn code(number: u8, node: &str, expires: i64) -> NewNodeCode {
    NewNodeCode { hash: [number; 32], name: name(node), created_by: "admin".to_owned(), expires_at: at(expires) }
}

fn node(code: u8, number: u8) -> NewNode {
    NewNode { code_hash: [code; 32], node_id: id(&format!("node-{number}")), certificate: [number; 32] }
}

pub async fn a_code_lets_one_node_in_once(db: TestDb) {
    let catalog = db.open().await;
    catalog.nodes().add_code(&code(1, "SITE-A", 60), at(0)).await.expect("add");
    assert_eq!(
        catalog.nodes().add_code(&code(1, "SITE-B", 60), at(0)).await.expect_err("known").kind(),
        Kind::Conflict
    );
    assert_eq!(catalog.nodes().enrol(&node(2, 1), at(1)).await.expect_err("unknown").kind(), Kind::NotFound);
    assert_eq!(catalog.nodes().enrol(&node(1, 1), at(60)).await.expect_err("expired").kind(), Kind::NotFound);
    let mut tries = tokio::task::JoinSet::new();
    for number in 0..8 {
        let catalog = catalog.clone();
        tries.spawn(async move { catalog.nodes().enrol(&node(1, number), at(59)).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = tries.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{won:?}");
    for error in lost.into_iter().map(|lost| lost.expect_err("lost")) {
        assert!(matches!(error.kind(), Kind::NotFound | Kind::Conflict), "{error:?}");
    }
    let one = won.into_iter().next().expect("a winner").expect("a winner");
    assert_eq!((one.name.as_str(), one.enrolled_by.as_str(), one.created_at), ("SITE-A", "admin", at(59)));
    assert_eq!(catalog.nodes().list(Page::default()).await.expect("list"), (vec![one], 1));
}

pub async fn a_node_is_found_until_it_is_revoked(db: TestDb) {
    let catalog = db.open().await;
    let nodes = catalog.nodes();
    for (number, site) in [(1, "SITE-A"), (2, "SITE-A"), (3, "site-a")] {
        nodes.add_code(&code(number, site, 60), at(0)).await.expect("add");
    }
    let one = nodes.enrol(&node(1, 1), at(1)).await.expect("enrol");
    // Both codes were made while the name was free; the second one stays for when it is free again.
    let taken = nodes.enrol(&node(2, 2), at(1)).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::NameTaken { what: Noun::Node, .. })), "{taken:?}");
    let taken = nodes.add_code(&code(4, "SITE-A", 60), at(1)).await.expect_err("taken");
    assert!(matches!(&taken, Error::Conflict(Conflict::NameTaken { .. })), "{taken:?}");
    nodes.enrol(&node(3, 3), at(1)).await.expect("names are exact");

    assert_eq!(nodes.by_certificate(&[1; 32]).await.expect("find"), Some(one.clone()));
    assert_eq!(nodes.by_certificate(&[2; 32]).await.expect("find"), None);
    nodes.note_seen(&one.node_id, &json!({"version": "1"}), at(5)).await.expect("note");
    let seen = nodes.find("SITE-A").await.expect("by name");
    assert_eq!((seen.last_seen_at, seen.state), (Some(at(5)), Some(json!({"version": "1"}))));

    let limit = json!({"bytes_per_second": 9999});
    for bandwidth in [Some(&limit), Some(&limit), None, Some(&limit)] {
        nodes.limit(&one.node_id, bandwidth).await.expect("limit");
        assert_eq!(nodes.find("SITE-A").await.expect("by name").bandwidth.as_ref(), bandwidth);
    }
    assert_eq!(nodes.find("site-a").await.expect("by name").bandwidth, None, "another node was limited");

    nodes.revoke(&one.node_id, at(7)).await.expect("revoke");
    assert_eq!(nodes.limit(&one.node_id, None).await.expect_err("void").kind(), Kind::NotFound);
    nodes.revoke(&one.node_id, at(9)).await.expect("revoke again");
    assert_eq!(nodes.by_certificate(&[1; 32]).await.expect("find"), None);
    assert_eq!(nodes.by_name("SITE-A").await.expect("find"), None);
    nodes.note_seen(&one.node_id, &json!({}), at(9)).await.expect("a void node is not noted");
    let void = nodes.find("node-1").await.expect("by id");
    assert_eq!((void.revoked_at, void.last_seen_at), (Some(at(7)), Some(at(5))));
    assert_eq!(nodes.revoke(&id("node-9"), at(9)).await.expect_err("unknown").kind(), Kind::NotFound);
    let again = nodes.enrol(&node(2, 2), at(10)).await.expect("the name is free");
    let (listed, total) = nodes.list(Page::default()).await.expect("list");
    assert_eq!(
        (listed.iter().map(|node| &node.node_id).collect::<Vec<_>>(), total),
        (vec![&again.node_id, &id("node-3")], 2)
    );
}
