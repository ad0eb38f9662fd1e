//! Executions: one occurrence of a schedule, or one that a person asked for, with each machine's outcome.
//!
//! ```text
//! running -> completed | failed | cancelled          skipped (from the start)
//!   each machine: waiting -> running -> completed | failed | skipped
//!                    ^---------'  to be tried again
//! ```
//!
//! What lives here: whole transactions; those over the machines of one in `vms`. What does not: what is backed up, and when it is
//! tried again. Invariants: an occurrence has one row, made in the transaction that notes it as handled; only the hub that holds an execution changes it,
//! and one whose hub is dead is taken over; a machine begins to run in the transaction that makes its backup, so that neither a
//! crash nor a hub that was only stopped for a while begins one twice.

mod vms;

pub use vms::Begun;

use crate::error::{Conflict, Error, Noun, Result};
use crate::hub::HubLease;
use crate::tx::Tx;
use crate::{Catalog, Page, entity, schedule, value};
use sea_orm::sea_query::{Expr, Order, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect,
};
use sendense_types::{
    BackupId, ExecutionId, ExecutionState, Name, PolicyId, ScheduleId, Timestamp, VmContextId, VmOutcome,
};
use vms::{NAMED_AT_ONCE, REASON_BYTES_MAX, in_turn};

/// Rows in one statement: each has nine values, and SQLite binds 32,766 at the most.
const ROWS_AT_ONCE: usize = 500;

/// An execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// Who.
    pub execution_id: ExecutionId,
    /// Of which schedule.
    pub schedule_id: ScheduleId,
    /// Which policy it carried out.
    pub policy_id: PolicyId,
    /// The occurrence; for one that a person asked for, when he did.
    pub due: Timestamp,
    /// Where it stands.
    pub state: ExecutionState,
    /// Why it was skipped, or what a person should know of how it began or ended.
    pub reason: Option<String>,
    /// Who asked, when it was no schedule.
    pub triggered_by: Option<String>,
    /// The hub that carries it out, and which start of it.
    pub hub: HubLease,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A machine of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionVm {
    /// Which machine.
    pub vm_context_id: VmContextId,
    /// Its name then.
    pub vm_name: Name,
    /// Where it stands.
    pub outcome: VmOutcome,
    /// The backup that runs, or that ran last.
    pub backup_id: Option<BackupId>,
    /// How often it was begun.
    pub attempts: u32,
    /// It is not tried again before.
    pub not_before: Option<Timestamp>,
    /// Why it failed or was left out.
    pub reason: Option<String>,
}

/// An execution to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewExecution {
    /// Who.
    pub execution_id: ExecutionId,
    /// Of which schedule.
    pub schedule_id: ScheduleId,
    /// Which policy.
    pub policy_id: PolicyId,
    /// The occurrence.
    pub due: Timestamp,
    /// Who asked; `None` for an occurrence, which is then noted as handled.
    pub triggered_by: Option<String>,
    /// What a person should know of how it began.
    pub reason: Option<String>,
    /// Its machines, in the order of their turns.
    pub vms: Vec<(VmContextId, Name)>,
}

/// Executions.
#[derive(Debug, Clone, Copy)]
pub struct Executions<'a>(pub(crate) &'a Catalog);

