//! The days: guests live, schedules come due, points are made, merged, deleted and moved, and the hub dies and starts again.

use super::guests::{Fingerprint, Guests};
use super::kill::{Fate, Fault};
use crate::core::Core;
use crate::{Caller, Error, Hub, HubConfig, RunningHub};
use sendense_api::{
    CreateRepository, CreateSource, DeleteQuery, MoveQuery, MoveVm, PolicyRules, RepositoryConfig, Retention, Role,
    ScheduleRules,
};
use sendense_catalog::{Backup, BackupFilter, Page};
use sendense_repo::testing::Dice;
use sendense_types::{
    BackupId, BackupStatus, Clock, ManualClock, ProblemCode, RepositoryId, RepositoryKind, SourceKind, Timestamp,
};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 2027-01-15T08:00:00Z.
const BEGIN_MICROS: i64 = 1_800_000_000_000_000;
const HOUR: i64 = 3600;
/// The repository that policies name, and the one that machines are moved to now and then; each in a folder of its name.
pub(super) const REPOSITORIES: [&str; 2] = ["main", "other"];
/// Steps among which a fault is: as many as a night has, and a move of some points.
const NIGHT_STEPS: u64 = 1500;
const MOVE_STEPS: u64 = 200;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// Looks in a row that find nothing to do: a prune comes after the execution, and a merge after the prune.
const IDLE_LOOKS: u32 = 6;
/// How long the work of a day may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much is played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub vms: usize,
    pub days: u64,
    pub seed: u64,
}

/// What has happened.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub backups: usize,
    pub deaths: u64,
    pub faults: u64,
    pub deletions: u64,
    pub moves: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backups, deaths, faults, deletions, moves } = self;
        write!(
            f,
            "{backups} backups, {deletions} deletions by hand, {moves} moves, {deaths} deaths, {faults} other faults"
        )
    }
}

/// What each point must give back, disk by disk.
pub(super) type Model = BTreeMap<BackupId, BTreeMap<String, Fingerprint>>;

pub(super) struct Play {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    dice: Dice,
    guests: Guests,
    model: Model,
    hub: Option<RunningHub>,
    fate: Arc<Fate>,
    repositories: Vec<RepositoryId>,
    tally: Tally,
}

fn caller() -> Caller {
    Caller { identity: "year".to_owned(), role: Role::Admin }
}

/// The policies, by the first letter of the machines' names: incrementals for ever of which the last few stay, the same with days,
/// weeks and months, and fulls now and then.
fn policies() -> [PolicyRules; 3] {
    let policy = |name: &str, full_every, retention| PolicyRules {
        name: name.to_owned(),
        vms: vec![format!("{name}-*")],
        tags: Vec::new(),
        folders: Vec::new(),
        exclude: Vec::new(),
        exclude_tags: Vec::new(),
        exclude_folders: Vec::new(),
        sources: Vec::new(),
        repository_id: "main".to_owned(),
        full_every,
        quiesce: false,
        quiesce_or_fail: false,
        compression: None,
        on_tracking_loss: None,
        time_limit_seconds: None,
        bytes_per_second_max: None,
        vms_at_once: None,
        order: None,
        chain_points_max: None,
        verification: None,
        hooks: None,
        retention: Some(retention),
    };
    [
        policy("a", None, Retention { keep_last: 4, ..Retention::default() }),
        policy("b", None, Retention { keep_daily: 3, keep_weekly: 3, keep_monthly: 2, ..Retention::default() }),
        policy("c", Some(5), Retention { keep_last: 5, ..Retention::default() }),
    ]
}

/// Points of a machine that may be there after a day on which nothing failed: those that the rules keep; for the second one more,
/// for the oldest is merged when a quarter of what is kept has come together; for the last one those of the chain before it.
fn points_max(name: &str) -> usize {
    match name.as_bytes()[0] {
        b'a' => 4,
        b'b' => 9,
        _ => 10,
    }
}

