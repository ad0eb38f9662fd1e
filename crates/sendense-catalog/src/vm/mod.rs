//! Machines and their disks: what is known, how it is looked up.
//!
//! What lives here: rows and lookups; `discover` binds what a source tells to what is known, `seen` is what policies choose by. What
//! does not: sources themselves. Names are not unique. Invariant: a disk number is bound to one binding and never given to another.

mod discover;
mod list;
mod seen;
mod tags;

pub use discover::{DiscoveredDisk, DiscoveredVm, Discovery};
pub use list::VmFilter;
pub use seen::SeenVm;
pub use tags::TAGS_MAX;

use crate::error::{Error, Noun, Result};
use crate::{Catalog, entity, value};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, Select};
use sendense_types::{DiskBinding, DiskNumber, Name, PowerState, SourceId, SourceKind, Tag, Timestamp, VmContextId};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct VmContext {
    /// Who.
    pub vm_context_id: VmContextId,
    /// Where it runs; `None` when its source was removed, or when it is known from manifests only.
    pub source_id: Option<SourceId>,
    /// What kind of source it comes from.
    pub kind: SourceKind,
    /// Its identity within the kind.
    pub instance_uuid: String,
    /// Its present name; not unique.
    pub vm_name: Name,
    /// Its place in the source's inventory.
    pub path: Option<String>,
    /// The folder that it lies in there, where the source has such: its parts from the root, with `/` between.
    pub folder: Option<String>,
    /// Words that people hung on it.
    pub tags: BTreeSet<Tag>,
    /// Whether it runs, as last seen.
    pub power_state: PowerState,
    /// Guest system, processors, memory, networks … The shape belongs to the hub.
    pub facts: Value,
    /// When it became known.
    pub created_at: Timestamp,
    /// When a discovery saw it last; `None` for one that is known from manifests only.
    pub last_seen_at: Option<Timestamp>,
    /// Since when discoveries do not see it.
    pub vanished_at: Option<Timestamp>,
    /// Its disks by number, also former ones.
    pub disks: Vec<VmDisk>,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    /// Its number.
    pub disk_id: DiskNumber,
    /// The hypervisor's key.
    pub disk_key: String,
    /// What the disk is.
    pub binding: DiskBinding,
    /// The hypervisor's label.
    pub label: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// Where it lies.
    pub datastore: Option<String>,
    /// Its format there.
    pub format: Option<String>,
    /// False for a disk that the machine had once.
    pub present: bool,
    /// Always `None` until jobs are bound to disks.
    pub job_id: Option<String>,
}

/// A disk as a manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDisk {
    /// Its number, which the manifest binds.
    pub disk_id: DiskNumber,
    /// The hypervisor's key.
    pub disk_key: String,
    /// What the disk is.
    pub binding: DiskBinding,
    /// The hypervisor's label.
    pub label: String,
    /// Its size at that point.
    pub capacity_bytes: u64,
}

/// A machine as a manifest describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownVm {
    /// Who.
    pub vm_context_id: VmContextId,
    /// What kind of source it came from.
    pub kind: SourceKind,
    /// Its identity within the kind.
    pub instance_uuid: String,
    /// Its name at that point.
    pub vm_name: Name,
    /// Its place in the source's inventory, where the manifest tells it.
    pub path: Option<String>,
    /// Its disks at that point.
    pub disks: Vec<KnownDisk>,
}

/// Machines.
#[derive(Debug, Clone, Copy)]
pub struct Vms<'a>(pub(crate) &'a Catalog);

