//! How a recovery begins and how it ends.

use super::disks::{self, Begin, Stage};
use super::machine::{self, Door, Wanted};
use super::record::{DiskRecord, MachineRecord, Of, Record, State};
use super::{Recovery, migrate};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, of_block};
use crate::maintenance::Use;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sendense_block::{self as block, ByteLen};
use sendense_catalog as catalog;
use sendense_repo::{Manifest, Repository};
use sendense_types::{Name, Problem, ProblemCode, RecoveryId};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Random bytes in a name: nobody guesses 128 bits.
const SECRET_BYTES: usize = 16;

/// Makes a recovery of a point, and a machine on it if one is wanted. When it fails nothing of it is left, or what is left is
/// recorded and goes later. What a person should know of the machine comes with it.
pub(crate) async fn create(
    core: &Arc<Core>,
    row: catalog::Backup,
    name: Name,
    wanted: Option<Wanted>,
    by: &str,
) -> Result<(Arc<Recovery>, Vec<String>)> {
    let repository = core.repositories.by_id(core, &row.repository_id, Use::Read).await?;
    let door = match &wanted {
        Some(wanted) => Some(machine::door(core, &wanted.source_id).await?),
        None => None,
    };
    let id = RecoveryId::generate();
    let of = Of {
        backup_id: row.backup_id.clone(),
        vm_context_id: row.vm_context_id.clone(),
        vm_name: row.vm_name.into(),
        repository_id: row.repository_id,
    };
    let (asked, now, by, way, chain) = (core.clone(), core.now(), by.to_owned(), door.clone(), repository.clone());
    let (record, planned) = blocking(move || {
        let dir = &asked.recoveries.dir;
        check_room(dir, asked.recoveries.config.floor_bytes)?;
        let manifest = chain.manifest(&of.vm_context_id, &of.backup_id).or_problem()?;
        let disks = disks_of(&id, &manifest)?;
        let (machine, planned) = match way.zip(wanted) {
            Some((door, wanted)) => {
                door.plan(&id, &wanted, &manifest, &disks).map(|(record, plan)| (Some(record), Some(plan)))?
            }
            None => (None, None),
        };
        Ok::<_, Problem>((Record::new(id, name, of, dir, disks, now, &by).with_machine(machine), planned))
    })
    .await??;
    let (recovery, _turn) = core.recoveries.enter(record)?;
    let mut notes = planned.as_ref().map(|planned| planned.notes.clone()).unwrap_or_default();
    let made = async {
        serve(core, &recovery, repository, Begin::Create).await?;
        if let Some((door, planned)) = door.zip(planned) {
            notes.extend(blocking(move || door.start(&planned)).await??);
        }
        core.recoveries.advance(&recovery, |record| record.state = State::Ready)
    };
    if let Err(problem) = made.await {
        if let Err(left) = end_now(core, &recovery).await {
            tracing::warn!(recovery_id = %recovery.id, error = %left.message, "what a recovery left goes later");
        }
        return Err(problem);
    }
    Ok((recovery, notes))
}

/// Takes a recovery away with all that was written to it. Once begun it goes on, if need be in another life of the hub.
pub(crate) async fn discard(core: &Arc<Core>, recovery: &Recovery) -> Result<()> {
    let _turn = recovery.turn().await?;
    // Somebody else may have had the same turn in mind.
    core.recoveries.find(recovery.id.as_str())?;
    end_now(core, recovery).await
}

/// Serves its disks. The caller has the turn.
pub(super) async fn serve(
    core: &Arc<Core>,
    recovery: &Arc<Recovery>,
    repository: Repository,
    begin: Begin,
) -> Result<()> {
    let record = recovery.record();
    let door = door_of(core, &record).await?;
    let (exports, floor) = (core.exports.clone(), ByteLen(core.recoveries.config.floor_bytes));
    let served = blocking(move || {
        let Some((door, machine)) = door else {
            return disks::serve(&record, &repository, Stage::Hub(exports), floor, begin);
        };
        door.prepare(&machine)?;
        let stage = Stage::own(&machine.socket).map_err(|error| of_block("serve the disks", &error))?;
        let served = disks::serve(&record, &repository, stage, floor, begin)?;
        door.admit(&machine)?;
        Ok(served)
    })
    .await??;
    let mut now = recovery.state.lock();
    (now.served, now.trouble, now.look_at) = (Some(Arc::new(served)), None, Instant::now());
    Ok(())
}

async fn door_of(core: &Core, record: &Record) -> Result<Option<(Door, MachineRecord)>> {
    match &record.machine {
        Some(machine) => Ok(Some((machine::door(core, &machine.source_id).await?, machine.clone()))),
        None => Ok(None),
    }
}

/// Ends it, from any state: first the machine, then what it stood on. The caller has the turn.
pub(super) async fn end_now(core: &Arc<Core>, recovery: &Recovery) -> Result<()> {
    let record = core.recoveries.advance(recovery, |record| record.state = State::Ending)?;
    let ended = async {
        let door = door_of(core, &record).await?;
        if let Some((door, machine)) = door.clone() {
            blocking(move || door.end(&machine)).await??;
        }
        let served = recovery.state.lock().served.take();
        let id = recovery.id.clone();
        blocking(move || {
            if let Some(served) = served {
                disks::close(&id, served);
            }
            if let Some((door, machine)) = door {
                door.clear(&machine)?;
            }
            record.moved.iter().try_for_each(|file| migrate::remove(file))?;
            disks::remove(&record)
        })
        .await??;
        core.recoveries.forget(recovery)
    };
    match ended.await {
        Ok(()) => {
            tracing::info!(recovery_id = %recovery.id, "recovery is gone");
            Ok(())
        }
        Err(problem) => {
            recovery.state.lock().trouble = Some(problem.clone());
            Err(problem)
        }
    }
}

/// What is served, under names that nobody guesses.
fn disks_of(id: &RecoveryId, manifest: &Manifest) -> Result<Vec<DiskRecord>> {
    let disks = manifest.disks.iter().map(|disk| {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| internal("no random bytes", error.to_string()))?;
        Ok(DiskRecord {
            export: format!("{id}-disk{}-{}", disk.disk_id, URL_SAFE_NO_PAD.encode(secret)),
            disk_id: disk.disk_id,
            disk_key: disk.disk_key.clone(),
            label: disk.label.clone(),
            size_bytes: disk.capacity_bytes,
        })
    });
    disks.collect()
}

/// A recovery that could write nothing is not begun.
pub(super) fn check_room(dir: &Path, floor_bytes: u64) -> Result<()> {
    let found = rustix::fs::statvfs(dir).map_err(|errno| {
        let error = block::Error::io(format!("look for room in {}", dir.display()), errno.into());
        of_block("begin a recovery", &error)
    })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free > floor_bytes {
        return Ok(());
    }
    let details = format!("{} are free in {}, and {} stay so", ByteLen(free), dir.display(), ByteLen(floor_bytes));
    Err(Problem::new(ProblemCode::NoSpace, "no space for what a recovered machine writes", details))
}
