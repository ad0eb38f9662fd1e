//! What can go wrong in the catalog, sorted by who must act.
//!
//! What lives here: the error type and the one place where the driver's errors are told apart. What does not: HTTP
//! statuses (the hub maps [`Error::problem_code`]). Invariant: a driver's error that a repetition can cure never leaves
//! the crate as [`Error::Internal`].

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};
use sendense_types::{BackupId, DiskNumber, Problem, ProblemCode, TaskId, Timestamp, VmContextId, WhoActs};
use std::fmt;

/// The result of every method of the catalog.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noun {
    /// A restore point.
    Backup,
    /// A machine.
    Vm,
    /// A disk of a machine.
    Disk,
    /// A repository.
    Repository,
    /// A source.
    Source,
    /// A task.
    Task,
    /// An access token.
    Token,
    /// A hub.
    Hub,
    /// A journal entry.
    Artefact,
    /// A lease.
    Lease,
    /// A node.
    Node,
    /// A pairing code.
    NodeCode,
    /// A policy.
    Policy,
    /// A schedule.
    Schedule,
    /// An execution of a schedule.
    Execution,
}

impl fmt::Display for Noun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Vm => "VM",
            Self::Disk => "disk",
            Self::Repository => "repository",
            Self::Source => "source",
            Self::Task => "task",
            Self::Token => "token",
            Self::Hub => "hub",
            Self::Artefact => "artefact",
            Self::Lease => "lease",
            Self::Node => "node",
            Self::NodeCode => "pairing code",
            Self::Policy => "policy",
            Self::Schedule => "schedule",
            Self::Execution => "execution",
        })
    }
}

/// Something that exists or runs is in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The name is given already. The caller chooses another.
    #[error("a {what} named {name:?} exists already")]
    NameTaken {
        /// What bears the name.
        what: Noun,
        /// The name.
        name: String,
    },
    /// The id is given already. The caller chooses another.
    #[error("{what} {id} exists already")]
    Exists {
        /// What bears the id.
        what: Noun,
        /// The id.
        id: String,
    },
    /// The VM is being backed up. Time cures it.
    #[error("VM {vm_context_id} is being backed up by {backup_id}")]
    BackupActive {
        /// The VM.
        vm_context_id: VmContextId,
        /// Its pending or running backup.
        backup_id: BackupId,
        /// The task that makes it.
        task_id: Option<TaskId>,
    },
    /// Later points need what was to be deleted. The caller deletes them first, or with it.
    #[error("needed by {}", list(dependents))]
    HasDependents {
        /// The points that need it, directly or through others; at most [`DEPENDENTS_NAMED_MAX`].
        dependents: Vec<BackupId>,
    },
    /// Something refers to it. The caller removes that first.
    #[error("{what} {id} is in use: {by}")]
    InUse {
        /// What was to be removed.
        what: Noun,
        /// Its id.
        id: String,
        /// What refers to it, for people.
        by: String,
    },
    /// The state machine does not allow the step.
    #[error("{what} {id} is {state}")]
    WrongState {
        /// What has the state.
        what: Noun,
        /// Its id.
        id: String,
        /// The state that it is in.
        state: String,
    },
    /// Someone else took it over meanwhile: the loser must stop its work at once.
    #[error("{what} {id} belongs to someone else now")]
    LeaseLost {
        /// What was leased.
        what: Noun,
        /// Its id or name.
        id: String,
    },
    /// Someone else holds it. Time cures it.
    #[error("lease {name:?} is held by {owner} until {until}")]
    LeaseHeld {
        /// The lease's name.
        name: String,
        /// Who holds it.
        owner: String,
        /// Until when, unless renewed.
        until: Timestamp,
    },
    /// The disk number is bound to another disk, or the disk to another number.
    #[error("disk {disk_id} of VM {vm_context_id} is bound otherwise: {bound}")]
    DiskBound {
        /// The VM.
        vm_context_id: VmContextId,
        /// The number that was asked for.
        disk_id: DiskNumber,
        /// What the catalog knows, for people.
        bound: String,
    },
}

/// At most so many dependents are named in an error: the text must stay readable (32 ids are 1.3 KiB).
pub const DEPENDENTS_NAMED_MAX: usize = 32;

fn list(ids: &[BackupId]) -> String {
    let mut text = ids.iter().take(DEPENDENTS_NAMED_MAX).map(BackupId::as_str).collect::<Vec<_>>().join(", ");
    if ids.len() > DEPENDENTS_NAMED_MAX {
        text.push_str(&format!(" and {} more", ids.len() - DEPENDENTS_NAMED_MAX));
    }
    text
}

/// Which kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The thing does not exist: the caller acts, a repetition does not help.
    NotFound,
    /// Something is in the way: see [`Conflict`].
    Conflict,
    /// The value cannot be stored: the caller acts, a repetition does not help.
    Invalid,
    /// The database cannot be reached or is overloaded: a repetition helps.
    Unavailable,
    /// A fault of ours, or a damaged row: the operator acts.
    Internal,
}

