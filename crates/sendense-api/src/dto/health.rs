//! How the hub is.

use sendense_types::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the hub serves. Told to everybody, so it says little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or the worst of what was checked.
    pub status: CheckStatus,
    /// The hub's version.
    pub version: String,
    /// How long it has run.
    pub uptime_seconds: u64,
}

/// How the hub's parts are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DebugHealth {
    /// The worst of `checks`.
    pub status: CheckStatus,
    /// The hub's version.
    pub version: String,
    /// The hub's identity.
    pub hub_id: String,
    /// The catalog's identity.
    pub deployment_id: String,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// Memory that it holds; null when the system does not tell.
    pub memory_rss_bytes: Option<u64>,
    /// Its work.
    pub tasks: TaskCounts,
    /// Each part.
    pub checks: Vec<HealthCheck>,
}

/// How much work there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskCounts {
    /// At work.
    pub running: u64,
    /// Waiting for a free place.
    pub pending: u64,
    /// How many may be at work at once.
    pub running_max: u64,
    /// How many may wait.
    pub pending_max: u64,
}

/// How one part is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// The part: `catalog`, `repository main` …
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found, for people.
    pub detail: String,
    /// How long the check took.
    pub duration_ms: f64,
}

/// How a part is, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// It works.
    Ok,
    /// It works, but somebody should look at it.
    Degraded,
    /// It does not work.
    Failed,
}

/// A call that the hub answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// The method.
    #[schema(example = "GET")]
    pub method: String,
    /// The path, with its parameters in braces.
    #[schema(example = "/api/v1/backups/{backup_id}")]
    pub path: String,
    /// The operation's id in the OpenAPI document.
    pub operation_id: String,
    /// What it does.
    pub summary: String,
}
