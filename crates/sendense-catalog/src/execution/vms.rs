//! The machines of an execution: which run, whose turn has come, and what became of them.
//!
//! What lives here: whole transactions over some or all machines of one execution, in a number of statements that does not grow with
//! the machines that only wait. What does not: deciding. Invariants as told above: all of it under the lock of the execution, and only by the
//! hub that holds it.

use super::{ExecutionVm, Executions, held};
use crate::backup::{Backup, NewBackup, begin_all_in};
use crate::error::{Conflict, Error, Noun, Result};
use crate::hub::HubLease;
use crate::task::{Task, cancel_waiting_in};
use crate::tx::Tx;
use crate::value::{self, Ts};
use crate::{Page, entity};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, Select,
};
use sendense_types::{ExecutionId, Timestamp, VmOutcome};
use std::collections::BTreeMap;

/// Longest reason kept, in bytes; longer ones are logs.
pub(super) const REASON_BYTES_MAX: usize = 1000;

/// Machines, or executions, that one statement names: far below the 32,766 values that SQLite binds.
pub(super) const NAMED_AT_ONCE: usize = 1000;

/// A backup that was begun for a machine of an execution, with the machine as it is noted now.
pub type Begun = (Backup, Task, ExecutionVm);

impl Executions<'_> {
    /// The machines whose backups run, in the order of their turns.
    pub async fn vms_running(&self, execution_id: &ExecutionId) -> Result<Vec<ExecutionVm>> {
        let rows = in_turn(of(execution_id, VmOutcome::Running)).all(self.0.pool()).await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The machines that wait and may begin now, in the order of their turns; at most a page of them.
    pub async fn vms_due(&self, execution_id: &ExecutionId, now: Timestamp, limit: u64) -> Result<Vec<ExecutionVm>> {
        let due = of(execution_id, VmOutcome::Waiting).filter(is_due(now));
        let rows = in_turn(due).limit(Ord::min(limit, Page::LIMIT_MAX)).all(self.0.pool()).await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// How many machines there are of each outcome; none of those that no machine has.
    pub async fn outcomes(&self, execution_id: &ExecutionId) -> Result<BTreeMap<VmOutcome, u64>> {
        use entity::execution_vms::{Column, Entity};
        let rows: Vec<(String, i64)> = Entity::find()
            .select_only()
            .column(Column::Outcome)
            .column_as(Column::VmContextId.count(), "counted")
            .filter(Column::ExecutionId.eq(execution_id.as_str()))
            .group_by(Column::Outcome)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        rows.iter()
            .map(|(outcome, counted)| Ok((value::read("outcome", outcome)?, value::read_u64("counted", *counted)?)))
            .collect()
    }

    /// Begins the backups of machines that wait: for each the backup, its task and the machine's note at once. What stands in the way of one
    /// is told in its place and changes nothing; the others are begun all the same.
    ///
    /// # Errors
    /// As [`Executions::set_vms`]; [`Conflict::WrongState`] when one of them does not wait. Of one machine as
    /// [`Backups::begin`](crate::Backups::begin).
    pub async fn begin_backups(
        &self,
        execution_id: &ExecutionId,
        hub: &HubLease,
        new: &[NewBackup],
        now: Timestamp,
    ) -> Result<Vec<Result<Begun>>> {
        use entity::execution_vms::Column;
        self.0
            .write(|tx| async move {
                held(&tx, execution_id, hub).await?;
                // Under the lock of the execution: whoever changes a machine of it has that first.
                let ids = new.iter().map(|one| one.vm_context_id.as_str());
                let rows = machines(execution_id).filter(Column::VmContextId.is_in(ids)).all(&*tx).await?;
                let rows: BTreeMap<String, _> = rows.into_iter().map(|row| (row.vm_context_id.clone(), row)).collect();
                let vms = new.iter().map(|one| waiting(rows.get(one.vm_context_id.as_str()), one));
                let vms: Vec<ExecutionVm> = vms.collect::<Result<_>>()?;
                let (told, counted) = begin_all_in(&tx, new, now).await?;
                let mut begun = Vec::new();
                for (vm, told) in vms.into_iter().zip(told) {
                    let (backup, task) = match told {
                        Ok(told) => told,
                        Err(error) => {
                            begun.push(Err(error));
                            continue;
                        }
                    };
                    let vm = ExecutionVm {
                        outcome: VmOutcome::Running,
                        backup_id: Some(backup.backup_id.clone()),
                        attempts: vm.attempts.saturating_add(1),
                        not_before: None,
                        ..vm
                    };
                    write_vm(&tx, execution_id, &vm).await?;
                    begun.push(Ok((backup, task, vm)));
                }
                counted.write(&tx).await?;
                Ok(begun)
            })
            .await
    }

    /// Notes where machines stand, of all or of none.
    ///
    /// # Errors
    /// [`Conflict::LeaseLost`] when another hub carries the execution out; [`Conflict::WrongState`] when it has ended;
    /// [`Error::NotFound`] for a machine that is not of it.
    pub async fn set_vms(&self, execution_id: &ExecutionId, hub: &HubLease, vms: &[ExecutionVm]) -> Result<()> {
        self.0
            .write(|tx| async move {
                held(&tx, execution_id, hub).await?;
                for vm in vms {
                    write_vm(&tx, execution_id, vm).await?;
                }
                Ok(())
            })
            .await
    }

    /// Lets all machines wait until `until` that could begin now, and notes why; returns their number.
    ///
    /// # Errors
    /// As [`Executions::set_vms`].
    pub async fn put_off_due(
        &self,
        execution_id: &ExecutionId,
        hub: &HubLease,
        now: Timestamp,
        until: Timestamp,
        reason: &str,
    ) -> Result<u64> {
        use entity::execution_vms::{ActiveModel, Column, Entity};
        self.0
            .write(|tx| async move {
                held(&tx, execution_id, hub).await?;
                let set = ActiveModel {
                    not_before: Set(Some(until.into())),
                    reason: Set(Some(value::trim_text(reason, REASON_BYTES_MAX))),
                    ..Default::default()
                };
                let due = Entity::update_many().set(set).filter(Column::ExecutionId.eq(execution_id.as_str()));
                let due = due.filter(Column::Outcome.eq(VmOutcome::Waiting.as_str())).filter(is_due(now));
                Ok(due.exec(&*tx).await?.rows_affected)
            })
            .await
    }

    /// Leaves out all machines that wait, whatever for, and notes why: `why` makes that of what was noted of it before. Returns their
    /// number.
    ///
    /// # Errors
    /// As [`Executions::set_vms`].
    pub async fn leave_out_waiting(
        &self,
        execution_id: &ExecutionId,
        hub: &HubLease,
        why: &(dyn Fn(Option<&str>) -> String + Sync),
    ) -> Result<u64> {
        use entity::execution_vms::{ActiveModel, Column, Entity};
        self.0
            .write(|tx| async move {
                held(&tx, execution_id, hub).await?;
                let rows: Vec<(String, Option<String>)> = of(execution_id, VmOutcome::Waiting)
                    .select_only()
                    .columns([Column::VmContextId, Column::Reason])
                    .into_tuple()
                    .all(&*tx)
                    .await?;
                // Thousands have waited for their turn only: they are one group.
                let mut groups = BTreeMap::<Option<String>, Vec<String>>::new();
                for (vm, waited_for) in rows {
                    groups.entry(waited_for).or_default().push(vm);
                }
                let mut left_out = 0;
                for (waited_for, vms) in groups {
                    let reason = why(waited_for.as_deref());
                    let set = ActiveModel {
                        outcome: Set(VmOutcome::Skipped.as_str().to_owned()),
                        reason: Set(Some(value::trim_text(&reason, REASON_BYTES_MAX))),
                        ..Default::default()
                    };
                    for part in vms.chunks(NAMED_AT_ONCE) {
                        let these = Column::VmContextId.is_in(part.iter().map(String::as_str));
                        let these = Column::ExecutionId.eq(execution_id.as_str()).and(these);
                        let done = Entity::update_many().set(set.clone()).filter(these).exec(&*tx).await?;
                        left_out += done.rows_affected;
                    }
                }
                Ok(left_out)
            })
            .await
    }

    /// Asks to stop the backup of a machine that waits at this very moment, and notes why, both or neither. False when it has begun
    /// meanwhile, or has ended.
    ///
    /// # Errors
    /// As [`Executions::set_vms`].
    pub async fn cancel_waiting(&self, execution_id: &ExecutionId, hub: &HubLease, vm: &ExecutionVm) -> Result<bool> {
        let Some(backup_id) = &vm.backup_id else { return Ok(false) };
        self.0
            .write(|tx| async move {
                held(&tx, execution_id, hub).await?;
                let backup = entity::backups::Entity::find_by_id(backup_id.as_str()).one(&*tx).await?;
                let task_id = value::read_opt("task_id", backup.and_then(|row| row.task_id).as_deref())?;
                let Some(task_id) = task_id else { return Ok(false) };
                let was_waiting = cancel_waiting_in(&tx, &task_id).await?;
                if was_waiting {
                    write_vm(&tx, execution_id, vm).await?;
                }
                Ok(was_waiting)
            })
            .await
    }
}

fn machines(execution_id: &ExecutionId) -> Select<entity::execution_vms::Entity> {
    use entity::execution_vms::{Column, Entity};
    Entity::find().filter(Column::ExecutionId.eq(execution_id.as_str()))
}

fn of(execution_id: &ExecutionId, outcome: VmOutcome) -> Select<entity::execution_vms::Entity> {
    machines(execution_id).filter(entity::execution_vms::Column::Outcome.eq(outcome.as_str()))
}

fn is_due(now: Timestamp) -> Condition {
    use entity::execution_vms::Column;
    Condition::any().add(Column::NotBefore.is_null()).add(Column::NotBefore.lte(Ts::from(now)))
}

/// By turns; of executions from before there were any, by name.
pub(super) fn in_turn(vms: Select<entity::execution_vms::Entity>) -> Select<entity::execution_vms::Entity> {
    use entity::execution_vms::Column;
    vms.order_by_asc(Column::Turn).order_by_asc(Column::VmName).order_by_asc(Column::VmContextId)
}

/// The machine of a row, if it waits.
fn waiting(row: Option<&entity::execution_vms::Model>, new: &NewBackup) -> Result<ExecutionVm> {
    let row = row.cloned().ok_or_else(|| Error::not_found(Noun::Vm, &new.vm_context_id))?;
    let vm = ExecutionVm::try_from(row)?;
    if vm.outcome == VmOutcome::Waiting {
        return Ok(vm);
    }
    let (id, state) = (vm.vm_context_id.to_string(), vm.outcome.to_string());
    Err(Conflict::WrongState { what: Noun::Vm, id, state }.into())
}

async fn write_vm(tx: &Tx, execution_id: &ExecutionId, vm: &ExecutionVm) -> Result<()> {
    use entity::execution_vms::{ActiveModel, Column, Entity};
    let set = ActiveModel {
        outcome: Set(vm.outcome.as_str().to_owned()),
        backup_id: Set(vm.backup_id.as_ref().map(|id| id.as_str().to_owned())),
        attempts: Set(value::store_u32("attempts", vm.attempts)?),
        not_before: Set(vm.not_before.map(Into::into)),
        reason: Set(vm.reason.as_deref().map(|text| value::trim_text(text, REASON_BYTES_MAX))),
        ..Default::default()
    };
    let of_execution = Entity::update_many().set(set).filter(Column::ExecutionId.eq(execution_id.as_str()));
    let done = of_execution.filter(Column::VmContextId.eq(vm.vm_context_id.as_str())).exec(&**tx).await?;
    match done.rows_affected {
        1 => Ok(()),
        _ => Err(Error::not_found(Noun::Vm, &vm.vm_context_id)),
    }
}
