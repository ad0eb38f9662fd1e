//! All routes, and the layers around them.

use super::auth::Failures;
use super::operations::{Access, Operations};
use super::problem::{Failure, of_status};
use super::{auth, docs, extract, finish, handlers, host, openapi};
use crate::app::App;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, EXPECT};
use sendense_types::{Clock, ProblemCode};
use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Event streams at once. Each holds a connection; some for every browser tab and waiting command line of a team.
const STREAMS_MAX: usize = 64;

/// What every layer and handler shares.
#[derive(Clone)]
pub(super) struct Shared(Arc<Parts>);

/// See [`Shared`].
pub(super) struct Parts {
    pub app: App,
    pub clock: Arc<dyn Clock>,
    pub operations: Operations,
    pub openapi: String,
    pub failures: Failures,
    pub streams: Arc<Semaphore>,
    pub is_tls: bool,
    /// How long a call may take until its answer begins.
    pub call_timeout: Duration,
    /// Asked for when the server ends: streams end by themselves then.
    pub stop: CancellationToken,
}

impl Deref for Shared {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl axum::extract::FromRef<Shared> for App {
    fn from_ref(shared: &Shared) -> App {
        shared.app.clone()
    }
}

/// Every documented route.
pub(super) fn documented() -> OpenApiRouter<Shared> {
    use handlers::{
        backups, exports, files, history, mounts, nodes, policies, recoveries, repositories, schedules, sources,
        system, tasks, tokens, vms,
    };
    let api = OpenApiRouter::new()
        .routes(routes!(backups::create_backup, backups::list_backups))
        .routes(routes!(backups::backup_chain))
        .routes(routes!(backups::get_backup, backups::update_backup, backups::delete_backup))
        .routes(routes!(backups::vm_backup_chain))
        .routes(routes!(backups::cancel_backup))
        .routes(routes!(backups::verify_backup))
        .routes(routes!(backups::merge_backup))
        .routes(routes!(backups::restore_backup))
        .routes(routes!(backups::backup_log))
        .routes(routes!(tasks::list_tasks))
        .routes(routes!(tasks::get_task))
        .routes(routes!(tasks::cancel_task))
        .routes(routes!(tasks::task_log))
        .routes(routes!(tasks::events))
        .routes(routes!(repositories::create_repository, repositories::list_repositories))
        .routes(routes!(repositories::test_repository))
        .routes(routes!(repositories::get_repository, repositories::update_repository, repositories::delete_repository))
        .routes(routes!(repositories::repository_storage))
        .routes(routes!(repositories::repository_space))
        .routes(routes!(repositories::reconcile_repository))
        .routes(routes!(repositories::repository_reports))
        .routes(routes!(repositories::import_repository))
        .routes(routes!(repositories::copy_catalog, repositories::list_catalog_copies))
        .routes(routes!(sources::create_source, sources::list_sources))
        .routes(routes!(sources::get_source, sources::update_source, sources::delete_source))
        .routes(routes!(sources::test_source))
        .routes(routes!(sources::discover_source))
        .routes(routes!(vms::list_vms))
        .routes(routes!(vms::get_vm))
        .routes(routes!(vms::prune_vm))
        .routes(routes!(vms::change_tags))
        .routes(routes!(vms::consolidate_chain))
        .routes(routes!(vms::move_chain))
        .routes(routes!(policies::create_policy, policies::list_policies))
        .routes(routes!(policies::plan_policy))
        .routes(routes!(policies::get_policy, policies::replace_policy, policies::delete_policy))
        .routes(routes!(policies::plan_of_policy))
        .routes(routes!(policies::plan_policy_deletion))
        .routes(routes!(policies::prune_policy))
        .routes(routes!(schedules::create_schedule, schedules::list_schedules))
        .routes(routes!(schedules::get_schedule, schedules::replace_schedule, schedules::delete_schedule))
        .routes(routes!(schedules::enable_schedule))
        .routes(routes!(schedules::disable_schedule))
        .routes(routes!(schedules::trigger_schedule))
        .routes(routes!(schedules::preview_schedule))
        .routes(routes!(schedules::list_executions))
        .routes(routes!(schedules::get_execution))
        .routes(routes!(history::file_history))
        .routes(routes!(mounts::create_mount))
        .routes(routes!(mounts::list_mounts))
        .routes(routes!(mounts::mount_resources))
        .routes(routes!(mounts::cleanup_status))
        .routes(routes!(mounts::delete_mount))
        .routes(routes!(mounts::list_volumes))
        .routes(routes!(mounts::unlock_volume))
        .routes(routes!(files::list_files))
        .routes(routes!(files::file_info))
        .routes(routes!(files::download_file))
        .routes(routes!(files::download_directory))
        .routes(routes!(files::search_files))
        .routes(routes!(exports::create_export, exports::list_exports))
        .routes(routes!(exports::delete_export))
        .routes(routes!(recoveries::create_recovery, recoveries::list_recoveries))
        .routes(routes!(recoveries::get_recovery, recoveries::delete_recovery))
        .routes(routes!(recoveries::commit_recovery))
        .routes(routes!(recoveries::migrate_recovery))
        .routes(routes!(tokens::create_token, tokens::list_tokens))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(nodes::list_nodes))
        .routes(routes!(nodes::create_pairing))
        .routes(routes!(nodes::enrol_node))
        .routes(routes!(nodes::revoke_node))
        .routes(routes!(nodes::limit_node))
        .routes(routes!(nodes::node_hello))
        .routes(routes!(nodes::node_call))
        .routes(routes!(system::health))
        .routes(routes!(system::debug_health))
        .routes(routes!(system::debug_endpoints))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi));
    OpenApiRouter::with_openapi(openapi::base()).nest("/api/v1", api)
}

