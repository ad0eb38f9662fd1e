//! Which nodes are connected, and what they are to do.
//!
//! ```text
//! order -> told at a poll -> answered
//!              '-> told again while the node does not name it
//! ```
//!
//! What lives here: the orders of each node, and the polls that wait for them. What does not: what is in an order, and the
//! blocks of a backup ([`super::run`]) or restore ([`super::supply`]). Invariants: an order is told to its node only; a backup or
//! restore that was told to one life of a node is never told to the next, which knows nothing of what the first has frozen or made.

use super::run::Run;
use super::supply::Supply;
use crate::fault::Result;
use parking_lot::Mutex;
use sendense_node::remote::message::{Answer, Fault, Order, OrderId, Orders, PROTOCOL_RESTORES, Poll, Work};
use sendense_types::{NodeId, Problem, ProblemCode, Timestamp};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a poll waits for something to say. Half of what home routers keep a silent connection for (RFC 5382, 4 minutes;
/// many give 60 s) and less than proxies do.
const HOLD: Duration = Duration::from_secs(20);
/// A node that was not heard for so long is not connected: two polls that failed, with their pauses.
const CONNECTED: Duration = Duration::from_secs(60);
/// Orders of one node at once: more than any hub runs, with questions beside.
const ORDERS_MAX: usize = 64;
/// Earlier lives of a node that are remembered, so that a copy of it that still runs is told to end.
const EARLIER_MAX: usize = 16;
/// Nodes that are remembered. Forgetting one that is not connected costs nothing.
const SESSIONS_MAX: usize = 10_000;
/// What came of an order is noted in the catalog at most so often.
const NOTE_PERIOD: Duration = Duration::from_secs(10);

/// Who waits for an order's end.
pub(super) enum Expects {
    /// A question.
    Answer(mpsc::Sender<Result<Answer, Fault>>),
    /// A backup.
    Backup(Arc<Run>),
    /// A restore.
    Restore(Arc<Supply>),
}

/// What a node is at under an order that it calls about.
pub(super) enum AtWork {
    Backup(Arc<Run>),
    Restore(Arc<Supply>),
}

impl Expects {
    fn at_work(&self) -> Option<AtWork> {
        match self {
            Self::Answer(_) => None,
            Self::Backup(run) => Some(AtWork::Backup(run.clone())),
            Self::Restore(supply) => Some(AtWork::Restore(supply.clone())),
        }
    }

    /// What one life of a node has begun is never told to the next.
    fn is_of_one_life(&self) -> bool {
        !matches!(self, Self::Answer(_))
    }
}

struct Entry {
    order: Order,
    expects: Expects,
    /// The life of the node that was told.
    told: Option<String>,
    stop: bool,
}

struct Session {
    name: String,
    process: String,
    /// The version of the words that it speaks.
    protocol: u32,
    earlier: VecDeque<String>,
    seen: Instant,
    noted: Option<Instant>,
    orders: BTreeMap<OrderId, Entry>,
    wake: Arc<Notify>,
    /// It is to be told what its blocks may take of the line, though there is nothing to do.
    is_limit_new: bool,
    traffic: Traffic,
}

/// Bytes of blocks that came, over the last seconds.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    since: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

/// A poll that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entered {
    /// It is the first of this life of the node, which waits for a word of its hub.
    pub is_first: bool,
    /// The catalog is to be told.
    pub is_due: bool,
}

/// What is known of a node that is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Backups that it runs.
    pub backups: u64,
    /// Blocks that come from it, before they are decoded.
    pub bytes_per_second: u64,
}

/// A backup that an earlier life of the hub has begun, and whose node has not come yet.
struct Awaited {
    node: String,
    process: String,
    entry: Entry,
}

