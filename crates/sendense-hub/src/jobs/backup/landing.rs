//! Where the mover's blocks land: a draft in the repository.

use super::super::handle::{Handle, Stop};
use super::{Prepared, facts};
use crate::core::Core;
use crate::nodes::run::Place;
use parking_lot::Mutex;
use sendense_api::{Alert, AlertKind};
use sendense_block::BlockSink;
use sendense_catalog::{BackupDisk, BackupPlan, Conflict, Error, LogLevel};
use sendense_node::mover::{DiskStart, Landing};
use sendense_repo::{DiskDraft, DiskSpec, Draft};
use sendense_types::{Compression, DiskNumber, Phase, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A draft as the mover sees it.
pub(super) struct DraftLanding<'a> {
    core: &'a Arc<Core>,
    handle: &'a Handle,
    prepared: &'a Prepared,
    runtime: &'a tokio::runtime::Handle,
    state: Mutex<State>,
    noted: AtomicBool,
}

struct State {
    draft: Draft,
    planned: Vec<BackupDisk>,
    /// When the machine stood still: known when the first disk begins.
    frozen_at: Option<Timestamp>,
    /// What the disks that become fulls may take.
    expected_bytes: u64,
}

impl<'a> DraftLanding<'a> {
    pub fn new(
        core: &'a Arc<Core>,
        handle: &'a Handle,
        prepared: &'a Prepared,
        draft: Draft,
        runtime: &'a tokio::runtime::Handle,
    ) -> Self {
        let state = State { draft, planned: Vec::new(), frozen_at: None, expected_bytes: 0 };
        Self { core, handle, prepared, runtime, state: Mutex::new(state), noted: AtomicBool::new(false) }
    }

    /// For a draft that goes on, with the disks that were begun.
    pub fn again(
        core: &'a Arc<Core>,
        handle: &'a Handle,
        prepared: &'a Prepared,
        draft: Draft,
        runtime: &'a tokio::runtime::Handle,
        (planned, frozen_at): (Vec<BackupDisk>, Timestamp),
    ) -> Self {
        let state = State { draft, planned, frozen_at: Some(frozen_at), expected_bytes: 0 };
        Self { core, handle, prepared, runtime, state: Mutex::new(state), noted: AtomicBool::new(false) }
    }

    /// Whether whoever moved the blocks had something to say.
    pub fn was_noted(&self) -> bool {
        self.noted.load(Ordering::Relaxed)
    }

    /// What is said of the draft, while it is open.
    pub fn with_draft<T>(&self, ask: impl FnOnce(&Draft) -> T) -> T {
        ask(&self.state.lock().draft)
    }

    /// The draft back, and when the machine stood still.
    pub fn into_draft(self) -> (Draft, Timestamp) {
        let state = self.state.into_inner();
        (state.draft, state.frozen_at.unwrap_or_else(|| self.core.now()))
    }

    /// Keeps the room that the point may need from those that begin later.
    fn keep_room(&self) {
        let state = self.state.lock();
        match state.draft.expect(state.expected_bytes) {
            Ok(0) => {}
            Ok(missing_bytes) => self.handle.warn(format!(
                "it may not fit: the disks may take {} bytes, and {missing_bytes} of them are not free in the repository",
                state.expected_bytes
            )),
            Err(error) => self.handle.warn(format!("room could not be kept: {error}")),
        }
    }

    /// Tells the catalog what is being made. The point does not depend on it: people do.
    fn tell_plan(&self) {
        let planned = self.state.lock().planned.clone();
        let plan = BackupPlan {
            backup_type: crate::app::create::type_of(planned.iter().map(|disk| disk.backup_type)),
            type_reason: facts::reason_of_all(planned.iter().map(|disk| (disk.disk_id, disk.type_reason.as_deref()))),
            parent_backup_id: facts::parent_of_all(planned.iter().map(|disk| disk.parent_backup_id.as_ref())),
            total_bytes: self.handle.progress.snapshot().planned.0,
            consistency: None,
            partial: self.prepared.partial,
            disks: planned,
        };
        let told = self.runtime.block_on(self.core.catalog.backups().plan(&self.prepared.claim, &plan));
        match told {
            Ok(_) => {}
            Err(Error::Conflict(Conflict::LeaseLost { .. })) => {
                self.handle.stop(Stop::LeaseLost);
            }
            Err(error) => self.handle.warn(format!("the catalog could not be told what is made: {error}")),
        }
    }
}

impl Place for DraftLanding<'_> {
    fn begin(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<DiskDraft>> {
        let mut state = self.state.lock();
        state.frozen_at.get_or_insert_with(|| self.core.now());
        let spec = DiskSpec {
            number: start.number,
            binding: start.disk.binding.clone(),
            capacity: start.disk.capacity,
            parent: start.parent.cloned(),
        };
        let disk = state.draft.begin_disk(spec)?;
        if start.parent.is_none() {
            // Raw blocks lie as they are read; of others nobody knows, and half is what disks of machines come to.
            let halved = self.prepared.work.compression != Compression::Off;
            state.expected_bytes += if halved { start.read.0 / 2 } else { start.read.0 };
        }
        state.planned.push(facts::planned(start));
        let what = match (start.parent, start.type_reason) {
            (Some(parent), None) => format!("disk {} goes onto {parent}", start.number),
            (Some(parent), Some(reason)) => format!("disk {} goes onto {parent}; {reason}", start.number),
            (None, None) => format!("disk {} becomes a full", start.number),
            (None, Some(reason)) => format!("disk {} becomes a {reason}", start.number),
        };
        self.handle.info(what);
        Ok(disk)
    }

    fn frozen_at(&self) -> Timestamp {
        *self.state.lock().frozen_at.get_or_insert_with(|| self.core.now())
    }
}

impl Landing for DraftLanding<'_> {
    fn begin_disk(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<dyn BlockSink>> {
        Ok(self.begin(start)?)
    }

    fn phase(&self, phase: Phase) {
        self.handle.set_phase(phase);
        if phase == Phase::Transferring {
            self.keep_room();
            self.tell_plan();
        }
    }

    fn letting_go(&self) -> bool {
        self.handle.letting_go()
    }

    fn note(&self, message: &str) {
        self.noted.store(true, Ordering::Relaxed);
        self.handle.warn(message);
    }

    fn tracking_is_wrong(&self, disk: DiskNumber, message: &str) {
        let (work, vm) = (&self.prepared.work, &self.prepared.vm);
        let message = format!("disk {disk}: {message}");
        // What is backed up now is right; what was backed up before by this tracking is what somebody should look at.
        tracing::error!(task_id = %self.handle.task_id, vm_id = %work.vm_context_id, disk_id = %disk, message, "audit");
        self.handle.log(LogLevel::Error, message.clone(), serde_json::json!({}));
        crate::metrics::tracking_wrong();
        self.core.events.alert(Alert {
            kind: AlertKind::ChangeTrackingWrong,
            backup_id: work.backup_id.clone(),
            vm_context_id: work.vm_context_id.clone(),
            vm_name: vm.vm_name.to_string(),
            disk_id: disk,
            message,
            at: self.core.now(),
        });
    }
}
