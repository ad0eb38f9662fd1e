//! Machines as the catalog knows them.

use super::{App, Caller, wire};
use crate::core::Core;
use crate::fault::{OrProblem, Result};
use sendense_api::{ChangeTags, Page, ProtectionState, ProvedBackup, Role, Vm, VmFilter};
use sendense_catalog as catalog;
use sendense_source::model::{DiscoveredDisk, DiscoveredVm, Network};
use sendense_types::{
    BackupId, BackupStatus, Problem, ProblemCode, SourceKind, Tag, VerifyDepth, VerifyState, VmContextId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Ids named when a name is ambiguous: enough to choose from, short enough to read.
const IDS_NAMED_MAX: usize = 20;

/// Names of snapshots that are kept of a machine; vSphere itself bears 32 in a chain.
const SNAPSHOTS_KEPT_MAX: usize = 100;

/// What a source told of a machine beyond the catalog's own columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    pub guest_os: Option<String>,
    pub cpu_count: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub networks: Vec<Network>,
    pub change_tracking: bool,
    pub no_change_tracking: Option<String>,
    pub hardware: Option<String>,
    pub snapshots: Vec<String>,
    pub unsupported: Option<String>,
    /// Why disks cannot be backed up, by key.
    pub unsupported_disks: BTreeMap<String, String>,
    /// Where disks lie and how they are attached, by key.
    pub attached: BTreeMap<String, Attached>,
}

/// What a source told of a disk beyond the catalog's own columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Attached {
    pub path: Option<String>,
    pub mode: Option<String>,
}

impl Facts {
    /// What a row keeps; what another version wrote and cannot be read is as if it were not known.
    pub fn read(facts: &serde_json::Value) -> Self {
        Self::deserialize(facts).unwrap_or_default()
    }
}

/// A machine as a source of this kind tells it, in the catalog's words.
pub(crate) fn discovered(kind: SourceKind, vm: &DiscoveredVm) -> Result<catalog::DiscoveredVm> {
    let (change_tracking, no_change_tracking) = match &vm.change_tracking {
        Ok(()) => (true, None),
        Err(reason) => (false, Some(reason.clone())),
    };
    let unsupported_disks =
        vm.disks.iter().filter_map(|disk| Some((disk.key.clone(), disk.unsupported.clone()?))).collect();
    let attached = |disk: &DiscoveredDisk| Attached { path: disk.path.clone(), mode: disk.mode.clone() };
    let attached = vm.disks.iter().map(|disk| (disk.key.clone(), attached(disk)));
    let facts = Facts {
        guest_os: vm.guest_os.clone(),
        cpu_count: vm.cpu_count,
        memory_bytes: vm.memory_bytes,
        networks: vm.networks.clone(),
        change_tracking,
        no_change_tracking,
        hardware: vm.hardware.clone(),
        snapshots: vm.snapshots.iter().take(SNAPSHOTS_KEPT_MAX).cloned().collect(),
        unsupported: vm.unsupported.clone(),
        unsupported_disks,
        attached: attached.filter(|(_, disk)| *disk != Attached::default()).collect(),
    };
    let facts = serde_json::to_value(facts)
        .map_err(|error| crate::fault::internal("facts of a machine cannot be written", error.to_string()))?;
    let vm_name = vm.vm.name.parse().map_err(|error: sendense_types::NameError| {
        Problem::new(
            ProblemCode::SourceFailed,
            "the source tells a machine whose name cannot be kept",
            error.to_string(),
        )
    })?;
    let disks = vm.disks.iter().map(|disk| catalog::DiscoveredDisk {
        disk_key: disk.key.clone(),
        binding: disk.binding.clone(),
        label: disk.label.clone(),
        capacity_bytes: disk.capacity.0,
        datastore: disk.datastore.clone(),
        format: Some(disk.format.clone()).filter(|format| !format.is_empty()),
    });
    Ok(catalog::DiscoveredVm {
        instance_uuid: vm.vm.instance_uuid.clone(),
        vm_name,
        // The uuid of a machine in an image folder is made of its entry's name, and its path is the folder.
        named_at_path: kind == SourceKind::Image,
        path: vm.path.clone(),
        folder: vm.folder.clone(),
        power_state: vm.power_state,
        facts,
        disks: disks.collect(),
    })
}

/// The newest backups of a machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Newest {
    /// In whatever state.
    pub attempt: Option<catalog::Backup>,
    /// One that can be restored exists.
    pub has_point: bool,
}

