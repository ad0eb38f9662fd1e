//! What sources say of machines, and what is asked of them.

use sendense_block::ByteLen;
use sendense_types::{Consistency, DeploymentId, DiskBinding, PowerState, TaskId, TrackingToken};
use serde::{Deserialize, Serialize};

/// Names a machine on its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmRef {
    /// What the machine *is*: libvirt's domain UUID, vSphere's instance uuid, a stable id derived from an image's place.
    pub instance_uuid: String,
    /// Its name, for messages only.
    pub name: String,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The card's key on the machine.
    pub key: String,
    /// The network it is on.
    pub network: String,
    /// Its MAC address, when known.
    pub mac: Option<String>,
    /// The card's model, when known.
    pub model: Option<String>,
}

/// A disk as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoveredDisk {
    /// The source's key for it within the machine: `vda`, `disk-2000`, a file name. Unique within the machine.
    pub key: String,
    /// For people.
    pub label: String,
    /// What the disk is; equal bindings mean the same disk.
    pub binding: DiskBinding,
    /// Its size.
    #[serde(with = "byte_len")]
    pub capacity: ByteLen,
    /// Format of the backing as declared: `raw`, `qcow2`, `vmdk` …
    pub format: String,
    /// Where it lies, for people: a pool, a datastore, a folder.
    pub datastore: Option<String>,
    /// The file there, as the source names it, where it tells one.
    pub path: Option<String>,
    /// How it is attached (`persistent`, `independent_persistent` …), in the source's words, where it tells that.
    pub mode: Option<String>,
    /// Why it cannot be backed up (CD-ROM, independent, an extent outside the folder), or none.
    pub unsupported: Option<String>,
}

/// A machine as found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiscoveredVm {
    /// What it is.
    pub vm: VmRef,
    /// Where it lies in the inventory, for people.
    pub path: Option<String>,
    /// The folder that it lies in there, where the source has such: its parts from the root, with `/` between; a `/` in a
    /// part's name is `%2f`. What asks for it again may leave it out ([`crate::Source::inspect`]).
    #[serde(default)]
    pub folder: Option<String>,
    /// Whether it runs.
    pub power_state: PowerState,
    /// The guest's operating system, as the source calls it.
    pub guest_os: Option<String>,
    /// Virtual processors.
    pub cpu_count: Option<u32>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Its disks, also those that cannot be backed up.
    pub disks: Vec<DiscoveredDisk>,
    /// Its network cards.
    pub networks: Vec<Network>,
    /// The version of its virtual hardware, where the source has such.
    pub hardware: Option<String>,
    /// Names of its snapshots, where the source tells them.
    pub snapshots: Vec<String>,
    /// Whether changes are tracked, and if not, why.
    pub change_tracking: Result<(), String>,
    /// Why it cannot be backed up at all (a template), or none.
    pub unsupported: Option<String>,
}

/// What was found when a source was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestReport {
    /// The product and version, for people: `libvirt 9.0.0, QEMU 7.2.22`.
    pub product: String,
    /// What works but should be looked at: privileges, missing tools, little scratch space.
    pub warnings: Vec<String>,
}

/// One disk that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Its key.
    pub key: String,
    /// What it was when it was looked up; the freeze fails with `Disturbed` when it is another disk by then.
    pub binding: DiskBinding,
    /// The token in the manifest of the point that changes are asked against; none for a full.
    pub since: Option<TrackingToken>,
    /// The capacity of that point; another capacity makes the token useless.
    pub since_capacity: Option<u64>,
}

/// What to freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRequest {
    /// The machine.
    pub vm: VmRef,
    /// The wanted disks, at least one.
    pub disks: Vec<DiskRequest>,
    /// Ask the guest to bring its file systems into order first, where an agent is there.
    pub quiesce: bool,
    /// Fail where that cannot be done, rather than take a point as after a power cut.
    #[serde(default)]
    pub quiesce_or_fail: bool,
    /// Goes into the names of what is made.
    pub deployment_id: DeploymentId,
    /// Goes into the names of what is made.
    pub task_id: TaskId,
}

/// A frozen disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenDisk {
    /// Its key.
    pub key: String,
    /// What it is.
    pub binding: DiskBinding,
    /// For people.
    pub label: String,
    /// Its size at the freeze, in bytes, not rounded.
    #[serde(with = "byte_len")]
    pub capacity: ByteLen,
    /// What the *next* incremental may ask changes against once this point is published; goes into its manifest.
    pub token: Option<TrackingToken>,
}

/// A piece of the machine's configuration, kept in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// What it is: `libvirt-domain-xml`, `facts`, `nvram`, `vtpm-state`.
    pub kind: String,
    /// Its text (binary documents: base64), or none with the reason in `missing`.
    pub content: Option<String>,
    /// Why it could not be read.
    pub missing: Option<String>,
}

/// How reading goes fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadHints {
    /// Threads that read at once.
    pub lanes: usize,
    /// Bytes per read; a multiple of a block.
    pub request_bytes: usize,
}

/// What was frozen and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenFacts {
    /// The disks, in the order of the request.
    pub disks: Vec<FrozenDisk>,
    /// What the guest was told.
    pub consistency: Consistency,
    /// Why it is less than was asked for (`no guest agent`).
    pub consistency_note: Option<String>,
    /// The machine's configuration.
    pub config: Vec<ConfigDocument>,
    /// How reading goes fastest.
    pub hints: ReadHints,
}

/// Sizes as plain numbers: the crate of blocks knows nothing of serialisation.
mod byte_len {
    use sendense_block::ByteLen;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(len: &ByteLen, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(len.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteLen, D::Error> {
        u64::deserialize(deserializer).map(ByteLen)
    }
}
