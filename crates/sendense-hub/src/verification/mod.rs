//! What verifications are for: to know of each point whether it can be given back, to say so where it cannot, and to let the next
//! backup store again what is lost.
//!
//! ```text
//! verify (a task, or by itself) -> report -> judge -> marks -> the catalog          corrupt, affected, sound
//!                                              \----> an alert for each point that is newly found damaged
//! the next backup: lost blocks of its chain -> compare with the machine -> stored again: whatever comes after is whole
//! ```
//!
//! What lives here: what a report means ([`mod@record`]), the lost blocks as they are kept ([`lost`]), and the look for what was
//! not proved for long ([`mod@keep`]). What does not: reading files (`sendense-repo`), the task around it (`jobs::verify`).
//!
//! Invariant: whether a point is affected is told by its digests alone: it is when a lost block of a corrupt point is the one
//! that it would be restored from. A point that stored the block again is not, without anyone having noted that.

mod keep;
pub(crate) mod lost;
mod record;

#[cfg(test)]
pub(crate) use keep::{Tried, look};
pub(crate) use keep::{first_looks_since, keep, rules, sayings};
pub(crate) use record::{judge_new_point, record};
