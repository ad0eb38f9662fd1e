//! Random steps in the lives of tasks, against a model that is too simple to be wrong.
//!
//! Three hubs take, report, end, cancel and take over the same few tasks, with claims that are fresh, old or never were, while
//! time passes and hubs die and start again. The model is the table of the state machine and nothing more. Whatever is asked,
//! catalog and model give the same answer; a task that has ended stays as it is to the last field.

use crate::fixture::*;
use crate::support::TestDb;
use proptest::sample::Index;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;

const HUBS: usize = 3;
const LEASE_SECONDS: i64 = 60;

#[derive(Debug, Clone, Copy)]
enum End {
    Completed,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone)]
enum Op {
    Create,
    /// `stale` claims carry the version before the present one.
    Claim {
        task: Index,
        hub: usize,
        stale: bool,
    },
    TakeOver {
        task: Index,
        hub: usize,
        stale: bool,
    },
    Heartbeat {
        task: Index,
        stale: bool,
    },
    Finish {
        task: Index,
        end: End,
        stale: bool,
    },
    Cancel {
        task: Index,
    },
    Log {
        task: Index,
    },
    Wait {
        seconds: i64,
    },
    RestartHub {
        hub: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    use proptest::prelude::*;
    let task = any::<Index>;
    let (hub, stale) = (0..HUBS, prop::bool::weighted(0.15));
    let end = prop_oneof![Just(End::Completed), Just(End::Failed), Just(End::Cancelled)];
    let op = prop_oneof![
        3 => Just(Op::Create),
        6 => (task(), hub.clone(), stale).prop_map(|(task, hub, stale)| Op::Claim { task, hub, stale }),
        4 => (task(), hub.clone(), stale).prop_map(|(task, hub, stale)| Op::TakeOver { task, hub, stale }),
        4 => (task(), stale).prop_map(|(task, stale)| Op::Heartbeat { task, stale }),
        4 => (task(), end, stale).prop_map(|(task, end, stale)| Op::Finish { task, end, stale }),
        3 => task().prop_map(|task| Op::Cancel { task }),
        1 => task().prop_map(|task| Op::Log { task }),
        3 => (1..LEASE_SECONDS * 3 / 2).prop_map(|seconds| Op::Wait { seconds }),
        1 => hub.prop_map(|hub| Op::RestartHub { hub }),
    ];
    proptest::collection::vec(op, 250..300)
}

/// A task as the model knows it.
#[derive(Debug, Clone)]
struct Shadow {
    task_id: TaskId,
    state: TaskState,
    version: i64,
    attempts: u32,
    /// Which hub, in which of its lives, and until when.
    holder: Option<(usize, i64, i64)>,
    cancel_requested: bool,
    log_lines: u64,
    /// The row when it ended.
    last: Option<Task>,
}

/// What the catalog may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    /// Done, and somebody asked to stop.
    DoneStop,
    LeaseLost,
    LeaseHeld,
    WrongState,
}

#[derive(Default)]
struct Model {
    tasks: Vec<Shadow>,
    epochs: [i64; HUBS],
    now: i64,
}

impl Model {
    /// The rule of every step that changes a task: the version first, then the state.
    fn gate(shadow: &Shadow, stale: bool, wanted: TaskState) -> Option<Answer> {
        if stale {
            return Some(Answer::LeaseLost);
        }
        (shadow.state != wanted).then_some(Answer::WrongState)
    }

    fn take(&mut self, at: usize, hub: usize) -> Answer {
        let holder = (hub, self.epochs[hub], self.now + LEASE_SECONDS);
        let shadow = &mut self.tasks[at];
        shadow.state = TaskState::Running;
        shadow.version += 1;
        shadow.attempts += 1;
        shadow.holder = Some(holder);
        Answer::Done
    }

    fn is_dead(&self, shadow: &Shadow) -> bool {
        shadow.holder.is_none_or(|(hub, epoch, until)| until < self.now || self.epochs[hub] != epoch)
    }

