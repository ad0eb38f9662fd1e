//! From a URL to a catalog that is ready: options per database, migrations under a lock, the start-up check.
//!
//! What lives here: connecting. What does not: the schema (see `migration`). Invariant: whoever holds a [`Catalog`] holds
//! one whose schema is current and whose foreign keys are enforced.

use crate::error::{Error, Result};
use crate::migration::Migrator;
use crate::{Catalog, Inner};
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, AssertSqlSafe, MySqlConnection, Row};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, SqliteTransactionMode, Statement,
    TransactionOptions, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Connections at once. Eight running backups report once a second and the API reads beside them; statements take about a
/// millisecond, so that more connections would only wait for each other. MariaDB's default allows 151, PostgreSQL's 100:
/// several hubs fit.
const CONNECTIONS_MAX: u32 = 12;

/// How long a caller waits for a free connection before it is told that the database is not available.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for a writer of another process (a second hub on the same file, a copy being made).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts to connect to a SQLite file that is locked, and the pause after the first; each further one is longer by as
/// much. A hub that makes its file is done in a fraction of a second.
const CONNECT_ATTEMPTS_MAX: u32 = 5;
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take to prove that it is in step. A statement that was abandoned is finished first; ours take
/// milliseconds, so that this is a thousand of them.
const IN_STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a transaction may stand between two statements. Ours are a few statements of a millisecond each; what stands for ten
/// seconds belongs to a hub that was stopped or cut off. Less than the 50 seconds that MariaDB lets others wait for a lock.
const IDLE_TRANSACTION_SECONDS: u32 = 10;

/// How long a hub waits for another one that migrates. A migration of a large catalog takes minutes at most.
const MIGRATION_LOCK_SECONDS: u32 = 300;

/// The number of the PostgreSQL advisory lock: "sendense" in ASCII.
const MIGRATION_LOCK_KEY: i64 = 0x7365_6e64_656e_7365;

impl Catalog {
    /// Opens the catalog at `url` and brings its schema up to date.
    ///
    /// `sqlite:///path/to/catalog.db?mode=rwc`, `mysql://user:password@host/database` or `mariadb://…` (with
    /// `?socket=/run/mysqld/mysqld.sock` over a unix socket), `postgres://user:password@host/database` (with
    /// `?host=/run/postgresql` over a unix socket).
    ///
    /// # Errors
    /// [`Error::Setup`] for a URL of another kind or a database that cannot be used safely (the operator acts),
    /// [`Error::Unavailable`] when it cannot be reached (a repetition helps).
    pub async fn open(url: &str) -> Result<Self> {
        let url = url.strip_prefix("mariadb:").map_or_else(|| url.to_owned(), |rest| format!("mysql:{rest}"));
        if !["sqlite:", "mysql:", "postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(Error::Setup("the URL must begin with sqlite:, mysql:, mariadb: or postgres:".to_owned()));
        }
        if url.starts_with("sqlite:") && url.contains(":memory:") {
            return Err(Error::Setup("an in-memory database is another one on each connection; use a file".to_owned()));
        }

        // One connection only: locks of MariaDB belong to a connection, and so do SQLite's pragmas.
        let single = connect(&url, 1).await?;
        let prepared = prepare(&single).await;
        single.close().await?;
        prepared?;

        let pool = connect(&url, CONNECTIONS_MAX).await?;
        let backend = pool.get_database_backend();
        if backend == DbBackend::Sqlite {
            require_foreign_keys(&pool).await?;
        }
        let writers = (backend == DbBackend::Sqlite).then(|| Semaphore::new(1));
        Ok(Self { inner: Arc::new(Inner { pool, backend, writers }) })
    }

    /// Closes all connections, waiting for the statements at work. Later calls fail with [`Error::Unavailable`].
    pub async fn close(&self) -> Result<()> {
        Ok(self.inner.pool.clone().close().await?)
    }

    /// Asks the database for a sign of life, for health reports.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.inner.pool.ping().await?)
    }

    /// The database's name and version, for health reports.
    pub async fn database_version(&self) -> Result<String> {
        let sql = match self.inner.backend {
            DbBackend::Sqlite => "SELECT 'SQLite ' || sqlite_version() AS version",
            _ => "SELECT version() AS version",
        };
        let row = self.inner.pool.query_one_raw(Statement::from_string(self.inner.backend, sql)).await?;
        let row = row.ok_or_else(|| Error::Setup("the database does not tell its version".to_owned()))?;
        Ok(row.try_get("", "version")?)
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.inner.backend == DbBackend::Sqlite
    }
}

/// Connects. Several hubs that make a SQLite file at the same moment collide over its journal's mode, and for that SQLite
/// does not wait by itself.
async fn connect(url: &str, connections_max: u32) -> Result<DatabaseConnection> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match Database::connect(options(url, connections_max)).await.map_err(Error::from) {
            Err(Error::Busy(_)) if attempt < CONNECT_ATTEMPTS_MAX => tokio::time::sleep(CONNECT_PAUSE * attempt).await,
            other => return other,
        }
    }
}

