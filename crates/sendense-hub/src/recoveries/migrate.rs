//! A recovered machine moves to storage of its own while it runs: its hypervisor copies each disk, and lets it go on with the copy.
//!
//! ```text
//! ready --> migrating (served as before; nobody else has the turn) --> every disk moved: ending, the machine stays
//!   ^------------- some are not, for whatever reason: their files go -----'
//! ```
//!
//! Invariant: which disks have moved is asked of the hypervisor, never remembered; a file that a machine may be using is never removed
//! while the machine is there.

use super::below::Comparing;
use super::machine::{Door, door};
use super::record::{MachineRecord, Record, State};
use super::{Recovery, life};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_block};
use crate::jobs::handle::Handle;
use crate::maintenance::Use;
use sendense_block::{self as block, ByteLen};
use sendense_source::target::DiskFormat;
use sendense_types::{Problem, ProblemCode, RecoveryId};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at a copy that the hypervisor makes: a person sees motion, and a look costs 15 ms.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often the copy of a disk is tried, [`TRY_PAUSE`] apart: after the hub was away QEMU fails the first reads of a disk while it
/// connects again, which it tries every 16 s at the latest.
const TRIES_MAX: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_secs(5);

/// Where the disks of a machine go.
pub(crate) struct To {
    pub folder: PathBuf,
    pub format: DiskFormat,
}

/// Whether a recovery can be migrated now: its machine runs on disks that are served.
pub(crate) async fn check(core: &Core, recovery: &Recovery) -> Result<(Door, MachineRecord)> {
    let refused = |details: String| Problem::new(ProblemCode::Conflict, "the recovery cannot be migrated", details);
    let record = recovery.record();
    if record.state != State::Ready || recovery.served().0.is_none() {
        return Err(refused(format!("{} is not served now, or being worked on", recovery.id)));
    }
    let Some(machine) = record.machine else {
        let details = "it has no machine of the hub's: copy its disks with the hypervisor that runs on them".to_owned();
        return Err(refused(details));
    };
    let door = door(core, &machine.source_id).await?;
    let (way, asked) = (door.clone(), machine.clone());
    match blocking(move || way.is_running(&asked)).await?? {
        true => Ok((door, machine)),
        false => Err(refused("its machine does not run; start it first, or commit the recovery".to_owned())),
    }
}

/// Moves the machine. What came of it, in a sentence.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, id: &RecoveryId, to: To) -> Result<String> {
    let recovery = core.recoveries.find(id.as_str())?;
    let _turn = recovery.turn().await?;
    let (door, machine) = check(core, &recovery).await?;
    let name = machine.name.clone();
    let (way, asked) = (door.clone(), machine.clone());
    let keys = blocking(move || way.served(&asked)).await??.unwrap_or_default();
    let files: BTreeMap<String, PathBuf> = keys.iter().map(|key| (key.clone(), file(&machine, key, &to))).collect();
    let (record, served) = (recovery.record(), recovery.served().0);
    let repository = core.repositories.by_id(core, &record.repository_id, Use::GoOn).await?;
    let comparing = blocking(move || served.map(|served| served.compare(&record, &repository)).transpose());
    let comparing = comparing.await?.or_problem()?.ok_or_else(|| {
        Problem::new(ProblemCode::Conflict, "the recovery cannot be migrated", format!("{id} is not served now"))
    })?;
    let state = State::Migrating { files: files.clone() };
    let record = core.recoveries.advance(&recovery, |record| record.state = state)?;
    let (watched, format) = (handle.clone(), to.format);
    // Until all is copied or given up; then the machine reads its disks as before, if it still does.
    let copied = blocking(move || copy(&door, &machine, &files, format, &comparing, &watched)).await?;
    let settled = settle(core, &recovery, record, copied.is_ok()).await;
    copied?;
    settled?;
    Ok(format!("{name} runs on {} disks in {}, and the recovery is gone", keys.len(), to.folder.display()))
}

/// A name that no other file has.
fn file(machine: &MachineRecord, key: &str, to: &To) -> PathBuf {
    let own = uuid::Uuid::new_v4().simple().to_string();
    to.folder.join(format!("{}-{key}-{}.{}", machine.name, &own[..8], to.format.as_str()))
}

