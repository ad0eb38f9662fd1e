//! Restore points that are open for browsing, and what is seen in them.

use super::page::Limit;
use sendense_types::{BackupId, DiskNumber, MountId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Bytes of a guest's path as `path=` takes them: everything but letters, digits and `-._~/` percent-encoded.
pub fn encode_path(path: &[u8]) -> String {
    let mut encoded = String::with_capacity(path.len() + 16);
    for byte in path {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(*byte))
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// The bytes of a percent-encoded text; `+` is a space, as in every query. What is no escape stands for itself.
pub fn decode_path(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        rest = after;
        match (first, digit(0), digit(1)) {
            // Two hexadecimal digits are below 256.
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (b'+', _, _) => bytes.push(b' '),
            (other, _, _) => bytes.push(*other),
        }
    }
    bytes
}

/// Asks for a restore point to be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateMount {
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The disk. May be left out when the point holds only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub disk_id: Option<DiskNumber>,
    /// The volume that is meant where later calls name none. Left out: the only one that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Whether an open point can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MountStatus {
    /// Files can be read.
    Mounted,
    /// The process that read the disk has ended; close it and open the point again.
    Failed,
}

/// What reads a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Readers of the product's own, in a confined process.
    Native,
    /// A Linux kernel in a small guest, for what those do not read.
    Appliance,
}

/// A restore point that is open for browsing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    /// Its id.
    #[schema(value_type = String)]
    pub mount_id: MountId,
    /// The restore point.
    #[schema(value_type = String)]
    pub backup_id: BackupId,
    /// The machine it is of.
    #[schema(value_type = String)]
    pub vm_context_id: VmContextId,
    /// That machine's name.
    pub vm_name: String,
    /// The disk.
    #[schema(value_type = u32)]
    pub disk_id: DiskNumber,
    /// Whether it can be used.
    pub status: MountStatus,
    /// Why not, when it cannot.
    pub error_message: Option<String>,
    /// What reads the volume that is meant where a call names none.
    pub backend: Backend,
    /// How the processes that read the disk are confined.
    pub confinement: Option<String>,
    /// Always null: nothing is mounted on the hub's machine.
    pub mount_path: Option<String>,
    /// Always null: no device of the hub's machine is used.
    pub nbd_device: Option<String>,
    /// The volume that is meant where a call names none.
    pub volume: Option<String>,
    /// That volume's file system.
    pub filesystem_type: Option<String>,
    /// What is on the disk.
    pub volumes: Vec<Volume>,
    /// Downloads and archives under way.
    pub active_streams: u32,
    /// When it was opened.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was used last.
    #[schema(value_type = String, format = DateTime)]
    pub last_accessed_at: Timestamp,
    /// When it is closed if nobody uses it; moves with each access.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// Whether a volume can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Files can be read.
    Readable,
    /// Encrypted; a key opens it.
    Locked,
    /// It holds no file system.
    Empty,
    /// Of a sort that is not read here.
    Unsupported,
    /// Damaged.
    Corrupt,
}

/// Whether a volume shows what its guest had written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeConsistency {
    /// It was cleanly unmounted, or has no log.
    Clean,
    /// Its log was replayed in memory.
    Replayed,
    /// Its log could not be replayed: the last changes may be missing or torn.
    LogNotReplayed,
}

/// A partition, a logical volume or a file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// What `volume=` takes: `disk`, `p2`, `lvm:vg0/root`.
    pub volume_id: String,
    /// The file system, or what else is on it; empty when nothing is known.
    #[serde(rename = "type")]
    pub kind: String,
    /// The file system's label, else the partition's name.
    pub label: Option<String>,
    /// The file system's UUID or serial number.
    pub uuid: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Whether files can be read.
    pub readable: bool,
    /// The same in more words.
    pub state: VolumeState,
    /// What reads it; null where nothing does.
    pub backend: Option<Backend>,
    /// Why it cannot be read.
    pub reason: Option<String>,
    /// Whether its log was clean; null where there is no readable file system.
    pub consistency: Option<VolumeConsistency>,
}

