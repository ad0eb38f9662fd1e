//! The tables as rows, column by column, in the order of the migrations.
//!
//! What lives here: one module per table, for use inside this crate. What does not: meaning; the modules per noun turn rows
//! into checked values. Invariant: ids and words are text here, moments are `Ts`, sizes are `i64`.

macro_rules! entity {
    ($(#[$doc:meta])* $name:ident = $table:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        pub mod $name {
            #![allow(missing_docs, reason = "columns are described at the nouns' public fields")]
            use crate::value::Ts;
            use sea_orm::entity::prelude::*;
            use serde::{Deserialize, Serialize};

            #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            #[sea_orm(table_name = $table)]
            pub struct Model {
                $($(#[$field_meta])* pub $field: $type,)*
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}

            /// So that a table without moments needs no import of its own.
            #[allow(dead_code)]
            type Unused = Ts;
        }
    };
}

entity! { /// One row: who we are.
deployment = "deployment" {
    #[sea_orm(primary_key, auto_increment = false)]
    one: i32,
    deployment_id: String,
    created_at: Ts,
}}

entity! { /// Hubs that work on this catalog.
hubs = "hubs" {
    #[sea_orm(primary_key, auto_increment = false)]
    hub_id: String,
    epoch: i64,
    lease_until: Ts,
    started_at: Ts,
}}

entity! { /// Sources.
sources = "sources" {
    #[sea_orm(primary_key, auto_increment = false)]
    source_id: String,
    name: String,
    kind: String,
    config: Json,
    secret: Option<Vec<u8>>,
    created_at: Ts,
    last_discovered_at: Option<Ts>,
    last_error: Option<String>,
}}

entity! { /// Machines.
vm_contexts = "vm_contexts" {
    #[sea_orm(primary_key, auto_increment = false)]
    vm_context_id: String,
    source_id: Option<String>,
    kind: String,
    instance_uuid: String,
    vm_name: String,
    path: Option<String>,
    #[serde(default)]
    folder: Option<String>,
    power_state: String,
    facts: Json,
    created_at: Ts,
    last_seen_at: Option<Ts>,
    vanished_at: Option<Ts>,
}}

entity! { /// Words that people hang on machines.
vm_tags = "vm_tags" {
    #[sea_orm(primary_key, auto_increment = false)]
    vm_context_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    tag: String,
}}

entity! { /// Disks of machines.
vm_disks = "vm_disks" {
    #[sea_orm(primary_key, auto_increment = false)]
    vm_context_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    disk_id: i32,
    disk_key: String,
    binding: String,
    label: String,
    capacity_bytes: i64,
    datastore: Option<String>,
    format: Option<String>,
    present: bool,
    job_id: Option<String>,
}}

entity! { /// Repositories.
repositories = "repositories" {
    #[sea_orm(primary_key, auto_increment = false)]
    repository_id: String,
    name: String,
    kind: String,
    config: Json,
    settings: Json,
    secret: Option<Vec<u8>>,
    created_at: Ts,
    mode: Option<String>,
    mode_reason: Option<String>,
    mode_since: Option<Ts>,
    mode_by: Option<String>,
}}

entity! { /// What repositories held, a row for each day.
repository_space = "repository_space" {
    #[sea_orm(primary_key, auto_increment = false)]
    repository_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    day: i32,
    at: Ts,
    total_bytes: i64,
    used_bytes: i64,
    available_bytes: i64,
}}

entity! { /// Reports of what was out of order in repositories.
repository_reports = "repository_reports" {
    #[sea_orm(primary_key, auto_increment = false)]
    repository_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    at: Ts,
    body: Json,
}}

entity! { /// Restore points, also those that never came to be.
backups = "backups" {
    #[sea_orm(primary_key, auto_increment = false)]
    backup_id: String,
    vm_context_id: String,
    active_vm_context_id: Option<String>,
    vm_name: String,
    repository_id: String,
    requested_type: String,
    backup_type: String,
    type_reason: Option<String>,
    policy_id: Option<String>,
    parent_backup_id: Option<String>,
    status: String,
    phase: Option<String>,
    bytes_done: i64,
    bytes_transferred: i64,
    bytes_stored: i64,
    total_bytes: i64,
    consistency: Option<String>,
    error_code: Option<String>,
    error_message: Option<String>,
    tags: Json,
    partial: bool,
    quiesce: bool,
    compression: String,
    on_tracking_loss: String,
    created_by: Option<String>,
    task_id: Option<String>,
    created_at: Ts,
    started_at: Option<Ts>,
    completed_at: Option<Ts>,
    protected: bool,
    hold_until: Option<Ts>,
    consistency_note: Option<String>,
    verify_state: Option<String>,
    verify_depth: Option<String>,
    verified_at: Option<Ts>,
    verify_bytes: Option<i64>,
    verify_ms: Option<i64>,
    verify_finding: Option<String>,
    deep_verified_at: Option<Ts>,
    #[serde(default)]
    generation: i32,
    #[serde(default)]
    verify_open_ms: Option<i64>,
    #[serde(default)]
    unproved_since: Option<Ts>,
}}

entity! { /// What damage has cost, by point and disk.
damage = "damage" {
    #[sea_orm(primary_key, auto_increment = false)]
    backup_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    disk_id: i32,
    vm_context_id: String,
    repository_id: String,
    lost: Json,
}}

entity! { /// What a restore point holds of each disk.
backup_disks = "backup_disks" {
    #[sea_orm(primary_key, auto_increment = false)]
    backup_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    disk_id: i32,
    vm_context_id: String,
    repository_id: String,
    disk_key: String,
    label: String,
    backup_type: String,
    type_reason: Option<String>,
    file_path: Option<String>,
    capacity_bytes: i64,
    bytes_transferred: i64,
    bytes_stored: i64,
    backing_file: Option<String>,
    change_id: Option<String>,
    status: String,
    parent_backup_id: Option<String>,
    audit_blocks_checked: Option<i64>,
    audit_blocks_different: Option<i64>,
}}

entity! { /// The newest point of each disk in each repository.
chains = "chains" {
    #[sea_orm(primary_key, auto_increment = false)]
    vm_context_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    repository_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    disk_id: i32,
    full_backup_id: String,
    latest_backup_id: String,
    updated_at: Ts,
}}

entity! { /// Work.
tasks = "tasks" {
    #[sea_orm(primary_key, auto_increment = false)]
    task_id: String,
    kind: String,
    state: String,
    subject_kind: String,
    subject_id: Option<String>,
    request: Json,
    result: Option<Json>,
    hub_id: Option<String>,
    hub_epoch: Option<i64>,
    lease_until: Option<Ts>,
    version: i64,
    attempts: i32,
    cancel_requested: bool,
    progress: Option<Json>,
    bytes_done: i64,
    bytes_total: i64,
    error_code: Option<String>,
    error_message: Option<String>,
    log_next: i64,
    created_by: Option<String>,
    created_at: Ts,
    started_at: Option<Ts>,
    finished_at: Option<Ts>,
}}

entity! { /// What tasks told.
task_log = "task_log" {
    #[sea_orm(primary_key, auto_increment = false)]
    task_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    seq: i64,
    at: Ts,
    level: String,
    message: String,
    fields: Json,
}}

entity! { /// Access tokens.
tokens = "tokens" {
    #[sea_orm(primary_key, auto_increment = false)]
    token_id: String,
    name: String,
    role: String,
    hash: Vec<u8>,
    created_at: Ts,
    last_used_at: Option<Ts>,
    revoked_at: Option<Ts>,
}}

entity! { /// Settings.
settings = "settings" {
    #[sea_orm(primary_key, auto_increment = false)]
    key: String,
    value: Json,
    updated_at: Ts,
}}

entity! { /// Artefacts that must be reaped.
journal = "journal" {
    #[sea_orm(primary_key, auto_increment = false)]
    artefact_id: String,
    task_id: Option<String>,
    node: String,
    kind: String,
    particulars: Json,
    created_at: Ts,
    done_at: Option<Ts>,
}}

entity! { /// Named leases.
leases = "leases" {
    #[sea_orm(primary_key, auto_increment = false)]
    name: String,
    owner: String,
    epoch: i64,
    lease_until: Ts,
}}

entity! { /// How many backups there are.
backup_counts = "backup_counts" {
    #[sea_orm(primary_key, auto_increment = false)]
    repository_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    status: String,
    #[sea_orm(primary_key, auto_increment = false)]
    backup_type: String,
    backups: i64,
}}

entity! { /// How many tasks there are.
task_counts = "task_counts" {
    #[sea_orm(primary_key, auto_increment = false)]
    kind: String,
    #[sea_orm(primary_key, auto_increment = false)]
    state: String,
    tasks: i64,
}}

entity! { /// Nodes.
nodes = "nodes" {
    #[sea_orm(primary_key, auto_increment = false)]
    node_id: String,
    name: String,
    valid_name: Option<String>,
    certificate: Vec<u8>,
    enrolled_by: String,
    created_at: Ts,
    revoked_at: Option<Ts>,
    last_seen_at: Option<Ts>,
    state: Option<Json>,
    bandwidth: Option<Json>,
}}

entity! { /// Codes by which nodes enrol.
node_codes = "node_codes" {
    #[sea_orm(primary_key, auto_increment = false)]
    code_hash: String,
    name: String,
    created_by: String,
    created_at: Ts,
    expires_at: Ts,
}}

entity! { /// Policies.
policies = "policies" {
    #[sea_orm(primary_key, auto_increment = false)]
    policy_id: String,
    name: String,
    body: Json,
    created_at: Ts,
    updated_at: Ts,
}}

entity! { /// Schedules.
schedules = "schedules" {
    #[sea_orm(primary_key, auto_increment = false)]
    schedule_id: String,
    name: String,
    policy_id: String,
    enabled: bool,
    body: Json,
    since: Ts,
    handled: Option<Ts>,
    created_at: Ts,
}}

entity! { /// Executions of schedules.
executions = "executions" {
    #[sea_orm(primary_key, auto_increment = false)]
    execution_id: String,
    schedule_id: String,
    policy_id: String,
    due: Ts,
    state: String,
    reason: Option<String>,
    triggered_by: Option<String>,
    hub_id: String,
    hub_epoch: i64,
    started_at: Ts,
    finished_at: Option<Ts>,
}}

entity! { /// Machines of executions.
execution_vms = "execution_vms" {
    #[sea_orm(primary_key, auto_increment = false)]
    execution_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    vm_context_id: String,
    vm_name: String,
    outcome: String,
    backup_id: Option<String>,
    attempts: i32,
    not_before: Option<Ts>,
    reason: Option<String>,
    #[serde(default)]
    turn: i32,
}}
