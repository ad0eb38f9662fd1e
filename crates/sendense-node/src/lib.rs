//! The data mover: runs one backup from a frozen source into whatever the hub lands it in, or one restore from whatever gives
//! the point onto a machine, and keeps the journal of what it makes on hypervisors.
//!
//! What lives here: the order of their steps and what each disk's backup becomes. What does not: repositories, SQL,
//! which point is the parent (the hub says), how a hypervisor is frozen (the source knows). Everything blocks; callers give
//! it a thread.

pub mod budget;
pub mod identity;
pub mod journal;
pub mod mover;
mod pace;
pub mod remote;
pub mod restore;

pub use budget::LaneBudget;
pub use identity::Identity;
pub use journal::FileJournal;
pub use mover::{Assignment, DiskAssignment, DiskOutcome, DiskStart, Error, Landing, Outcome, Parent, Parentage};
