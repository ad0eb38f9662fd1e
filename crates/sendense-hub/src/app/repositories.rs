//! Repositories: making them known, testing them, taking in what lies in them.

use super::{App, Caller};
use crate::catalog_copy;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, invalid};
use crate::jobs::work::{ImportWork, Work};
use crate::maintenance::{self, Use};
use crate::reconcile::{self, Doing};
use crate::repositories::{CHECK_PATIENCE, OPEN_TIMEOUT, path_of, within};
use crate::space::{self, Thresholds};
use sendense_api::{
    CatalogCopy, CreateRepository, DeleteRepository, ListQuery, Page, ReconcileQuery, Repository, RepositoryConfig,
    RepositoryReport, Role, SpaceSample, Storage, Task, TestReport, UpdateRepository,
};
use sendense_catalog as catalog;
use sendense_repo::Bounds;
use sendense_repo::owner::{self, Adopt};
use sendense_repo::repository::Create;
use sendense_types::{
    Compression, Name, NameError, Problem, ProblemCode, RepositoryId, RepositoryKind, RepositoryMode,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Free space below which a test warns: less than one large disk's worth of changes.
const LITTLE_SPACE_BYTES: u64 = 10 << 30;

/// A reason for a maintenance mode: a line.
const REASON_BYTES_MAX: usize = 255;

/// How a repository is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub compression: Compression,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_tasks_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_percent: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub critical_percent: Option<u8>,
}

impl Settings {
    /// What may be written.
    pub fn bounds(&self) -> Bounds {
        Bounds { limit_bytes: self.limit_bytes, floor_bytes: self.floor_bytes }
    }

    /// Refuses percentages that are none, or of which one never comes to pass.
    fn check(&self) -> Result<()> {
        let at = Thresholds::of(self);
        let is_percent = |percent: u8| (1..=100).contains(&percent);
        if !is_percent(at.low_percent) || !is_percent(at.critical_percent) || at.low_percent > at.critical_percent {
            return Err(invalid(format!(
                "low_percent ({}) and critical_percent ({}) lie between 1 and 100, and low is not more than critical",
                at.low_percent, at.critical_percent
            )));
        }
        Ok(())
    }

    fn write(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self)
            .map_err(|error| internal("a repository's settings cannot be written down", error.to_string()))
    }

    /// Reads a row.
    pub fn read(settings: &serde_json::Value) -> Result<Self> {
        Self::deserialize(settings)
            .map_err(|error| internal("a repository's settings cannot be read", error.to_string()))
    }
}

impl App {
    /// Makes a repository known, and a folder into one if it is none yet.
    pub async fn create_repository(&self, caller: &Caller, new: CreateRepository) -> Result<Repository> {
        caller.require(Role::Admin)?;
        let (app, by) = (self.clone(), caller.identity.clone());
        self.to_the_end(async move { app.create_repository_now(new, by).await }).await
    }

    async fn create_repository_now(&self, new: CreateRepository, by: String) -> Result<Repository> {
        let name: Name = new.name.parse().map_err(|error: NameError| invalid(error.to_string()))?;
        let path = self.local_path(&new)?;
        refuse_known_folder(&self.core, &path).await?;
        let settings = Settings {
            compression: new.compression.unwrap_or(Compression::Default),
            running_tasks_max: new.running_tasks_max,
            limit_bytes: None,
            floor_bytes: None,
            low_percent: None,
            critical_percent: None,
        };
        let path = path.into_os_string().into_string().map_err(|_| invalid("the path is not UTF-8"))?;
        let to_json = |error: serde_json::Error| internal("a repository cannot be written down", error.to_string());
        let now = self.core.now();
        let new = catalog::NewRepository {
            repository_id: RepositoryId::generate(),
            name,
            kind: new.kind,
            config: serde_json::to_value(RepositoryConfig { path }).map_err(to_json)?,
            settings: settings.write()?,
            secret: None,
        };
        // The row first: it claims the name, so of two callers only one goes on to the folder.
        let row = self.core.catalog.repositories().create(&new, now).await.or_problem()?;
        match self.core.repositories.get_as(&self.core, &row, Create::IfMissing, Adopt::Never).await {
            Ok(_) => {}
            Err(problem) if problem.code == ProblemCode::RepositoryOwned && self.is_abandoned(&row).await => {
                tracing::info!(repository_id = %row.repository_id, "the folder belongs to a deployment that is gone");
            }
            Err(problem) => {
                self.core.repositories.forget(&self.core, &row.repository_id).await;
                self.core.catalog.repositories().delete(&row.repository_id).await.or_problem()?;
                return Err(problem);
            }
        }
        tracing::info!(repository_id = %row.repository_id, kind = %row.kind, by = %by, "repository made known");
        self.repository_out(row).await
    }

