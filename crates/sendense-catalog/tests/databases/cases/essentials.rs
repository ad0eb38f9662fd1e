//! What goes into a copy of the catalog, and back into an empty one.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use serde_json::json;

/// A catalog with something in each table that is taken.
async fn filled(db: &TestDb) -> World {
    let world = World::new(db.open().await, 3).await;
    let catalog = &world.catalog;
    catalog.hubs().deployment_id(at(0)).await.expect("a deployment");
    catalog.settings().set("key_id", &json!("abc"), at(1)).await.expect("a setting");
    let token = NewToken { token_id: "tok-1".to_owned(), name: name("admin"), role: TokenRole::Admin, hash: [7; 32] };
    catalog.tokens().create(&token, at(2)).await.expect("a token");
    let policy =
        catalog.policies().create(&id("pol-1"), &name("gold"), &json!({"vms": ["*"]}), at(3)).await.expect("a policy");
    let schedule = NewSchedule {
        schedule_id: id("sch-1"),
        name: name("nightly"),
        policy_id: policy.policy_id,
        enabled: true,
        body: json!({"cron": "0 1 * * *"}),
    };
    catalog.schedules().create(&schedule, at(4)).await.expect("a schedule");
    let code = NewNodeCode { hash: [1; 32], name: name("SITE-A"), created_by: "admin".to_owned(), expires_at: at(60) };
    catalog.nodes().add_code(&code, at(5)).await.expect("a code");
    let node = NewNode { code_hash: [1; 32], node_id: id("node-1"), certificate: [9; 32] };
    catalog.nodes().enrol(&node, at(6)).await.expect("a node");
    let tags = [id("prod"), id("db")].into();
    catalog.vms().change_tags(&world.vms[1], &tags, &Default::default()).await.expect("tags");
    world
}

pub async fn they_make_another_catalog_of_the_same(db: TestDb) {
    let world = filled(&db).await;
    let taken = world.catalog.essentials().await.expect("take");
    let counts = taken.counts();
    assert_eq!((counts.repositories, counts.sources, counts.vms, counts.policies), (1, 1, 3, 1));
    assert_eq!((counts.schedules, counts.tokens, counts.nodes), (1, 1, 1));
    // As it is kept, and into a database of another kind.
    let kept = serde_json::to_vec(&taken).expect("write");
    let read: Essentials = serde_json::from_slice(&kept).expect("read");
    assert_eq!(read, taken);
    let other = TestDb::sqlite().await;
    let catalog = other.open().await;
    catalog.restore_essentials(&read).await.expect("put back");
    assert_eq!(catalog.essentials().await.expect("take again"), taken);
    let source = catalog.sources().get(&world.source_id).await.expect("a source");
    assert_eq!(source.secret.as_deref(), Some(&[0, 159, 146, 150, 255][..]));
    assert_eq!(
        catalog.hubs().deployment_id(at(9)).await.expect("who we are"),
        world.catalog.hubs().deployment_id(at(9)).await.expect("who we are")
    );
    let vm = catalog.vms().get(&world.vms[1]).await.expect("a machine");
    assert_eq!(vm, world.catalog.vms().get(&world.vms[1]).await.expect("a machine"));
    assert_eq!((vm.tags.len(), vm.folder.as_deref()), (2, Some("dc/vm")));
    // What an earlier release kept knew of neither.
    let mut earlier = serde_json::to_value(&taken).expect("write");
    earlier.as_object_mut().expect("an object").remove("vm_tags");
    for vm in earlier["vm_contexts"].as_array_mut().expect("machines") {
        vm.as_object_mut().expect("a row").remove("folder");
    }
    let earlier: Essentials = serde_json::from_value(earlier).expect("read");
    // Held: the file goes with it, and a connection may be made later.
    let third = TestDb::sqlite().await;
    let third_catalog = third.open().await;
    third_catalog.restore_essentials(&earlier).await.expect("put back");
    let vm = third_catalog.vms().get(&world.vms[1]).await.expect("a machine");
    assert_eq!((vm.tags.len(), vm.folder), (0, None));
    // And back into one of this kind.
    let back = catalog.essentials().await.expect("take");
    let refused = world.catalog.restore_essentials(&back).await.expect_err("in use");
    assert!(refused.to_string().contains("must be empty"), "{refused}");
}

pub async fn a_catalog_in_use_takes_none(db: TestDb) {
    let catalog = db.open().await;
    let empty = catalog.essentials().await.expect("take");
    catalog.restore_essentials(&empty).await.expect("nothing into nothing");
    add_repository(&catalog, "mine").await;
    let refused = catalog.restore_essentials(&empty).await.expect_err("in use");
    assert!(refused.to_string().contains("must be empty"), "{refused}");
    // A later release wrote it, or something else did.
    let mut later = serde_json::to_value(&empty).expect("write");
    later["version"] = json!(2);
    let later: Essentials = serde_json::from_value(later).expect("read");
    let refused = TestDb::sqlite().await.open().await.restore_essentials(&later).await.expect_err("later");
    assert!(matches!(refused, Error::Setup(_)), "{refused:?}");
    for text in ["{}", "[]", "{\"version\":1}"] {
        assert!(serde_json::from_str::<Essentials>(text).is_err(), "{text}");
    }
}
