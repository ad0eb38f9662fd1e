//! Verification: is what lies there what was written?
//!
//! *At rest* reads every file of a point in segments and compares with the digests in its manifest, at disk speed. *Deep*
//! also decodes every block and compares with the `.digests` file, which proves that the image says what the guest had. A disk
//! of which a file is damaged is always looked at deep, so that it is known which blocks are *lost*.
//!
//! Invariant: "damaged" is said only of bytes that were read, and of files that are missing from a repository that is there, at the
//! end too. What could not be read or opened is told as unreadable, after [`TRIES`] tries, and proves nothing.

mod deep;
mod rest;
mod work;

pub(crate) use deep::Asked;
pub(crate) use rest::{READ_BYTES, clusters as cluster_digests, digest as segment_digest};
pub(crate) use work::{Pace, each, read};

use crate::digests::Layer;
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::lock::Operation;
use crate::manifest::{Disk, Manifest};
use crate::repository::Repository;
use parking_lot::Mutex;
use sendense_block::{BLOCK_BYTES, ByteOffset, Cancel, Extent, ExtentSet, ReadAt};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a read is tried before the range is told as unreadable.
pub const TRIES: u32 = 3;
/// The most reads in flight: what keeps an NVMe device busy; more only costs memory (1 MiB each).
const THREADS_MAX: usize = 16;

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether blocks are decoded too.
    pub depth: Depth,
    /// Whether the points below it are checked too.
    pub scope: Scope,
    /// Reads in flight, 1 to 16.
    pub threads: usize,
    /// The most bytes to read or decode in a second; `None` for as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Who does it, for messages to those who meet it.
    pub who: String,
}

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The files, against the manifest.
    AtRest,
    /// Also every block, against its digest.
    Deep,
}

/// Whose files are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The point's own.
    Point,
    /// Also those of every point that it builds on: all that a restore of it reads.
    Chain,
}

/// Told of the work as it is done. Shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes to read.
    pub total_bytes: AtomicU64,
    /// Bytes read.
    pub done_bytes: AtomicU64,
}

/// Something that is not as it was written, or could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the repository.
    pub file: PathBuf,
    /// The segment of the file, where the damage is in one.
    pub segment: Option<u64>,
    /// The bytes of the file (or, in a deep verification, of the disk) concerned, where they are known.
    pub range: Option<Extent>,
    /// What is wrong, as a sentence.
    pub what: String,
}

/// Bytes, and how long they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// How many bytes.
    pub bytes: u64,
    /// How long they took.
    pub took: Duration,
}

impl Work {
    /// Bytes per second; `None` for none.
    pub fn bytes_per_second(self) -> Option<u64> {
        let took_us = self.took.as_micros().max(1);
        (self.bytes > 0).then(|| u64::try_from(u128::from(self.bytes) * 1_000_000 / took_us).unwrap_or(u64::MAX))
    }
}

/// What a verification found of one point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointReport {
    /// Its files, read.
    pub read: Work,
    /// Its blocks, decoded; none at rest.
    pub decoded: Work,
    /// How long it took until all of its disks were open and their first blocks read, with all that they build on: what whoever
    /// restores or mounts it waits for at least. `None` where one could not be opened.
    pub opened: Option<Duration>,
    /// What is not as it was written, in a sentence; `None` where all is.
    pub damage: Option<String>,
    /// True when a part of it could not be read: then it is not known to be sound.
    pub is_unreadable: bool,
    /// By damaged disk the blocks that the damage has cost, as bytes of the disk; there may be none.
    pub lost: BTreeMap<DiskNumber, ExtentSet>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Points whose files were looked at.
    pub checked_points: usize,
    /// What was found of each of them.
    pub points: BTreeMap<BackupId, PointReport>,
    /// Bytes that were read and compared.
    pub checked_bytes: u64,
    /// What is not as it was written.
    pub damaged: Vec<Finding>,
    /// What could not be read; proves nothing.
    pub unreadable: Vec<Finding>,
}

impl Report {
    /// True when everything was read and is as it was written.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.unreadable.is_empty()
    }

    /// An error of kind [`Kind::Corrupt`] that names the first damage, if there is any.
    pub fn error(&self) -> Option<Error> {
        let finding = self.damaged.first()?;
        Some(Error::corrupt(&finding.file, finding.segment, finding.what.clone()))
    }
}

