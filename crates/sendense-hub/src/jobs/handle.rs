//! What a running task and those who watch it share: the request to stop, how far it is, what it has to tell.
//!
//! Invariant: the first reason to stop is the one that counts; whoever asks later changes nothing.

use parking_lot::Mutex;
use sendense_block::copy::{Progress, Snapshot};
use sendense_block::{ByteLen, Cancel};
use sendense_catalog::{LogLevel, NewLogLine};
use sendense_repo::verify;
use sendense_types::{Clock, Phase, Problem, ProblemCode, SourceId, TaskId, Timestamp};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Lines that wait for the next report (half a second). A job tells tens in its life; what passes this is a loop that
/// complains, and is counted instead of kept.
const LINES_WAITING_MAX: usize = 256;

/// How long a stopped job may take to let its source go, once it has stopped reading: removing the snapshot of a busy machine
/// takes minutes. What takes longer is left behind, and the journal's reaper goes on with it.
const LETTING_GO_MAX: Duration = Duration::from_secs(600);

/// Takes away what a job that does not come back has made.
pub(crate) type TakeBack = Box<dyn FnOnce(&Handle) + Send>;

/// Why a running task is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A person asked.
    Person,
    /// The hub ends.
    Shutdown,
    /// It moved nothing for too long.
    Deadline,
    /// It took longer than whoever asked for it allows.
    TimeLimit,
    /// Another hub has taken it over: it must not even be ended by us.
    LeaseLost,
    /// Another hub has taken its repository.
    RepositoryLost,
    /// It was done aside and is in the way of a deletion or a merge.
    MakesWay,
}

/// A running task, as seen by its job, its reporter and those who cancel.
pub(crate) struct Handle {
    /// Which task.
    pub task_id: TaskId,
    /// Asked by the job's threads.
    pub cancel: Cancel,
    /// Filled by the job's threads when it copies.
    pub progress: Arc<Progress>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    stop: Option<(Stop, Instant)>,
    letting_go: Option<Instant>,
    abandoned: bool,
    paused: bool,
    look_after: Option<SourceId>,
    take_back: Vec<TakeBack>,
    phase: Option<Phase>,
    verify: Option<Arc<verify::Progress>>,
    lines: VecDeque<NewLogLine>,
    lines_lost: usize,
    seen: (Snapshot, Option<Phase>),
    moved_at: Timestamp,
}

