//! Making, taking, reporting and ending tasks.

use super::{NewTask, Task, Tasks};
use crate::error::{Conflict, Error, Noun, Result};
use crate::hub::HubLease;
use crate::tx::Tx;
use crate::{counts, entity, value};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QuerySelect};
use sendense_types::{Problem, TaskId, TaskKind, TaskState, Timestamp};
use serde_json::Value;

/// Longest error text kept, in bytes: a message with its chain. Longer ones are logs.
pub(crate) const ERROR_BYTES_MAX: usize = 4000;

/// The right to report on a task and to end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskClaim {
    /// Which task.
    pub task_id: TaskId,
    /// The version that the holder got.
    pub version: i64,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// Until when the next one is expected.
    pub lease_until: Timestamp,
    /// How far the work is; `None` leaves the last report.
    pub progress: Option<Value>,
    /// Bytes done so far.
    pub bytes_done: u64,
    /// Bytes in all; 0 when not known.
    pub bytes_total: u64,
}

impl Tasks<'_> {
    /// Makes a task, pending. One that makes a backup is made by [`crate::Backups::begin`].
    ///
    /// # Errors
    /// [`Conflict::Exists`].
    pub async fn create(&self, new: &NewTask, now: Timestamp) -> Result<Task> {
        self.0.write(|tx| async move { create_in(&tx, new, now).await }).await
    }

    /// Takes a pending task that was read with this version.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`] when another hub was faster, [`Conflict::WrongState`] when it is not pending.
    pub async fn claim(
        &self,
        seen: &TaskClaim,
        hub: &HubLease,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Task> {
        self.0
            .write(|tx| async move {
                let row = lock(&tx, &seen.task_id).await?;
                expect_version(&row, seen)?;
                expect_state(&row, TaskState::Pending)?;
                take(&tx, row, hub, lease_until, now).await
            })
            .await
    }

    /// Takes a running task whose holder is dead: its lease has run out, or its hub has begun a later epoch.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`] when another hub was faster, [`Conflict::LeaseHeld`] when the holder lives.
    pub async fn take_over(
        &self,
        seen: &TaskClaim,
        hub: &HubLease,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Task> {
        self.0
            .write(|tx| async move {
                let row = lock(&tx, &seen.task_id).await?;
                expect_version(&row, seen)?;
                expect_state(&row, TaskState::Running)?;
                let until = row.lease_until.map(Timestamp::from);
                if until.is_some_and(|until| until >= now) && holder_lives(&tx, &row).await? {
                    return Err(Conflict::LeaseHeld {
                        name: row.task_id,
                        owner: row.hub_id.unwrap_or_default(),
                        until: until.unwrap_or(now),
                    }
                    .into());
                }
                take(&tx, row, hub, lease_until, now).await
            })
            .await
    }

    /// Says that the work goes on; true when someone asked to stop it.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`]: the work must stop at once, without ending the task.
    pub async fn heartbeat(&self, claim: &TaskClaim, beat: &Heartbeat) -> Result<bool> {
        self.0.write(|tx| async move { heartbeat_in(&tx, claim, beat).await }).await
    }

    /// Ends a task with a result.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`], [`Conflict::WrongState`]. A task that makes a backup is ended by
    /// [`crate::Backups::finish_completed`] and its sisters.
    pub async fn finish_completed(&self, claim: &TaskClaim, result: Option<&Value>, now: Timestamp) -> Result<Task> {
        self.0.write(|tx| async move { finish_in(&tx, claim, TaskState::Completed, result, None, now).await }).await
    }

    /// Ends a task with a problem.
    ///
    /// # Errors
    /// As [`Tasks::finish_completed`].
    pub async fn finish_failed(&self, claim: &TaskClaim, problem: &Problem, now: Timestamp) -> Result<Task> {
        self.0.write(|tx| async move { finish_in(&tx, claim, TaskState::Failed, None, Some(problem), now).await }).await
    }

    /// Ends a task because a person asked for it.
    ///
    /// # Errors
    /// As [`Tasks::finish_completed`].
    pub async fn finish_cancelled(&self, claim: &TaskClaim, now: Timestamp) -> Result<Task> {
        self.0.write(|tx| async move { finish_in(&tx, claim, TaskState::Cancelled, None, None, now).await }).await
    }

    /// Asks to stop a task; its holder learns of it with the next report. Asking twice is asking once.
    ///
    /// # Errors
    /// [`Conflict::WrongState`] when it has ended.
    pub async fn request_cancel(&self, task_id: &TaskId) -> Result<Task> {
        self.0
            .write(|tx| async move {
                let mut row = lock(&tx, task_id).await?;
                let state: TaskState = value::read("state", &row.state)?;
                if state.is_final() {
                    return Err(wrong_state(&row));
                }
                row.cancel_requested = true;
                let set = entity::tasks::ActiveModel { cancel_requested: Set(true), ..Default::default() };
                update(&tx, task_id.as_str(), set).await?;
                row.try_into()
            })
            .await
    }
}

/// Asks to stop a task when it waits at this very moment, in a caller's transaction; false when it was taken or has ended.
pub(crate) async fn cancel_waiting_in(tx: &Tx, task_id: &TaskId) -> Result<bool> {
    let row = lock(tx, task_id).await?;
    if row.state != TaskState::Pending.as_str() {
        return Ok(false);
    }
    let set = entity::tasks::ActiveModel { cancel_requested: Set(true), ..Default::default() };
    update(tx, task_id.as_str(), set).await?;
    Ok(true)
}

/// Makes a pending task in a caller's transaction.
async fn create_in(tx: &Tx, new: &NewTask, now: Timestamp) -> Result<Task> {
    let task = insert_in(tx, new, now).await?;
    count_new_in(tx, new.kind, 1).await?;
    Ok(task)
}

/// Counts pending tasks that were inserted in a caller's transaction. The last step of it.
pub(crate) async fn count_new_in(tx: &Tx, kind: TaskKind, count: i64) -> Result<()> {
    counts::tasks_came(tx, kind.as_str(), TaskState::Pending.as_str(), count).await
}

/// Inserts a pending task in a caller's transaction, which counts it at its end.
pub(crate) async fn insert_in(tx: &Tx, new: &NewTask, now: Timestamp) -> Result<Task> {
    let row = entity::tasks::Model {
        task_id: new.task_id.as_str().to_owned(),
        kind: new.kind.as_str().to_owned(),
        state: TaskState::Pending.as_str().to_owned(),
        subject_kind: new.subject.kind().to_owned(),
        subject_id: new.subject.id().map(str::to_owned),
        request: new.request.clone(),
        result: None,
        hub_id: None,
        hub_epoch: None,
        lease_until: None,
        version: 1,
        attempts: 0,
        cancel_requested: false,
        progress: None,
        bytes_done: 0,
        bytes_total: 0,
        error_code: None,
        error_message: None,
        log_next: 0,
        created_by: new.created_by.as_deref().map(|by| value::trim_text(by, 255)),
        created_at: now.into(),
        started_at: None,
        finished_at: None,
    };
    entity::tasks::Entity::insert(row.clone().into_active_model()).exec_without_returning(&**tx).await.map_err(
        |error| Error::from(error).or_conflict(|| Conflict::Exists { what: Noun::Task, id: new.task_id.to_string() }),
    )?;
    row.try_into()
}

/// Locks the claimed task's row in a caller's transaction: the first step of whatever its holder writes.
pub(crate) async fn require_claim(tx: &Tx, claim: &TaskClaim) -> Result<entity::tasks::Model> {
    let row = lock(tx, &claim.task_id).await?;
    expect_version(&row, claim)?;
    expect_state(&row, TaskState::Running)?;
    Ok(row)
}

/// Records a sign of life in a caller's transaction; true when someone asked to stop.
pub(crate) async fn heartbeat_in(tx: &Tx, claim: &TaskClaim, beat: &Heartbeat) -> Result<bool> {
    let row = require_claim(tx, claim).await?;
    let mut set = entity::tasks::ActiveModel {
        lease_until: Set(Some(beat.lease_until.into())),
        bytes_done: Set(value::store_u64("bytes_done", beat.bytes_done)?),
        bytes_total: Set(value::store_u64("bytes_total", beat.bytes_total)?),
        ..Default::default()
    };
    if let Some(progress) = &beat.progress {
        set.progress = Set(Some(progress.clone()));
    }
    update(tx, claim.task_id.as_str(), set).await?;
    Ok(row.cancel_requested)
}

/// Ends a task in a caller's transaction.
pub(crate) async fn finish_in(
    tx: &Tx,
    claim: &TaskClaim,
    end: TaskState,
    result: Option<&Value>,
    problem: Option<&Problem>,
    now: Timestamp,
) -> Result<Task> {
    let mut row = require_claim(tx, claim).await?;
    let state: TaskState = value::read("state", &row.state)?;
    if !state.may_become(end) {
        return Err(wrong_state(&row));
    }
    let before = std::mem::replace(&mut row.state, end.as_str().to_owned());
    row.version = row.version.saturating_add(1);
    row.lease_until = None;
    row.result = result.cloned();
    row.error_code = problem.map(|problem| problem.code.as_str().to_owned());
    row.error_message = problem.map(error_text);
    row.finished_at = Some(now.into());
    let set = entity::tasks::ActiveModel {
        state: Set(row.state.clone()),
        version: Set(row.version),
        lease_until: Set(None),
        result: Set(row.result.clone()),
        error_code: Set(row.error_code.clone()),
        error_message: Set(row.error_message.clone()),
        finished_at: Set(row.finished_at),
        ..Default::default()
    };
    update(tx, claim.task_id.as_str(), set).await?;
    counts::task_became(tx, &row.kind, &before, &row.state).await?;
    row.try_into()
}

/// A problem in one text: the message, and the particulars where there are some.
pub(crate) fn error_text(problem: &Problem) -> String {
    let text = match problem.details.as_str() {
        "" => problem.message.clone(),
        details => format!("{}: {details}", problem.message),
    };
    value::trim_text(&text, ERROR_BYTES_MAX)
}

async fn take(
    tx: &Tx,
    mut row: entity::tasks::Model,
    hub: &HubLease,
    lease_until: Timestamp,
    now: Timestamp,
) -> Result<Task> {
    use entity::tasks::Column;
    let seen_version = row.version;
    let before = std::mem::replace(&mut row.state, TaskState::Running.as_str().to_owned());
    row.version = seen_version.saturating_add(1);
    row.attempts = row.attempts.saturating_add(1);
    row.hub_id = Some(hub.hub_id.as_str().to_owned());
    row.hub_epoch = Some(hub.epoch);
    row.lease_until = Some(lease_until.into());
    row.started_at = row.started_at.or(Some(now.into()));
    let set = entity::tasks::ActiveModel {
        state: Set(row.state.clone()),
        version: Set(row.version),
        attempts: Set(row.attempts),
        hub_id: Set(row.hub_id.clone()),
        hub_epoch: Set(row.hub_epoch),
        lease_until: Set(row.lease_until),
        started_at: Set(row.started_at),
        ..Default::default()
    };
    // The row is locked, so the version cannot have moved; the condition keeps that true if the lock is ever lost.
    let done = entity::tasks::Entity::update_many()
        .set(set)
        .filter(Column::TaskId.eq(&row.task_id))
        .filter(Expr::col(Column::Version).eq(seen_version))
        .exec(&**tx)
        .await?;
    if done.rows_affected != 1 {
        return Err(Conflict::LeaseLost { what: Noun::Task, id: row.task_id }.into());
    }
    counts::task_became(tx, &row.kind, &before, &row.state).await?;
    row.try_into()
}

async fn holder_lives(tx: &Tx, row: &entity::tasks::Model) -> Result<bool> {
    let Some(hub_id) = &row.hub_id else { return Ok(false) };
    let hub = entity::hubs::Entity::find_by_id(hub_id.as_str()).one(&**tx).await?;
    Ok(hub.is_some_and(|hub| Some(hub.epoch) == row.hub_epoch))
}

async fn lock(tx: &Tx, task_id: &TaskId) -> Result<entity::tasks::Model> {
    let row = entity::tasks::Entity::find_by_id(task_id.as_str()).lock_exclusive().one(&**tx).await?;
    row.ok_or_else(|| Error::not_found(Noun::Task, task_id))
}

async fn update(tx: &Tx, task_id: &str, set: entity::tasks::ActiveModel) -> Result<()> {
    entity::tasks::Entity::update_many().set(set).filter(entity::tasks::Column::TaskId.eq(task_id)).exec(&**tx).await?;
    Ok(())
}

fn expect_version(row: &entity::tasks::Model, claim: &TaskClaim) -> Result<()> {
    if row.version == claim.version {
        return Ok(());
    }
    Err(Conflict::LeaseLost { what: Noun::Task, id: row.task_id.clone() }.into())
}

fn expect_state(row: &entity::tasks::Model, wanted: TaskState) -> Result<()> {
    if row.state == wanted.as_str() { Ok(()) } else { Err(wrong_state(row)) }
}

fn wrong_state(row: &entity::tasks::Model) -> Error {
    Conflict::WrongState { what: Noun::Task, id: row.task_id.clone(), state: row.state.clone() }.into()
}
