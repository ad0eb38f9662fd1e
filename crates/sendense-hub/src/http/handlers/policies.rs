//! Policies.

use super::Who;
use crate::app::App;
use crate::http::extract::{Body, NameOrId, NoBody, Query};
use crate::http::problem::Result;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use sendense_api::reply::{DoneReply, PolicyDeletionReply, PolicyListReply, PolicyPlanReply, PolicyReply, PrunesReply};
use sendense_api::{ListQuery, PolicyRules, ProblemBody, PruneQuery};

/// Make a policy.
///
/// It says which VMs are protected and how. A schedule carries it out.
#[utoipa::path(
    post, path = "/policies", tag = "policies", request_body = PolicyRules,
    responses(
        (status = 201, description = "The policy.", body = PolicyReply),
        (status = 404, description = "There is no such repository or source.", body = ProblemBody),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn create_policy(
    State(app): State<App>,
    Extension(caller): Who,
    Body(rules): Body<PolicyRules>,
) -> Result<(StatusCode, Json<PolicyReply>)> {
    let policy = app.create_policy(&caller, rules).await?;
    Ok((StatusCode::CREATED, Json(PolicyReply::done(format!("policy {} made", policy.name), policy))))
}

/// List policies.
#[utoipa::path(
    get, path = "/policies", tag = "policies", params(ListQuery),
    responses((status = 200, description = "A page of policies, by name.", body = PolicyListReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn list_policies(
    State(app): State<App>,
    Query(page): Query<ListQuery>,
) -> Result<Json<PolicyListReply>> {
    Ok(Json(app.list_policies(page).await?.into()))
}

/// Show a policy.
#[utoipa::path(
    get, path = "/policies/{policy_id}", tag = "policies",
    params(("policy_id" = String, Path, description = "The policy's id or name.")),
    responses((status = 200, description = "The policy.", body = PolicyReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn get_policy(
    State(app): State<App>,
    NameOrId(policy): NameOrId,
) -> Result<Json<PolicyReply>> {
    Ok(Json(PolicyReply::new(app.get_policy(&policy).await?)))
}

/// Replace what a policy says.
///
/// Backups that run go on as they were begun.
#[utoipa::path(
    put, path = "/policies/{policy_id}", tag = "policies", request_body = PolicyRules,
    params(("policy_id" = String, Path, description = "The policy's id or name.")),
    responses(
        (status = 200, description = "The policy as it is now.", body = PolicyReply),
        (status = 409, description = "The name is taken.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn replace_policy(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(policy): NameOrId,
    Body(rules): Body<PolicyRules>,
) -> Result<Json<PolicyReply>> {
    Ok(Json(PolicyReply::done("the policy was changed", app.replace_policy(&caller, &policy, rules).await?)))
}

/// Forget a policy.
///
/// Points that were made for it belong to nobody then; `GET /policies/{policy_id}/deletion` tells what becomes of them.
#[utoipa::path(
    delete, path = "/policies/{policy_id}", tag = "policies",
    params(("policy_id" = String, Path, description = "The policy's id or name.")),
    responses(
        (status = 200, description = "It is forgotten.", body = DoneReply),
        (status = 409, description = "A schedule carries it out.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn delete_policy(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(policy): NameOrId,
    _: NoBody,
) -> Result<Json<DoneReply>> {
    app.delete_policy(&caller, &policy).await?;
    Ok(Json(DoneReply::new("the policy is forgotten")))
}

/// Show what becomes of VMs and points without a policy.
///
/// Before it is forgotten: the VMs that it means and which other policies mean them, the points that it made, and what the rules of
/// other policies would do with these. Nothing is done.
#[utoipa::path(
    get, path = "/policies/{policy_id}/deletion", tag = "policies",
    params(("policy_id" = String, Path, description = "The policy's id or name.")),
    responses((status = 200, description = "The plan.", body = PolicyDeletionReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn plan_policy_deletion(
    State(app): State<App>,
    NameOrId(policy): NameOrId,
) -> Result<Json<PolicyDeletionReply>> {
    Ok(Json(PolicyDeletionReply::new(app.plan_policy_deletion(&policy).await?)))
}

/// Show what a policy would do.
///
/// The VMs that it means, what their next backups would be, and what its retention would delete and keep now.
#[utoipa::path(
    get, path = "/policies/{policy_id}/plan", tag = "policies",
    params(("policy_id" = String, Path, description = "The policy's id or name.")),
    responses((status = 200, description = "The plan.", body = PolicyPlanReply)),
    extensions(("x-role" = json!("viewer"))),
)]
pub(in crate::http) async fn plan_of_policy(
    State(app): State<App>,
    NameOrId(policy): NameOrId,
) -> Result<Json<PolicyPlanReply>> {
    Ok(Json(PolicyPlanReply::new(app.plan_of_policy(&policy).await?)))
}

/// Show what a policy would do before it is saved.
///
/// Of these rules: the VMs that it means, what their next backups would be, and what its retention would
/// delete and keep now. Nothing is done.
#[utoipa::path(
    post, path = "/policies/plan", tag = "policies", request_body = PolicyRules,
    responses(
        (status = 200, description = "The plan.", body = PolicyPlanReply),
        (status = 404, description = "There is no such repository or source.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn plan_policy(
    State(app): State<App>,
    Extension(caller): Who,
    Body(rules): Body<PolicyRules>,
) -> Result<Json<PolicyPlanReply>> {
    Ok(Json(PolicyPlanReply::new(app.plan_policy(&caller, rules).await?)))
}

/// Prune the VMs of a policy.
///
/// Deletes the points in the policy's repository that its retention keeps no more. With `dry_run=true` only the plans are
/// shown. A VM that cannot be pruned, for a manifest of it is damaged, is told as `not_pruned`, and the others are pruned all the same.
#[utoipa::path(
    post, path = "/policies/{policy_id}/prune", tag = "policies",
    params(("policy_id" = String, Path, description = "The policy's id or name."), PruneQuery),
    responses(
        (status = 200, description = "What was deleted, or would be, VM by VM.", body = PrunesReply),
        (status = 409, description = "The repository is not in use; VMs before that were pruned.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("admin"))),
)]
pub(in crate::http) async fn prune_policy(
    State(app): State<App>,
    Extension(caller): Who,
    NameOrId(policy): NameOrId,
    Query(how): Query<PruneQuery>,
    _: NoBody,
) -> Result<Json<PrunesReply>> {
    Ok(Json(app.prune_policy(&caller, &policy, how).await?.into()))
}
