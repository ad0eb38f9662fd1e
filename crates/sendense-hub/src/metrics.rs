//! What Prometheus reads: few series, with labels whose values are few.
//!
//! Invariant: no label takes a VM's, a backup's or a task's id; their number grows without bound.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sendense_api::{RepositorySpace, Storage, TaskCounts};
use sendense_types::{TaskKind, TaskState};
use std::sync::OnceLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The recorder belongs to the process, not to a hub: tests start several hubs in one.
static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Upper ends of the duration buckets: from an empty incremental to a large full.
const DURATION_BUCKETS_S: [f64; 9] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0];

/// Upper ends of the buckets of calls: from what a catalog lookup should take to where a call is given up.
const CALL_BUCKETS_S: [f64; 7] = [0.005, 0.02, 0.05, 0.2, 1.0, 10.0, 120.0];
/// The histogram of calls.
const CALL_SECONDS: &str = "sendense_http_request_seconds";

/// Upper ends of the buckets of passes over the schedules: from an idle one to where the next one is due.
const PASS_BUCKETS_S: [f64; 11] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
/// The histogram of passes.
const PASS_SECONDS: &str = "sendense_schedule_pass_seconds";
/// The histogram of what of a pass was reading and deciding.
const DECIDE_SECONDS: &str = "sendense_schedule_decide_seconds";

/// How often recorded durations are put into their buckets. Until then each is kept by itself, so this bounds memory on a hub
/// that nobody scrapes.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// Makes the recorder at the first call.
pub(crate) fn install() {
    handle();
}

fn handle() -> Option<&'static PrometheusHandle> {
    let handle = RECORDER.get_or_init(|| {
        let calls = Matcher::Full(CALL_SECONDS.to_owned());
        let passes = Matcher::Full(PASS_SECONDS.to_owned());
        let decisions = Matcher::Full(DECIDE_SECONDS.to_owned());
        let builder = PrometheusBuilder::new()
            .set_buckets(&DURATION_BUCKETS_S)
            .and_then(|builder| builder.set_buckets_for_metric(calls, &CALL_BUCKETS_S))
            .and_then(|builder| builder.set_buckets_for_metric(passes, &PASS_BUCKETS_S))
            .and_then(|builder| builder.set_buckets_for_metric(decisions, &PASS_BUCKETS_S));
        match builder.and_then(PrometheusBuilder::install_recorder) {
            Ok(handle) => {
                describe();
                Some(handle)
            }
            Err(error) => {
                tracing::warn!(error = %error, "metrics are not available");
                None
            }
        }
    });
    handle.as_ref()
}

fn describe() {
    describe_gauge!("sendense_tasks", "Tasks by state, now");
    describe_gauge!(
        "sendense_merges_due",
        "Prunes and chains of machines whose merges begin when others have ended, now"
    );
    describe_counter!("sendense_tasks_ended_total", "Tasks that ended, by kind and state");
    describe_histogram!("sendense_task_seconds", "How long tasks took, by kind");
    describe_histogram!(PASS_SECONDS, "How long a look at all schedules took, with what it began");
    describe_histogram!(DECIDE_SECONDS, "How long of it the hub read and decided, before and between what it wrote");
    describe_counter!("sendense_backup_read_bytes_total", "Bytes read from sources");
    describe_counter!("sendense_backup_stored_bytes_total", "Bytes stored in repositories");
    describe_counter!("sendense_tracking_wrong_total", "Disks whose change tracking an audit found wrong");
    describe_counter!("sendense_points_damaged_total", "Points that a verification found damaged");
    describe_gauge!("sendense_repository_bytes", "Space of a repository, by what it is");
    describe_gauge!("sendense_repository_space_state", "Room of a repository: 0 enough, 1 low, 2 critical");
    describe_gauge!(
        "sendense_repository_full_in_days",
        "Days until a repository is full, +Inf where that cannot be told"
    );
    describe_gauge!("sendense_left_over", "Things of ended tasks that cannot be removed from their sources, now");
    describe_gauge!("sendense_memory_rss_bytes", "Memory that the hub holds");
    describe_counter!("sendense_http_requests_total", "Calls of the API, by method, route and status");
    describe_histogram!(CALL_SECONDS, "How long calls took until their answer began, by route");
}

/// Keeps what is recorded small until `stop`.
pub(crate) async fn keep(stop: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Some(handle) = handle() {
            handle.run_upkeep();
        }
    }
}

/// A call was answered. `route` is the pattern, never the path.
pub(crate) fn call_answered(method: &'static str, route: String, status: u16, took: Duration) {
    let labels = [("method", method.to_owned()), ("route", route.clone()), ("status", status.to_string())];
    counter!("sendense_http_requests_total", &labels).increment(1);
    histogram!(CALL_SECONDS, "route" => route).record(took.as_secs_f64());
}

/// The schedules were looked through, and what was due was begun; so long of it was reading and deciding.
pub(crate) fn schedules_passed(took: Duration, deciding: Duration) {
    histogram!(PASS_SECONDS).record(took.as_secs_f64());
    histogram!(DECIDE_SECONDS).record(deciding.as_secs_f64());
}

/// A task has ended.
pub(crate) fn task_ended(kind: TaskKind, state: TaskState, seconds: f64) {
    counter!("sendense_tasks_ended_total", "kind" => kind.as_str(), "state" => state.as_str()).increment(1);
    histogram!("sendense_task_seconds", "kind" => kind.as_str()).record(seconds.max(0.0));
}

/// A backup was published.
pub(crate) fn backup_bytes(read: u64, stored: u64) {
    counter!("sendense_backup_read_bytes_total").increment(read);
    counter!("sendense_backup_stored_bytes_total").increment(stored);
}

/// An audit found the change tracking of a disk wrong.
pub(crate) fn tracking_wrong() {
    counter!("sendense_tracking_wrong_total").increment(1);
}

/// A verification found a point damaged.
pub(crate) fn point_damaged() {
    counter!("sendense_points_damaged_total").increment(1);
}

/// Tasks now.
pub(crate) fn set_tasks(counts: &TaskCounts) {
    gauge!("sendense_tasks", "state" => "running").set(counts.running as f64);
    gauge!("sendense_tasks", "state" => "pending").set(counts.pending as f64);
}

/// What waits until merges have ended.
pub(crate) fn set_merges_due(count: usize) {
    gauge!("sendense_merges_due").set(count as f64);
}

/// A repository's space.
pub(crate) fn set_storage(name: &str, storage: &Storage) {
    for (what, bytes) in
        [("total", storage.total_bytes), ("used", storage.used_bytes), ("available", storage.available_bytes)]
    {
        gauge!("sendense_repository_bytes", "repository" => name.to_owned(), "what" => what).set(bytes as f64);
    }
}

/// What a repository's room means. Without a forecast it is as far away as forecasts go.
pub(crate) fn set_space(name: &str, space: &RepositorySpace) {
    let repository = || [("repository", name.to_owned())];
    gauge!("sendense_repository_space_state", &repository()).set(f64::from(space.state as u8));
    gauge!("sendense_repository_full_in_days", &repository()).set(space.full_in_days.unwrap_or(f64::INFINITY));
}

/// Things that stay on sources.
pub(crate) fn set_left_over(count: usize) {
    gauge!("sendense_left_over").set(count as f64);
}

/// The process' memory.
pub(crate) fn set_memory(bytes: u64) {
    gauge!("sendense_memory_rss_bytes").set(bytes as f64);
}

/// The text that Prometheus reads.
pub(crate) fn render() -> String {
    handle().map(PrometheusHandle::render).unwrap_or_default()
}
