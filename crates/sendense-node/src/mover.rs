//! One backup: freeze, ask each disk what changed, copy, check, release.
//!
//! What each disk's backup becomes is decided here, disk by disk, because only here both the parent (from the hub) and the
//! changes (from the source) are known: a lost checkpoint costs that disk a full read, not the machine a full backup, and
//! the reason goes into the point where people see it. Tracking that is used is audited: a sample of what it calls unchanged
//! is read again, and where one block differs, that disk is compared as a whole and its tracking begun anew.

use crate::budget::LaneBudget;
use crate::pace::{Pace, Paced};
use parking_lot::Mutex;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Mode, Options, Progress, Sampling, Summary, Survey};
use sendense_block::{BlockSink, ByteLen, Cancel, ChangeMap, DigestMap, Disk};
use sendense_source::{Changes, FreezeRequest, Frozen, FrozenDisk, FrozenFacts, Journal, Source, TrackingReset};
use sendense_types::{BackupId, BackupType, DiskNumber, OnTrackingLoss, Phase, TrackingAudit};
use std::collections::VecDeque;
use std::sync::Arc;

/// Disks of one machine that are copied at once. More only helps where each disk is slow on its own; four keep a
/// hypervisor's NBD server and a spinning repository from seeking themselves to death.
pub const PARALLEL_DISKS_DEFAULT: usize = 4;

/// What the hub wants done.
pub struct Assignment {
    /// What to freeze. Its disks are those of `disks`, in the same order.
    pub freeze: FreezeRequest,
    /// What each disk goes onto.
    pub disks: Vec<DiskAssignment>,
    /// How hard to compress.
    pub level: Level,
    /// What to do where tracking is lost.
    pub on_tracking_loss: OnTrackingLoss,
    /// Disks that are copied at once.
    pub parallel_disks: usize,
    /// How many of the blocks that tracking calls unchanged are looked at all the same.
    pub audit: Sampling,
    /// The most bytes that are read in a second, of all disks together; none for as many as come.
    pub bytes_per_second_max: Option<u64>,
}

/// One disk of an assignment.
pub struct DiskAssignment {
    /// Its number.
    pub number: DiskNumber,
    /// Its key on the source.
    pub key: String,
    /// The point that this one goes onto.
    pub parentage: Parentage,
}

/// Whether a disk has a parent.
pub enum Parentage {
    /// It has none and becomes a full; the reason is said when an incremental was asked for.
    None {
        /// `no earlier point in this repository`, `the disk is new` …
        reason: Option<String>,
    },
    /// It has one.
    Parent(Parent),
}

/// The point that an incremental goes onto.
pub struct Parent {
    /// Its id.
    pub backup_id: BackupId,
    /// What it holds.
    pub digests: Arc<dyn DigestMap>,
    /// Why the disk is compared with it whatever change tracking says: blocks of it are lost, which `digests` tells as something
    /// that no block is equal to, so that they are stored again.
    pub lost: Option<String>,
}

/// A disk that is about to be copied.
pub struct DiskStart<'a> {
    /// Its number.
    pub number: DiskNumber,
    /// What was frozen.
    pub disk: &'a FrozenDisk,
    /// Where its blocks can be read again until it is released; none where somebody else reads it.
    pub reader: Option<&'a Arc<dyn Disk>>,
    /// What its backup is.
    pub backup_type: BackupType,
    /// The parent, for an incremental.
    pub parent: Option<&'a BackupId>,
    /// Why a full, or a full read, is made.
    pub type_reason: Option<&'a str>,
    /// Bytes that will be read of it.
    pub read: ByteLen,
    /// What the audit of its change tracking found, where one was made.
    pub audit: Option<TrackingAudit>,
}

/// Where the blocks go and who is told. Called from threads of the mover.
pub trait Landing: Send + Sync {
    /// Opens the place for a disk's blocks. Called for every disk before the first block of any.
    fn begin_disk(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<dyn BlockSink>>;

    /// The backup has come to this phase.
    fn phase(&self, phase: Phase);

    /// All is put. Called while the source can still be read, so that what got lost on its way can be sent again; on an error,
    /// which disk it was.
    fn settle(&self) -> Result<(), (DiskNumber, sendense_block::Error)> {
        Ok(())
    }

    /// All is read, or will not be: the source is let go next, in its own time (a snapshot's removal takes minutes). False when
    /// nobody waits for this backup any more, because a read did not come back for too long: then nothing but that is done.
    fn letting_go(&self) -> bool;

    /// Something worth a line in the task's log.
    fn note(&self, message: &str);

    /// Change tracking of a disk was found wrong: somebody should look at it, also where nobody reads logs.
    fn tracking_is_wrong(&self, disk: DiskNumber, message: &str);
}

/// What a disk's backup became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOutcome {
    /// Its number.
    pub number: DiskNumber,
    /// Full or incremental.
    pub backup_type: BackupType,
    /// Why a full, or a full read, was made although an incremental was asked for.
    pub type_reason: Option<String>,
    /// The parent, for an incremental.
    pub parent: Option<BackupId>,
    /// What the audit of its change tracking found, where one was made.
    pub audit: Option<TrackingAudit>,
    /// What was read and stored.
    pub summary: Summary,
}

