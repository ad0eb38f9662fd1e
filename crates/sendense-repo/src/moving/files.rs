//! The bytes of points, from one repository to the other, and read back there.
//!
//! A file has its final name from its first byte: until its point's manifest is there too it is nobody's, and the plan in the
//! folder of the move says that it may be taken away. So nothing has to be moved once it was checked.
//!
//! Invariant: a file is taken for copied only after it was read back from the disk and found to be what its manifest says.

use super::run::Move;
use crate::capacity::Reservation;
use crate::crashsafe::{self, NewFile};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::manifest::{Disk, Manifest};
use crate::repository::Repository;
use crate::verify::{self, Pace};
use sendense_block::{ByteLen, ByteOffset, Extent, ReadAt, digest};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes per read and write: large enough that a disk's seeks do not show, small enough that a cancel is quick.
const COPY_BYTES: u64 = 1 << 20;

/// The two files of a disk with their lengths, relative to the repository.
fn files_of(vm: &VmContextId, backup: &BackupId, disk: &Disk) -> [(PathBuf, u64); 2] {
    [
        (layout::image(vm, disk.disk_id, backup), disk.image.file_bytes),
        (layout::digests(vm, disk.disk_id, backup), disk.digests.file_bytes),
    ]
}

/// The copying of a move.
pub(super) struct Copying<'a> {
    pub of: &'a Move<'a>,
    pub pace: &'a Pace,
    /// An earlier life of this move has left copies.
    pub is_resumed: bool,
}