/// What a node that has come still works at, and what it does not, with the reason.
#[derive(Default)]
struct Come {
    back: Vec<(OrderId, Entry)>,
    lost: Vec<(Entry, &'static str)>,
}

impl Session {
    fn check_restores(&self) -> Result<()> {
        if self.protocol >= PROTOCOL_RESTORES {
            return Ok(());
        }
        let message = format!("node {} is of an earlier release, which only backs up", self.name);
        let details =
            "install this hub's release on its machine and start the node again; until then it goes on backing up";
        Err(Problem::new(ProblemCode::Conflict, message, details))
    }
}

/// The connected nodes.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<NodeId, Session>>, Mutex<BTreeMap<OrderId, Awaited>>);

impl Sessions {
    /// Gives an order to the node of this name.
    pub(super) fn order(&self, node: &str, order: Order, expects: Expects) -> Result<()> {
        let mut sessions = self.0.lock();
        let session = sessions.values_mut().find(|session| session.name == node && session.seen.elapsed() < CONNECTED);
        let Some(session) = session else {
            let details = "start `sendense node` on its machine, or look at its log";
            return Err(Problem::new(ProblemCode::SourceUnavailable, format!("node {node} is not connected"), details));
        };
        if matches!(order.work, Work::Restore(_)) {
            session.check_restores()?;
        }
        if session.orders.len() >= ORDERS_MAX {
            let message = format!("node {node} has {ORDERS_MAX} orders already");
            return Err(Problem::new(ProblemCode::Busy, message, ""));
        }
        session.orders.insert(order.id.clone(), Entry { order, expects, told: None, stop: false });
        session.wake.notify_one();
        Ok(())
    }

    /// Refuses where the node is connected here and of a release that only backs up.
    pub(super) fn check_restores(&self, node: &str) -> Result<()> {
        let sessions = self.0.lock();
        let session = sessions.values().find(|session| session.name == node && session.seen.elapsed() < CONNECTED);
        session.map_or(Ok(()), Session::check_restores)
    }

    /// Takes a backup up again when this life of its node comes and works at it.
    pub(super) fn expect(&self, node: &str, process: &str, order: Order, run: Arc<Run>) {
        let id = order.id.clone();
        let entry = Entry { order, expects: Expects::Backup(run), told: Some(process.to_owned()), stop: false };
        self.1.lock().insert(id, Awaited { node: node.to_owned(), process: process.to_owned(), entry });
    }

    /// The backups that are waited for of a node that has come, and those of which it knows nothing any more.
    fn come(&self, name: &str, poll: &Poll) -> Come {
        let Come { mut back, mut lost } = Come::default();
        let come: Vec<_> = self.1.lock().extract_if(.., |_, awaited| awaited.node == name).collect();
        for (id, Awaited { process, entry, .. }) in come {
            if process != poll.process {
                lost.push((entry, "the node was restarted"));
            } else if !poll.working.contains(&id) {
                lost.push((entry, "the node has given it up"));
            } else {
                back.push((id, entry));
            }
        }
        Come { back, lost }
    }

    /// Has the node give an order up; its answer is still waited for.
    pub(super) fn stop(&self, id: &OrderId) {
        if let Some(awaited) = self.1.lock().get_mut(id) {
            awaited.entry.stop = true;
        }
        for session in self.0.lock().values_mut() {
            if let Some(entry) = session.orders.get_mut(id) {
                entry.stop = true;
                session.wake.notify_one();
            }
        }
    }

    /// Forgets an order. A node that works at it gives it up at its next poll.
    pub(super) fn remove(&self, id: &OrderId) {
        self.1.lock().remove(id);
        for session in self.0.lock().values_mut() {
            if session.orders.remove(id).is_some() {
                session.wake.notify_one();
            }
        }
    }

    /// True when the node that has this order was not heard for as long as one that is connected is.
    pub(super) fn is_silent(&self, id: &OrderId) -> bool {
        let sessions = self.0.lock();
        sessions.values().any(|session| session.orders.contains_key(id) && session.seen.elapsed() >= CONNECTED)
    }

