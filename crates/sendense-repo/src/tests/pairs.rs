//! The lock table, met by what really is done: while one holds a chain, each other is tried on it.
//!
//! `lock` proves the table itself, for every pair and every place. This proves that the verbs of a repository claim what
//! the table needs. A merge claims so at its end, as `tests/merge.rs` shows, and a move as `tests/moving` does.

use crate::delete::Extent;
use crate::draft::DraftSpec;
use crate::error::{Kind, Result};
use crate::lock::Operation;
use crate::repository::Repository;
use crate::testing::before::{Before, delete};
use crate::testing::now;
use crate::testing::world::{self, Point};
use crate::verify::{Depth, Options, Progress, Scope};
use expect_test::expect;
use sendense_block::Cancel;
use sendense_types::DiskNumber;
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Begins an operation on a point that stands on another one, and gives what holds its claim.
fn begin(repository: &Repository, operation: Operation, point: &Point, who: &str) -> Result<Box<dyn Any>> {
    Ok(match operation {
        Operation::Backup => Box::new(repository.begin_draft(
            DraftSpec {
                backup_id: format!("bk-by-{who}").parse().unwrap(),
                vm_context_id: point.vm.clone(),
                parents: [point.id.clone()].into(),
                expected_bytes: 0,
                who: who.into(),
            },
            now(),
        )?),
        Operation::Read => Box::new(repository.open_disk(&point.vm, &point.id, DiskNumber(0), who)?),
        // These hold their claim for the time of one call.
        Operation::Verify | Operation::Delete | Operation::Merge | Operation::Copy | Operation::Move => {
            Box::new(repository.lock(operation, &point.vm, [point.id.clone()].into(), who)?)
        }
    })
}

/// Does an operation from begin to end.
fn run(repository: &Repository, operation: Operation, point: &Point) -> Result<()> {
    match operation {
        Operation::Verify => {
            let options = Options {
                depth: Depth::Deep,
                scope: Scope::Point,
                threads: 1,
                bytes_per_second: None,
                who: "second".into(),
            };
            let report =
                repository.verify(&point.vm, &point.id, None, &options, &Progress::default(), &Cancel::new())?;
            assert!(report.is_sound());
            Ok(())
        }
        Operation::Delete => delete(repository, point, Extent::Named),
        _ => begin(repository, operation, point, "second").map(|held| {
            if let Ok(draft) = held.downcast::<crate::Draft>() {
                draft.abandon().unwrap();
            }
        }),
    }
}

#[test]
fn what_is_in_the_way_of_what() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let mut table = String::new();
    for first in Operation::ALL {
        for second in Operation::ALL {
            let held = begin(&repository, first, &before.second, "first").unwrap();
            let word = match run(&repository, second, &before.second) {
                Ok(()) => "both",
                Err(error) => {
                    let Kind::Conflict { holders } = &error.kind else { panic!("{first}, {second}: {error:?}") };
                    let met: Vec<_> = holders.iter().map(|holder| (holder.operation, holder.who.as_str())).collect();
                    assert_eq!(met, [(first, "first")], "{second}");
                    "one"
                }
            };
            write!(table, "{word:<5}").unwrap();
            // Another machine is never in the way; its only point is needed again.
            if second != Operation::Delete {
                run(&repository, second, &before.other).unwrap();
            }
            if let Ok(draft) = held.downcast::<crate::Draft>() {
                draft.abandon().unwrap();
            }
            assert_eq!(repository.locks().held(), []);
        }
        table = table.trim_end().to_owned() + "\n";
    }
    // Rows and columns: backup, read, verify, delete, merge, copy, move.
    expect![[r#"
        one  both both one  one  one  one
        both both both one  one  both one
        both both both one  one  both one
        one  one  one  one  one  one  one
        one  one  one  one  one  one  one
        one  both both one  one  one  one
        one  one  one  one  one  one  one
    "#]]
    .assert_eq(&table);
}

/// Not only the point that is read or grown on: everything below it.
#[test]
fn what_lies_below_is_held_too() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    for operation in [Operation::Backup, Operation::Read] {
        let held = begin(&repository, operation, &before.second, "first").unwrap();
        let error = delete(&repository, &before.first, Extent::Cascade).unwrap_err();
        assert!(matches!(error.kind, Kind::Conflict { .. }), "{operation}: {error:?}");
        if let Ok(draft) = held.downcast::<crate::Draft>() {
            draft.abandon().unwrap();
        }
    }
    delete(&repository, &before.first, Extent::Cascade).unwrap();
}

/// A reader opened every file before the point was deleted by a process that does not know of it: it reads on.
#[test]
fn a_reader_of_another_process_reads_to_the_end() {
    let before = Before::new();
    let reader = Repository::open_read_only(&before.root()).unwrap();
    let disk = reader.open_disk(&before.second.vm, &before.second.id, DiskNumber(0), "reader").unwrap();
    delete(&world::open(&before.root()).unwrap(), &before.first, Extent::Cascade).unwrap();
    let mut bytes = vec![0; before.second.disks[&DiskNumber(0)].bytes.len()];
    sendense_block::ReadAt::read_at(&disk, sendense_block::ByteOffset(0), &mut bytes).unwrap();
    assert!(bytes == before.second.disks[&DiskNumber(0)].bytes);
}

/// A point that came to stand on another after its deletion was planned keeps it.
#[test]
fn a_plan_that_is_out_of_date_deletes_nothing() {
    let before = Before::new();
    let repository = world::open(&before.root()).unwrap();
    let named = BTreeSet::from([before.second.id.clone()]);
    let plan = repository.plan_delete(&before.second.vm, &named, Extent::Named).unwrap();
    let third = before.third();
    world::back_up(&repository, &third, now()).unwrap();
    let error = repository.execute_delete(plan, "test", now()).unwrap_err();
    assert_eq!(error.kind, Kind::HasDependents { ids: vec![third.id.clone()] });
    world::check_bytes(&repository, &third).unwrap();
}
