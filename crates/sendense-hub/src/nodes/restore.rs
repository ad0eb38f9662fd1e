//! A restore that a node carries out, as the hub's job sees it: the point is lent to it, and what it says is followed.
//!
//! A hub that ends ends the restore: its next life marks the task interrupted, and the node, which is told at its next call that
//! nobody knows its order, takes the machine away that it had half made.
//!
//! Invariant: the node is told to hand the machine over only while the job could still be stopped; from then on it cannot.

use super::source::RemoteSource;
use super::supply::{Event, Supply};
use crate::fault::{Result, of_block, of_restore};
use crate::jobs::damage::Passed;
use crate::jobs::handle::{Handle, Stop};
use sendense_node::remote::message::{Answer, Fault, OrderId, Work, words};
use sendense_node::remote::restore::RestoreOrder;
use sendense_node::restore::{Assignment, Error, Restored, To};
use sendense_repo::{OnDamage, Repository};
use sendense_types::{BackupId, Problem, ProblemCode, VmContextId};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Between two looks at the clock and at the request to stop.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How long a node that was told to stop may take to say that it takes away what it made: half of what a job that was stopped
/// may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The same once it has said so: removing the disks of a machine takes minutes. Less than what a job may take for it.
const LETTING_GO_PATIENCE: Duration = Duration::from_secs(540);
/// Notes of a machine: one per device that is not as it was.
const NOTES_MAX: usize = 256;

/// Has a node restore a point; tells what was lent of it though it is damaged. Blocks until the node has ended, is not heard any more,
/// or the hub ends.
pub(crate) fn run(
    remote: &RemoteSource,
    repository: &Repository,
    vm: &VmContextId,
    assignment: &Assignment,
    on_damage: OnDamage,
    handle: &Handle,
    lease_seconds: u32,
) -> Result<(Restored, Vec<Passed>)> {
    let (events, heard) = mpsc::channel();
    let (backup, disks): (&BackupId, _) = (&assignment.backup_id, &assignment.disks);
    let who = handle.task_id.as_str();
    let supply = Arc::new(Supply::open(repository, (vm, backup), disks, on_damage, who, events)?);
    let order = RestoreOrder {
        task_id: assignment.task_id.clone(),
        backup_id: backup.clone(),
        disks: disks.clone(),
        to: assignment.to.clone(),
        lease_seconds,
    };
    let id = remote.new_id();
    remote.begin_restore(id.clone(), Work::Restore(order), supply.clone())?;
    let lease = Duration::from_secs(lease_seconds.into());
    let ended = Follow { remote, id: &id, supply: &supply, to: &assignment.to, handle, lease }.run(&heard);
    remote.end(&id);
    let passed = supply.close();
    Ok((outcome(ended?, assignment)?, passed))
}

/// What following a restore needs.
struct Follow<'a> {
    remote: &'a RemoteSource,
    id: &'a OrderId,
    supply: &'a Supply,
    to: &'a To,
    handle: &'a Handle,
    lease: Duration,
}

