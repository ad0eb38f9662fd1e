//! Use-cases: one method per call of the API.
//!
//! What lives here: whether a request is allowed, what it means, what it answers. What does not: HTTP (above), SQL, files
//! and hypervisors (below). Invariant: a method that changes something either did all of it or says why it did not; work
//! that takes longer than a call becomes a task.

mod backups;
mod beside;
mod chain;
mod consolidate;
mod cover;
pub(crate) mod create;
mod delete;
pub(crate) mod due;
mod exports;
mod forget;
mod health;
mod history;
mod hold;
pub(crate) mod in_force;
mod lost;
mod merge;
mod mounts;
mod moving;
mod nodes;
pub(crate) mod policies;
mod prune;
mod recoveries;
pub(crate) mod repositories;
pub(crate) mod schedules;
mod selector;
pub(crate) mod sources;
mod tasks;
pub(crate) mod tell;
pub(crate) mod tokens;
mod turns;
mod unproved;
mod vanished;
pub(crate) mod vms;
mod wire;

use crate::core::Core;
use crate::fault::{Result, internal};
use sendense_api::Role;
use sendense_types::{Problem, ProblemCode};
use std::sync::Arc;

pub use nodes::NodeCaller;
pub use tokens::Caller;
pub(crate) use wire::level;

/// The hub's use-cases. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub(crate) core: Arc<Core>,
}

impl App {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Runs a change to its end even when the caller goes away in the middle: half a deletion helps nobody.
    async fn to_the_end<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let change = self.core.tracker.spawn(change);
        change.await.map_err(|error| internal("a part of the hub failed", error.to_string()))?
    }
}

impl Caller {
    /// Fails unless the caller's role allows what `least` allows.
    pub(crate) fn require(&self, least: Role) -> Result<()> {
        if self.role >= least {
            return Ok(());
        }
        let details = format!("{} is needed, {} has {}", least, self.identity, self.role);
        Err(Problem::new(ProblemCode::Forbidden, "the token does not allow this", details))
    }
}