impl Newest {
    /// How well the machine is protected.
    pub fn protection(&self) -> ProtectionState {
        match self.attempt.as_ref().map(|backup| backup.status) {
            Some(BackupStatus::Pending | BackupStatus::Running) => ProtectionState::Running,
            Some(BackupStatus::Completed) => ProtectionState::Protected,
            Some(BackupStatus::Failed | BackupStatus::Cancelled) if self.has_point => ProtectionState::Failing,
            Some(BackupStatus::Failed | BackupStatus::Cancelled) | None => ProtectionState::Unprotected,
        }
    }
}

/// Machines that somebody should do something about; of two sorts, both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wanted {
    overdue: bool,
    unprotected: bool,
}

impl Wanted {
    fn means(self, vm: &Vm) -> bool {
        // One that has gone cannot be protected any more; a policy that misses it says so.
        let is_bare = vm.policies.is_empty() || vm.unscheduled || vm.protection_state == ProtectionState::Unprotected;
        self.overdue && vm.overdue_since.is_some() || self.unprotected && is_bare && !vm.missing
    }
}

/// A machine by its id or its name, which must not be that of several.
pub(crate) async fn find(core: &Core, id_or_name: &str) -> Result<catalog::VmContext> {
    if let Ok(id) = id_or_name.parse::<VmContextId>() {
        match core.catalog.vms().get(&id).await {
            Ok(vm) => return Ok(vm),
            Err(error) if error.kind() == catalog::Kind::NotFound => {}
            Err(error) => return Err(error).or_problem(),
        }
    }
    let mut found = core.catalog.vms().by_name(id_or_name).await.or_problem()?;
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().take(IDS_NAMED_MAX).map(|vm| vm.vm_context_id.as_str()).collect();
        let details = format!("{} VMs bear the name {id_or_name:?}: {}", found.len(), ids.join(", "));
        return Err(Problem::new(ProblemCode::AmbiguousName, "several VMs bear this name", details));
    }
    found.pop().ok_or_else(|| {
        let details = format!("no VM named {id_or_name:?} is known; discover its source first");
        Problem::new(ProblemCode::VmNotFound, "VM not found", details)
    })
}

/// The newest point that is proved good with all that it builds on, of the points of a machine, newest first.
fn last_proved(points: &[catalog::Backup]) -> Option<ProvedBackup> {
    let by_id: BTreeMap<&BackupId, &catalog::Backup> = points.iter().map(|point| (&point.backup_id, point)).collect();
    points.iter().find_map(|point| {
        let chain = chain_of(point, &by_id)?;
        proved(point, &chain, points.first())
    })
}

/// A point and all that it builds on; nothing where one of these is not known.
fn chain_of<'a>(
    point: &'a catalog::Backup,
    by_id: &BTreeMap<&'a BackupId, &'a catalog::Backup>,
) -> Option<Vec<&'a catalog::Backup>> {
    let (mut chain, mut seen) = (vec![point], BTreeSet::from([&point.backup_id]));
    let mut at = 0;
    while let Some(above) = chain.get(at) {
        at += 1;
        for parent in above.disks.iter().filter_map(|disk| disk.parent_backup_id.as_ref()) {
            if seen.insert(parent) {
                chain.push(by_id.get(parent)?);
            }
        }
    }
    Some(chain)
}

/// What is proved of a point with all that it builds on; nothing where it is not sound, or one of these was not looked at.
fn proved(
    point: &catalog::Backup,
    chain: &[&catalog::Backup],
    newest: Option<&catalog::Backup>,
) -> Option<ProvedBackup> {
    if point.verification.as_ref()?.state != VerifyState::Sound {
        return None;
    }
    let found: Option<Vec<_>> = chain.iter().map(|point| point.verification.as_ref()).collect();
    let found = found?;
    // A corrupt one was decoded block by block, and the point needs nothing of what it has lost, or it would not be sound. Of
    // one that is affected and was not looked at since, nothing is known.
    if found.iter().any(|found| found.depth.is_none()) {
        return None;
    }
    let is_deep = found.iter().all(|found| found.depth == Some(VerifyDepth::Deep));
    let sum = |of: fn(&catalog::Verification) -> u64| found.iter().map(|found| of(found)).fold(0, u64::saturating_add);
    Some(ProvedBackup {
        backup_id: point.backup_id.clone(),
        created_at: point.created_at,
        proved_at: found.iter().map(|found| found.at).min()?,
        depth: if is_deep { VerifyDepth::Deep } else { VerifyDepth::AtRest },
        speed_bps: wire::speed_bps(sum(|found| found.bytes), sum(|found| found.took_ms)),
        open_ms: point.verification.as_ref().and_then(|found| found.open_ms),
        is_newest: newest.is_some_and(|newest| newest.backup_id == point.backup_id),
    })
}

