//! Steps 1 and 2: the new files of each disk are made, made durable, and read back from the disk.
//!
//! All of it comes after everything else that wants the processor or the disk, if that was asked, and no faster than was asked.
//!
//! Invariant: what is sealed with a new digest was read from the disk after it was written, and its blocks were decoded and compared,
//! but for those in clusters that were compared with a copied image's, whose segment was what its manifest says. Only segments that a
//! clone left as they were are not read: they keep the digests that they had.

use super::Options;
use super::blocks::{Move, Stack};
use super::copying::Reserved;
use super::patch::{self, Base, Means, Way};
use super::plan::{Aim, MergePlan, Pair};
use crate::capacity::Reservation;
use crate::chain::Link;
use crate::crashsafe;
use crate::draft::{DiskDraft, DiskSpec, SealedDisk};
use crate::error::{Error, Kind, Result};
use crate::humble::humbly;
use crate::layout;
use crate::manifest::{HexDigest, Manifest};
use crate::repository::Repository;
use crate::verify::{self, Pace, Progress, Unpublished};
use sendense_block::{BLOCK_BYTES, Cancel, Extent, ReadAt};
use sendense_types::DiskNumber;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The name of a file that tells whether the file system can share room between files.
const PROBE_FILE: &str = "probe";

/// The work before the intent.
pub(super) struct Preparing<'a> {
    pub repository: &'a Repository,
    pub plan: &'a MergePlan,
    pub pair: &'a Pair,
    pub options: &'a Options,
    pub progress: &'a Progress,
    pub cancel: &'a Cancel,
}