/// Opens an encrypted volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnlockVolume {
    /// The passphrase. It is used once, kept nowhere, and not logged.
    #[schema(value_type = String, write_only, format = Password)]
    pub key: crate::Secret,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket: listed, never opened.
    Other,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestFile {
    /// Its name; what is not UTF-8 is replaced.
    pub name: String,
    /// Its path in the volume; what is not UTF-8 is replaced.
    pub path: String,
    /// Its path, percent-encoded bytes: what `path=` takes, whatever the name is.
    pub path_encoded: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Bytes of a file, length of a link's target.
    pub size: u64,
    /// Permissions, octal.
    #[schema(example = "0644")]
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content; null where the file system does not tell.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub modified_time: Option<Timestamp>,
    /// Target of a symbolic link; what is not UTF-8 is replaced.
    pub target: Option<String>,
}

/// An entry with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestFileInfo {
    /// What a list says.
    #[serde(flatten)]
    pub file: GuestFile,
    /// The volume it lies in.
    pub volume: String,
    /// The number of its inode or file record; the same number is the same file.
    pub inode: u64,
    /// How many names it has.
    pub links: u32,
    /// For a link: where it leads to inside the volume, as `path=` takes it; null when it leads nowhere.
    pub resolved_path_encoded: Option<String>,
    /// The ETag of its download; null for what is no file.
    pub etag: Option<String>,
}

/// Which folder to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct FilesQuery {
    /// The folder's absolute path, as `path_encoded` gives it. Left out: the root.
    #[param(value_type = Option<String>, example = "/var/www")]
    pub path: Option<String>,
    /// The volume. Left out: the mount's own, or the only one that can be read.
    pub volume: Option<String>,
    /// How many at most.
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// Which entry is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// Its absolute path, as `path_encoded` gives it.
    #[param(example = "/etc/fstab")]
    pub path: String,
    /// The volume. Left out: the mount's own, or the only one that can be read.
    #[serde(default)]
    pub volume: Option<String>,
}

/// The form of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ArchiveFormat {
    /// ZIP with 64-bit sizes.
    #[default]
    #[serde(rename = "zip")]
    Zip,
    /// POSIX tar, gzip-compressed; keeps owners, links and holes.
    #[serde(rename = "tar.gz")]
    TarGz,
}

impl ArchiveFormat {
    /// The text form, which is the file name's ending too.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::TarGz => "tar.gz",
        }
    }
}

/// Which folder to pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ArchiveQuery {
    /// Its absolute path, as `path_encoded` gives it.
    #[param(example = "/var/www")]
    pub path: String,
    /// The volume. Left out: the mount's own, or the only one that can be read.
    #[serde(default)]
    pub volume: Option<String>,
    /// The archive's form. Left out: zip.
    #[serde(default)]
    #[param(inline)]
    pub format: ArchiveFormat,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SearchQuery {
    /// The folder below which to look, as `path_encoded` gives it. Left out: the root.
    #[serde(default)]
    pub path: Option<String>,
    /// The name, percent-encoded; `*` is any run of bytes, `?` is one.
    #[param(example = "*.conf")]
    pub name: String,
    /// Whether `A` and `a` are the same.
    #[serde(default)]
    pub ignore_case: bool,
    /// The volume. Left out: the mount's own, or the only one that can be read.
    #[serde(default)]
    pub volume: Option<String>,
    /// How many at most.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(default, deserialize_with = "super::page::offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}

/// How much of what open points need is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MountResources {
    /// Points that are open.
    pub active_mounts: u32,
    /// How many may be.
    pub max_mounts: u32,
    /// How many more may be.
    pub available_slots: u32,
    /// Always empty: no device of the hub's machine is used.
    pub allocated_devices: Vec<String>,
    /// The share of the places that is taken.
    pub device_utilization_percent: f64,
}

/// What closes points that nobody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleanupStatus {
    /// Whether it is at work.
    pub running: bool,
    /// How often it looks.
    pub interval_seconds: u64,
    /// How long a point stays open that nobody uses.
    pub idle_timeout_seconds: u64,
    /// When it looked last.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_run_at: Option<Timestamp>,
    /// How many points it has closed since the hub started.
    pub total_cleaned: u64,
    /// Points that are open.
    pub active_mounts: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_a_url() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode_path(&encode_path(&all)), all);
        assert_eq!(encode_path(b"/a b/\xff+%"), "/a%20b/%FF%2B%25");
        assert_eq!(decode_path("/a+b%2"), b"/a b%2");
    }
}
