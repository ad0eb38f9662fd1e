//! The hub: decides what is done, in the order `http -> app -> {jobs, restore, mounts, schedule, reconcile}`.
//!
//! What lives here: use-cases, work and its limits, start and stop. What does not: bytes and images (the crates below),
//! vSphere or QMP (sources), SQL (the catalog). Invariant: blocking work never runs on an async worker.

/// A test that fails tells what it found instead.
#[cfg(test)]
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)?) => {
        match $value {
            $pattern $(if $guard)? => {}
            other => panic!("{other:?} does not match {}", stringify!($pattern)),
        }
    };
}

pub mod app;
pub mod catalog_copy;
mod config;
mod core;
mod data_dir;
mod events;
mod exports;
mod fault;
mod history;
mod hooks;
pub mod http;
mod hub;
mod jobs;
mod maintenance;
mod metrics;
mod mounts;
mod nodes;
mod reconcile;
mod recoveries;
mod repositories;
mod restore;
mod rounds;
#[cfg(test)]
mod rows;
pub mod schedule;
mod secrets;
mod space;
mod verification;
#[cfg(test)]
mod year;

pub use app::{App, Caller};
pub use config::{HubConfig, Limits, NbdConfig, PORT_DEFAULT, RecoveryConfig, TlsFiles};
pub use hub::{Error, Hub, RunningHub};
pub use mounts::WORKER_ARGUMENT;
