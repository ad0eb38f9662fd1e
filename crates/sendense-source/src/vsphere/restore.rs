//! A machine made of a restore point: created empty, written through VDDK, handed over, or taken away again.
//!
//! What lives here: the order, the mark by which an unfinished machine is known, and undoing it. What does not: what the
//! machine looks like (`recorded`) and where it goes (`place`).
//!
//! Invariant: an unfinished machine of ours bears, in its notes, our deployment and the task, and the journal knows its
//! uuid before it is made. The last step takes the mark away: from then on it is somebody's and is never removed.

mod place;
mod recorded;

use super::kit::{Access, Kit, Owner};
use super::limits::{self, Places};
use super::{Settings, discover, session, snapshot};
use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::libvirt::name::Checkpoint as Mark;
use crate::model::VmRef;
use crate::remote::{NewRemoteVm, Restoring};
use sendense_block::{Cancel, Target};
use sendense_types::TaskId;
use sendense_vsphere::device::Disk;
use sendense_vsphere::inventory::{Machine, Power};
use sendense_vsphere::machine::{NewDisk, NewMachine};
use sendense_vsphere::{FaultKind, KeptAlive, Ref, Vim};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What vSphere allows in a machine's name.
const NAME_CHARS_MAX: usize = 80;
/// What is written before the mark in the notes of a machine that is not whole.
const UNFINISHED: &str = "Sendense is restoring this machine, and removes it if that fails: ";

/// What the journal needs to take an unfinished machine away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The mark in its notes.
    mark: String,
    /// Its name, for people who read the journal.
    name: String,
}

/// What the journal holds of an unfinished machine.
pub(super) fn record(mark: &str, name: &str) -> Result<serde_json::Value> {
    let record = Record { mark: mark.to_owned(), name: name.to_owned() };
    serde_json::to_value(record).map_err(|error| Error::new(Kind::Failed, "write it down").caused_by(error))
}

/// The mark in a machine's notes, when they say that it is unfinished.
pub(super) fn mark_of(annotation: &str) -> Option<&str> {
    annotation.strip_prefix(UNFINISHED)
}

/// A machine that is being restored.
struct RestoringVm {
    settings: Settings,
    vim: KeptAlive,
    machine: Option<Ref>,
    vm: VmRef,
    disks: Vec<Disk>,
    notes: Vec<String>,
    note: String,
    mark: String,
    owner: Owner,
    /// Some until it is whole, or gone.
    entry: Option<u64>,
    _places: (Places, Option<Places>),
}

