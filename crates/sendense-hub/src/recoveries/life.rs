//! How a recovery begins and how it ends.

use super::Recovery;
use super::disks::{self, Begin};
use super::record::{DiskRecord, Of, Record, State};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, of_block};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sendense_block::{self as block, ByteLen};
use sendense_catalog as catalog;
use sendense_repo::Repository;
use sendense_types::{Name, Problem, ProblemCode, RecoveryId};
use std::path::Path;
use std::sync::Arc;

/// Random bytes in a name: nobody guesses 128 bits.
const SECRET_BYTES: usize = 16;

/// Makes a recovery of a point. When it fails nothing of it is left, or what is left is recorded and goes later.
pub(crate) async fn create(core: &Arc<Core>, row: catalog::Backup, name: Name, by: &str) -> Result<Arc<Recovery>> {
    let repository = core.repositories.by_id(core, &row.repository_id).await?;
    let id = RecoveryId::generate();
    let of = Of {
        backup_id: row.backup_id.clone(),
        vm_context_id: row.vm_context_id.clone(),
        vm_name: row.vm_name.into(),
        repository_id: row.repository_id,
    };
    let (asked, now, by) = (core.clone(), core.now(), by.to_owned());
    let (record, repository) = blocking(move || {
        let dir = &asked.recoveries.dir;
        check_room(dir, asked.recoveries.config.floor_bytes)?;
        let disks = disks_of(&id, &repository, &of)?;
        Ok::<_, Problem>((Record::new(id, name, of, dir, disks, now, &by), repository))
    })
    .await??;
    let (recovery, _turn) = core.recoveries.enter(record)?;
    match serve(core, &recovery, repository, Begin::Create).await {
        Ok(()) => core.recoveries.advance(&recovery, |record| record.state = State::Ready).map(|_| ())?,
        Err(problem) => {
            if let Err(left) = end_now(core, &recovery).await {
                tracing::warn!(recovery_id = %recovery.id, error = %left.message, "what a recovery left goes later");
            }
            return Err(problem);
        }
    }
    Ok(recovery)
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
    let (record, exports) = (recovery.record(), core.exports.clone());
    let floor = ByteLen(core.recoveries.config.floor_bytes);
    let served = blocking(move || disks::serve(&record, &repository, &exports, floor, begin)).await??;
    let mut now = recovery.state.lock();
    (now.served, now.trouble) = (Some(Arc::new(served)), None);
    Ok(())
}

/// Ends it, from any state. The caller has the turn.
pub(super) async fn end_now(core: &Arc<Core>, recovery: &Recovery) -> Result<()> {
    let record = core.recoveries.advance(recovery, |record| record.state = State::Ending)?;
    let served = recovery.state.lock().served.take();
    let id = recovery.id.clone();
    let removed = blocking(move || {
        if let Some(served) = served {
            disks::close(&id, served);
        }
        disks::remove(&record)
    })
    .await?;
    match removed.and_then(|()| core.recoveries.forget(recovery)) {
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
fn disks_of(id: &RecoveryId, repository: &Repository, of: &Of) -> Result<Vec<DiskRecord>> {
    let manifest = repository.manifest(&of.vm_context_id, &of.backup_id).or_problem()?;
    let disks = manifest.disks.into_iter().map(|disk| {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| internal("no random bytes", error.to_string()))?;
        Ok(DiskRecord {
            export: format!("{id}-disk{}-{}", disk.disk_id, URL_SAFE_NO_PAD.encode(secret)),
            disk_id: disk.disk_id,
            disk_key: disk.disk_key,
            label: disk.label,
            size_bytes: disk.capacity_bytes,
        })
    });
    disks.collect()
}

/// A recovery that could write nothing is not begun.
fn check_room(dir: &Path, floor_bytes: u64) -> Result<()> {
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
