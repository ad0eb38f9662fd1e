//! Repositories.

use crate::schema;
use sendense_types::{Compression, RepositoryId, RepositoryKind, RepositoryMode, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