impl Handle {
    /// A task that has just begun.
    pub fn new(task_id: TaskId, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            stop: None,
            letting_go: None,
            abandoned: false,
            paused: false,
            look_after: None,
            take_back: Vec::new(),
            phase: None,
            verify: None,
            lines: VecDeque::new(),
            lines_lost: 0,
            seen: (Snapshot::default(), None),
            moved_at: clock.now(),
        };
        Self { task_id, cancel: Cancel::new(), progress: Arc::default(), clock, state: Mutex::new(state) }
    }

    /// Asks the job to stop. True when this was the first time.
    pub fn stop(&self, why: Stop) -> bool {
        let mut state = self.state.lock();
        if state.stop.is_some() {
            return false;
        }
        state.stop = Some((why, Instant::now()));
        // Hooks may take their time and may ask for the reason: they run without the lock.
        drop(state);
        self.cancel.cancel();
        true
    }

    /// Why it is to stop, if it is.
    pub fn stopped(&self) -> Option<Stop> {
        self.state.lock().stop.map(|(why, _)| why)
    }

    /// For how long it was to stop already.
    pub fn stopped_for(&self) -> Duration {
        self.state.lock().stop.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// The job has stopped to read and lets its source go. False when it was left behind meanwhile.
    pub fn letting_go(&self) -> bool {
        let mut state = self.state.lock();
        state.letting_go = Some(Instant::now());
        !state.abandoned
    }

    /// It was stopped, and its job should have come back by now.
    pub fn is_overdue(&self, grace: Duration) -> bool {
        let state = self.state.lock();
        let Some((_, stopped)) = state.stop else { return false };
        match state.letting_go {
            Some(since) => since.max(stopped).elapsed() > LETTING_GO_MAX,
            None => stopped.elapsed() > grace,
        }
    }

    /// What is to be done if the job does not come back. It is not done when the job ends.
    pub fn on_abandon(&self, take_back: impl FnOnce(&Self) + Send + 'static) {
        self.state.lock().take_back.push(Box::new(take_back));
    }

    /// Nobody waits for the job any more. Gives what is to be done about that.
    pub fn abandon(&self) -> Vec<TakeBack> {
        let mut state = self.state.lock();
        state.abandoned = true;
        std::mem::take(&mut state.take_back)
    }

    /// The hub ends, and its next life goes on with the task: it is not ended. False when it was left behind meanwhile.
    pub fn pause(&self) -> bool {
        let mut state = self.state.lock();
        state.paused = !state.abandoned;
        state.paused
    }

    /// The next life of the hub goes on with the task.
    pub fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    /// Once the task has ended, its source is to be looked at: something may be left there that the hub's journal does not know.
    pub fn look_after(&self, source_id: SourceId) {
        self.state.lock().look_after = Some(source_id);
    }

    /// The source that is to be looked at.
    pub fn to_look_after(&self) -> Option<SourceId> {
        self.state.lock().look_after.clone()
    }

    /// The job has come to this phase.
    pub fn set_phase(&self, phase: Phase) {
        self.state.lock().phase = Some(phase);
    }

    /// The job's phase.
    pub fn phase(&self) -> Option<Phase> {
        self.state.lock().phase
    }

    /// The job verifies, and is measured by what it reads. Returns what its threads fill.
    pub fn measure_verify(&self) -> Arc<verify::Progress> {
        let progress = Arc::new(verify::Progress::default());
        self.state.lock().verify = Some(progress.clone());
        progress
    }

    /// How far the job is.
    pub fn snapshot(&self) -> Snapshot {
        let verify = self.state.lock().verify.clone();
        match verify {
            Some(verify) => Snapshot {
                planned: ByteLen(verify.total_bytes.load(Ordering::Relaxed)),
                done: ByteLen(verify.done_bytes.load(Ordering::Relaxed)),
                ..Snapshot::default()
            },
            None => self.progress.snapshot(),
        }
    }

    /// A line for the task's log.
    pub fn log(&self, level: LogLevel, message: impl Into<String>, fields: serde_json::Value) {
        let line = NewLogLine { at: self.clock.now(), level, message: message.into(), fields };
        let mut state = self.state.lock();
        if state.lines.len() < LINES_WAITING_MAX {
            state.lines.push_back(line);
        } else {
            state.lines_lost += 1;
        }
    }

    /// A line for the task's log that tells of a state.
    pub fn info(&self, message: impl Into<String>) {
        self.log(LogLevel::Info, message, serde_json::json!({}));
    }

    /// A line for the task's log that somebody should look at.
    pub fn warn(&self, message: impl Into<String>) {
        self.log(LogLevel::Warning, message, serde_json::json!({}));
    }

    /// Takes the lines that wait.
    pub fn take_lines(&self) -> Vec<NewLogLine> {
        let mut state = self.state.lock();
        let mut lines: Vec<_> = state.lines.drain(..).collect();
        let lost = std::mem::take(&mut state.lines_lost);
        drop(state);
        if lost > 0 {
            lines.push(NewLogLine {
                at: self.clock.now(),
                level: LogLevel::Warning,
                message: "lines left out because too many came at once".to_owned(),
                fields: serde_json::json!({ "count": lost }),
            });
        }
        lines
    }

    /// Work that moves no bytes came a step further: an hour of such steps is not an hour without progress.
    pub fn step(&self) {
        let now = self.clock.now();
        self.state.lock().moved_at = now;
    }

    /// Seconds since anything moved: bytes, phase or a step.
    pub fn idle_seconds(&self) -> f64 {
        let (snapshot, now) = (self.snapshot(), self.clock.now());
        let mut state = self.state.lock();
        let seen = (snapshot, state.phase);
        if state.seen != seen {
            state.seen = seen;
            state.moved_at = now;
        }
        now.seconds_since(state.moved_at)
    }
}

