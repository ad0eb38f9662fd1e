//! A backup that a node makes: what it may do for it, and what it has done.
//!
//! The job's thread holds the draft and waits here for what the node says; blocks go straight into the draft's disks, on the
//! threads of the calls that bring them, after they were decoded and compared with their digests.
//!
//! A hub that ends, or dies, does not end the backup: its disks are marked every few seconds, a record says what it is, and the
//! next life of the hub goes on with it ([`super::resume`]), as long as the node has kept the machine frozen.
//!
//! Invariants: a node writes only into disks that its order names, and that were begun; it reads only the digests of the
//! points that they stand on; and once [`Run::close`] has returned, nothing of it is written any more.

use super::kept::{Keeper, Record};
use super::landed::{Begun, Landed};
use super::resume::Resuming;
use super::source::RemoteSource;
use crate::fault::Result;
use crate::jobs::handle::{Handle, Stop};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use sendense_block::copy::Snapshot;
use sendense_block::{BlockIndex, ByteLen, DigestMap, Error, Known};
use sendense_node::mover::{self, Assignment, DiskOutcome, DiskStart, Landing, Outcome, Parentage};
use sendense_node::remote::digests::{WINDOW_BLOCKS, encode};
use sendense_node::remote::message::{Answer, BackupOrder, BeginDisk, DiskOrder, Fault, OrderId, Stored, Work, words};
use sendense_repo::{DiskDraft, Draft};
use sendense_types::{BackupId, BackupType, DiskBinding, DiskNumber, Phase, Problem, ProblemCode, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two looks at the clock and at the request to stop.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How long a node that was told to stop may take to let its source go, before the backup ends without its word:
/// half of what a job that was stopped may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The same once it has said that it lets the source go: removing the snapshot of a busy machine takes minutes. Less than
/// what a job may take for it.
const LETTING_GO_PATIENCE: Duration = Duration::from_secs(540);
/// Between two marks of a disk that grows: what a hub that dies loses of a slow line.
const MARK_PERIOD: Duration = Duration::from_secs(3);
/// Lines of one report: a node tells tens in the life of a backup.
const NOTES_MAX: usize = 256;
/// Reports that wait for the job's thread, which takes them within milliseconds. A node sends one per second, and is told to
/// come again when there are more.
const REPORTS_WAITING_MAX: usize = 16;
/// Alerts of one disk's change tracking: it is found wrong once.
const ALERTS_MAX: usize = 1;
/// What a node says of a disk or of its tracking: labels and tokens of hypervisors have tens of characters.
const TOKEN_BYTES_MAX: usize = 4096;

/// Where a node's blocks go, and who is told: a draft.
pub(crate) trait Place: Landing {
    /// As [`Landing::begin_disk`].
    fn begin(&self, start: &DiskStart<'_>) -> sendense_block::Result<Arc<DiskDraft>>;

    /// When the machine stood still.
    fn frozen_at(&self) -> Timestamp;
}

/// A backup that a node makes.
pub(super) struct Run {
    /// Not there yet in a backup that goes on, until its draft is open again.
    disks: OnceLock<Vec<Disk>>,
    keeper: Keeper,
    /// A disk, or the record of the backup, could not be kept: it ends with the hub.
    is_lost_with_hub: AtomicBool,
    landed: RwLock<HashMap<DiskNumber, Arc<Landed>>>,
    events: Mutex<mpsc::Sender<Event>>,
    heard: Mutex<Instant>,
    /// Reports that the job's thread has not taken yet.
    waiting: AtomicUsize,
    /// Disks whose tracking was found wrong.
    alerts: Mutex<Vec<DiskNumber>>,
    /// Read by calls that write, written when nothing may be written any more.
    closed: RwLock<Closed>,
}

/// Whether a run takes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    No,
    /// The hub ends, and its next life goes on with it.
    Paused,
    Over,
}

/// A disk that the node may write.
struct Disk {
    number: DiskNumber,
    key: String,
    binding: DiskBinding,
    parent: Option<(BackupId, Arc<dyn DigestMap>)>,
}

/// What the job's thread is told.
pub(super) enum Event {
    Begin(Box<BeginDisk>, oneshot::Sender<Result<()>>),
    Report { phase: Phase, progress: Snapshot, notes: Vec<String> },
    LettingGo(oneshot::Sender<bool>),
    TrackingIsWrong(DiskNumber, String),
    Ended(Box<Result<Answer, Fault>>),
    Lost(String),
    Failed(DiskNumber, Error),
}

impl Run {
    /// One whose node is yet to be told, or (where its disks are not told yet) to come back.
    pub fn new(keeper: Keeper, events: mpsc::Sender<Event>) -> Self {
        Self {
            disks: OnceLock::new(),
            keeper,
            is_lost_with_hub: AtomicBool::new(false),
            landed: RwLock::default(),
            events: Mutex::new(events),
            heard: Mutex::new(Instant::now()),
            waiting: AtomicUsize::new(0),
            alerts: Mutex::default(),
            closed: RwLock::new(Closed::No),
        }
    }

    /// Says what the node may write and read; from now on it is answered.
    fn set_disks(&self, assignment: &Assignment) {
        let disks = assignment.disks.iter().zip(&assignment.freeze.disks).map(|(disk, asked)| Disk {
            number: disk.number,
            key: disk.key.clone(),
            binding: asked.binding.clone(),
            parent: match &disk.parentage {
                Parentage::None { .. } => None,
                Parentage::Parent(parent) => Some((parent.backup_id.clone(), parent.digests.clone())),
            },
        });
        // Said once.
        let _ = self.disks.set(disks.collect());
    }

    fn disks(&self) -> Result<&[Disk]> {
        self.disks.get().map(Vec::as_slice).ok_or_else(not_yet)
    }

    /// The backup, as the next life of the hub finds it.
    pub fn record(&self) -> Record {
        self.keeper.record()
    }

    /// This life of the node was told the order.
    pub fn told(&self, process: &str) {
        self.keeper.told(process);
    }

    /// True when the node has begun: what it works at is not told to it again.
    pub fn has_begun(&self) -> bool {
        self.keeper.has_begun()
    }

    /// True when the next life of the hub can go on with it.
    fn outlives_hub(&self) -> bool {
        self.has_begun() && !self.is_lost_with_hub.load(Ordering::SeqCst)
    }

    /// Keeps the answer of a node, so that the node need not keep it.
    pub fn keep_answer(&self, answer: &Answer) {
        if self.has_begun()
            && let Err(error) = self.keeper.answered(answer)
        {
            self.not_kept(&error);
        }
    }

    fn not_kept(&self, error: &std::io::Error) {
        self.is_lost_with_hub.store(true, Ordering::SeqCst);
        tracing::warn!(error = %error, "a node's backup could not be kept; it ends with the hub");
    }

    fn tell(&self, event: Event) {
        // Where nobody listens any more the backup is over, and the node is told so at its next call.
        let _ = self.events.lock().send(event);
    }

    /// The node said something about this backup, or that it works at it.
    pub fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// The node has ended it.
    pub fn ended(&self, outcome: Result<Answer, Fault>) {
        self.tell(Event::Ended(Box::new(outcome)));
    }

    /// The node is not at it any more.
    pub fn lost(&self, why: &str) {
        self.tell(Event::Lost(why.to_owned()));
    }

    /// Opens the place for a disk's blocks. The answer comes from the job's thread.
    pub async fn begin(&self, disk: BeginDisk) -> Result<()> {
        self.hear();
        self.disks()?;
        let (reply, opened) = oneshot::channel();
        self.tell(Event::Begin(Box::new(disk), reply));
        opened.await.unwrap_or_else(|_| Err(self.ended_as()))
    }

    /// The node has read all, or will not, and lets the source go; whether the job waits for that.
    pub async fn letting_go(&self) -> Result<bool> {
        self.hear();
        self.disks()?;
        let (reply, is_awaited) = oneshot::channel();
        self.tell(Event::LettingGo(reply));
        Ok(is_awaited.await.unwrap_or(false))
    }

    /// Takes a report.
    pub fn report(&self, phase: Phase, progress: [u64; 6], notes: &[String]) -> Result<()> {
        self.hear();
        self.disks()?;
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= REPORTS_WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(Problem::new(ProblemCode::Busy, "more reports than are read", ""));
        }
        // No backup moves more than its disks hold.
        let most = self.landed.read().values().map(|disk| disk.begun.disk.capacity.0).fold(0, u64::saturating_add);
        let [planned, done, stored, frames, zero, same] = progress.map(|bytes| ByteLen(bytes.min(most)));
        let notes = notes.iter().take(NOTES_MAX).map(|note| words(note)).collect();
        self.tell(Event::Report { phase, progress: Snapshot { planned, done, stored, frames, zero, same }, notes });
        Ok(())
    }

    /// Change tracking of a disk was found wrong.
    pub fn tracking_is_wrong(&self, disk: DiskNumber, message: &str) -> Result<()> {
        self.hear();
        self.parent(disk)?;
        let mut alerts = self.alerts.lock();
        // Told again because the answer was lost.
        if alerts.iter().filter(|known| **known == disk).count() < ALERTS_MAX {
            alerts.push(disk);
            self.tell(Event::TrackingIsWrong(disk, words(message)));
        }
        Ok(())
    }

    /// What the parent of a disk holds. Blocks.
    pub fn digests(&self, disk: DiskNumber, first: u64, count: u32) -> Result<Vec<u8>> {
        self.hear();
        let _open = self.open()?;
        let count = u64::from(count).min(WINDOW_BLOCKS) as usize;
        let mut known = vec![Known::Zero; count];
        self.parent(disk)?
            .known(BlockIndex(first), &mut known)
            .map_err(|error| crate::fault::of_block("read the parent's digests", &error))?;
        Ok(encode(&known))
    }

    /// Where the parent of a disk holds data next. Blocks.
    pub fn next_data(&self, disk: DiskNumber, from: u64, end: u64) -> Result<Option<u64>> {
        self.hear();
        let _open = self.open()?;
        let found = self.parent(disk)?.next_data(BlockIndex(from), BlockIndex(end));
        let found = found.map_err(|error| crate::fault::of_block("read the parent's digests", &error))?;
        Ok(found.map(|block| block.0))
    }

    fn parent(&self, disk: DiskNumber) -> Result<&dyn DigestMap> {
        let disk = self.disks()?.iter().find(|known| known.number == disk);
        let parent = disk.and_then(|disk| disk.parent.as_ref()).map(|(_, parent)| &**parent);
        parent.ok_or_else(|| Problem::new(ProblemCode::Forbidden, "the order gives this disk no parent", ""))
    }

    /// Held by whatever reads or writes points: who closes waits for it.
    fn open(&self) -> Result<RwLockReadGuard<'_, Closed>> {
        let closed = self.closed.read();
        if *closed == Closed::No {
            return self.disks().map(|_| closed);
        }
        drop(closed);
        Err(self.ended_as())
    }

    /// What a node is told that comes too late.
    fn ended_as(&self) -> Problem {
        if *self.closed.read() == Closed::Over { over() } else { not_yet() }
    }

    fn begun(&self, disk: DiskNumber) -> Result<Arc<Landed>> {
        let landed = self.landed.read().get(&disk).cloned();
        landed.ok_or_else(|| Problem::new(ProblemCode::Forbidden, "the disk was not begun", ""))
    }

    /// Stores a batch of blocks, once they are what their digests say. Blocks.
    pub fn blocks(&self, disk: DiskNumber, batch: u64, bytes: &[u8]) -> Result<Stored> {
        self.hear();
        let _open = self.open()?;
        let landed = self.begun(disk)?;
        let begun = landed.batches.lock().begin(batch);
        match begun {
            Begun::New => {}
            Begun::Done => return Ok(landed.stored()),
            Begun::Busy => return Err(Problem::new(ProblemCode::Busy, "the batch is being stored", "")),
            Begun::TooFar => return Err(Problem::new(ProblemCode::InvalidInput, "too many batches at once", "")),
        }
        let stored = landed.store(batch, bytes);
        self.hear();
        stored.map(|()| landed.stored()).map_err(|error| self.failed(disk, "store a batch of blocks", error))
    }

    /// Makes what is stored of a disk durable. Blocks.
    pub fn settle(&self, disk: DiskNumber) -> Result<Stored> {
        self.hear();
        let _open = self.open()?;
        let landed = self.begun(disk)?;
        let settled = landed.mark();
        self.hear();
        settled.map(|()| landed.stored()).map_err(|error| self.failed(disk, "make a disk durable", error))
    }

    /// Makes what is stored of all disks durable, until nobody asks any more.
    fn mark_at_times(&self, ended: &mpsc::Receiver<()>) {
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(MARK_PERIOD) {
            let Ok(_open) = self.open() else { return };
            let landed: Vec<_> = self.landed.read().iter().map(|(number, disk)| (*number, disk.clone())).collect();
            for (number, disk) in landed {
                if let Err(error) = disk.mark() {
                    self.failed(number, "make a disk durable", error);
                }
            }
        }
    }

    /// A disk is of no use any more, and its backup neither.
    fn failed(&self, disk: DiskNumber, what: &str, error: Error) -> Problem {
        let problem = crate::fault::of_block(what, &error);
        self.tell(Event::Failed(disk, error));
        problem
    }

    /// Waits for what is being written; from then on nothing is.
    pub fn close(&self, how: Closed) {
        *self.closed.write() = how;
    }

    /// Opens a disk's place in the draft, if the order names it.
    fn land(&self, place: &dyn Place, begin: &BeginDisk) -> Result<()> {
        let refuse = |why: &str| Err(Problem::new(ProblemCode::Forbidden, why, format!("disk {}", begin.number)));
        if self.landed.read().contains_key(&begin.number) {
            // Told again because the answer was lost.
            return Ok(());
        }
        let Some(disk) = self.disks()?.iter().find(|disk| disk.number == begin.number) else {
            return refuse("the order does not name the disk");
        };
        if disk.binding != begin.disk.binding || disk.key != begin.disk.key {
            return refuse("it is another disk than was ordered");
        }
        if begin.disk.token.as_ref().is_some_and(|token| token.0.len() > TOKEN_BYTES_MAX) {
            return refuse("its tracking token is longer than any hypervisor's");
        }
        let mut begun = begin.clone();
        begun.disk.label = words(&begin.disk.label);
        begun.type_reason = begin.type_reason.as_deref().map(words);
        let parent = match (begin.backup_type, &disk.parent) {
            (BackupType::Full, _) => None,
            (BackupType::Incremental, Some((parent, _))) => Some(parent),
            (BackupType::Incremental, None) => return refuse("the order gives this disk no parent"),
        };
        let start = DiskStart {
            number: begin.number,
            disk: &begun.disk,
            reader: None,
            backup_type: begin.backup_type,
            parent,
            type_reason: begun.type_reason.as_deref(),
            read: ByteLen(begin.read.min(begin.disk.capacity.0)),
            audit: begin.audit,
        };
        let failed = |error| self.failed(begin.number, "begin the disk", error);
        let draft = place.begin(&start).map_err(failed)?;
        let landed = Landed::begin(draft, begun.clone(), self.keeper.life()).map_err(failed)?;
        self.landed.write().insert(begin.number, Arc::new(landed));
        // After the mark: what the record names can be gone on with.
        if let Err(error) = self.keeper.begun(&begun, place.frozen_at()) {
            self.not_kept(&error);
        }
        Ok(())
    }

    /// Takes in the disks of a draft that goes on.
    fn land_again(&self, draft: &Draft, notes: &BTreeMap<DiskNumber, Vec<u8>>) -> Result<()> {
        let record = self.keeper.record();
        let lost = |what: &str| Problem::new(ProblemCode::Internal, "the backup cannot be gone on with", what);
        for begun in record.disks {
            let number = begun.number;
            let (disk, note) = (draft.disk(number), notes.get(&number));
            let (Some(disk), Some(note)) = (disk, note) else { return Err(lost("a disk is missing")) };
            let landed = Landed::resume(disk.clone(), begun, record.life, note);
            let landed = landed.map_err(|error| lost(&error.to_string()))?;
            self.landed.write().insert(number, Arc::new(landed));
        }
        Ok(())
    }

    /// What the node says of a backup that is whole, where it fits what was ordered, begun and stored.
    fn outcome(&self, answer: Answer) -> std::result::Result<Outcome, mover::Error> {
        let wrong = |why: &str| {
            let source = sendense_source::Error::new(sendense_source::Kind::Failed, why);
            mover::Error::Source { what: "believe the node".to_owned(), source }
        };
        let Answer::Moved { mut facts, disks } = answer else {
            return Err(wrong("it answers something else than was asked"));
        };
        let ordered_disks = self.disks.get().map_or(&[][..], Vec::as_slice);
        if disks.len() != ordered_disks.len() || facts.disks.len() != ordered_disks.len() {
            return Err(wrong("it tells of other disks than were ordered"));
        }
        facts.consistency_note = facts.consistency_note.as_deref().map(words);
        let mut outcomes = Vec::with_capacity(disks.len());
        for ((ordered, moved), frozen) in ordered_disks.iter().zip(disks).zip(&mut facts.disks) {
            let landed = self.landed.read().get(&ordered.number).cloned();
            let landed = landed.ok_or_else(|| wrong("it never began a disk"))?;
            let begun = &landed.begun;
            let (disk, token) = (&begun.disk, frozen.token.as_ref());
            // The mover may take a token back that it told before, never tell another.
            if moved.number != ordered.number
                || (&frozen.key, &frozen.binding, frozen.capacity) != (&disk.key, &disk.binding, disk.capacity)
                || token.is_some_and(|token| Some(token) != disk.token.as_ref())
                || moved.backup_type != begun.backup_type
            {
                return Err(wrong("it tells of another disk than it began"));
            }
            if !landed.batches.lock().are(moved.batches) {
                return Err(wrong("it tells of blocks that did not arrive"));
            }
            frozen.label.clone_from(&disk.label);
            let mut outcome = DiskOutcome::from(moved);
            outcome.type_reason = outcome.type_reason.as_deref().map(words);
            let most = ByteLen(landed.blocks.saturating_mul(sendense_block::BLOCK_BYTES));
            let summary = &mut outcome.summary;
            for bytes in
                [&mut summary.read, &mut summary.stored, &mut summary.frames, &mut summary.zeroed, &mut summary.same]
            {
                *bytes = (*bytes).min(most);
            }
            outcome.parent = match outcome.backup_type {
                BackupType::Full => None,
                BackupType::Incremental => ordered.parent.as_ref().map(|(parent, _)| parent.clone()),
            };
            outcomes.push(outcome);
        }
        Ok(Outcome { facts, disks: outcomes })
    }
}

