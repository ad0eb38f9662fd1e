//! Deltas that the removal of a snapshot leaves behind: brought together, tried again, and told while they stay.

use crate::hub::{Hub, PATIENCE, field};
use crate::vsphere::lab::{Lab, MIB, Trouble};
use crate::vsphere::set_up;
use sendense_block::Cancel;
use std::time::{Duration, Instant};

/// The journal is looked at every second.
const LEASE: [&str; 2] = ["--lease-seconds", "6"];

#[test]
fn deltas_that_stay_raise_an_alarm_until_they_are_brought_together() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[MIB]);
    let hub = Hub::launch(dir, "hub", &LEASE).unwrap();
    set_up(&hub, dir, &lab);
    let events = hub.listen(dir);
    let needed = || vim.machine(&guest.machine, &Cancel::new()).unwrap().consolidation_needed;

    // The snapshot goes, its deltas do not, and another program holds them.
    lab.control("leave-deltas", "");
    lab.proxy.arm("ConsolidateVMDisks_Task", 1, usize::MAX, Trouble::Task("FileLocked"));
    let point = hub.backup("web", &[]);
    assert_eq!(field(&point, "status"), "completed", "the point is as good as any: {point:#}");
    let tried = lab.proxy.count("ConsolidateVMDisks_Task");
    assert!(tried >= 2 && needed() && lab.snapshots().is_empty(), "{tried} tries");
    let stays = events.event("left_over")["left_over"].clone();
    assert_eq!((field(&stays, "state"), field(&stays, "vm_name")), ("stays", "web"), "{stays:#}");
    assert!(field(&stays, "message").contains("somebody else works on the machine"), "{stays:#}");
    assert!(lab.proxy.count("ConsolidateVMDisks_Task") > tried, "it is tried again");

    lab.uncontrol("leave-deltas");
    lab.proxy.disarm();
    let gone = events.nth_event("left_over", 2)["left_over"].clone();
    assert_eq!(field(&gone, "state"), "gone", "{gone:#}");
    let patience = Instant::now() + PATIENCE;
    while needed() {
        assert!(Instant::now() < patience, "they stay\n{}", hub.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