/// A backup whose last byte is read. The sinks hold it; the source is released.
#[derive(Debug)]
pub struct Outcome {
    /// What was frozen and how; `facts.disks` is in the order of `disks`.
    pub facts: FrozenFacts,
    /// What each disk's backup became.
    pub disks: Vec<DiskOutcome>,
}

/// Why there is no backup. The drafts behind the sinks must be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source failed; its error says who must act.
    #[error("{what}")]
    Source {
        /// What was being done.
        what: String,
        /// The source's error.
        #[source]
        source: sendense_source::Error,
    },
    /// Reading, or storing, a disk failed.
    #[error("copy disk {number}")]
    Copy {
        /// The disk.
        number: DiskNumber,
        /// The data path's error.
        #[source]
        source: sendense_block::Error,
    },
    /// Change tracking is lost and the request says to fail then. The caller must ask for a comparison or a full.
    #[error("change tracking of disk {number} is lost: {reason}")]
    TrackingLost {
        /// The disk.
        number: DiskNumber,
        /// Why.
        reason: String,
    },
    /// A person or a shutdown stopped it.
    #[error("stopped on request")]
    Cancelled,
}

/// Against what a disk is copied, with everything it needs kept alive.
enum Against {
    Nothing,
    Parent(Arc<dyn DigestMap>),
    Changes(Arc<dyn DigestMap>, Arc<dyn ChangeMap>),
}

impl Against {
    fn mode(&self) -> Mode<'_> {
        match self {
            Self::Nothing => Mode::Full,
            Self::Parent(parent) => Mode::Compare { parent: &**parent },
            Self::Changes(parent, changes) => Mode::Tracked { parent: &**parent, changes: &**changes },
        }
    }
}

/// A disk with its decision made.
struct Prepared<'a> {
    assignment: &'a DiskAssignment,
    name: String,
    disk: Arc<dyn Disk>,
    against: Against,
    type_reason: Option<String>,
    audit: Option<TrackingAudit>,
    survey: Survey,
}

impl Prepared<'_> {
    fn parent(&self) -> Option<&BackupId> {
        match (&self.against, &self.assignment.parentage) {
            (Against::Parent(_) | Against::Changes(..), Parentage::Parent(parent)) => Some(&parent.backup_id),
            _ => None,
        }
    }

    fn backup_type(&self) -> BackupType {
        if self.parent().is_some() { BackupType::Incremental } else { BackupType::Full }
    }
}

