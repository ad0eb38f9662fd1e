//! What became of a file: its VM's restore points opened one after another, newest first, each for one look.
//!
//! What lives here: which points, in what order, and what is folded. What does not: how a point is opened (`mounts::look`).
//! Invariant: a digest was read from the point it is told of. A point that cannot be read is told with its reason and never
//! taken for one without the file.

use super::{App, Caller, vms};
use crate::fault::{OrProblem, Result, internal, invalid};
use crate::maintenance::Use;
use crate::mounts::{Reader, fault, look::Looker, pick_volume, words};
use sendense_api::{FileHistory, FileVersion, HistoryPoint, HistoryQuery, Role, VersionState, encode_path};
use sendense_catalog as catalog;
use sendense_guestfs::meta::{FileType, Meta};
use sendense_guestfs::{Error, GuestPath, Volume, VolumeId};
use sendense_types::{BackupId, BackupStatus, DiskNumber, Problem, ProblemCode, Timestamp, VmContextId};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// After this time no further point is opened, and the answer says where to go on.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long one point may take. With [`ANSWER_TIME_MAX`] it stays below the two minutes in which a call must be answered.
const POINT_TIME_MAX: Duration = Duration::from_secs(45);
/// How long of that its content is read; at the speed of a slow disk (100 MB/s) that is more than [`DIGEST_BYTES_MAX`].
const DIGEST_TIME_MAX: Duration = Duration::from_secs(15);
/// The largest file that is read for its digest: histories are asked of configurations and documents, not of databases.
const DIGEST_BYTES_MAX: u64 = 1 << 30;
/// The most points of a VM that are looked through: ten years of three a day.
const POINTS_MAX: u64 = 10_000;

impl App {
    /// A file over the points of its machine.
    pub async fn file_history(
        &self,
        caller: &Caller,
        vm: &str,
        path: GuestPath,
        query: &HistoryQuery,
    ) -> Result<FileHistory> {
        caller.require(Role::Operator)?;
        let vm = vms::find(&self.core, vm).await?;
        let (disk_id, points) = self.points_of(&vm.vm_context_id, vm.vm_name.as_str(), query.disk_id).await?;
        let volume = query.volume.as_deref().map(VolumeId::parse).transpose();
        let volume = volume.map_err(|error| fault::of_guestfs(&error))?;
        let total = points.len() as u64;
        let looker = self.core.mounts.begin_looking()?;
        let bytes = path.to_bytes();
        tracing::info!(vm = %vm.vm_context_id, disk_id = disk_id.0, path = %bytes.escape_ascii(), points = total,
            by = %caller.identity, "a file's history is read");
        let begun = Instant::now();
        let (mut versions, mut next) = (Vec::new(), query.offset.min(total));
        let skip = usize::try_from(next).unwrap_or(usize::MAX);
        for point in points.iter().skip(skip).take(query.limit.get() as usize) {
            if begun.elapsed() > ANSWER_TIME_MAX {
                break;
            }
            let is_first = versions.is_empty();
            let seen = match self.look(&looker, point, disk_id, volume.clone(), path.clone()).await {
                Ok(seen) => seen,
                // Nothing can be opened at all, or the caller must say more.
                Err(problem) if problem.code == ProblemCode::Internal => return Err(problem),
                Err(problem) if is_first && problem.code == ProblemCode::InvalidInput => return Err(problem),
                Err(problem) => unreadable(&problem),
            };
            let point = HistoryPoint { backup_id: point.backup_id.clone(), created_at: point.created_at };
            FileVersion::fold(&mut versions, FileVersion { points: vec![point], ..seen });
            next += 1;
        }
        Ok(FileHistory {
            vm_context_id: vm.vm_context_id,
            vm_name: vm.vm_name.into(),
            disk_id,
            path: String::from_utf8_lossy(&bytes).into_owned(),
            path_encoded: encode_path(&bytes),
            versions,
            total,
            next_offset: (next < total).then_some(next),
        })
    }

