//! Backups of libvirt domains against a real libvirt and QEMU. One program, so that all tests share one daemon and the
//! waiting of some overlaps with the work of others.

// Clippy knows tests by their functions only, and much here helps them.
#![allow(clippy::unwrap_used)]

mod agent;
mod faults;
#[path = "../common/journal.rs"]
mod journal;
mod lab;
mod live;
mod off;
#[path = "../common/points.rs"]
mod points;
mod random;
mod target;
mod tracking;
