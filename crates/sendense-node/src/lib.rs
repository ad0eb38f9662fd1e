//! The data mover: runs one backup from a frozen source into whatever the hub lands it in, and keeps the journal of what it
//! makes on hypervisors.
//!
//! What lives here: the order of a backup's steps and what each disk's backup becomes. What does not: repositories, SQL,
//! which point is the parent (the hub says), how a hypervisor is frozen (the source knows). Everything blocks; callers give
//! it a thread.

pub mod budget;
pub mod identity;
pub mod journal;
pub mod mover;
mod pace;
pub mod remote;

pub use budget::LaneBudget;
pub use identity::Identity;
pub use journal::FileJournal;
pub use mover::{Assignment, DiskAssignment, DiskOutcome, DiskStart, Error, Landing, Outcome, Parent, Parentage};
