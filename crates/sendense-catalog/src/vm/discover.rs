//! Binding what a source tells to what the catalog knows.
//!
//! A machine is found by (source, instance uuid); else it is one without a source and with the same (kind, instance uuid),
//! as after an import or after its source was removed; else it is new. Where the uuid is made of a name, two sources may
//! have machines of the same uuid that are not the same machine: there the path must agree, too. A machine that was discovered before the import
//! brought its points, and that has none of its own, gives way to the imported one.
//!
//! A disk keeps its number as long as its binding stays. Another binding is another disk and takes the next number that was
//! never used; a binding that comes back takes its old number, because it is the same disk.

use super::Vms;
use crate::error::{Error, Noun, Result};
use crate::tx::Tx;
use crate::value::Ts;
use crate::{entity, value};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
};
use sendense_types::{DiskBinding, Name, PowerState, SourceId, Timestamp, VmContextId};
use serde_json::Value;
use std::collections::BTreeSet;

/// A machine as a source tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoveredVm {
    /// Its identity within the kind of source; 1 to 255 characters.
    pub instance_uuid: String,
    /// Its name.
    pub vm_name: Name,
    /// True when its identity is a mere name at `path`, which another source may have at another path: then a machine
    /// that has no source now is this one only if it was at the same path, or at one that nobody knows.
    pub named_at_path: bool,
    /// Its place in the source's inventory.
    pub path: Option<String>,
    /// The folder that it lies in there, where the source has such.
    pub folder: Option<String>,
    /// Whether it runs.
    pub power_state: PowerState,
    /// Guest system, processors, memory, networks …
    pub facts: Value,
    /// Its disks in the hypervisor's order. Two with the same binding are an error.
    pub disks: Vec<DiscoveredDisk>,
}

/// A disk as a source tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredDisk {
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
    /// Its format there; at most 24 characters.
    pub format: Option<String>,
}

/// What a discovery changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// The machines in the order in which they were told.
    pub vm_context_ids: Vec<VmContextId>,
    /// Machines that were not known.
    pub added: u64,
    /// Machines that were known without a source and are bound now.
    pub bound: u64,
    /// Machines that the source does not have any more.
    pub vanished: u64,
}

/// How much of a machine was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All that the source tells: what it leaves out is not there.
    Whole,
    /// What a backup needs to know. A source that would have to ask more for the machine's place leaves that out.
    Refresh,
}

impl Vms<'_> {
    /// Takes over what a complete discovery of a source told: all its machines. Those that it did not tell are marked
    /// as vanished, and come back under the same id when they are told again.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the source; [`Error::Invalid`] for a machine or disk told twice, or a value too long.
    pub async fn upsert_discovered(
        &self,
        source_id: &SourceId,
        told: &[DiscoveredVm],
        now: Timestamp,
    ) -> Result<Discovery> {
        check(told)?;
        self.0
            .write(|tx| async move {
                let source = entity::sources::Entity::find_by_id(source_id.as_str()).lock_exclusive().one(&*tx).await?;
                let source = source.ok_or_else(|| Error::not_found(Noun::Source, source_id))?;
                let mut discovery = Discovery::default();
                for vm in told {
                    let id = upsert_vm(&tx, &source, vm, Look::Whole, now.into(), &mut discovery).await?;
                    upsert_disks(&tx, &id, &vm.disks).await?;
                    discovery.vm_context_ids.push(value::read("vm_context_id", &id)?);
                }
                discovery.vanished = mark_vanished(&tx, source_id, &discovery, now.into()).await?;
                let set = entity::sources::ActiveModel {
                    last_discovered_at: Set(Some(now.into())),
                    last_error: Set(None),
                    ..Default::default()
                };
                entity::sources::Entity::update_many()
                    .set(set)
                    .filter(entity::sources::Column::SourceId.eq(source_id.as_str()))
                    .exec(&*tx)
                    .await?;
                Ok(discovery)
            })
            .await
    }

    /// Takes over what a discovery told of one machine, without a word about others: the refresh before a backup. Where it
    /// tells no path or folder, those that are known stay.
    ///
    /// # Errors
    /// As [`Vms::upsert_discovered`].
    pub async fn upsert_one(&self, source_id: &SourceId, told: &DiscoveredVm, now: Timestamp) -> Result<VmContextId> {
        check(std::slice::from_ref(told))?;
        self.0
            .write(|tx| async move {
                let source = entity::sources::Entity::find_by_id(source_id.as_str()).lock_exclusive().one(&*tx).await?;
                let source = source.ok_or_else(|| Error::not_found(Noun::Source, source_id))?;
                let id = upsert_vm(&tx, &source, told, Look::Refresh, now.into(), &mut Discovery::default()).await?;
                upsert_disks(&tx, &id, &told.disks).await?;
                value::read("vm_context_id", &id)
            })
            .await
    }
}

