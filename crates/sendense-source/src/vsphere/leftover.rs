//! Things of ours on any machine of the server, whatever journal knew of them: a hub whose data folder was lost, or that died
//! between the server's doing and its answer, knows nothing of what it left.
//!
//! What lives here: finding them by their marks. What does not: whose task still lives (the hub), and removing (`reap`).
//! Invariant: what is given here bears our deployment's id in exactly our form, and is found by that alone.

use super::{Settings, restore, session, snapshot};
use crate::error::Result;
use crate::journal::{Artefact, ArtefactKind};
use crate::libvirt::name::Checkpoint as Mark;
use sendense_block::Cancel;
use sendense_vsphere::inventory::Machine;

/// All of them, each as an entry that can be reaped.
pub(super) fn find(settings: &Settings, cancel: &Cancel) -> Result<Vec<Artefact>> {
    let machines = session::with(settings, cancel, |vim| Ok(vim.marks(cancel)?))?;
    let mut found = Vec::new();
    for machine in &machines {
        let Some(instance_uuid) = &machine.instance_uuid else { continue };
        let ours = |text: &str| Mark::parse(text).filter(|mark| mark.deployment_id == settings.deployment_id);
        let artefact = |mark: Mark, kind, details| Artefact {
            source_id: settings.source_id.clone(),
            task_id: mark.task_id,
            kind,
            vm_key: instance_uuid.clone(),
            details,
        };
        for snapshot in &machine.snapshots {
            if let Some(mark) = ours(&snapshot.description) {
                let details = snapshot::record(&snapshot.description, machine.consolidation_needed)?;
                found.push(artefact(mark, ArtefactKind::Snapshot, details));
            }
        }
        if let Some(mark) = unfinished(machine).and_then(ours) {
            let details = restore::record(&mark.name(), &machine.name)?;
            found.push(artefact(mark, ArtefactKind::Machine, details));
        }
    }
    Ok(found)
}

fn unfinished(machine: &Machine) -> Option<&str> {
    machine.annotation.as_deref().and_then(restore::mark_of)
}