impl Copying<'_> {
    /// What an earlier life of this move has copied of these points already.
    pub fn copied_bytes(&self, points: &[Manifest]) -> u64 {
        let vm = &self.of.plan.vm_context_id;
        let files = points.iter().flat_map(|point| point.disks.iter().map(|disk| (&point.backup_id, disk)));
        let lens = files.flat_map(|(id, disk)| files_of(vm, id, disk)).map(|(path, bytes)| {
            let metadata = self.of.target.at(path).symlink_metadata();
            metadata.map_or(0, |metadata| metadata.len().min(bytes))
        });
        lens.fold(0, u64::saturating_add)
    }

    /// Copies all files of a point, durably, and reads them back.
    pub fn copy_point(&self, point: &Manifest, reservation: &Reservation) -> Result<()> {
        let within = |error: Error| error.within(format!("copy {}", point.backup_id));
        self.copy_files(point, reservation).map_err(within)?;
        match self.check(point) {
            // What a power loss left of an earlier life may have the right length and the wrong bytes: once more, from nothing.
            Err(error) if matches!(error.kind, Kind::Corrupt { .. }) && self.is_resumed => {
                self.remove_files(point).map_err(within)?;
                self.copy_files(point, reservation).map_err(within)?;
                self.check(point)
            }
            checked => checked,
        }
    }

    fn copy_files(&self, point: &Manifest, reservation: &Reservation) -> Result<()> {
        let (vm, fs) = (&self.of.plan.vm_context_id, self.of.target.fs());
        for disk in &point.disks {
            let dir = self.of.target.at(layout::disk_dir(vm, disk.disk_id));
            {
                let _turn = self.of.target.ownership()?.turn(self.of.now())?;
                crashsafe::ensure_dir(fs, &dir)?;
            }
            for (path, bytes) in files_of(vm, &point.backup_id, disk) {
                self.copy_file(&path, bytes, reservation)?;
            }
            crashsafe::sync_dir(fs, &dir)?;
        }
        Ok(())
    }

    fn copy_file(&self, path: &Path, bytes: u64, reservation: &Reservation) -> Result<()> {
        let from = self.of.source.open_file(path, bytes)?;
        let (to, there) = self.open_copy(path, bytes)?;
        // The last piece that is there may be half written.
        let begun = if there == bytes { bytes } else { there - there % COPY_BYTES };
        self.of.progress.done_bytes.fetch_add(begun, Ordering::Relaxed);
        let rest = Extent::between(ByteOffset(begun), ByteOffset(bytes));
        let mut buffer = vec![0; COPY_BYTES as usize];
        for piece in rest.pieces(ByteLen(COPY_BYTES)) {
            self.of.cancel.check()?;
            let chunk = &mut buffer[..piece.len().0 as usize];
            verify::read(|| from.read_at(piece.start(), chunk))?;
            reservation.spend(piece.len().0)?;
            // Holes stay holes.
            if piece.start().0 < there || !digest::is_zero(chunk) {
                to.write_at(piece.start(), chunk)?;
            }
            self.of.progress.done_bytes.fetch_add(piece.len().0, Ordering::Relaxed);
            self.pace.wait(piece.len().0, self.of.cancel);
        }
        if to.size().0 != bytes {
            to.set_len(ByteLen(bytes))?;
        }
        crashsafe::sync_file(&*to)
    }

    /// Opens the copy of a file, with as much of it as an earlier life of the move has written. In a turn: a name that another hub
    /// has given since is never opened, and what is written into an open file reaches none.
    fn open_copy(&self, path: &Path, bytes: u64) -> Result<(Arc<dyn NewFile>, u64)> {
        let _turn = self.of.target.ownership()?.turn(self.of.now())?;
        let (fs, to) = (self.of.target.fs(), self.of.target.at(path));
        match to.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((crashsafe::create_file(fs, &to)?, 0)),
            Err(error) => Err(crashsafe::failed("stat", &to, error)),
            Ok(metadata) if metadata.is_file() && metadata.len() <= bytes => {
                let file = fs.open_file(&to).map_err(|error| crashsafe::failed("open", &to, error))?;
                Ok((file, metadata.len()))
            }
            Ok(_) => Err(Error::new(Kind::Exists, format!("{} is there already, and is another file", to.display()))),
        }
    }

    /// Reads the copies back, every byte.
    fn check(&self, point: &Manifest) -> Result<()> {
        let vm = &self.of.plan.vm_context_id;
        for (path, bytes) in point.disks.iter().flat_map(|disk| files_of(vm, &point.backup_id, disk)) {
            // From the disk and not from memory, where the kernel can let go of what was synced.
            self.of.target.open_file(&path, bytes)?.forget(Extent::whole(ByteLen(bytes)));
        }
        let report = verify::unnamed(
            self.of.target,
            point,
            self.of.options.threads,
            self.pace,
            self.of.progress,
            self.of.cancel,
        )?;
        let within = |error: Error| error.within(format!("read the copy of {} back", point.backup_id));
        match (report.error(), report.unreadable.first()) {
            (Some(error), _) => Err(within(error)),
            (None, Some(finding)) => Err(within(Error::new(Kind::Io, finding.what.clone()))),
            (None, None) => Ok(()),
        }
    }

    fn remove_files(&self, point: &Manifest) -> Result<()> {
        let _turn = self.of.target.ownership()?.turn(self.of.now())?;
        let disks = point.disks.iter().map(|disk| disk.disk_id).collect();
        remove_files(self.of.target, &self.of.plan.vm_context_id, &point.backup_id, &disks)
    }
}

/// Removes the files of a point that has no manifest, durably, and folders of disks that are empty then.
pub(super) fn remove_files(
    repository: &Repository,
    vm: &VmContextId,
    backup: &BackupId,
    disks: &BTreeSet<DiskNumber>,
) -> Result<()> {
    let fs = repository.fs();
    for disk in disks {
        let dir = repository.at(layout::disk_dir(vm, *disk));
        match dir.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::new(Kind::Denied, format!("{} is not a directory", dir.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(crashsafe::failed("stat", &dir, error)),
        }
        for file in [layout::image(vm, *disk, backup), layout::digests(vm, *disk, backup)] {
            crashsafe::remove_file_if_there(fs, &repository.at(file))?;
        }
        crashsafe::sync_dir(fs, &dir)?;
        crashsafe::remove_dir_if_empty(fs, &dir)?;
    }
    Ok(())
}