fn check(told: &[DiscoveredVm]) -> Result<()> {
    let mut identities = BTreeSet::new();
    for vm in told {
        value::fits("instance_uuid", &vm.instance_uuid, 255)?;
        if !identities.insert(&vm.instance_uuid) {
            let reason = format!("the source tells {:?} twice", vm.instance_uuid);
            return Err(Error::Invalid { field: "instance_uuid", reason });
        }
        let mut bindings = BTreeSet::new();
        for disk in &vm.disks {
            if !bindings.insert(&disk.binding) {
                let reason = format!("two disks of {:?} are {:?}", vm.vm_name.as_str(), disk.binding.0);
                return Err(Error::Invalid { field: "binding", reason });
            }
            if let Some(format) = &disk.format {
                value::fits("format", format, 24)?;
            }
        }
    }
    Ok(())
}

/// Finds or makes the machine's row and brings it up to date; returns its id.
async fn upsert_vm(
    tx: &Tx,
    source: &entity::sources::Model,
    told: &DiscoveredVm,
    look: Look,
    now: Ts,
    discovery: &mut Discovery,
) -> Result<String> {
    use entity::vm_contexts::{ActiveModel, Column, Entity, Model};
    let known = Entity::find()
        .filter(Column::SourceId.eq(&source.source_id))
        .filter(Column::InstanceUuid.eq(&told.instance_uuid))
        .lock_exclusive()
        .one(&**tx)
        .await?;
    let mut without_source = Entity::find()
        .filter(Column::SourceId.is_null())
        .filter(Column::Kind.eq(&source.kind))
        .filter(Column::InstanceUuid.eq(&told.instance_uuid));
    if told.named_at_path {
        without_source = without_source.filter(Column::Path.eq(told.path.as_deref()).or(Column::Path.is_null()));
    }
    let unbound = without_source
        // One at the very path before one whose path is not known: false sorts before true in every database.
        .order_by_asc(Column::Path.is_null())
        // Several can exist only when repositories of several deployments were imported; the newest has the live chain.
        .order_by_desc(Column::CreatedAt)
        .order_by_desc(Column::VmContextId)
        .lock_exclusive()
        .one(&**tx)
        .await?;
    let chosen = match (known, unbound) {
        (Some(known), Some(unbound)) => {
            if has_backups(tx, &known.vm_context_id).await? || !has_backups(tx, &unbound.vm_context_id).await? {
                Some(known)
            } else {
                super::tags::inherit(tx, &known.vm_context_id, &unbound.vm_context_id).await?;
                Entity::delete_by_id(known.vm_context_id).exec(&**tx).await?;
                discovery.bound += 1;
                Some(unbound)
            }
        }
        (Some(known), None) => Some(known),
        (None, Some(unbound)) => {
            discovery.bound += 1;
            Some(unbound)
        }
        (None, None) => None,
    };
    if let Some(row) = chosen {
        let kept = |known: Option<String>| known.filter(|_| look == Look::Refresh);
        let set = ActiveModel {
            source_id: Set(Some(source.source_id.clone())),
            vm_name: Set(told.vm_name.as_str().to_owned()),
            path: Set(told.path.clone().or_else(|| kept(row.path))),
            folder: Set(told.folder.clone().or_else(|| kept(row.folder))),
            power_state: Set(told.power_state.as_str().to_owned()),
            facts: Set(told.facts.clone()),
            last_seen_at: Set(Some(now)),
            vanished_at: Set(None),
            ..Default::default()
        };
        let of_row = Column::VmContextId.eq(&row.vm_context_id);
        Entity::update_many().set(set).filter(of_row).exec(&**tx).await?;
        return Ok(row.vm_context_id);
    }
    discovery.added += 1;
    let row = Model {
        vm_context_id: VmContextId::generate().into(),
        source_id: Some(source.source_id.clone()),
        kind: source.kind.clone(),
        instance_uuid: told.instance_uuid.clone(),
        vm_name: told.vm_name.as_str().to_owned(),
        path: told.path.clone(),
        folder: told.folder.clone(),
        power_state: told.power_state.as_str().to_owned(),
        facts: told.facts.clone(),
        created_at: now,
        last_seen_at: Some(now),
        vanished_at: None,
    };
    Entity::insert(row.clone().into_active_model()).exec_without_returning(&**tx).await?;
    Ok(row.vm_context_id)
}

