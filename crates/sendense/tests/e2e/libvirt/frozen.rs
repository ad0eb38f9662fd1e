//! The hub dies while a guest's file systems are frozen.

use super::lab::agent::{Event, start_with_agent};
use super::lab::{lab, until};
use super::{back_up, scratch, start_hub, token};
use crate::hub::field;
use crate::kill::settled;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn a_guest_that_a_killed_hub_left_frozen_is_thawed_and_the_task_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut guest, agent) = start_with_agent(lab());
    let mut hub = start_hub(dir, &guest);
    let first = back_up(&hub, &guest, "main", &["--quiesce"]);
    assert_eq!(field(&first, "consistency"), "filesystem", "{first:#}");
    assert_eq!(agent.events(), [Event::Frozen, Event::Thawed]);
    guest.write("vda", 7, 12_345, 100_000);

    // The agent freezes and takes its time to say so: the hub dies in between.
    agent.manners.freeze_delay_ms.store(2000, Ordering::SeqCst);
    let started = hub.json(&["backup", "start", &guest.name, "--repo", "main", "--quiesce"]);
    let id = field(&started["backup"], "backup_id").to_owned();
    until("the guest is frozen", || agent.is_frozen().then_some(()));
    hub.kill_9();
    until("the guest is thawed", || (!agent.is_frozen()).then_some(()));
    let frozen_for = agent.frozen_for().unwrap();
    assert!(frozen_for < Duration::from_secs(10), "frozen for {frozen_for:?}");
    assert!(open_entries(dir) > 0, "what was made is written down");

    hub = crate::hub::Hub::start(dir);
    assert!(!settled(&hub, &dir.join("main"), &id, 0), "it became a point");
    let backup = hub.json(&["backup", "show", &id])["backup"].clone();
    assert_eq!((field(&backup, "status"), field(&backup, "error_code")), ("failed", "interrupted"));
    assert!(field(&backup, "error_message").contains("interrupted"), "{backup:#}");
    until("what was left is reaped", || (open_entries(dir) == 0).then_some(()));
    assert!(guest.lab.try_virsh(&["backup-dumpxml", &guest.uuid]).is_err(), "no job runs");
    assert_eq!(std::fs::read_dir(scratch(guest.lab, &guest)).unwrap().count(), 0, "no scratch file is left");
    assert!(!agent.is_frozen());

    // The next one is an ordinary incremental, and nothing of the dead one stays.
    agent.manners.freeze_delay_ms.store(0, Ordering::SeqCst);
    let next = back_up(&hub, &guest, "main", &["--quiesce"]);
    assert_eq!(field(&next, "consistency"), "filesystem", "{next:#}");
    assert_eq!((field(&next, "backup_type"), next["type_reason"].is_null()), ("incremental", true), "{next:#}");
    assert_eq!(guest.checkpoints(), [token(&next, "vda").unwrap()]);
    assert!(!agent.is_frozen());
}

/// Entries of the hub's journal.
fn open_entries(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("hub/journal")).unwrap().count()
}