    /// A node's poll is answered at once: what its blocks may take of its line has changed.
    pub(crate) fn limit_changed(&self, node: &NodeId) {
        if let Some(session) = self.0.lock().get_mut(node) {
            session.is_limit_new = true;
            session.wake.notify_one();
        }
    }

    /// A node was revoked: what it does is lost.
    pub(super) fn forget(&self, node: &NodeId) {
        let Some(session) = self.0.lock().remove(node) else { return };
        let awaited: Vec<_> = self.1.lock().extract_if(.., |_, awaited| awaited.node == session.name).collect();
        for (_, awaited) in awaited {
            lose(awaited.entry, "the node was revoked");
        }
        for entry in session.orders.into_values() {
            lose(entry, "the node was revoked");
        }
        session.wake.notify_one();
    }

    /// What this node works at under this order.
    pub(super) fn at_work(&self, node: &NodeId, name: &str, id: &OrderId) -> Option<AtWork> {
        // Before its first poll: only the life of the node that was told the order knows its number.
        if let Some(awaited) = self.1.lock().get(id).filter(|awaited| awaited.node == name) {
            return awaited.entry.expects.at_work();
        }
        let mut sessions = self.0.lock();
        let session = sessions.get_mut(node)?;
        session.seen = Instant::now();
        session.orders.get(id)?.expects.at_work()
    }

    /// Counts blocks that came from a node, or went to it.
    pub(super) fn came(&self, node: &NodeId, bytes: usize) {
        if let Some(session) = self.0.lock().get_mut(node) {
            session.traffic.add(bytes as u64, Instant::now());
        }
    }

    /// What came of an order. What nobody waits for any more is dropped.
    pub(super) fn answer(&self, node: &NodeId, name: &str, id: &OrderId, outcome: Result<Answer, Fault>) {
        let awaited = self.1.lock().extract_if(.., |known, awaited| known == id && awaited.node == name).next();
        let entry = if let Some((_, awaited)) = awaited {
            Some(awaited.entry)
        } else {
            let mut sessions = self.0.lock();
            let Some(session) = sessions.get_mut(node) else { return };
            session.seen = Instant::now();
            session.orders.remove(id)
        };
        match entry.map(|entry| entry.expects) {
            // Whoever asked may have gone away meanwhile.
            Some(Expects::Answer(asked)) => drop(asked.send(outcome)),
            Some(Expects::Backup(run)) => run.ended(outcome),
            Some(Expects::Restore(supply)) => supply.ended(outcome),
            None => {}
        }
    }

    /// What a node is doing, where it is connected to this hub.
    pub(crate) fn activity(&self, node: &NodeId) -> Option<Activity> {
        let sessions = self.0.lock();
        let session = sessions.get(node).filter(|session| session.seen.elapsed() < CONNECTED)?;
        let backups = session.orders.values().filter(|entry| matches!(entry.expects, Expects::Backup(_))).count();
        let bytes_per_second = session.traffic.rate(Instant::now());
        Some(Activity { backups: backups as u64, bytes_per_second })
    }