impl Follow<'_> {
    fn run(&self, events: &mpsc::Receiver<Event>) -> Result<Answer> {
        let Self { supply, handle, .. } = *self;
        let (mut stopping, mut letting_go, mut handed_over) = (None::<Instant>, false, None::<Instant>);
        loop {
            match events.recv_timeout(LOOK_PERIOD) {
                Ok(Event::Report { progress, notes, lines }) => {
                    supply.taken();
                    handle.progress.set(&progress);
                    notes.into_iter().for_each(|note| handle.warn(note));
                    lines.into_iter().for_each(|line| handle.info(line));
                }
                Ok(Event::HandOver(reply)) => {
                    let committed = match stopping {
                        None => handle.cancel.commit().map_err(|error| of_block("hand the machine over", &error)),
                        Some(_) => Err(stopped()),
                    };
                    if committed.is_ok() {
                        handed_over.get_or_insert_with(Instant::now);
                    }
                    // A node that went away asks again.
                    let _ = reply.send(committed);
                }
                Ok(Event::LettingGo(reply)) => {
                    letting_go = true;
                    // Nor does it wait for this.
                    let _ = reply.send(handle.letting_go());
                }
                Ok(Event::Ended(outcome)) => return self.ended(*outcome, handed_over.is_some()),
                Ok(Event::Lost(why)) => return Err(self.lost(&why, handed_over.is_some())),
                // The sender is held by `supply`, which lives as long as this.
                Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {}
            }
            if stopping.is_none() && handle.cancel.is_cancelled() {
                self.remote.stop(self.id);
                stopping = Some(Instant::now());
            }
            // When the hub ends it cannot wait for the node, which will find that the hub does not know the order.
            let is_ending = handle.stopped() == Some(Stop::Shutdown);
            let patience = match is_ending {
                true => Duration::ZERO,
                // Within the time that the task's runner gives it.
                false if letting_go => LETTING_GO_PATIENCE,
                false => STOP_PATIENCE,
            };
            if stopping.is_some_and(|since| since.elapsed() >= patience) {
                return Err(stopped());
            }
            if is_ending && handed_over.is_some_and(|since| since.elapsed() >= STOP_PATIENCE) {
                return Err(self.lost("the hub ends", true));
            }
            let silent = supply.silent_for();
            if silent > self.lease {
                let why = format!("it was not heard for {} s", silent.as_secs());
                return Err(self.lost(&why, handed_over.is_some()));
            }
        }
    }

    fn ended(&self, outcome: Result<Answer, Fault>, handed_over: bool) -> Result<Answer> {
        match outcome {
            Ok(answer) if handed_over => Ok(answer),
            Ok(_) => Err(unbelievable("it has handed a machine over unasked")),
            Err(_) if self.handle.cancel.is_cancelled() => Err(stopped()),
            Err(fault) => Err(match (self.supply.failure(), fault) {
                // What failed here counts more than what the node makes of it.
                (Some(failure), _) => failure,
                // Nobody here has asked for it.
                (None, Fault::Cancelled) => {
                    self.lost("it has given the restore up: it ended, or had not heard the hub for too long", false)
                }
                (None, fault) => of_restore(&fault.into_restore()),
            }),
        }
    }

    fn lost(&self, why: &str, handed_over: bool) -> Problem {
        let details = match self.to {
            To::New(_) if handed_over => "it was handing the machine over: look whether that is there, switched off",
            To::New(_) => "what it made it takes away by itself",
            To::Existing(_) => {
                "a disk that was being written says so in its first block: restore onto the machine again"
            }
        };
        Problem::new(ProblemCode::SourceUnavailable, format!("reach the node: {why}"), details)
    }
}

fn stopped() -> Problem {
    Problem::new(ProblemCode::Cancelled, "cancelled", "")
}

fn unbelievable(why: &str) -> Problem {
    let message = format!("believe the node: {why}");
    of_restore(&Error::Source(sendense_source::Error::new(sendense_source::Kind::Failed, message)))
}

/// What the node says of a restore that is whole, where it fits what was ordered.
fn outcome(answer: Answer, assignment: &Assignment) -> Result<Restored> {
    let Answer::Restored(answer) = answer else {
        return Err(unbelievable("it answers something else than was asked"));
    };
    let mut restored = Restored::from(answer);
    let fits = match &assignment.to {
        To::New(new) => restored.vm.name == new.name && restored.difference.is_none(),
        To::Existing(vm) => restored.vm == *vm && restored.difference.is_some(),
    };
    if !fits {
        return Err(unbelievable("it tells of another machine than was ordered"));
    }
    restored.vm.instance_uuid = words(&restored.vm.instance_uuid);
    restored.notes.truncate(NOTES_MAX);
    restored.notes.iter_mut().for_each(|note| *note = words(note));
    Ok(restored)
}