impl Vms<'_> {
    /// One by its id, with its disks.
    pub async fn get(&self, id: &VmContextId) -> Result<VmContext> {
        let row = entity::vm_contexts::Entity::find_by_id(id.as_str()).one(self.0.pool()).await?;
        let row = row.ok_or_else(|| Error::not_found(Noun::Vm, id))?;
        let mut found = self.with_parts(vec![row]).await?;
        found.pop().ok_or_else(|| Error::not_found(Noun::Vm, id))
    }

    /// A machine and all others that are it, reached by other sources; by id.
    pub async fn same_machine(&self, id: &VmContextId) -> Result<Vec<VmContextId>> {
        let row = entity::vm_contexts::Entity::find_by_id(id.as_str()).one(self.0.pool()).await?;
        let row = row.ok_or_else(|| Error::not_found(Noun::Vm, id))?;
        let same = same_machine(&row).order_by_asc(entity::vm_contexts::Column::VmContextId).all(self.0.pool()).await?;
        same.iter().map(|row| value::read("vm_context_id", &row.vm_context_id)).collect()
    }

    /// All that bear a name, by id; at most a page of them.
    pub async fn by_name(&self, name: &str) -> Result<Vec<VmContext>> {
        let filter = VmFilter { vm_name: Some(name.to_owned()), ..Default::default() };
        let page = crate::Page { limit: crate::Page::LIMIT_MAX, offset: 0 };
        Ok(self.list(&filter, page).await?.0)
    }

    /// Adds disks and tags to rows, in the rows' order.
    async fn with_parts(&self, rows: Vec<entity::vm_contexts::Model>) -> Result<Vec<VmContext>> {
        use entity::vm_disks::Column;
        let ids: Vec<&str> = rows.iter().map(|row| row.vm_context_id.as_str()).collect();
        let disks = entity::vm_disks::Entity::find()
            .filter(Column::VmContextId.is_in(ids.iter().copied()))
            .order_by_asc(Column::VmContextId)
            .order_by_asc(Column::DiskId)
            .all(self.0.pool())
            .await?;
        let mut tags = self.tags_of(&ids).await?;
        let mut by_vm = HashMap::<String, Vec<VmDisk>>::new();
        for disk in disks {
            let vm = disk.vm_context_id.clone();
            by_vm.entry(vm).or_default().push(disk.try_into()?);
        }
        rows.into_iter()
            .map(|row| {
                let disks = by_vm.remove(&row.vm_context_id).unwrap_or_default();
                let tags = tags.remove(&row.vm_context_id).unwrap_or_default();
                Ok(VmContext {
                    vm_context_id: value::read("vm_context_id", &row.vm_context_id)?,
                    source_id: value::read_opt("source_id", row.source_id.as_deref())?,
                    kind: value::read("kind", &row.kind)?,
                    instance_uuid: row.instance_uuid,
                    vm_name: value::read("vm_name", &row.vm_name)?,
                    path: row.path,
                    folder: row.folder,
                    tags,
                    power_state: value::read("power_state", &row.power_state)?,
                    facts: row.facts,
                    created_at: row.created_at.into(),
                    last_seen_at: row.last_seen_at.map(Into::into),
                    vanished_at: row.vanished_at.map(Into::into),
                    disks,
                })
            })
            .collect()
    }
}

impl TryFrom<entity::vm_disks::Model> for VmDisk {
    type Error = Error;
    fn try_from(row: entity::vm_disks::Model) -> Result<Self> {
        Ok(Self {
            disk_id: DiskNumber(value::read_u32("disk_id", row.disk_id)?),
            disk_key: row.disk_key,
            binding: DiskBinding(row.binding),
            label: row.label,
            capacity_bytes: value::read_u64("capacity_bytes", row.capacity_bytes)?,
            datastore: row.datastore,
            format: row.format,
            present: row.present,
            job_id: row.job_id,
        })
    }
}

/// The rows of the machine of a row: a hypervisor may be registered twice, by its own name and behind a node, say.
pub(crate) fn same_machine(row: &entity::vm_contexts::Model) -> Select<entity::vm_contexts::Entity> {
    use entity::vm_contexts::{Column, Entity};
    match is_worldwide(&row.kind) {
        true => Entity::find().filter(Column::Kind.eq(&row.kind)).filter(Column::InstanceUuid.eq(&row.instance_uuid)),
        false => Entity::find_by_id(row.vm_context_id.as_str()),
    }
}

/// Whether a machine of this kind has its uuid wherever it is. Those of other kinds are made of paths, which several hypervisors may have.
fn is_worldwide(kind: &str) -> bool {
    [SourceKind::Vsphere, SourceKind::Libvirt].iter().any(|one| one.as_str() == kind)
}
