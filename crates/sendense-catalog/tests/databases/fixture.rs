//! Things to begin with: moments, machines, backups.

use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;

/// A moment, in seconds after an arbitrary one.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000).plus_seconds(seconds)
}

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn id<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} is no id"))
}

pub fn disk(number: u32) -> DiscoveredDisk {
    DiscoveredDisk {
        disk_key: format!("disk-{}", 2000 + number),
        binding: DiskBinding(format!("disk-{}|backing-{number}", 2000 + number)),
        label: format!("Hard disk {}", number + 1),
        capacity_bytes: 1 << 30,
        datastore: Some("ds1".to_owned()),
        format: Some("raw".to_owned()),
    }
}

pub fn machine(text: &str, disks: u32) -> DiscoveredVm {
    DiscoveredVm {
        instance_uuid: format!("uuid-{text}"),
        vm_name: name(text),
        named_at_path: false,
        path: Some(format!("/dc/vm/{text}")),
        folder: Some("dc/vm".to_owned()),
        power_state: PowerState::On,
        facts: json!({"memory_bytes": 1 << 30, "networks": ["a", "b"]}),
        disks: (0..disks).map(disk).collect(),
    }
}

pub async fn add_source(catalog: &Catalog, text: &str) -> Source {
    let new = NewSource {
        source_id: SourceId::generate(),
        name: name(text),
        kind: SourceKind::Libvirt,
        config: json!({"uri": "qemu:///system"}),
        secret: Some(vec![0, 159, 146, 150, 255]),
    };
    catalog.sources().create(&new, at(0)).await.expect("create a source")
}

pub async fn add_repository(catalog: &Catalog, text: &str) -> Repository {
    let new = NewRepository {
        repository_id: RepositoryId::generate(),
        name: name(text),
        kind: RepositoryKind::Local,
        config: json!({"path": "/srv/backups"}),
        settings: json!({"compression": "default"}),
        secret: None,
    };
    catalog.repositories().create(&new, at(0)).await.expect("create a repository")
}

/// A catalog with a hub, a repository, a source and machines `vm0`, `vm1` … of two disks each.
pub struct World {
    pub catalog: Catalog,
    pub hub: HubLease,
    pub repository_id: RepositoryId,
    pub source_id: SourceId,
    pub vms: Vec<VmContextId>,
}

impl World {
    pub async fn new(catalog: Catalog, machines: u32) -> Self {
        let hub = catalog.hubs().acquire(&id("hub-1"), at(1_000_000), at(0)).await.expect("acquire");
        let repository_id = add_repository(&catalog, "repo").await.repository_id;
        let source_id = add_source(&catalog, "kvm").await.source_id;
        let told: Vec<_> = (0..machines).map(|number| machine(&format!("vm{number}"), 2)).collect();
        let discovery = catalog.vms().upsert_discovered(&source_id, &told, at(0)).await.expect("discover");
        Self { catalog, hub, repository_id, source_id, vms: discovery.vm_context_ids }
    }

    pub fn new_backup(&self, vm: &VmContextId, backup_type: BackupType) -> NewBackup {
        NewBackup {
            backup_id: BackupId::generate(),
            task_id: TaskId::generate(),
            vm_context_id: vm.clone(),
            repository_id: self.repository_id.clone(),
            requested_type: backup_type,
            policy_id: None,
            tags: [("why".to_owned(), "test \u{1f600}".to_owned())].into(),
            partial: false,
            quiesce: true,
            compression: Compression::Default,
            on_tracking_loss: OnTrackingLoss::Compare,
            created_by: Some("admin".to_owned()),
            request: json!({"disks": null}),
        }
    }

    /// Begins, claims and starts a backup.
    pub async fn running(&self, new: &NewBackup, now: Timestamp) -> TaskClaim {
        let (_, task) = self.catalog.backups().begin(new, now).await.expect("begin");
        let task =
            self.catalog.tasks().claim(&task.claim(), &self.hub, now.plus_seconds(60), now).await.expect("claim");
        self.catalog.backups().start(&task.claim(), now).await.expect("start");
        task.claim()
    }

    /// Makes a completed point of a machine's first `disks` disks, on a parent or none.
    pub async fn point(&self, vm: &VmContextId, parent: Option<&BackupId>, disks: u32, now: Timestamp) -> BackupId {
        let backup_type = if parent.is_some() { BackupType::Incremental } else { BackupType::Full };
        let new = self.new_backup(vm, backup_type);
        let claim = self.running(&new, now).await;
        let done = completed(&new.backup_id, parent, disks);
        self.catalog.backups().finish_completed(&claim, &done, now.plus_seconds(1)).await.expect("finish");
        new.backup_id
    }
}

