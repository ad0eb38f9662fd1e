//! The only place that knows where things lie in a repository.
//!
//! ```text
//! <repository>/.sendense-repository.json                    who owns it
//! <repository>/.sendense-repository.spare                   room that is given up when there is no other
//! <repository>/.sendense-catalog/<moment>.<deployment>.copy sealed copies of the catalog
//! <repository>/<vm_context_id>/<backup_id>.json             manifest: the point exists when this name does
//! <repository>/<vm_context_id>/<backup_id>.hold             what keeps the point from being deleted
//! <repository>/<vm_context_id>/disk-<n>/<backup_id>.qcow2   image
//! <repository>/<vm_context_id>/disk-<n>/<backup_id>.digests block digests
//! <repository>/<vm_context_id>/.draft-<backup_id>/          a point that is being written
//! <repository>/<vm_context_id>/.delete-<backup_id>/         a point that is being deleted
//! <repository>/<vm_context_id>/.merge-<backup_id>/          a point that takes over what the one below it held
//! <repository>/<vm_context_id>/.move-in/                    points that come from another repository
//! <repository>/<vm_context_id>/.move-out/                   points that go to another repository
//! ```
//!
//! Paths are made from ids only, and an id is always one harmless path component; so is what is read back by the `parse_`
//! functions. All paths are relative to the repository, so that the folder can be moved.

use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::ffi::OsStr;
use std::path::PathBuf;

/// The owner record, in the repository's root.
pub const OWNER_FILE: &str = ".sendense-repository.json";
/// Locked (flock) while the owner record is read and written; empty.
pub const OWNER_LOCK_FILE: &str = ".sendense-repository.lock";
/// What it holds nobody needs: it goes where room is needed to make room.
pub const SPARE_FILE: &str = ".sendense-repository.spare";
/// Sealed copies of the catalog.
pub const CATALOG_DIR: &str = ".sendense-catalog";
/// What lies in the repository's root beside the folders of VMs.
pub(crate) const OWN: [&str; 4] = [OWNER_FILE, OWNER_LOCK_FILE, SPARE_FILE, CATALOG_DIR];
/// In a draft's, a deletion's or a merge's folder: what is moved or removed.
pub const INTENT_FILE: &str = "intent.json";
/// In a draft's, a deletion's or a merge's folder: the manifest before publication, or after it was taken back.
pub const MANIFEST_IN_FOLDER: &str = "manifest.json";

/// In the folder of points that come from another repository: which ones, before any of their files is there.
pub const MOVE_PLAN_FILE: &str = "plan.json";

/// In the same folder: that they have come and are points like any other, until the other repository has let go of them.
pub const MOVE_ARRIVED_FILE: &str = "arrived.json";

const MOVE_IN: &str = ".move-in";
const MOVE_OUT: &str = ".move-out";
const DRAFT_PREFIX: &str = ".draft-";
const DELETE_PREFIX: &str = ".delete-";
const MERGE_PREFIX: &str = ".merge-";
const DISK_PREFIX: &str = "disk-";
const MANIFEST_SUFFIX: &str = ".json";
const HOLD_SUFFIX: &str = ".hold";
/// What [`crate::crashsafe::replace`] writes first.
const HOLD_HALF_SUFFIX: &str = ".hold.new";
const IMAGE_SUFFIX: &str = ".qcow2";
const DIGESTS_SUFFIX: &str = ".digests";

/// A VM's folder.
pub fn vm_dir(vm: &VmContextId) -> PathBuf {
    PathBuf::from(vm.as_str())
}

/// The folder of one disk of a VM.
pub fn disk_dir(vm: &VmContextId, disk: DiskNumber) -> PathBuf {
    vm_dir(vm).join(disk_dir_name(disk))
}

/// The name of a disk's folder within its VM's.
pub fn disk_dir_name(disk: DiskNumber) -> String {
    format!("{DISK_PREFIX}{disk}")
}

