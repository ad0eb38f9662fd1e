//! Restore points over NBD: offer, list, take back.

use super::backups::disk_asked;
use super::{App, Caller};
use crate::exports::{Point, View};
use crate::fault::{OrProblem, Result};
use crate::maintenance::Use;
use sendense_api::{CreateExport, Export, ListQuery, Page, Role};
use sendense_types::ExportId;

impl App {
    /// Offers a disk of a point to NBD clients.
    pub async fn create_export(&self, caller: &Caller, asked: CreateExport) -> Result<Export> {
        caller.require(Role::Operator)?;
        let row = self.point(&asked.backup_id).await?;
        let disk_id = disk_asked(&row, asked.disk_id)?;
        let repository = self.core.repositories.by_id(&self.core, &row.repository_id, Use::Read).await?;
        let point =
            Point { backup_id: row.backup_id, vm_context_id: row.vm_context_id, vm_name: row.vm_name.into(), disk_id };
        let of = point.clone();
        let open = move |id: &ExportId| {
            let who = format!("export {id}");
            repository.open_disk(&of.vm_context_id, &of.backup_id, of.disk_id, &who).or_problem()
        };
        let view = self.core.exports.open(point, self.core.now(), open).await?;
        tracing::info!(export_id = %view.export_id, backup_id = %view.point.backup_id, disk_id = disk_id.0,
            by = %caller.identity, "restore point exported");
        Ok(export_out(view, caller))
    }

    /// The exports of this hub.
    pub async fn list_exports(&self, caller: &Caller, page: ListQuery) -> Result<Page<Export>> {
        let all = self.core.exports.all();
        let total = all.len() as u64;
        let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let items = all.into_iter().skip(skip).take(page.limit.get() as usize).map(|view| export_out(view, caller));
        Ok(Page { items: items.collect(), total })
    }

    /// Takes an export back.
    pub async fn delete_export(&self, caller: &Caller, id: &ExportId) -> Result<()> {
        caller.require(Role::Operator)?;
        let (exports, id, by) = (self.core.exports.clone(), id.clone(), caller.identity.clone());
        self.to_the_end(async move {
            exports.close(&id).await?;
            tracing::info!(export_id = %id, by = %by, "export taken back");
            Ok(())
        })
        .await
    }
}

fn export_out(view: View, caller: &Caller) -> Export {
    Export {
        export_id: view.export_id,
        backup_id: view.point.backup_id,
        vm_context_id: view.point.vm_context_id,
        vm_name: view.point.vm_name,
        disk_id: view.point.disk_id,
        uri: (caller.role >= Role::Operator).then_some(view.uri),
        read_only: view.status.read_only,
        size_bytes: view.size_bytes,
        clients: view.status.clients as u64,
        bytes_read: view.status.bytes_read,
        created_at: view.created_at,
        expires_at: view.expires_at,
    }
}