/// The router with its layers, and what they share.
pub(super) fn router(
    app: App,
    clock: Arc<dyn Clock>,
    is_tls: bool,
    call_timeout: Duration,
    stop: CancellationToken,
) -> Router {
    layered(documented(), app, clock, is_tls, call_timeout, stop)
}

pub(super) fn layered(
    documented: OpenApiRouter<Shared>,
    app: App,
    clock: Arc<dyn Clock>,
    is_tls: bool,
    call_timeout: Duration,
    stop: CancellationToken,
) -> Router {
    let (routes, document) = documented.split_for_parts();
    let document = openapi::complete(document);
    let shared = Shared(Arc::new(Parts {
        app,
        clock,
        operations: Operations::of(&document),
        openapi: openapi::text(&document),
        failures: Failures::default(),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        is_tls,
        call_timeout,
        stop,
    }));
    routes
        .merge(docs::routes())
        .fallback(|| async { StatusCode::NOT_FOUND })
        // The last layer is the outermost.
        .layer(from_fn_with_state(shared.clone(), limit))
        .layer(from_fn_with_state(shared.clone(), auth::gate))
        .layer(from_fn_with_state(shared.clone(), host::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(shared.clone(), finish::finish))
        .with_state(shared)
}

/// Bounds a call's time and refuses a body that says itself that it is too large.
async fn limit(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let operation = path.and_then(|path| shared.operations.find(path.as_str(), request.method()));
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let is_node = operation.is_some_and(|operation| operation.access == Access::Node);
    let length_max = if is_node { sendense_node::remote::message::BODY_BYTES_MAX } else { extract::BODY_BYTES_MAX };
    if length.is_some_and(|length| length > length_max) {
        // A client that asks first (RFC 9110, section 10.1.1) has sent nothing yet, and need not.
        if !request.headers().contains_key(EXPECT) {
            extract::drain(request.into_body()).await;
        }
        return extract::too_large().into_response();
    }
    if operation.is_some_and(|operation| operation.is_stream) {
        return next.run(request).await;
    }
    match tokio::time::timeout(shared.call_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let details =
                format!("it was given up after {} s; what it began may have been done", shared.call_timeout.as_secs());
            Failure::new(ProblemCode::Busy, "the call took too long", details).into_response()
        }
    }
}

/// The answer to a handler's panic. Its message may hold anything, so it goes to the log only.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("(not text)"), "a handler panicked");
    Failure(of_status(StatusCode::INTERNAL_SERVER_ERROR)).into_response()
}
