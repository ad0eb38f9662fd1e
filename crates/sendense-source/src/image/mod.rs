//! The source `image`: a folder of disk images.
//!
//! ```text
//! folder/ web/ system.qcow2 data.raw      a machine with two disks, in natural order of their names
//!         db/  vm.toml                    a machine whose disks are named there, block devices among them
//!         mail.raw                        a machine with one disk
//! ```
//!
//! What lives here: the settings and the door. The format of a file is *declared*, by its extension or by `vm.toml`, and
//! never guessed (`format`); everything a disk is made of is found and gated before it is read (`layers`).
//!
//! A machine is its entry's name within the folder, so it survives a restart and a move of the whole folder; a disk is its
//! place and its format. Another file put in a disk's place is taken for the same disk: no harm, since an incremental
//! compares digests of everything.
//!
//! Consistency is that of a crash: the images must be of a machine that is off, or a snapshot of images.

mod foreign;
mod format;
mod frozen;
mod inventory;
mod layers;
mod locks;
mod server;
mod stamp;
mod vdi;
mod vhdx;
mod vm_toml;
mod vmdk;

pub use locks::Writers;
pub(crate) use server::reap as reap_child;

use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::model::{DiscoveredDisk, DiscoveredVm, FreezeRequest, FrozenDisk, TestReport, VmRef};
use crate::open::SourceContext;
use crate::{Frozen, Source};
use frozen::{FrozenImages, NO_TRACKING};
use inventory::Machine;
use layers::{Look, Role, Scope};
use sendense_block::{ByteLen, Cancel};
use sendense_types::{PowerState, SourceKind, TrackingToken};
use server::Owner;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// The settings of an image source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder: absolute, below an allowed one.
    pub path: PathBuf,
}

/// A folder of images.
pub struct ImageFolder {
    config: Config,
    context: SourceContext,
}

impl ImageFolder {
    /// A folder that may be missing now; its path is checked at each use.
    pub fn new(config: Config, context: SourceContext) -> Result<Self> {
        if !config.path.is_absolute() {
            return Err(Error::new(Kind::Invalid, "settings of the image source: `path` must be absolute"));
        }
        Ok(Self { config, context })
    }

    /// The resolved folder and what may be opened from it.
    fn enter(&self) -> Result<(PathBuf, Scope)> {
        let root = self.context.roots.check_existing(&self.config.path)?;
        if !root.is_dir() {
            return Err(Error::new(Kind::Invalid, format!("{} is not a folder", self.config.path.display())));
        }
        let folder = self.context.roots.narrowed(root.clone());
        Ok((root, Scope { folder, allowed: self.context.roots.clone() }))
    }

    fn find(&self, vm: &VmRef) -> Result<(Machine, Scope)> {
        let (root, scope) = self.enter()?;
        let entry = inventory::entry(&root, &vm.instance_uuid)?;
        let machine = entry.as_ref().and_then(|entry| inventory::machine(&root, entry, &scope, &Writers::now()));
        let missing = || Error::new(Kind::NotFound, format!("{} is not in {}", vm.name, self.config.path.display()));
        Ok((machine.ok_or_else(missing)?, scope))
    }

    fn describe(&self, machine: Machine) -> DiscoveredVm {
        let glances = || machine.disks.iter().filter_map(|disk| disk.found.as_ref().ok());
        let power_state = if glances().any(|glance| glance.written) { PowerState::On } else { PowerState::Unknown };
        let disks = machine.disks.into_iter().map(|disk| DiscoveredDisk {
            label: disk.key.clone(),
            key: disk.key,
            binding: disk.binding,
            capacity: disk.found.as_ref().map_or(ByteLen(0), |glance| glance.capacity),
            format: disk.format.word().into(),
            datastore: disk.path.parent().map(|folder| folder.display().to_string()),
            path: None,
            mode: None,
            unsupported: disk.found.err().map(|error| sendense_block::error::chain(&error)),
        });
        DiscoveredVm {
            path: Some(self.config.path.display().to_string()),
            folder: Some(self.config.path.display().to_string()),
            power_state,
            guest_os: machine.settings.and_then(|settings| settings.guest_os),
            cpu_count: None,
            memory_bytes: None,
            disks: disks.collect(),
            networks: Vec::new(),
            hardware: None,
            snapshots: Vec::new(),
            change_tracking: Err(NO_TRACKING.into()),
            unsupported: machine.unsupported,
            vm: machine.vm,
        }
    }
}