    /// The disk that is meant, and the points that hold it, newest first.
    async fn points_of(
        &self,
        vm: &VmContextId,
        name: &str,
        asked: Option<DiskNumber>,
    ) -> Result<(DiskNumber, Vec<catalog::Backup>)> {
        let filter = catalog::BackupFilter {
            vm_context_id: Some(vm.clone()),
            status: Some(BackupStatus::Completed),
            ..catalog::BackupFilter::default()
        };
        let mut rows: Vec<catalog::Backup> = Vec::new();
        while (rows.len() as u64) < POINTS_MAX {
            let page = catalog::Page { limit: u64::from(sendense_api::LIMIT_MAX), offset: rows.len() as u64 };
            let (more, total) = self.core.catalog.backups().list(&filter, page).await.or_problem()?;
            let is_last = more.is_empty();
            rows.extend(more);
            if is_last || rows.len() as u64 >= total {
                break;
            }
        }
        let disks: BTreeSet<DiskNumber> = rows.iter().flat_map(|row| &row.disks).map(|disk| disk.disk_id).collect();
        let list = || disks.iter().map(DiskNumber::to_string).collect::<Vec<_>>().join(", ");
        let disk_id = match (asked, disks.len()) {
            (_, 0) => {
                let details = format!("{name} has no point that can be restored");
                return Err(Problem::new(ProblemCode::BackupNotFound, "the VM has no backup", details));
            }
            (Some(number), _) if disks.contains(&number) => number,
            (Some(number), _) => {
                let details = format!("the points of {name} hold disks {}, not {number}", list());
                return Err(Problem::new(ProblemCode::DiskNotFound, "disk not found", details));
            }
            (None, 1) => disks.iter().copied().next().unwrap_or(DiskNumber(0)),
            (None, _) => {
                return Err(invalid(format!("disk_id is required: the points of {name} hold disks {}", list())));
            }
        };
        rows.retain(|row| row.disks.iter().any(|disk| disk.disk_id == disk_id));
        Ok((disk_id, newest_first(rows)))
    }

    async fn look(
        &self,
        looker: &Looker,
        point: &catalog::Backup,
        disk_id: DiskNumber,
        volume: Option<VolumeId>,
        path: GuestPath,
    ) -> Result<FileVersion> {
        let repository = self.core.repositories.by_id(&self.core, &point.repository_id, Use::Read).await?;
        let (vm, backup) = (point.vm_context_id.clone(), point.backup_id.clone());
        let detach = move || repository.detach_disk(&vm, &backup, disk_id, "a file's history").or_problem();
        looker.look(POINT_TIME_MAX, detach, move |reader, volumes| seen(reader, volumes, volume.as_ref(), &path)).await
    }
}

/// By time, but never a point before one that stands on it, whatever the clocks said.
fn newest_first(rows: Vec<catalog::Backup>) -> Vec<catalog::Backup> {
    let links: Vec<_> =
        rows.iter().map(|row| (row.backup_id.clone(), row.parent_backup_id.clone(), row.created_at)).collect();
    let mut rows: HashMap<BackupId, catalog::Backup> =
        rows.into_iter().map(|row| (row.backup_id.clone(), row)).collect();
    order(links).iter().filter_map(|id| rows.remove(id)).collect()
}

fn order(mut points: Vec<(BackupId, Option<BackupId>, Timestamp)>) -> Vec<BackupId> {
    points.sort_by(|one, other| (one.2, &one.0).cmp(&(other.2, &other.0)));
    let parents: HashMap<&BackupId, Option<&BackupId>> =
        points.iter().map(|(id, parent, _)| (id, parent.as_ref())).collect();
    let (mut placed, mut oldest_first) = (BTreeSet::new(), Vec::with_capacity(points.len()));
    for (id, _, _) in &points {
        // Up to the nearest ancestor that has its place. Each point is placed once, so a ring of parents ends too.
        let mut line = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next
            && parents.contains_key(id)
            && placed.insert(id)
        {
            line.push(id.clone());
            next = parents.get(id).copied().flatten();
        }
        oldest_first.extend(line.into_iter().rev());
    }
    oldest_first.reverse();
    oldest_first
}

fn unreadable(problem: &Problem) -> FileVersion {
    let reason = match problem.details.is_empty() {
        true => problem.message.clone(),
        false => format!("{}: {}", problem.message, problem.details),
    };
    FileVersion { reason: Some(reason), ..FileVersion::nothing(VersionState::Unreadable) }
}

/// What a point holds under the path.
fn seen(reader: &dyn Reader, volumes: &[Volume], asked: Option<&VolumeId>, path: &GuestPath) -> Result<FileVersion> {
    let id = pick_volume(volumes, None, asked.map(VolumeId::as_str))?;
    let volume = volumes.iter().find(|volume| volume.id == id);
    let volume = volume.ok_or_else(|| internal("a volume that was chosen is gone", id.to_string()))?;
    let version = file_in(reader, &id, path).map_err(|error| fault::of_guestfs(&error))?;
    let consistency = volume.consistency.map(words::consistency);
    Ok(FileVersion { volume: Some(id.to_string()), consistency, ..version })
}

