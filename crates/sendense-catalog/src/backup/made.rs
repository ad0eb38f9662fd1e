//! What a policy has made.

use super::Backups;
use crate::entity;
use crate::error::Result;
use crate::value;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{BackupStatus, PolicyId, RepositoryId, VmContextId};

/// The points of a machine in a repository that a policy made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadePoints {
    /// Of which machine.
    pub vm_context_id: VmContextId,
    /// The machine's name when one of them was made.
    pub vm_name: String,
    /// Where they lie.
    pub repository_id: RepositoryId,
    /// How many there are.
    pub points: u64,
}

impl Backups<'_> {
    /// The points that a policy made and that are there, by machine and repository.
    pub async fn made_for(&self, policy_id: &PolicyId) -> Result<Vec<MadePoints>> {
        use entity::backups::{Column, Entity};
        let rows: Vec<(String, String, String, i64)> = Entity::find()
            .select_only()
            .column(Column::VmContextId)
            .column(Column::RepositoryId)
            .column_as(Column::VmName.max(), "named")
            .column_as(Column::BackupId.count(), "counted")
            .filter(Column::PolicyId.eq(policy_id.as_str()))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
            .group_by(Column::VmContextId)
            .group_by(Column::RepositoryId)
            .order_by_asc(Column::VmContextId)
            .order_by_asc(Column::RepositoryId)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let made = rows.into_iter().map(|(vm_context_id, repository_id, vm_name, points)| {
            Ok(MadePoints {
                vm_context_id: value::read("vm_context_id", &vm_context_id)?,
                vm_name,
                repository_id: value::read("repository_id", &repository_id)?,
                points: value::read_u64("points", points)?,
            })
        });
        made.collect()
    }
}
