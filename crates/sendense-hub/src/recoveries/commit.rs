//! What a recovered machine has written becomes the next point of its chain: the recovery as the source of a backup.
//!
//! ```text
//! ready --> committing (nothing is served, nobody else has the turn) --> published: ending    failed: ready again
//! ```
//!
//! Invariant: from the first byte that is copied to the last nobody can write. Whether a commit that was cut off was published
//! is read from the repository, never remembered.

use super::below::{Comparing, WrittenDisk};
use super::record::{Record, State};
use super::{Recovery, Turn, disks, life, machine};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::maintenance::Use;
use sendense_block::{Cancel, ChangeMap, Disk};
use sendense_repo::manifest::{Content, Manifest};
use sendense_source::{
    Artefact, Changes, ConfigDocument, DiscoveredVm, Error, FreezeRequest, Frozen, FrozenDisk, FrozenFacts, Journal,
    Kind, ReadHints, Source, TestReport, VmRef,
};
use sendense_types::{BackupId, Consistency, DiskNumber, Problem, ProblemCode, RecoveryId, SourceKind, TrackingToken};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reading an overlay is reading local files and decoding the chain: two lanes keep two cores busy, in the copy's own
/// request size.
const HINTS: ReadHints = ReadHints { lanes: 2, request_bytes: 1 << 20 };

/// A recovery that is being committed.
pub(crate) struct Commit {
    recovery: Arc<Recovery>,
    _turn: Turn,
    /// What it was recovered from, and what the new point will stand on.
    pub parent: BackupId,
    /// The manifest of that point.
    pub manifest: Manifest,
    disks: BTreeMap<DiskNumber, Arc<WrittenDisk>>,
    comparing: Comparing,
}

/// Whether a recovery can be committed now: its machine is off, or nobody is connected where there is no machine of ours.
pub(crate) async fn check(core: &Core, recovery: &Recovery) -> Result<()> {
    let refused =
        |details: String| Err(Problem::new(ProblemCode::Conflict, "the recovery cannot be committed", details));
    let record = recovery.record();
    let (Some(served), _) = recovery.served() else { return refused(format!("{} is not served now", recovery.id)) };
    if record.state != State::Ready {
        return refused(format!("{} is being worked on", recovery.id));
    }
    if let Some(machine) = record.machine.clone() {
        let door = machine::door(core, &machine.source_id).await?;
        if blocking(move || door.is_on(&machine)).await?? {
            return refused("its machine is on; shut it down first".to_owned());
        }
    }
    match served.clients() {
        0 => Ok(()),
        clients => refused(format!("{clients} clients are connected; end them first")),
    }
}

/// Only the end of a chain can grow.
pub(crate) fn not_newest(point: &BackupId, newest: Option<&BackupId>) -> Problem {
    let newest = newest.map_or("none".to_owned(), ToString::to_string);
    let details = format!("it is of {point}, and the newest point of the disk is {newest}");
    Problem::new(ProblemCode::Conflict, "only a recovery of the newest point can be committed", details)
}

/// Stops serving and holds still, for the backup with this id.
pub(crate) async fn begin(core: &Arc<Core>, id: &RecoveryId, backup_id: &BackupId) -> Result<Commit> {
    let recovery = core.recoveries.find(id.as_str())?;
    let turn = recovery.turn().await?;
    check(core, &recovery).await?;
    let record = recovery.record();
    let repository = core.repositories.by_id(core, &record.repository_id, Use::GoOn).await?;
    let (vm, point) = (record.vm_context_id.clone(), record.backup_id.clone());
    let (reader, served) = (repository.clone(), recovery.served().0);
    let manifest = blocking(move || reader.manifest(&vm, &point)).await?.or_problem()?;
    let served = served.ok_or_else(|| {
        Problem::new(ProblemCode::Conflict, "the recovery cannot be committed", format!("{id} is not served now"))
    })?;
    // Whatever of the point is read for the new one is compared, as by every other way out of it.
    let comparing = blocking(move || served.compare(&record, &repository)).await?.or_problem()?;
    let state = State::Committing { backup_id: backup_id.clone() };
    let record = core.recoveries.advance(&recovery, |record| record.state = state)?;
    let served = recovery.state.lock().served.take();
    let id = recovery.id.clone();
    let stopped = blocking(move || served.map(|served| disks::stop(&id, served)).unwrap_or_default()).await?;
    let disks = stopped.into_iter().collect();
    Ok(Commit { recovery: recovery.clone(), _turn: turn, parent: record.backup_id, manifest, disks, comparing })
}

/// After the backup: the recovery has served its purpose, or is served again.
pub(crate) async fn end(core: &Arc<Core>, commit: Commit, is_published: bool) {
    let Commit { recovery, disks, comparing, _turn, .. } = commit;
    drop((disks, comparing));
    let ended = match is_published {
        true => life::end_now(core, &recovery).await,
        // The next pass serves it.
        false => core.recoveries.advance(&recovery, |record| record.state = State::Ready).map(drop),
    };
    if let Err(problem) = ended {
        tracing::warn!(recovery_id = %recovery.id, error = %problem.message, "the end of a commit is tried again");
    }
}