impl App {
    /// Machines by name.
    pub async fn list_vms(&self, filter: VmFilter) -> Result<Page<Vm>> {
        let source_id = match &filter.source_id {
            Some(id_or_name) => Some(self.core.catalog.sources().find(id_or_name).await.or_problem()?.source_id),
            None => None,
        };
        let page = catalog::Page { limit: filter.limit.get().into(), offset: filter.offset };
        let wanted = Wanted { overdue: filter.overdue, unprotected: filter.unprotected };
        let filter = catalog::VmFilter { vm_name: filter.vm_name, source_id, tag: filter.tag, ..Default::default() };
        if wanted != Wanted::default() {
            return self.list_wanted(&filter, wanted, page).await;
        }
        let (rows, total) = self.core.catalog.vms().list(&filter, page).await.or_problem()?;
        Ok(Page { items: self.vms_out(rows).await?, total })
    }

    /// Policies and schedules say it, not a column: all machines are looked at.
    async fn list_wanted(&self, filter: &catalog::VmFilter, wanted: Wanted, page: catalog::Page) -> Result<Page<Vm>> {
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let all = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset };
            let (rows, _) = self.core.catalog.vms().list(filter, all).await.or_problem()?;
            offset += rows.len() as u64;
            let is_last = (rows.len() as u64) < catalog::Page::LIMIT_MAX;
            found.extend(self.vms_out(rows).await?.into_iter().filter(|vm| wanted.means(vm)));
            if is_last {
                break;
            }
        }
        let total = found.len() as u64;
        let skipped = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        Ok(Page { items: found.into_iter().skip(skipped).take(limit).collect(), total })
    }

    /// One machine, by its id or name.
    pub async fn get_vm(&self, id_or_name: &str) -> Result<Vm> {
        let row = find(&self.core, id_or_name).await?;
        let proved = last_proved(&self.completed(&row.vm_context_id, None).await?);
        let vm = self.vms_out(vec![row]).await?.pop();
        let vm = vm.ok_or_else(|| Problem::new(ProblemCode::VmNotFound, "VM not found", ""))?;
        let proof_overdue_since = self.overdue_proofs().await?.get(&vm.vm_context_id).copied();
        Ok(Vm { last_proved: proved, proof_overdue_since, ..vm })
    }

    /// Hangs tags on a machine and takes others off. What is protected, and for how long, follows tags, so an admin does it.
    pub async fn change_tags(&self, caller: &Caller, id_or_name: &str, change: ChangeTags) -> Result<Vm> {
        caller.require(Role::Admin)?;
        let id = find(&self.core, id_or_name).await?.vm_context_id;
        let row = self.core.catalog.vms().change_tags(&id, &change.add, &change.remove).await.or_problem()?;
        let tags: Vec<&str> = row.tags.iter().map(Tag::as_str).collect();
        tracing::info!(vm_context_id = %id, tags = tags.join(" "), by = %caller.identity, "tags changed");
        self.get_vm(id.as_str()).await
    }

    /// Rows with their newest backups.
    pub(super) async fn vms_out(&self, rows: Vec<catalog::VmContext>) -> Result<Vec<Vm>> {
        let ids: Vec<VmContextId> = rows.iter().map(|row| row.vm_context_id.clone()).collect();
        let mut attempts = self.core.catalog.backups().newest_attempts_of_vms(&ids).await.or_problem()?;
        let points = self.core.catalog.backups().newest_of_vms(&ids).await.or_problem()?;
        let cover = self.cover().await?;
        let vms = rows.into_iter().map(|row| {
            let point = points.get(&row.vm_context_id);
            let newest = Newest { attempt: attempts.remove(&row.vm_context_id), has_point: point.is_some() };
            let covered = cover.of(&row, point.map(|point| point.created_at));
            Vm {
                policies: covered.policies,
                unscheduled: covered.unscheduled,
                overdue_since: covered.overdue_since,
                ..wire::vm(row, &newest)
            }
        });
        Ok(vms.collect())
    }
}
