//! Restores of disks.

use sendense_types::DiskNumber;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Asks for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBackup {
    /// Where the bytes go.
    pub target: RestoreTarget,
    /// The disk. May be left out when the point holds only one; a VM takes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// Restore also what is damaged, as far as it can be read; otherwise damage ends the restore. Blocks that are not what was
    /// backed up are written as they are read, those that cannot be read or decoded as zeros, and the task's summary and log tell
    /// how many and which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_damaged: bool,
}

/// Where the bytes of a restore go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum RestoreTarget {
    /// A file or a block device on the hub's machine, below a folder that the hub was allowed to touch.
    File {
        /// Its absolute path.
        path: String,
        /// Its format. Left out: raw, which is all that a block device and `onto` take.
        #[serde(default)]
        format: ImageFormat,
        /// Replace the file if it exists; otherwise that is a 409.
        #[serde(default)]
        overwrite: bool,
        /// The file or device exists and may hold much of the disk already: compare it with the point's digests and write
        /// only the blocks that differ.
        #[serde(default)]
        onto: bool,
        /// With `onto`: a file of another size is grown or cut; otherwise that is a 409.
        #[serde(default)]
        resize: bool,
        /// Needed for a block device, whose contents are lost.
        #[serde(default)]
        force: bool,
        /// Which VMDK, for that format. Left out: `monolithicSparse`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subformat: Option<VmdkSubformat>,
    },
    /// An NBD export that can be written and is large enough.
    Nbd {
        /// Its URI: `nbd://`, `nbds://` or `nbd+unix://`.
        uri: String,
    },
    /// A new VM on a source, with all disks of the point, switched off; or one that exists.
    Vm {
        /// The source's id or name.
        source_id: String,
        /// The new VM's name, which no other VM of the source has. With `onto`: the name or `vm_context_id` of the VM.
        name: String,
        /// On vSphere: the VM exists, is switched off and has no snapshots. What its disks hold is compared with the point's
        /// digests, and only blocks that differ are written. `disk_id` may name one disk.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        onto: bool,
        /// Needed with `onto`: what the disks hold is lost.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        /// Where its disks go. On libvirt: a pool of the source, or a folder below one that the hub was allowed to touch. On
        /// vSphere: a datastore; left out, the original's.
        #[serde(default = "pool")]
        pool: String,
        /// The disks' format on libvirt: raw or qcow2.
        #[serde(default = "qcow2")]
        format: ImageFormat,
        /// By the name of the network or bridge that a card was in, or by the card's MAC address: the network that the new card is
        /// in, `bridge:NAME` for a bridge of the host, or null. All other cards are not plugged in: the recorded configuration does
        /// not decide which network a machine reaches.
        #[serde(default)]
        networks: BTreeMap<String, Option<String>>,
        /// Keep the UUID and the MAC addresses: for a VM that is gone, not for a copy of one that is there.
        #[serde(default)]
        keep_identity: bool,
        /// On vSphere: the folder in the inventory, `Datacenter/vm/folder`. Left out: the outermost one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<String>,
        /// On vSphere: the cluster or host that it is to run on. Left out: any that reaches the datastore.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<String>,
    },
}

/// The pool where none is named.
pub const POOL_DEFAULT: &str = "default";

pub(super) fn pool() -> String {
    POOL_DEFAULT.to_owned()
}

pub(super) const fn qcow2() -> ImageFormat {
    ImageFormat::Qcow2
}

/// The format of a disk image file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The bytes themselves, sparse.
    #[default]
    Raw,
    /// QCOW2, version 3.
    Qcow2,
    /// VMware's format.
    Vmdk,
}

/// The kinds of VMDK that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum VmdkSubformat {
    /// One sparse file that a machine can run on.
    #[default]
    MonolithicSparse,
    /// One compressed file to be imported: what an OVA holds.
    StreamOptimized,
}

impl VmdkSubformat {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

impl RestoreTarget {
    /// A new raw file.
    pub fn raw_file(path: impl Into<String>) -> Self {
        Self::File {
            path: path.into(),
            format: ImageFormat::Raw,
            overwrite: false,
            onto: false,
            resize: false,
            force: false,
            subformat: None,
        }
    }
}

impl ImageFormat {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}
