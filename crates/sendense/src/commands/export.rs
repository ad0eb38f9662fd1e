//! `sendense export`, `exports`, `unexport`.

use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{DoneReply, ExportListReply, ExportReply};
use sendense_api::{CreateExport, ListQuery};
use sendense_types::{BackupId, DiskNumber, ExportId};

/// Offers a disk and prints its URI.
pub async fn create(context: &Context, backup_id: BackupId, disk: Option<u32>) -> Result<u8> {
    let export = context.client.create_export(&CreateExport { backup_id, disk_id: disk.map(DiskNumber) }).await?;
    if context.json {
        json(&ExportReply::new(export))?;
    } else {
        line(export.uri.as_deref().unwrap_or_default());
        say(format!(
            "{}: disk {} of {} at that time, read-only; whoever knows the URI can read it",
            export.export_id, export.disk_id, export.vm_name
        ));
    }
    Ok(0)
}

/// Lists what is on offer.
pub async fn list(context: &Context) -> Result<u8> {
    let page = context.client.list_exports(&ListQuery::default()).await?;
    if context.json {
        json(&ExportListReply::from(page))?;
    } else {
        show(tables::exports(&page.items));
    }
    Ok(0)
}

/// Takes an export back.
pub async fn delete(context: &Context, export_id: &ExportId) -> Result<u8> {
    context.client.delete_export(export_id).await?;
    if context.json {
        json(&DoneReply::new(format!("export {export_id} is gone")))?;
    } else {
        say(format!("export {export_id} is gone"));
    }
    Ok(0)
}