/// A commit that nobody works on any more was published, and the recovery ends, or it was not, and the recovery goes on. The
/// caller has the turn.
pub(super) async fn settle(
    core: &Arc<Core>,
    recovery: &Arc<Recovery>,
    record: Record,
    backup_id: BackupId,
) -> Result<()> {
    let repository = core.repositories.by_id(core, &record.repository_id, Use::GoOn).await?;
    let vm = record.vm_context_id;
    match blocking(move || repository.manifest(&vm, &backup_id)).await? {
        Ok(_) => life::end_now(core, recovery).await,
        Err(error) if error.kind == sendense_repo::Kind::NotFound => {
            core.recoveries.advance(recovery, |record| record.state = State::Ready).map(drop)
        }
        Err(error) => Err(error).or_problem(),
    }
}

impl Commit {
    /// The problem of a commit: where damage of the point is the reason, told so that it is clear what to do.
    pub fn told(&self, problem: Problem) -> Problem {
        let advice = "nothing was committed, and the recovery goes on: what rotted would be stored again as if it were whole. The \
                      machine's own next backup stores it again";
        self.comparing.told(problem, advice)
    }

    /// The disks by number.
    pub fn disks(&self) -> impl Iterator<Item = DiskNumber> {
        self.disks.keys().copied()
    }

    /// What the backup reads from.
    pub fn source(&self) -> Arc<dyn Source> {
        let disks = self.manifest.disks.iter().filter_map(|disk| {
            let written = self.disks.get(&disk.disk_id)?.clone();
            let frozen = FrozenDisk {
                key: disk.disk_key.clone(),
                binding: disk.binding.clone(),
                label: disk.label.clone(),
                capacity: disk.capacity(),
                // No hypervisor tracks what happens after this point: the next backup of the machine compares.
                token: None,
            };
            Some((frozen, written))
        });
        let config = self.manifest.documents.iter().map(|document| match &document.content {
            Content::Text(text) => {
                ConfigDocument { kind: document.name.clone(), content: Some(text.clone()), missing: None }
            }
            Content::Hex(_) => ConfigDocument {
                kind: document.name.clone(),
                content: None,
                missing: Some(format!("it is in the point {}", self.parent)),
            },
        });
        Arc::new(Written {
            kind: self.manifest.vm.kind,
            disks: disks.collect(),
            config: config.collect(),
            note: format!("what recovery {} of {} had written", self.recovery.id, self.parent),
        })
    }
}

/// What was written to a recovery, as a source with one machine that stands still.
struct Written {
    kind: SourceKind,
    disks: Vec<(FrozenDisk, Arc<WrittenDisk>)>,
    config: Vec<ConfigDocument>,
    note: String,
}

fn not_asked<T>() -> sendense_source::Result<T> {
    Err(Error::new(Kind::Unsupported, "a recovery has one machine, which is known"))
}

impl Source for Written {
    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn test(&self, _: &Cancel) -> sendense_source::Result<TestReport> {
        not_asked()
    }

    fn discover(&self, _: &Cancel) -> sendense_source::Result<Vec<DiscoveredVm>> {
        not_asked()
    }

    fn inspect(&self, _: &VmRef, _: &Cancel) -> sendense_source::Result<DiscoveredVm> {
        not_asked()
    }

    fn freeze(
        &self,
        request: &FreezeRequest,
        _: &Arc<dyn Journal>,
        _: &Cancel,
    ) -> sendense_source::Result<Box<dyn Frozen>> {
        let find = |key: &String| {
            let found = self.disks.iter().find(|(disk, _)| disk.key == *key).cloned();
            found.ok_or_else(|| Error::new(Kind::NotFound, format!("the recovery has no disk {key}")))
        };
        let disks: Vec<_> = request.disks.iter().map(|asked| find(&asked.key)).collect::<Result<_, _>>()?;
        let facts = FrozenFacts {
            disks: disks.iter().map(|(disk, _)| disk.clone()).collect(),
            consistency: Consistency::Crash,
            consistency_note: Some(self.note.clone()),
            config: self.config.clone(),
            hints: HINTS,
        };
        Ok(Box::new(Still { facts, disks }))
    }

    fn retire(
        &self,
        _: &VmRef,
        _: &[TrackingToken],
        _: &Arc<dyn Journal>,
        _: &Cancel,
    ) -> sendense_source::Result<Vec<TrackingToken>> {
        Ok(Vec::new())
    }

    fn reap(&self, _: &Artefact, _: &Cancel) -> sendense_source::Result<bool> {
        Ok(true)
    }
}

/// Its disks, to which nobody can write.
struct Still {
    facts: FrozenFacts,
    disks: Vec<(FrozenDisk, Arc<WrittenDisk>)>,
}

impl Still {
    fn disk(&self, key: &str) -> sendense_source::Result<&Arc<WrittenDisk>> {
        let found = self.disks.iter().find(|(disk, _)| disk.key == key);
        found.map(|(_, written)| written).ok_or_else(|| Error::new(Kind::NotFound, format!("no disk {key}")))
    }
}

impl Frozen for Still {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> sendense_source::Result<Changes> {
        let changes: Arc<dyn ChangeMap> = self.disk(disk_key)?.clone();
        Ok(Changes::Delta(changes))
    }

    fn open(&self, disk_key: &str, _: &Cancel) -> sendense_source::Result<Arc<dyn Disk>> {
        let disk: Arc<dyn Disk> = self.disk(disk_key)?.clone();
        Ok(disk)
    }

    fn check(&self) -> sendense_source::Result<()> {
        Ok(())
    }

    fn release(self: Box<Self>) -> sendense_source::Result<()> {
        Ok(())
    }
}
