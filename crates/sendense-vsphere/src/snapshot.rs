//! Snapshots: making, finding by name, removing, and bringing deltas together.
//!
//! What lives here: the operations. What does not: whose snapshot it is and when it goes; names are the caller's.

use crate::client::Vim;
use crate::error::{Error, Result};
use crate::inventory::Snapshot;
use crate::reply::reference;
use crate::request::{Method, Ref};
use crate::task::OnStop;
use sendense_block::Cancel;
use std::time::Duration;

/// How long making one may take: quiescing a busy Windows guest has 15 minutes by VMware's own limit.
const CREATE_TIMEOUT: Duration = Duration::from_secs(20 * 60);
/// How long removing one, or consolidating, may take: the deltas of a long copy are written back, terabytes at worst.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

impl Vim {
    /// Makes a snapshot without memory. A failure may still have made one (the answer was lost): look for its name.
    pub fn create_snapshot(
        &self,
        machine: &Ref,
        name: &str,
        description: &str,
        quiesce: bool,
        cancel: &Cancel,
    ) -> Result<Ref> {
        const METHOD: Method = Method::CreateSnapshot;
        let result = self.run(
            METHOD,
            machine,
            |body| {
                body.value("name", name).value("description", description);
                body.value("memory", false).value("quiesce", quiesce);
            },
            (CREATE_TIMEOUT, OnStop::Cancel),
            cancel,
        )?;
        result
            .as_ref()
            .and_then(reference)
            .ok_or_else(|| Error::Reply { method: METHOD.name().into(), problem: "the task names no snapshot".into() })
    }

    /// Removes a snapshot and brings its deltas together; those made after it stay. A stop ends the waiting, not the removal.
    pub fn remove_snapshot(&self, snapshot: &Ref, cancel: &Cancel) -> Result<()> {
        let parameters = |body: &mut crate::request::Body| {
            body.value("removeChildren", false).value("consolidate", true);
        };
        self.run(Method::RemoveSnapshot, snapshot, parameters, (REMOVE_TIMEOUT, OnStop::Leave), cancel).map(drop)
    }

    /// Brings together deltas that belong to no snapshot. A stop ends the waiting only.
    pub fn consolidate(&self, machine: &Ref, cancel: &Cancel) -> Result<()> {
        self.run(Method::ConsolidateVMDisks, machine, |_| {}, (REMOVE_TIMEOUT, OnStop::Leave), cancel).map(drop)
    }

    /// A machine's snapshots now.
    pub fn snapshots(&self, machine: &Ref, cancel: &Cancel) -> Result<Vec<Snapshot>> {
        Ok(self.machine(machine, cancel)?.snapshots)
    }
}
