//! Tasks: waiting for their end.
//!
//! What lives here: asking until it is over, with a bound. What does not: which operation is a task. Only state, result,
//! error and progress are asked for: the whole `TaskInfo` holds things that differ from server to server.

use crate::client::Vim;
use crate::error::{Error, Fault, FaultKind, Result};
use crate::reply;
use crate::request::{Body, Method, Ref};
use crate::xml::Element;
use parking_lot::{Condvar, Mutex};
use sendense_block::Cancel;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first pause between two questions: small tasks end at once.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause: a task of minutes is not asked about more often than this.
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// What happens to a task when somebody stops waiting for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStop {
    /// It is asked to end; whether it did is not known, so what it makes must be looked for.
    Cancel,
    /// It goes on: what it does is wanted whoever waits, as is the removal of a snapshot.
    Leave,
}

impl Vim {
    /// Calls a method that starts a task, and waits for its end; gives the task's result, if it has one.
    pub(crate) fn run(
        &self,
        method: Method,
        this: &Ref,
        parameters: impl Fn(&mut Body),
        (within, on_stop): (Duration, OnStop),
        cancel: &Cancel,
    ) -> Result<Option<Element>> {
        let answer = self.call(method, this, parameters, cancel)?;
        let task = reply::reference_at(&answer, "returnval")
            .ok_or_else(|| Error::Reply { method: method.name().to_owned(), problem: "it names no task".into() })?;
        let (until, mut pause) = (Instant::now() + within, PAUSE_FIRST);
        loop {
            match self.task_ended(method, &task, cancel) {
                Ok(Some(result)) => return Ok(result),
                Ok(None) => {}
                Err(Error::Cancelled) => return Err(self.give_up(&task, on_stop)),
                Err(error) => return Err(error),
            }
            if Instant::now() >= until {
                return Err(Error::TaskTimeout { task: method.name().to_owned(), seconds: within.as_secs() });
            }
            if !pause_for(pause, cancel) {
                return Err(self.give_up(&task, on_stop));
            }
            pause = pause.saturating_mul(2).min(PAUSE_LONGEST);
        }
    }

    fn give_up(&self, task: &Ref, on_stop: OnStop) -> Error {
        // Nobody waits for it any more, so a fresh token, and an answer that changes nothing.
        if on_stop == OnStop::Cancel
            && let Err(error) = self.call(Method::CancelTask, task, |_| {}, &Cancel::new())
        {
            tracing::debug!(%task, %error, "cancel a task");
        }
        Error::Cancelled
    }

    /// The result when it ended well, none while it runs, its fault when it ended badly.
    fn task_ended(&self, method: Method, task: &Ref, cancel: &Cancel) -> Result<Option<Option<Element>>> {
        let info = self.properties(task, &["info.state", "info.error", "info.result"], cancel)?;
        match info.text("info.state") {
            Some("success") => Ok(Some(info.get("info.result").cloned())),
            Some("error") => {
                let unknown = || Fault {
                    kind: FaultKind::Other,
                    name: String::new(),
                    message: String::new(),
                    details: Vec::new(),
                };
                let fault = Box::new(info.get("info.error").map_or_else(unknown, reply::localized_fault));
                Err(Error::Fault { method: method.name().to_owned(), fault })
            }
            Some("queued" | "running") => Ok(None),
            other => {
                let problem = format!("the task {task} is in no known state: {:?}", other.map(reply::short));
                Err(Error::Reply { method: method.name().to_owned(), problem })
            }
        }
    }
}

/// Pauses; false when somebody asked to stop.
fn pause_for(pause: Duration, cancel: &Cancel) -> bool {
    let bell = Arc::new((Mutex::new(false), Condvar::new()));
    let ring = bell.clone();
    let _hook = cancel.on_cancel(move || {
        *ring.0.lock() = true;
        ring.1.notify_all();
    });
    let (stopped, rung) = &*bell;
    let until = Instant::now() + pause;
    let mut stopped = stopped.lock();
    while !*stopped && !rung.wait_until(&mut stopped, until).timed_out() {}
    !*stopped
}
