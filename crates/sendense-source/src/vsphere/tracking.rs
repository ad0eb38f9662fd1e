//! Change tracking of a machine: switching it on, and beginning it anew when it was found wrong.
//!
//! What lives here: when either may be done. What does not: when tracking may be believed (`token`). The server takes a
//! change of it at once and the machine at its next stun: a snapshot, a power cycle.

use super::{Settings, discover, session, snapshot};
use crate::TrackingReset;
use crate::error::{Error, Kind, Result};
use crate::journal::Journal;
use crate::model::FreezeRequest;
use sendense_block::Cancel;
use sendense_vsphere::Vim;
use sendense_vsphere::inventory::Machine;
use std::sync::Arc;

/// Switches tracking on where it is off and that may be done; gives the machine as it is then.
pub(super) fn switch_on(vim: &Vim, machine: Machine, cancel: &Cancel) -> Result<Machine> {
    if machine.change_tracking || discover::can_be_switched_on(&machine).is_err() {
        return Ok(machine);
    }
    match vim.set_change_tracking(&machine.reference, true, cancel) {
        Ok(()) => tracing::info!(machine = machine.name, "change tracking is switched on"),
        Err(sendense_vsphere::Error::Cancelled) => return Err(Error::new(Kind::Cancelled, "stopped on request")),
        // A full needs no tracking, and the next incremental will say that there was none.
        Err(error) => tracing::warn!(machine = machine.name, %error, "change tracking cannot be switched on"),
    }
    Ok(vim.machine(&machine.reference, cancel)?)
}

/// Switches tracking off and on again, with a stun between the two, so that every disk begins with an epoch of its own
/// (VMware's KB 2139574). Not beside a snapshot of somebody else: then it could not be switched on again.
pub(super) fn reset(
    settings: &Settings,
    request: &FreezeRequest,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<TrackingReset> {
    session::with(settings, cancel, |vim| {
        let machine = discover::look(vim, &request.vm.instance_uuid, cancel)?;
        if !machine.snapshots.is_empty() {
            let message =
                format!("{} has snapshots, beside which change tracking must not be begun anew", machine.name);
            return Err(Error::new(Kind::Busy, message).hint("remove them, then switch it off and on again"));
        }
        vim.set_change_tracking(&machine.reference, false, cancel)?;
        let passed = snapshot::pass(settings, vim, &machine, request, journal, cancel);
        // On again whatever became of the snapshot: a machine of which nothing is tracked is read completely at every
        // backup. One that stays is removed later, and tracking then switched on by the next backup.
        let machine = vim.machine(&machine.reference, cancel)?;
        switch_on(vim, machine, cancel)?;
        passed.map(|()| TrackingReset::Begun)
    })
}