/// What a node is told that works at something that is over.
pub(super) fn over() -> Problem {
    Problem::new(ProblemCode::TaskNotFound, "the hub knows no such order of this node", "it ended, or was given up")
}

/// What a node is told while its backup waits for the hub.
fn not_yet() -> Problem {
    Problem::new(ProblemCode::Busy, "the hub is not ready to go on", "it was restarted, or ends")
}

/// Has a node make a backup, and lands what it sends. Blocks until the node has let its source go, is not heard any more, or the
/// hub ends: then the handle is paused, and the draft is left for the next life of the hub.
pub(crate) fn backup(
    remote: &RemoteSource,
    assignment: &Assignment,
    place: &dyn Place,
    handle: &Handle,
    lease_seconds: u32,
    keep: impl FnOnce(&BackupOrder) -> Keeper,
) -> Result<Outcome, mover::Error> {
    place.phase(Phase::Snapshot);
    let order = order(assignment, lease_seconds);
    let (events, heard) = mpsc::channel();
    let run = Arc::new(Run::new(keep(&order), events));
    run.set_disks(assignment);
    let id = remote.new_id();
    run.keeper.ordered(&id);
    let begun = remote.begin_backup(id.clone(), Work::Backup(order), run.clone());
    begun.map_err(|problem| away(&problem.message))?;
    conduct(remote, &id, &run, &heard, place, handle, lease_seconds)
}