async fn has_backups(tx: &Tx, vm_context_id: &str) -> Result<bool> {
    let one = entity::backups::Entity::find()
        .filter(entity::backups::Column::VmContextId.eq(vm_context_id))
        .one(&**tx)
        .await?;
    Ok(one.is_some())
}

/// The caller holds the machine's lock, so no one else gives numbers meanwhile.
async fn upsert_disks(tx: &Tx, vm_context_id: &str, told: &[DiscoveredDisk]) -> Result<()> {
    use entity::vm_disks::{ActiveModel, Column, Entity, Model};
    let of_vm = || Column::VmContextId.eq(vm_context_id);
    let known = Entity::find().filter(of_vm()).order_by_asc(Column::DiskId).all(&**tx).await?;
    let mut next = next_disk_id(&known)?;
    for disk in told {
        let capacity_bytes = value::store_u64("capacity_bytes", disk.capacity_bytes)?;
        if let Some(row) = known.iter().find(|row| row.binding == disk.binding.0) {
            let set = ActiveModel {
                disk_key: Set(disk.disk_key.clone()),
                label: Set(disk.label.clone()),
                capacity_bytes: Set(capacity_bytes),
                datastore: Set(disk.datastore.clone()),
                format: Set(disk.format.clone()),
                present: Set(true),
                ..Default::default()
            };
            Entity::update_many().set(set).filter(of_vm()).filter(Column::DiskId.eq(row.disk_id)).exec(&**tx).await?;
            continue;
        }
        let row = Model {
            vm_context_id: vm_context_id.to_owned(),
            disk_id: next,
            disk_key: disk.disk_key.clone(),
            binding: disk.binding.0.clone(),
            label: disk.label.clone(),
            capacity_bytes,
            datastore: disk.datastore.clone(),
            format: disk.format.clone(),
            present: true,
            job_id: None,
        };
        Entity::insert(row.into_active_model()).exec_without_returning(&**tx).await?;
        next = next.checked_add(1).ok_or_else(too_many)?;
    }
    for gone in known.iter().filter(|row| row.present && told.iter().all(|disk| disk.binding.0 != row.binding)) {
        let set = ActiveModel { present: Set(false), ..Default::default() };
        Entity::update_many().set(set).filter(of_vm()).filter(Column::DiskId.eq(gone.disk_id)).exec(&**tx).await?;
    }
    Ok(())
}

/// The number after the largest that was ever given: rows of former disks are never removed while their machine is known.
fn next_disk_id(known: &[entity::vm_disks::Model]) -> Result<i32> {
    match known.iter().map(|row| row.disk_id).max() {
        None => Ok(0),
        Some(largest) => largest.checked_add(1).ok_or_else(too_many),
    }
}

fn too_many() -> Error {
    Error::Invalid { field: "disk_id", reason: "no number is left".to_owned() }
}

async fn mark_vanished(tx: &Tx, source_id: &SourceId, discovery: &Discovery, now: Ts) -> Result<u64> {
    use entity::vm_contexts::{ActiveModel, Column, Entity};
    let seen: BTreeSet<&str> = discovery.vm_context_ids.iter().map(VmContextId::as_str).collect();
    let listed = Entity::find()
        .filter(Column::SourceId.eq(source_id.as_str()))
        .filter(Column::VanishedAt.is_null())
        .order_by_asc(Column::VmContextId)
        .all(&**tx)
        .await?;
    let mut vanished = 0;
    for gone in listed.iter().filter(|row| !seen.contains(row.vm_context_id.as_str())) {
        let set = ActiveModel { vanished_at: Set(Some(now)), ..Default::default() };
        let of_row = Column::VmContextId.eq(&gone.vm_context_id);
        Entity::update_many().set(set).filter(of_row).exec(&**tx).await?;
        vanished += 1;
    }
    Ok(vanished)
}
