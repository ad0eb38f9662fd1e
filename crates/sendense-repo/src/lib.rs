//! Images at rest: a folder of QCOW2 chains with manifests and digests, written so that power may fail at any moment.
//!
//! What lives here: drafts and their publication, chains, holds, deletion, recovery at start-up, verification, the owner record,
//! locks, room and retention. What does not: SQL, HTTP, hypervisors, async, the wall clock (`now` is passed in), and how a
//! QCOW2 file looks inside (`sendense-qcow2`). All calls block and may be made from several threads at once.
//!
//! ```text
//! Repository::open -> recover
//!   begin_draft -> begin_disk (a BlockSink) -> seal -> publish        a point exists when its manifest has its name
//!   open_disk (ReadAt + AllocationMap)   open_digests (DigestMap)   open_compared (both)   list   verify
//!   plan_delete -> execute_delete   plan_merge -> execute_merge   plan_move -> execute_move
//! ```
//!
//! Invariant: kill -9 or power loss at any step leaves every earlier point restorable, and every point whole or absent.
//! The formats are described in `docs/formats.md`; [`layout`] says where things lie.

pub mod capacity;
pub mod catalog_copy;
pub mod chain;
pub mod compared;
mod crashsafe;
pub mod delete;
pub mod detached;
pub mod digests;
pub mod draft;
pub mod error;
pub mod extract;
pub mod hold;
pub mod humble;
pub mod layout;
pub mod list;
pub mod lock;
pub mod manifest;
pub mod merge;
pub mod moving;
pub mod owner;
mod probe;
pub mod recover;
pub mod repository;
pub mod retention;
pub mod room;
pub mod segments;
mod spare;
pub mod survey;
#[cfg(any(test, feature = "faults"))]
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod verify;

pub use capacity::{Bounds, Storage};
pub use catalog_copy::CatalogCopy;
pub use chain::{CHAIN_DEPTH_MAX, ChainReader, Link, PointDigests};
pub use compared::{ComparedDisk, Damage, OnDamage};
pub use delete::DeletePlan;
pub use detached::{Detached, Words};
pub use draft::{DiskDraft, DiskFacts, DiskSpec, Draft, DraftSpec, PointFacts, Recall, Resumed, Sealed};
pub use error::{Error, Kind, Result};
pub use hold::Hold;
pub use list::Listing;
pub use manifest::Manifest;
pub use merge::MergePlan;
pub use moving::MovePlan;
pub use probe::{Probe, probe};
pub use repository::{Create, Options, Repository};