/// Goes on with it, now that its draft is open again.
pub(crate) fn go_on(
    resuming: &Resuming,
    assignment: &Assignment,
    (draft, notes): (&Draft, &BTreeMap<DiskNumber, Vec<u8>>),
) -> Result<u64> {
    let run = resuming.run();
    run.land_again(draft, notes)?;
    run.set_disks(assignment);
    run.hear();
    if let Some(answer) = run.record().answer {
        run.ended(Ok(answer));
    }
    Ok(run.landed.read().values().map(|disk| disk.draft.stored_bytes()).sum())
}

/// The rest of a backup that goes on; as [`backup`].
pub(crate) fn conduct_again(
    remote: &RemoteSource,
    resuming: &Resuming,
    place: &dyn Place,
    handle: &Handle,
    lease_seconds: u32,
) -> Result<Outcome, mover::Error> {
    let id = resuming.record().order;
    conduct(remote, &id, resuming.run(), resuming.events(), place, handle, lease_seconds)
}

fn conduct(
    remote: &RemoteSource,
    id: &OrderId,
    run: &Arc<Run>,
    events: &mpsc::Receiver<Event>,
    place: &dyn Place,
    handle: &Handle,
    lease_seconds: u32,
) -> Result<Outcome, mover::Error> {
    let ended = std::thread::scope(|scope| {
        let (ended, until) = mpsc::channel();
        scope.spawn(move || run.mark_at_times(&until));
        // Dropped also where following panics, or the scope would wait for ever.
        let _ended: mpsc::Sender<()> = ended;
        follow(remote, id, run, events, place, handle, Duration::from_secs(lease_seconds.into()))
    });
    if handle.is_paused() {
        // The order stays: a node that asks is not told to give it up.
        run.close(Closed::Paused);
        return Err(mover::Error::Cancelled);
    }
    remote.end(id);
    run.close(Closed::Over);
    run.outcome(ended?)
}

