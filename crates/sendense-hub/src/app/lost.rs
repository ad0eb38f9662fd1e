//! Forgetting a repository that is lost: with all that the catalog says of its points.
//!
//! Invariant: one that is there is never taken for lost. Nothing of a folder is touched: whoever was wrong adds it again, and imports what lies
//! there.

use super::{App, Caller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result};
use crate::reconcile;
use crate::repositories::{path_of, within};
use sendense_catalog as catalog;
use sendense_repo::{Kind, owner};
use sendense_types::{Problem, ProblemCode};

impl App {
    /// Forgets a repository that cannot be reached.
    pub(super) async fn forget_lost(&self, caller: &Caller, row: catalog::Repository) -> Result<()> {
        self.refuse_in_use(&row).await?;
        let on_it = |recovery: &crate::recoveries::Recovery| recovery.record().repository_id == row.repository_id;
        if let Some(recovery) = self.core.recoveries.all().iter().find(|recovery| on_it(recovery)) {
            let details = format!("recovery {} runs on a point of it; discard it first", recovery.id);
            return Err(in_use(details));
        }
        let path = path_of(&row)?;
        let found = within(&row.name, blocking(move || owner::read(&path))).await;
        let not_lost = |details| Problem::new(ProblemCode::Conflict, "the repository is not lost", details);
        match found {
            Ok(Ok(Some(_))) => {
                let details = format!("{} is there and can be read: delete what lies in it, or leave it", row.name);
                return Err(not_lost(details));
            }
            // A newer version wrote it, or half of it is there: its points may be there all the same.
            Ok(Err(error)) if matches!(error.kind, Kind::Unsupported | Kind::Invalid) => {
                let details = format!(
                    "{} is there, and who owns it cannot be read ({}): use the version of Sendense that wrote it, or take the \
                     folder away first",
                    row.name,
                    sendense_block::error::chain(&error)
                );
                return Err(not_lost(details));
            }
            _ => {}
        }
        let of_it = catalog::BackupFilter { repository_id: Some(row.repository_id.clone()), ..Default::default() };
        self.forget_attempts(&of_it).await?;
        self.core.catalog.repositories().delete(&row.repository_id).await.or_problem()?;
        self.core.repositories.forget(&self.core, &row.repository_id).await;
        tracing::warn!(repository_id = %row.repository_id, name = %row.name, by = %caller.identity,
            "a lost repository is forgotten with its points");
        Ok(())
    }

    /// Policies and moves stand in the way of forgetting a repository.
    pub(super) async fn refuse_in_use(&self, row: &catalog::Repository) -> Result<()> {
        if let Some(policy) = self.policy_into(&row.repository_id).await? {
            return Err(in_use(format!("policy {policy} puts points into it; change that first")));
        }
        match reconcile::moving(&self.core, &row.repository_id).await?.first() {
            Some(vm) => Err(in_use(format!("points of {vm} are being moved there or away; see task list"))),
            None => Ok(()),
        }
    }
}

fn in_use(details: String) -> Problem {
    Problem::new(ProblemCode::Conflict, "the repository is in use", details)
}