/// One disk after the other: two at once would only share the disks below. Blocks.
fn copy(
    door: &Door,
    machine: &MachineRecord,
    files: &BTreeMap<String, PathBuf>,
    format: DiskFormat,
    comparing: &Comparing,
    handle: &Handle,
) -> Result<()> {
    for (key, file) in files {
        handle.info(format!("disk {key} is copied to {}", file.display()));
        let mut tries = 1;
        while !copy_disk(door, machine, key, file, format, handle)? {
            // A person may have let the machine go on with the copy: then the file is its disk.
            match door.served(machine)? {
                Some(served) if served.contains(key) => {}
                Some(_) => break,
                None => {
                    let details = format!("somebody took {} away", machine.name);
                    return Err(Problem::new(ProblemCode::SourceFailed, "the machine is gone", details));
                }
            }
            if tries == TRIES_MAX || comparing.has_met_damage() {
                let details = format!("the hypervisor gave up copying disk {key} of {}", machine.name);
                let problem = Problem::new(ProblemCode::SourceFailed, "the copy of a disk ended early", details);
                let advice = "the machine goes on with the recovery's disks as they are: take what it needs out of it, and migrate a \
                              recovery of a point whose verification says that it is sound";
                return Err(comparing.told(problem, advice));
            }
            handle.warn(format!("the hypervisor gave up copying disk {key}; it is tried again"));
            remove(file)?;
            std::thread::sleep(TRY_PAUSE);
            tries += 1;
        }
        handle.info(format!("disk {key} has moved"));
    }
    Ok(())
}

/// Copies a disk and lets the machine go on with the copy; false when the hypervisor gave up.
fn copy_disk(
    door: &Door,
    machine: &MachineRecord,
    key: &str,
    file: &Path,
    format: DiskFormat,
    handle: &Handle,
) -> Result<bool> {
    door.begin_move(machine, key, file, format, &handle.cancel)?;
    let (mut planned, mut done) = (false, 0);
    loop {
        handle.cancel.check().map_err(|error| of_block("migrate", &error))?;
        let Some(now) = door.moving(machine, key)? else { return Ok(false) };
        if !planned && now.total > 0 {
            handle.progress.plan(ByteLen(now.total));
            planned = true;
        }
        handle.progress.taken(ByteLen(now.done.saturating_sub(done)));
        done = done.max(now.done);
        // Even then it may not be ready, and says so.
        if now.done >= now.total && now.total > 0 && door.finish_move(machine, key)? {
            return Ok(true);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// After a migration, however it ended: what has moved has moved, and nothing is left of the rest. The caller has the turn.
pub(super) async fn settle(core: &Arc<Core>, recovery: &Arc<Recovery>, record: Record, is_whole: bool) -> Result<()> {
    let (State::Migrating { files }, Some(machine)) = (record.state, record.machine) else { return Ok(()) };
    let door = door(core, &machine.source_id).await?;
    let asked = machine.clone();
    let (moved, is_done) = blocking(move || {
        // First nothing moves any more: only then what has moved is known for good.
        files.keys().try_for_each(|key| door.stop_move(&asked, key))?;
        let Some(served) = door.served(&asked)? else {
            // Somebody took the machine away. Its disks may have been in any of these.
            return Ok((existing(files.into_values()), false));
        };
        let mut moved = Vec::new();
        for (key, file) in files {
            if served.contains(&key) {
                remove(&file)?;
            } else {
                moved.push(file);
            }
        }
        Ok::<_, Problem>((moved, served.is_empty()))
    })
    .await??;
    if is_done {
        // They are the machine's own from here on.
        core.recoveries.advance(recovery, |record| {
            record.moved.clear();
            record.state = State::Ending;
        })?;
        return life::end_now(core, recovery).await;
    }
    core.recoveries.advance(recovery, |record| {
        record.moved.extend(moved);
        record.state = State::Ready;
    })?;
    if is_whole {
        let details = format!("the stored definition of {} still names disks of the recovery", machine.name);
        return Err(Problem::new(ProblemCode::SourceFailed, "not all disks have moved", details));
    }
    Ok(())
}

fn existing(files: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    files.filter(|file| file.exists()).collect()
}

/// Removes a file that no machine uses. What is gone already is no error.
pub(super) fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let error = block::Error::io(format!("remove {}", file.display()), error);
            Err(of_block("remove an unfinished copy", &error))
        }
        _ => Ok(()),
    }
}
