//! What a report means: which points are corrupt, which need what is lost there, and who is told.

use super::lost;
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, of_repo};
use crate::jobs::work::{BackupWork, VerifyWork};
use crate::maintenance::Use;
use sendense_api::{Alert, AlertKind};
use sendense_catalog as catalog;
use sendense_catalog::{Lost, Verification, Verified};
use sendense_repo::verify::{PointReport, Report};
use sendense_repo::{Kind, Repository};
use sendense_types::{
    BackupId, BackupStatus, DiskNumber, RepositoryId, Timestamp, VerifyDepth, VerifyState, VmContextId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Points that an alert names: enough to act on; the catalog has all of them.
const NAMED_MAX: usize = 20;

/// What is known of a machine's points while a report is judged.
struct Case<'a> {
    core: &'a Arc<Core>,
    vm: &'a VmContextId,
    repository_id: &'a RepositoryId,
    repository: Repository,
    /// The corrupt points, this report included.
    damaged: BTreeMap<BackupId, Lost>,
    now: Timestamp,
}

/// Why a point is affected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Need {
    /// The corrupt points in its chain.
    of: BTreeSet<BackupId>,
    /// In a sentence.
    finding: String,
}

/// Keeps what a verification found, tells of what is newly damaged, and returns how the point stands that was asked for: corrupt also
/// where this verification was not deep enough to see the damage that is known; nothing where that was not found out.
/// `generations` are those of before anything was read: what was read of files that a merge has replaced since is not kept.
pub(crate) async fn record(
    core: &Arc<Core>,
    work: &VerifyWork,
    report: &Report,
    generations: &BTreeMap<BackupId, i32>,
) -> Result<Option<VerifyState>> {
    let (vm, repository_id) = (&work.vm_context_id, &work.repository_id);
    let backups = core.catalog.backups();
    let repository = core.repositories.by_id(core, repository_id, Use::GoOn).await?;
    let damaged = backups.damaged(vm, repository_id).await.or_problem()?;
    let before = damaged.clone();
    let mut case = Case { core, vm, repository_id, repository, damaged, now: core.now() };
    let depth = if work.deep { VerifyDepth::Deep } else { VerifyDepth::AtRest };
    let (mut sound, mut corrupt, mut changed, mut news) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (id, point) in &report.points {
        let Some(row) = case.row(id).await? else { continue };
        let Some(found) = judge(point, depth, row.verification.as_ref(), case.now) else { continue };
        let known = case.damaged.remove(id);
        if found.state != VerifyState::Corrupt {
            if known.is_some() {
                changed.push(id.clone());
            }
            sound.push((row, found));
            continue;
        }
        let lost = lost::keep(&point.lost);
        if known.as_ref() != Some(&lost) {
            changed.push(id.clone());
            news.push(id.clone());
        }
        case.damaged.insert(id.clone(), lost.clone());
        let generation = generations.get(id).copied();
        corrupt.push(Verified { backup_id: id.clone(), verification: Some(found), lost, generation });
    }
    // First of all what is certain: who needs it may take its time to be found out, or fail.
    let replaced = backups.set_verified(&corrupt).await.or_problem()?;
    corrupt.retain(|mark| !replaced.contains(&mark.backup_id));
    news.retain(|id| !replaced.contains(id));
    changed.retain(|id| !replaced.contains(id));
    for id in &replaced {
        match before.get(id) {
            Some(lost) => case.damaged.insert(id.clone(), lost.clone()),
            None => case.damaged.remove(id),
        };
    }
    let mut marks = Vec::new();
    let mut needs = BTreeMap::new();
    for (row, found) in sound {
        let need = case.need(&row).await?;
        let found = match &need {
            None => found,
            Some(need) => Verification { state: VerifyState::Affected, finding: Some(need.finding.clone()), ..found },
        };
        needs.extend(need.map(|need| (row.backup_id.clone(), need)));
        let generation = generations.get(&row.backup_id).copied();
        marks.push(Verified { backup_id: row.backup_id, verification: Some(found), lost: Lost::new(), generation });
    }
    for id in case.others_above(&changed, report).await? {
        let Some(row) = case.row(&id).await? else { continue };
        match (case.need(&row).await?, row.verification.as_ref().map(|found| found.state)) {
            (Some(need), _) => {
                marks.push(case.affected(id.clone(), &need));
                needs.insert(id, need);
            }
            (None, Some(VerifyState::Affected)) => {
                marks.push(Verified { backup_id: id, verification: None, lost: Lost::new(), generation: None });
            }
            (None, _) => {}
        }
    }
    let replaced: BTreeSet<BackupId> =
        replaced.into_iter().chain(backups.set_verified(&marks).await.or_problem()?).collect();
    marks.retain(|mark| !replaced.contains(&mark.backup_id));
    for backup_id in &replaced {
        tracing::info!(%backup_id, "the files of a point were written anew since it was verified: nothing is kept of that");
    }
    for id in &news {
        let finding = report.points.get(id).and_then(|point| point.damage.clone()).unwrap_or_default();
        case.alert(&work.vm_name, id, &finding, &needs);
    }
    let stands = corrupt.iter().chain(&marks).find(|mark| mark.backup_id == work.backup_id);
    let stands = stands.and_then(|mark| Some(mark.verification.as_ref()?.state));
    Ok(stands.or_else(|| case.damaged.contains_key(&work.backup_id).then_some(VerifyState::Corrupt)))
}

