//! A machine held by a snapshot of ours.
//!
//! What lives here: the story from the request to the snapshot and back, and what is asked in between. What does not: the
//! single steps.

use super::held::{self, Held};
use super::kit::{Access, Kit, Owner, REQUEST_BYTES};
use super::limits::{self, Places};
use super::snapshot::{self, Record};
use super::{Settings, discover, facts, session, token, tracking};
use crate::error::{Error, Kind, Result};
use crate::journal::Journal;
use crate::model::{DiskRequest, FreezeRequest, FrozenDisk, FrozenFacts, ReadHints};
use crate::{Changes, Frozen};
use parking_lot::Mutex;
use sendense_block::{ByteLen, Cancel, ChangeMap, Disk, Extent, ExtentSet};
use sendense_types::Consistency;
use sendense_vsphere::change::Question;
use sendense_vsphere::device::{Devices, Disk as VmDisk};
use sendense_vsphere::inventory::Machine;
use sendense_vsphere::{FaultKind, KeptAlive, Ref, Vim};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A disk has one session, whose requests the host answers one after the other. While two wait for it two digest, compress
/// and store, so that it always has something to do.
const LANES: usize = 4;

/// A frozen machine.
struct FrozenVm {
    settings: Settings,
    vim: KeptAlive,
    machine: Ref,
    name: String,
    facts: FrozenFacts,
    /// As they are in the snapshot, with what was asked of them.
    disks: BTreeMap<String, (VmDisk, DiskRequest)>,
    kits: Mutex<BTreeMap<String, Arc<Kit>>>,
    snapshot: Option<Ref>,
    mark: String,
    deltas_before: bool,
    journal: Arc<dyn Journal>,
    /// Some until nothing of the snapshot remains.
    entry: Option<u64>,
    owner: Owner,
    /// The backup's: a question between freeze and release is given up with it.
    cancel: Cancel,
    _held: Held,
    _places: (Places, Option<Places>),
}

/// Freezes a machine.
pub(super) fn freeze(
    settings: &Settings,
    request: &FreezeRequest,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<Box<dyn Frozen>> {
    let places = limits::take(settings.server(), request.disks.len(), settings.sessions_max, cancel)?;
    let held = held::take(settings.server(), &request.vm.instance_uuid, &request.vm.name)?;
    let vim = session::hold(settings, cancel)?;
    let machine = discover::look(&vim, &request.vm.instance_uuid, cancel)?;
    let on_host = limits::take_on_host(settings.server(), machine.host.as_ref(), request.disks.len(), cancel)?;
    let machine = prepare(&vim, machine, request, cancel)?;
    let groups = discover::groups(&vim, std::slice::from_ref(&machine), cancel)?;

    let (entry, record) = Record::journal(settings, &machine, request, journal)?;
    // From here on dropping it undoes what was done.
    let mut frozen = FrozenVm {
        settings: settings.clone(),
        machine: machine.reference.clone(),
        name: machine.name.clone(),
        facts: FrozenFacts {
            disks: Vec::new(),
            consistency: Consistency::Crash,
            consistency_note: None,
            config: facts::documents(&machine, &groups),
            hints: ReadHints { lanes: LANES, request_bytes: REQUEST_BYTES as usize },
        },
        disks: BTreeMap::new(),
        kits: Mutex::default(),
        snapshot: None,
        mark: record.mark,
        deltas_before: record.deltas_before,
        journal: journal.clone(),
        entry: Some(entry),
        owner: Owner {
            run_dir: settings.run_dir.clone(),
            source_id: settings.source_id.clone(),
            task_id: request.task_id.clone(),
            vm_key: request.vm.instance_uuid.clone(),
            journal: journal.clone(),
        },
        vim,
        cancel: cancel.clone(),
        _held: held,
        _places: (places, on_host),
    };
    let or_fail = request.quiesce_or_fail || (request.quiesce && settings.quiesce_or_fail);
    let made = snapshot::make(&frozen.vim, &machine, &frozen.mark, request.quiesce, or_fail, cancel);
    let made = made.map_err(|(error, clean)| {
        if clean && let Some(entry) = frozen.entry.take() {
            close(journal, entry);
        }
        error
    })?;
    frozen.facts.consistency = made.consistency;
    frozen.facts.consistency_note = made.note;
    // Only here are the changeIds that the next backup may ask against; those of the machine itself are of another moment.
    let devices = frozen.vim.snapshot_devices(&made.reference, cancel)?;
    frozen.snapshot = Some(made.reference);
    for asked in &request.disks {
        let disk = wanted(&devices, asked, &frozen.name)?;
        frozen.facts.disks.push(FrozenDisk {
            key: asked.key.clone(),
            binding: asked.binding.clone(),
            label: disk.label.clone(),
            capacity: ByteLen(disk.capacity_bytes),
            token: token::of(disk),
        });
        frozen.disks.insert(asked.key.clone(), (disk.clone(), asked.clone()));
    }
    Ok(Box::new(frozen))
}

/// What must hold before a snapshot is made, and change tracking switched on where that may be done.
fn prepare(vim: &Vim, machine: Machine, request: &FreezeRequest, cancel: &Cancel) -> Result<Machine> {
    if let Some(reason) = discover::unsupported(&machine) {
        return Err(Error::new(Kind::Unsupported, format!("{}: {reason}", machine.name)));
    }
    for asked in &request.disks {
        wanted(&machine.devices, asked, &machine.name)?;
    }
    snapshot::sweep(vim, &machine, &request.deployment_id, cancel)?;
    tracking::switch_on(vim, vim.machine(&machine.reference, cancel)?, cancel)
}

/// The disk that is asked for, if it is still that one.
fn wanted<'a>(devices: &'a Devices, asked: &DiskRequest, name: &str) -> Result<&'a VmDisk> {
    let found = devices.disks.iter().find(|disk| discover::key(disk) == asked.key);
    let disk =
        found.ok_or_else(|| Error::new(Kind::Disturbed, format!("the disk {} of {name} was removed", asked.key)))?;
    match discover::binding(disk) {
        Some(binding) if binding == asked.binding => {}
        _ => return Err(Error::new(Kind::Disturbed, format!("{} of {name} is another disk by now", asked.key))),
    }
    match discover::disk_unsupported(devices, disk) {
        None => Ok(disk),
        Some(reason) => Err(Error::new(Kind::Unsupported, format!("{} of {name}: {reason}", asked.key))),
    }
}