    /// Takes a poll in.
    pub(super) fn enter(&self, node: &NodeId, name: &str, poll: &Poll) -> Result<Entered> {
        let mut sessions = self.0.lock();
        // Under the lock of the sessions: a call that comes meanwhile finds them here or there.
        let Come { back, lost } = self.come(name, poll);
        for (entry, why) in lost {
            lose(entry, why);
        }
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, session| session.seen.elapsed() < CONNECTED || !session.orders.is_empty());
        }
        let now = Instant::now();
        let mut is_first = !sessions.contains_key(node);
        let session = sessions.entry(node.clone()).or_insert_with(|| Session {
            name: name.to_owned(),
            process: poll.process.clone(),
            protocol: poll.protocol,
            earlier: VecDeque::new(),
            seen: now,
            noted: None,
            orders: BTreeMap::new(),
            wake: Arc::new(Notify::new()),
            is_limit_new: false,
            traffic: Traffic { since: now, bytes: 0, bytes_per_second: 0 },
        });
        if session.earlier.contains(&poll.process) {
            let details = "its folder was copied, or it was started twice; the one that was started last works on";
            return Err(Problem::new(ProblemCode::Conflict, "another process is this node now", details));
        }
        if session.process != poll.process {
            is_first = true;
            let former = std::mem::replace(&mut session.process, poll.process.clone());
            let lost: Vec<OrderId> = session
                .orders
                .iter()
                .filter(|(_, entry)| entry.expects.is_of_one_life() && entry.told.as_ref() == Some(&former))
                .map(|(id, _)| id.clone())
                .collect();
            for entry in lost.iter().filter_map(|id| session.orders.remove(id)).collect::<Vec<_>>() {
                lose(entry, "the node was restarted");
            }
            session.earlier.push_back(former);
            if session.earlier.len() > EARLIER_MAX {
                session.earlier.pop_front();
            }
        }
        session.orders.extend(back);
        (session.seen, session.protocol) = (now, poll.protocol);
        let is_due = is_first || session.noted.is_none_or(|noted| now - noted >= NOTE_PERIOD);
        if is_due {
            session.noted = Some(now);
        }
        Ok(Entered { is_first, is_due })
    }

    /// The answer to a poll: at once when there is something to say, else when there is, or after a while.
    pub(super) async fn wait(&self, node: &NodeId, poll: &Poll, stop: &tokio_util::sync::CancellationToken) -> Orders {
        let until = tokio::time::Instant::now() + HOLD;
        loop {
            let Some((orders, is_limit_new, wake)) = self.due(node, poll) else { return Orders::default() };
            if is_limit_new || !orders.start.is_empty() || !orders.stop.is_empty() {
                return orders;
            }
            tokio::select! {
                () = wake.notified() => {}
                () = stop.cancelled() => return Orders::default(),
                () = tokio::time::sleep_until(until) => return Orders::default(),
            }
        }
    }

    fn due(&self, node: &NodeId, poll: &Poll) -> Option<(Orders, bool, Arc<Notify>)> {
        let mut sessions = self.0.lock();
        let session = sessions.get_mut(node).filter(|session| session.process == poll.process)?;
        session.seen = Instant::now();
        let working: HashSet<&OrderId> = poll.working.iter().collect();
        let mut orders = Orders::default();
        for (id, entry) in &mut session.orders {
            // What has begun is not told again: the machine would be frozen anew, and what is sent then would not fit what is
            // there; or a second one would be made. A node that has given it up says so, or is not heard at it any more.
            let has_begun = match &entry.expects {
                Expects::Answer(_) => false,
                Expects::Backup(run) => run.has_begun(),
                Expects::Restore(supply) => supply.has_begun(),
            };
            if !entry.stop && !has_begun && !working.contains(id) {
                entry.told = Some(poll.process.clone());
                if let Expects::Backup(run) = &entry.expects {
                    run.told(&poll.process);
                }
                orders.start.push(entry.order.clone());
            }
        }
        let known = |id: &OrderId| session.orders.get(id).is_some_and(|entry| !entry.stop);
        orders.stop = poll.working.iter().filter(|id| !known(id)).cloned().collect();
        Some((orders, std::mem::take(&mut session.is_limit_new), session.wake.clone()))
    }
}

fn lose(entry: Entry, why: &str) {
    match entry.expects {
        Expects::Backup(run) => run.lost(why),
        Expects::Restore(supply) => supply.lost(why),
        Expects::Answer(asked) => {
            let fault = Fault::Source {
                what: "ask the node".to_owned(),
                kind: "Unavailable".to_owned(),
                message: why.to_owned(),
            };
            // Whoever asked may have gone away meanwhile.
            let _ = asked.send(Err(fault));
        }
    }
}

/// The age of the last note that still counts as being connected, for lists.
pub(crate) fn is_recent(seen: Timestamp, now: Timestamp) -> bool {
    now.seconds_since(seen) < CONNECTED.as_secs_f64()
}