/// Marks a point that has just been made, where it needs what an older one has lost.
pub(crate) async fn judge_new_point(core: &Arc<Core>, work: &BackupWork) -> Result<()> {
    let (vm, repository_id) = (&work.vm_context_id, &work.repository_id);
    let backups = core.catalog.backups();
    let damaged = backups.damaged(vm, repository_id).await.or_problem()?;
    if damaged.is_empty() {
        return Ok(());
    }
    let repository = core.repositories.by_id(core, repository_id, Use::GoOn).await?;
    let case = Case { core, vm, repository_id, repository, damaged, now: core.now() };
    let Some(row) = case.row(&work.backup_id).await? else { return Ok(()) };
    let Some(need) = case.need(&row).await? else { return Ok(()) };
    tracing::warn!(backup_id = %row.backup_id, vm_id = %vm, finding = %need.finding, "a new point is affected by damage");
    backups.set_verified(&[case.affected(row.backup_id, &need)]).await.or_problem().map(drop)
}

/// What is to be said of a point by its own files; nothing where a part could not be read and nothing that was is wrong, or
/// where damage is known that this verification was not deep enough to see.
fn judge(
    point: &PointReport,
    depth: VerifyDepth,
    before: Option<&Verification>,
    at: Timestamp,
) -> Option<Verification> {
    let seen_deep = before.is_some_and(|before| {
        before.state == VerifyState::Corrupt && before.depth == Some(VerifyDepth::Deep) && depth == VerifyDepth::AtRest
    });
    let state = match (&point.damage, point.is_unreadable || seen_deep) {
        (Some(_), _) => VerifyState::Corrupt,
        (None, true) => return None,
        (None, false) => VerifyState::Sound,
    };
    let figures = if depth == VerifyDepth::Deep { point.decoded } else { point.read };
    Some(Verification {
        state,
        depth: Some(depth),
        at,
        bytes: figures.bytes,
        took_ms: u64::try_from(figures.took.as_millis()).unwrap_or(u64::MAX),
        // Rounded up: no time at all is nobody's figure.
        open_ms: point.opened.map(|took| u64::try_from(took.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)),
        finding: point.damage.clone(),
    })
}

impl Case<'_> {
    /// A point's row; nothing where it has gone meanwhile.
    async fn row(&self, id: &BackupId) -> Result<Option<catalog::Backup>> {
        match self.core.catalog.backups().get(id).await {
            Ok(row) => Ok((row.status == BackupStatus::Completed).then_some(row)),
            Err(error) if error.kind() == catalog::Kind::NotFound => Ok(None),
            Err(error) => Err(error).or_problem(),
        }
    }

    /// The points that build on these and that nobody has looked at now.
    async fn others_above(&self, changed: &[BackupId], report: &Report) -> Result<BTreeSet<BackupId>> {
        let mut above = BTreeSet::new();
        for id in changed {
            above.extend(self.core.catalog.backups().dependents(id).await.or_problem()?);
        }
        above.retain(|id| !report.points.contains_key(id) && !self.damaged.contains_key(id));
        Ok(above)
    }

    /// Why a point is affected; nothing where it is not.
    async fn need(&self, row: &catalog::Backup) -> Result<Option<Need>> {
        if self.damaged.is_empty() {
            return Ok(None);
        }
        let (repository, damaged, vm, id) =
            (self.repository.clone(), self.damaged.clone(), self.vm.clone(), row.backup_id.clone());
        let disks: Vec<DiskNumber> = row.disks.iter().map(|disk| disk.disk_id).collect();
        let found = blocking(move || {
            disks.into_iter().try_fold(None, |found, disk| match found {
                Some(found) => Ok(Some(found)),
                None => need(&repository, &vm, &id, disk, &damaged),
            })
        });
        found.await?.map_err(|error| of_repo(&error))
    }

    fn affected(&self, backup_id: BackupId, need: &Need) -> Verified {
        let verification = Verification {
            state: VerifyState::Affected,
            depth: None,
            at: self.now,
            bytes: 0,
            took_ms: 0,
            open_ms: None,
            finding: Some(need.finding.clone()),
        };
        Verified { backup_id, verification: Some(verification), lost: Lost::new(), generation: None }
    }

    /// Tells of a point that is newly found damaged.
    fn alert(&self, vm_name: &str, id: &BackupId, finding: &str, needs: &BTreeMap<BackupId, Need>) {
        let needed: Vec<&str> =
            needs.iter().filter(|(_, need)| need.of.contains(id)).map(|(id, _)| id.as_str()).collect();
        let needed_by = match needed.len() {
            0 => "no other point needs them".to_owned(),
            count if count > NAMED_MAX => {
                format!("needed by {} and {} more", needed[..NAMED_MAX].join(", "), count - NAMED_MAX)
            }
            _ => format!("needed by {}", needed.join(", ")),
        };
        crate::metrics::point_damaged();
        for (disk_id, lost) in self.damaged.get(id).into_iter().flatten() {
            let message = format!(
                "disk {disk_id} of {id} is damaged ({finding}): {} blocks are lost; {needed_by}; the next backup of the \
                 disk stores them again",
                lost::count(lost)
            );
            tracing::error!(backup_id = %id, vm_id = %self.vm, repository_id = %self.repository_id, disk_id = %disk_id,
                message, "a point is damaged");
            self.core.events.alert(Alert {
                kind: AlertKind::PointDamaged,
                backup_id: id.clone(),
                vm_context_id: self.vm.clone(),
                vm_name: vm_name.to_owned(),
                disk_id: *disk_id,
                message,
                at: self.now,
            });
        }
    }
}

