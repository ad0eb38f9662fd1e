//! What the guest's kernel finds on the disk: partitions, logical volumes, and the file systems on them.
//!
//! Ids are those that the native readers give: `disk`, `p2`, `lvm:vg0/root`. What is encrypted stays locked; the native
//! readers open it.
//!
//! Invariant: a volume that cannot be mounted says why and hides no other.

use super::kernel;
use super::left::{Left, left};
use super::mounted::Mounted;
use super::partitions;
use crate::appliance::first_files::LVM;
use crate::error::{Error, Result};
use crate::meta::{Consistency, Facts, State};
use crate::native::Readers;
use crate::native::fs::{detect, foreign};
use crate::native::volumes::{Content, Partition, PartitionRole, Slot, read_table};
use crate::volume::{VOLUMES_MAX, Volume, VolumeId, shown};
use sendense_block::backend::{File, Options};
use sendense_block::{ByteOffset, ReadAt};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The disk's name in the guest.
const DISK: &str = "vda";

/// Attaches the disk and mounts what is on it.
///
/// # Errors
/// [`Error::Io`]: there is no disk.
pub fn discover() -> Result<Vec<Slot>> {
    kernel::load("disk");
    let table = table()?;
    partitions::agree(DISK, table.as_deref().unwrap_or_default());
    kernel::load("names");
    kernel::load("files");
    let mut finder = Finder { slots: Vec::new(), has_lvm: false };
    match table {
        Some(table) => table.iter().take(VOLUMES_MAX).try_for_each(|partition| finder.partition(partition))?,
        None => finder.look("disk", DISK)?,
    }
    if finder.has_lvm {
        finder.logical_volumes();
    }
    Ok(finder.slots)
}

/// The disk's partitions, as the native readers find them. The kernel's own are not asked: it knows tables of old machines by so
/// little that one file system in some hundred looks as if it had one.
fn table() -> Result<Option<Vec<Partition>>> {
    let disk = File::open(&Path::new("/dev").join(DISK), Options::Read);
    let disk = disk.map_err(|error| Error::Io(format!("the guest has no disk: {error}")))?;
    read_table(&disk, Readers::default())
}

struct Finder {
    slots: Vec<Slot>,
    has_lvm: bool,
}

impl Finder {
    fn partition(&mut self, partition: &Partition) -> Result<()> {
        let id = format!("p{}", partition.number);
        match (partition.role, partitions::device(DISK, partition)) {
            (PartitionRole::Other(kind), _) => self.add(&id, kind, partition.len, State::Empty),
            (_, Some(device)) => self.look(&id, &device)?,
            (_, None) => {
                let reason = crate::Reason("a partition that the guest's kernel does not take".into());
                self.add(&id, "", partition.len, State::Unsupported(reason));
            }
        }
        Ok(())
    }

    /// A device by its kernel's name.
    fn look(&mut self, id: &str, device: &str) -> Result<()> {
        let path = PathBuf::from(format!("/dev/{device}"));
        let data = match File::open(&path, Options::Read) {
            Ok(data) => data,
            Err(error) => {
                self.add(id, "", 0, State::Corrupt(error.to_string()));
                return Ok(());
            }
        };
        let size = data.size().0;
        let mut start = vec![0; 8192.min(size as usize)];
        data.read_at(ByteOffset(0), &mut start).map_err(|error| Error::Io(error.to_string()))?;
        // LVM's label is in one of the first four sectors.
        if start.chunks(512).take(4).any(|sector| sector.starts_with(b"LABELONE")) {
            self.has_lvm = true;
            return Ok(());
        }
        if start.starts_with(b"LUKS\xba\xbe") {
            self.add(id, "crypto_LUKS", size, State::Locked);
            return Ok(());
        }
        if start.get(4086..4096) == Some(b"SWAPSPACE2") {
            self.add(id, "swap", size, State::Empty);
            return Ok(());
        }
        if start.iter().all(|byte| *byte == 0) && detect(&data)?.is_none() && is_blank(&data) {
            self.add(id, "", size, State::Empty);
            return Ok(());
        }
        let known = match detect(&data)? {
            Some("ext2" | "ext3" | "ext4") => Some("ext4"),
            Some(kind) => Some(kind),
            None => foreign::name(&data)?,
        };
        let Some(kind) = known else {
            let reason = crate::Reason("no file system that the appliance knows".into());
            self.add(id, "", size, State::Unsupported(reason));
            return Ok(());
        };
        match self.mount(id, &path, device, kind, &data) {
            Ok(slot) => self.push(slot),
            Err(Error::Unsupported(reason)) => self.add(id, kind, size, State::Unsupported(reason)),
            Err(Error::Corrupt(text)) => self.add(id, kind, size, State::Corrupt(text)),
            Err(other) => self.add(id, kind, size, State::Corrupt(other.to_string())),
        }
        Ok(())
    }

