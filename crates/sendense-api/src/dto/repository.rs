//! Repositories.

use crate::schema;
use sendense_types::{Compression, DeploymentId, RepositoryId, RepositoryKind, RepositoryMode, SpaceState, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Asks for a repository to be made, or to be tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRepository {
    /// A name that no other repository bears.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// Where it lies.
    #[serde(rename = "type")]
    #[schema(value_type = schema::RepositoryKind)]
    pub kind: RepositoryKind,
    /// The place.
    pub config: RepositoryConfig,
    /// How hard backups into it are compressed unless they say otherwise. Left out: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Compression>)]
    pub compression: Option<Compression>,
    /// How many tasks may work on it at once. Left out: as the hub says.
    #[serde(default, deserialize_with = "super::at_least_one", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub running_tasks_max: Option<u32>,
}

/// The place of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// The folder's absolute path on the hub's machine.
    #[schema(pattern = "^/")]
    pub path: String,
}

/// How a repository is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DeleteRepository {
    /// It is lost: all that is known of its points goes, too. Refused where it can be reached. Added again and imported, it is back.
    #[param(required = false)]
    pub lost: bool,
}

/// Changes a repository. What is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRepository {
    /// What may be done in it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::RepositoryMode>)]
    pub mode: Option<RepositoryMode>,
    /// Why, for those who are refused meanwhile. Only with a mode other than `normal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub mode_reason: Option<String>,
    /// What its points may take in bytes, though the file system has more; 0 for all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// What is kept free on its file system in bytes: no backup is begun that would take from it. 0 for the default: a hundredth
    /// of the file system, between 64 MiB and 10 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_bytes: Option<u64>,
    /// From how many percent taken on its room is called low; 85 until somebody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub low_percent: Option<u8>,
    /// The same for critical; 95 until somebody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub critical_percent: Option<u8>,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    /// Its id.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// Its name.
    pub name: String,
    /// Where it lies.
    #[serde(rename = "type")]
    #[schema(value_type = schema::RepositoryKind)]
    pub kind: RepositoryKind,
    /// The place.
    pub config: RepositoryConfig,
    /// How hard backups into it are compressed unless they say otherwise.
    #[schema(value_type = schema::Compression)]
    pub compression: Compression,
    /// How many tasks may work on it at once; null: as the hub says.
    pub running_tasks_max: Option<u32>,
    /// What may be done in it now.
    #[schema(value_type = schema::RepositoryMode)]
    pub mode: RepositoryMode,
    /// Why it is in that mode; null when it is `normal`, or nobody said why.
    pub mode_reason: Option<String>,
    /// Since when; null when it never was in another.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub mode_since: Option<Timestamp>,
    /// Who set it.
    pub mode_by: Option<String>,
    /// How many points it holds.
    pub backup_count: u64,
    /// Its space; null when it cannot be reached now.
    pub storage: Option<Storage>,
    /// What that means; null when it cannot be reached now.
    pub space: Option<RepositorySpace>,
    /// What its points may take; null: all that the file system has.
    pub limit_bytes: Option<u64>,
    /// What is kept free on its file system; null: the default.
    pub floor_bytes: Option<u64>,
    /// Why it cannot be used now; null when it can.
    pub problem: Option<String>,
    /// When it was made known.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// The space of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Storage {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What is taken, by whomever.
    pub used_bytes: u64,
    /// What may still be written, reservations of running backups taken off.
    pub available_bytes: u64,
    /// Where the file system is mounted.
    pub mount_point: String,
}

/// What the space of a repository means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RepositorySpace {
    /// Whether somebody has to see to it.
    #[schema(value_type = schema::SpaceState)]
    pub state: SpaceState,
    /// Of its size, what is taken.
    pub used_percent: f64,
    /// From how many percent on that is low.
    pub low_percent: u8,
    /// From how many percent on that is critical.
    pub critical_percent: u8,
    /// By how much what is taken grew each day of the last month; null until three days are known.
    pub bytes_per_day: Option<i64>,
    /// In how many days nothing more can be written if that goes on; null when it is not known, or more than ten years.
    pub full_in_days: Option<f64>,
    /// The same as a date.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub full_at: Option<Timestamp>,
}

/// What a repository held on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpaceSample {
    /// When it was looked at: the last time on that day (UTC).
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Its size.
    pub total_bytes: u64,
    /// What was taken.
    pub used_bytes: u64,
    /// What could still be written.
    pub available_bytes: u64,
}

/// A sealed copy of the catalog in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogCopy {
    /// Its name, by which `sendense hub recover` finds it.
    pub name: String,
    /// Whose catalog it is.
    #[schema(value_type = String)]
    pub deployment_id: DeploymentId,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub made_at: Timestamp,
    /// How large it is.
    pub bytes: u64,
}
