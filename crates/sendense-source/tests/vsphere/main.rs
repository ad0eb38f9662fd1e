//! The vSphere source through the lab: the simulator with disks and change tracking, the real nbdkit with its real vddk
//! plugin, a VDDK of our own below it. What a guest wrote is compared byte for byte.

#![allow(clippy::unwrap_used)]

mod backups;
mod events;
mod faults;
#[path = "../common/journal.rs"]
mod journal;
#[path = "../../../../lab/vsphere/mod.rs"]
mod lab;
mod onto;
#[path = "../common/points.rs"]
mod points;
mod restore;
#[path = "../common/vcenter.rs"]
mod vcenter;
mod world;