    /// True when another deployment owns the folder and its lease is out: `import` may take it over.
    async fn is_abandoned(&self, row: &catalog::Repository) -> bool {
        let (Ok(path), now) = (path_of(row), self.core.now()) else { return false };
        let deployment = self.core.deployment_id.clone();
        let record = within(&row.name, blocking(move || owner::read(&path))).await;
        matches!(record, Ok(Ok(Some(record))) if record.deployment_id != deployment && record.lease_until <= now)
    }

    /// Repositories by name.
    pub async fn list_repositories(&self, page: ListQuery) -> Result<Page<Repository>> {
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (rows, total) = self.core.catalog.repositories().list(page).await.or_problem()?;
        // Side by side: one that does not answer must not hold up the others.
        let items = futures::future::join_all(rows.into_iter().map(|row| self.repository_out(row))).await;
        Ok(Page { items: items.into_iter().collect::<Result<_>>()?, total })
    }

    /// One repository, by its id or name.
    pub async fn get_repository(&self, id_or_name: &str) -> Result<Repository> {
        self.repository_out(self.repository(id_or_name).await?).await
    }

    /// Changes a repository: what may be done in it, and what it may take.
    pub async fn update_repository(
        &self,
        caller: &Caller,
        id_or_name: &str,
        change: UpdateRepository,
    ) -> Result<Repository> {
        caller.require(Role::Admin)?;
        let row = self.repository(id_or_name).await?;
        let mode = change.mode.unwrap_or(row.maintenance.mode);
        if let Some(reason) = &change.mode_reason {
            check_reason(reason, mode)?;
        }
        let before = Settings::read(&row.settings)?;
        let bytes = |asked: Option<u64>, before| asked.map_or(before, |bytes| Some(bytes).filter(|bytes| *bytes > 0));
        let settings = Settings {
            limit_bytes: bytes(change.limit_bytes, before.limit_bytes),
            floor_bytes: bytes(change.floor_bytes, before.floor_bytes),
            low_percent: change.low_percent.or(before.low_percent),
            critical_percent: change.critical_percent.or(before.critical_percent),
            ..before.clone()
        };
        settings.check()?;
        if settings != before {
            let change = catalog::RepositoryChange { settings: Some(settings.write()?), ..Default::default() };
            let row = self.core.catalog.repositories().update(&row.repository_id, &change).await.or_problem()?;
            tracing::info!(repository_id = %row.repository_id, ?settings, by = %caller.identity, "repository changed");
            self.core.repositories.bound(&self.core, &row.repository_id, OPEN_TIMEOUT).await?;
        }
        if change.mode.is_none() && change.mode_reason.is_none() {
            return self.get_repository(row.repository_id.as_str()).await;
        }
        let to = catalog::Maintenance {
            mode,
            reason: change.mode_reason,
            since: Some(self.core.now()),
            by: Some(caller.identity.clone()),
        };
        tracing::info!(repository_id = %row.repository_id, name = %row.name, mode = %mode, reason = ?to.reason,
            by = %caller.identity, "maintenance mode is set");
        let app = self.clone();
        self.to_the_end(async move {
            maintenance::set(&app.core, &row, to).await?;
            app.get_repository(row.repository_id.as_str()).await
        })
        .await
    }

    /// The room of a repository.
    pub async fn repository_storage(&self, id_or_name: &str) -> Result<Storage> {
        let row = self.repository(id_or_name).await?;
        self.core.repositories.storage(&self.core, &row).await
    }

