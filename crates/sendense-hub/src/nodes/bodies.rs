//! Room for the bodies of nodes' calls.
//!
//! A body is read only when there is room for all of it, so what nodes send at once never takes more memory than is given
//! here, and a node whose blocks cannot be stored as fast as it reads waits with its bytes in its own machine.
//!
//! Invariant: no node has more than its share, so one that sends slowly, or nonsense, holds up itself and no other.

use crate::fault::{Result, invalid};
use parking_lot::Mutex;
use sendense_node::remote::message::BODY_BYTES_MAX;
use sendense_types::{NodeId, Problem, ProblemCode};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const KIB: usize = 1024;
/// Bodies of all nodes: half of what a hub of 256 MiB has beside its lanes and mounts.
const ALL_KIB: usize = 128 * KIB;
/// Bodies of one node: two backups with 16 batches of half a MiB under way each; others wait.
const NODE_KIB: usize = 16 * KIB;
/// Bodies up to this need no room: polls, reports and questions, which must come through also while blocks wait. The number
/// of connections bounds them.
const SMALL_KIB: usize = 64;

// A body of the full length has to fit, or its node would wait for ever.
const _: () = assert!(BODY_BYTES_MAX <= NODE_KIB * KIB && NODE_KIB <= ALL_KIB);

/// The room.
pub(crate) struct Bodies {
    all: Arc<Semaphore>,
    /// The shares of nodes that have bodies under way.
    nodes: Mutex<HashMap<NodeId, Weak<Semaphore>>>,
}

/// Room for one body; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    _all: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL_KIB)), nodes: Mutex::default() }
    }
}

impl Bodies {
    /// Waits for room for a body of `length` bytes.
    pub async fn room(&self, node: &NodeId, length: usize) -> Result<Room> {
        let kib = length.div_ceil(KIB);
        if kib <= SMALL_KIB {
            return Ok(Room::default());
        }
        let permits = u32::try_from(kib).ok().filter(|_| length <= BODY_BYTES_MAX);
        let permits = permits.ok_or_else(|| invalid(format!("a node's call has at most {BODY_BYTES_MAX} bytes")))?;
        let closed = |_| Problem::new(ProblemCode::Busy, "the hub ends", "");
        let node = self.share(node).acquire_many_owned(permits).await.map_err(closed)?;
        let all = self.all.clone().acquire_many_owned(permits).await.map_err(closed)?;
        Ok(Room { _held: Some(Held { _all: all, _node: node }) })
    }

    /// A node's share, while somebody holds it.
    fn share(&self, node: &NodeId) -> Arc<Semaphore> {
        let mut nodes = self.nodes.lock();
        if let Some(share) = nodes.get(node).and_then(Weak::upgrade) {
            return share;
        }
        nodes.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(NODE_KIB));
        nodes.insert(node.clone(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_node_waits_for_its_own_bodies_and_for_no_other_node() {
        let bodies = Bodies::default();
        let [one, two] = ["node-1", "node-2"].map(|id| id.parse::<NodeId>().unwrap());
        let mut held: Vec<_> =
            (0..2).map(|_| bodies.room(&one, BODY_BYTES_MAX).now_or_never().expect("there is room").unwrap()).collect();
        assert!(bodies.room(&one, BODY_BYTES_MAX).now_or_never().is_none(), "more than its share");
        let small = bodies.room(&one, SMALL_KIB * KIB).now_or_never();
        assert!(small.expect("a poll waits for blocks").is_ok());
        assert!(bodies.room(&two, BODY_BYTES_MAX).now_or_never().is_some(), "a node waits for another");
        held.pop();
        assert!(bodies.room(&one, BODY_BYTES_MAX).now_or_never().is_some(), "room was not given back");
    }

    #[test]
    fn all_nodes_together_take_no_more_than_there_is() {
        let bodies = Bodies::default();
        let node = |number: usize| format!("node-{number}").parse::<NodeId>().unwrap();
        let shares = ALL_KIB / NODE_KIB;
        let held: Vec<_> = (0..2 * shares)
            .map(|n| bodies.room(&node(n / 2), BODY_BYTES_MAX).now_or_never().expect("there is room"))
            .collect();
        assert!(bodies.room(&node(shares), BODY_BYTES_MAX).now_or_never().is_none());
        drop(held);
        assert!(bodies.room(&node(shares), BODY_BYTES_MAX).now_or_never().is_some());
    }

    #[test]
    fn a_body_that_is_too_long_is_refused() {
        let (bodies, node) = (Bodies::default(), "node-1".parse::<NodeId>().unwrap());
        for length in [BODY_BYTES_MAX + 1, usize::MAX] {
            assert!(bodies.room(&node, length).now_or_never().expect("nothing to wait for").is_err());
        }
    }
}
