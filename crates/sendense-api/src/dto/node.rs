//! Nodes: data movers beside hypervisors.

use super::Day;
use sendense_types::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Asks for a code that lets one node in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePairing {
    /// What the node will be called; no other valid node bears the name.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
}

/// A code that lets one node in, once. This is the only time that it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pairing {
    /// The code.
    pub code: String,
    /// What the node will be called.
    pub name: String,
    /// From when on the code is void.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// SHA-256 of the hub's certificate in hex, by which the node can know that it talks to this hub.
    pub fingerprint: String,
}

impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairing").field("code", &"[redacted]").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A node that shows its code and asks for a certificate. Its key stays where it was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolNode {
    /// The code.
    #[schema(max_length = 64)]
    pub code: String,
    /// A certificate signing request (PKCS #10, PEM). Only the key in it is used; the hub says what the certificate tells.
    #[schema(max_length = 16384)]
    pub request: String,
}

impl fmt::Debug for EnrolNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolNode").field("code", &"[redacted]").finish_non_exhaustive()
    }
}

/// A node that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolment {
    /// Its id.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// What it is called.
    pub name: String,
    /// Its certificate (PEM), to be shown at every connection from now on.
    pub certificate: String,
}

/// What a node says of itself when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeHello {
    /// Its version.
    #[schema(max_length = 64)]
    pub version: String,
    /// The name of its machine.
    #[schema(max_length = 255)]
    pub host: String,
}

/// As whom the hub knows the node that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeWelcome {
    /// Its id.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// What it is called.
    pub name: String,
    /// The hub's version.
    pub version: String,
}

/// What the blocks of a node's backups may take of its line. Of windows that overlap the first one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeLimit {
    /// Bytes per second outside of all windows, at least 8192. Left out: as much as there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 8192)]
    pub bytes_per_second: Option<u64>,
    /// The IANA time zone whose clock counts. Left out: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: Option<String>,
    /// Hours with a limit of their own, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub windows: Vec<LimitWindow>,
}

/// Hours in which another limit holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitWindow {
    /// When it opens: `08:00`.
    pub from: String,
    /// When it closes; on the next day when that is earlier.
    pub until: String,
    /// Days on which it opens: `monday` to `sunday`. Left out: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// Bytes per second, at least 8192. Left out: as much as there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 8192)]
    pub bytes_per_second: Option<u64>,
}

/// Whether a node works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// It was heard within the last minute.
    Online,
    /// It was not.
    Offline,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// What it is called.
    pub name: String,
    /// Whether it works.
    pub status: NodeStatus,
    /// The names of the sources that are bound to it.
    pub sources: Vec<String>,
    /// Backups that it makes for the hub that was asked.
    pub running_backups: u64,
    /// What comes from it, over the last seconds: blocks as they travel, compressed.
    pub bytes_per_second: u64,
    /// What its blocks may take of its line, where the hub says so.
    pub limit: Option<NodeLimit>,
    /// What that comes to at this moment, in bytes per second. Null: as much as there is.
    pub limit_now: Option<u64>,
    /// Its version, once it has said something.
    pub version: Option<String>,
    /// The name of its machine, once it has said something.
    pub host: Option<String>,
    /// Who made the code that let it in.
    pub enrolled_by: String,
    /// When it was let in.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last said something.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen_at: Option<Timestamp>,
}
