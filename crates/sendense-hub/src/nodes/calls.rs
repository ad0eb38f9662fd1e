//! What nodes say, one arm per word.
//!
//! Invariant: whatever a node sends ends in an answer or a problem; nothing in it is believed before it was checked against
//! the node's own orders.

use super::bodies::Room;
use super::run::{Run, over};
use super::sessions::AtWork;
use super::supply::{ANSWER_BYTES_MAX, Supply};
use crate::app::{App, NodeCaller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, internal};
use sendense_catalog as catalog;
use sendense_node::remote::message::{Call, OrderId, Orders, PROTOCOL, PROTOCOL_MIN, Poll, SourceSpec, pack, unpack};
use sendense_types::{Problem, ProblemCode};
use serde::Serialize;
use std::sync::Arc;

/// What a node says of itself is cut to this.
const WORD_CHARS_MAX: usize = 255;

/// The answer to a call, with what it takes of the memory for bodies until it is sent.
pub(crate) struct Answered {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Vec<u8>> for Answered {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, _room: Room::default() }
    }
}

impl App {
    /// Waits for room for the body of a node's call.
    pub(crate) async fn node_body_room(&self, node: &NodeCaller, length: usize) -> Result<Room> {
        self.core.nodes.bodies.room(&node.node_id, length).await
    }

    /// Takes a call of a node, and gives the answer's body. `room` is what the body takes of the memory for bodies,
    /// given back as soon as the body is not needed any more.
    pub(crate) async fn node_call(&self, node: &NodeCaller, body: Vec<u8>, room: Room) -> Result<Answered> {
        let (call, tail) = unpack::<Call>(&body)
            .map_err(|error| Problem::new(ProblemCode::InvalidInput, "the call cannot be read", error.to_string()))?;
        let sessions = &self.core.nodes.sessions;
        match call {
            Call::Poll(poll) => self.node_poll(node, poll).await,
            Call::Answer { order, outcome } => {
                // Before the node is told that it need not keep it.
                if let (Ok(answer), Ok(run)) = (&outcome, self.run_of(node, &order)) {
                    let answer = answer.clone();
                    blocking(move || run.keep_answer(&answer)).await?;
                }
                sessions.answer(&node.node_id, node.name.as_str(), &order, outcome);
                answer(&())
            }
            Call::BeginDisk { order, disk } => {
                self.run_of(node, &order)?.begin(disk).await?;
                answer(&())
            }
            Call::Blocks { order, disk, batch } => {
                let run = self.run_of(node, &order)?;
                sessions.came(&node.node_id, tail.len());
                let at = body.len() - tail.len();
                // The work goes on when the caller goes away, and so does its room.
                let stored = blocking(move || {
                    let stored = run.blocks(disk, batch, body.get(at..).unwrap_or_default());
                    drop((body, room));
                    stored
                });
                answer(&stored.await??)
            }
            Call::Settle { order, disk } => {
                let run = self.run_of(node, &order)?;
                answer(&blocking(move || run.settle(disk)).await??)
            }
            Call::Digests { order, disk, first, count } => {
                let work = self.at_work(node, &order)?;
                let room = self.core.nodes.bodies.room(&node.node_id, ANSWER_BYTES_MAX).await?;
                let digests = blocking(move || {
                    let digests = match work {
                        AtWork::Backup(run) => run.digests(disk, first, count),
                        AtWork::Restore(supply) => supply.digests(disk, first, count),
                    };
                    digests.map(|bytes| Answered { bytes, _room: room })
                });
                digests.await?
            }
            Call::NextData { order, disk, from, end } => {
                let work = self.at_work(node, &order)?;
                let found = blocking(move || match work {
                    AtWork::Backup(run) => run.next_data(disk, from, end),
                    AtWork::Restore(supply) => supply.next_data(disk, from, end),
                });
                answer(&found.await??)
            }
            Call::Held { order, disk, from, end } => {
                let supply = self.supply_of(node, &order)?;
                let room = self.core.nodes.bodies.room(&node.node_id, ANSWER_BYTES_MAX).await?;
                let held = blocking(move || supply.held(disk, from, end).map(|held| (held, room))).await??;
                answer(&held.0)
            }
            Call::Read { order, disk, first, count } => {
                let supply = self.supply_of(node, &order)?;
                // Held until the answer is sent: a node that does not take it waits for its own answers. And as long as the reading
                // takes: a node that has gone away meanwhile must not begin the next one beside it.
                let room = self.core.nodes.bodies.room(&node.node_id, ANSWER_BYTES_MAX).await?;
                let read =
                    blocking(move || supply.read(disk, first, count).map(|bytes| Answered { bytes, _room: room }));
                let answered = read.await??;
                sessions.came(&node.node_id, answered.bytes.len());
                Ok(answered)
            }
            Call::HandOver { order } => {
                self.supply_of(node, &order)?.hand_over().await?;
                answer(&())
            }
            Call::Report { order, phase, progress, notes, lines } => {
                match self.at_work(node, &order)? {
                    AtWork::Backup(run) => run.report(phase, progress, &notes)?,
                    AtWork::Restore(supply) => supply.report(progress, &notes, &lines)?,
                }
                answer(&())
            }
            Call::LettingGo { order } => answer(&match self.at_work(node, &order)? {
                AtWork::Backup(run) => run.letting_go().await?,
                AtWork::Restore(supply) => supply.letting_go().await?,
            }),
            Call::TrackingIsWrong { order, disk, message } => {
                self.run_of(node, &order)?.tracking_is_wrong(disk, &message)?;
                answer(&())
            }
            Call::Sources => answer(&self.sources_of(node).await?),
        }
    }