/// Makes the machine with empty disks.
pub(super) fn create(
    settings: &Settings,
    new: &NewRemoteVm<'_>,
    task_id: &TaskId,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<Box<dyn Restoring>> {
    check_name(new.name)?;
    let recorded = recorded::read(new.documents)?;
    let keys: Vec<&str> = new.disks.iter().map(|disk| disk.key.as_str()).collect();
    let hardware = recorded.hardware(&keys)?;
    let mut notes = hardware.notes.clone();
    // Disks are written one after the other.
    let places = limits::take(settings.server(), 1, settings.sessions_max, cancel)?;
    let vim = session::hold(settings, cancel)?;
    let exists = || Error::new(Kind::Busy, format!("a machine {} exists already", new.name));
    // A server lets two have one name, in two folders; whoever asks for one of them by its name then gets neither.
    if vim.is_named(new.name, cancel)? {
        return Err(exists());
    }
    let place = place::choose(&vim, new, &recorded, &mut notes, cancel)?;
    let on_host = limits::take_on_host(settings.server(), place.host.as_ref(), 1, cancel)?;
    let uuid = |kept: &Option<String>| match kept {
        Some(kept) if new.keep_identity => uuid::Uuid::parse_str(kept)
            .map(|uuid| uuid.to_string())
            .map_err(|_| Error::new(Kind::Invalid, format!("the recorded uuid {kept:?} is none"))),
        _ => Ok(uuid::Uuid::new_v4().to_string()),
    };
    let (instance_uuid, bios_uuid) = (uuid(&recorded.instance_uuid)?, uuid(&recorded.bios_uuid)?);
    if vim.find_machine(&instance_uuid, cancel)?.is_some() {
        return Err(Error::new(Kind::Busy, format!("a machine with the uuid {instance_uuid} exists already")));
    }
    let mark = Mark { deployment_id: settings.deployment_id.clone(), task_id: task_id.clone() }.name();
    let spec = NewMachine {
        name: new.name.to_owned(),
        uuid: Some(bios_uuid),
        instance_uuid: Some(instance_uuid.clone()),
        datastore: place.datastore.clone(),
        hardware_version: hardware.hardware_version,
        guest_id: hardware.guest_id,
        firmware: hardware.firmware,
        cpu_count: hardware.cpu_count,
        cores_per_socket: hardware.cores_per_socket,
        memory_mb: hardware.memory_mb,
        controllers: hardware.controllers,
        disks: new
            .disks
            .iter()
            .zip(&hardware.slots)
            .zip(1..)
            .map(|((disk, slot), number)| NewDisk {
                key: -number,
                controller_key: slot.controller_key,
                unit_number: slot.unit_number,
                datastore: place.datastore.clone(),
                capacity_bytes: disk.capacity_bytes,
            })
            .collect(),
        cards: place.cards,
        annotation: format!("{UNFINISHED}{mark}"),
    };
    let entry = journal.record(&Artefact {
        source_id: settings.source_id.clone(),
        task_id: task_id.clone(),
        kind: ArtefactKind::Machine,
        vm_key: instance_uuid.clone(),
        details: record(&mark, new.name)?,
    })?;
    // From here on dropping it undoes what was done.
    let mut restoring = RestoringVm {
        settings: settings.clone(),
        vm: VmRef { instance_uuid: instance_uuid.clone(), name: new.name.to_owned() },
        machine: None,
        disks: Vec::new(),
        notes,
        note: new.note.to_owned(),
        mark,
        owner: Owner {
            run_dir: settings.run_dir.clone(),
            source_id: settings.source_id.clone(),
            task_id: task_id.clone(),
            vm_key: instance_uuid,
            journal: journal.clone(),
        },
        entry: Some(entry),
        vim,
        _places: (places, on_host),
    };
    let made = restoring.vim.create_machine(&place.folder, &place.pool, place.host.as_ref(), &spec, cancel);
    let machine = made.map_err(|error| match error.kind() {
        Some(FaultKind::DuplicateName) => exists(),
        _ => error.into(),
    })?;
    restoring.machine = Some(machine.clone());
    let found = restoring.vim.machine(&machine, cancel)?;
    if found.instance_uuid.as_deref() != Some(restoring.vm.instance_uuid.as_str()) {
        // Nobody could find it again after a crash.
        return Err(Error::new(Kind::Failed, "the server gave the new machine another uuid than it was asked for"));
    }
    for (asked, slot) in new.disks.iter().zip(&hardware.slots) {
        restoring.disks.push(disk_at(&found, slot.controller_key, slot.unit_number, &spec, asked.capacity_bytes)?);
    }
    Ok(Box::new(restoring))
}

/// The disk that was made for a place. The server may have given its controller another key.
fn disk_at(machine: &Machine, controller_key: i32, unit: i32, spec: &NewMachine, bytes: u64) -> Result<Disk> {
    let wanted = spec.controllers.iter().find(|one| one.key == controller_key);
    let is_on = |disk: &&Disk| match (wanted, machine.devices.controller_of(disk)) {
        (Some(wanted), Some(found)) => found.kind == wanted.kind && found.bus_number == wanted.bus_number,
        _ => disk.controller_key == Some(controller_key),
    };
    let found = machine.devices.disks.iter().find(|disk| disk.unit_number == Some(unit) && is_on(disk));
    match found {
        Some(disk) if disk.capacity_bytes >= bytes && disk.backing.file_name.is_some() => Ok(disk.clone()),
        Some(disk) => {
            let message = format!("the server made {} with {} bytes, not {bytes}", disk.label, disk.capacity_bytes);
            Err(Error::new(Kind::Failed, message))
        }
        None => Err(Error::new(Kind::Failed, format!("the server made no disk at {controller_key}:{unit}"))),
    }
}

fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.trim() == name
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(|letter| letter.is_control() || "/\\%".contains(letter));
    match plain {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Invalid,
            format!("{name:?} is no name for a machine: 1 to {NAME_CHARS_MAX} characters, none of / \\ %"),
        )),
    }
}

