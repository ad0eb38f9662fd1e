//! The manifest: what a restore point is, in one JSON file that stands for itself.
//!
//! What lives here: its words. [`text`] reads and writes the file with its own digest, [`check`] says which values make
//! sense. What does not: where it lies (`layout`) and when it is published (`draft`).
//!
//! Invariant: a [`Manifest`] that was read has been checked: ids are ids, numbers are bounded and agree with each other.
//!
//! Unknown fields are ignored, so that later programs may add some without a new version.

mod check;
mod text;

pub use check::{CAPACITY_BYTES_MAX, DISKS_MAX};
pub use text::{DOCUMENT_BYTES_MAX, MANIFEST_BYTES_MAX, parse, write};

use sendense_block::{ByteLen, Digest};
use sendense_types::{
    BackupId, BackupType, Consistency, DeploymentId, DiskBinding, DiskNumber, Name, SourceKind, Timestamp,
    TrackingAudit, TrackingToken, VmContextId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;

/// One restore point of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The point.
    pub backup_id: BackupId,
    /// The VM as the hub knows it.
    pub vm_context_id: VmContextId,
    /// The VM as its hypervisor knows it.
    pub vm: Vm,
    /// When the source was frozen.
    pub created_at: Timestamp,
    /// The catalog that made it.
    pub deployment_id: DeploymentId,
    /// What the guest was told before.
    pub consistency: Consistency,
    /// True when disks of the VM were left out.
    pub partial: bool,
    /// Incremental when at least one disk has a parent.
    pub backup_type: BackupType,
    /// What was asked for.
    pub requested_type: BackupType,
    /// The policy that asked, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// The user's words.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The VM's configuration, and the notes that are needed to bring it back.
    #[serde(default)]
    pub documents: Vec<Document>,
    /// What a person should know: "NVRAM could not be read".
    #[serde(default)]
    pub notes: Vec<String>,
    /// The disks, by rising number.
    pub disks: Vec<Disk>,
}

/// The VM a point was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name at that time.
    pub name: Name,
    /// What its hypervisor is.
    pub kind: SourceKind,
    /// The hypervisor's identity of it: with `kind`, how a VM finds its points again after the catalog was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_uuid: Option<String>,
    /// Where it was: a path, a URI, an address. No secrets.
    pub source: String,
}

/// A piece of configuration, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is: `domain.xml`, `vm.vmx`, `nvram`.
    pub name: String,
    /// The bytes.
    #[serde(flatten)]
    pub content: Content,
}

/// The bytes of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// As text.
    Text(String),
    /// As hexadecimal digits.
    #[serde(with = "hex::serde")]
    Hex(Vec<u8>),
}

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its number within the VM.
    pub disk_id: DiskNumber,
    /// The hypervisor's key: `vda`, `disk-2000`.
    pub disk_key: String,
    /// What a person calls it.
    pub label: String,
    /// What it is; two disks with equal bindings are one disk.
    pub binding: DiskBinding,
    /// The true size. The image's is rounded up to 512.
    pub capacity_bytes: u64,
    /// Full when there is no parent.
    pub backup_type: BackupType,
    /// Why a full, or a full read, was made although an incremental was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_reason: Option<String>,
    /// The point whose image is this one's backing file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_backup_id: Option<BackupId>,
    /// The hypervisor's word for "changed since this point".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TrackingToken>,
    /// What the audit of its change tracking found, where one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_audit: Option<TrackingAudit>,
    /// Bytes read from the source for it.
    pub bytes_transferred: u64,
    /// The image.
    pub image: Image,
    /// The digests of its blocks.
    pub digests: Digests,
}

impl Disk {
    /// The true size.
    pub const fn capacity(&self) -> ByteLen {
        ByteLen(self.capacity_bytes)
    }

    /// The size that the QCOW2 header says: the true one, rounded up to 512.
    pub const fn image_capacity(&self) -> ByteLen {
        ByteLen(self.capacity_bytes.next_multiple_of(512))
    }
}

/// A QCOW2 file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name, relative to the manifest's folder.
    pub file: String,
    /// Its length.
    pub file_bytes: u64,
    /// Payload bytes in it, compressed where they are; about, where frames of an image that it began as went.
    pub stored_bytes: u64,
    /// Blocks it holds as data.
    pub data_blocks: u64,
    /// Blocks it flags as zero.
    pub zero_blocks: u64,
    /// Bytes of the file that one segment digest covers; the last may cover fewer.
    pub segment_bytes: u64,
    /// Per segment: the first 16 bytes of BLAKE3 over the concatenated digests (the same kind) of its 64 KiB clusters.
    pub segments: Vec<HexDigest>,
}

/// A `.digests` file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Its name, relative to the manifest's folder.
    pub file: String,
    /// Its length.
    pub file_bytes: u64,
    /// BLAKE3 of the whole file, 32 bytes in hexadecimal: what `b3sum` says.
    pub blake3: String,
    /// Digest of its header and index, from which every other byte of it can be checked.
    pub root: HexDigest,
}

/// A block-style digest (16 bytes of BLAKE3), as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HexDigest(pub Digest);

impl Serialize for HexDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let mut digest = [0; sendense_block::digest::DIGEST_BYTES];
        hex::decode_to_slice(text.as_ref(), &mut digest).map_err(de::Error::custom)?;
        Ok(Self(Digest(digest)))
    }
}

impl Manifest {
    /// The disk with this number.
    pub fn disk(&self, number: DiskNumber) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.disk_id == number)
    }

    /// The points this one needs directly.
    pub fn parents(&self) -> impl Iterator<Item = &BackupId> {
        self.disks.iter().filter_map(|disk| disk.parent_backup_id.as_ref())
    }

    /// Bytes of its images and digests.
    pub fn file_bytes(&self) -> u64 {
        let bytes = |disk: &Disk| disk.image.file_bytes.saturating_add(disk.digests.file_bytes);
        self.disks.iter().map(bytes).fold(0, u64::saturating_add)
    }
}
