//! Brings recoveries to the state that they should be in: served, or gone.
//!
//! A pass reads everything anew and may be repeated at any time; the first one of a hub's life serves what the life before
//! it served, and ends what that had only begun.

use super::disks::Begin;
use super::record::State;
use super::{Recovery, commit, life, machine, migrate};
use crate::core::{Core, blocking};
use crate::fault::Result;
use crate::maintenance::Use;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two passes: a guest waits for its disks, and an idle pass costs nothing.
const PASS_PERIOD: Duration = Duration::from_secs(2);

/// Between two looks at a machine: so long an idle one may wait after its first request. A look costs two questions to libvirt.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// Passes until the hub stops.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut rounds = core.rounds(PASS_PERIOD);
    while rounds.next().await {
        // Side by side: a repository that does not answer holds up its own recoveries only.
        futures::future::join_all(core.recoveries.all().iter().map(|recovery| pass(&core, recovery))).await;
    }
}

async fn pass(core: &Arc<Core>, recovery: &Arc<Recovery>) {
    let done = match recovery.record().state {
        State::Ready if recovery.served().0.is_some() => return wake(core, recovery).await,
        State::Ready => serve(core, recovery).await,
        State::Creating | State::Ending | State::Committing { .. } | State::Migrating { .. } => {
            go_on(core, recovery).await
        }
    };
    if let Err(problem) = done {
        let mut now = recovery.state.lock();
        // The log is told of a trouble once.
        if now.trouble.as_ref() != Some(&problem) {
            tracing::warn!(recovery_id = %recovery.id, error = %problem.message, details = %problem.details,
                "a recovery is not as it should be");
        }
        now.trouble = Some(problem);
    }
}

/// Lets a machine go on that stopped because a disk was away. After the hub has gone and come back, QEMU fails the first
/// requests to a disk while it connects again, which may be when an idle guest writes for the first time hours later.
async fn wake(core: &Arc<Core>, recovery: &Arc<Recovery>) {
    let record = recovery.record();
    let Some(machine) = record.machine else { return };
    if recovery.state.lock().look_at > Instant::now() {
        return;
    }
    let Some(_turn) = recovery.free_turn() else { return };
    let (dir, floor) = (core.recoveries.dir.clone(), core.recoveries.config.floor_bytes);
    let woken = async {
        let door = machine::door(core, &machine.source_id).await?;
        // One that stopped for want of room would only stop again.
        blocking(move || life::check_room(&dir, floor).and_then(|()| door.resume(&machine))).await?
    };
    let again = match woken.await {
        Ok(true) => {
            tracing::info!(recovery_id = %recovery.id, "a machine goes on that had waited for its disks");
            // It may have to wait for another disk.
            PASS_PERIOD
        }
        Ok(false) => LOOK_PERIOD,
        Err(problem) => {
            tracing::debug!(recovery_id = %recovery.id, error = %problem.message, "see whether a machine waits");
            LOOK_PERIOD
        }
    };
    recovery.state.lock().look_at = Instant::now() + again;
}

/// Whoever has the turn brings it to where it should be; so nothing here waits for one.
async fn serve(core: &Arc<Core>, recovery: &Arc<Recovery>) -> Result<()> {
    let repository = core.repositories.by_id(core, &recovery.record().repository_id, Use::GoOn).await?;
    let Some(_turn) = recovery.free_turn() else { return Ok(()) };
    if recovery.record().state != State::Ready || recovery.served().0.is_some() {
        return Ok(());
    }
    life::serve(core, recovery, repository, Begin::Open).await?;
    tracing::info!(recovery_id = %recovery.id, "recovery is served again");
    Ok(())
}

/// What nobody works on any more goes on where it stopped.
async fn go_on(core: &Arc<Core>, recovery: &Arc<Recovery>) -> Result<()> {
    let Some(_turn) = recovery.free_turn() else { return Ok(()) };
    // It may be gone by now.
    if core.recoveries.find(recovery.id.as_str()).is_err() {
        return Ok(());
    }
    let record = recovery.record();
    match record.state.clone() {
        State::Ready => Ok(()),
        State::Creating | State::Ending => life::end_now(core, recovery).await,
        State::Migrating { .. } => migrate::settle(core, recovery, record, false).await,
        State::Committing { backup_id } => commit::settle(core, recovery, record, backup_id).await,
    }
}
