//! Retention: which points of a VM stay, and why; which may go.
//!
//! What lives here: values and pure functions. What does not: the wall clock (`now` is passed in), files, and the deletion
//! itself ([`crate::delete`]).
//!
//! The rules mean what the prune options of Proxmox Backup Server mean. They choose in the order last, hourly, daily, weekly,
//! monthly, yearly; a rule looks only at what the rules before it left, passes over periods in which one of them keeps a
//! point, and keeps the newest point of each further period until its count is full. A damaged point takes no place of a rule,
//! and stays as long as the rules would keep it were it good.
//!
//! ```text
//! points, policy, now      -> judge  -> a verdict per point
//! verdicts, chains, claims -> plan   -> what goes, and what holds the rest
//! policy, growth, days     -> simulate: both of them, day by day, for years
//! ```
//!
//! One consequence is inherited with the meaning: weeks do not nest in months. A point that lost its week to a newer one of
//! the next month is not there for its own month any more, so that *more* weeks can keep *fewer* months. Between all other
//! rules more is never less.
//!
//! Invariant: of the points of each coverage that are good, at least one stays, whatever the policy.

mod judge;
mod plan;
mod policy;
mod simulate;
#[cfg(test)]
mod tests;

pub use judge::{Coverage, Point, Reason, State, Verdict, judge};
pub use plan::{Entry, Fate, Member, PrunePlan, plan};
pub use policy::{Keep, Policy, Rule, time_zone};
pub use simulate::{DAYS_MAX, Growth, POINTS_MAX, Simulation, Standing, simulate};