impl Play {
    pub async fn begin(scale: Scale) -> Self {
        let mut dice = Dice(scale.seed);
        // In memory where that is: nothing here is about disks.
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let guests = Guests::new(folder.path().join("vms"), folder.path().join("away"), scale.vms, &mut dice);
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(BEGIN_MICROS)));
        let fate = Arc::new(Fate::default());
        let mut play = Self {
            folder,
            clock,
            dice,
            guests,
            model: Model::new(),
            hub: None,
            fate,
            repositories: Vec::new(),
            tally: Tally::default(),
        };
        play.start().await;
        play.set_up().await;
        play
    }

    async fn set_up(&mut self) {
        let (app, caller) = (self.hub().app().clone(), caller());
        let path = |name: &str| self.folder.path().join(name).to_string_lossy().into_owned();
        for name in REPOSITORIES {
            let repository = CreateRepository {
                name: name.to_owned(),
                kind: RepositoryKind::Local,
                config: RepositoryConfig { path: path(name) },
                compression: None,
                running_tasks_max: Some(8),
            };
            let made = app.create_repository(&caller, repository).await.unwrap();
            self.repositories.push(made.repository_id);
        }
        let source = serde_json::json!({
            "name": "images", "kind": SourceKind::Image, "address": path("vms"), "running_tasks_max": 8,
        });
        let source: CreateSource = serde_json::from_value(source).unwrap();
        app.create_source(&caller, source).await.unwrap();
        for rules in policies() {
            let schedule = serde_json::json!({ "name": rules.name, "policy_id": rules.name, "cron": "0 1 * * *" });
            let schedule: ScheduleRules = serde_json::from_value(schedule).unwrap();
            app.create_policy(&caller, rules).await.unwrap();
            app.create_schedule(&caller, schedule).await.unwrap();
        }
    }

    fn hub(&self) -> &RunningHub {
        self.hub.as_ref().expect("between its lives nobody asks for it")
    }

    fn core(&self) -> &Arc<Core> {
        &self.hub().app().core
    }

    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Starts the hub, as soon as its former life has let the data directory go.
    async fn start(&mut self) {
        self.fate = Arc::new(Fate::default());
        let patience = Instant::now() + PATIENCE;
        loop {
            let mut config = HubConfig::new(self.folder.path().join("data"));
            config.listen.set_port(0);
            config.allow_paths.push(self.folder.path().to_owned());
            config.clock = self.clock.clone();
            config.script = Some(self.fate.clone());
            config.limits.running_per_hub = 8;
            config.limits.lease_seconds = 3600;
            // Points are checked in the end.
            config.limits.verify_after_days = 0;
            match Hub::start(config).await {
                Ok(hub) => {
                    self.hub = Some(hub);
                    return;
                }
                Err(Error::DataDir(error)) if Instant::now() < patience => {
                    assert!(error.to_string().contains("in use"), "{error}");
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// The process is gone: nothing that it had left to do reaches the repository or the catalog.
    async fn die(&mut self) {
        let hub = self.hub.take().expect("it lived");
        // What still waits for the database is told that there is none.
        let _ = hub.app().core.catalog.close().await;
        hub.shutdown().await;
        self.tally.deaths += 1;
    }

    /// A day: guests live, at one o'clock all are backed up, then somebody deletes something, and moves a machine.
    pub async fn day(&mut self, calm: bool) {
        self.guests.live(&mut self.dice, calm);
        let found = self.hub().app().discover_source(&caller(), "images").await;
        found.unwrap_or_else(|problem| panic!("{problem:?}"));
        if !calm {
            self.arm(NIGHT_STEPS);
        }
        let due = self.next_night();
        let wait = due.seconds_since(self.clock.now());
        self.clock.advance_seconds(wait as i64 + 1);
        self.work(due).await;
        self.fate.disarm();
        self.record().await;
        if !calm && self.dice.below(3) == 0 {
            self.delete_something().await;
        }
        if !calm && self.dice.below(2) == 0 {
            self.move_something(due).await;
        }
    }

    fn arm(&mut self, within: u64) {
        let steps = self.dice.roll() % within;
        match self.dice.below(10) {
            0..3 => self.fate.arm(steps, Fault::Death),
            3 => self.fate.arm(steps, Fault::Failure),
            4 => self.fate.arm(steps, Fault::NoRoom),
            _ => return,
        }
        self.tally.faults += 1;
    }

    /// The next one o'clock.
    fn next_night(&self) -> Timestamp {
        let day = 24 * HOUR;
        let seconds = self.clock.now().as_micros() / 1_000_000;
        let next = (seconds - HOUR).div_euclid(day) * day + day + HOUR;
        Timestamp::from_micros(next * 1_000_000)
    }

    /// Until everything that is due has been done.
    async fn work(&mut self, due: Timestamp) {
        let patience = Instant::now() + PATIENCE;
        let mut idle = 0;
        while idle < IDLE_LOOKS {
            assert!(Instant::now() < patience, "the day does not end");
            if self.fate.is_dead() {
                self.die().await;
                self.start().await;
            }
            match self.busy(due).await {
                Busy::No => idle += 1,
                Busy::Works => idle = 0,
                // What failed is tried again after some minutes: they pass.
                Busy::Waits => {
                    idle = 0;
                    self.clock.advance_seconds(60);
                }
            }
            self.core().schedules_changed.notify_one();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn busy(&self, due: Timestamp) -> Busy {
        let core = self.core();
        // The hub may be dying: then the next look finds it dead.
        let Ok(pending) = core.catalog.tasks().pending(1).await else { return Busy::Works };
        let Ok(running) = core.catalog.executions().running().await else { return Busy::Works };
        let page = Page { limit: Page::LIMIT_MAX, offset: 0 };
        let Ok((schedules, _)) = core.catalog.schedules().list(page).await else { return Busy::Works };
        let is_recovered = self.repositories.iter().all(|id| core.repositories.is_recovered(id));
        if core.running.count() > 0 || !pending.is_empty() || !is_recovered || !core.merges_due.is_idle() {
            return Busy::Works;
        }
        let is_begun = schedules.iter().all(|schedule| schedule.handled.is_some_and(|handled| handled >= due));
        if is_begun && running.is_empty() { Busy::No } else { Busy::Waits }
    }

    /// Notes what the points hold that were made today: guests stand still while they are backed up.
    async fn record(&mut self) {
        for point in self.points().await {
            if self.model.contains_key(&point.backup_id) {
                continue;
            }
            let had = self.guests.fingerprint(point.vm_name.as_str());
            let had = had.unwrap_or_else(|| panic!("{} was made of a machine that is away", point.backup_id));
            self.model.insert(point.backup_id, had);
            self.tally.backups += 1;
        }
    }

    /// The points that the catalog lists.
    pub async fn points(&self) -> Vec<Backup> {
        let filter = BackupFilter { status: Some(BackupStatus::Completed), ..BackupFilter::default() };
        let mut points = Vec::new();
        loop {
            let page = Page { limit: Page::LIMIT_MAX, offset: points.len() as u64 };
            let (rows, _) = self.core().catalog.backups().list(&filter, page).await.unwrap();
            if rows.is_empty() {
                return points;
            }
            points.extend(rows);
        }
    }

    /// Any point, with all that stands on it.
    async fn delete_something(&mut self) {
        let points = self.points().await;
        if points.is_empty() {
            return;
        }
        let point = &points[self.dice.below(points.len())];
        let query = DeleteQuery { cascade: true, dry_run: false };
        match self.hub().app().delete_backup(&caller(), &point.backup_id, query).await {
            Ok(_) => self.tally.deletions += 1,
            Err(problem) => assert_eq!(problem.code, ProblemCode::Conflict, "{problem:?}"),
        }
    }

    /// All points of a machine go to the other repository, and mostly back again. Where policies put its next point there are points then
    /// in both, and neither takes what is in the other.
    async fn move_something(&mut self, due: Timestamp) {
        let points = self.points().await;
        if points.is_empty() {
            return;
        }
        let point = &points[self.dice.below(points.len())];
        let mut from = self.repositories.iter().position(|id| *id == point.repository_id).unwrap();
        for _ in 0..=self.dice.below(4).min(1) {
            self.arm(MOVE_STEPS);
            let request = MoveVm {
                to_repository_id: REPOSITORIES[1 - from].to_owned(),
                repository_id: Some(REPOSITORIES[from].to_owned()),
                leave_policies: true,
                bytes_per_second_max: None,
            };
            let now = MoveQuery { dry_run: false };
            match self.hub().app().move_chain(&caller(), point.vm_context_id.as_str(), request, now).await {
                Ok(_) => self.tally.moves += 1,
                // Points there already, or what an earlier move has not settled; or the process dies.
                Err(problem) => {
                    let is_refused = [ProblemCode::Conflict, ProblemCode::BackupNotFound].contains(&problem.code);
                    assert!(is_refused || self.fate.is_dead(), "{problem:?}");
                }
            }
            self.work(due).await;
            self.fate.disarm();
            from = 1 - from;
        }
    }

    /// The name of a repository.
    pub fn name_of(&self, id: &RepositoryId) -> &'static str {
        REPOSITORIES[self.repositories.iter().position(|known| known == id).unwrap()]
    }

    /// After calm days no machine that is there has more points than its policy keeps, where the policy puts them, whatever disks came
    /// and went.
    pub fn check_retention(&self, points: &[Backup]) {
        let mut machines: BTreeMap<&str, Vec<&Backup>> = BTreeMap::new();
        for point in points.iter().filter(|point| self.name_of(&point.repository_id) == REPOSITORIES[0]) {
            machines.entry(point.vm_name.as_str()).or_default().push(point);
        }
        machines.retain(|name, points| self.guests.is_there(name) && points.len() > points_max(name));
        let told = |point: &&Backup| {
            let parents: Vec<_> = point.disks.iter().map(|disk| (disk.disk_id, &disk.parent_backup_id)).collect();
            format!("{} of {}, {parents:?}", point.backup_id, point.created_at)
        };
        let too_many: BTreeMap<_, Vec<_>> =
            machines.iter().map(|(name, points)| (name, points.iter().map(told).collect())).collect();
        assert!(too_many.is_empty(), "more points than the rules keep: {too_many:#?}");
    }

    /// Ends the hub.
    pub async fn end(mut self) -> (tempfile::TempDir, Model) {
        self.hub.take().expect("it lives").shutdown().await;
        (self.folder, self.model)
    }
}

enum Busy {
    /// Something runs, or is about to.
    Works,
    /// Nothing runs; something waits for its time.
    Waits,
    No,
}
