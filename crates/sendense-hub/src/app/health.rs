//! How the hub is.

use super::{App, Caller};
use crate::fault::Result;
use crate::metrics;
use sendense_api::{CheckStatus, DebugHealth, Health, HealthCheck, Role, TaskCounts};
use sendense_catalog::{Page, TaskFilter};
use sendense_types::{RepositoryMode, TaskState};
use std::time::{Duration, Instant};

/// How long one part may take to answer before it counts as failed: a person waits for the page.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Repositories that are looked at; more than anybody has on one hub.
const REPOSITORIES_MAX: u64 = 100;

/// Left-over things that are named; a page of text.
const LEFT_OVER_TOLD_MAX: usize = 20;

impl App {
    /// Whether the hub serves: for everybody, so it says little.
    pub async fn health(&self) -> Health {
        let catalog = self.check_catalog().await;
        Health { status: catalog.status, version: version(), uptime_seconds: self.uptime_seconds() }
    }

    /// How each part is.
    pub async fn debug_health(&self, caller: &Caller) -> Result<DebugHealth> {
        caller.require(Role::Viewer)?;
        let mut checks = vec![self.check_catalog().await];
        checks.extend(self.check_repositories().await);
        checks.push(self.check_journal().await);
        checks.push(self.check_left_over().await);
        checks.push(self.check_left_behind().await);
        checks.push(self.check_hooks().await);
        checks.push(self.check_vanished().await);
        checks.push(self.check_proofs().await);
        Ok(DebugHealth {
            status: checks.iter().map(|check| check.status).max().unwrap_or(CheckStatus::Ok),
            version: version(),
            hub_id: self.core.lease.hub_id.to_string(),
            deployment_id: self.core.deployment_id.to_string(),
            started_at: self.core.started_at,
            uptime_seconds: self.uptime_seconds(),
            memory_rss_bytes: memory_rss_bytes(),
            tasks: self.task_counts().await,
            checks,
        })
    }

    /// What Prometheus reads.
    pub async fn metrics_text(&self) -> String {
        metrics::set_tasks(&self.task_counts().await);
        metrics::set_merges_due(self.core.merges_due.hindered());
        for (name, storage) in self.core.repositories.storages() {
            metrics::set_storage(&name, &storage);
        }
        if let Some(bytes) = memory_rss_bytes() {
            metrics::set_memory(bytes);
        }
        metrics::render()
    }

    fn uptime_seconds(&self) -> u64 {
        self.core.now().seconds_since(self.core.started_at).max(0.0) as u64
    }

    async fn task_counts(&self) -> TaskCounts {
        let count = async |state| {
            let filter = TaskFilter { state: Some(state), ..Default::default() };
            let listed = self.core.catalog.tasks().list(&filter, Page { limit: 1, offset: 0 }).await;
            listed.map_or(0, |(_, total)| total)
        };
        TaskCounts {
            running: self.core.running.count() as u64,
            pending: count(TaskState::Pending).await,
            running_max: self.core.limits.running_per_hub as u64,
            pending_max: self.core.limits.pending_max as u64,
        }
    }

    async fn check_catalog(&self) -> HealthCheck {
        check("catalog", async {
            self.core.catalog.ping().await.map_err(|error| (CheckStatus::Failed, error.to_string()))?;
            let version = self.core.catalog.database_version().await;
            version.map_err(|error| (CheckStatus::Failed, error.to_string()))
        })
        .await
    }

    async fn check_repositories(&self) -> Vec<HealthCheck> {
        let page = Page { limit: REPOSITORIES_MAX, offset: 0 };
        let Ok((rows, _)) = self.core.catalog.repositories().list(page).await else { return Vec::new() };
        let checks = rows.into_iter().map(|row| async move {
            let name = format!("repository {}", row.name);
            check(&name, async {
                // Somebody wanted it so.
                if row.maintenance.mode == RepositoryMode::Offline {
                    return Ok("offline for maintenance".to_owned());
                }
                let storage = self.core.repositories.storage(&self.core, &row).await;
                storage
                    .map(|storage| format!("{} of {} bytes free", storage.available_bytes, storage.total_bytes))
                    .map_err(|problem| (CheckStatus::Degraded, problem.message))
            })
            .await
        });
        futures::future::join_all(checks).await
    }

