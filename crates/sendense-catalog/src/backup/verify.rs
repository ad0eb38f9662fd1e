//! What verifications found: of each point how it stands, and of a corrupt one which blocks are lost.
//!
//! What lives here: keeping that. What does not: which points are to be looked at ([`super::unproved`]), and which of them need what is
//! lost, which only their digests tell. Invariant: the blocks that are lost are kept for exactly the points that are corrupt.

use super::{Backup, Backups};
use crate::entity;
use crate::error::{Error, Result};
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
};
use sendense_types::{
    BackupId, BackupStatus, DiskNumber, RepositoryId, Timestamp, VerifyDepth, VerifyState, VmContextId,
};
use std::collections::{BTreeMap, BTreeSet};

/// The longest finding that is kept, in bytes: a sentence with a path in it. The log of the task has all of them.
const FINDING_BYTES_MAX: usize = 2000;

/// The lost blocks of each disk, as first block and number of blocks, by rising blocks. A disk of which a file is damaged has an
/// entry, also where no block is lost with it.
pub type Lost = BTreeMap<DiskNumber, Vec<(u64, u64)>>;

/// What verifications say of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// How it stands.
    pub state: VerifyState,
    /// How much was looked at; `None` for a point that another one's damage affects and whose own files nobody looked at. To be
    /// kept, `None` says that nobody looked at them now: then all but the state and the finding stays as it was.
    pub depth: Option<VerifyDepth>,
    /// When it was looked at; where nobody did, since when it waits for that.
    pub at: Timestamp,
    /// Bytes that were read, or decoded, and compared.
    pub bytes: u64,
    /// How long they took, in milliseconds.
    pub took_ms: u64,
    /// How long it took to open the point with all that it builds on, in milliseconds; `None` where it was not opened.
    pub open_ms: Option<u64>,
    /// What is wrong.
    pub finding: Option<String>,
}

/// What is to be kept of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which point.
    pub backup_id: BackupId,
    /// What is said of it now; `None` where what was said does not hold any more. A point that was affected is again what its own
    /// files were found to be.
    pub verification: Option<Verification>,
    /// What it has lost; kept for a corrupt point only.
    pub lost: Lost,
    /// Of which files it is said: those that the point had when its [`Backups::generations`] were asked for. `None` where it is
    /// said whatever files it has.
    pub generation: Option<i32>,
}

/// A verification as columns.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    pub(super) state: Option<String>,
    pub(super) depth: Option<String>,
    pub(super) at: Option<Ts>,
    pub(super) bytes: Option<i64>,
    pub(super) took_ms: Option<i64>,
    pub(super) open_ms: Option<i64>,
    pub(super) finding: Option<String>,
    /// When every block was decoded, where this verification did so.
    pub(super) deep_at: Option<Ts>,
}

pub(super) fn columns(found: &Verification) -> Result<Columns> {
    Ok(Columns {
        state: Some(found.state.as_str().to_owned()),
        depth: found.depth.map(|depth| depth.as_str().to_owned()),
        at: Some(found.at.into()),
        bytes: Some(value::store_u64("verify_bytes", found.bytes)?),
        took_ms: Some(value::store_u64("verify_ms", found.took_ms)?),
        open_ms: found.open_ms.map(|ms| value::store_u64("verify_open_ms", ms)).transpose()?,
        finding: found.finding.as_deref().map(|text| value::trim_text(text, FINDING_BYTES_MAX)),
        deep_at: decoded(found).then(|| found.at.into()),
    })
}

/// Whether every block was decoded: what is found corrupt is decoded, too, to know what is lost. As with a look at rest it does not
/// matter what was found, or points that are known to be damaged would be decoded again every day.
fn decoded(found: &Verification) -> bool {
    found.state == VerifyState::Corrupt || found.depth == Some(VerifyDepth::Deep)
}

impl Backups<'_> {
    /// Keeps what is said of points, of all or of none. Points that are gone, or are no points, are passed over. So are those whose
    /// files were written anew since: these are told.
    pub async fn set_verified(&self, found: &[Verified]) -> Result<BTreeSet<BackupId>> {
        self.0
            .write(|tx| async move {
                // In the order of ids, so that two verifications cannot wait for each other.
                let by_id: BTreeMap<&str, &Verified> = found.iter().map(|one| (one.backup_id.as_str(), one)).collect();
                let mut others = BTreeSet::new();
                for one in by_id.values() {
                    if !set_in(&tx, one).await? {
                        others.insert(one.backup_id.clone());
                    }
                }
                Ok(others)
            })
            .await
    }

    /// How often the files of these points were written anew. To be asked for before they are looked at.
    pub async fn generations(&self, ids: &[BackupId]) -> Result<BTreeMap<BackupId, i32>> {
        use entity::backups::{Column, Entity};
        let rows: Vec<(String, i32)> = Entity::find()
            .select_only()
            .column(Column::BackupId)
            .column(Column::Generation)
            .filter(Column::BackupId.is_in(ids.iter().map(BackupId::as_str)))
            .into_tuple()
            .all(self.0.pool())
            .await?;
        rows.iter().map(|(id, generation)| Ok((value::read("backup_id", id)?, *generation))).collect()
    }

    /// The corrupt points of a machine in a repository, with what they have lost.
    pub async fn damaged(&self, vm: &VmContextId, repository: &RepositoryId) -> Result<BTreeMap<BackupId, Lost>> {
        use entity::damage::{Column, Entity};
        let rows = Entity::find()
            .filter(Column::VmContextId.eq(vm.as_str()))
            .filter(Column::RepositoryId.eq(repository.as_str()))
            .all(self.0.pool())
            .await?;
        let mut damaged: BTreeMap<BackupId, Lost> = BTreeMap::new();
        for row in rows {
            let lost = serde_json::from_value(row.lost)
                .map_err(|error| Error::Unreadable { column: "lost", reason: error.to_string() })?;
            let disk = DiskNumber(value::read_u32("disk_id", row.disk_id)?);
            damaged.entry(value::read("backup_id", &row.backup_id)?).or_default().insert(disk, lost);
        }
        Ok(damaged)
    }

    /// A point and all that it builds on, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a point that is not known.
    pub async fn with_all_below(&self, id: &BackupId) -> Result<Vec<Backup>> {
        let point = self.get(id).await?;
        let (vm, repository) = (point.vm_context_id.as_str(), point.repository_id.as_str());
        self.by_ids(&with_ids_below(self.0.pool(), vm, repository, id.as_str()).await?).await
    }
}

