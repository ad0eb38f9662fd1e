//! Deployment, hubs, leases, settings, tokens, journal.

use crate::fixture::*;
use crate::support::TestDb;
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;

pub async fn a_deployment_has_one_id(db: TestDb) {
    let catalog = db.open().await;
    let id = catalog.hubs().deployment_id(at(0)).await.expect("make");
    assert_eq!(catalog.hubs().deployment_id(at(5)).await.expect("again"), id);
    assert_eq!(db.open().await.hubs().deployment_id(at(9)).await.expect("reopened"), id);
}

pub async fn epochs_are_given_once(db: TestDb) {
    let catalog = db.open().await;
    catalog.hubs().acquire(&id("hub-1"), at(60), at(0)).await.expect("the first");
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let catalog = catalog.clone();
        starts.spawn(async move { catalog.hubs().acquire(&id("hub-1"), at(60), at(0)).await });
    }
    let leases = starts.join_all().await.into_iter().collect::<Result<Vec<_>>>().expect("all start");
    let mut epochs: Vec<i64> = leases.iter().map(|lease| lease.epoch).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, (2..=9).collect::<Vec<i64>>());
    for lease in leases {
        let renewed = catalog.hubs().renew(&lease, at(120)).await;
        assert_eq!(renewed.is_ok(), lease.epoch == 9, "epoch {}", lease.epoch);
    }
    let hubs = catalog.hubs().list().await.expect("list");
    assert_eq!((hubs.len(), hubs[0].epoch, hubs[0].lease_until), (1, 9, at(120)));
}