fn order(assignment: &Assignment, lease_seconds: u32) -> BackupOrder {
    let disks = assignment.disks.iter().map(|disk| {
        let (parent, reason) = match &disk.parentage {
            Parentage::None { reason } => (None, reason.clone()),
            Parentage::Parent(parent) => (Some(parent.backup_id.clone()), parent.lost.clone()),
        };
        DiskOrder { number: disk.number, key: disk.key.clone(), parent, reason }
    });
    BackupOrder {
        disks: disks.collect(),
        freeze: assignment.freeze.clone(),
        level: assignment.level.into(),
        on_tracking_loss: assignment.on_tracking_loss,
        parallel_disks: assignment.parallel_disks,
        audit: assignment.audit.into(),
        bytes_per_second_max: assignment.bytes_per_second_max,
        lease_seconds,
    }
}

fn follow(
    remote: &RemoteSource,
    id: &OrderId,
    run: &Run,
    events: &mpsc::Receiver<Event>,
    landing: &dyn Place,
    handle: &Handle,
    lease: Duration,
) -> Result<Answer, mover::Error> {
    let (mut phase, mut stopping, mut letting_go) = (Phase::Snapshot, None, false);
    // What failed here counts more than what the node makes of it.
    let mut failed = None;
    loop {
        match events.recv_timeout(LOOK_PERIOD) {
            Ok(Event::Begin(begin, reply)) => {
                // A node that went away asks again.
                let _ = reply.send(run.land(landing, &begin));
            }
            Ok(Event::LettingGo(reply)) => {
                letting_go = true;
                // A node that went away does not ask again.
                let _ = reply.send(landing.letting_go());
            }
            Ok(Event::TrackingIsWrong(disk, message)) => landing.tracking_is_wrong(disk, &message),
            Ok(Event::Report { phase: now, progress, notes }) => {
                run.waiting.fetch_sub(1, Ordering::SeqCst);
                handle.progress.set(&progress);
                if now != phase && stopping.is_none() {
                    phase = now;
                    landing.phase(now);
                }
                notes.iter().for_each(|note| landing.note(note));
            }
            Ok(Event::Ended(outcome)) => {
                if let Some(error) = failed {
                    return Err(error);
                }
                return outcome.map_err(|fault| match fault.into_mover() {
                    _ if handle.cancel.is_cancelled() => mover::Error::Cancelled,
                    // Nobody here has asked for it.
                    mover::Error::Cancelled => {
                        away("the node has given it up: it ended, or had not heard the hub for too long")
                    }
                    error => error,
                });
            }
            Ok(Event::Lost(why)) => return Err(failed.unwrap_or_else(|| away(&why))),
            Ok(Event::Failed(number, source)) => {
                failed.get_or_insert(mover::Error::Copy { number, source });
            }
            // The sender is held by `run`, which lives as long as this.
            Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {}
        }
        if stopping.is_none()
            && failed.is_none()
            && handle.stopped() == Some(Stop::Shutdown)
            && run.outlives_hub()
            && handle.pause()
        {
            return Err(mover::Error::Cancelled);
        }
        if stopping.is_none() && (failed.is_some() || handle.cancel.is_cancelled()) {
            remote.stop(id);
            stopping = Some(Instant::now());
        }
        // When the hub ends it cannot wait for the node, which will find that the hub does not know the order.
        let patience = match handle.stopped() {
            Some(Stop::Shutdown) => Duration::ZERO,
            // Within the time that the task's runner gives it.
            _ if letting_go => LETTING_GO_PATIENCE,
            _ => STOP_PATIENCE,
        };
        if stopping.is_some_and(|since| since.elapsed() >= patience) {
            return Err(failed.unwrap_or(mover::Error::Cancelled));
        }
        let silent = run.heard.lock().elapsed();
        if silent > lease {
            return Err(failed.unwrap_or_else(|| away(&format!("the node was not heard for {} s", silent.as_secs()))));
        }
    }
}

fn away(why: &str) -> mover::Error {
    let source = sendense_source::Error::new(sendense_source::Kind::Unavailable, why);
    mover::Error::Source { what: "reach the node".to_owned(), source }
}
