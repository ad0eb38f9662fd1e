//! Which checkpoints stay on a domain: those that the newest point of a chain names, and when a task has ended no other.

use super::lab::{MIB, guest::Guest, lab};
use super::{back_up, start_hub, token};
use std::collections::BTreeSet;

const TWO: [(&str, &str, u64); 2] = [("vda", "qcow2", 8 * MIB), ("vdb", "qcow2", 4 * MIB)];

#[track_caller]
fn assert_stay(guest: &Guest<'_>, tokens: &[&Option<String>]) {
    let there: BTreeSet<String> = guest.checkpoints().into_iter().collect();
    let wanted: BTreeSet<String> = tokens.iter().map(|token| token.as_ref().unwrap().clone()).collect();
    assert_eq!(there, wanted);
}

#[test]
fn when_a_backup_has_ended_only_the_newest_points_checkpoints_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start_new(lab(), &TWO);
    let hub = start_hub(dir.path(), &guest);
    let mut main = None;
    for round in 0..4 {
        guest.write("vda", 1 + round, u64::from(round) * MIB, 4096);
        let backup = back_up(&hub, &guest, "main", &[]);
        assert_eq!(backup["type_reason"].is_null(), round > 0, "{backup:#}");
        main = token(&backup, "vda");
        assert_stay(&guest, &[&main]);
    }
    // Another repository's newest point has its own.
    let second = token(&back_up(&hub, &guest, "second", &[]), "vda");
    assert_stay(&guest, &[&main, &second]);
    main = token(&back_up(&hub, &guest, "main", &[]), "vda");
    assert_stay(&guest, &[&main, &second]);
    // A point of one disk leaves the other disk's newest point as it is.
    let only_first = token(&back_up(&hub, &guest, "main", &["--disk", "0"]), "vda");
    assert_stay(&guest, &[&main, &second, &only_first]);
    main = token(&back_up(&hub, &guest, "main", &[]), "vdb");
    assert_stay(&guest, &[&main, &second]);
    // A full stands on nothing, and the next incremental on it.
    main = token(&back_up(&hub, &guest, "main", &["--type", "full"]), "vda");
    assert_stay(&guest, &[&main, &second]);
    // While a domain is off nothing can be deleted, nor made: the mark that was goes on.
    guest.power_off();
    assert_eq!(token(&back_up(&hub, &guest, "main", &[]), "vda"), main);
    guest.start();
    main = token(&back_up(&hub, &guest, "main", &[]), "vda");
    assert_stay(&guest, &[&main, &second]);
}

#[test]
fn a_backup_that_fails_takes_its_checkpoint_away() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start_new(lab(), &TWO);
    let hub = start_hub(dir.path(), &guest);
    let first = token(&back_up(&hub, &guest, "main", &[]), "vda");
    let second = token(&back_up(&hub, &guest, "second", &[]), "vda");
    guest.lab.virsh(&["checkpoint-delete", &guest.uuid, first.as_deref().unwrap()]);
    // It is known only when the machine is frozen, that is when the next checkpoint is made.
    let start = ["backup", "start", &guest.name, "--repo", "main", "--wait", "--on-tracking-loss", "fail"];
    let output = hub.run(&start);
    assert!(!output.status.success(), "{output:?}");
    assert_stay(&guest, &[&second]);
    let next = back_up(&hub, &guest, "main", &[]);
    assert!(next["type_reason"].as_str().unwrap().contains("is missing"), "{next:#}");
    assert_stay(&guest, &[&token(&next, "vda"), &second]);
}