    async fn check_left_over(&self) -> HealthCheck {
        check("left over", async {
            let told = self.core.left_overs.told();
            match told.len() {
                0 => Ok("nothing stays on a source".to_owned()),
                _ => Err((CheckStatus::Degraded, some_of(&told))),
            }
        })
        .await
    }

    async fn check_left_behind(&self) -> HealthCheck {
        check("stuck work", async {
            match self.core.running.left_behind() {
                0 => Ok("none".to_owned()),
                count => Err((
                    CheckStatus::Degraded,
                    format!(
                        "{count} tasks that were ended have left work behind that hangs in the kernel: a device or a share does \
                         not answer (see the tasks' logs)"
                    ),
                )),
            }
        })
        .await
    }

    async fn check_vanished(&self) -> HealthCheck {
        check("vanished machines", async {
            let told = self.all_vanished().await.map_err(|problem| (CheckStatus::Failed, problem.message))?;
            match told.len() {
                0 => Ok("every machine that policies mean is found".to_owned()),
                _ => Err((CheckStatus::Degraded, some_of(&told))),
            }
        })
        .await
    }

    async fn check_proofs(&self) -> HealthCheck {
        check("overdue proofs", async {
            let told = self.overdue_proofs_told().await.map_err(|problem| (CheckStatus::Failed, problem.message))?;
            match told.len() {
                0 => Ok("every point was verified when it should have been".to_owned()),
                _ => Err((
                    CheckStatus::Degraded,
                    format!(
                        "points that nobody has verified when they were due, so that nothing proves them: {}",
                        some_of(&told)
                    ),
                )),
            }
        })
        .await
    }

    async fn check_hooks(&self) -> HealthCheck {
        check("hooks", async {
            let troubles = self.core.hooks.troubles();
            match troubles.len() {
                0 => Ok("none is owed that cannot be run".to_owned()),
                _ => Err((
                    CheckStatus::Degraded,
                    format!("what was stopped for a backup may still be: {}", some_of(&troubles)),
                )),
            }
        })
        .await
    }

    async fn check_journal(&self) -> HealthCheck {
        check("journal", async {
            let journal = self.core.journal.clone();
            let open = crate::core::blocking(move || journal.open_entries()).await;
            match open {
                Ok(Ok(entries)) => {
                    let left = crate::reconcile::left_over(&self.core, &entries).await;
                    if left.is_empty() {
                        return Ok(format!("{} entries of running tasks", entries.len()));
                    }
                    let detail = some_of(&left);
                    Err((
                        CheckStatus::Degraded,
                        format!("{} things of ended tasks could not be removed yet: {detail}", left.len()),
                    ))
                }
                Ok(Err(error)) => Err((CheckStatus::Failed, error.to_string())),
                Err(problem) => Err((CheckStatus::Failed, problem.message)),
            }
        })
        .await
    }
}

/// The first of them, and whether there are more.
fn some_of(told: &[String]) -> String {
    let more = if told.len() > LEFT_OVER_TOLD_MAX { "; …" } else { "" };
    told[..told.len().min(LEFT_OVER_TOLD_MAX)].join("; ") + more
}

async fn check(name: &str, looked: impl Future<Output = Result<String, (CheckStatus, String)>>) -> HealthCheck {
    let began = Instant::now();
    let found = tokio::time::timeout(CHECK_TIMEOUT, looked).await;
    let (status, detail) = match found {
        Ok(Ok(detail)) => (CheckStatus::Ok, detail),
        Ok(Err((status, detail))) => (status, detail),
        Err(_) => (CheckStatus::Failed, format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
    };
    HealthCheck { name: name.to_owned(), status, detail, duration_ms: began.elapsed().as_secs_f64() * 1e3 }
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Memory that this process holds, as Linux tells it.
fn memory_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}
