//! Machines that were recovered in an instant: restore points served writable, until they are taken away.
//!
//! ```text
//! creating --> ready <--> (served, or not now and why) --> ending --> gone
//!     |          `------> committing --- published ---------^
//!     `-------- failed, or the hub died --------------------^
//! ```
//!
//! What lives here: the recoveries of this hub. [`record`] is what outlives it, [`disks`] serves them over the point [`below`], [`machine`] is what runs
//! on them, [`commit`] makes what they wrote the next point, [`migrate`] moves a
//! machine to storage of its own, [`life`] makes and ends them, [`mod@keep`] brings back what is not served and ends what must end. What does not: who may ask (`app`), the overlay and
//! NBD (`sendense_block`).
//!
//! Invariant: what is made is recorded before, and what is recorded holds its restore point: nobody deletes that, whether the
//! recovery is served just now or not. Whoever changes a recovery holds its `turn`.

mod below;
pub(crate) mod commit;
mod disks;
mod keep;
mod life;
mod machine;
pub(crate) mod migrate;
mod record;

pub(crate) use keep::keep;
pub(crate) use life::{create, discard};
pub(crate) use machine::Wanted;
pub(crate) use record::{Record, State};

use crate::config::RecoveryConfig;
use crate::fault::{Result, internal};
use disks::Served;
use parking_lot::Mutex;
use record::Book;
use sendense_types::{BackupId, Problem, ProblemCode, RecoveryId, SourceId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All recoveries of this hub.
pub(crate) struct Recoveries {
    book: Book,
    /// Where they write.
    dir: PathBuf,
    config: RecoveryConfig,
    all: Mutex<BTreeMap<RecoveryId, Arc<Recovery>>>,
}

/// One of them.
pub(crate) struct Recovery {
    pub id: RecoveryId,
    state: Mutex<Now>,
    /// Held by whoever makes, serves, ends or otherwise works on it.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The right to change a recovery.
type Turn = tokio::sync::OwnedMutexGuard<()>;

/// How long a call waits for its turn: serving and ending take a second, and are not waited for when they hang.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

struct Now {
    record: Record,
    served: Option<Arc<Served>>,
    /// Why it is not as it should be.
    trouble: Option<Problem>,
    /// When its machine is looked at next.
    look_at: Instant,
}

impl Recoveries {
    /// Those of the hub's earlier lives, none of them served yet. A folder of records that cannot be read is told, and the
    /// hub serves what else it has.
    pub fn new(config: RecoveryConfig, dir: Option<PathBuf>, records: PathBuf) -> Self {
        let dir = dir.unwrap_or_else(|| records.clone());
        let book = Book::new(records);
        let records = book.read_all().unwrap_or_else(|error| {
            tracing::error!(error = %error, "the records of recoveries cannot be read");
            Vec::new()
        });
        let all = records.into_iter().map(|record| (record.recovery_id.clone(), Arc::new(Recovery::new(record))));
        Self { book, dir, config, all: Mutex::new(all.collect()) }
    }

    /// Every one, oldest first.
    pub fn all(&self) -> Vec<Arc<Recovery>> {
        let mut all: Vec<_> = self.all.lock().values().cloned().collect();
        all.sort_by_key(|recovery| (recovery.state.lock().record.created_at, recovery.id.clone()));
        all
    }

    /// The one of this id or name.
    pub fn find(&self, id_or_name: &str) -> Result<Arc<Recovery>> {
        let is = |recovery: &&Arc<Recovery>| {
            recovery.id.as_str() == id_or_name || recovery.state.lock().record.name.as_str() == id_or_name
        };
        self.all.lock().values().find(is).cloned().ok_or_else(|| not_found(id_or_name))
    }

    /// The recovery, if there is one, of one of these points, which must not go before it.
    pub fn holding(&self, points: &[BackupId]) -> Option<(RecoveryId, BackupId)> {
        self.all.lock().values().find_map(|recovery| {
            let of = recovery.state.lock().record.backup_id.clone();
            points.contains(&of).then(|| (recovery.id.clone(), of))
        })
    }

    /// The recovery, if there is one, whose machine is on this source, which must not go before it.
    pub fn on_source(&self, source_id: &SourceId) -> Option<RecoveryId> {
        let is = |recovery: &&Arc<Recovery>| {
            recovery.state.lock().record.machine.as_ref().is_some_and(|machine| machine.source_id == *source_id)
        };
        self.all.lock().values().find(is).map(|recovery| recovery.id.clone())
    }

    /// Enters a new one and records it, unless its name is taken or there are too many. Nobody else gets its turn before.
    fn enter(&self, record: Record) -> Result<(Arc<Recovery>, Turn)> {
        let mut all = self.all.lock();
        if all.values().any(|recovery| recovery.state.lock().record.name == record.name) {
            let details =
                format!("a recovery named {} is there; discard it first, or choose another name", record.name);
            return Err(Problem::new(ProblemCode::Conflict, "the name is taken", details));
        }
        let max = self.config.recoveries_max;
        if all.len() >= max {
            let details = format!("{max} recoveries are there; discard one");
            return Err(Problem::new(ProblemCode::Busy, "no more recoveries are possible now", details));
        }
        self.book.write(&record).map_err(unwritten)?;
        let recovery = Arc::new(Recovery::new(record));
        let turn = recovery.turn.clone().try_lock_owned().expect("nobody else knows it yet");
        all.insert(recovery.id.clone(), recovery.clone());
        Ok((recovery, turn))
    }

    /// Records another state, and tells it only then.
    fn advance(&self, recovery: &Recovery, change: impl FnOnce(&mut Record)) -> Result<Record> {
        let mut record = recovery.record();
        change(&mut record);
        self.book.write(&record).map_err(unwritten)?;
        recovery.state.lock().record = record.clone();
        Ok(record)
    }

    /// Ends one of which nothing is left.
    fn forget(&self, recovery: &Recovery) -> Result<()> {
        self.book.remove(&recovery.id).map_err(unwritten)?;
        self.all.lock().remove(&recovery.id);
        Ok(())
    }

    /// Makes what was written durable and serves nothing any more; all of it comes back at the next start. Blocks.
    pub fn shutdown(&self) {
        for recovery in self.all() {
            let served = recovery.state.lock().served.take();
            if let Some(served) = served {
                disks::close(&recovery.id, served);
            }
        }
    }
}

impl Recovery {
    fn new(record: Record) -> Self {
        let id = record.recovery_id.clone();
        Self {
            id,
            state: Mutex::new(Now { record, served: None, trouble: None, look_at: Instant::now() }),
            turn: Arc::default(),
        }
    }

    /// What is recorded of it.
    pub fn record(&self) -> Record {
        self.state.lock().record.clone()
    }

    /// What serves its disks, if they are served, or why they are not.
    pub fn served(&self) -> (Option<Arc<Served>>, Option<Problem>) {
        let now = self.state.lock();
        (now.served.clone(), now.trouble.clone())
    }

    /// The right to change it; a conflict when somebody else takes long over it.
    async fn turn(&self) -> Result<Turn> {
        tokio::time::timeout(TURN_TIMEOUT, self.turn.clone().lock_owned()).await.map_err(|_| {
            let details = format!("{} is being worked on", self.id);
            Problem::new(ProblemCode::Conflict, "the recovery is at work", details)
        })
    }

    /// The right to change it, if nobody has it now.
    fn free_turn(&self) -> Option<Turn> {
        self.turn.clone().try_lock_owned().ok()
    }
}

fn not_found(id_or_name: &str) -> Problem {
    Problem::new(ProblemCode::RecoveryNotFound, "recovery not found", format!("no recovery {id_or_name:?}"))
}

fn unwritten(error: std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            Problem::new(ProblemCode::NoSpace, "no space for the record of a recovery", error.to_string())
        }
        _ => internal("the record of a recovery cannot be written", error.to_string()),
    }
}