/// A point's manifest.
pub fn manifest(vm: &VmContextId, backup: &BackupId) -> PathBuf {
    vm_dir(vm).join(manifest_name(backup))
}

/// What keeps a point from being deleted.
pub fn hold(vm: &VmContextId, backup: &BackupId) -> PathBuf {
    vm_dir(vm).join(hold_name(backup))
}

/// The same, cut off while it was written. Without meaning.
pub fn hold_half(vm: &VmContextId, backup: &BackupId) -> PathBuf {
    vm_dir(vm).join(format!("{backup}{HOLD_HALF_SUFFIX}"))
}

/// The name of an image within its disk's folder, which is also how a child's QCOW2 header names it.
pub fn image_name(backup: &BackupId) -> String {
    format!("{backup}{IMAGE_SUFFIX}")
}

/// A point's image of one disk.
pub fn image(vm: &VmContextId, disk: DiskNumber, backup: &BackupId) -> PathBuf {
    disk_dir(vm, disk).join(image_name(backup))
}

/// The name of the digests within their disk's folder.
pub fn digests_name(backup: &BackupId) -> String {
    format!("{backup}{DIGESTS_SUFFIX}")
}

/// The digests of a point's image of one disk.
pub fn digests(vm: &VmContextId, disk: DiskNumber, backup: &BackupId) -> PathBuf {
    disk_dir(vm, disk).join(digests_name(backup))
}

/// The folder in which a point is written.
pub fn draft_dir(vm: &VmContextId, backup: &BackupId) -> PathBuf {
    vm_dir(vm).join(format!("{DRAFT_PREFIX}{backup}"))
}

/// The folder in which a point is deleted.
pub fn delete_dir(vm: &VmContextId, backup: &BackupId) -> PathBuf {
    vm_dir(vm).join(format!("{DELETE_PREFIX}{backup}"))
}

/// The folder in which a point takes over what the one below it held.
pub fn merge_dir(vm: &VmContextId, successor: &BackupId) -> PathBuf {
    vm_dir(vm).join(format!("{MERGE_PREFIX}{successor}"))
}

/// The folder that says which points come from another repository.
pub fn move_in_dir(vm: &VmContextId) -> PathBuf {
    vm_dir(vm).join(MOVE_IN)
}

/// The folder that says which points go to another repository.
pub fn move_out_dir(vm: &VmContextId) -> PathBuf {
    vm_dir(vm).join(MOVE_OUT)
}

/// The name of a point's manifest, also in the folder of points that come.
pub fn manifest_name(backup: &BackupId) -> String {
    format!("{backup}{MANIFEST_SUFFIX}")
}

/// The name of what keeps a point, also in the folder of points that come.
pub fn hold_name(backup: &BackupId) -> String {
    format!("{backup}{HOLD_SUFFIX}")
}

/// The name of a disk's image in a draft's or a merge's folder.
pub fn draft_image_name(disk: DiskNumber) -> String {
    format!("{DISK_PREFIX}{disk}{IMAGE_SUFFIX}")
}

/// The name of a disk's digests in a draft's or a merge's folder.
pub fn draft_digests_name(disk: DiskNumber) -> String {
    format!("{DISK_PREFIX}{disk}{DIGESTS_SUFFIX}")
}

/// What the name of an entry of a VM's folder means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEntry {
    /// `<backup_id>.json`
    Manifest(BackupId),
    /// `<backup_id>.hold`
    Hold(BackupId),
    /// `<backup_id>.hold.new`
    HoldHalf(BackupId),
    /// `disk-<n>`
    Disk(DiskNumber),
    /// `.draft-<backup_id>`
    Draft(BackupId),
    /// `.delete-<backup_id>`
    Delete(BackupId),
    /// `.merge-<backup_id>`
    Merge(BackupId),
    /// `.move-in`
    MoveIn,
    /// `.move-out`
    MoveOut,
    /// Not ours.
    Stranger,
}

