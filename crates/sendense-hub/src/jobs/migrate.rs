//! Moving a recovered machine to storage of its own.

use super::damage;
use super::handle::Handle;
use super::restore::same_place;
use super::work::MigrateWork;
use crate::core::{Core, blocking};
use crate::fault::Result;
use crate::recoveries::migrate::{self, To};
use sendense_api::ImageFormat;
use sendense_source::target::DiskFormat;
use std::path::Path;
use std::sync::Arc;

/// Moves the machine.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: MigrateWork) -> Result<serde_json::Value> {
    let (asked, folder) = (core.clone(), work.folder);
    let folder = blocking(move || same_place(&asked, Path::new(&folder))).await??;
    let format = if work.format == ImageFormat::Raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
    let point = core.recoveries.find(work.recovery_id.as_str())?.record().backup_id;
    let moved = migrate::run(core, handle, &work.recovery_id, To { folder, format }).await;
    damage::look_closer_after(core, handle, &point, &moved).await;
    let summary = moved?;
    Ok(serde_json::json!({ "summary": summary }))
}
