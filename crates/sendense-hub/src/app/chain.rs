//! The chain of a disk.

use super::{App, vms, wire};
use crate::fault::{OrProblem, Result, invalid};
use sendense_api::{Chain, ChainBackup, ChainQuery};
use sendense_catalog as catalog;
use sendense_types::{DiskNumber, Problem, ProblemCode};

impl App {
    /// The newest chain of a disk, from its full to its latest point.
    pub async fn backup_chain(&self, query: ChainQuery) -> Result<Chain> {
        let vm = match (&query.vm_name, &query.vm_context_id) {
            (Some(name), None) => vms::find(&self.core, name).await?,
            (None, Some(id)) => self.core.catalog.vms().get(id).await.or_problem()?,
            (None, None) => return Err(invalid("vm_name is required (or vm_context_id)")),
            (Some(_), Some(_)) => return Err(invalid("vm_name and vm_context_id cannot both be given")),
        };
        let disk_id = query.disk_id.unwrap_or(DiskNumber(0));
        if !vm.disks.iter().any(|disk| disk.disk_id == disk_id) {
            let details = format!("{} has no disk {disk_id}", vm.vm_name);
            return Err(Problem::new(ProblemCode::DiskNotFound, "disk not found", details));
        }
        let repository_id = match &query.repository_id {
            Some(id_or_name) => Some(self.repository(id_or_name).await?.repository_id),
            None => None,
        };
        let found = self.core.catalog.backups().chain(&vm.vm_context_id, disk_id, repository_id.as_ref()).await;
        let chain = match found {
            Ok(chain) => chain,
            Err(error) if error.kind() == catalog::Kind::NotFound => {
                let details = format!("disk {disk_id} of {} has no point that can be restored", vm.vm_name);
                return Err(Problem::new(ProblemCode::BackupNotFound, "the disk has no backup", details));
            }
            Err(error) => return Err(error).or_problem(),
        };
        let backups: Vec<ChainBackup> =
            chain.backups.into_iter().filter_map(|backup| member(backup, disk_id)).collect();
        Ok(Chain {
            chain_id: Chain::id(&vm.vm_context_id, disk_id),
            vm_context_id: vm.vm_context_id,
            vm_name: vm.vm_name.into(),
            disk_id,
            repository_id: chain.repository_id,
            full_backup_id: Some(chain.full_backup_id),
            latest_backup_id: Some(chain.latest_backup_id),
            backup_count: backups.len() as u64,
            total_size_bytes: backups.iter().map(|backup| backup.size_bytes).sum(),
            backups,
        })
    }
}

fn member(backup: catalog::Backup, disk_id: DiskNumber) -> Option<ChainBackup> {
    let disk = backup.disks.iter().find(|disk| disk.disk_id == disk_id)?;
    let (kind, size_bytes, backing_file) = (disk.backup_type, disk.bytes_stored, disk.backing_file.clone());
    Some(ChainBackup { backup: wire::backup(backup, None), kind, size_bytes, backing_file })
}