    fn mount(&self, id: &str, path: &Path, device: &str, kind: &'static str, data: &dyn ReadAt) -> Result<Slot> {
        let place = PathBuf::from(format!("/run/volume-{}", self.slots.len()));
        fs::create_dir_all(&place).map_err(|error| Error::Io(error.to_string()))?;
        let left = left(kind, data)?;
        if left == Left::OpenLog {
            let reason = format!("{kind} that was not unmounted: its log is replayed by its repair tool alone");
            return Err(Error::unsupported(reason));
        }
        let replayed = kernel::mount_volume(path, device, kind, &place)?;
        let consistency = match left {
            Left::Open | Left::OpenLog => Consistency::LogNotReplayed,
            Left::Closed if replayed => Consistency::Replayed,
            Left::Closed => Consistency::Clean,
        };
        let (uuid, label) = names(kind, data);
        let facts = Facts { kind, label, uuid, size_bytes: data.size().0, consistency };
        let volume = Volume {
            id: printable(id),
            kind: kind.into(),
            label: facts.label.clone(),
            uuid: facts.uuid.clone(),
            size_bytes: facts.size_bytes,
            state: State::Readable,
            consistency: Some(consistency),
        };
        Ok(Slot { volume, content: Content::Files(Box::new(Mounted::open(&place, facts)?)) })
    }

    /// Every logical volume that LVM's own tool can start.
    fn logical_volumes(&mut self) {
        if !Path::new(LVM).exists() {
            let reason = "LVM, and the Debian package lvm2 is not installed on the hub";
            self.add("lvm", "LVM2_member", 0, State::Unsupported(crate::Reason(reason.into())));
            return;
        }
        kernel::load("lvm");
        // What cannot be started is seen as a volume without a device below.
        let _ = lvm(&["vgchange", "--activate", "y", "--ignoreactivationskip", "--activationmode", "partial"]);
        let fields = "vg_name,lv_name,lv_size,lv_dm_path,lv_active,segtype";
        let listed = lvm(&["lvs", "--noheadings", "--units", "b", "--nosuffix", "--separator", "|", "-o", fields]);
        for line in listed.unwrap_or_default().lines() {
            let fields: Vec<&str> = line.trim().split('|').collect();
            let [group, name, size, path, active, kind] = fields[..] else { continue };
            // The pool itself holds no files.
            if kind.ends_with("-pool") {
                continue;
            }
            let id = format!("lvm:{group}/{name}");
            // LVM makes a node of its own; the kernel's name for the same device says what is written to it.
            let node = fs::metadata(path).ok().filter(|node| node.file_type().is_block_device());
            match node.map(|node| format!("dm-{}", rustix::fs::minor(node.rdev()))) {
                Some(device) if active == "active" => {
                    if let Err(error) = self.look(&id, &device) {
                        self.add(&id, kind, size.parse().unwrap_or_default(), State::Corrupt(error.to_string()));
                    }
                }
                _ => {
                    let reason = crate::Reason(format!("LVM's tool does not start the {kind} volume"));
                    self.add(&id, kind, size.parse().unwrap_or_default(), State::Unsupported(reason));
                }
            }
        }
    }

    fn add(&mut self, id: &str, kind: &str, size_bytes: u64, state: State) {
        let volume = Volume {
            id: printable(id),
            kind: kind.into(),
            label: None,
            uuid: None,
            size_bytes,
            state,
            consistency: None,
        };
        self.push(Slot { volume, content: Content::Nothing });
    }

    fn push(&mut self, slot: Slot) {
        if self.slots.len() < VOLUMES_MAX && self.slots.iter().all(|other| other.volume.id != slot.volume.id) {
            self.slots.push(slot);
        }
    }
}

/// Runs LVM's tool on the guest's devices; there is no udev, so it makes the nodes itself.
fn lvm(arguments: &[&str]) -> Option<String> {
    let config = "activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=1 } \
                  devices { use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\" } \
                  global { use_lvmpolld=0 locking_type=1 thin_check_executable=\"\" cache_check_executable=\"\" } \
                  backup { backup=0 archive=0 }";
    let (command, options) = arguments.split_first()?;
    let run = Command::new(LVM)
        .arg(command)
        .args(["--config", config])
        .args(options)
        .env_clear()
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()
        .ok()?;
    if !run.status.success() {
        kernel::say(&format!("lvm {command}: {}", String::from_utf8_lossy(&run.stderr).trim()));
    }
    Some(String::from_utf8_lossy(&run.stdout).into_owned())
}

/// Nothing in the first megabyte.
fn is_blank(data: &dyn ReadAt) -> bool {
    let mut start = vec![0; (1 << 20).min(data.size().0 as usize)];
    data.read_at(ByteOffset(0), &mut start).is_ok() && start.iter().all(|byte| *byte == 0)
}

/// UUID and label, where the file system keeps them at a fixed place.
fn names(kind: &str, data: &dyn ReadAt) -> (Option<String>, Option<String>) {
    let (uuid_at, label_at, label_len) = match kind {
        "ext4" => (1024 + 0x68, 1024 + 0x78, 16),
        "xfs" => (32, 108, 12),
        "btrfs" => (0x10020, 0x1012b, 256),
        _ => return (None, None),
    };
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        data.read_at(ByteOffset(at), &mut bytes).ok().map(|()| bytes)
    };
    let uuid = read(uuid_at, 16).map(|bytes| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    });
    let label = read(label_at, label_len).and_then(|bytes| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        shown(&String::from_utf8_lossy(&bytes[..end]))
    });
    (uuid, label)
}

/// LVM's names are printable; anything else is made so.
fn printable(id: &str) -> VolumeId {
    let text: String = id.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(200).collect();
    VolumeId::parse(&text).expect("the characters are printable, their number is bounded, and no id is empty")
}