/// A point and all that it builds on.
pub(super) async fn with_ids_below(
    db: &impl ConnectionTrait,
    vm: &str,
    repository: &str,
    id: &str,
) -> Result<Vec<String>> {
    use entity::backup_disks::{Column, Entity};
    // One machine's points in one repository: some hundreds of rows, and one statement instead of one for each generation.
    let links: Vec<(String, Option<String>)> = Entity::find()
        .select_only()
        .column(Column::BackupId)
        .column(Column::ParentBackupId)
        .filter(Column::VmContextId.eq(vm))
        .filter(Column::RepositoryId.eq(repository))
        .into_tuple()
        .all(db)
        .await?;
    Ok(reached(&links, id).into_iter().map(str::to_owned).collect())
}

/// A point and all that it builds on, by the links of each disk from a point to the one below it.
fn reached<'a>(links: &'a [(String, Option<String>)], id: &'a str) -> BTreeSet<&'a str> {
    let mut parents = BTreeMap::<&str, Vec<&str>>::new();
    for (child, parent) in links {
        parents.entry(child).or_default().extend(parent.as_deref());
    }
    let mut found = BTreeSet::from([id]);
    let mut open = vec![id];
    while let Some(at) = open.pop() {
        let below = parents.get(at).into_iter().flatten();
        open.extend(below.copied().filter(|parent| found.insert(parent)).collect::<Vec<_>>());
    }
    found
}

/// False where the point has other files than those that were looked at.
async fn set_in(tx: &Tx, found: &Verified) -> Result<bool> {
    use entity::backups::{ActiveModel, Column, Entity};
    let id = found.backup_id.as_str();
    let Some(row) = Entity::find_by_id(id).lock_exclusive().one(&**tx).await? else { return Ok(true) };
    if row.status != BackupStatus::Completed.as_str() {
        return Ok(true);
    }
    if found.generation.is_some_and(|looked_at| looked_at != row.generation) {
        return Ok(false);
    }
    let is = |state: VerifyState| row.verify_state.as_deref() == Some(state.as_str());
    let is_by_another =
        found.verification.as_ref().is_some_and(|said| said.state == VerifyState::Affected && said.depth.is_none());
    if is_by_another && is(VerifyState::Corrupt) {
        // What it has lost itself was found meanwhile, and says more.
        return Ok(true);
    }
    let set = match &found.verification {
        // Nobody looked at its own files for that: when they were looked at, and how, stays as it is.
        Some(said) if is_by_another => {
            let Columns { state, finding, .. } = columns(said)?;
            ActiveModel { verify_state: Set(state), verify_finding: Set(finding), ..Default::default() }
        }
        // It needs nothing any more that is lost, and of its own files is known again what was known before.
        None if is(VerifyState::Affected) => {
            let state = row.verify_depth.is_some().then(|| VerifyState::Sound.as_str().to_owned());
            ActiveModel { verify_state: Set(state), verify_finding: Set(None), ..Default::default() }
        }
        said => {
            let columns = said.as_ref().map(columns).transpose()?.unwrap_or_default();
            ActiveModel {
                verify_state: Set(columns.state),
                verify_depth: Set(columns.depth),
                verified_at: Set(columns.at),
                verify_bytes: Set(columns.bytes),
                verify_ms: Set(columns.took_ms),
                verify_open_ms: Set(columns.open_ms),
                verify_finding: Set(columns.finding),
                // A look at rest leaves the time of a deep one as it is; nothing known any more is nothing decoded.
                deep_verified_at: match said {
                    Some(said) if !decoded(said) => NotSet,
                    _ => Set(columns.deep_at),
                },
                ..Default::default()
            }
        }
    };
    Entity::update_many().set(set).filter(Column::BackupId.eq(id)).exec(&**tx).await?;
    entity::damage::Entity::delete_many().filter(entity::damage::Column::BackupId.eq(id)).exec(&**tx).await?;
    if found.verification.as_ref().is_none_or(|found| found.state != VerifyState::Corrupt) {
        return Ok(true);
    }
    for (disk_id, lost) in &found.lost {
        let lost =
            serde_json::to_value(lost).map_err(|error| Error::Invalid { field: "lost", reason: error.to_string() })?;
        let damage = entity::damage::Model {
            backup_id: id.to_owned(),
            disk_id: value::store_u32("disk_id", disk_id.0)?,
            vm_context_id: row.vm_context_id.clone(),
            repository_id: row.repository_id.clone(),
            lost,
        };
        entity::damage::Entity::insert(damage.into_active_model()).exec_without_returning(&**tx).await?;
    }
    Ok(true)
}
