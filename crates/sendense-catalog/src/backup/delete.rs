//! Forgetting points. Their files went before.
//!
//! Invariant: no point is forgotten on which another one builds.

use super::{Backups, chain, life, row, unproved};
use crate::counts::BackupChanges;
use crate::entity;
use crate::error::{Conflict, Error, Result};
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::{ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder};
use sendense_types::{BackupId, BackupStatus, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Points that one transaction forgets: far below the variables that the databases allow in a statement (SQLite 32,766).
const DELETE_MAX: usize = 10_000;

impl Backups<'_> {
    /// Forgets points, also failed attempts, with their disks, and sets the chains anew; returns how many there were. Ids
    /// that are not known are passed over, so that a repetition does no harm.
    ///
    /// # Errors
    /// [`Conflict::HasDependents`] when a point that stays builds on one that would go; [`Conflict::BackupActive`] when one
    /// is pending or running. Then nothing was forgotten.
    pub async fn delete(&self, ids: &[BackupId], now: Timestamp) -> Result<u64> {
        if ids.len() > DELETE_MAX {
            return Err(Error::Invalid { field: "backup_ids", reason: format!("at most {DELETE_MAX} at once") });
        }
        let ids: &BTreeSet<&str> = &ids.iter().map(BackupId::as_str).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        self.0
            .write(|tx| async move {
                let mut changes = BackupChanges::default();
                let deleted = delete_in(&tx, ids, now.into(), &mut changes).await?;
                unproved::pass_on(&tx, &deleted).await?;
                changes.write(&tx).await?;
                Ok(deleted.len() as u64)
            })
            .await
    }
}

/// The same within a transaction, which writes the counters' changes when it is done. Returns what there was; what waited for a look
/// has passed that on to nobody.
pub(super) async fn delete_in(
    tx: &Tx,
    ids: &BTreeSet<&str>,
    now: Ts,
    changes: &mut BackupChanges,
) -> Result<Vec<entity::backups::Model>> {
    use entity::backups::{ActiveModel, Column, Entity};
    let chosen = || Column::BackupId.is_in(ids.iter().copied());
    let vms: BTreeSet<String> =
        Entity::find().filter(chosen()).all(&**tx).await?.into_iter().map(|row| row.vm_context_id).collect();
    // In the order of ids, so that two deletions cannot wait for each other.
    for vm in &vms {
        life::lock_vm(tx, &value::read("vm_context_id", vm)?).await?;
    }
    let rows = Entity::find().filter(chosen()).order_by_asc(Column::BackupId).all(&**tx).await?;
    for row in &rows {
        let status: BackupStatus = value::read("status", &row.status)?;
        if !status.is_final() {
            return Err(row::active_conflict(row)?.into());
        }
    }
    refuse_dependents(tx, ids).await?;
    settle_chains(tx, ids, now).await?;
    // What still names one of them is a failed attempt, or goes too.
    let set = entity::backup_disks::ActiveModel { parent_backup_id: Set(None), ..Default::default() };
    entity::backup_disks::Entity::update_many()
        .set(set)
        .filter(entity::backup_disks::Column::ParentBackupId.is_in(ids.iter().copied()))
        .exec(&**tx)
        .await?;
    let set = ActiveModel { parent_backup_id: Set(None), ..Default::default() };
    Entity::update_many().set(set).filter(Column::ParentBackupId.is_in(ids.iter().copied())).exec(&**tx).await?;
    Entity::delete_many().filter(chosen()).exec(&**tx).await?;
    rows.iter().for_each(|row| changes.remove(row));
    Ok(rows)
}

async fn refuse_dependents(tx: &Tx, ids: &BTreeSet<&str>) -> Result<()> {
    let children = super::list::children_of(&**tx, ids.iter().copied()).await?;
    let outside: BTreeSet<&str> = children.iter().map(String::as_str).filter(|id| !ids.contains(id)).collect();
    if outside.is_empty() {
        return Ok(());
    }
    // Name all that would have to go along, not only the first generation.
    let mut all = outside.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    all.extend(super::list::descendants_of(&**tx, &outside).await?.into_iter().filter(|id| !ids.contains(id.as_str())));
    let dependents = all.iter().map(|id| value::read("backup_id", id)).collect::<Result<Vec<_>>>()?;
    Err(Conflict::HasDependents { dependents }.into())
}

/// Lets every chain that names one of the points name another, or removes its row.
async fn settle_chains(tx: &Tx, ids: &BTreeSet<&str>, now: Ts) -> Result<()> {
    use entity::chains::{Column, Entity};
    let affected = Entity::find()
        .filter(
            Condition::any()
                .add(Column::FullBackupId.is_in(ids.iter().copied()))
                .add(Column::LatestBackupId.is_in(ids.iter().copied())),
        )
        .order_by_asc(Column::VmContextId)
        .order_by_asc(Column::RepositoryId)
        .order_by_asc(Column::DiskId)
        .all(&**tx)
        .await?;
    for row in affected {
        let key =
            chain::Key { vm_context_id: row.vm_context_id, repository_id: row.repository_id, disk_id: row.disk_id };
        let links = chain::links(&**tx, &key).await?;
        let parents: BTreeMap<&str, Option<&str>> =
            links.iter().map(|link| (link.backup_id.as_str(), link.parent.as_deref())).collect();
        // The newest that stays is the nearest ancestor of the newest so far.
        let mut prefer = Some(row.latest_backup_id.as_str());
        for _ in 0..links.len() {
            match prefer {
                Some(id) if ids.contains(id) => prefer = parents.get(id).copied().flatten(),
                _ => break,
            }
        }
        let prefer = prefer.map(str::to_owned);
        let staying: Vec<chain::Link> =
            links.iter().filter(|link| !ids.contains(link.backup_id.as_str())).cloned().collect();
        chain::settle_links(tx, &key, &staying, prefer.as_deref(), now).await?;
    }
    Ok(())
}
