//! What lies on a disk: partitions, volumes of LVM, encrypted and mirrored ones, and the file systems in them.
//!
//! ```text
//!     disk -> GPT | MBR -> p1, p2 …     each, like the disk itself, may be
//!          LUKS -> locked until a key comes    MD mirror -> its content    LVM -> its volumes    a file system, swap, nothing
//! ```
//!
//! Invariant: the same disk gives the same volumes under the same ids, in the same order. A volume that cannot be read says
//! why and never hides the others.

mod bytes;
mod gpt;
#[cfg(test)]
mod hostile;
pub(super) mod luks;
mod lvm;
mod mapping;
mod mbr;
mod md;
#[cfg(test)]
mod testing;

use super::fs::foreign;
use super::{FileSystem, Readers};
use crate::error::{Error, Result};
use crate::meta::State;
use crate::volume::{Key, VOLUMES_MAX, Volume, VolumeId, shown};
use bytes::{array, read, uuid};
use mapping::Mapping;
use sendense_block::ReadAt;
use std::sync::Arc;

/// How deep things may lie in one another: a partition, a mirror, an encrypted container, a volume group, a partition in a
/// logical volume, and room for more.
const DEPTH_MAX: usize = 8;
/// How much of a volume is looked at before it is called empty.
const BLANK_BYTES: usize = 1 << 20;

/// A part of a disk.
pub struct Partition {
    /// As the operating system numbers it.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its name in the table.
    pub name: Option<String>,
    /// What it is for.
    pub role: PartitionRole,
}

/// What the table says a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionRole {
    /// Files, or something that holds volumes.
    Files,
    /// Something without files, by name.
    Other(&'static str),
}

/// A volume and what is behind it.
pub struct Slot {
    /// What is told of it.
    pub volume: Volume,
    /// What can be done with it.
    pub content: Content,
}

/// What is behind a volume.
pub enum Content {
    /// Files.
    Files(Box<dyn FileSystem>),
    /// An encrypted container.
    Locked(Arc<dyn ReadAt>),
    /// Nothing that can be read.
    Nothing,
}

/// Looks at a whole disk.
///
/// # Errors
/// Where the disk's own tables should be, it cannot be read; trying again may help.
pub fn discover(disk: Arc<dyn ReadAt>, readers: Readers) -> Result<Vec<Slot>> {
    let mut finder = Finder { readers, slots: Vec::new() };
    finder.whole(disk, "", None, 0)?;
    Ok(finder.slots)
}

/// Opens the container at `slots[index]` and puts what is in it in its place.
///
/// # Errors
/// [`Error::WrongKey`], [`Error::Unsupported`] for other ciphers, [`Error::Limit`] for a derivation beyond the bounds.
pub fn unlock(slots: &mut Vec<Slot>, index: usize, key: &Key, readers: Readers) -> Result<()> {
    let Some(Slot { volume, content: Content::Locked(device) }) = slots.get(index) else { return Ok(()) };
    let plain = luks::unlock(device, key)?;
    let id = volume.id.clone();
    let before: Vec<VolumeId> = slots.iter().map(|slot| slot.volume.id.clone()).filter(|known| *known != id).collect();
    let mut finder = Finder { readers, slots: Vec::new() };
    finder.whole(plain, id.as_str(), None, 1)?;
    for slot in &mut finder.slots {
        slot.volume.id = unused(&slot.volume.id, |wanted| before.contains(wanted));
    }
    slots.splice(index..=index, finder.slots);
    slots.truncate(VOLUMES_MAX);
    Ok(())
}

/// The partitions of a device, when it has a table of them.
///
/// As everywhere, a GPT counts beside a record that announces it. A disk that was given another table, or a volume group, a container,
/// a file system, often has the second copy of an old one at its end; so without that record a GPT counts only on a disk whose first
/// sector is lost and that is nothing else.
///
/// # Errors
/// The device cannot be read.
pub fn read_table(device: &dyn ReadAt, readers: Readers) -> Result<Option<Vec<Partition>>> {
    let gpt_counts = match mbr::announces_gpt(device)? {
        Some(announced) => announced,
        None => is_nothing_else(device, readers),
    };
    if gpt_counts && let Some(partitions) = gpt::read_table(device)? {
        return Ok(Some(partitions));
    }
    // FAT, NTFS and hybrid ISO images begin with a boot sector that can look like a partition table.
    if matches!((readers.detect)(device), Ok(Some("vfat" | "ntfs" | "iso9660"))) {
        return Ok(None);
    }
    mbr::read_table(device)
}