    /// What a repository held from day to day.
    pub async fn repository_space(&self, id_or_name: &str, page: ListQuery) -> Result<Page<SpaceSample>> {
        let row = self.repository(id_or_name).await?;
        let history = self.core.catalog.space().history(&row.repository_id).await.or_problem()?;
        let total = history.len() as u64;
        let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let samples = history.into_iter().skip(skip).take(page.limit.get() as usize).map(|sample| SpaceSample {
            at: sample.at,
            total_bytes: sample.total_bytes,
            used_bytes: sample.used_bytes,
            available_bytes: sample.available_bytes,
        });
        Ok(Page { items: samples.collect(), total })
    }

    /// Looks through a repository, and repairs what is safe unless it is only to look.
    pub async fn reconcile_repository(
        &self,
        caller: &Caller,
        id_or_name: &str,
        how: ReconcileQuery,
    ) -> Result<RepositoryReport> {
        caller.require(Role::Admin)?;
        let row = self.repository(id_or_name).await?;
        let doing = match (how.dry_run, how.forget_moves) {
            (true, false) => Doing::Look,
            (false, false) => Doing::Repair,
            (false, true) => Doing::Forget,
            (true, true) => {
                return Err(invalid("dry_run changes nothing, and forget_moves gives something up: say one"));
            }
        };
        let (core, by) = (self.core.clone(), caller.identity.clone());
        self.to_the_end(async move { reconcile::check(&core, &row.repository_id, &by, doing, CHECK_PATIENCE).await })
            .await
    }

    /// What was out of order in a repository, newest first.
    pub async fn repository_reports(&self, id_or_name: &str, page: ListQuery) -> Result<Page<RepositoryReport>> {
        let row = self.repository(id_or_name).await?;
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (kept, total) = self.core.catalog.reports().list(&row.repository_id, page).await.or_problem()?;
        let read = |kept: catalog::Report| {
            RepositoryReport::deserialize(kept.body)
                .map_err(|error| internal("a report cannot be read", error.to_string()))
        };
        Ok(Page { items: kept.into_iter().map(read).collect::<Result<_>>()?, total })
    }

    /// Looks whether a folder would do as a repository, without making it one.
    pub async fn test_repository(&self, caller: &Caller, asked: CreateRepository) -> Result<TestReport> {
        caller.require(Role::Admin)?;
        let name: Name = asked.name.parse().map_err(|error: NameError| invalid(error.to_string()))?;
        let path = self.local_path(&asked)?;
        let (deployment, now) = (self.core.deployment_id.clone(), self.core.now());
        let looked = blocking(move || {
            let report = sendense_repo::probe(&path)?;
            Ok::<_, sendense_repo::Error>((report, owner::read(&path).ok().flatten()))
        });
        let (probe, record) = within(&name, looked).await?.or_problem()?;
        let mut warnings = Vec::new();
        if probe.available_bytes < LITTLE_SPACE_BYTES {
            warnings.push(format!("only {} bytes are free", probe.available_bytes));
        }
        match record {
            Some(record) if record.deployment_id != deployment && record.lease_until > now => {
                let details = format!("hub {} of {} works in it", record.hub_id, record.deployment_id);
                return Err(Problem::new(
                    ProblemCode::RepositoryOwned,
                    "another deployment owns the repository",
                    details,
                ));
            }
            Some(record) if record.deployment_id != deployment => {
                warnings.push(format!("it belongs to {}; import takes it over", record.deployment_id));
            }
            _ => {}
        }
        Ok(TestReport { product: probe.file_system, warnings })
    }

    /// Rebuilds the catalog from the manifests that lie in a repository.
    pub async fn import_repository(&self, caller: &Caller, id_or_name: &str) -> Result<Task> {
        caller.require(Role::Admin)?;
        let row = self.repository(id_or_name).await?;
        let subject = catalog::TaskSubject::Repository(row.repository_id.clone());
        self.make_task(caller, Work::Import(ImportWork { repository_id: row.repository_id }), subject).await
    }