impl Traffic {
    /// Over so many seconds a rate is taken.
    const WINDOW: Duration = Duration::from_secs(5);

    fn add(&mut self, bytes: u64, now: Instant) {
        self.turn(now);
        self.bytes += bytes;
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= Self::WINDOW {
            self.bytes_per_second = (self.bytes as f64 / age.as_secs_f64()) as u64;
            (self.since, self.bytes) = (now, 0);
        }
    }

    fn rate(mut self, now: Instant) -> u64 {
        // Nothing has come for longer than a rate is taken over: what came before is long gone.
        if now.saturating_duration_since(self.since) >= 2 * Self::WINDOW {
            return 0;
        }
        self.turn(now);
        self.bytes_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use sendense_node::remote::message::{PROTOCOL, SourceSpec};
    use sendense_types::{SourceKind, TaskId};
    use tokio_util::sync::CancellationToken;

    fn poll(process: &str, working: &[&Order]) -> Poll {
        let (version, host) = ("1.0.0".to_owned(), "esx".to_owned());
        let working = working.iter().map(|order| order.id.clone()).collect();
        Poll { protocol: PROTOCOL, process: process.to_owned(), version, host, working }
    }

    fn order() -> Order {
        let source = SourceSpec {
            source_id: "src-1".parse().unwrap(),
            kind: SourceKind::Image,
            config: serde_json::json!({}),
            secret: None,
            deployment_id: "dep-1".parse().unwrap(),
        };
        Order { id: OrderId(TaskId::generate().to_string()), source, work: Work::Test }
    }

    struct House {
        sessions: Sessions,
        ids: [NodeId; 2],
    }

    impl House {
        /// Two nodes that have polled once.
        fn new() -> Self {
            let house =
                Self { sessions: Sessions::default(), ids: [1, 2].map(|n| format!("node-{n}").parse().unwrap()) };
            for (number, name) in ["A", "B"].into_iter().enumerate() {
                let entered = house.sessions.enter(&house.ids[number], name, &poll("1", &[])).unwrap();
                assert_eq!(entered, Entered { is_first: true, is_due: true });
            }
            house
        }

        fn ask(&self, node: &str) -> Result<(Order, mpsc::Receiver<std::result::Result<Answer, Fault>>)> {
            let (order, (answered, answer)) = (order(), mpsc::channel());
            self.sessions.order(node, order.clone(), Expects::Answer(answered))?;
            Ok((order, answer))
        }

        /// What a node is told now.
        fn told(&self, node: usize, poll: &Poll) -> (Vec<OrderId>, Vec<OrderId>) {
            let (orders, ..) = self.sessions.due(&self.ids[node], poll).unwrap_or_else(|| panic!("no session"));
            (orders.start.into_iter().map(|order| order.id).collect(), orders.stop)
        }
    }

    #[test]
    fn an_order_is_told_to_its_node_until_that_works_at_it_and_taken_from_it_alone() {
        let house = House::new();
        assert_eq!(house.ask("C").unwrap_err().code, ProblemCode::SourceUnavailable);
        let (order, answer) = house.ask("A").unwrap();
        for _ in 0..2 {
            assert_eq!(house.told(0, &poll("1", &[])), (vec![order.id.clone()], vec![]));
        }
        assert_eq!(house.told(0, &poll("1", &[&order])), (vec![], vec![]));
        // Another node can neither see, answer nor use it, and is told to give it up where it claims it.
        assert_eq!(house.told(1, &poll("1", &[&order])), (vec![], vec![order.id.clone()]));
        house.sessions.answer(&house.ids[1], "B", &order.id, Ok(Answer::Retired(Vec::new())));
        assert!(answer.try_recv().is_err(), "another node's answer was taken");
        assert!(house.sessions.at_work(&house.ids[1], "B", &order.id).is_none());
        house.sessions.answer(&house.ids[0], "A", &order.id, Ok(Answer::Retired(Vec::new())));
        assert!(answer.try_recv().unwrap().is_ok());
        assert_eq!(house.told(0, &poll("1", &[&order])), (vec![], vec![order.id]));
    }

    #[test]
    fn one_life_of_a_node_follows_another_and_none_comes_back() {
        let house = House::new();
        let (order, _answer) = house.ask("A").unwrap();
        assert_eq!(house.told(0, &poll("1", &[])).0.len(), 1);
        let enter = |process: &str| house.sessions.enter(&house.ids[0], "A", &poll(process, &[]));
        assert_eq!(enter("1").unwrap(), Entered { is_first: false, is_due: false });
        assert!(enter("2").unwrap().is_first);
        assert_eq!(enter("1").unwrap_err().code, ProblemCode::Conflict, "a copy of the node works beside it");
        assert!(
            house.sessions.due(&house.ids[0], &poll("1", &[])).is_none(),
            "a poll of the former life is told orders"
        );
        // A question is asked again of the new life.
        assert_eq!(house.told(0, &poll("2", &[])).0, [order.id]);
    }

    #[tokio::test]
    async fn a_poll_that_waits_is_told_of_an_order_and_a_revoked_node_of_none() {
        let house = House::new();
        let (stop, waiting) = (CancellationToken::new(), poll("1", &[]));
        let told = house.sessions.wait(&house.ids[0], &waiting, &stop);
        let ask = async { house.ask("A").unwrap() };
        let (told, (order, answer)) = tokio::join!(told, ask);
        assert_eq!(told.start.len(), 1);
        let held = poll("1", &[&order]);
        let held = house.sessions.wait(&house.ids[0], &held, &stop);
        let revoke = async { house.sessions.forget(&house.ids[0]) };
        let (held, ()) = tokio::join!(held, revoke);
        assert!(held.start.is_empty());
        assert!(answer.try_recv().unwrap().is_err(), "who asked was left waiting");
        assert_eq!(house.ask("A").unwrap_err().code, ProblemCode::SourceUnavailable);
    }

    #[tokio::test]
    async fn a_poll_that_waits_is_answered_when_the_limit_changes() {
        let house = House::new();
        let (stop, waiting) = (CancellationToken::new(), poll("1", &[]));
        let held = |node: usize| house.sessions.wait(&house.ids[node], &waiting, &stop);
        let change = async { house.sessions.limit_changed(&house.ids[0]) };
        let (told, ()) = tokio::join!(held(0), change);
        assert!(told.start.is_empty() && told.stop.is_empty());
        // Once; and no other node.
        for node in 0..2 {
            assert!(held(node).now_or_never().is_none(), "node {node} is answered at once");
        }
    }

    #[test]
    fn a_node_has_so_many_orders_at_once() {
        let house = House::new();
        let held: Vec<_> = (0..ORDERS_MAX).map(|_| house.ask("A").unwrap()).collect();
        assert_eq!(house.ask("A").unwrap_err().code, ProblemCode::Busy);
        house.sessions.remove(&held[0].0.id);
        assert!(house.ask("A").is_ok());
    }

    #[test]
    fn traffic_is_what_came_in_the_last_seconds() {
        let start = Instant::now();
        let mut traffic = Traffic { since: start, bytes: 0, bytes_per_second: 0 };
        traffic.add(1000, start);
        traffic.add(1000, start + Duration::from_secs(1));
        assert_eq!(traffic.rate(start + Duration::from_secs(4)), 0, "the first seconds are not over");
        assert_eq!(traffic.rate(start + Duration::from_secs(5)), 400);
        traffic.add(0, start + Duration::from_secs(5));
        assert_eq!(traffic.rate(start + Duration::from_secs(20)), 0);
        // The last bytes of a transfer are told for as long as a rate is taken over, and no longer.
        traffic.add(5000, start + Duration::from_secs(20));
        assert_eq!(traffic.rate(start + Duration::from_secs(25)), 1000);
        assert_eq!(traffic.rate(start + Duration::from_secs(30)), 0);
    }
}
