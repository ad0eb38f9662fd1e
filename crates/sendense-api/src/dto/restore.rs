//! Restores of disks.

use sendense_types::DiskNumber;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreBackup {
    /// Where the bytes go.
    pub target: RestoreTarget,
    /// The disk. May be left out when the point holds only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
}

/// Where the bytes of a restore go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum RestoreTarget {
    /// A file on the hub's machine, below a folder that the hub was allowed to touch.
    File {
        /// Its absolute path.
        path: String,
        /// Its format. Left out: raw.
        #[serde(default)]
        format: ImageFormat,
        /// Replace the file if it exists; otherwise that is a 409.
        #[serde(default)]
        overwrite: bool,
    },
    /// An NBD export that can be written and is large enough.
    Nbd {
        /// Its URI: `nbd://`, `nbds://` or `nbd+unix://`.
        uri: String,
    },
    /// A new VM on a source.
    Vm {
        /// The source's id or name.
        source_id: String,
        /// The new VM's name.
        name: String,
    },
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
