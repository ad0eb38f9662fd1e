//! The machine of a recovery: asked of its hypervisor, never known by heart.
//!
//! Invariant: what is made on a hypervisor is in the recovery's record before, and only that is taken away.

use super::record::{DiskRecord, MachineRecord};
use crate::core::Core;
use crate::fault::{OrProblem, Result, invalid, of_planning};
use crate::restore::documents;
use sendense_block::Cancel;
use sendense_repo::manifest::Manifest;
use sendense_source::instant::{InstantVm, Moving, PlannedInstant, Standing};
use sendense_source::target::DiskFormat;
use sendense_source::{Instant, Source, VmRef};
use sendense_types::{RecoveryId, SourceId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A machine that is asked for.
pub(crate) struct Wanted {
    pub source_id: SourceId,
    pub name: String,
    pub networks: BTreeMap<String, Option<String>>,
}

/// The way to a recovery's machine.
#[derive(Clone)]
pub(crate) struct Door(Arc<dyn Source>);

/// Opens the way to the machines of a source. Nothing is connected yet.
pub(crate) async fn door(core: &Core, source_id: &SourceId) -> Result<Door> {
    let row = core.catalog.sources().get(source_id).await.or_problem()?;
    let source = core.open_source_here(&row)?;
    match source.instant() {
        Some(_) => Ok(Door(source)),
        None => Err(invalid(format!("machines of a source of kind {} cannot run on exports", source.kind()))),
    }
}

impl Door {
    fn instant(&self) -> Result<&dyn Instant> {
        self.0.instant().ok_or_else(|| invalid("machines of this source cannot run on exports"))
    }

    /// Decides what the machine will be, without making anything. Blocks.
    pub fn plan(
        &self,
        id: &RecoveryId,
        wanted: &Wanted,
        manifest: &Manifest,
        disks: &[DiskRecord],
    ) -> Result<(MachineRecord, PlannedInstant)> {
        let instant = self.instant()?;
        let socket = instant.socket(id.as_str()).or_problem()?;
        let documents = documents(manifest);
        let disks: Vec<_> = disks.iter().map(|disk| (disk.disk_key.clone(), disk.export.clone())).collect();
        let new = InstantVm {
            name: &wanted.name,
            documents: &documents,
            disks: &disks,
            socket: &socket,
            networks: &wanted.networks,
        };
        let planned = instant.plan(&new, &Cancel::new()).map_err(|error| of_planning(&error))?;
        let record = MachineRecord {
            source_id: wanted.source_id.clone(),
            name: planned.vm.name.clone(),
            instance_uuid: planned.vm.instance_uuid.clone(),
            socket,
        };
        Ok((record, planned))
    }

    /// Prepares the place where its disks are served. Blocks, as all that follows.
    pub fn prepare(&self, machine: &MachineRecord) -> Result<()> {
        self.instant()?.make_folder(&machine.socket).or_problem()
    }

    /// Lets the hypervisor come to the disks, which are served by now.
    pub fn admit(&self, machine: &MachineRecord) -> Result<()> {
        self.instant()?.admit(&machine.socket).or_problem()
    }

    /// Makes the machine known and starts it; gives what could not be done on the way, for people.
    pub fn start(&self, planned: &PlannedInstant) -> Result<Vec<String>> {
        self.instant()?.start(planned, &Cancel::new()).or_problem()
    }

    /// A machine that stopped because its disks were not served goes on. One that a person paused does not.
    pub fn resume(&self, machine: &MachineRecord) -> Result<bool> {
        let (instant, cancel) = (self.instant()?, Cancel::new());
        if instant.look(&vm(machine), &machine.socket, &cancel).or_problem()? != Standing::Stopped {
            return Ok(false);
        }
        instant.resume(&vm(machine), &cancel).or_problem()?;
        Ok(true)
    }

    /// Whether it is on, or paused: it may write to its disks.
    pub fn is_on(&self, machine: &MachineRecord) -> Result<bool> {
        let standing = self.instant()?.look(&vm(machine), &machine.socket, &Cancel::new()).or_problem()?;
        Ok(matches!(standing, Standing::Running | Standing::Stopped))
    }

    /// Whether it runs, and does not wait for a disk.
    pub fn is_running(&self, machine: &MachineRecord) -> Result<bool> {
        let standing = self.instant()?.look(&vm(machine), &machine.socket, &Cancel::new()).or_problem()?;
        Ok(standing == Standing::Running)
    }

    /// The disks that it still has of the recovery; none when there is no such machine.
    pub fn served(&self, machine: &MachineRecord) -> Result<Option<Vec<String>>> {
        self.instant()?.served(&vm(machine), &machine.socket, &Cancel::new()).or_problem()
    }

    pub fn begin_move(
        &self,
        machine: &MachineRecord,
        key: &str,
        file: &Path,
        format: DiskFormat,
        cancel: &Cancel,
    ) -> Result<()> {
        self.instant()?.begin_move(&vm(machine), key, file, format, cancel).or_problem()
    }

    pub fn moving(&self, machine: &MachineRecord, key: &str) -> Result<Option<Moving>> {
        self.instant()?.moving(&vm(machine), key, &Cancel::new()).or_problem()
    }

    pub fn finish_move(&self, machine: &MachineRecord, key: &str) -> Result<bool> {
        self.instant()?.finish_move(&vm(machine), key, &Cancel::new()).or_problem()
    }

    pub fn stop_move(&self, machine: &MachineRecord, key: &str) -> Result<()> {
        self.instant()?.stop_move(&vm(machine), key, &Cancel::new()).or_problem()
    }

    /// The folder that a pool's name stands for.
    pub fn folder(&self, pool: &str) -> Result<PathBuf> {
        let target = self.0.target().ok_or_else(|| invalid("machines of this source have no place for disks"))?;
        target.folder(pool, &Cancel::new()).or_problem()
    }

    /// Takes it away, if it still is the recovery's.
    pub fn end(&self, machine: &MachineRecord) -> Result<()> {
        self.instant()?.end(&vm(machine), &machine.socket, &Cancel::new()).or_problem()
    }

    /// Removes the place where its disks were served.
    pub fn clear(&self, machine: &MachineRecord) -> Result<()> {
        self.instant()?.remove_folder(&machine.socket).or_problem()
    }
}

fn vm(machine: &MachineRecord) -> VmRef {
    VmRef { instance_uuid: machine.instance_uuid.clone(), name: machine.name.clone() }
}