fn close(journal: &Arc<dyn Journal>, entry: u64) {
    if let Err(error) = journal.close(entry) {
        tracing::warn!(%error, "cannot close a journal entry; it will be reaped at the next start");
    }
}

impl FrozenVm {
    fn disk(&self, key: &str) -> Result<&(VmDisk, DiskRequest)> {
        self.disks.get(key).ok_or_else(|| Error::new(Kind::NotFound, format!("disk {key} is not held")))
    }

    fn snapshot(&self) -> Result<&Ref> {
        self.snapshot.as_ref().ok_or_else(|| Error::new(Kind::Failed, "there is no snapshot"))
    }

    fn start(&self, disk: &VmDisk, cancel: &Cancel) -> Result<Kit> {
        let access = Access::new(&self.settings, &self.vim, &self.machine, Some(self.snapshot()?))?;
        let kit = Kit::start(&self.owner, &access, disk.backing.file_name.as_deref().unwrap_or_default(), cancel)?;
        let served = sendense_block::ReadAt::size(&kit);
        if served.0 != disk.capacity_bytes {
            let message = format!("VDDK serves {served} where the snapshot says {}", disk.capacity_bytes);
            return Err(Error::new(Kind::Disturbed, message));
        }
        Ok(kit)
    }

    /// Ends nbdkit and takes the snapshot away. Repeating it changes nothing.
    fn end(&mut self) -> Result<()> {
        // Open disks hold the files that are brought together.
        for kit in std::mem::take(&mut *self.kits.lock()).into_values() {
            kit.stop();
        }
        let Some(entry) = self.entry else { return Ok(()) };
        snapshot::remove(&self.vim, &self.machine, &self.mark, self.deltas_before)?;
        self.entry = None;
        close(&self.journal, entry);
        self.vim.log_out(&Cancel::new());
        Ok(())
    }
}

impl Frozen for FrozenVm {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> Result<Changes> {
        let (disk, asked) = self.disk(disk_key)?;
        let since = match token::since(asked.since.as_ref(), disk) {
            Ok(since) => since,
            Err(reason) => return Ok(Changes::Unknown { reason }),
        };
        let question = Question {
            machine: &self.machine,
            snapshot: self.snapshot()?,
            disk_key: disk.key,
            capacity: ByteLen(disk.capacity_bytes),
            since: &since,
        };
        match self.vim.changed_areas(&question, &self.cancel) {
            Ok(areas) => Ok(Changes::Delta(Arc::new(Areas(areas)))),
            // The server does not know the parent's changeId any more, or it talks nonsense: both cost a comparison.
            Err(error)
                if matches!(error, sendense_vsphere::Error::Reply { .. })
                    || matches!(
                        error.kind(),
                        Some(
                            FaultKind::FileFault
                                | FaultKind::InvalidArgument
                                | FaultKind::NotSupported
                                | FaultKind::Other
                        )
                    ) =>
            {
                Ok(Changes::Unknown { reason: format!("the changes since the parent cannot be had: {error}") })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, disk_key: &str, cancel: &Cancel) -> Result<Arc<dyn Disk>> {
        let (disk, _) = self.disk(disk_key)?;
        if let Some(kit) = self.kits.lock().get(disk_key) {
            return Ok(kit.clone());
        }
        let kit = Arc::new(self.start(disk, cancel)?);
        self.kits.lock().insert(disk_key.to_owned(), kit.clone());
        Ok(kit)
    }

    fn check(&self) -> Result<()> {
        let snapshot = self.snapshot()?;
        // The data came from the hosts: a vCenter that starts again in this moment has not disturbed it.
        let held = snapshot::patiently(&self.cancel, |cancel| self.vim.snapshots(&self.machine, cancel))?;
        match held.iter().any(|one| one.reference == *snapshot) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Disturbed,
                format!("the snapshot of {} was removed by somebody else during the backup", self.name),
            )),
        }
    }

    fn release(mut self: Box<Self>) -> Result<()> {
        let ended = self.end();
        if let Err(error) = &ended {
            // A snapshot that stays is worth waking somebody for.
            tracing::error!(machine = self.name, %error, "the snapshot of a backup cannot be removed");
        }
        ended
    }
}

impl Drop for FrozenVm {
    fn drop(&mut self) {
        if self.entry.is_some()
            && let Err(error) = self.end()
        {
            tracing::warn!(machine = self.name, %error, "a snapshot is left for reaping");
        }
    }
}

/// What changed, as it was told at the freeze.
struct Areas(ExtentSet);

impl ChangeMap for Areas {
    fn changed(&self, within: Extent) -> sendense_block::Result<ExtentSet> {
        Ok(self.0.within(within))
    }
}
