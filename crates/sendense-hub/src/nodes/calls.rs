//! What nodes say, one arm per word.
//!
//! Invariant: whatever a node sends ends in an answer or a problem; nothing in it is believed before it was checked against
//! the node's own orders.

use super::bodies::Room;
use super::run::over;
use crate::app::{App, NodeCaller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, internal};
use sendense_catalog as catalog;
use sendense_node::remote::message::{Call, OrderId, Orders, PROTOCOL, Poll, SourceSpec, pack, unpack};
use sendense_types::{Problem, ProblemCode};
use serde::Serialize;
use std::sync::Arc;

/// What a node says of itself is cut to this.
const WORD_CHARS_MAX: usize = 255;

impl App {
    /// Waits for room for the body of a node's call.
    pub(crate) async fn node_body_room(&self, node: &NodeCaller, length: usize) -> Result<Room> {
        self.core.nodes.bodies.room(&node.node_id, length).await
    }

    /// Takes a call of a node, and gives the answer's body. `room` is what the body takes of the memory for bodies,
    /// given back as soon as the body is not needed any more.
    pub(crate) async fn node_call(&self, node: &NodeCaller, body: Vec<u8>, room: Room) -> Result<Vec<u8>> {
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
                let run = self.run_of(node, &order)?;
                blocking(move || run.digests(disk, first, count)).await?
            }
            Call::NextData { order, disk, from, end } => {
                let run = self.run_of(node, &order)?;
                answer(&blocking(move || run.next_data(disk, from, end)).await??)
            }
            Call::Report { order, phase, progress, notes } => {
                self.run_of(node, &order)?.report(phase, progress, &notes)?;
                answer(&())
            }
            Call::LettingGo { order } => answer(&self.run_of(node, &order)?.letting_go().await?),
            Call::TrackingIsWrong { order, disk, message } => {
                self.run_of(node, &order)?.tracking_is_wrong(disk, &message)?;
                answer(&())
            }
            Call::Sources => answer(&self.sources_of(node).await?),
        }
    }

    fn run_of(&self, node: &NodeCaller, order: &OrderId) -> Result<Arc<super::run::Run>> {
        self.core.nodes.sessions.run(&node.node_id, node.name.as_str(), order).ok_or_else(over)
    }

    async fn node_poll(&self, node: &NodeCaller, poll: Poll) -> Result<Vec<u8>> {
        if poll.protocol != PROTOCOL {
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

fn answer(head: &impl Serialize) -> Result<Vec<u8>> {
    pack(head, &[]).map_err(|error| internal("an answer to a node cannot be written", error.to_string()))
}
