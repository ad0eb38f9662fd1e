//! Which values of a manifest make sense. Applied to what is written as to what is read.

use super::{Content, DOCUMENT_BYTES_MAX, Disk, Manifest};
use crate::digests::{DIGEST_FILE_HEADER_BYTES, DIGEST_INDEX_ENTRY_BYTES, GROUP_BLOCKS, GROUP_STATE_BYTES};
use crate::error::{Error, Result};
use crate::layout;
use crate::segments::{SEGMENT_BYTES_MIN, SEGMENTS_MAX};
use sendense_block::digest::DIGEST_BYTES;
use sendense_block::{BLOCK_BYTES, ByteLen, block_count};
use sendense_types::BackupType;

/// A VM has at most some 256 disks: vSphere's four controllers with 64, virtio-scsi's 256 targets.
pub const DISKS_MAX: usize = 256;
/// Enough for every tag a person or an inventory sets.
const TAGS_MAX: usize = 256;
/// Configuration files of one VM: definition, NVRAM, vTPM state, a note or two.
const DOCUMENTS_MAX: usize = 64;
/// Notes are sentences about what was met; more than this are not read by anyone.
const NOTES_MAX: usize = 1024;
/// The longest text of any single field that is not a document.
const TEXT_BYTES_MAX: usize = 4096;
/// The largest disk: where QCOW2 with 64 KiB clusters and a 32 MiB L1 table ends.
pub const CAPACITY_BYTES_MAX: u64 = 2 << 50;

pub(super) fn check(manifest: &Manifest) -> Result<()> {
    let bounded = |what: &str, count: usize, max: usize| {
        if count > max { Err(Error::invalid(format!("{count} {what}; at most {max} are allowed"))) } else { Ok(()) }
    };
    bounded("disks", manifest.disks.len(), DISKS_MAX)?;
    bounded("tags", manifest.tags.len(), TAGS_MAX)?;
    bounded("documents", manifest.documents.len(), DOCUMENTS_MAX)?;
    bounded("notes", manifest.notes.len(), NOTES_MAX)?;
    for (key, value) in &manifest.tags {
        short("a tag", key)?;
        short("a tag's value", value)?;
    }
    manifest.notes.iter().try_for_each(|note| short("a note", note))?;
    short("the source", &manifest.vm.source)?;
    short("the instance uuid", manifest.vm.instance_uuid.as_deref().unwrap_or_default())?;
    short("the policy id", manifest.policy_id.as_deref().unwrap_or_default())?;
    for document in &manifest.documents {
        short("a document's name", &document.name)?;
        let bytes = match &document.content {
            Content::Text(text) => text.len(),
            Content::Hex(bytes) => bytes.len(),
        };
        bounded("bytes in a document", bytes, DOCUMENT_BYTES_MAX)?;
    }
    if manifest.disks.is_empty() {
        return Err(Error::invalid("a point without disks"));
    }
    if !manifest.disks.is_sorted_by(|a, b| a.disk_id < b.disk_id) {
        return Err(Error::invalid("disks must be listed by rising number, each once"));
    }
    for disk in &manifest.disks {
        check_disk(manifest, disk).map_err(|error| error.within(format!("disk {}", disk.disk_id)))?;
    }
    let grown = manifest.parents().next().is_some();
    if grown != (manifest.backup_type == BackupType::Incremental) {
        return Err(Error::invalid("the point's type and its disks' parents disagree"));
    }
    Ok(())
}

fn short(what: &str, text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!("{what} has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len())));
    }
    Ok(())
}

fn check_disk(manifest: &Manifest, disk: &Disk) -> Result<()> {
    short("the disk key", &disk.disk_key)?;
    short("the label", &disk.label)?;
    short("the binding", &disk.binding.0)?;
    short("the type's reason", disk.type_reason.as_deref().unwrap_or_default())?;
    short("the token", disk.token.as_ref().map_or("", |token| &token.0))?;
    if disk.capacity_bytes > CAPACITY_BYTES_MAX {
        return Err(Error::invalid(format!("a capacity of {} bytes", disk.capacity_bytes)));
    }
    if disk.parent_backup_id.is_some() != (disk.backup_type == BackupType::Incremental) {
        return Err(Error::invalid("its type and its parent disagree"));
    }
    if disk.parent_backup_id.as_ref() == Some(&manifest.backup_id) {
        return Err(Error::invalid("it is its own parent"));
    }
    // The names say nothing that the ids do not; they stand there for people without this program, and must be true.
    let prefix = layout::disk_dir_name(disk.disk_id);
    for (name, expected) in [
        (&disk.image.file, format!("{prefix}/{}", layout::image_name(&manifest.backup_id))),
        (&disk.digests.file, format!("{prefix}/{}", layout::digests_name(&manifest.backup_id))),
    ] {
        if *name != expected {
            return Err(Error::invalid(format!("its file must be named {expected:?}")));
        }
    }
    check_image(disk)?;
    check_digests(disk)
}

fn check_image(disk: &Disk) -> Result<()> {
    let image = &disk.image;
    let blocks = block_count(ByteLen(disk.capacity_bytes));
    if image.data_blocks.checked_add(image.zero_blocks).is_none_or(|held| held > blocks) {
        return Err(Error::invalid("the image holds more blocks than the disk has"));
    }
    if image.data_blocks.checked_mul(BLOCK_BYTES).is_none_or(|bytes| image.stored_bytes > bytes) {
        return Err(Error::invalid("the image stores more bytes than its blocks have"));
    }
    if image.segment_bytes < SEGMENT_BYTES_MIN
        || !image.segment_bytes.is_power_of_two()
        || image.segments.len() as u64 != image.file_bytes.div_ceil(image.segment_bytes)
        || image.segments.len() as u64 > SEGMENTS_MAX
    {
        return Err(Error::invalid("the segments do not cover the image"));
    }
    Ok(())
}

fn check_digests(disk: &Disk) -> Result<()> {
    let groups = block_count(ByteLen(disk.capacity_bytes)).div_ceil(GROUP_BLOCKS);
    // At most: a state map for each group that holds a block, and a digest for each block of data.
    let held_blocks = disk.image.data_blocks + disk.image.zero_blocks;
    let least =
        DIGEST_FILE_HEADER_BYTES + groups * DIGEST_INDEX_ENTRY_BYTES + disk.image.data_blocks * DIGEST_BYTES as u64;
    let most = least + groups.min(held_blocks) * GROUP_STATE_BYTES;
    if !(least..=most).contains(&disk.digests.file_bytes) {
        return Err(Error::invalid("the digests file's length and the number of blocks disagree"));
    }
    if disk.digests.blake3.len() != 64 || !disk.digests.blake3.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::invalid("the digests file's BLAKE3 is not 64 hexadecimal digits"));
    }
    Ok(())
}