/// Reads the name of an entry of a VM's folder.
pub fn parse_vm_entry(name: &OsStr) -> VmEntry {
    let Some(name) = name.to_str() else { return VmEntry::Stranger };
    match name {
        MOVE_IN => return VmEntry::MoveIn,
        MOVE_OUT => return VmEntry::MoveOut,
        _ => {}
    }
    if let Some(id) = name.strip_prefix(DRAFT_PREFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::Draft);
    }
    if let Some(id) = name.strip_prefix(DELETE_PREFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::Delete);
    }
    if let Some(id) = name.strip_prefix(MERGE_PREFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::Merge);
    }
    if let Some(id) = name.strip_suffix(MANIFEST_SUFFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::Manifest);
    }
    if let Some(id) = name.strip_suffix(HOLD_SUFFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::Hold);
    }
    if let Some(id) = name.strip_suffix(HOLD_HALF_SUFFIX) {
        return id.parse().map_or(VmEntry::Stranger, VmEntry::HoldHalf);
    }
    parse_disk_dir(name).map_or(VmEntry::Stranger, VmEntry::Disk)
}

/// Reads `disk-<n>`. Only the one way to write a number is taken: `disk-01` is not ours.
fn parse_disk_dir(name: &str) -> Option<DiskNumber> {
    let disk = DiskNumber(name.strip_prefix(DISK_PREFIX)?.parse().ok()?);
    (disk_dir_name(disk) == name).then_some(disk)
}

/// Reads `<backup_id>.qcow2` or `<backup_id>.digests`.
pub fn parse_disk_entry(name: &OsStr) -> Option<BackupId> {
    let name = name.to_str()?;
    name.strip_suffix(IMAGE_SUFFIX).or_else(|| name.strip_suffix(DIGESTS_SUFFIX))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let id: BackupId = "bk-1".parse().unwrap();
        let vm: VmContextId = "vm-1".parse().unwrap();
        let name = |path: PathBuf| path.file_name().unwrap().to_owned();
        assert_eq!(parse_vm_entry(&name(manifest(&vm, &id))), VmEntry::Manifest(id.clone()));
        assert_eq!(parse_vm_entry(&name(hold(&vm, &id))), VmEntry::Hold(id.clone()));
        assert_eq!(parse_vm_entry(&name(hold_half(&vm, &id))), VmEntry::HoldHalf(id.clone()));
        assert_eq!(parse_vm_entry(&name(draft_dir(&vm, &id))), VmEntry::Draft(id.clone()));
        assert_eq!(parse_vm_entry(&name(delete_dir(&vm, &id))), VmEntry::Delete(id.clone()));
        assert_eq!(parse_vm_entry(&name(merge_dir(&vm, &id))), VmEntry::Merge(id.clone()));
        assert_eq!(parse_vm_entry(&name(move_in_dir(&vm))), VmEntry::MoveIn);
        assert_eq!(parse_vm_entry(&name(move_out_dir(&vm))), VmEntry::MoveOut);
        assert_eq!(parse_vm_entry(&name(disk_dir(&vm, DiskNumber(7)))), VmEntry::Disk(DiskNumber(7)));
        for path in [image(&vm, DiskNumber(0), &id), digests(&vm, DiskNumber(0), &id)] {
            assert_eq!(parse_disk_entry(&name(path)), Some(id.clone()));
        }
    }

    #[test]
    fn other_names_are_strangers() {
        for name in ["disk-01", "disk-+1", "disk-", "disk--1", ".draft-", ".draft-..", "x.json.bak", "..json", "notes"]
        {
            assert_eq!(parse_vm_entry(OsStr::new(name)), VmEntry::Stranger, "{name}");
        }
        assert_eq!(parse_disk_entry(OsStr::new("bk-1.vmdk")), None);
    }
}
