//! Sources: hypervisors, image folders, NBD servers.

use super::vm::Vm;
use crate::schema;
use sendense_types::{SourceId, SourceKind, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A secret on its way in. It cannot be printed, and no reply type has one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(format = Password)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a source asks of those who connect. Write-only: encrypted at rest, never told again. New credentials replace all
/// that was kept before; an empty object forgets them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    /// The account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Authorities (PEM) that alone may vouch for the server's certificate (nbd, vsphere). Left out: the public ones (nbd),
    /// or the `thumbprint` (vsphere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<Secret>,
    /// Certificate chain (PEM) that we show to the server (nbd); goes with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<Secret>,
    /// Private key (PEM, not encrypted) of that certificate (nbd).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<Secret>,
}

/// What sources of kind `nbd` take beside their URI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NbdOptions {
    /// The dirty bitmap to use, as the server calls it behind `qemu:dirty-bitmap:`. Left out: the only one it offers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1023)]
    pub dirty_bitmap: Option<String>,
    /// Believe the bitmap. A bitmap does not say since when it records, so this is a promise: while `bitmap_epoch` stays
    /// the same, it recorded every write and was not cleared, removed or made anew.
    pub trust_bitmap: bool,
    /// Any text; change it whenever the bitmap was cleared or made anew. The next incremental then compares everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap_epoch: Option<String>,
    /// Connections per disk; 1 when left out, as many servers serve one client at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16)]
    pub connections: Option<u32>,
    /// The name to look for in the server's certificate, where it is not the URI's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
}

/// What sources of kind `vsphere` take beside their address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VsphereOptions {
    /// VMware's VDDK on the hub's host, as its archive unpacks it (`vmware-vix-disklib-distrib`). Nobody but root and the
    /// hub's user may be able to change it. Left out: where nbdkit's plugin looks by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vddk_libdir: Option<String>,
    /// nbdkit's vddk plugin as a file, where nbdkit does not find it by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbdkit_plugin: Option<String>,
    /// Transport modes to use, joined by colons; `nbdssl` when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transports: Option<String>,
    /// Disks that may be open at once; 20 when left out. A vCenter gives 52 sessions in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 52)]
    pub sessions_max: Option<u32>,
    /// An HTTP proxy on the way to the vCenter's port 443. VDDK does not use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Fail where a running guest cannot be quiesced, rather than take a point as after a power cut.
    pub quiesce_or_fail: bool,
}

/// Asks for a source to be made known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSource {
    /// A name that no other source bears.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// What it is.
    #[schema(value_type = schema::SourceKind)]
    pub kind: SourceKind,
    /// Where it is: libvirt's connection URI, an NBD URI, the absolute path of a folder of images, a vCenter's host.
    /// `uri` and `path` are taken as other names of this field.
    #[serde(alias = "uri", alias = "path")]
    #[schema(example = "qemu:///system")]
    pub address: String,
    /// What the source asks of those who connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub credentials: Option<Credentials>,
    /// SHA-256 of the server's certificate (vsphere), as a person has compared it: 64 hex digits, with or without colons.
    /// Without it, and without authorities, the answer is `certificate_unconfirmed` with what the server shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbprint: Option<String>,
    /// Where the source keeps what a guest overwrites while it is backed up (libvirt): a folder on the hypervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_path: Option<String>,
    /// Free space in that folder at which a backup gives up rather than let the guest feel it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_floor_bytes: Option<u64>,
    /// What an NBD server takes beside its URI. Only for sources of kind `nbd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<NbdOptions>,
    /// What a vCenter or ESXi host takes beside its address. Only for sources of kind `vsphere`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsphere: Option<VsphereOptions>,
    /// How many of its machines may be backed up at once. Left out: as the hub says.
    #[serde(default, deserialize_with = "super::at_least_one", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub running_tasks_max: Option<u32>,
    /// The name of the node that reaches it, and on whose machine paths are meant. Left out: the hub reaches it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Changes a source; what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSource {
    /// A new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A new place of the same server or folder.
    #[serde(skip_serializing_if = "Option::is_none", alias = "uri", alias = "path")]
    pub address: Option<String>,
    /// New credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub credentials: Option<Credentials>,
    /// A new thumbprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbprint: Option<String>,
    /// A new scratch folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_path: Option<String>,
    /// A new floor of free scratch space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch_floor_bytes: Option<u64>,
    /// New options of an NBD server; they replace the old ones as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbd: Option<NbdOptions>,
    /// New options of a vCenter or host; they replace the old ones as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsphere: Option<VsphereOptions>,
    /// A new limit of tasks at once.
    #[serde(deserialize_with = "super::at_least_one", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub running_tasks_max: Option<u32>,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Source {
    /// Its id.
    #[schema(value_type = String)]
    pub source_id: SourceId,
    /// Its name.
    pub name: String,
    /// What it is.
    #[schema(value_type = schema::SourceKind)]
    pub kind: SourceKind,
    /// Where it is.
    pub address: String,
    /// True when credentials are kept for it.
    pub has_credentials: bool,
    /// SHA-256 of the server's certificate.
    pub thumbprint: Option<String>,
    /// Where the source keeps what a guest overwrites while it is backed up.
    pub scratch_path: Option<String>,
    /// Free space in that folder at which a backup gives up.
    pub scratch_floor_bytes: Option<u64>,
    /// What an NBD server takes beside its URI; null for other kinds and where nothing is set.
    pub nbd: Option<NbdOptions>,
    /// What a vCenter or host takes beside its address; null for other kinds and where nothing is set.
    pub vsphere: Option<VsphereOptions>,
    /// How many of its machines may be backed up at once; null: as the hub says.
    pub running_tasks_max: Option<u32>,
    /// The name of the node that reaches it; null: the hub reaches it itself.
    pub node: Option<String>,
    /// How many machines were found on it.
    pub vm_count: u64,
    /// When its machines were last listed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub discovered_at: Option<Timestamp>,
    /// When it was made known.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What was found when a source or a repository was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TestReport {
    /// The product and version, for people.
    #[schema(example = "libvirt 9.0.0, QEMU 7.2.22")]
    pub product: String,
    /// What works but should be looked at.
    pub warnings: Vec<String>,
}

/// The machines of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Discovery {
    /// The source.
    #[schema(value_type = String)]
    pub source_id: SourceId,
    /// Its machines, with disks and networks.
    pub vms: Vec<Vm>,
    /// How many there are.
    pub total: u64,
    /// How many of them were not known before.
    pub added: u64,
    /// How many that were known are not there any more. Their backups stay.
    pub missing: u64,
}