impl Executions<'_> {
    /// Begins one.
    ///
    /// # Errors
    /// [`Conflict::WrongState`] when the occurrence was handled, the schedule is disabled, or an execution of it runs.
    pub async fn begin(&self, new: &NewExecution, hub: &HubLease, now: Timestamp) -> Result<Execution> {
        self.0
            .write(|tx| async move {
                match &new.triggered_by {
                    None => schedule::handle(&tx, &new.schedule_id, new.due).await?,
                    Some(_) => drop(schedule::lock(&tx, &new.schedule_id).await?),
                }
                if let Some(running) = running_in(&tx, &new.schedule_id).await? {
                    let state = "running".to_owned();
                    return Err(Conflict::WrongState { what: Noun::Execution, id: running.execution_id, state }.into());
                }
                let row = insert(&tx, new, ExecutionState::Running, hub, now).await?;
                let vms = new.vms.iter().zip(0..).map(|((vm, name), turn)| waiting(&new.execution_id, vm, name, turn));
                let vms: Vec<_> = vms.collect();
                for part in vms.chunks(ROWS_AT_ONCE) {
                    let part = part.iter().cloned().map(IntoActiveModel::into_active_model);
                    entity::execution_vms::Entity::insert_many(part).exec_without_returning(&*tx).await?;
                }
                row.try_into()
            })
            .await
    }

    /// Notes that an occurrence is not run.
    ///
    /// # Errors
    /// [`Conflict::WrongState`] when it was handled, or the schedule is disabled.
    pub async fn skip(&self, new: &NewExecution, hub: &HubLease, now: Timestamp) -> Result<Execution> {
        self.0
            .write(|tx| async move {
                schedule::handle(&tx, &new.schedule_id, new.due).await?;
                insert(&tx, new, ExecutionState::Skipped, hub, now).await?.try_into()
            })
            .await
    }

    /// One, with its machines in the order of their turns; of executions from before there was one, by name.
    pub async fn get(&self, execution_id: &ExecutionId) -> Result<(Execution, Vec<ExecutionVm>)> {
        use entity::execution_vms::{Column, Entity};
        let row = entity::executions::Entity::find_by_id(execution_id.as_str()).one(self.0.pool()).await?;
        let row = row.ok_or_else(|| Error::not_found(Noun::Execution, execution_id))?;
        let vms = Entity::find().filter(Column::ExecutionId.eq(execution_id.as_str()));
        let vms = in_turn(vms).all(self.0.pool()).await?;
        Ok((row.try_into()?, vms.into_iter().map(TryInto::try_into).collect::<Result<_>>()?))
    }

    /// Those of a schedule, newest first, with their number.
    pub async fn list(&self, schedule_id: &ScheduleId, page: Page) -> Result<(Vec<Execution>, u64)> {
        use entity::executions::{Column, Entity};
        let of_schedule = || Entity::find().filter(Column::ScheduleId.eq(schedule_id.as_str()));
        let rows = of_schedule()
            .order_by_desc(Column::StartedAt)
            .order_by_desc(Column::ExecutionId)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total = value::count(of_schedule(), Column::ExecutionId, self.0.pool()).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_>>()?, total))
    }

    /// Of each enabled schedule the newest that was carried out and has ended.
    pub async fn last_ended(&self) -> Result<Vec<Execution>> {
        use entity::executions::{Column, Entity};
        use entity::schedules;
        let open = [ExecutionState::Running, ExecutionState::Skipped].map(|state| state.as_str());
        let its = Expr::col((Entity, Column::ScheduleId)).equals((schedules::Entity, schedules::Column::ScheduleId));
        let mut newest = Query::select();
        newest
            .column((Entity, Column::ExecutionId))
            .from(Entity)
            .and_where(its)
            .and_where(Expr::col((Entity, Column::State)).is_not_in(open))
            .order_by((Entity, Column::StartedAt), Order::Desc)
            .order_by((Entity, Column::ExecutionId), Order::Desc)
            .limit(1);
        let ids: Vec<Option<String>> = schedules::Entity::find()
            .select_only()
            .expr_as(Expr::SubQuery(None, Box::new(newest.into())), "newest")
            .filter(schedules::Column::Enabled.eq(true))
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let ids: Vec<String> = ids.into_iter().flatten().collect();
        let mut found = Vec::new();
        for part in ids.chunks(NAMED_AT_ONCE) {
            let rows = Entity::find().filter(Column::ExecutionId.is_in(part.iter().map(String::as_str)));
            found.extend(rows.all(self.0.pool()).await?);
        }
        found.into_iter().map(TryInto::try_into).collect()
    }

    /// Forgets executions of a schedule that ended before `before`, but never its newest `newest`, with what became of their machines:
    /// the oldest `most` of them; returns their number.
    pub async fn forget_ended(
        &self,
        schedule_id: &ScheduleId,
        before: Timestamp,
        newest: u64,
        most: u64,
    ) -> Result<u64> {
        use entity::executions::{Column, Entity};
        let of_schedule = || Entity::find().select_only().filter(Column::ScheduleId.eq(schedule_id.as_str()));
        let first_old: Option<(value::Ts, String)> = of_schedule()
            .columns([Column::StartedAt, Column::ExecutionId])
            .order_by_desc(Column::StartedAt)
            .order_by_desc(Column::ExecutionId)
            .offset(newest)
            .limit(1)
            .into_tuple()
            .one(self.0.pool())
            .await?;
        let Some((started, id)) = first_old else { return Ok(0) };
        let is_old = Condition::any()
            .add(Column::StartedAt.lt(started))
            .add(Condition::all().add(Column::StartedAt.eq(started)).add(Column::ExecutionId.lte(id)));
        let old: Vec<String> = of_schedule()
            .column(Column::ExecutionId)
            .filter(is_old)
            .filter(Column::State.ne(ExecutionState::Running.as_str()))
            .filter(Column::FinishedAt.lt(value::Ts::from(before)))
            .order_by_asc(Column::StartedAt)
            .order_by_asc(Column::ExecutionId)
            .limit(most)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        if old.is_empty() {
            return Ok(0);
        }
        self.0
            .write(|tx| {
                let old = &old;
                async move {
                    // Their machines go with them, as the references say.
                    let chosen = Column::ExecutionId.is_in(old.iter().map(String::as_str));
                    let ended = Column::State.ne(ExecutionState::Running.as_str());
                    Ok(Entity::delete_many().filter(chosen).filter(ended).exec(&*tx).await?.rows_affected)
                }
            })
            .await
    }

    /// Those that run, of all hubs.
    pub async fn running(&self) -> Result<Vec<Execution>> {
        use entity::executions::{Column, Entity};
        let rows = Entity::find()
            .filter(Column::State.eq(ExecutionState::Running.as_str()))
            .order_by_asc(Column::StartedAt)
            .order_by_asc(Column::ExecutionId)
            .all(self.0.pool())
            .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Takes a running execution whose hub is dead: its lease is out, or it has begun a later epoch.
    ///
    /// # Errors
    /// [`Conflict::LeaseHeld`] when it lives; [`Conflict::WrongState`] when the execution has ended.
    pub async fn take_over(&self, execution_id: &ExecutionId, hub: &HubLease, now: Timestamp) -> Result<Execution> {
        use entity::executions::ActiveModel;
        self.0
            .write(|tx| async move {
                let mut row = lock(&tx, execution_id).await?;
                if row.state != ExecutionState::Running.as_str() {
                    let id = row.execution_id.clone();
                    return Err(Conflict::WrongState { what: Noun::Execution, id, state: row.state }.into());
                }
                let holder = entity::hubs::Entity::find_by_id(row.hub_id.as_str()).one(&*tx).await?;
                let lives = holder.filter(|hub| hub.epoch == row.hub_epoch && Timestamp::from(hub.lease_until) >= now);
                if let Some(holder) = lives {
                    let (owner, until) = (holder.hub_id, holder.lease_until.into());
                    return Err(Conflict::LeaseHeld { name: row.execution_id, owner, until }.into());
                }
                row.hub_id = hub.hub_id.as_str().to_owned();
                row.hub_epoch = hub.epoch;
                let set = ActiveModel {
                    hub_id: Set(row.hub_id.clone()),
                    hub_epoch: Set(row.hub_epoch),
                    ..Default::default()
                };
                update(&tx, execution_id, set).await?;
                row.try_into()
            })
            .await
    }

    /// Ends one.
    ///
    /// # Errors
    /// As [`Executions::set_vms`]; [`Error::Invalid`] for a state that is no end.
    pub async fn finish(
        &self,
        execution_id: &ExecutionId,
        hub: &HubLease,
        state: ExecutionState,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<()> {
        use entity::executions::ActiveModel;
        if !state.is_final() {
            return Err(Error::Invalid { field: "state", reason: format!("{state} is no end") });
        }
        self.0
            .write(|tx| async move {
                let row = held(&tx, execution_id, hub).await?;
                let reason = reason.map(|text| value::trim_text(text, REASON_BYTES_MAX)).or(row.reason);
                let set = ActiveModel {
                    state: Set(state.as_str().to_owned()),
                    reason: Set(reason),
                    finished_at: Set(Some(now.into())),
                    ..Default::default()
                };
                update(&tx, execution_id, set).await
            })
            .await
    }
}

async fn lock(tx: &Tx, execution_id: &ExecutionId) -> Result<entity::executions::Model> {
    let row = entity::executions::Entity::find_by_id(execution_id.as_str()).lock_exclusive().one(&**tx).await?;
    row.ok_or_else(|| Error::not_found(Noun::Execution, execution_id))
}

/// The row of a running execution that this hub carries out, locked.
async fn held(tx: &Tx, execution_id: &ExecutionId, hub: &HubLease) -> Result<entity::executions::Model> {
    let row = lock(tx, execution_id).await?;
    let id = row.execution_id.clone();
    if row.hub_id != hub.hub_id.as_str() || row.hub_epoch != hub.epoch {
        return Err(Conflict::LeaseLost { what: Noun::Execution, id }.into());
    }
    if row.state != ExecutionState::Running.as_str() {
        return Err(Conflict::WrongState { what: Noun::Execution, id, state: row.state }.into());
    }
    Ok(row)
}

async fn running_in(tx: &Tx, schedule_id: &ScheduleId) -> Result<Option<entity::executions::Model>> {
    use entity::executions::{Column, Entity};
    let running = Entity::find()
        .filter(Column::ScheduleId.eq(schedule_id.as_str()))
        .filter(Column::State.eq(ExecutionState::Running.as_str()));
    Ok(running.one(&**tx).await?)
}

async fn update(tx: &Tx, execution_id: &ExecutionId, set: entity::executions::ActiveModel) -> Result<()> {
    use entity::executions::{Column, Entity};
    Entity::update_many().set(set).filter(Column::ExecutionId.eq(execution_id.as_str())).exec(&**tx).await?;
    Ok(())
}

async fn insert(
    tx: &Tx,
    new: &NewExecution,
    state: ExecutionState,
    hub: &HubLease,
    now: Timestamp,
) -> Result<entity::executions::Model> {
    let row = entity::executions::Model {
        execution_id: new.execution_id.as_str().to_owned(),
        schedule_id: new.schedule_id.as_str().to_owned(),
        policy_id: new.policy_id.as_str().to_owned(),
        due: new.due.into(),
        state: state.as_str().to_owned(),
        reason: new.reason.as_deref().map(|text| value::trim_text(text, REASON_BYTES_MAX)),
        triggered_by: new.triggered_by.as_deref().map(|by| value::trim_text(by, 255)),
        hub_id: hub.hub_id.as_str().to_owned(),
        hub_epoch: hub.epoch,
        started_at: now.into(),
        finished_at: state.is_final().then_some(now.into()),
    };
    let inserted =
        entity::executions::Entity::insert(row.clone().into_active_model()).exec_without_returning(&**tx).await;
    inserted.map_err(|error| {
        let id = new.execution_id.to_string();
        Error::from(error).or_conflict(|| Conflict::Exists { what: Noun::Execution, id })
    })?;
    Ok(row)
}

fn waiting(execution_id: &ExecutionId, vm: &VmContextId, name: &Name, turn: i32) -> entity::execution_vms::Model {
    entity::execution_vms::Model {
        execution_id: execution_id.as_str().to_owned(),
        vm_context_id: vm.as_str().to_owned(),
        vm_name: name.as_str().to_owned(),
        outcome: VmOutcome::Waiting.as_str().to_owned(),
        backup_id: None,
        attempts: 0,
        not_before: None,
        reason: None,
        turn,
    }
}

impl TryFrom<entity::executions::Model> for Execution {
    type Error = Error;
    fn try_from(row: entity::executions::Model) -> Result<Self> {
        Ok(Self {
            execution_id: value::read("execution_id", &row.execution_id)?,
            schedule_id: value::read("schedule_id", &row.schedule_id)?,
            policy_id: value::read("policy_id", &row.policy_id)?,
            due: row.due.into(),
            state: value::read("state", &row.state)?,
            reason: row.reason,
            triggered_by: row.triggered_by,
            hub: HubLease { hub_id: value::read("hub_id", &row.hub_id)?, epoch: row.hub_epoch },
            started_at: row.started_at.into(),
            finished_at: row.finished_at.map(Into::into),
        })
    }
}

impl TryFrom<entity::execution_vms::Model> for ExecutionVm {
    type Error = Error;
    fn try_from(row: entity::execution_vms::Model) -> Result<Self> {
        Ok(Self {
            vm_context_id: value::read("vm_context_id", &row.vm_context_id)?,
            vm_name: value::read("vm_name", &row.vm_name)?,
            outcome: value::read("outcome", &row.outcome)?,
            backup_id: value::read_opt("backup_id", row.backup_id.as_deref())?,
            attempts: value::read_u32("attempts", row.attempts)?,
            not_before: row.not_before.map(Into::into),
            reason: row.reason,
        })
    }
}
