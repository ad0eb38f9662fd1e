//! What several policies say of one machine.

use super::house::House;
use sendense_api::{BackupFilter, PruneFate, PruneQuery, PruneVm, UpdateRepository};
use sendense_types::{BackupId, ProblemCode, RepositoryMode, SourceKind};
use serde_json::{Value, json};

/// Makes a policy.
async fn policy(house: &House, name: &str, rest: Value) {
    let mut rules = json!({"name": name, "vms": ["*"], "repository_id": "one"});
    rules.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    let answer = house.fixture.json("POST", "/api/v1/policies", &rules.to_string()).await;
    assert!(answer.status.is_success(), "{answer:?}");
}

/// A full, made for a policy.
async fn point(house: &House, vm: &str, policy: Option<&str>) -> BackupId {
    let asked = json!({"vm_context_id": vm, "repository_id": "one", "backup_type": "full", "policy_id": policy});
    let answer = house.fixture.json("POST", "/api/v1/backups", &asked.to_string()).await;
    let id: BackupId = answer.body["backup"]["backup_id"].as_str().unwrap().parse().unwrap();
    let task = house.client.get_backup(&id).await.unwrap().task_id.unwrap();
    let task = house.client.wait_for_task(&task, |_| {}).await.unwrap();
    assert!(task.error.is_none(), "{task:?}");
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_deletes_no_point_of_another_one() {
    let house = House::new(|_| ()).await;
    house.disk("web", vec![7; 1 << 20]);
    let vm = house.machine("images", SourceKind::Image, house.path("vms")).await;
    policy(&house, "daily", json!({"retention": {"keep_last": 1}})).await;
    policy(&house, "monthly", json!({"retention": {"keep_last": 2}})).await;
    let mut points = Vec::new();
    for by in [None, Some("monthly"), Some("monthly"), Some("daily"), Some("daily")] {
        points.push(point(&house, &vm, by).await);
    }
    // One that was made by hand goes when no policy keeps it: of what is theirs or nobody's it is the third for both.
    let going = [points[0].clone(), points[3].clone()];
    let plan = house.fixture.json("GET", "/api/v1/policies/daily/plan", "").await;
    assert_eq!(plan.body["plan"]["deleted"], 2, "{plan:?}");
    let show = PruneQuery { dry_run: true, plan_id: None };
    let shown = house.client.prune_policy("daily", &show).await.unwrap().prunes.remove(0);
    let reason = |id: &BackupId| shown.backups.iter().find(|it| it.backup_id == *id).unwrap().reason.clone();
    assert_eq!(reason(&points[1]), "policy monthly made it, and judges it");
    assert_eq!(reason(&points[4]), "keep-last 1 of 1");
    let by_another = shown.backups.iter().filter(|it| it.kept_by_another).map(|it| &it.backup_id).collect::<Vec<_>>();
    assert_eq!(by_another, [&points[2], &points[1]]);
    // What is shown of the policy is what goes of one machine, by that plan.
    let asked = PruneVm { policy_id: Some("daily".to_owned()), ..PruneVm::default() };
    let how = PruneQuery { dry_run: false, plan_id: Some(shown.plan_id) };
    let pruned = house.client.prune_vm(&vm, &asked, &how).await.unwrap();
    assert_eq!((pruned.deleted, pruned.kept), (2, 3));
    for id in &points {
        assert_eq!(house.client.get_backup(id).await.is_err(), going.contains(id), "{id}");
    }
    let both = PruneVm { keep_last: 1, ..asked };
    assert!(house.client.prune_vm(&vm, &both, &show).await.is_err(), "one or the other");

    // One that means the machine no more still says what becomes of the points that it made, and of none else.
    let rules = json!({"name": "monthly", "vms": ["*"], "exclude": ["web"], "repository_id": "one", "retention": {"keep_last": 1}});
    let answer = house.fixture.json("PUT", "/api/v1/policies/monthly", &rules.to_string()).await;
    assert!(answer.status.is_success(), "{answer:?}");
    let shown = house.client.prune_policy("daily", &show).await.unwrap().prunes.remove(0);
    let told = |id: &BackupId| {
        let point = shown.backups.iter().find(|it| it.backup_id == *id).unwrap();
        (point.fate, point.reason.clone())
    };
    assert_eq!(told(&points[1]).0, PruneFate::Delete);
    assert_eq!(told(&points[2]), (PruneFate::Keep, "keep-last 1 of 1 (policy monthly, which made it)".to_owned()));
    assert_eq!(told(&points[4]), (PruneFate::Keep, "keep-last 1 of 1".to_owned()));
    let asked = PruneVm { policy_id: Some("monthly".to_owned()), ..PruneVm::default() };
    let refused = house.client.prune_vm(&vm, &asked, &show).await.unwrap_err();
    assert!(format!("{refused:?}").contains("does not mean this machine"), "{refused:?}");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_which_machines_a_change_leaves_out() {
    let house = House::new(|_| ()).await;
    for name in ["db", "mail", "web"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    policy(&house, "all", json!({})).await;
    policy(&house, "other", json!({"vms": ["mail"]})).await;
    let plan = async |name: &str, rest: Value| {
        let mut rules = json!({"name": name, "vms": ["*"], "repository_id": "one"});
        rules.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let answer = house.fixture.json("POST", "/api/v1/policies/plan", &rules.to_string()).await;
        assert!(answer.status.is_success(), "{answer:?}");
        let gone = answer.body["plan"]["no_longer"].as_array().unwrap().iter();
        gone.map(|vm| (vm["vm_name"].as_str().unwrap().to_owned(), vm["policies"].clone())).collect::<Vec<_>>()
    };
    let both = [("db".to_owned(), json!([])), ("mail".to_owned(), json!(["other"]))];
    assert_eq!(plan("all", json!({"vms": ["web"]})).await, both);
    assert_eq!(plan("all", json!({"exclude": ["db"]})).await, both[..1]);
    assert_eq!(plan("all", json!({"full_every": 7})).await, []);
    assert_eq!(plan("new", json!({"vms": ["web"]})).await, [], "nothing is changed by it");
    let saved = house.fixture.json("GET", "/api/v1/policies/all/plan", "").await;
    assert_eq!(saved.body["plan"]["no_longer"], json!([]), "{saved:?}");
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_told_also_while_the_repository_is_not_in_use() {
    let house = House::new(|_| ()).await;
    house.disk("web", vec![7; 1 << 16]);
    let vm = house.machine("images", SourceKind::Image, house.path("vms")).await;
    policy(&house, "gold", json!({"retention": {"keep_last": 1}})).await;
    point(&house, &vm, Some("gold")).await;
    let plan = async || house.fixture.json("GET", "/api/v1/policies/gold/plan", "").await.body["plan"].clone();
    let told = async || {
        let plan = plan().await;
        (plan["not_judged"].clone(), plan["kept"].as_u64(), plan["vms"][0]["chain_points"].as_u64())
    };
    assert_eq!(told().await, (Value::Null, Some(1), Some(1)));
    for (mode, words) in [
        (RepositoryMode::Draining, "repository one is draining"),
        (RepositoryMode::Offline, "repository one is offline"),
    ] {
        let change = UpdateRepository { mode: Some(mode), ..Default::default() };
        house.client.update_repository("one", &change).await.unwrap();
        let (not_judged, kept, chain_points) = told().await;
        assert!(not_judged.as_str().is_some_and(|why| why.starts_with(words)), "{not_judged}");
        assert_eq!((kept, chain_points), (Some(0), Some(1)));
        assert_eq!(plan().await["vms"][0]["prune"], Value::Null);
    }
    house.fixture.hub.shutdown().await;
}

/// Two machines of two points each, of which policy `gold` keeps one; a manifest of `db` is damaged. Gives its name.
async fn spoiled(house: &House) -> String {
    for name in ["db", "web"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    let vms = house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    policy(house, "gold", json!({"retention": {"keep_last": 1}})).await;
    for vm in &vms {
        for _ in 0..2 {
            point(house, vm, Some("gold")).await;
        }
    }
    let spoiled = house.client.get_vm("db").await.unwrap().vm_context_id;
    let folder = house.fixture.folder.path().join("one").join(spoiled.as_str());
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let manifest = files.filter(|path| path.extension().is_some_and(|it| it == "json")).min().unwrap();
    std::fs::write(&manifest, "{").unwrap();
    manifest.file_name().unwrap().to_str().unwrap().to_owned()
}

/// What one machine's manifest says no more stands in the way of no change of a policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_of_which_machine_nothing_can_be_judged() {
    let house = House::new(|_| ()).await;
    let manifest = spoiled(&house).await;
    let plan = house.fixture.json("GET", "/api/v1/policies/gold/plan", "").await;
    assert!(plan.status.is_success(), "{plan:?}");
    let plan = &plan.body["plan"];
    assert_eq!((&plan["deleted"], &plan["kept"], &plan["not_judged"]), (&json!(1), &json!(1), &Value::Null), "{plan}");
    let of = |name: &str| plan["vms"].as_array().unwrap().iter().find(|vm| vm["vm_name"] == name).unwrap().clone();
    let why = of("db")["not_judged"].as_str().unwrap().to_owned();
    assert!(why.contains(&manifest), "{why}");
    assert_eq!((&of("db")["prune"], &of("web")["not_judged"]), (&Value::Null, &Value::Null));
    house.fixture.hub.shutdown().await;
}

/// Nor does it keep the points of the other machines from going.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_goes_past_a_machine_whose_manifest_is_damaged() {
    let house = House::new(|_| ()).await;
    let manifest = spoiled(&house).await;
    let points = async |name: &str| {
        let of = BackupFilter { vm_name: Some(name.to_owned()), ..BackupFilter::default() };
        house.client.list_backups(&of).await.unwrap().total
    };
    for dry_run in [true, false] {
        let done = house.client.prune_policy("gold", &PruneQuery { dry_run, plan_id: None }).await.unwrap();
        let pruned = done.prunes.iter().map(|it| (it.vm_name.as_str(), it.dry_run, it.deleted, it.kept));
        assert_eq!(pruned.collect::<Vec<_>>(), [("web", dry_run, 1, 1)]);
        let [left] = done.not_pruned.as_slice() else { panic!("{done:?}") };
        assert_eq!((left.vm_name.as_str(), left.code), ("db", ProblemCode::Corrupt));
        assert!(left.why.contains(&manifest), "{}", left.why);
        assert_eq!((points("db").await, points("web").await), (2, if dry_run { 2 } else { 1 }));
    }
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_points_without_their_policy_is_told_and_then_so() {
    let house = House::new(|_| ()).await;
    for name in ["db", "mail", "web"] {
        house.disk(name, vec![7; 1 << 16]);
    }
    house.machines("images", SourceKind::Image, house.path("vms"), None).await;
    policy(&house, "monthly", json!({"retention": {"keep_last": 9}})).await;
    policy(&house, "daily", json!({"vms": ["web"], "retention": {"keep_last": 1}})).await;
    policy(&house, "all", json!({"vms": ["mail"]})).await;
    let id = async |name: &str| house.client.get_vm(name).await.unwrap().vm_context_id.to_string();
    let (web, db) = (id("web").await, id("db").await);
    for by in ["daily", "monthly", "monthly"] {
        point(&house, &web, Some(by)).await;
    }
    point(&house, &db, Some("monthly")).await;

    let plan = house.client.plan_policy_deletion("monthly").await.unwrap();
    let no_longer = plan.no_longer.iter().map(|vm| (vm.vm_name.as_str(), vm.policies.clone())).collect::<Vec<_>>();
    let by = |name: &str| vec![name.to_owned()];
    assert_eq!(no_longer, [("db", Vec::new()), ("mail", by("all")), ("web", by("daily"))]);
    let left = plan.left.iter().map(|left| (left.vm_name.as_str(), left.points)).collect::<Vec<_>>();
    assert_eq!((plan.points, left), (3, vec![("db", 1)]), "what daily means it will judge");
    // The newest is the last one, whoever made it: daily's own point goes, too.
    let judged = plan.judged.iter().map(|vm| (vm.policy.as_str(), vm.vm_name.as_str())).collect::<Vec<_>>();
    assert_eq!((judged, plan.deleted, plan.merged), (vec![("daily", "web")], 2, 0));
    assert!(plan.freed_bytes > 0 && plan.schedules.is_empty(), "{plan:?}");
    let going = |prune: &sendense_api::Prune| {
        let going = prune.backups.iter().filter(|entry| entry.fate == PruneFate::Delete);
        going.map(|entry| entry.backup_id.clone()).collect::<Vec<_>>()
    };
    let told = going(plan.judged[0].prune.as_ref().unwrap());
    let show = PruneQuery { dry_run: true, plan_id: None };
    assert_eq!(
        going(&house.client.prune_policy("daily", &show).await.unwrap().prunes[0]),
        [],
        "monthly is still there"
    );

    let nightly = json!({"name": "nightly", "policy_id": "monthly", "cron": "@yearly"}).to_string();
    assert!(house.fixture.json("POST", "/api/v1/schedules", &nightly).await.status.is_success());
    assert_eq!(house.client.plan_policy_deletion("monthly").await.unwrap().schedules, ["nightly"]);
    assert!(house.client.delete_policy("monthly").await.is_err(), "a schedule carries it out");
    house.client.delete_schedule("nightly").await.unwrap();

    house.client.delete_policy("monthly").await.unwrap();
    assert_eq!(going(&house.client.prune_policy("daily", &show).await.unwrap().prunes[0]), told);
    house.fixture.hub.shutdown().await;
}
