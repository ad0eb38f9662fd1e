//! Machines of libvirt with QEMU: discovered through `virsh`, read through QEMU's NBD server while they run and by our own
//! QCOW2 reader while they are off.
//!
//! What lives here: the settings and the door; each noun of libvirt has its file beside this one. What does not: NBD and
//! QCOW2.
//!
//! `virsh` is driven as a supervised child, for reasons that `docs/decisions` tells; nothing of libvirt is linked, so the
//! binary starts and serves its other sources where libvirt is not installed.
//!
//! Invariant: only what bears our deployment's id, or whose socket lies in a folder of ours, is ended or deleted.

mod agent;
mod checkpoint;
mod config;
mod discover;
mod document;
mod domain;
mod fit;
mod instant;
mod job;
mod layers;
mod live;
mod machine;
pub(crate) mod name;
mod off;
mod rebuild;
mod scratch;
mod virsh;
mod xml;

use crate::error::{Error, Kind, Result};
use crate::instant::{Instant, InstantVm, Moving, PlannedInstant, Standing};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::model::{DiscoveredVm, FreezeRequest, TestReport, VmRef};
use crate::open::SourceContext;
use crate::target::{DiskFormat, NewVm, Planned, Target};
use crate::{Frozen, Source, TrackingReset};
use domain::{Domain, Place};
use sendense_block::Cancel;
use sendense_types::{DeploymentId, SourceId, SourceKind, TrackingToken};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virsh::Virsh;

/// The floor of free space unless told otherwise: ten looks of the watch at 2 GB/s of guest writes.
const SCRATCH_FLOOR_BYTES: u64 = 1 << 30;
/// How long the guest agent may take to freeze unless told otherwise. More than 5 s is not possible: see `agent`.
const AGENT_TIMEOUT_S: u64 = 5;

/// A source's settings as they are stored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    uri: String,
    scratch_dir: Option<PathBuf>,
    scratch_floor_bytes: Option<u64>,
    agent_timeout_s: Option<u64>,
    #[serde(default)]
    image_dirs: Vec<PathBuf>,
}

/// A source's settings, resolved.
#[derive(Debug, Clone)]
struct Settings {
    source_id: SourceId,
    deployment_id: DeploymentId,
    virsh: Virsh,
    /// The daemon is on this host, so QEMU's sockets and images can be reached.
    local: bool,
    /// It is the system's and not a person's own.
    system: bool,
    scratch_dir: PathBuf,
    scratch_floor_bytes: u64,
    agent_timeout_s: u64,
    image_dirs: Vec<PathBuf>,
}

impl Settings {
    fn resolve(config: Config, context: SourceContext) -> Result<Self> {
        let (scheme, rest) = config.uri.split_once("://").unwrap_or_default();
        let driver = scheme.split('+').next().unwrap_or_default();
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        if driver != "qemu" || config.uri.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            return Err(Error::new(Kind::Invalid, format!("{:?} is no URI of libvirt's QEMU driver", config.uri))
                .hint("qemu:///system is the usual one"));
        }
        let system = rest.get(host.len()..).is_some_and(|path| path.starts_with("/system"));
        // The folder of QEMU's user, which the system daemon makes; a session's QEMU is our own user.
        let usual = if system { "/var/lib/libvirt/qemu/sendense".into() } else { context.run_dir.join("scratch") };
        let scratch_dir = config.scratch_dir.unwrap_or(usual);
        if let Some(path) = config.image_dirs.iter().chain([&scratch_dir]).find(|path| !path.is_absolute()) {
            return Err(Error::new(Kind::Invalid, format!("{} is not an absolute path", path.display())));
        }
        let mut image_dirs = config.image_dirs;
        image_dirs.push("/var/lib/libvirt/images".into());
        image_dirs.extend(context.roots.as_slice().iter().cloned());
        Ok(Self {
            source_id: context.source_id,
            deployment_id: context.deployment_id,
            system,
            local: host.is_empty() && matches!(scheme, "qemu" | "qemu+unix"),
            virsh: Virsh { uri: config.uri, program: "virsh".into() },
            scratch_dir,
            scratch_floor_bytes: config.scratch_floor_bytes.unwrap_or(SCRATCH_FLOOR_BYTES),
            agent_timeout_s: config.agent_timeout_s.unwrap_or(AGENT_TIMEOUT_S),
            image_dirs,
        })
    }

    /// The path of a layer on this host.
    fn path_of(&self, place: &Place) -> Result<PathBuf> {
        match place {
            Place::File(path) | Place::Block(path) => Ok(path.clone()),
            Place::Volume { pool, volume } => {
                let text = self.virsh.ask(&["vol-path", "--pool", pool, "--vol", volume], &Cancel::new())?;
                Ok(PathBuf::from(text.trim()))
            }
            Place::Network { .. } | Place::Other(_) => {
                Err(Error::new(Kind::Unsupported, format!("{place} lies in no file of this host")))
            }
        }
    }
}