/// Runs one backup. Returns when the source is released; whatever happens, it is released, or what could not be is in the
/// journal.
pub fn run(
    assignment: &Assignment,
    source: &dyn Source,
    landing: &dyn Landing,
    journal: &Arc<dyn Journal>,
    budget: &LaneBudget,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Outcome, Error> {
    landing.phase(Phase::Snapshot);
    let vm = &assignment.freeze.vm.name;
    let source_error = |what: String| move |source| Error::Source { what, source };
    let frozen = source
        .freeze(&assignment.freeze, journal, cancel)
        .map_err(source_error(format!("freeze {vm}")))
        .map_err(|e| cancelled(e, cancel))?;
    let wrong = Mutex::new(Vec::new());
    let copied = copy_all(assignment, &*frozen, landing, &wrong, budget, progress, cancel)
        .and_then(|disks| landing.settle().map(|()| disks).map_err(|(number, source)| Error::Copy { number, source }))
        // Only a frozen state that nobody disturbed is a point.
        .and_then(|disks| {
            frozen.check().map(|()| disks).map_err(source_error(format!("check that {vm} stayed frozen")))
        })
        // A disturbed source makes reads fail in odd ways: its own word says more than an I/O error.
        .map_err(|error| match error {
            Error::Copy { .. } => match frozen.check() {
                Err(source) => Error::Source { what: format!("read {vm}"), source },
                Ok(()) => error,
            },
            // A source that is away is not waited for once more.
            error => error,
        });
    let mut facts = frozen.facts().clone();
    let is_awaited = landing.letting_go();
    let released = frozen.release();
    // Also where no point came of it: the next backup must not believe what this one found to be wrong.
    let wrong = wrong.into_inner();
    if !wrong.is_empty() && is_awaited {
        begin_tracking_anew(assignment, source, landing, journal, &wrong, copied.is_ok().then_some(&mut facts));
    }
    let disks = copied.map_err(|error| cancelled(error, cancel))?;
    // The data is whole: what could not be released is journaled and reaped later, and is no reason to lose the point.
    if let Err(error) = released {
        landing.note(&format!("release {vm}: {}", sendense_block::error::chain(&error)));
    }
    Ok(Outcome { facts, disks })
}

/// Has the source begin change tracking anew, and takes the tokens out of `facts` that must not be believed after it.
fn begin_tracking_anew(
    assignment: &Assignment,
    source: &dyn Source,
    landing: &dyn Landing,
    journal: &Arc<dyn Journal>,
    wrong: &[DiskNumber],
    facts: Option<&mut FrozenFacts>,
) {
    let tokens = facts.iter().flat_map(|facts| &facts.disks).filter_map(|disk| disk.token.clone());
    let tokens: Vec<_> = tokens.collect();
    // Nobody can stop it: whoever stops a backup wants the next one to be right, too.
    let reset = source.reset_tracking(&assignment.freeze, &tokens, journal, &Cancel::new());
    let vm = &assignment.freeze.vm.name;
    match &reset {
        Ok(TrackingReset::FreshMarks) => return landing.note(&format!("change tracking of {vm} was begun anew")),
        Ok(TrackingReset::Begun) => {
            landing.note(&format!("change tracking of {vm} is begun anew with the next backup"))
        }
        Ok(TrackingReset::NotOurs) => {
            landing
                .note(&format!("change tracking of {vm} is not ours to begin anew: look at who records the changes"));
        }
        Err(error) => {
            let error = sendense_block::error::chain(error);
            landing.note(&format!("change tracking of {vm} could not be begun anew: {error}"));
        }
    }
    let lied = |position: usize| assignment.disks.get(position).is_some_and(|disk| wrong.contains(&disk.number));
    for (position, disk) in facts.into_iter().flat_map(|facts| &mut facts.disks).enumerate() {
        if lied(position) {
            disk.token = None;
        }
    }
}

fn cancelled(error: Error, cancel: &Cancel) -> Error {
    if cancel.is_cancelled() { Error::Cancelled } else { error }
}

fn copy_all(
    assignment: &Assignment,
    frozen: &dyn Frozen,
    landing: &dyn Landing,
    wrong: &Mutex<Vec<DiskNumber>>,
    budget: &LaneBudget,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<DiskOutcome>, Error> {
    let facts = frozen.facts();
    let mut prepared = Vec::new();
    let pace = assignment.bytes_per_second_max.map(|most| Arc::new(Pace::new(most)));
    for disk in &assignment.disks {
        let found_wrong = |message: &str| {
            wrong.lock().push(disk.number);
            landing.tracking_is_wrong(disk.number, message);
        };
        prepared.push(prepare(disk, frozen, assignment, pace.as_ref(), &found_wrong, cancel)?);
    }
    let mut work = VecDeque::new();
    for (position, disk) in prepared.iter().enumerate() {
        let start = DiskStart {
            number: disk.assignment.number,
            disk: facts.disks.get(position).ok_or_else(|| missing(disk.assignment))?,
            reader: Some(&disk.disk),
            backup_type: disk.backup_type(),
            parent: disk.parent(),
            type_reason: disk.type_reason.as_deref(),
            read: disk.survey.read,
            audit: disk.audit,
        };
        let sink = landing.begin_disk(&start).map_err(|source| copy_error(disk.assignment, source))?;
        progress.plan(disk.survey.read);
        work.push_back((position, disk, sink));
    }
    landing.phase(Phase::Transferring);

    // One disk's failure stops the others: the point is lost, and a terabyte more would only load the source.
    let stop = Cancel::new();
    let passed_on = stop.clone();
    let _guard = cancel.on_cancel(move || passed_on.cancel());
    let threads = assignment.parallel_disks.clamp(1, work.len().max(1));
    let (work, outcomes, failed) = (Mutex::new(work), Mutex::new(Vec::new()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().is_none() {
                    let Some((position, disk, sink)) = work.lock().pop_front() else { break };
                    let share = budget.take(facts.hints.lanes);
                    let options = Options {
                        lanes: share.lanes(),
                        request_bytes: facts.hints.request_bytes,
                        level: assignment.level,
                    };
                    let job = copy::Backup {
                        name: &disk.name,
                        disk: &disk.disk,
                        mode: disk.against.mode(),
                        sink: &*sink,
                        options,
                        progress,
                        cancel: &stop,
                    };
                    match copy::backup(&job, disk.survey.clone()) {
                        Ok(summary) => outcomes.lock().push((position, outcome(disk, summary))),
                        Err(source) => {
                            failed.lock().get_or_insert(copy_error(disk.assignment, source));
                            stop.cancel();
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|(position, _)| *position);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Decides what a disk's backup becomes.
fn prepare<'a>(
    assignment: &'a DiskAssignment,
    frozen: &dyn Frozen,
    all: &Assignment,
    pace: Option<&Arc<Pace>>,
    found_wrong: &dyn Fn(&str),
    cancel: &Cancel,
) -> Result<Prepared<'a>, Error> {
    let (number, key, on_tracking_loss) = (assignment.number, &assignment.key, all.on_tracking_loss);
    let source_error =
        |what: &'static str| move |source| Error::Source { what: format!("{what} disk {number}"), source };
    let disk = frozen.open(key, cancel).map_err(source_error("open"))?;
    let disk: Arc<dyn Disk> = match pace {
        Some(pace) => Arc::new(Paced::new(disk, pace.clone(), cancel.clone())),
        None => disk,
    };
    let name = format!("disk {number}");
    let survey = |against: &Against| {
        copy::survey_and_sample(&name, &disk, against.mode(), all.audit, cancel)
            .map_err(|source| Error::Copy { number, source })
    };
    let (mut against, mut type_reason) = match &assignment.parentage {
        Parentage::None { reason } => (Against::Nothing, reason.clone()),
        Parentage::Parent(Parent { digests, lost: Some(lost), .. }) => {
            (Against::Parent(digests.clone()), Some(format!("read completely and compared: {lost}")))
        }
        Parentage::Parent(parent) => match frozen.changes(key).map_err(source_error("ask for the changes of"))? {
            Changes::Delta(changes) => (Against::Changes(parent.digests.clone(), changes), None),
            Changes::Unknown { reason } => without_tracking(parent, reason, number, on_tracking_loss)?,
        },
    };
    let mut surveyed = survey(&against)?;
    if let (Some(doubt), Parentage::Parent(parent)) = (surveyed.doubt, &assignment.parentage) {
        let reason = format!("change tracking contradicts the parent: {doubt}");
        (against, type_reason) = without_tracking(parent, reason, number, on_tracking_loss)?;
        surveyed = survey(&against)?;
    }
    let mut audit = None;
    if let (Against::Changes(..), Parentage::Parent(parent)) = (&against, &assignment.parentage)
        && all.audit != Sampling::NONE
    {
        let found = copy::audit(&name, &disk, &surveyed.sample, frozen.facts().hints.lanes, cancel)
            .map_err(|source| Error::Copy { number, source })?;
        audit = Some(TrackingAudit { blocks_checked: found.blocks_checked, blocks_different: found.blocks_different });
        if let Some(first) = found.first_different {
            let reason = format!(
                "change tracking is wrong: {} of {} blocks checked had changed although it called them unchanged, the \
                 first is block {}",
                found.blocks_different, found.blocks_checked, first.0
            );
            found_wrong(&reason);
            (against, type_reason) = without_tracking(parent, reason, number, on_tracking_loss)?;
            surveyed = survey(&against)?;
        }
    }
    Ok(Prepared { assignment, name, disk, against, type_reason, audit, survey: surveyed })
}

fn without_tracking(
    parent: &Parent,
    reason: String,
    number: DiskNumber,
    on_tracking_loss: OnTrackingLoss,
) -> Result<(Against, Option<String>), Error> {
    match on_tracking_loss {
        OnTrackingLoss::Compare => {
            Ok((Against::Parent(parent.digests.clone()), Some(format!("read completely and compared: {reason}"))))
        }
        OnTrackingLoss::Full => Ok((Against::Nothing, Some(format!("full: {reason}")))),
        OnTrackingLoss::Fail => Err(Error::TrackingLost { number, reason }),
    }
}

fn outcome(disk: &Prepared<'_>, summary: Summary) -> DiskOutcome {
    DiskOutcome {
        number: disk.assignment.number,
        backup_type: disk.backup_type(),
        type_reason: disk.type_reason.clone(),
        parent: disk.parent().cloned(),
        audit: disk.audit,
        summary,
    }
}

fn copy_error(disk: &DiskAssignment, source: sendense_block::Error) -> Error {
    Error::Copy { number: disk.number, source }
}

fn missing(disk: &DiskAssignment) -> Error {
    let source = sendense_source::Error::new(
        sendense_source::Kind::Failed,
        format!("the source froze fewer disks than were asked for; {} is missing", disk.key),
    );
    Error::Source { what: "freeze all disks".into(), source }
}
