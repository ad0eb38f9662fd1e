//! Machines as policies see them: all at once, and of each no more than it is chosen by.
//!
//! A schedule that is due looks at every machine there is. With their facts and disks, page by page, that would be most of its time.

use super::Vms;
use crate::entity;
use crate::error::Result;
use crate::value::{self, Ts};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{Name, SourceId, SourceKind, Tag, Timestamp, VmContextId};
use std::collections::{BTreeSet, HashMap};

/// A machine as policies see it. Its fields are those of [`super::VmContext`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenVm {
    /// Who.
    pub vm_context_id: VmContextId,
    /// Where it runs.
    pub source_id: Option<SourceId>,
    /// What kind of source it comes from.
    pub kind: SourceKind,
    /// Its identity within the kind.
    pub instance_uuid: String,
    /// Its present name.
    pub vm_name: Name,
    /// The folder that it lies in.
    pub folder: Option<String>,
    /// Words that people hung on it.
    pub tags: BTreeSet<Tag>,
    /// When a discovery saw it last.
    pub last_seen_at: Option<Timestamp>,
    /// Since when discoveries do not see it.
    pub vanished_at: Option<Timestamp>,
}

impl SeenVm {
    /// What is the same of all machines that are this one, reached by other sources; `None` where only the id is. See
    /// [`Vms::same_machine`].
    pub fn identity(&self) -> Option<(SourceKind, &str)> {
        super::is_worldwide(self.kind.as_str()).then_some((self.kind, self.instance_uuid.as_str()))
    }
}

/// The columns of one, in its order; the tags lie in a table of their own.
type Row = (String, Option<String>, String, String, String, Option<String>, Option<Ts>, Option<Ts>);

impl Vms<'_> {
    /// All machines by name and id, those too that no discovery sees any more.
    pub async fn seen(&self) -> Result<Vec<SeenVm>> {
        use entity::vm_contexts::{Column, Entity};
        let rows: Vec<Row> = Entity::find()
            .select_only()
            .columns([
                Column::VmContextId,
                Column::SourceId,
                Column::Kind,
                Column::InstanceUuid,
                Column::VmName,
                Column::Folder,
                Column::LastSeenAt,
                Column::VanishedAt,
            ])
            .order_by_asc(Column::VmName)
            .order_by_asc(Column::VmContextId)
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let mut tags = HashMap::<String, BTreeSet<Tag>>::new();
        for row in entity::vm_tags::Entity::find().all(self.0.pool()).await? {
            tags.entry(row.vm_context_id).or_default().insert(value::read("tag", &row.tag)?);
        }
        rows.into_iter()
            .map(|(id, source_id, kind, instance_uuid, vm_name, folder, last_seen_at, vanished_at)| {
                Ok(SeenVm {
                    tags: tags.remove(&id).unwrap_or_default(),
                    vm_context_id: value::read("vm_context_id", &id)?,
                    source_id: value::read_opt("source_id", source_id.as_deref())?,
                    kind: value::read("kind", &kind)?,
                    instance_uuid,
                    vm_name: value::read("vm_name", &vm_name)?,
                    folder,
                    last_seen_at: last_seen_at.map(Into::into),
                    vanished_at: vanished_at.map(Into::into),
                })
            })
            .collect()
    }

    /// What the present disks of each machine hold at the most; machines without any are left out.
    pub async fn disk_bytes(&self) -> Result<HashMap<VmContextId, u64>> {
        use entity::vm_disks::{Column, Entity};
        // The databases' own sums are decimals, each of another type.
        let rows: Vec<(String, i64)> = Entity::find()
            .select_only()
            .columns([Column::VmContextId, Column::CapacityBytes])
            .filter(Column::Present.eq(true))
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let mut bytes = HashMap::<String, u64>::new();
        for (vm, capacity) in rows {
            let sum = bytes.entry(vm).or_default();
            *sum = sum.saturating_add(value::read_u64("capacity_bytes", capacity)?);
        }
        bytes.into_iter().map(|(vm, bytes)| Ok((value::read("vm_context_id", &vm)?, bytes))).collect()
    }

    /// Machines by their ids, with their disks, in no order; those that are not there are left out.
    pub async fn of_ids(&self, ids: &[VmContextId]) -> Result<Vec<super::VmContext>> {
        use entity::vm_contexts::{Column, Entity};
        let chosen = Column::VmContextId.is_in(ids.iter().map(VmContextId::as_str));
        self.with_parts(Entity::find().filter(chosen).all(self.0.pool()).await?).await
    }
}
