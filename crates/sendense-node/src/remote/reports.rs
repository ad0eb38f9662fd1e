//! What a hub is told of an order while it is carried out: how far it is, and lines for its log.
//!
//! Invariant: a hub that does not want the order any more, or is not heard for as long as the lease, ends it.

use super::link::{Broken, Link};
use super::message::{Call, OrderId};
use parking_lot::{Condvar, Mutex};
use sendense_block::Cancel;
use sendense_block::copy::Progress;
use sendense_types::Phase;
use std::sync::Arc;
use std::time::Duration;

/// Between two reports: what a person sees moves once a second.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// Lines that wait for a report; an order tells tens in its life.
const NOTES_WAITING_MAX: usize = 256;

/// The reports of one order.
pub(super) struct Reports {
    link: Arc<Link>,
    id: OrderId,
    patience: Duration,
    cancel: Cancel,
    told: Mutex<Told>,
    changed: Condvar,
}

struct Told {
    phase: Phase,
    lines: Lines,
    ended: bool,
}

/// What waits to be told.
#[derive(Debug, Default, Clone)]
struct Lines {
    /// For somebody to look at.
    notes: Vec<String>,
    /// For whoever reads the log.
    plain: Vec<String>,
}

impl Lines {
    /// Puts lines that were not told before those that came since.
    fn give_back(&mut self, untold: Self) {
        for (lines, untold) in [(&mut self.notes, untold.notes), (&mut self.plain, untold.plain)] {
            lines.splice(0..0, untold);
            lines.truncate(NOTES_WAITING_MAX);
        }
    }
}

fn add(lines: &mut Vec<String>, line: &str) {
    if lines.len() < NOTES_WAITING_MAX {
        lines.push(line.to_owned());
    }
}

impl Reports {
    /// None was made yet. `cancel` ends the order.
    pub fn new(link: Arc<Link>, id: OrderId, patience: Duration, phase: Phase, cancel: Cancel) -> Self {
        let told = Mutex::new(Told { phase, lines: Lines::default(), ended: false });
        Self { link, id, patience, cancel, told, changed: Condvar::new() }
    }

    /// Tells the hub how far the order is, until it ends.
    pub fn tell(&self, progress: &Progress) {
        loop {
            let mut told = self.told.lock();
            let (phase, lines, ended) = (told.phase, std::mem::take(&mut told.lines), told.ended);
            drop(told);
            let now = progress.snapshot();
            let bytes = [now.planned, now.done, now.stored, now.frames, now.zero, now.same].map(|bytes| bytes.0);
            let (order, Lines { notes, plain }) = (self.id.clone(), lines.clone());
            let call = Call::Report { order, phase, progress: bytes, notes, lines: plain };
            match self.link.once(&call, &[], &self.cancel) {
                Ok(_) => {}
                Err(Broken::Silent(silent, _)) if silent < self.patience => {
                    self.told.lock().lines.give_back(lines);
                }
                Err(broken) => {
                    tracing::warn!(order = %self.id.0, error = %sendense_block::error::chain(&broken), "give the order up");
                    self.cancel.cancel();
                    return;
                }
            }
            // The last lines of an order are told too, where the hub can be reached.
            if ended {
                return;
            }
            let mut told = self.told.lock();
            if !told.ended {
                self.changed.wait_for(&mut told, REPORT_PERIOD);
            }
        }
    }

    /// The order has come to this phase.
    pub fn phase(&self, phase: Phase) {
        self.told.lock().phase = phase;
        self.changed.notify_all();
    }

    /// A line for its log that somebody should look at.
    pub fn note(&self, message: &str) {
        add(&mut self.told.lock().lines.notes, message);
    }

    /// A line for its log.
    pub fn line(&self, message: &str) {
        add(&mut self.told.lock().lines.plain, message);
    }

    /// Ends the reports when it is dropped, also where what is reported panics.
    pub fn until_dropped(&self) -> Ended<'_> {
        Ended(self)
    }
}

/// See [`Reports::until_dropped`].
pub(super) struct Ended<'a>(&'a Reports);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.told.lock().ended = true;
        self.0.changed.notify_all();
    }
}