    /// Forgets a repository that holds no backups. Its folder stays.
    pub async fn delete_repository(&self, caller: &Caller, id_or_name: &str, how: DeleteRepository) -> Result<()> {
        caller.require(Role::Admin)?;
        let row = self.repository(id_or_name).await?;
        if how.lost {
            return self.forget_lost(caller, row).await;
        }
        let of_it = catalog::BackupFilter { repository_id: Some(row.repository_id.clone()), ..Default::default() };
        let one = catalog::Page { limit: 1, offset: 0 };
        let in_the_way = |what: String| Problem::new(ProblemCode::Conflict, "the repository holds backups", what);
        let (_, rows) = self.core.catalog.backups().list(&of_it, one).await.or_problem()?;
        let points = catalog::BackupFilter { status: Some(sendense_types::BackupStatus::Completed), ..of_it.clone() };
        let (_, completed) = self.core.catalog.backups().list(&points, one).await.or_problem()?;
        if completed > 0 {
            let lost = format!(
                "where the repository is lost for good, `repo delete {} --lost` forgets it with them",
                row.name
            );
            return Err(in_the_way(format!("{completed} points are in the catalog; delete them first, or {lost}")));
        }
        self.refuse_in_use(&row).await?;
        maintenance::check(&row, Use::Write)?;
        // What the catalog does not know may lie there still: a folder that cannot be looked at is not forgotten.
        let repository = self.core.repositories.get(&self.core, &row).await?;
        let listed = blocking(move || {
            let mut points = 0_u64;
            for vm in repository.vms()? {
                if repository.is_move_unsettled(&vm)? {
                    return Ok((points, Some(vm)));
                }
                let listing = repository.list(&vm)?;
                points += (listing.points.len() + listing.problems.len()) as u64;
            }
            Ok::<_, sendense_repo::Error>((points, None))
        });
        let (files, unsettled) = within(&row.name, listed).await?.or_problem()?;
        if let Some(vm) = unsettled {
            let details = format!(
                "a move of {vm} there or away was cut off, and is settled by the next look at both repositories"
            );
            return Err(Problem::new(ProblemCode::Conflict, "the repository is in use", details));
        }
        if files > 0 {
            return Err(in_the_way(format!("{files} points lie in its folder; import and delete them first")));
        }
        if rows > 0 {
            self.forget_attempts(&of_it).await?;
        }
        self.core.catalog.repositories().delete(&row.repository_id).await.or_problem()?;
        self.core.repositories.forget(&self.core, &row.repository_id).await;
        tracing::info!(repository_id = %row.repository_id, by = %caller.identity, "repository removed");
        Ok(())
    }

    /// Copies the catalog into a repository now.
    pub async fn copy_catalog(&self, caller: &Caller, id_or_name: &str) -> Result<CatalogCopy> {
        caller.require(Role::Admin)?;
        let row = self.repository(id_or_name).await?;
        maintenance::check(&row, Use::Write)?;
        let repository = self.core.repositories.get(&self.core, &row).await?;
        let copy = catalog_copy::keep::make(&self.core, repository).await?;
        tracing::info!(repository_id = %row.repository_id, copy = %copy.name, by = %caller.identity, "catalog copied");
        Ok(copy_out(copy))
    }

    /// The copies of catalogs in a repository, the newest first.
    pub async fn list_catalog_copies(&self, id_or_name: &str) -> Result<Vec<CatalogCopy>> {
        let row = self.repository(id_or_name).await?;
        maintenance::check(&row, Use::Read)?;
        let repository = self.core.repositories.get(&self.core, &row).await?;
        let listed = blocking(move || repository.catalog_copies());
        let copies = within(&row.name, listed).await?.or_problem()?;
        Ok(copies.into_iter().map(copy_out).collect())
    }

    /// Removes the rows of attempts that came to nothing; those at work are in the way.
    pub(super) async fn forget_attempts(&self, filter: &catalog::BackupFilter) -> Result<()> {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        loop {
            let (rows, _) = self.core.catalog.backups().list(filter, page).await.or_problem()?;
            if rows.is_empty() {
                return Ok(());
            }
            let ids: Vec<_> = rows.into_iter().map(|row| row.backup_id).collect();
            self.core.catalog.backups().delete(&ids, self.core.now()).await.or_problem()?;
        }
    }

    pub(super) async fn repository(&self, id_or_name: &str) -> Result<catalog::Repository> {
        self.core.catalog.repositories().find(id_or_name).await.or_problem()
    }

