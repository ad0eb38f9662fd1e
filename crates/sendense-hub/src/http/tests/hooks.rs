//! The folder of hooks: what a request can do to it.

use super::house::House;
use http::StatusCode;
use sendense_types::BackupType;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

/// Who could write there could have any program run with the hub's rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_may_name_the_folder_of_hooks() {
    let house = House::new(|config| {
        let folder = config.allow_paths[0].join("etc/hooks");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        config.hooks_dir = Some(folder);
    })
    .await;
    let vm = house.web(vec![7; 1 << 20]).await;
    let point = house.back_up(&vm, "two", BackupType::Full).await;

    let (folder, inside) = (house.path("etc/hooks"), house.path("etc/hooks/stop-db"));
    for (path, body) in [
        ("repositories", json!({"name": "x", "type": "local", "config": {"path": folder}})),
        ("repositories", json!({"name": "x", "type": "local", "config": {"path": house.path("etc/hooks/new")}})),
        ("repositories", json!({"name": "x", "type": "local", "config": {"path": house.path("etc")}})),
        ("repositories/test", json!({"name": "x", "type": "local", "config": {"path": folder}})),
        ("sources", json!({"name": "x", "kind": "image", "address": folder})),
        (&format!("backups/{point}/restore"), json!({"target": {"kind": "file", "path": inside, "format": "raw"}})),
    ] {
        let answer = house.fixture.json("POST", &format!("/api/v1/{path}"), &body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}: {answer:?}");
    }
    assert!(std::fs::read_dir(&folder).unwrap().next().is_none());
    house.fixture.hub.shutdown().await;
}
