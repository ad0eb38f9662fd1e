//! One function per operation: decode, call one method of [`crate::app::App`], encode. The attributes are the OpenAPI document;
//! failures that every call can have are added to it in one place ([`super::openapi`]).

pub(super) mod backups;
pub(super) mod exports;
pub(super) mod files;
pub(super) mod history;
pub(super) mod mounts;
pub(super) mod nodes;
pub(super) mod policies;
pub(super) mod recoveries;
pub(super) mod repositories;
pub(super) mod schedules;
pub(super) mod sources;
pub(super) mod system;
pub(super) mod tasks;
pub(super) mod tokens;
pub(super) mod vms;

use crate::app::Caller;
use axum::Extension;

/// Whoever the gate let in.
type Who = Extension<Caller>;