impl Preparing<'_> {
    /// Makes all new files, in the merge's folder; the room that they take stays promised meanwhile.
    pub(super) fn run(&self) -> Result<(BTreeMap<DiskNumber, SealedDisk>, Arc<Reservation>)> {
        if self.options.humble { humbly(|| self.prepare()) } else { self.prepare() }
    }

    fn prepare(&self) -> Result<(BTreeMap<DiskNumber, SealedDisk>, Arc<Reservation>)> {
        let (shares, reservation) = self.reserve()?;
        let mut total = 0_u64;
        for disk in &self.plan.disks {
            let links = self.links(*disk)?;
            let held = links.iter().map(|link| link.disk.image.data_blocks).fold(0, u64::saturating_add);
            let capacity = links.first().map_or(0, |link| link.disk.capacity_bytes.div_ceil(BLOCK_BYTES));
            total = total.saturating_add(held.min(capacity).saturating_mul(2 * BLOCK_BYTES));
        }
        // Moved once and checked once, beside the files themselves. An upper bound: what a newer point wrote anew is in several.
        self.progress.total_bytes.store(total.saturating_add(self.plan.needed_bytes), Ordering::Relaxed);
        let pace = Pace::new(self.options.bytes_per_second);
        let mut sealed = BTreeMap::new();
        for number in &self.plan.disks {
            let disk = self.disk(*number, shares, &reservation, &pace);
            sealed.insert(*number, disk.map_err(|error| error.within(format!("disk {number}")))?);
        }
        crashsafe::sync_dir(self.repository.fs(), &self.dir())?;
        Ok((sealed, reservation))
    }

    fn dir(&self) -> PathBuf {
        self.repository.at(self.folder())
    }

    fn folder(&self) -> PathBuf {
        layout::merge_dir(&self.plan.vm_context_id, &self.plan.successor)
    }

    /// Promises the room before the first byte: all that may be written, or less by the images that clones share. True where room
    /// is shared.
    fn reserve(&self) -> Result<(bool, Arc<Reservation>)> {
        let mut shared_bytes = 0_u64;
        if self.options.way != Way::Rewrite {
            for disk in &self.plan.disks {
                let (stack, spec) = self.stack(*disk)?;
                shared_bytes = shared_bytes.saturating_add(self.largest_bytes(&stack, &spec));
            }
        }
        let shares = shared_bytes > 0 && self.shares()?;
        let needed_bytes = self.plan.needed_bytes.saturating_sub(if shares { shared_bytes } else { 0 });
        Ok((shares, Arc::new(self.repository.capacity().reserve(needed_bytes)?)))
    }

    /// Whether a file can share room with one of the images.
    fn shares(&self) -> Result<bool> {
        let number = self.plan.disks.first().ok_or_else(|| Error::invalid("a merge of no disks"))?;
        let links = self.links(*number)?;
        let link = links.last().ok_or_else(|| Error::invalid("a chain without a point"))?;
        let image = layout::image(&self.plan.vm_context_id, *number, &link.backup_id);
        let image = self.repository.open_file(&image, link.disk.image.file_bytes)?;
        let probe = self.dir().join(PROBE_FILE);
        let _turn = self.repository.ownership()?.hold()?;
        let (_, is_clone) = crashsafe::create_clone(self.repository.fs(), &probe, &image)?;
        crashsafe::remove_file_if_there(self.repository.fs(), &probe)?;
        Ok(is_clone)
    }

    fn disk(
        &self,
        number: DiskNumber,
        shares: bool,
        reservation: &Arc<Reservation>,
        pace: &Pace,
    ) -> Result<SealedDisk> {
        let (repository, threads) = (self.repository, self.options.threads);
        let means = Means { repository, threads, progress: self.progress, pace, cancel: self.cancel };
        let (stack, spec) = self.stack(number)?;
        let mut base = Base::choose(means, &stack, &spec, self.options.way)?;
        let (id, dir) = (self.plan.successor.clone(), self.dir());
        let draft = match &mut base {
            Some(base) => {
                let reserved = Reserved { reservation, for_copy: !shares };
                let path = self.folder().join(layout::draft_image_name(number));
                base.begin(means, &stack, spec, reserved, &path, |base, over, spec| {
                    DiskDraft::begin_over(repository.clone(), id, dir, reservation.clone(), spec, base, over)
                })?
            }
            None => {
                if shares {
                    // What a clone would have shared is written after all.
                    reservation.grow(self.largest_bytes(&stack, &spec))?;
                }
                DiskDraft::begin_in(repository.clone(), id, dir, reservation.clone(), spec, None)?
            }
        };
        let number_of_base = base.as_ref().map(|base| base.number);
        let moved = Move { stack: &stack, base: number_of_base, sink: &draft, progress: self.progress, pace };
        moved.run(threads, self.cancel)?;
        let mut sealed = draft.seal()?;
        self.read_back(means, &mut sealed, base.as_ref())?;
        Ok(sealed)
    }

    /// The images of a disk, and the disk that is made of them.
    fn stack(&self, number: DiskNumber) -> Result<(Stack, DiskSpec)> {
        let stack = Stack::open(self.repository, &self.plan.vm_context_id, self.links(number)?)?;
        let newest = &stack.newest().link.disk;
        let (binding, capacity) = (newest.binding.clone(), newest.capacity());
        let spec = DiskSpec { number, binding, capacity, parent: self.pair.parent(number)? };
        Ok((stack, spec))
    }

    /// What a clone would share, of the image that a new one would begin as.
    fn largest_bytes(&self, stack: &Stack, spec: &DiskSpec) -> u64 {
        let largest = patch::largest(stack, spec, self.options.way);
        largest.map_or(0, |(_, layer)| layer.link.disk.image.file_bytes)
    }

    /// Reads the new files back, from the disk: what was made durable is dropped from memory first.
    fn read_back(&self, means: Means<'_>, sealed: &mut SealedDisk, base: Option<&Base<'_>>) -> Result<()> {
        let (folder, number) = (self.folder(), sealed.spec.number);
        let open = |name: String, bytes: u64| {
            let file = self.repository.open_file(&folder.join(name), bytes)?;
            file.forget(Extent::whole(file.size()));
            Ok::<_, Error>(file)
        };
        let image = open(layout::draft_image_name(number), sealed.image.file_bytes)?;
        open(layout::draft_digests_name(number), sealed.digests.file_bytes)?;
        let mut changed = None;
        if let Some(base) = base {
            let (segments, clusters) = patch::segments(means, base, &image)?;
            sealed.image.segments = segments.into_iter().map(HexDigest).collect();
            changed = Some(clusters);
        }
        let manifest = self.pair.merged(&BTreeMap::from([(number, sealed.clone())]));
        let disk = manifest.disk(number).ok_or_else(|| Error::invalid("no such disk"))?;
        let is_new = changed.as_ref().map(|changed| |bytes: Extent| changed.meets(bytes));
        let what = Unpublished {
            folder: &folder,
            disk,
            asked: is_new.as_ref().map(|asked| asked as verify::Asked<'_>),
            threads: means.threads,
            pace: means.pace,
        };
        let report = verify::unpublished(self.repository, &what, self.progress, self.cancel)?;
        match (report.error(), report.unreadable.first()) {
            (Some(error), _) => return Err(error),
            (None, Some(finding)) => {
                return Err(Error::new(Kind::Io, format!("read the new image back: {}", finding.what)));
            }
            (None, None) => {}
        }
        if base.is_some() {
            self.check_bookkeeping(disk)?;
        }
        Ok(())
    }

    /// Counts what points to each cluster of an image that began as a copy.
    fn check_bookkeeping(&self, disk: &crate::manifest::Disk) -> Result<()> {
        let path = self.folder().join(layout::draft_image_name(disk.disk_id));
        let found = sendense_qcow2::check::check(&self.repository.open_image_at(&path, disk)?)?;
        match found.is_clean() {
            true => Ok(()),
            false => Err(Error::corrupt(&path, None, format!("its refcounts are wrong: {:?}", found.findings.first()))),
        }
    }

    /// The images whose blocks a disk's new one gets, the successor's first.
    fn links(&self, number: DiskNumber) -> Result<Vec<Link>> {
        let vm = &self.plan.vm_context_id;
        if self.pair.aim == Aim::Full {
            let mut links = self.repository.chain(vm, &self.pair.successor.backup_id, number)?;
            for link in &mut links {
                // As a whole: a chain is followed without the segments' digests.
                let whole = self.repository.manifest(vm, &link.backup_id)?.disk(number).cloned();
                link.disk = whole.unwrap_or_else(|| link.disk.clone());
            }
            return Ok(links);
        }
        let link = |point: &Manifest| {
            let disk = point.disk(number).cloned();
            let disk =
                disk.ok_or_else(|| Error::new(Kind::NotFound, format!("{} has no disk {number}", point.backup_id)))?;
            Ok::<_, Error>(Link { backup_id: point.backup_id.clone(), disk })
        };
        Ok(vec![link(&self.pair.successor)?, link(&self.pair.going)?])
    }
}