/// Whether nothing is found that fills the device. What cannot be told is something.
fn is_nothing_else(device: &dyn ReadAt, readers: Readers) -> bool {
    matches!((readers.detect)(device), Ok(None))
        && matches!(luks::find(device), Ok(None))
        && matches!(md::detect(device), Ok(false))
        && matches!(lvm::detect(device), Ok(false))
}

struct Finder {
    readers: Readers,
    slots: Vec<Slot>,
}

impl Finder {
    /// A device that may hold partitions: the disk, or what lies in a mirror, a container, a logical volume. `id` is empty for
    /// the disk itself.
    fn whole(&mut self, device: Arc<dyn ReadAt>, id: &str, name: Option<String>, depth: usize) -> Result<()> {
        if let Some(partitions) = read_table(device.as_ref(), self.readers)? {
            return self.partitions(&device, id, partitions, depth);
        }
        self.inside(device, if id.is_empty() { "disk" } else { id }, name, depth)
    }

    fn partitions(
        &mut self,
        device: &Arc<dyn ReadAt>,
        id: &str,
        partitions: Vec<Partition>,
        depth: usize,
    ) -> Result<()> {
        for partition in partitions {
            let id =
                if id.is_empty() { format!("p{}", partition.number) } else { format!("{id}/p{}", partition.number) };
            match (partition.role, Mapping::slice(device.clone(), partition.start, partition.len)) {
                (PartitionRole::Other(kind), _) => self.add(&id, kind, partition.name, partition.len, State::Empty),
                (_, Err(error)) => self.add(&id, "", partition.name, partition.len, refusal(error)),
                (_, Ok(part)) => self.inside(part, &id, partition.name, depth + 1)?,
            }
        }
        Ok(())
    }

    /// A device without a partition table.
    fn inside(&mut self, device: Arc<dyn ReadAt>, id: &str, name: Option<String>, depth: usize) -> Result<()> {
        let size = device.size().0;
        match self.look(&device, id, name.clone(), depth) {
            Ok(()) => {}
            Err(error) if depth == 0 => return Err(error),
            // One partition that cannot be read does not hide the others.
            Err(error) => self.add(id, "", name, size, refusal(error)),
        }
        Ok(())
    }

    fn look(&mut self, device: &Arc<dyn ReadAt>, id: &str, name: Option<String>, depth: usize) -> Result<()> {
        let size = device.size().0;
        if depth > DEPTH_MAX {
            return Err(Error::unsupported(format!("volumes in one another more than {DEPTH_MAX} deep")));
        }
        if let Some(header) = luks::find(device.as_ref())? {
            let volume = Volume {
                id: self.id(&prefixed("luks", id)),
                kind: "crypto_LUKS".into(),
                label: header.label.or(name),
                uuid: header.uuid,
                size_bytes: size,
                state: State::Locked,
                consistency: None,
            };
            self.push(Slot { volume, content: Content::Locked(device.clone()) });
        } else if let Some(member) = md::find(device)? {
            let id = prefixed("md", id);
            match member.content {
                Ok(content) => self.whole(content, &id, member.name.or(name), depth + 1)?,
                Err(error) => {
                    self.add(&id, "linux_raid_member", member.name.or(name), size, refusal(error));
                    self.last_uuid(Some(member.uuid));
                }
            }
        } else if lvm::detect(device.as_ref())? {
            match lvm::open(device) {
                Ok(group) => self.group(group, depth)?,
                Err(error) => self.add(id, "LVM2_member", name, size, refusal(error)),
            }
        } else if let Some(kind) = self.detect(device.as_ref())? {
            self.files(device, id, name, kind);
        } else {
            self.without_files(device.as_ref(), id, name)?;
        }
        Ok(())
    }

    fn group(&mut self, group: lvm::Group, depth: usize) -> Result<()> {
        for volume in group.volumes {
            let id = format!("lvm:{}/{}", group.name, volume.name);
            match volume.content {
                Ok(content) => self.inside(content, &id, None, depth + 1)?,
                Err(error) => {
                    self.add(&id, &volume.kind, None, volume.size_bytes, refusal(error));
                    self.last_uuid(volume.uuid);
                }
            }
        }
        Ok(())
    }