impl Report {
    fn add(&mut self, backup_id: BackupId, point: PointReport, found: Self) {
        self.checked_points += 1;
        self.checked_bytes += found.checked_bytes;
        self.points.insert(backup_id, point);
        self.damaged.extend(found.damaged);
        self.damaged.truncate(FINDINGS_MAX);
        self.unreadable.extend(found.unreadable);
        self.unreadable.truncate(FINDINGS_MAX);
    }
}

/// The most findings that a report lists: enough to see the pattern; a file that is all wrong has one per segment.
const FINDINGS_MAX: usize = 1000;

/// What the threads of a verification share.
struct Check<'a> {
    progress: &'a Progress,
    cancel: &'a Cancel,
    pace: &'a Pace,
    report: Mutex<Report>,
    decoded_bytes: AtomicU64,
    damages: AtomicU64,
    lost: Mutex<ExtentSet>,
}

impl<'a> Check<'a> {
    fn new(progress: &'a Progress, cancel: &'a Cancel, pace: &'a Pace) -> Self {
        Self {
            progress,
            cancel,
            pace,
            report: Mutex::default(),
            decoded_bytes: AtomicU64::new(0),
            damages: AtomicU64::new(0),
            lost: Mutex::default(),
        }
    }

    fn read(&self, bytes: u64) {
        self.progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report.lock().checked_bytes += bytes;
        self.pace.wait(bytes, self.cancel);
    }

    fn decoded(&self, bytes: u64) {
        self.decoded_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.read(bytes);
    }

    /// Blocks of the disk that is looked at are lost.
    fn lost(&self, blocks: Extent) {
        self.lost.lock().insert(blocks);
    }

    fn damaged(&self, finding: Finding) {
        self.damages.fetch_add(1, Ordering::Relaxed);
        let damaged = &mut self.report.lock().damaged;
        if damaged.len() < FINDINGS_MAX {
            damaged.push(finding);
        }
    }

    fn unreadable(&self, finding: Finding) {
        let unreadable = &mut self.report.lock().unreadable;
        if unreadable.len() < FINDINGS_MAX {
            unreadable.push(finding);
        }
    }
}

