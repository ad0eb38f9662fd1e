//! Deleting points: planned first, shown or done, files before rows.

use super::{App, Caller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, of_repo};
use crate::maintenance::Use;
use sendense_api::{DeleteQuery, DeletedBackup, Deletion, Role};
use sendense_catalog as catalog;
use sendense_repo::delete::{DeletePlan, Extent};
use sendense_repo::{Kind, layout};
use sendense_types::{BackupId, BackupStatus, Problem, ProblemCode, RepositoryId};
use std::collections::BTreeSet;

impl App {
    /// Deletes a point, or shows what would go. Points that need it are named and in the way, unless they go along.
    pub async fn delete_backup(&self, caller: &Caller, id: &BackupId, query: DeleteQuery) -> Result<Deletion> {
        caller.require(Role::Admin)?;
        let (app, id, by) = (self.clone(), id.clone(), caller.identity.clone());
        self.to_the_end(async move { app.delete_now(id, query, by).await }).await
    }

    async fn delete_now(&self, id: BackupId, query: DeleteQuery, by: String) -> Result<Deletion> {
        let row = self.core.catalog.backups().get(&id).await.or_problem()?;
        match row.status {
            BackupStatus::Pending | BackupStatus::Running => {
                let details = format!("{id} is {}; cancel it first", row.status);
                Err(Problem::new(ProblemCode::Conflict, "the backup is at work", details))
            }
            // An attempt that came to nothing has no files: its draft was removed.
            BackupStatus::Failed | BackupStatus::Cancelled => self.delete_rows(vec![row], query).await,
            BackupStatus::Completed => self.delete_point(row, query, by).await,
        }
    }

    pub(crate) async fn delete_point(&self, row: catalog::Backup, query: DeleteQuery, by: String) -> Result<Deletion> {
        let wanted = if query.dry_run { Use::Read } else { Use::Write };
        let repository = self.core.repositories.by_id(&self.core, &row.repository_id, wanted).await?;
        let extent = if query.cascade { Extent::Cascade } else { Extent::Named };
        let (planner, vm, id) = (repository.clone(), row.vm_context_id.clone(), row.backup_id.clone());
        let planned = blocking(move || planner.plan_delete(&vm, &BTreeSet::from([id]), extent)).await?;
        let plan = match planned {
            Ok(plan) => plan,
            // The files went before, by a deletion whose last step failed: only the rows are left.
            Err(error) if error.kind == Kind::NotFound => {
                self.refuse_gone_over(std::slice::from_ref(&row.backup_id), &row.repository_id).await?;
                return self.delete_rows(vec![row], query).await;
            }
            Err(error) => return Err(refused(&error)),
        };
        let planned: Vec<BackupId> = plan.points.iter().map(|point| point.backup_id.clone()).collect();
        // Also one that is not served now, which claims nothing in the repository.
        if let Some((recovery_id, held)) = self.core.recoveries.holding(&planned) {
            let details = format!("recovery {recovery_id} runs on {held}; discard it first");
            return Err(Problem::new(ProblemCode::Conflict, "the point is in use", details));
        }
        let (looked, vm, ids, now) = (repository.clone(), row.vm_context_id.clone(), planned, self.core.now());
        blocking(move || looked.refuse_held(&vm, &ids, now)).await?.map_err(|error| refused(&error))?;
        let deletion = self.describe(&plan, query).await?;
        if query.dry_run {
            return Ok(deletion);
        }
        let ids: Vec<BackupId> = plan.points.iter().map(|point| point.backup_id.clone()).collect();
        tracing::info!(backup_id = %row.backup_id, points = ids.len(), by = %by, "deletion begins");
        self.core.running.make_way(&ids).await;
        let (who, now) = (format!("deletion by {by}"), self.core.now());
        blocking(move || repository.execute_delete(plan, &who, now)).await?.map_err(|error| refused(&error))?;
        self.refuse_gone_over(&ids, &row.repository_id).await?;
        self.core.catalog.backups().delete(&ids, self.core.now()).await.or_problem()?;
        Ok(deletion)
    }

    /// Points that another repository has by now were not deleted: there was nothing of them here.
    pub(super) async fn refuse_gone_over(&self, ids: &[BackupId], repository_id: &RepositoryId) -> Result<()> {
        for id in ids {
            match self.core.catalog.backups().get(id).await {
                Ok(row) if row.repository_id != *repository_id => {
                    let details = format!("{id} was moved to another repository meanwhile; ask again");
                    return Err(Problem::new(ProblemCode::Conflict, "the point is elsewhere", details));
                }
                Ok(_) => {}
                Err(error) if error.kind() == catalog::Kind::NotFound => {}
                Err(error) => return Err(error).or_problem(),
            }
        }
        Ok(())
    }

    async fn describe(&self, plan: &DeletePlan, query: DeleteQuery) -> Result<Deletion> {
        let mut backups = Vec::with_capacity(plan.points.len());
        for point in &plan.points {
            // A point that the catalog does not know yet is described by what the repository says.
            let row = match self.core.catalog.backups().get(&point.backup_id).await {
                Ok(row) => Some(row),
                Err(error) if error.kind() == catalog::Kind::NotFound => None,
                Err(error) => return Err(error).or_problem(),
            };
            let vm = &plan.vm_context_id;
            let files = point.disks.iter().flat_map(|disk| {
                [layout::image(vm, *disk, &point.backup_id), layout::digests(vm, *disk, &point.backup_id)]
            });
            let files = files.chain([layout::manifest(vm, &point.backup_id)]);
            backups.push(DeletedBackup {
                backup_id: point.backup_id.clone(),
                backup_type: row.as_ref().map_or(sendense_types::BackupType::Full, |row| row.backup_type),
                created_at: row.as_ref().map_or_else(|| self.core.now(), |row| row.created_at),
                bytes_stored: point.bytes,
                files: files.map(|path| path.display().to_string()).collect(),
            });
        }
        Ok(Deletion { dry_run: query.dry_run, cascade: query.cascade, backups, freed_bytes: plan.bytes() })
    }

    async fn delete_rows(&self, rows: Vec<catalog::Backup>, query: DeleteQuery) -> Result<Deletion> {
        let ids: Vec<BackupId> = rows.iter().map(|row| row.backup_id.clone()).collect();
        if !query.dry_run {
            self.core.catalog.backups().delete(&ids, self.core.now()).await.or_problem()?;
        }
        let backups = rows.into_iter().map(|row| DeletedBackup {
            backup_id: row.backup_id,
            backup_type: row.backup_type,
            created_at: row.created_at,
            bytes_stored: 0,
            files: Vec::new(),
        });
        Ok(Deletion { dry_run: query.dry_run, cascade: query.cascade, backups: backups.collect(), freed_bytes: 0 })
    }
}

pub(super) fn refused(error: &sendense_repo::Error) -> Problem {
    match &error.kind {
        Kind::HasDependents { ids } => {
            let ids: Vec<&str> = ids.iter().map(BackupId::as_str).collect();
            let details = format!("needed by {}; delete these first, or with cascade=true", ids.join(", "));
            Problem::new(ProblemCode::HasDependents, "later points need this one", details)
        }
        Kind::Held { backup_id, hold } => {
            let details = format!("{backup_id} is {hold}; it goes when this was lifted");
            Problem::new(ProblemCode::BackupHeld, "the point must stay", details)
        }
        Kind::Conflict { holders } if !holders.is_empty() => {
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            Problem::new(ProblemCode::Conflict, "the point is in use", holders.join(", "))
        }
        _ => of_repo(error),
    }
}