/// A libvirt daemon with its domains.
pub struct LibvirtSource {
    settings: Settings,
}

/// Opens a libvirt source; see [`crate::open()`]. Nothing is connected yet.
pub fn open(config: &serde_json::Value, context: SourceContext) -> Result<Arc<dyn Source>> {
    let config: Config = crate::open::settings(SourceKind::Libvirt, config)?;
    Ok(Arc::new(LibvirtSource { settings: Settings::resolve(config, context)? }))
}

impl Source for LibvirtSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Libvirt
    }

    fn test(&self, cancel: &Cancel) -> Result<TestReport> {
        let settings = &self.settings;
        let text = settings.virsh.ask(&["version"], cancel)?;
        let said = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim_start_matches(':').trim().to_owned())
        };
        let library = said("Using library").unwrap_or_else(|| "libvirt".into());
        let hypervisor = said("Running hypervisor").unwrap_or_else(|| "QEMU of unknown version".into());
        let mut warnings = Vec::new();
        if !settings.local {
            warnings
                .push("the daemon is on another host: domains are listed; backing them up needs a node there".into());
        } else {
            match scratch::free_bytes(&settings.scratch_dir) {
                Ok(free) if free < settings.scratch_floor_bytes => {
                    warnings
                        .push(scratch::too_full(&settings.scratch_dir, free, settings.scratch_floor_bytes).to_string());
                }
                Ok(_) => {}
                // It is made at the first backup.
                Err(_) if !settings.scratch_dir.exists() => {}
                Err(error) => warnings.push(error.to_string()),
            }
        }
        Ok(TestReport { product: format!("{library}, {hypervisor}"), warnings })
    }

    fn discover(&self, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
        discover::all(&self.settings, cancel)
    }

    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> Result<DiscoveredVm> {
        discover::look(&self.settings, uuid_of(vm)?, cancel).map(|found| discover::describe(&found))
    }

    fn freeze(&self, request: &FreezeRequest, journal: &Arc<dyn Journal>, cancel: &Cancel) -> Result<Box<dyn Frozen>> {
        if !self.settings.local {
            let message = format!(
                "{} is a daemon on another host, whose disks cannot be read from here",
                self.settings.virsh.uri
            );
            return Err(Error::new(Kind::Unsupported, message).hint("run a node on that host"));
        }
        let found = discover::look(&self.settings, uuid_of(&request.vm)?, cancel)?;
        for asked in &request.disks {
            let disk = found.domain.disk(&asked.key);
            match disk {
                Some(disk) if disk.binding() == asked.binding => {
                    if let Some(reason) = disk.unsupported() {
                        return Err(Error::new(Kind::Unsupported, format!("{}: {reason}", asked.key)));
                    }
                }
                Some(disk) => {
                    let message =
                        format!("{} is another disk by now: {}, not {}", asked.key, disk.binding(), asked.binding);
                    return Err(Error::new(Kind::Disturbed, message));
                }
                None => return Err(Error::new(Kind::Disturbed, format!("the disk {} was removed", asked.key))),
            }
        }
        match found.domain.running {
            true => live::freeze(&self.settings, found, request, journal, cancel),
            false => off::freeze(&self.settings, found, request, cancel),
        }
    }

    fn retire(
        &self,
        vm: &VmRef,
        keep: &[TrackingToken],
        _journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Vec<TrackingToken>> {
        let (virsh, uuid) = (&self.settings.virsh, uuid_of(vm)?);
        match virsh.ask(&["dumpxml", uuid], cancel) {
            // libvirt 9.0 deletes no checkpoint of a domain that is off.
            Ok(document) if !Domain::parse(&document)?.running => Ok(Vec::new()),
            Ok(_) => checkpoint::retire(virsh, uuid, &self.settings.deployment_id, keep, cancel),
            Err(error) if error.kind == Kind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn reset_tracking(
        &self,
        request: &FreezeRequest,
        fresh: &[TrackingToken],
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<TrackingReset> {
        let document = self.settings.virsh.ask(&["dumpxml", uuid_of(&request.vm)?], cancel)?;
        if !Domain::parse(&document)?.running {
            // Its bitmaps lie in its images and go on; the next point of the running domain makes a new one.
            return Ok(TrackingReset::Begun);
        }
        // The freeze has begun a bitmap of its own. Those of before missed something, whichever chain they are for.
        self.retire(&request.vm, fresh, journal, cancel)?;
        Ok(TrackingReset::FreshMarks)
    }

    fn reap(&self, artefact: &Artefact, cancel: &Cancel) -> Result<bool> {
        let (virsh, domain) = (&self.settings.virsh, artefact.vm_key.as_str());
        let uuid = uuid::Uuid::parse_str(domain)
            .map_err(|_| Error::new(Kind::Invalid, format!("the journal names the domain {domain:?}")))?
            .to_string();
        match artefact.kind {
            ArtefactKind::BackupJob => live::reap(virsh, &uuid, &artefact.details),
            ArtefactKind::FrozenGuest => match agent::thaw(virsh, &uuid, cancel) {
                Ok(()) => Ok(true),
                // A domain that is off or gone is not frozen.
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Disturbed) => Ok(true),
                Err(error) if error.kind == Kind::Unavailable => Ok(false),
                Err(error) => Err(error),
            },
            ArtefactKind::Machine => machine::reap(virsh, &uuid, &artefact.details, cancel),
            // `retire` decides on checkpoints; children and files are not recorded by this source.
            ArtefactKind::Checkpoint | ArtefactKind::Snapshot | ArtefactKind::ChildProcess | ArtefactKind::File => {
                Ok(true)
            }
        }
    }

    fn target(&self) -> Option<&dyn Target> {
        Some(self)
    }

    fn instant(&self) -> Option<&dyn Instant> {
        Some(self)
    }
}

impl Target for LibvirtSource {
    fn folder(&self, pool: &str, cancel: &Cancel) -> Result<PathBuf> {
        machine::folder(&self.settings, pool, cancel)
    }

    fn plan(&self, new: &NewVm<'_>, cancel: &Cancel) -> Result<Planned> {
        machine::plan(&self.settings, new, cancel)
    }

    fn finish(&self, planned: &Planned, cancel: &Cancel) -> Result<()> {
        machine::finish(&self.settings, planned, cancel)
    }
}

impl Instant for LibvirtSource {
    fn socket(&self, id: &str) -> Result<PathBuf> {
        instant::socket(&self.settings, id)
    }

    fn make_folder(&self, socket: &Path) -> Result<()> {
        instant::make_folder(socket)
    }

    fn admit(&self, socket: &Path) -> Result<()> {
        instant::admit(socket)
    }

    fn remove_folder(&self, socket: &Path) -> Result<()> {
        instant::remove_folder(socket)
    }

    fn plan(&self, new: &InstantVm<'_>, cancel: &Cancel) -> Result<PlannedInstant> {
        instant::plan(&self.settings, new, cancel)
    }

    fn start(&self, planned: &PlannedInstant, cancel: &Cancel) -> Result<Vec<String>> {
        instant::start(&self.settings.virsh, planned, cancel)
    }

    fn look(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Standing> {
        instant::look(&self.settings.virsh, vm, socket, cancel)
    }

    fn resume(&self, vm: &VmRef, cancel: &Cancel) -> Result<()> {
        instant::resume(&self.settings.virsh, vm, cancel)
    }

    fn served(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Option<Vec<String>>> {
        instant::served(&self.settings.virsh, vm, socket, cancel)
    }

    fn begin_move(&self, vm: &VmRef, key: &str, file: &Path, format: DiskFormat, cancel: &Cancel) -> Result<()> {
        instant::begin_move(&self.settings.virsh, vm, key, file, format, cancel)
    }

    fn moving(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<Option<Moving>> {
        instant::moving(&self.settings.virsh, vm, key, cancel)
    }

    fn finish_move(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<bool> {
        instant::finish_move(&self.settings.virsh, vm, key, cancel)
    }

    fn stop_move(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<()> {
        instant::stop_move(&self.settings.virsh, vm, key, cancel)
    }

    fn end(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<()> {
        instant::end(&self.settings.virsh, vm, socket, cancel)
    }
}

/// The domain's UUID, and nothing that could be taken for a flag or a number.
fn uuid_of(vm: &VmRef) -> Result<&str> {
    match uuid::Uuid::parse_str(&vm.instance_uuid) {
        Ok(_) => Ok(&vm.instance_uuid),
        Err(error) => {
            Err(Error::new(Kind::Invalid, format!("{:?} is no UUID of a domain", vm.instance_uuid)).caused_by(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Roots;

    impl Settings {
        /// Of the system daemon, for tests that put another program in the place of virsh.
        pub(super) fn for_tests() -> Self {
            settings(serde_json::json!({"uri": "qemu:///system"})).unwrap()
        }
    }

    fn settings(config: serde_json::Value) -> Result<Settings> {
        let context = SourceContext {
            source_id: "src-1".parse().unwrap(),
            deployment_id: "dep-1".parse().unwrap(),
            run_dir: "/run/x".into(),
            roots: Roots::default(),
        };
        Settings::resolve(Config::deserialize(config).map_err(|e| Error::new(Kind::Invalid, e.to_string()))?, context)
    }

    #[test]
    fn settings_are_resolved_or_refused() {
        let found = settings(serde_json::json!({"uri": "qemu:///system"})).unwrap();
        assert_eq!((found.local, found.scratch_dir.to_str()), (true, Some("/var/lib/libvirt/qemu/sendense")));
        let found = settings(serde_json::json!({"uri": "qemu:///session?socket=/x/y"})).unwrap();
        assert_eq!((found.local, found.scratch_dir.to_str()), (true, Some("/run/x/scratch")));
        for remote in ["qemu+ssh://root@host/system", "qemu://host/system", "qemu+tcp://host/system"] {
            assert!(!settings(serde_json::json!({"uri": remote})).unwrap().local, "{remote}");
        }
        for bad in [
            serde_json::json!({}),
            serde_json::json!({"uri": "xen:///system"}),
            serde_json::json!({"uri": "--help"}),
            serde_json::json!({"uri": "qemu:///system\n"}),
            serde_json::json!({"uri": "qemu:///system", "scratch": "/x"}),
            serde_json::json!({"uri": "qemu:///system", "scratch_dir": "x"}),
        ] {
            assert_eq!(settings(bad.clone()).unwrap_err().kind, Kind::Invalid, "{bad}");
        }
    }
}