/// What was published of the first `disks` disks.
pub fn completed(backup_id: &BackupId, parent: Option<&BackupId>, disks: u32) -> Completed {
    let backup_type = if parent.is_some() { BackupType::Incremental } else { BackupType::Full };
    Completed {
        backup_type,
        type_reason: None,
        parent_backup_id: parent.cloned(),
        total_bytes: u64::from(disks) << 30,
        bytes_transferred: 1000,
        bytes_stored: 500,
        consistency: Some(Consistency::Filesystem),
        consistency_note: Some("no guest agent".to_owned()),
        partial: false,
        disks: (0..disks).map(|number| backup_disk(backup_id, parent, number)).collect(),
    }
}

pub fn backup_disk(backup_id: &BackupId, parent: Option<&BackupId>, number: u32) -> BackupDisk {
    BackupDisk {
        disk_id: DiskNumber(number),
        disk_key: format!("disk-{}", 2000 + number),
        label: format!("Hard disk {}", number + 1),
        backup_type: if parent.is_some() { BackupType::Incremental } else { BackupType::Full },
        type_reason: None,
        file_path: Some(format!("vm/disk-{number}/{backup_id}.qcow2")),
        capacity_bytes: 1 << 30,
        bytes_transferred: 500,
        bytes_stored: 250,
        backing_file: parent.map(|parent| format!("{parent}.qcow2")),
        tracking_audit: Some(TrackingAudit { blocks_checked: 64, blocks_different: u64::from(number) }),
        change_id: Some(TrackingToken(format!("{backup_id}/{number}"))),
        status: BackupStatus::Completed,
        parent_backup_id: parent.cloned(),
    }
}

/// A plan over the first `disks` disks.
pub fn plan_of(backup_id: &BackupId, parent: Option<&BackupId>, disks: u32) -> BackupPlan {
    let done = completed(backup_id, parent, disks);
    BackupPlan {
        backup_type: done.backup_type,
        type_reason: None,
        parent_backup_id: done.parent_backup_id,
        total_bytes: done.total_bytes,
        consistency: done.consistency,
        partial: false,
        disks: done.disks,
    }
}

/// A machine as a manifest has it, which a source tells as [`machine`]`(text, disks)`.
pub fn known_vm(vm: &str, text: &str, disks: u32) -> KnownVm {
    KnownVm {
        vm_context_id: id(vm),
        kind: SourceKind::Libvirt,
        instance_uuid: format!("uuid-{text}"),
        vm_name: name(text),
        path: None,
        disks: (0..disks)
            .map(|number| KnownDisk {
                disk_id: DiskNumber(number),
                disk_key: disk(number).disk_key,
                binding: disk(number).binding,
                label: disk(number).label,
                capacity_bytes: 1 << 30,
            })
            .collect(),
    }
}

/// A published point of such a machine, with all its disks.
pub fn point_of(
    vm: &KnownVm,
    repository_id: &RepositoryId,
    backup: &str,
    parent: Option<&str>,
    created_at: Timestamp,
) -> Backup {
    let (backup_id, parent): (BackupId, Option<BackupId>) = (id(backup), parent.map(id));
    let disks = u32::try_from(vm.disks.len()).expect("few disks");
    let done = completed(&backup_id, parent.as_ref(), disks);
    Backup {
        backup_id,
        vm_context_id: vm.vm_context_id.clone(),
        vm_name: vm.vm_name.clone(),
        repository_id: repository_id.clone(),
        requested_type: done.backup_type,
        backup_type: done.backup_type,
        type_reason: None,
        policy_id: None,
        parent_backup_id: parent,
        status: BackupStatus::Completed,
        phase: None,
        bytes_done: done.total_bytes,
        bytes_transferred: done.bytes_transferred,
        bytes_stored: done.bytes_stored,
        total_bytes: done.total_bytes,
        consistency: done.consistency,
        consistency_note: done.consistency_note,
        error_code: None,
        error_message: None,
        tags: Default::default(),
        partial: false,
        quiesce: false,
        compression: Compression::Off,
        on_tracking_loss: OnTrackingLoss::Compare,
        created_by: None,
        task_id: None,
        created_at,
        started_at: Some(created_at),
        completed_at: Some(created_at.plus_seconds(1)),
        protected: false,
        hold_until: None,
        verification: None,
        disks: done.disks,
    }
}