    /// The checked path of a repository that is a folder here.
    fn local_path(&self, asked: &CreateRepository) -> Result<PathBuf> {
        if asked.kind != RepositoryKind::Local {
            let hint = match asked.kind {
                RepositoryKind::Nfs | RepositoryKind::Cifs => "mount the share and use kind local",
                RepositoryKind::S3 | RepositoryKind::Local => "use kind local",
            };
            return Err(invalid(format!("repositories of kind {} are not supported yet; {hint}", asked.kind)));
        }
        if asked.config.path.is_empty() {
            return Err(invalid("config.path is required"));
        }
        self.core.check_host_path(Path::new(&asked.config.path), true)
    }

    async fn repository_out(&self, row: catalog::Repository) -> Result<Repository> {
        let settings = Settings::read(&row.settings)?;
        let points = catalog::BackupFilter {
            repository_id: Some(row.repository_id.clone()),
            status: Some(sendense_types::BackupStatus::Completed),
            ..Default::default()
        };
        let one = catalog::Page { limit: 1, offset: 0 };
        let (_, backup_count) = self.core.catalog.backups().list(&points, one).await.or_problem()?;
        // Lists are served from the catalog: what was away a moment ago is not waited for again.
        let known_away = self.core.repositories.standing(&self.core, &row.repository_id);
        let room = match known_away {
            crate::repositories::Standing::Elsewhere | crate::repositories::Standing::Away => {
                Err(self.core.repositories.problem(&row.repository_id))
            }
            _ => self.core.repositories.room(&self.core, &row).await.map_err(Some),
        };
        let problem = room.as_ref().err().cloned().flatten();
        let space = match &room {
            Ok(room) => Some(space::of(&self.core, &row.repository_id, &settings, room).await?),
            Err(_) => None,
        };
        Ok(Repository {
            repository_id: row.repository_id,
            name: row.name.into(),
            kind: row.kind,
            config: RepositoryConfig::deserialize(&row.config)
                .map_err(|error| internal("a repository's place cannot be read", error.to_string()))?,
            compression: settings.compression,
            running_tasks_max: settings.running_tasks_max,
            mode: row.maintenance.mode,
            mode_reason: row.maintenance.reason,
            mode_since: row.maintenance.since,
            mode_by: row.maintenance.by,
            backup_count,
            storage: room.ok().map(|room| room.storage),
            space,
            limit_bytes: settings.limit_bytes,
            floor_bytes: settings.floor_bytes,
            problem: problem.map(|problem| match problem.details.as_str() {
                "" => problem.message,
                details => format!("{}: {details}", problem.message),
            }),
            created_at: row.created_at,
        })
    }
}

/// A reason is for people who are refused; it stands in messages, lists and logs.
fn check_reason(reason: &str, mode: RepositoryMode) -> Result<()> {
    if mode == RepositoryMode::Normal {
        return Err(invalid("mode_reason is for a mode other than normal"));
    }
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(invalid(format!("mode_reason is a line of 1 to {REASON_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn copy_out(copy: sendense_repo::CatalogCopy) -> CatalogCopy {
    let sendense_repo::CatalogCopy { name, deployment_id, made_at, bytes } = copy;
    CatalogCopy { name, deployment_id, made_at, bytes }
}

/// One folder is one repository: two would not see each other's locks. Nor is one the place for anything else.
pub(crate) async fn refuse_known_folder(core: &Core, path: &Path) -> Result<()> {
    refuse(core, |known| known.starts_with(path) || path.starts_with(known)).await
}

/// What lies in a repository is written by backups alone; a folder that holds one may hold other things too.
pub(crate) async fn refuse_inside(core: &Core, folder: &Path) -> Result<()> {
    refuse(core, |known| folder.starts_with(known)).await
}

async fn refuse(core: &Core, is_in_the_way: impl Fn(&Path) -> bool) -> Result<()> {
    let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
    let (rows, _) = core.catalog.repositories().list(page).await.or_problem()?;
    for row in rows {
        let known = path_of(&row)?;
        if is_in_the_way(&known) {
            let details = format!("{} lies at {}", row.name, known.display());
            return Err(Problem::new(ProblemCode::Conflict, "the path is, holds or lies in a repository", details));
        }
    }
    Ok(())
}