    fn predict(&mut self, op: &Op) -> Option<Answer> {
        let at = |task: &Index, tasks: &[Shadow]| task.index(tasks.len());
        Some(match op {
            Op::Claim { task, hub, stale } => {
                let at = at(task, &self.tasks);
                match Self::gate(&self.tasks[at], *stale, TaskState::Pending) {
                    Some(refused) => refused,
                    None => self.take(at, *hub),
                }
            }
            Op::TakeOver { task, hub, stale } => {
                let at = at(task, &self.tasks);
                match Self::gate(&self.tasks[at], *stale, TaskState::Running) {
                    Some(refused) => refused,
                    None if !self.is_dead(&self.tasks[at]) => Answer::LeaseHeld,
                    None => self.take(at, *hub),
                }
            }
            Op::Heartbeat { task, stale } => {
                let (at, until) = (at(task, &self.tasks), self.now + LEASE_SECONDS);
                let shadow = &mut self.tasks[at];
                match Self::gate(shadow, *stale, TaskState::Running) {
                    Some(refused) => refused,
                    None => {
                        shadow.holder = shadow.holder.map(|(hub, epoch, _)| (hub, epoch, until));
                        if shadow.cancel_requested { Answer::DoneStop } else { Answer::Done }
                    }
                }
            }
            Op::Finish { task, end, stale } => {
                let at = at(task, &self.tasks);
                let shadow = &mut self.tasks[at];
                match Self::gate(shadow, *stale, TaskState::Running) {
                    Some(refused) => refused,
                    None => {
                        shadow.version += 1;
                        shadow.state = match end {
                            End::Completed => TaskState::Completed,
                            End::Failed => TaskState::Failed,
                            End::Cancelled => TaskState::Cancelled,
                        };
                        Answer::Done
                    }
                }
            }
            Op::Cancel { task } => {
                let at = at(task, &self.tasks);
                let shadow = &mut self.tasks[at];
                if shadow.state.is_final() {
                    return Some(Answer::WrongState);
                }
                shadow.cancel_requested = true;
                Answer::Done
            }
            Op::Log { task } => {
                let at = at(task, &self.tasks);
                self.tasks[at].log_lines += 1;
                Answer::Done
            }
            Op::Create | Op::Wait { .. } | Op::RestartHub { .. } => return None,
        })
    }
}

fn answer<T>(result: Result<T>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(Error::Conflict(Conflict::LeaseLost { .. })) => Answer::LeaseLost,
        Err(Error::Conflict(Conflict::LeaseHeld { .. })) => Answer::LeaseHeld,
        Err(Error::Conflict(Conflict::WrongState { .. })) => Answer::WrongState,
        Err(other) => panic!("an answer that the model does not know: {other}"),
    }
}

fn hub_id(hub: usize) -> HubId {
    id(&format!("hub-{hub}"))
}

/// Asks the catalog, with the claims that the model held before it predicted.
async fn ask(catalog: &Catalog, before: &[Shadow], epochs: &[i64; HUBS], now: i64, op: &Op) -> Answer {
    let tasks = catalog.tasks();
    let claim = |task: &Index, stale: bool| {
        let shadow = &before[task.index(before.len())];
        TaskClaim { task_id: shadow.task_id.clone(), version: shadow.version - i64::from(stale) }
    };
    let lease = |hub: usize| HubLease { hub_id: hub_id(hub), epoch: epochs[hub] };
    let until = at(now + LEASE_SECONDS);
    match op {
        Op::Claim { task, hub, stale } => {
            answer(tasks.claim(&claim(task, *stale), &lease(*hub), until, at(now)).await, |_| Answer::Done)
        }
        Op::TakeOver { task, hub, stale } => {
            answer(tasks.take_over(&claim(task, *stale), &lease(*hub), until, at(now)).await, |_| Answer::Done)
        }
        Op::Heartbeat { task, stale } => {
            let beat =
                Heartbeat { lease_until: until, progress: Some(json!({ "at": now })), bytes_done: 1, bytes_total: 2 };
            let stop = |stop| if stop { Answer::DoneStop } else { Answer::Done };
            answer(tasks.heartbeat(&claim(task, *stale), &beat).await, stop)
        }
        Op::Finish { task, end, stale } => {
            let claim = claim(task, *stale);
            let problem = Problem::new(ProblemCode::DeadlineExceeded, "no progress for too long", "");
            let ended = match end {
                End::Completed => tasks.finish_completed(&claim, Some(&json!({})), at(now)).await,
                End::Failed => tasks.finish_failed(&claim, &problem, at(now)).await,
                End::Cancelled => tasks.finish_cancelled(&claim, at(now)).await,
            };
            answer(ended, |_| Answer::Done)
        }
        Op::Cancel { task } => answer(tasks.request_cancel(&claim(task, false).task_id).await, |_| Answer::Done),
        Op::Log { task } => {
            let line = NewLogLine { at: at(now), level: LogLevel::Info, message: "x".to_owned(), fields: json!({}) };
            answer(tasks.append_log(&claim(task, false).task_id, &[line]).await, |()| Answer::Done)
        }
        Op::Create | Op::Wait { .. } | Op::RestartHub { .. } => unreachable!("asked of nobody"),
    }
}