/// Why the catalog did not do what was asked. A failed method has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thing does not exist.
    #[error("no {what} {id:?} in the catalog")]
    NotFound {
        /// What was looked for.
        what: Noun,
        /// By which id or name.
        id: String,
    },
    /// Something is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The value cannot be stored.
    #[error("{field} is not valid: {reason}")]
    Invalid {
        /// Which value.
        field: &'static str,
        /// Why not.
        reason: String,
    },
    /// The database cannot be reached. A commit whose answer was lost is reported so too: read before you repeat.
    #[error("database is not available")]
    Unavailable(#[source] Box<DbErr>),
    /// Others changed the same rows each time that the transaction was tried.
    #[error("database is too busy")]
    Busy(#[source] Box<DbErr>),
    /// The database refused a row whose key exists, and the method has no better word for it.
    #[error("database refused a row that exists")]
    Duplicate(#[source] Box<DbErr>),
    /// The database refused to part a row from one that refers to it, and the method has no better word for it.
    #[error("database refused a row without the one it refers to")]
    Orphan(#[source] Box<DbErr>),
    /// The database refused a statement.
    #[error("database refused a statement")]
    Internal(#[source] Box<DbErr>),
    /// A stored value cannot be read: someone changed the database by hand, or a newer version wrote it.
    #[error("stored {column} cannot be read: {reason}")]
    Unreadable {
        /// Which column.
        column: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The database cannot be used as it is set up.
    #[error("database cannot be used: {0}")]
    Setup(String),
}

impl Error {
    /// Which kind of failure it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Conflict(_) => Kind::Conflict,
            Self::Invalid { .. } => Kind::Invalid,
            Self::Unavailable(_) | Self::Busy(_) => Kind::Unavailable,
            Self::Duplicate(_) | Self::Orphan(_) => Kind::Conflict,
            Self::Internal(_) | Self::Unreadable { .. } | Self::Setup(_) => Kind::Internal,
        }
    }

    /// The stable code under which the API reports it.
    pub fn problem_code(&self) -> ProblemCode {
        match self {
            Self::NotFound { what, .. } => match what {
                Noun::Backup => ProblemCode::BackupNotFound,
                Noun::Vm => ProblemCode::VmNotFound,
                Noun::Disk => ProblemCode::DiskNotFound,
                Noun::Repository => ProblemCode::RepositoryNotFound,
                Noun::Source => ProblemCode::SourceNotFound,
                Noun::Task => ProblemCode::TaskNotFound,
                Noun::Node => ProblemCode::NodeNotFound,
                Noun::Policy => ProblemCode::PolicyNotFound,
                Noun::Schedule => ProblemCode::ScheduleNotFound,
                Noun::Execution => ProblemCode::ExecutionNotFound,
                Noun::Token | Noun::Hub | Noun::Artefact | Noun::Lease | Noun::NodeCode => ProblemCode::InvalidInput,
            },
            Self::Conflict(Conflict::BackupActive { .. }) => ProblemCode::BackupRunning,
            Self::Conflict(Conflict::HasDependents { .. }) => ProblemCode::HasDependents,
            Self::Conflict(_) | Self::Duplicate(_) | Self::Orphan(_) => ProblemCode::Conflict,
            Self::Invalid { .. } => ProblemCode::InvalidInput,
            Self::Unavailable(_) | Self::Busy(_) => ProblemCode::Busy,
            Self::Internal(_) | Self::Unreadable { .. } | Self::Setup(_) => ProblemCode::Internal,
        }
    }

    /// Who must act.
    pub fn who_acts(&self) -> WhoActs {
        self.problem_code().who_acts()
    }

    /// The failure as the API tells it: no SQL and no host names, which stay in the error's chain for the log.
    pub fn to_problem(&self) -> Problem {
        let details = match self.kind() {
            Kind::Unavailable => "the catalog's database does not answer; try again later",
            Kind::Internal => "the hub's log has the particulars",
            Kind::NotFound | Kind::Conflict | Kind::Invalid => "",
        };
        Problem::new(self.problem_code(), self.to_string(), details)
    }

    pub(crate) fn not_found(what: Noun, id: impl fmt::Display) -> Self {
        Self::NotFound { what, id: id.to_string() }
    }

    /// Turns a constraint's refusal into the word that the method has for it.
    pub(crate) fn or_conflict(self, conflict: impl FnOnce() -> Conflict) -> Self {
        match self {
            Self::Duplicate(_) | Self::Orphan(_) => Self::Conflict(conflict()),
            other => other,
        }
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let boxed = Box::new(error);
        if is_transient(&boxed) {
            return Self::Busy(boxed);
        }
        match boxed.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => Self::Duplicate(boxed),
            Some(SqlErr::ForeignKeyConstraintViolation(_)) => Self::Orphan(boxed),
            _ if is_connection(&boxed) => Self::Unavailable(boxed),
            _ => Self::Internal(boxed),
        }
    }
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

fn is_connection(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_))
        || matches!(
            sqlx_error(error),
            Some(
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::WorkerCrashed
            )
        )
        || matches!(sqlx_error(error), Some(sqlx::Error::Database(error)) if is_of_the_server(&**error))
}

/// True for what a database says that ends, begins, or has no room for another connection: come again later.
fn is_of_the_server(error: &dyn sqlx::error::DatabaseError) -> bool {
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        // 1040 too many connections, 1053 shutdown in progress, 1203 too many of this user, 1290 read-only, 1927 connection killed.
        return matches!(error.number(), 1040 | 1053 | 1203 | 1290 | 1927);
    }
    let code = error.code().unwrap_or_default();
    // PostgreSQL: classes 08 (connection), 53 (resources), 57P (operator intervention).
    error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some()
        && (code.starts_with("08") || code.starts_with("53") || code.starts_with("57P"))
}

/// True for the errors by which a database says "another transaction was in the way, begin again".
pub(crate) fn is_transient(error: &DbErr) -> bool {
    let Some(sqlx::Error::Database(error)) = sqlx_error(error) else { return false };
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        // 1020 record has changed since last read, 1205 lock wait timeout, 1213 deadlock.
        return matches!(error.number(), 1020 | 1205 | 1213);
    }
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        // Serialization failure, deadlock detected.
        return matches!(&*code, "40001" | "40P01");
    }
    // SQLite: BUSY, LOCKED, BUSY_RECOVERY, BUSY_SNAPSHOT, LOCKED_SHAREDCACHE.
    matches!(&*code, "5" | "6" | "261" | "517" | "262")
}