    fn files(&mut self, device: &Arc<dyn ReadAt>, id: &str, name: Option<String>, kind: &'static str) {
        match (self.readers.open)(device.clone()) {
            Ok(files) => {
                let facts = files.facts().clone();
                let volume = Volume {
                    id: self.id(id),
                    kind: facts.kind.into(),
                    label: facts.label.as_deref().and_then(shown).or(name),
                    uuid: facts.uuid.as_deref().and_then(shown),
                    size_bytes: facts.size_bytes,
                    state: State::Readable,
                    consistency: Some(facts.consistency),
                };
                self.push(Slot { volume, content: Content::Files(files) });
            }
            Err(error) => self.add(id, kind, name, device.size().0, refusal(error)),
        }
    }

    /// Swap, blank space, or something that only another backend may know.
    fn without_files(&mut self, device: &dyn ReadAt, id: &str, name: Option<String>) -> Result<()> {
        let size = device.size().0;
        let start = read(device, 0, BLANK_BYTES.min(usize::try_from(size).unwrap_or(BLANK_BYTES)))?.unwrap_or_default();
        if matches!(start.get(4086..4096), Some(b"SWAPSPACE2" | b"SWAP-SPACE")) {
            let label = array::<16>(&start, 1052).and_then(|label| shown(&String::from_utf8_lossy(&label)));
            self.add(id, "swap", label.or(name), size, State::Empty);
            self.last_uuid(array(&start, 1036).map(uuid));
        } else if start.iter().all(|byte| *byte == 0) {
            self.add(id, "", name, size, State::Empty);
        } else {
            let kind = foreign::name(device)?;
            let reason = match kind {
                Some(kind) => format!("these readers do not read {kind}"),
                None => "no file system that these readers know".to_owned(),
            };
            self.add(id, kind.unwrap_or_default(), name, size, refusal(Error::unsupported(reason)));
        }
        Ok(())
    }

    fn detect(&self, device: &dyn ReadAt) -> Result<Option<&'static str>> {
        (self.readers.detect)(device)
    }

    fn add(&mut self, id: &str, kind: &str, label: Option<String>, size_bytes: u64, state: State) {
        let volume =
            Volume { id: self.id(id), kind: kind.into(), label, uuid: None, size_bytes, state, consistency: None };
        self.push(Slot { volume, content: Content::Nothing });
    }

    fn push(&mut self, slot: Slot) {
        if self.slots.len() < VOLUMES_MAX {
            self.slots.push(slot);
        }
    }

    fn last_uuid(&mut self, uuid: Option<String>) {
        if let Some(slot) = self.slots.last_mut() {
            slot.volume.uuid = uuid.as_deref().and_then(shown);
        }
    }

    /// The id, made printable and unique.
    fn id(&self, wanted: &str) -> VolumeId {
        let printable: String = wanted.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
        let cut = &printable[..printable.len().min(crate::volume::ID_BYTES_MAX - 8)];
        let id = VolumeId::parse(cut).expect("the characters are printable, the length is below the bound and never 0");
        unused(&id, |wanted| self.slots.iter().any(|slot| slot.volume.id == *wanted))
    }
}

/// `vg0/root`, or `vg0/root#2` when two groups on one disk have the same name.
fn unused(wanted: &VolumeId, taken: impl Fn(&VolumeId) -> bool) -> VolumeId {
    let numbered = (2..VOLUMES_MAX + 2).filter_map(|number| VolumeId::parse(&format!("{wanted}#{number}")).ok());
    std::iter::once(wanted.clone()).chain(numbered).find(|id| !taken(id)).unwrap_or_else(|| wanted.clone())
}

/// `luks:p3` for `p3`.
fn prefixed(prefix: &str, id: &str) -> String {
    format!("{prefix}:{id}")
}

/// What an error means for the volume as a whole.
fn refusal(error: Error) -> State {
    match error {
        Error::Unsupported(reason) => State::Unsupported(reason),
        Error::Corrupt(text) => State::Corrupt(text),
        other => State::Corrupt(other.to_string()),
    }
}
