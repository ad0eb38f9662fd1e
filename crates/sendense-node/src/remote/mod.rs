//! The node away from its hub: one outbound link, and the same mover and the same restores as beside the hub.
//!
//! What lives here: the words between the two ([`message`], [`batch`], [`digests`]; the hub reads them with the same code)
//! and the node's side of them. What does not: what the hub does with them. Invariant: the node decides nothing about what a
//! backup stands on; it is told, and what it says of blocks is checked by the hub. What the hub says of blocks that are
//! restored is checked by the node.

mod backup;
pub mod batch;
pub mod digests;
mod ledger;
mod link;
pub mod message;
mod point;
mod reaper;
mod reports;
pub mod restore;
pub mod service;
mod sink;
pub(crate) mod throttle;
mod ways;