fn options(url: &str, connections_max: u32) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    options.max_connections(connections_max).min_connections(1).acquire_timeout(ACQUIRE_TIMEOUT).sqlx_logging(false);
    // With either of them the pool looks through its idle connections, as many as it counts. sqlx 0.9.0 counts one that is given back
    // after it can be taken (`pool/inner.rs`, `release`): for a moment there are usize::MAX, and a look that begins then goes round for
    // ever, on a core of its own, and cannot be stopped. A connection that the server has closed is noticed when it is taken.
    options.idle_timeout(None).max_lifetime(None);
    options.map_sqlx_sqlite_opts(|sqlite| {
        // WAL lets readers go on beside the writer. NORMAL can lose the last transactions in a power cut but never harms
        // the file; what is lost is adopted from the manifests again.
        sqlite
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
    });
    options.map_sqlx_mysql_pool_opts(|pool| {
        pool.after_release(|connection, _| Box::pin(async move { in_step(connection).await.map(|()| true) }))
            .after_connect(|connection, _| Box::pin(bound_idle_mysql(connection)))
    });
    options.map_sqlx_postgres_pool_opts(|pool| {
        pool.after_connect(|connection, _| {
            let set = format!("SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_SECONDS}s'");
            Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await.map(drop) })
        })
    });
    options
}

/// Lets the server end a transaction whose hub was stopped in the middle of it: its locks would keep every other hub waiting.
async fn bound_idle_mysql(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let set = format!("SET SESSION idle_transaction_timeout = {IDLE_TRANSACTION_SECONDS}");
    match sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await {
        // MySQL knows no such bound (error 1193): there another hub waits until the lock wait's own ends.
        Err(sqlx::Error::Database(error)) if error.message().contains("idle_transaction_timeout") => Ok(()),
        done => done.map(drop),
    }
}

/// Refuses a MariaDB connection whose answers do not belong to its questions any more.
///
/// A caller who goes away between question and answer (a web client that hangs up) leaves the answer in the connection, and
/// the driver does not keep count of all of them: the next user would wait for ever or be given another one's answer. So
/// each connection proves with a number of its own, before it goes back into the pool, that it is in step; one that is not
/// is cut off, upon which the server rolls back. The drivers of SQLite and PostgreSQL keep count.
async fn in_step(connection: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    static NEXT: AtomicI64 = AtomicI64::new(1 << 40);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let question = sqlx::raw_sql(AssertSqlSafe(format!("SELECT {number}"))).fetch_one(connection);
    let answer = tokio::time::timeout(IN_STEP_TIMEOUT, question).await;
    match answer {
        Ok(Ok(row)) if row.try_get::<i64, _>(0).is_ok_and(|answer| answer == number) => Ok(()),
        _ => Err(sqlx::Error::Protocol("the connection is out of step after an abandoned call".to_owned())),
    }
}

async fn prepare(single: &DatabaseConnection) -> Result<()> {
    migrate(single).await?;
    crate::counts::recount(single).await?;
    if single.get_database_backend() == DbBackend::Sqlite {
        // Lets SQLite count its tables anew where they have grown since; without it the planner guesses between indexes.
        // The other databases do so by themselves.
        single.execute_unprepared("PRAGMA optimize=0x10002").await?;
    }
    Ok(())
}

async fn migrate(single: &DatabaseConnection) -> Result<()> {
    match single.get_database_backend() {
        DbBackend::MySql => {
            let name = "CONCAT('sendense-', MD5(DATABASE()))";
            let got = format!("SELECT GET_LOCK({name}, {MIGRATION_LOCK_SECONDS}) AS got");
            let row = single.query_one_raw(Statement::from_string(DbBackend::MySql, got)).await?;
            let got: Option<i64> = row.map(|row| row.try_get("", "got")).transpose()?.flatten();
            if got != Some(1) {
                return Err(Error::Setup("another hub has been migrating the schema for too long".to_owned()));
            }
            // MariaDB commits each DDL statement by itself, so every step of a migration is repeatable instead. The lock
            // ends with the connection.
            Ok(Migrator::up(single, None).await?)
        }
        backend => {
            let mode = (backend == DbBackend::Sqlite).then_some(SqliteTransactionMode::Exclusive);
            let tx = single
                .begin_with_options(TransactionOptions { sqlite_transaction_mode: mode, ..Default::default() })
                .await?;
            if backend == DbBackend::Postgres {
                tx.execute_unprepared(&format!("SET LOCAL lock_timeout = '{MIGRATION_LOCK_SECONDS}s'")).await?;
                tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK_KEY})")).await?;
            }
            Migrator::up(&tx, None).await?;
            Ok(tx.commit().await?)
        }
    }
}

/// Refuses a pool on which SQLite would accept orphans.
async fn require_foreign_keys(pool: &DatabaseConnection) -> Result<()> {
    let row = pool.query_one_raw(Statement::from_string(DbBackend::Sqlite, "PRAGMA foreign_keys")).await?;
    match row.map(|row| row.try_get_by_index::<i32>(0)).transpose()? {
        Some(1) => Ok(()),
        _ => Err(Error::Setup("SQLite does not enforce foreign keys".to_owned())),
    }
}
