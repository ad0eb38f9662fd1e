//! Snapshots of ours: making one, and taking away all of it.
//!
//! What lives here: the marks by which ours are known, the fall-back from a quiesced one, removal with its tries, deltas that
//! stay behind. What does not: reading. A snapshot that stays makes a machine slower every day until its datastore is full,
//! so removal is tried several times here, then stays in the journal and is tried at every look of the hub.

use super::{Settings, discover, session};
use crate::error::{Error, Kind, Result, cannot_quiesce};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::libvirt::name::Checkpoint as Mark;
use crate::model::FreezeRequest;
use sendense_block::Cancel;
use sendense_types::{Consistency, DeploymentId};
use sendense_vsphere::inventory::{Machine, Power, Snapshot};
use sendense_vsphere::{FaultKind, Ref, Vim};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name that people see; names have at most 80 characters, so what identifies is in the description.
const NAME: &str = "Sendense backup (removed by itself)";
/// The pauses before each try to remove a snapshot or to bring deltas together: another program's lock is gone in
/// seconds, or it is gone in hours.
const PAUSES_MS: [u64; 4] = [0, 500, 3_000, 10_000];

/// What the journal needs to remove a snapshot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The description that it bears.
    pub mark: String,
    /// Deltas lay about before we came: they are somebody else's to bring together.
    pub deltas_before: bool,
}

impl Record {
    /// Writes down a snapshot of a task before it is made; gives the journal's entry and what it says.
    pub fn journal(
        settings: &Settings,
        machine: &Machine,
        request: &FreezeRequest,
        journal: &Arc<dyn Journal>,
    ) -> Result<(u64, Self)> {
        let mark = Mark { deployment_id: request.deployment_id.clone(), task_id: request.task_id.clone() }.name();
        let record = Self { mark, deltas_before: machine.consolidation_needed };
        let artefact = Artefact {
            source_id: settings.source_id.clone(),
            task_id: request.task_id.clone(),
            kind: ArtefactKind::Snapshot,
            vm_key: request.vm.instance_uuid.clone(),
            details: record.details()?,
        };
        Ok((journal.record(&artefact)?, record))
    }

    fn details(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| Error::new(Kind::Failed, "write it down").caused_by(error))
    }
}

/// What the journal would hold of a snapshot with that description.
pub(super) fn record(mark: &str, deltas_before: bool) -> Result<serde_json::Value> {
    Record { mark: mark.to_owned(), deltas_before }.details()
}

/// A snapshot that was made.
pub(super) struct Made {
    pub reference: Ref,
    pub consistency: Consistency,
    pub note: Option<String>,
}

/// Makes a snapshot that bears the mark; quiesced if that is wanted and possible. A failure leaves none behind, or the journal's
/// entry must stay open: `Err((error, clean))`.
pub(super) fn make(
    vim: &Vim,
    machine: &Machine,
    mark: &str,
    quiesce: bool,
    quiesce_or_fail: bool,
    cancel: &Cancel,
) -> std::result::Result<Made, (Error, bool)> {
    let possible = match (machine.power, machine.tools_running) {
        (Power::On, true) => Ok(()),
        (Power::On, false) => Err("the guest's tools do not run"),
        (Power::Off, _) => Err("the machine is off"),
        _ => Err("the machine is suspended"),
    };
    let attempt = |quiesce| vim.create_snapshot(&machine.reference, NAME, mark, quiesce, cancel);
    let crash = |reference, note: Option<String>| Made { reference, consistency: Consistency::Crash, note };
    let because = match (quiesce, possible) {
        // A machine that is off is in order as it is.
        (false, _) | (true, Err("the machine is off")) => None,
        (true, Err(why)) => Some(why.to_owned()),
        (true, Ok(())) => match attempt(true) {
            Ok(reference) => return Ok(Made { reference, consistency: Consistency::Filesystem, note: None }),
            Err(error) => {
                let could_not_quiesce = error.kind().is_some_and(may_be_for_quiescing);
                let told = error.to_string();
                // The answer may have been lost on the way, or a broken snapshot be left of the attempt.
                let clean = remove(vim, &machine.reference, mark, true).is_ok();
                if !could_not_quiesce || !clean {
                    return Err((error.into(), clean));
                }
                Some(told)
            }
        },
    };
    if let (Some(why), true) = (&because, quiesce_or_fail) {
        return Err((cannot_quiesce(&machine.name, why), true));
    }
    attempt(false).map(|reference| crash(reference, because)).map_err(|error| {
        let clean = remove(vim, &machine.reference, mark, true).is_ok();
        (error.into(), clean)
    })
}

/// Whether a snapshot may be possible without quiescing. Servers have several words for a guest that did not come to rest, and a
/// general one (`GenericVmConfigFault`) among them; what is wrong for another reason is told by the second attempt as well.
fn may_be_for_quiescing(fault: FaultKind) -> bool {
    matches!(
        fault,
        FaultKind::ApplicationQuiesceFault
            | FaultKind::FilesystemQuiesceFault
            | FaultKind::ToolsUnavailable
            | FaultKind::SnapshotFault
            | FaultKind::NotSupported
            | FaultKind::InvalidState
            | FaultKind::Other
    )
}

