//! What is out of order in a repository: found, put right as far as that is safe, and told whatever else goes wrong.

use super::house::{House, until};
use sendense_api::{FindingKind, ListQuery, ReconcileQuery, RepositoryReport};
use sendense_types::{BackupId, BackupType, SourceKind};
use std::path::Path;
use std::time::Duration;

const DRY: ReconcileQuery = ReconcileQuery { dry_run: true, forget_moves: false };
const REPAIR: ReconcileQuery = ReconcileQuery { dry_run: false, forget_moves: false };

impl House {
    async fn chain(&self, name: &str, points: usize) -> Vec<BackupId> {
        std::fs::create_dir_all(self.path(name)).unwrap();
        std::fs::write(Path::new(&self.path(name)).join("disk.raw"), vec![7; 1 << 20]).unwrap();
        let vm = self.machine(name, SourceKind::Image, self.path(name)).await;
        let mut chain = Vec::new();
        for number in 0..points {
            let kind = if number == 0 { BackupType::Full } else { BackupType::Incremental };
            chain.push(self.back_up(&vm, "two", kind).await);
        }
        chain
    }

    fn lose(&self, id: &BackupId) {
        for file in self.left_of(id) {
            std::fs::remove_file(file).unwrap();
        }
        assert_eq!(self.left_of(id), [""; 0]);
    }

    /// Waits for the hub's own first look at each repository: it comes at its own time, and would be the last repair then.
    async fn until_looked_through(&self) {
        for name in ["one", "two"] {
            let reports = async || self.client.repository_reports(name, &ListQuery::default()).await.unwrap().items;
            until("it is looked through", async || reports().await.iter().any(|one| one.made_by == "start")).await;
        }
    }

    async fn check(&self, how: &ReconcileQuery) -> RepositoryReport {
        self.client.reconcile_repository("two", how).await.unwrap()
    }

    async fn reports(&self) -> Vec<RepositoryReport> {
        self.client.repository_reports("two", &ListQuery::default()).await.unwrap().items
    }
}

/// Kind, subject, whether it can be repaired and whether it was.
fn found(report: &RepositoryReport) -> Vec<(FindingKind, String, bool, bool)> {
    let findings = report.findings.iter();
    findings.map(|one| (one.kind, one.subject.clone(), one.repairable, one.repaired)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_lost_from_the_middle_of_a_chain_is_told_and_keeps_nothing_else_out_of_order() {
    let house = House::new(|_| ()).await;
    let (web, db) = (house.chain("web", 3).await, house.chain("db", 2).await);
    // The hub's own first look is over before anything goes.
    house.until_looked_through().await;
    assert_eq!(found(&house.check(&REPAIR).await), []);
    house.lose(&web[1]);
    house.lose(&db[1]);
    let report = house.check(&REPAIR).await;
    let gone = |id: &BackupId, is_safe| (FindingKind::RowWithoutFiles, id.to_string(), is_safe, is_safe);
    let mut expected = [gone(&web[1], false), gone(&db[1], true)];
    expected.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!(found(&report), expected);
    let lost = report.findings.iter().find(|finding| !finding.repaired).unwrap();
    assert!(lost.message.contains("a point that is still there stands on it"), "{}", lost.message);
    assert_eq!(house.reports().await[0], report, "it is kept");
    // What says what the last one lacks is still there.
    house.client.get_backup(&web[1]).await.unwrap();
    assert_eq!(house.client.get_backup(&db[1]).await.unwrap_err().status(), Some(404));
    // Once nothing stands on it any more it goes.
    house.lose(&web[2]);
    let mut expected = [gone(&web[1], true), gone(&web[2], true)];
    expected.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!(found(&house.check(&REPAIR).await), expected);
    assert_eq!(found(&house.check(&REPAIR).await), []);
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_without_repair_put_the_daily_repair_off_neither_by_their_time_nor_by_their_number() {
    let (house, clock) = House::clocked(|config| {
        config.limits.upkeep_period = Duration::from_millis(50);
        // A round of what opens and looks through is a quarter of it.
        config.limits.lease_seconds = 4;
    })
    .await;
    house.until_looked_through().await;
    let repaired = house.check(&REPAIR).await;
    clock.advance_seconds(12 * 3600);
    for _ in 0..40 {
        clock.advance_seconds(1);
        house.check(&DRY).await;
    }
    let kept = house.reports().await;
    assert_eq!(kept.iter().filter(|report| report.dry_run).count(), 10);
    assert!(kept.contains(&repaired), "{kept:#?}");
    clock.advance_seconds(13 * 3600);
    let is_daily = async || house.reports().await.iter().any(|report| report.made_by == "daily" && !report.dry_run);
    until("a day after the last repair", is_daily).await;
    house.fixture.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_whose_look_or_count_hangs_holds_up_nothing_of_the_others_nor_its_own_lease() {
    let (house, clock) = House::clocked(|config| {
        config.limits.upkeep_period = Duration::from_millis(50);
        config.limits.lease_seconds = 4;
    })
    .await;
    house.until_looked_through().await;
    // As threads hold them that wait for a share: the look of one, and the count of the other.
    let core = house.fixture.hub.app().core.clone();
    let id = async |name: &str| house.client.get_repository(name).await.unwrap().repository_id;
    let (one, two) = (id("one").await, id("two").await);
    let _looks = core.repositories.checking(&one, Duration::from_secs(60)).await.unwrap();
    let _counts = core.repositories.counting(&two).await;
    let path = std::path::PathBuf::from(house.path("two"));
    let lease = || sendense_repo::owner::read(&path).unwrap().unwrap().lease_until;
    let before = lease();
    clock.advance_seconds(1);
    until("the lease is renewed", async || lease() > before).await;
    clock.advance_seconds(25 * 3600);
    until("the other is looked through", async || house.reports().await.iter().any(|one| one.made_by == "daily")).await;
    house.fixture.hub.shutdown().await;
}