fn file_in(reader: &dyn Reader, volume: &VolumeId, path: &GuestPath) -> sendense_guestfs::Result<FileVersion> {
    let own = match reader.stat(volume, path) {
        Ok(meta) => meta,
        Err(Error::NotFound | Error::NotDirectory) => return Ok(FileVersion::nothing(VersionState::Absent)),
        Err(error) => return Err(error),
    };
    let here = |meta: &Meta, target: Option<&[u8]>| FileVersion {
        file: Some(words::file(path, meta, target)),
        ..FileVersion::nothing(VersionState::Present)
    };
    if own.file_type != FileType::Symlink {
        return with_digest(reader, volume, path, &own, here(&own, None));
    }
    let target = reader.readlink(volume, path)?;
    let resolved = match reader.resolve(volume, path) {
        Ok(resolved) => resolved,
        Err(error @ (Error::WorkerDied(_) | Error::Io(_) | Error::Corrupt(_))) => return Err(error),
        // It leads nowhere: then it is what there is.
        Err(_) => return Ok(here(&own, Some(&target))),
    };
    let meta = reader.stat(volume, &resolved)?;
    let version =
        FileVersion { resolved_path_encoded: Some(encode_path(&resolved.to_bytes())), ..here(&meta, Some(&target)) };
    with_digest(reader, volume, &resolved, &meta, version)
}

/// Reads a file's content, unless it is too long.
fn with_digest(
    reader: &dyn Reader,
    volume: &VolumeId,
    path: &GuestPath,
    meta: &Meta,
    version: FileVersion,
) -> sendense_guestfs::Result<FileVersion> {
    if meta.file_type != FileType::File {
        return Ok(version);
    }
    let missing = |why: String| Ok(FileVersion { sha256_missing: Some(why), ..version.clone() });
    if meta.size_bytes > DIGEST_BYTES_MAX {
        return missing(format!("it is larger than {} MiB", DIGEST_BYTES_MAX >> 20));
    }
    let until = Instant::now() + DIGEST_TIME_MAX;
    let mut digest = Sha256::new();
    let mut read = || -> sendense_guestfs::Result<bool> {
        let mut stream = reader.read(volume, path, 0..meta.size_bytes)?;
        while let Some(piece) = stream.next_piece()? {
            if Instant::now() > until {
                return Ok(false);
            }
            digest.update(&piece);
        }
        Ok(true)
    };
    match read() {
        Ok(true) => Ok(FileVersion { sha256: Some(hex::encode(digest.finalize())), ..version }),
        Ok(false) => missing(format!("reading it takes longer than {} s", DIGEST_TIME_MAX.as_secs())),
        // Of this file only: what is known of it is told all the same.
        Err(Error::Unsupported(reason)) => missing(reason.to_string()),
        Err(Error::Corrupt(reason)) => missing(format!("its content is damaged: {reason}")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn id(number: usize) -> BackupId {
        format!("bk-{number}").parse().unwrap()
    }

    fn ordered(points: &[(usize, Option<usize>, i64)]) -> Vec<BackupId> {
        let point =
            |(own, parent, at): &(usize, Option<usize>, i64)| (id(*own), parent.map(id), Timestamp::from_micros(*at));
        order(points.iter().map(point).collect())
    }

    #[test]
    fn a_point_comes_after_what_stands_on_it_whatever_the_clocks_said() {
        let points = [(1, None, 100), (2, Some(1), 50), (3, Some(2), 200), (9, None, 60), (4, Some(77), 300)];
        assert_eq!(ordered(&points), [4, 3, 9, 2, 1].map(id));
        // What cannot be, and must end.
        assert_eq!(ordered(&[(1, Some(2), 1), (2, Some(1), 2), (3, Some(3), 3)]).len(), 3);
    }

    proptest! {
        #[test]
        fn each_point_has_one_place(points in prop::collection::vec((any::<u8>(), 0i64..5), 0..40)) {
            let points: Vec<_> = points
                .iter()
                .enumerate()
                .map(|(own, (parent, at))| (own, (own > 0).then(|| usize::from(*parent) % own), *at))
                .collect();
            let found = ordered(&points);
            prop_assert_eq!(found.len(), points.len());
            let place = |own: usize| found.iter().position(|held| *held == id(own));
            for (own, parent, _) in &points {
                prop_assert!(place(*own).is_some());
                if let Some(parent) = parent {
                    prop_assert!(place(*parent) > place(*own));
                }
            }
        }
    }
}