/// Why a disk of a point is affected.
fn need(
    repository: &Repository,
    vm: &VmContextId,
    backup: &BackupId,
    disk: DiskNumber,
    damaged: &BTreeMap<BackupId, Lost>,
) -> sendense_repo::Result<Option<Need>> {
    let lost = lost::of_disk(damaged, disk);
    if lost.is_empty() {
        return Ok(None);
    }
    let of_chain = |links: Vec<sendense_repo::Link>| -> BTreeSet<BackupId> {
        links.into_iter().map(|link| link.backup_id).filter(|id| lost.contains_key(id)).collect()
    };
    let told = repository.chain(vm, backup, disk).map(of_chain).and_then(|of| {
        if of.is_empty() {
            return Ok((of, 0));
        }
        // What cannot be opened cannot be read through, however little of it is needed.
        repository.check_chain(vm, backup, disk)?;
        let blocks = repository.open_digests_knowing(vm, backup, disk, "verification", &lost)?.lost_blocks()?;
        Ok((of, blocks))
    });
    match told {
        Ok((_, 0)) => Ok(None),
        Ok((of, blocks)) => {
            let names: Vec<&str> = of.iter().map(BackupId::as_str).collect();
            let finding = format!("{blocks} blocks of disk {disk} are lost, which it takes from {}", names.join(", "));
            Ok(Some(Need { of, finding }))
        }
        Err(error) => match error.kind {
            // It was deleted meanwhile.
            Kind::NotFound => Ok(None),
            Kind::Corrupt { .. } => {
                let finding =
                    format!("the chain of disk {disk} cannot be read: {}", sendense_block::error::chain(&error));
                Ok(Some(Need { of: lost.into_keys().collect(), finding }))
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_repo::verify::Work;
    use std::time::Duration;

    fn point(damage: Option<&str>, is_unreadable: bool) -> PointReport {
        PointReport {
            read: Work { bytes: 1000, took: Duration::from_millis(10) },
            decoded: Work { bytes: 9000, took: Duration::from_millis(30) },
            opened: Some(Duration::from_micros(1001)),
            damage: damage.map(str::to_owned),
            is_unreadable,
            lost: BTreeMap::new(),
        }
    }

    #[test]
    fn only_bytes_that_were_read_condemn_a_point() {
        use VerifyDepth::{AtRest, Deep};
        use VerifyState::{Affected, Corrupt, Sound};
        let at = Timestamp::from_micros(7);
        let said = |state, depth| {
            let sound = judge(&point(None, false), depth, None, at).unwrap();
            Verification { state, ..sound }
        };
        for (damage, unreadable, depth, before, after) in [
            (None, false, AtRest, None, Some(Sound)),
            (None, true, Deep, None, None),
            (Some("x"), true, AtRest, None, Some(Corrupt)),
            (None, false, Deep, Some(said(Corrupt, Deep)), Some(Sound)),
            (None, false, AtRest, Some(said(Corrupt, AtRest)), Some(Sound)),
            // What only a deep look sees, no other one takes back.
            (None, false, AtRest, Some(said(Corrupt, Deep)), None),
            (None, false, AtRest, Some(said(Affected, Deep)), Some(Sound)),
        ] {
            let found = judge(&point(damage, unreadable), depth, before.as_ref(), at);
            assert_eq!(found.map(|found| found.state), after, "{damage:?} {unreadable} {depth} {before:?}");
        }
        let figures = |depth| judge(&point(None, false), depth, None, at).map(|found| (found.bytes, found.took_ms));
        assert_eq!((figures(AtRest), figures(Deep)), (Some((1000, 10)), Some((9000, 30))));
        assert_eq!(judge(&point(None, false), Deep, None, at).and_then(|found| found.open_ms), Some(2));
    }
}