async fn compare(catalog: &Catalog, model: &mut Model, op: &Op) {
    let mut dead = Vec::new();
    let page = Page { limit: 1000, offset: 0 };
    let (mut rows, _) = catalog.tasks().list(&TaskFilter::default(), page).await.expect("list");
    rows.sort_unstable_by(|a, b| a.task_id.cmp(&b.task_id));
    assert_eq!(rows.len(), model.tasks.len(), "after {op:?}");
    for (position, row) in rows.into_iter().enumerate() {
        let shadow = &model.tasks[position];
        assert_eq!(row.task_id, shadow.task_id, "after {op:?}");
        let seen = (row.state, row.version, row.attempts, row.cancel_requested, row.log_lines);
        let expected = (shadow.state, shadow.version, shadow.attempts, shadow.cancel_requested, shadow.log_lines);
        assert_eq!(seen, expected, "{} after {op:?}", shadow.task_id);
        let holder = shadow.holder.map(|(hub, epoch, _)| (hub_id(hub), epoch));
        assert_eq!(row.hub_id.clone().zip(row.hub_epoch), holder, "{} after {op:?}", shadow.task_id);
        let until = shadow.holder.filter(|_| !shadow.state.is_final()).map(|(_, _, until)| at(until));
        assert_eq!(row.lease_until, until, "{} after {op:?}", shadow.task_id);
        assert_eq!(row.finished_at.is_some(), shadow.state.is_final(), "{} after {op:?}", shadow.task_id);
        if shadow.state == TaskState::Running && model.is_dead(shadow) {
            dead.push(shadow.task_id.clone());
        }
        // What has ended is as it was when it ended; only its log may be added to.
        if let Some(last) = &shadow.last {
            assert_eq!(&Task { log_lines: last.log_lines, ..row }, last, "an ended task changed at {op:?}");
        } else if shadow.state.is_final() {
            model.tasks[position].last = Some(row);
        }
    }
    let found = catalog.tasks().running_tasks_of_dead_hubs(at(model.now)).await.expect("dead");
    let mut found: Vec<_> = found.into_iter().map(|task| task.task_id).collect();
    found.sort_unstable();
    dead.sort_unstable();
    assert_eq!(found, dead, "after {op:?}");
    let all = [TaskState::Pending, TaskState::Running, TaskState::Completed, TaskState::Failed, TaskState::Cancelled];
    for state in all {
        let filter = TaskFilter { state: Some(state), ..Default::default() };
        let (_, total) = catalog.tasks().list(&filter, Page { limit: 1, offset: 0 }).await.expect("list");
        let expected = model.tasks.iter().filter(|shadow| shadow.state == state).count();
        assert_eq!(total, expected as u64, "{state} after {op:?}");
    }
}

/// The suite runs once per database; the seed is fixed so that a failure is met again.
pub async fn random_lives_of_tasks_agree_with_a_model(db: TestDb) {
    let catalog = db.open().await;
    let mut model = Model::default();
    for hub in 0..HUBS {
        model.epochs[hub] = catalog.hubs().acquire(&hub_id(hub), at(0), at(0)).await.expect("acquire").epoch;
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for op in ops().new_tree(&mut runner).expect("operations").current() {
        match &op {
            Op::Wait { seconds } => model.now += seconds,
            Op::RestartHub { hub } => {
                let lease = catalog.hubs().acquire(&hub_id(*hub), at(model.now), at(model.now)).await;
                model.epochs[*hub] = lease.expect("acquire").epoch;
            }
            // A dozen tasks, so that most steps meet one that is in the midst of its life.
            Op::Create if model.tasks.iter().filter(|task| !task.state.is_final()).count() < 12 => {
                let new = NewTask {
                    task_id: id(&format!("task-{:04}", model.tasks.len())),
                    kind: TaskKind::Verify,
                    subject: TaskSubject::None,
                    request: json!({}),
                    created_by: None,
                };
                let task = catalog.tasks().create(&new, at(model.now)).await.expect("create");
                model.tasks.push(Shadow {
                    task_id: task.task_id,
                    state: TaskState::Pending,
                    version: 1,
                    attempts: 0,
                    holder: None,
                    cancel_requested: false,
                    log_lines: 0,
                    last: None,
                });
            }
            Op::Create => continue,
            _ if model.tasks.is_empty() => continue,
            op => {
                let (before, epochs, now) = (model.tasks.clone(), model.epochs, model.now);
                let expected = model.predict(op).expect("the model knows every step");
                let got = ask(&catalog, &before, &epochs, now, op).await;
                assert_eq!(got, expected, "{op:?} at {now} on {before:#?}");
                let name = format!("{op:?}");
                let name = name.split([' ', '{']).next().unwrap_or_default();
                *seen.entry(format!("{name} {got:?}")).or_default() += 1;
            }
        }
        compare(&catalog, &mut model, &op).await;
    }
    for met in [
        "Claim Done",
        "Claim LeaseLost",
        "Claim WrongState",
        "TakeOver Done",
        "TakeOver LeaseHeld",
        "TakeOver WrongState",
        "Heartbeat Done",
        "Heartbeat DoneStop",
        "Heartbeat LeaseLost",
        "Finish Done",
        "Finish WrongState",
        "Finish LeaseLost",
        "Cancel Done",
        "Cancel WrongState",
    ] {
        assert!(seen.contains_key(met), "{met} was never met: {seen:?}");
    }
}