    fn at_work(&self, node: &NodeCaller, order: &OrderId) -> Result<AtWork> {
        self.core.nodes.sessions.at_work(&node.node_id, node.name.as_str(), order).ok_or_else(over)
    }

    fn run_of(&self, node: &NodeCaller, order: &OrderId) -> Result<Arc<Run>> {
        match self.at_work(node, order)? {
            AtWork::Backup(run) => Ok(run),
            AtWork::Restore(_) => Err(over()),
        }
    }

    fn supply_of(&self, node: &NodeCaller, order: &OrderId) -> Result<Arc<Supply>> {
        match self.at_work(node, order)? {
            AtWork::Restore(supply) => Ok(supply),
            AtWork::Backup(_) => Err(over()),
        }
    }

    async fn node_poll(&self, node: &NodeCaller, poll: Poll) -> Result<Answered> {
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&poll.protocol) {
            let details =
                format!("the hub speaks version {PROTOCOL}, the node {}: install the same release", poll.protocol);
            return Err(Problem::new(ProblemCode::Conflict, "node and hub do not understand each other", details));
        }
        if poll.process.len() > 64 || poll.working.len() > 1000 {
            return Err(Problem::new(ProblemCode::InvalidInput, "the poll is longer than any node's", ""));
        }
        let sessions = &self.core.nodes.sessions;
        let entered = sessions.enter(&node.node_id, node.name.as_str(), &poll)?;
        if entered.is_due {
            let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(WORD_CHARS_MAX).collect::<String>();
            let state = serde_json::json!({ "version": cut(&poll.version), "host": cut(&poll.host) });
            self.core.catalog.nodes().note_seen(&node.node_id, &state, self.core.now()).await.or_problem()?;
        }
        // A node that has just come wants to know that it did; what it has to do it hears at its next poll.
        let mut orders = if entered.is_first {
            Orders::default()
        } else {
            sessions.wait(&node.node_id, &poll, &self.core.stop).await
        };
        // The poll may have been held for long, and orders hold credentials: a node that was revoked meanwhile, perhaps at
        // another hub, is told nothing.
        let valid = self.core.catalog.nodes().by_name(node.name.as_str()).await.or_problem()?;
        let Some(valid) = valid.filter(|valid| valid.node_id == node.node_id) else {
            sessions.forget(&node.node_id);
            return Err(Problem::new(ProblemCode::Unauthorized, "the node is not valid", "it was revoked"));
        };
        orders.bytes_per_second = self.node_limit_now(&valid);
        answer(&orders)
    }

    /// The sources that are bound to a node, with their credentials: what an earlier life of it may have left things on.
    async fn sources_of(&self, node: &NodeCaller) -> Result<Vec<SourceSpec>> {
        let page = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        let (rows, _) = self.core.catalog.sources().list(page).await.or_problem()?;
        let mut specs = Vec::new();
        for row in rows {
            if crate::app::sources::Settings::read(&row.config)?.node.as_deref() == Some(node.name.as_str()) {
                specs.push(self.core.source_spec(&row)?);
            }
        }
        Ok(specs)
    }
}

fn answer(head: &impl Serialize) -> Result<Answered> {
    let packed = pack(head, &[]).map(Answered::from);
    packed.map_err(|error| internal("an answer to a node cannot be written", error.to_string()))
}
