//! The schema's history.
//!
//! What lives here: the list of migrations. **Append-only**: a migration that was released is never edited; a mistake is
//! corrected by the next one. Invariant: every step can be repeated (`if not exists`), because MariaDB commits each DDL
//! statement by itself and a migration that was cut off begins again.

mod m0001_initial;
mod m0002_counts;
mod m0003_holds;
mod m0004_notes;
mod m0005_tracking_audit;
mod m0006_schedules;
mod m0007_nodes;
mod m0009_verification;
mod m0010_no_task_deadline;
mod m0011_repository_modes;
mod m0015_repository_space;
mod m0016_repository_reports;
mod m0017_node_limits;
mod m0019_vm_tags;
mod m0020_deep_proof;
mod m0021_turns;
mod m0022_generations;
mod m0023_time_to_open;
mod m0024_looks;
mod m0026_unproved_since;
mod table;

use sea_orm_migration::prelude::*;

pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_initial::Migration),
            Box::new(m0002_counts::Migration),
            Box::new(m0003_holds::Migration),
            Box::new(m0004_notes::Migration),
            Box::new(m0005_tracking_audit::Migration),
            Box::new(m0006_schedules::Migration),
            Box::new(m0007_nodes::Migration),
            Box::new(m0009_verification::Migration),
            Box::new(m0010_no_task_deadline::Migration),
            Box::new(m0011_repository_modes::Migration),
            Box::new(m0015_repository_space::Migration),
            Box::new(m0016_repository_reports::Migration),
            Box::new(m0017_node_limits::Migration),
            Box::new(m0019_vm_tags::Migration),
            Box::new(m0020_deep_proof::Migration),
            Box::new(m0021_turns::Migration),
            Box::new(m0022_generations::Migration),
            Box::new(m0023_time_to_open::Migration),
            Box::new(m0024_looks::Migration),
            Box::new(m0026_unproved_since::Migration),
        ]
    }
}
