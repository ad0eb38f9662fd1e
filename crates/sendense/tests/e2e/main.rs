//! Whole journeys through the binary: a real hub process, the command line, real files, other people's tools to compare.
//!
//! One test binary, so that it is linked once. Each test has its own folder, hub and port.

#![allow(clippy::unwrap_used, clippy::panic)]

mod appliance;
mod bad_day;
mod chains;
mod databases;
mod demos;
mod disk;
mod export_clients;
mod exports;
mod fenced;
mod files;
mod guests;
mod history;
mod holds;
mod hooks;
mod hub;
mod hung;
mod identity;
mod journey;
mod kill;
mod libvirt;
mod maintenance;
mod memory;
mod merge;
mod nbd;
mod nodes;
mod offline;
mod papers;
mod proxy;
mod prune;
mod reconcile;
mod recover;
mod recovered;
mod remote_backup;
mod restore_calls;
mod restore_targets;
mod resumed;
mod room;
mod schedules;
mod security;
mod servers;
mod service;
mod sizes;
mod start;
mod terminal;
mod verification;
mod volumes;
mod vsphere;
mod vsphere_bulk;
mod vsphere_chain;
mod vsphere_points;
mod vsphere_sessions;
