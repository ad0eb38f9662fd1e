//! The one way to write: a whole transaction, tried again when another one was in the way. And to read by several statements what
//! must agree.
//!
//! What lives here: begin, commit, repetition. What does not: any statement. Rules that make it right on every database:
//!
//! - SQLite begins IMMEDIATE: a transaction that reads first and writes later fails at once when another wrote between,
//!   and the busy timeout does not help it. Writers of one process queue up in order on a semaphore, because SQLite's own
//!   waiting is a poll that may starve one.
//! - MariaDB and PostgreSQL run READ COMMITTED, and a transaction that decides by what it reads **locks the row it decides
//!   by first** (`lock_exclusive`, which SQLite neither needs nor gets). Without the lock increments are lost silently.
//! - Rows are locked in one order: task, then VM (by id), then backup. Two transactions therefore seldom deadlock, and one
//!   that does is tried again.

use crate::Catalog;
use crate::error::{Error, Result};
use sea_orm::{
    AccessMode, DatabaseTransaction, DbErr, IsolationLevel, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A transaction at work. Shared with the body so that the body's future need not borrow it.
pub(crate) type Tx = Arc<DatabaseTransaction>;

/// A transaction is tried so often. The pauses add up to at most 1.6 s, which is longer than any transaction of ours
/// takes and far shorter than a lease.
const ATTEMPTS_MAX: u32 = 12;

/// The longest pause between two attempts.
const PAUSE_MS_MAX: u64 = 300;

impl Catalog {
    /// Runs `body` in one transaction and commits it, again from the start while the database says that others were in
    /// the way. The body must not have effects outside its transaction.
    ///
    /// Cancel safety: a dropped future leaves all of the transaction or nothing.
    pub(crate) async fn write<T, F, Fut>(&self, body: F) -> Result<T>
    where
        F: Fn(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let _turn = match &self.inner.writers {
            // The semaphore is never closed, so the only error cannot happen; without a turn SQLite still guards itself.
            Some(writers) => writers.acquire().await.ok(),
            None => None,
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_write(&body).await {
                Err(Error::Busy(source)) if attempt < ATTEMPTS_MAX => {
                    tracing::debug!(attempt, error = %source, "transaction collided");
                    tokio::time::sleep(pause(attempt)).await;
                }
                other => return other,
            }
        }
    }

    /// Runs `body`, which reads, on one state of the database: it sees nothing of what others commit meanwhile.
    pub(crate) async fn at_one_moment<T, F, Fut>(&self, body: F) -> Result<T>
    where
        F: FnOnce(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let options = TransactionOptions {
            isolation_level: (!self.is_sqlite()).then_some(IsolationLevel::RepeatableRead),
            access_mode: (!self.is_sqlite()).then_some(AccessMode::ReadOnly),
            sqlite_transaction_mode: self.is_sqlite().then_some(SqliteTransactionMode::Deferred),
        };
        let pool = self.inner.pool.clone();
        let begun = finished(tokio::spawn(async move { pool.begin_with_options(options).await })).await;
        let tx = Arc::new(begun?);
        let found = body(tx.clone()).await;
        let tx = Arc::into_inner(tx).expect("the body's future has ended and it held the only other handle");
        // It has written nothing: how it ends matters to nobody, only that it does.
        if let Err(error) = finished(tokio::spawn(tx.rollback())).await {
            tracing::debug!(%error, "end a transaction that has read");
        }
        found
    }

    async fn try_write<T, F, Fut>(&self, body: &F) -> Result<T>
    where
        F: Fn(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T>> + Send,
    {
        let options = TransactionOptions {
            isolation_level: (!self.is_sqlite()).then_some(IsolationLevel::ReadCommitted),
            access_mode: None,
            sqlite_transaction_mode: self.is_sqlite().then_some(SqliteTransactionMode::Immediate),
        };
        let pool = self.inner.pool.clone();
        let begun = finished(tokio::spawn(async move { pool.begin_with_options(options).await })).await;
        let tx = Arc::new(begun?);
        let result = body(tx.clone()).await;
        let tx = Arc::into_inner(tx).expect("the body's future has ended and it held the only other handle");
        match result {
            Ok(value) => {
                finished(tokio::spawn(tx.commit())).await?;
                Ok(value)
            }
            Err(error) => {
                // The first failure is the one to report; a rollback that fails closes the connection, which undoes too.
                if let Err(rollback) = tx.rollback().await {
                    tracing::debug!(error = %rollback, "roll back");
                }
                Err(error)
            }
        }
    }
}

/// The outcome of a step that runs in a task of its own, so that a caller who goes away in its middle does not interrupt it.
/// A `BEGIN` that is interrupted leaves a connection in the pool that is within a transaction nobody knows of.
async fn finished<T>(step: JoinHandle<Result<T, DbErr>>) -> Result<T, DbErr> {
    step.await.unwrap_or_else(|error| Err(DbErr::Custom(error.to_string())))
}

/// 2, 4, 8 … ms up to the maximum, each with up to half of random extra so that two losers do not meet again.
fn pause(attempt: u32) -> Duration {
    let base_ms = (1_u64 << attempt.min(10)).min(PAUSE_MS_MAX * 2 / 3);
    let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
    Duration::from_millis(base_ms + base_ms * random / 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded() {
        let total: Duration = (1..ATTEMPTS_MAX).map(pause).sum();
        assert!(total <= Duration::from_millis(1_600), "{total:?}");
    }
}