pub async fn a_lease_has_one_owner(db: TestDb) {
    let catalog = db.open().await;
    let mut takers = tokio::task::JoinSet::new();
    for taker in 0..8 {
        let catalog = catalog.clone();
        takers.spawn(async move { catalog.leases().acquire("repo-1", &format!("hub-{taker}"), at(60), at(0)).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = takers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{won:?}");
    for error in lost.into_iter().map(|lost| lost.expect_err("lost")) {
        assert!(matches!(&error, Error::Conflict(Conflict::LeaseHeld { .. })), "{error:?}");
    }
    let first = won.into_iter().next().expect("a winner").expect("a winner");
    let leases = catalog.leases();
    assert_eq!(leases.get("repo-1").await.expect("get"), Some(first.clone()));

    let held = leases.acquire("repo-1", "other", at(99), at(59)).await.expect_err("held");
    assert!(held.to_string().contains(&first.owner), "{held}");
    let second = leases.acquire("repo-1", "other", at(99), at(60)).await.expect("it has run out");
    assert!(second.epoch > first.epoch);
    let lost = leases.renew(&first, at(200)).await.expect_err("taken");
    assert!(matches!(&lost, Error::Conflict(Conflict::LeaseLost { .. })), "{lost:?}");
    let second = leases.renew(&second, at(150)).await.expect("renew");
    leases.release(&second).await.expect("release");
    let third = leases.acquire("repo-1", "third", at(200), at(100)).await.expect("it is free");
    assert!(third.epoch > second.epoch);
}

pub async fn settings_are_kept(db: TestDb) {
    let catalog = db.open().await;
    let settings = catalog.settings();
    assert_eq!(settings.get("mounts.max").await.expect("get"), None);
    let nested = json!({"a": [1, null, "ä\u{1f600}"], "b": {"c": 1.5, "big": i64::MAX}});
    settings.set("mounts.max", &json!(8), at(0)).await.expect("set");
    settings.set("mounts.max", &nested, at(1)).await.expect("set anew");
    settings.set("Mounts.max", &json!(true), at(1)).await.expect("another key");
    assert_eq!(settings.get("mounts.max").await.expect("get"), Some(nested.clone()));
    let all = settings.all().await.expect("all");
    assert_eq!(all.len(), 2);
    // Eight who set what is not set yet: one of them wins, and all are told the same.
    let mut setters = tokio::task::JoinSet::new();
    for number in 0..8 {
        let catalog = catalog.clone();
        setters.spawn(async move { catalog.settings().get_or_set("key_id", &json!(number), at(2)).await });
    }
    let told = setters.join_all().await.into_iter().collect::<Result<Vec<_>>>().expect("all are answered");
    let kept = settings.get("key_id").await.expect("get").expect("it is set");
    assert!(told.iter().all(|told| *told == kept), "{told:?}, kept is {kept}");
    assert!(settings.remove("mounts.max").await.expect("remove"));
    assert!(!settings.remove("mounts.max").await.expect("remove again"));
    let error = settings.set(&"k".repeat(256), &json!(1), at(0)).await.expect_err("too long");
    assert_eq!(error.kind(), Kind::Invalid);
}

pub async fn tokens_are_found_until_revoked(db: TestDb) {
    let catalog = db.open().await;
    let tokens = catalog.tokens();
    let new = |number: u8| NewToken {
        token_id: format!("tok-{number}"),
        name: name("laptop"),
        role: TokenRole::Operator,
        hash: [number; 32],
    };
    let one = tokens.create(&new(0), at(0)).await.expect("create");
    tokens.create(&new(255), at(1)).await.expect("create");
    let taken = tokens.create(&NewToken { token_id: "tok-9".to_owned(), ..new(0) }, at(1)).await.expect_err("known");
    assert!(matches!(&taken, Error::Conflict(Conflict::Exists { what: Noun::Token, .. })), "{taken:?}");
    assert_eq!(tokens.by_hash(&[0; 32]).await.expect("find"), Some(one));
    assert_eq!(tokens.by_hash(&[1; 32]).await.expect("find"), None);
    tokens.note_used("tok-0", at(7)).await.expect("note");
    tokens.revoke("tok-0", at(8)).await.expect("revoke");
    tokens.revoke("tok-0", at(9)).await.expect("revoke again");
    assert_eq!(tokens.by_hash(&[0; 32]).await.expect("find"), None);
    let (listed, total) = tokens.list(Page::default()).await.expect("list");
    assert_eq!((listed.len(), total), (2, 2));
    assert_eq!((listed[0].last_used_at, listed[0].revoked_at), (Some(at(7)), Some(at(8))));
    assert_eq!(tokens.revoke("tok-7", at(9)).await.expect_err("unknown").kind(), Kind::NotFound);
}

pub async fn the_journal_keeps_what_may_exist(db: TestDb) {
    let catalog = db.open().await;
    let journal = catalog.journal();
    let task: TaskId = id("task-1");
    for number in 0..3 {
        let new = NewArtefact {
            artefact_id: format!("art-{number}"),
            task_id: (number > 0).then(|| task.clone()),
            node: "hub-1".to_owned(),
            kind: "checkpoint".to_owned(),
            particulars: json!({"domain": "vm", "name": number}),
        };
        journal.record(&new, at(number)).await.expect("record");
        assert_eq!(journal.record(&new, at(number)).await.expect_err("known").kind(), Kind::Conflict);
    }
    let ids = |list: Vec<Artefact>| list.into_iter().map(|artefact| artefact.artefact_id).collect::<Vec<_>>();
    assert_eq!(ids(journal.open().await.expect("open")), ["art-0", "art-1", "art-2"]);
    journal.done("art-1", at(10)).await.expect("done");
    journal.done("art-1", at(11)).await.expect("done again");
    assert_eq!(ids(journal.open_of_task(&task).await.expect("open")), ["art-2"]);
    assert_eq!(journal.forget_done(at(10)).await.expect("forget"), 0);
    assert_eq!(journal.forget_done(at(11)).await.expect("forget"), 1);
    assert_eq!(ids(journal.open().await.expect("open")), ["art-0", "art-2"]);
    assert_eq!(journal.done("art-1", at(12)).await.expect_err("forgotten").kind(), Kind::NotFound);
}

pub async fn a_day_has_one_sample_and_a_year_is_kept(db: TestDb) {
    let catalog = db.open().await;
    let (one, two) = (add_repository(&catalog, "one").await, add_repository(&catalog, "two").await);
    let day = |day: i64| Timestamp::from_micros(86_400_000_000 * (20_000 + day));
    let sample =
        |at: Timestamp, used_bytes: u64| SpaceSample { at, total_bytes: 1 << 60, used_bytes, available_bytes: 7 };
    let space = catalog.space();
    for (number, used) in [(0, 1), (1, 2), (2, 3)] {
        space.note(&one.repository_id, &sample(day(number), used)).await.expect("note");
    }
    // Later on the same day it is replaced.
    let last = sample(day(2).plus_seconds(86_399), 4);
    space.note(&one.repository_id, &last).await.expect("note");
    space.note(&two.repository_id, &sample(day(1), 9)).await.expect("note");
    let history = space.history(&one.repository_id).await.expect("history");
    assert_eq!(history, [sample(day(0), 1), sample(day(1), 2), last]);
    // What is older than the bound goes, of this repository alone.
    space.note(&one.repository_id, &sample(day(i64::from(KEPT_DAYS) + 1), 5)).await.expect("note");
    let history = space.history(&one.repository_id).await.expect("history");
    assert_eq!(history.iter().map(|sample| sample.used_bytes).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(space.history(&two.repository_id).await.expect("history").len(), 1);
    // It goes with the repository.
    catalog.repositories().delete(&one.repository_id).await.expect("delete");
    assert_eq!(space.history(&one.repository_id).await.expect("history"), []);
    let unknown = space.note(&one.repository_id, &last).await.expect_err("no such repository");
    assert_ne!(unknown.kind(), Kind::Unavailable, "{unknown}");
}

pub async fn the_newest_reports_are_kept(db: TestDb) {
    let catalog = db.open().await;
    let (one, two) = (add_repository(&catalog, "one").await, add_repository(&catalog, "two").await);
    let reports = catalog.reports();
    let beyond = i64::try_from(REPORTS_MAX).expect("it is small") + 3;
    for number in 0..beyond {
        reports.add(&one.repository_id, at(number), &json!({ "number": number })).await.expect("add");
    }
    reports.add(&two.repository_id, at(0), &json!({})).await.expect("add");
    // Twice at the same time is once.
    reports.add(&one.repository_id, at(beyond - 1), &json!({ "number": "again" })).await.expect("add");
    let (kept, total) = reports.list(&one.repository_id, Page { limit: 1000, offset: 0 }).await.expect("list");
    assert_eq!((kept.len() as u64, total), (REPORTS_MAX, REPORTS_MAX));
    assert_eq!(kept[0], Report { at: at(beyond - 1), body: json!({ "number": "again" }) });
    assert_eq!(kept.last().expect("some").at, at(3));
    let (second, _) = reports.list(&one.repository_id, Page { limit: 1, offset: 1 }).await.expect("list");
    assert_eq!(second[0].at, at(beyond - 2));
    reports.forget(&one.repository_id, &[at(beyond - 2), at(-1)]).await.expect("forget");
    let (rest, total) = reports.list(&one.repository_id, Page { limit: 2, offset: 0 }).await.expect("list");
    assert_eq!((rest[1].at, total), (at(beyond - 3), REPORTS_MAX - 1));
    assert_eq!(reports.list(&two.repository_id, Page::default()).await.expect("list").1, 1);
    catalog.repositories().delete(&one.repository_id).await.expect("delete");
    assert_eq!(reports.list(&one.repository_id, Page::default()).await.expect("list").1, 0);
}