impl Repository {
    /// Verifies a point, of all its disks or of one: its own files, or those of all that it builds on too.
    ///
    /// # Errors
    /// [`Kind::Cancelled`], [`Kind::NotFound`], [`Kind::Corrupt`] when a manifest is damaged, [`Kind::Unavailable`] when damage was
    /// found and the repository is away. Damaged files are no error but a finding.
    pub fn verify(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: Option<DiskNumber>,
        options: &Options,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Report> {
        let claimed = match options.scope {
            Scope::Point => BTreeSet::from([backup.clone()]),
            Scope::Chain => self.below(vm, &BTreeSet::from([backup.clone()]))?,
        };
        let _guard = self.lock(Operation::Verify, vm, claimed, &options.who)?;
        // Read under the claim: what stands below a point does not change, but it could have gone in between.
        let manifests = self.manifests_to_verify(vm, backup, disk, options.scope)?;
        if manifests.is_empty() {
            let what = disk.map(|number| format!("disk {number}")).unwrap_or_else(|| "disks".to_owned());
            return Err(Error::new(Kind::NotFound, format!("{backup} has no {what}")));
        }
        let total = manifests.iter().map(|manifest| total_bytes(manifest, options.depth));
        progress.total_bytes.store(total.fold(0, u64::saturating_add), Ordering::Relaxed);
        progress.done_bytes.store(0, Ordering::Relaxed);
        let (mut report, pace) = (Report::default(), Pace::new(options.bytes_per_second));
        for manifest in &manifests {
            let check = Check::new(progress, cancel, &pace);
            // Before its files are read, which would leave them in memory.
            let opened = self.time_to_open(vm, manifest).ok();
            let point = PointReport { opened, ..self.verify_files(vm, manifest, options, &check)? };
            report.add(manifest.backup_id.clone(), point, check.report.into_inner());
        }
        self.check_still_told(vm, &report)?;
        report.damaged.sort_by(|a, b| (&a.file, a.segment).cmp(&(&b.file, b.segment)));
        report.unreadable.sort_by(|a, b| (&a.file, a.segment).cmp(&(&b.file, b.segment)));
        Ok(report)
    }

    fn time_to_open(&self, vm: &VmContextId, manifest: &Manifest) -> Result<Duration> {
        let began = Instant::now();
        let mut block = vec![0; BLOCK_BYTES as usize];
        for disk in &manifest.disks {
            let links = self.chain(vm, &manifest.backup_id, disk.disk_id)?;
            let reader = self.open_links(vm, links, None)?;
            let there = reader.size().0.min(BLOCK_BYTES) as usize;
            reader.read_at(ByteOffset(0), &mut block[..there])?;
        }
        Ok(began.elapsed())
    }

    /// Fails unless the repository and the manifests of the points that were found damaged are where they were: what a folder
    /// lacks that is not the repository's is no damage.
    pub(crate) fn check_still_told(&self, vm: &VmContextId, report: &Report) -> Result<()> {
        let damaged = report.points.iter().filter(|(_, point)| point.damage.is_some());
        for (id, _) in damaged {
            self.check_present()?;
            if let Err(error) = self.manifest(vm, id) {
                let context =
                    format!("{id} was found damaged, and its manifest is not there any more: nothing is said of it");
                return Err(match error.kind {
                    Kind::Corrupt { .. } => error,
                    _ => Error::new(Kind::Unavailable, context).caused_by(error),
                });
            }
        }
        Ok(())
    }

    /// The point's manifest and those below it, each with the disks that are asked for, or that a disk asked for builds on.
    fn manifests_to_verify(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        disk: Option<DiskNumber>,
        scope: Scope,
    ) -> Result<Vec<Manifest>> {
        let mut found: BTreeMap<BackupId, Manifest> = BTreeMap::new();
        let mut wanted: BTreeMap<BackupId, BTreeSet<DiskNumber>> = BTreeMap::new();
        let mut open: Vec<(BackupId, Option<DiskNumber>)> = vec![(backup.clone(), disk)];
        while let Some((id, disk)) = open.pop() {
            if !found.contains_key(&id) {
                found.insert(id.clone(), self.manifest(vm, &id)?);
            }
            let Some(manifest) = found.get(&id) else { continue };
            for of_disk in manifest.disks.iter().filter(|of_disk| disk.is_none_or(|disk| of_disk.disk_id == disk)) {
                let is_new = wanted.entry(id.clone()).or_default().insert(of_disk.disk_id);
                if let (true, Scope::Chain, Some(parent)) = (is_new, scope, &of_disk.parent_backup_id) {
                    open.push((parent.clone(), Some(of_disk.disk_id)));
                }
            }
        }
        Ok(wanted
            .into_iter()
            .filter_map(|(id, disks)| {
                let mut manifest = found.remove(&id)?;
                manifest.disks.retain(|disk| disks.contains(&disk.disk_id));
                Some(manifest)
            })
            .collect())
    }

    fn verify_files(
        &self,
        vm: &VmContextId,
        manifest: &Manifest,
        options: &Options,
        check: &Check<'_>,
    ) -> Result<PointReport> {
        let backup = &manifest.backup_id;
        let mut point = PointReport::default();
        for disk in &manifest.disks {
            let image = layout::image(vm, disk.disk_id, backup);
            let digests = layout::digests(vm, disk.disk_id, backup);
            verify_disk(self, disk, (&image, &digests), options.depth, options.threads, check, &mut point)?;
        }
        let report = check.report.lock();
        point.decoded.bytes = check.decoded_bytes.load(Ordering::Relaxed);
        point.read.bytes = report.checked_bytes.saturating_sub(point.decoded.bytes);
        point.damage = report.damaged.first().map(|finding| finding.what.clone());
        point.is_unreadable = !report.unreadable.is_empty();
        Ok(point)
    }
}

/// A disk of a point that is not published yet. Its files lie in `folder` under their draft names.
pub(crate) struct Unpublished<'a> {
    pub folder: &'a Path,
    pub disk: &'a Disk,
    /// Where only a part of its blocks is looked at: those. Then the segments of the image are not read.
    pub asked: Option<Asked<'a>>,
    pub threads: usize,
    pub pace: &'a Pace,
}