impl RestoringVm {
    /// Takes the machine away, however far it came.
    fn undo(&mut self) -> Result<()> {
        let Some(entry) = self.entry else { return Ok(()) };
        remove(&self.vim, &self.vm.instance_uuid, &self.mark, &Cancel::new())?;
        self.entry = None;
        self.owner.journal.close(entry)?;
        self.vim.log_out(&Cancel::new());
        Ok(())
    }
}

impl Restoring for RestoringVm {
    fn vm(&self) -> &VmRef {
        &self.vm
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn open_write(&self, disk: usize, cancel: &Cancel) -> Result<Arc<dyn Target>> {
        let missing = || Error::new(Kind::NotFound, format!("the machine has no disk {disk}"));
        let found = self.disks.get(disk).ok_or_else(missing)?;
        let machine = self.machine.as_ref().ok_or_else(missing)?;
        // VDDK logs in by itself, and then this session may have been idle for hours.
        self.vim.keep_alive(cancel)?;
        let access = Access::new(&self.settings, &self.vim, machine, None)?;
        let kit = Kit::start(&self.owner, &access, found.backing.file_name.as_deref().unwrap_or_default(), cancel)?;
        Ok(Arc::new(kit))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let machine = self.machine.clone().ok_or_else(|| Error::new(Kind::Failed, "there is no machine"))?;
        // Not to be stopped half-way: either the mark is there and the machine goes, or it is gone and it stays.
        let cancel = Cancel::new();
        // With the mark a machine that is whole would be removed: a moment without a server is not worth that.
        snapshot::patiently(&cancel, |cancel| self.vim.annotate(&machine, &self.note, cancel))?;
        let Some(entry) = self.entry.take() else { return Ok(()) };
        self.owner.journal.close(entry)?;
        self.vim.log_out(&cancel);
        Ok(())
    }

    fn abandon(mut self: Box<Self>) -> Result<()> {
        // What cannot be taken away now stays in the journal; dropping does not try again.
        self.undo().inspect_err(|_| self.entry = None)
    }
}

impl Drop for RestoringVm {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(machine = self.vm.name, %error, "an unfinished machine is left for reaping");
        }
    }
}

/// Removes the machine with that uuid if it bears the mark. One that does not is whole, or somebody else's.
fn remove(vim: &Vim, instance_uuid: &str, mark: &str, cancel: &Cancel) -> Result<()> {
    let machine = match discover::look(vim, instance_uuid, cancel) {
        Ok(machine) => machine,
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if machine.annotation.as_deref().and_then(mark_of) != Some(mark) {
        return Ok(());
    }
    if machine.power != Power::Off {
        let message = format!("{} is not whole, but somebody has started it", machine.name);
        return Err(Error::new(Kind::Busy, message).hint("switch it off; it is removed then"));
    }
    match vim.destroy(&machine.reference, cancel) {
        Err(error) if error.kind() != Some(FaultKind::ManagedObjectNotFound) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Takes away what a dead process left.
pub(super) fn reap(settings: &Settings, artefact: &Artefact, cancel: &Cancel) -> Result<()> {
    let record: Record = serde::Deserialize::deserialize(&artefact.details).map_err(|error| {
        Error::new(Kind::Invalid, "the journal's entry is not one of a vsphere source").caused_by(error)
    })?;
    let ours = Mark::parse(&record.mark).is_some_and(|mark| mark.deployment_id == settings.deployment_id);
    if !ours {
        return Err(Error::new(Kind::Unsafe, format!("the journal names {:?}, which is not ours", record.mark)));
    }
    session::with(settings, cancel, |vim| remove(vim, &artefact.vm_key, &record.mark, cancel))
}