impl Source for ImageFolder {
    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }

    fn test(&self, cancel: &Cancel) -> Result<TestReport> {
        let vms = self.discover(cancel)?;
        let mut warnings = Vec::new();
        if vms.is_empty() {
            warnings.push(format!("{} holds no disk images", self.config.path.display()));
        }
        for vm in vms.iter().filter(|vm| vm.unsupported.is_some()) {
            warnings.push(format!("{}: {}", vm.vm.name, vm.unsupported.as_deref().unwrap_or_default()));
        }
        for (vm, disk) in vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk))) {
            if let Some(why) = &disk.unsupported {
                warnings.push(format!("{}, disk {}: {why}", vm.vm.name, disk.key));
            }
        }
        let foreign = vms.iter().flat_map(|vm| &vm.disks).any(|disk| !matches!(disk.format.as_str(), "raw" | "qcow2"));
        if foreign && let Err(error) = foreign::check_tool() {
            warnings.insert(0, error.to_string());
        }
        // A report is read by people: the first twenty say what is wrong.
        let more = warnings.len().saturating_sub(20);
        warnings.truncate(20);
        if more > 0 {
            warnings.push(format!("and {more} more"));
        }
        let disks: usize = vms.iter().map(|vm| vm.disks.len()).sum();
        Ok(TestReport { product: format!("image folder, {} machines, {disks} disks", vms.len()), warnings })
    }

    fn discover(&self, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
        let (root, scope) = self.enter()?;
        let (mut vms, mut parts, writers) = (Vec::new(), HashSet::new(), Writers::now());
        for entry in inventory::entries(&root)? {
            cancel.check()?;
            let Some(machine) = inventory::machine(&root, &entry, &scope, &writers) else { continue };
            for glance in machine.disks.iter().filter_map(|disk| disk.found.as_ref().ok()) {
                let others = glance.others.iter().filter(|(_, role)| *role == Role::Part);
                parts.extend(others.map(|(path, _)| path.clone()));
            }
            vms.push((root.join(&entry.file_name), self.describe(machine)));
        }
        // An extent beside its descriptor is no machine. A backing file may well be one: a golden image.
        Ok(vms.into_iter().filter(|(path, _)| !parts.contains(path)).map(|(_, vm)| vm).collect())
    }

    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> Result<DiscoveredVm> {
        cancel.check()?;
        Ok(self.describe(self.find(vm)?.0))
    }

    fn freeze(&self, request: &FreezeRequest, journal: &Arc<dyn Journal>, cancel: &Cancel) -> Result<Box<dyn Frozen>> {
        if request.quiesce_or_fail {
            return Err(crate::error::cannot_quiesce(&request.vm.name, frozen::NO_GUEST));
        }
        let (machine, scope) = self.find(&request.vm)?;
        if let Some(why) = &machine.unsupported {
            return Err(Error::new(Kind::Unsupported, format!("{}: {why}", machine.vm.name)));
        }
        let mut disks = Vec::new();
        for wanted in &request.disks {
            cancel.check()?;
            let file =
                machine.disks.iter().find(|file| file.key == wanted.key).ok_or_else(|| {
                    Error::new(Kind::NotFound, format!("{} has no disk {}", machine.vm.name, wanted.key))
                })?;
            if file.binding != wanted.binding {
                let message = format!("disk {} of {} is another one by now", wanted.key, machine.vm.name);
                return Err(Error::new(Kind::Disturbed, message));
            }
            let layers = layers::examine(&file.path, file.format, file.place, &scope, Look::Freeze)?;
            let disk = FrozenDisk {
                key: file.key.clone(),
                binding: file.binding.clone(),
                label: file.key.clone(),
                capacity: layers.capacity,
                token: None,
            };
            disks.push((disk, layers));
        }
        let owner = Owner {
            run_dir: self.context.run_dir.clone(),
            source_id: self.context.source_id.clone(),
            task_id: request.task_id.clone(),
            vm_key: request.vm.instance_uuid.clone(),
            journal: journal.clone(),
        };
        Ok(Box::new(FrozenImages::new(&machine, request, disks, owner)))
    }

    fn retire(&self, _: &VmRef, _: &[TrackingToken], _: &Arc<dyn Journal>, _: &Cancel) -> Result<Vec<TrackingToken>> {
        // Images carry no marks of ours.
        Ok(Vec::new())
    }

    fn reap(&self, artefact: &Artefact, _: &Cancel) -> Result<bool> {
        match artefact.kind {
            ArtefactKind::ChildProcess => server::reap(artefact),
            other => Err(Error::new(Kind::Invalid, format!("image sources make nothing of kind {other:?}"))),
        }
    }
}
