//! Rebuilding the catalog from the manifests of a repository.

use super::handle::Handle;
use super::work::ImportWork;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result};
use crate::reconcile::adopt_machine;
use crate::repositories::CHECK_PATIENCE;
use sendense_repo::owner::Adopt;
use sendense_repo::repository::Create;
use std::sync::Arc;

/// Takes in every point of the repository. A repository of a deployment that is gone is taken over.
pub(crate) async fn run(core: &Arc<Core>, handle: &Arc<Handle>, work: ImportWork) -> Result<serde_json::Value> {
    let row = core.catalog.repositories().get(&work.repository_id).await.or_problem()?;
    let repository = core.repositories.get_as(core, &row, Create::Never, Adopt::LeaseOut).await?;
    // Drafts and half deletions of whoever was here before come first: what is taken in must be whole.
    crate::reconcile::repository(core, &work.repository_id, CHECK_PATIENCE).await;
    let listing = repository.clone();
    let vms = blocking(move || listing.vms()).await?.or_problem()?;
    handle.info(format!("{} machines have a folder in the repository", vms.len()));
    let (mut known, mut added, mut problems) = (0_u64, 0_u64, 0_u64);
    for vm in &vms {
        handle.cancel.check().map_err(|error| crate::fault::of_block("import", &error))?;
        let adopted = adopt_machine(core, &row, &repository, vm, |_| true).await?;
        handle.step();
        for trouble in &adopted.problems {
            handle.warn(trouble.clone());
        }
        known += adopted.known;
        added += adopted.added;
        problems += adopted.problems.len() as u64;
    }
    let summary = format!(
        "{added} points were taken in, {known} were known, {problems} could not be read, of {} machines",
        vms.len()
    );
    Ok(serde_json::json!({ "summary": summary, "added": added, "known": known, "problems": problems }))
}