impl Stop {
    /// The problem that a task ended for this reason has.
    pub fn problem(self) -> Problem {
        match self {
            Self::Person => Problem::new(ProblemCode::Cancelled, "cancelled", "a person stopped it"),
            Self::MakesWay => Problem::new(ProblemCode::Cancelled, "cancelled", "it made way for a deletion"),
            Self::Shutdown => Problem::new(ProblemCode::Interrupted, "interrupted: hub stopped", ""),
            Self::Deadline => Problem::new(
                ProblemCode::DeadlineExceeded,
                "no progress for too long",
                "nothing was read or written within the deadline; look at the source and the repository",
            ),
            Self::TimeLimit => Problem::new(
                ProblemCode::DeadlineExceeded,
                "it took longer than it may",
                "the time limit that it was asked for with has passed; every earlier point is as it was",
            ),
            Self::RepositoryLost => Problem::new(
                ProblemCode::RepositoryOwned,
                "interrupted: another hub took the repository",
                "the lease ran out while the repository or this hub did not answer",
            ),
            Self::LeaseLost => {
                Problem::new(ProblemCode::Interrupted, "interrupted: another hub took the task over", "")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_types::ManualClock;

    fn handle() -> (Arc<ManualClock>, Handle) {
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(0)));
        (clock.clone(), Handle::new(TaskId::generate(), clock))
    }

    #[test]
    fn the_first_reason_to_stop_counts() {
        let (_, handle) = handle();
        assert_eq!(handle.stopped(), None);
        assert!(handle.stop(Stop::Person));
        assert!(!handle.stop(Stop::Shutdown));
        assert_eq!(handle.stopped(), Some(Stop::Person));
        assert!(handle.cancel.is_cancelled());
    }

    #[test]
    fn what_is_stopped_has_its_time_to_come_back_and_more_to_let_go() {
        let (_, handle) = handle();
        assert!(!handle.is_overdue(Duration::ZERO), "nobody has stopped it");
        handle.stop(Stop::Person);
        assert!(!handle.is_overdue(Duration::from_secs(3600)));
        assert!(handle.is_overdue(Duration::ZERO));
        assert!(handle.letting_go());
        assert!(!handle.is_overdue(Duration::ZERO), "a snapshot's removal takes its time");
        let done = Arc::new(Mutex::new(0));
        let counted = done.clone();
        handle.on_abandon(move |_| *counted.lock() += 1);
        for take in handle.abandon().into_iter().chain(handle.abandon()) {
            take(&handle);
        }
        assert_eq!(*done.lock(), 1);
        assert!(!handle.letting_go(), "nobody waits for it");
    }

    #[test]
    fn what_moves_is_not_idle() {
        let (clock, handle) = handle();
        clock.advance_seconds(100);
        assert_eq!(handle.idle_seconds(), 100.0);
        handle.progress.plan(sendense_block::ByteLen(7));
        assert_eq!(handle.idle_seconds(), 0.0);
        clock.advance_seconds(5);
        assert_eq!(handle.idle_seconds(), 5.0);
        handle.set_phase(Phase::Finalizing);
        assert_eq!(handle.idle_seconds(), 0.0);
        clock.advance_seconds(9);
        handle.step();
        clock.advance_seconds(2);
        assert_eq!(handle.idle_seconds(), 2.0);
    }

    #[test]
    fn a_flood_of_lines_is_counted_and_not_kept() {
        let (_, handle) = handle();
        for number in 0..LINES_WAITING_MAX + 3 {
            handle.info(format!("line {number}"));
        }
        let lines = handle.take_lines();
        assert_eq!(lines.len(), LINES_WAITING_MAX + 1);
        assert_eq!(lines.last().unwrap().fields["count"], 3);
        assert_eq!(handle.take_lines(), []);
    }
}