/// Makes a snapshot and takes it away again, which is what a change of the change tracking waits for to take effect.
pub(super) fn pass(
    settings: &Settings,
    vim: &Vim,
    machine: &Machine,
    request: &FreezeRequest,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<()> {
    let (entry, record) = Record::journal(settings, machine, request, journal)?;
    let made = make(vim, machine, &record.mark, false, false, cancel);
    let ended = match made {
        Ok(_) => remove(vim, &machine.reference, &record.mark, record.deltas_before),
        Err((error, clean)) => {
            if clean {
                journal.close(entry)?;
            }
            return Err(error);
        }
    };
    // A snapshot that stays is in the journal and removed by the next look.
    ended.and_then(|()| journal.close(entry))
}

/// Removes what bears the mark, and brings together deltas that stay behind unless `deltas_before` says that they are
/// somebody else's. Nobody can stop it: whoever stops a backup wants it gone, too.
pub(super) fn remove(vim: &Vim, machine: &Ref, mark: &str, deltas_before: bool) -> Result<()> {
    persist(&Cancel::new(), |cancel| {
        remove_those(vim, machine, cancel, |snapshot| snapshot.description == mark)?;
        match vim.machine(machine, cancel) {
            Ok(found) if found.consolidation_needed && !deltas_before => vim.consolidate(machine, cancel),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Some(FaultKind::ManagedObjectNotFound) => Ok(()),
            Err(error) => Err(error),
        }
    })
}

/// Removes what earlier tasks of ours left on a machine. The caller holds the lease on the machine, so no other task of this
/// deployment has a living snapshot there.
pub(super) fn sweep(vim: &Vim, machine: &Machine, deployment: &DeploymentId, cancel: &Cancel) -> Result<()> {
    let ours =
        |snapshot: &Snapshot| Mark::parse(&snapshot.description).is_some_and(|mark| mark.deployment_id == *deployment);
    if !machine.snapshots.iter().any(ours) {
        return Ok(());
    }
    tracing::warn!(machine = machine.name, "a snapshot that an earlier task left is removed");
    persist(cancel, |cancel| remove_those(vim, &machine.reference, cancel, ours))
}

fn remove_those(
    vim: &Vim,
    machine: &Ref,
    cancel: &Cancel,
    which: impl Fn(&Snapshot) -> bool,
) -> sendense_vsphere::Result<()> {
    let found = match vim.snapshots(machine, cancel) {
        Ok(found) => found,
        // With the machine went its snapshots.
        Err(error) if error.kind() == Some(FaultKind::ManagedObjectNotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    for snapshot in found.into_iter().filter(which) {
        match vim.remove_snapshot(&snapshot.reference, cancel) {
            Err(error) if error.kind() != Some(FaultKind::ManagedObjectNotFound) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The pauses before each try of a question that hours of work depend on: a vCenter that starts again takes some minutes.
const PATIENT_PAUSES_S: [u64; 8] = [0, 2, 10, 30, 60, 60, 60, 60];

/// Asks again while the server is away for a moment.
pub(super) fn patiently<T>(cancel: &Cancel, ask: impl Fn(&Cancel) -> sendense_vsphere::Result<T>) -> Result<T> {
    let mut last = None;
    for pause in PATIENT_PAUSES_S {
        pause_for(Duration::from_secs(pause), cancel)?;
        match ask(cancel) {
            Err(error) if error.is_transient() => {
                tracing::info!(%error, "the server is asked again in a while");
                last = Some(error);
            }
            answer => return Ok(answer?),
        }
    }
    Err(last.map_or_else(|| Error::new(Kind::Failed, "nothing was asked"), Into::into))
}

/// Tries until it works, it is hopeless, or the tries are used up.
fn persist(cancel: &Cancel, what: impl Fn(&Cancel) -> sendense_vsphere::Result<()>) -> Result<()> {
    let mut last = None;
    for pause in PAUSES_MS {
        pause_for(Duration::from_millis(pause), cancel)?;
        match what(cancel) {
            Ok(()) => return Ok(()),
            Err(error @ sendense_vsphere::Error::Cancelled) => return Err(error.into()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Error::new(Kind::Failed, "nothing was tried"), Into::into))
}

fn pause_for(pause: Duration, cancel: &Cancel) -> Result<()> {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        cancel.check()?;
        std::thread::sleep(Duration::from_millis(50).min(pause));
    }
    Ok(cancel.check()?)
}

/// Takes away what a dead process left. One try: the hub comes again.
pub(super) fn reap(settings: &Settings, artefact: &Artefact, cancel: &Cancel) -> Result<()> {
    let record: Record = serde::Deserialize::deserialize(&artefact.details).map_err(|error| {
        Error::new(Kind::Invalid, "the journal's entry is not one of a vsphere source").caused_by(error)
    })?;
    let ours = Mark::parse(&record.mark).is_some_and(|mark| mark.deployment_id == settings.deployment_id);
    if !ours {
        return Err(Error::new(Kind::Unsafe, format!("the journal names {:?}, which is not ours", record.mark)));
    }
    session::with(settings, cancel, |vim| {
        let machine = match discover::look(vim, &artefact.vm_key, cancel) {
            Ok(machine) => machine.reference,
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        remove_those(vim, &machine, cancel, |snapshot| snapshot.description == record.mark)?;
        if vim.machine(&machine, cancel)?.consolidation_needed && !record.deltas_before {
            vim.consolidate(&machine, cancel)?;
        }
        Ok(())
    })
}