/// Verifies a disk of a point that is not published yet, deep.
pub(crate) fn unpublished(
    repository: &Repository,
    what: &Unpublished<'_>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let image = what.folder.join(layout::draft_image_name(what.disk.disk_id));
    let digests = what.folder.join(layout::draft_digests_name(what.disk.disk_id));
    let (check, threads) = (Check::new(progress, cancel, what.pace), what.threads.clamp(1, THREADS_MAX));
    if what.asked.is_none() {
        rest::image(repository, &check, &image, what.disk, threads)?;
    }
    let listed = rest::digests(repository, &check, &digests, what.disk)?;
    look_at_blocks(repository, what.disk, (&image, &digests), listed, what.asked, threads, &check)?;
    Ok(check.report.into_inner())
}

/// Verifies at rest the files of a point whose manifest does not lie beside them yet.
pub(crate) fn unnamed(
    repository: &Repository,
    manifest: &Manifest,
    threads: usize,
    pace: &Pace,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Report> {
    let check = Check::new(progress, cancel, pace);
    let (depth, scope, who) = (Depth::AtRest, Scope::Point, String::new());
    let options = Options { depth, scope, threads, bytes_per_second: None, who };
    repository.verify_files(&manifest.vm_context_id, manifest, &options, &check)?;
    Ok(check.report.into_inner())
}

/// Verifies the two files of a disk, image and digests, and notes in `point` how long that took and what is lost.
fn verify_disk(
    repository: &Repository,
    disk: &Disk,
    files: (&Path, &Path),
    depth: Depth,
    threads: usize,
    check: &Check<'_>,
    point: &mut PointReport,
) -> Result<()> {
    let threads = threads.clamp(1, THREADS_MAX);
    let (image, digests) = files;
    let began = Instant::now();
    let known = check.damages.load(Ordering::Relaxed);
    rest::image(repository, check, image, disk, threads)?;
    let listed = rest::digests(repository, check, digests, disk)?;
    point.read.took += began.elapsed();
    let lost = if depth == Depth::Deep {
        let began = Instant::now();
        look_at_blocks(repository, disk, files, listed, None, threads, check)?;
        point.decoded.took += began.elapsed();
        std::mem::take(&mut *check.lost.lock())
    } else if check.damages.load(Ordering::Relaxed) > known {
        // Only to learn what is lost: the damage is told by segments, and the figures are those of an honest run.
        let progress = Progress::default();
        let look = Check::new(&progress, check.cancel, check.pace);
        look_at_blocks(repository, disk, files, listed, None, threads, &look)?;
        look.lost.into_inner()
    } else {
        ExtentSet::new()
    };
    if check.damages.load(Ordering::Relaxed) > known {
        point.lost.insert(disk.disk_id, lost);
    }
    Ok(())
}

/// Decodes the blocks of a disk, as far as its digests are there to compare with.
fn look_at_blocks(
    repository: &Repository,
    disk: &Disk,
    (image, digests): (&Path, &Path),
    listed: Option<Layer>,
    asked: Option<Asked<'_>>,
    threads: usize,
    check: &Check<'_>,
) -> Result<()> {
    // A file that is damaged somewhere may still be good for most groups, each of which is checked by itself.
    let open = || repository.open_digest_file_at(digests.to_owned(), disk);
    match listed.map_or_else(open, Ok) {
        Ok(listed) => deep::image(repository, check, image, disk, &listed, asked, threads),
        Err(error) => {
            check.unreadable(Finding {
                file: image.to_owned(),
                segment: None,
                range: None,
                what: "its blocks cannot be compared without sound digests".into(),
            });
            if matches!(error.kind, Kind::Corrupt { .. }) {
                check.lost(deep::whole(disk));
            }
            Ok(())
        }
    }
}

fn total_bytes(manifest: &Manifest, depth: Depth) -> u64 {
    let blocks = |disk: &Disk| disk.image.data_blocks * sendense_block::BLOCK_BYTES;
    let deep = if depth == Depth::Deep { manifest.disks.iter().map(blocks).sum() } else { 0 };
    manifest.file_bytes().saturating_add(deep)
}
