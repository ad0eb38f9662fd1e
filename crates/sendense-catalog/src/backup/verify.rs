//! What verifications found: of each point how it stands, and of a corrupt one which blocks are lost.
//!
//! What lives here: keeping that, and finding the points whose proof is the oldest. What does not: which points need what is lost,
//! which only their digests tell. Invariant: the blocks that are lost are kept for exactly the points that are corrupt.
//!
//! How long a point is unproved is not told by when it was made, for its bytes may be older: a merge gives it those of another one.
//! `verified_at` and `deep_verified_at` are as old as the look at the oldest of its bytes, and `unproved_since`, which counts where
//! nobody looked, as these bytes themselves ([`super::merge`]). A new point of a machine of which none was ever looked at waits since
//! the others do ([`waits_since`]). So no retention and no merge makes anything look younger than it is.

use super::{Backup, Backups};
use crate::entity;
use crate::error::{Error, Result};
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, Select,
};
use sendense_types::{
    BackupId, BackupStatus, DiskNumber, PolicyId, RepositoryId, Timestamp, VerifyDepth, VerifyState, VmContextId,
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
    /// How much was looked at; `None` for a point that another one's damage affects.
    pub depth: Option<VerifyDepth>,
    /// When that was found.
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
    /// What is said of it now; `None` where what was said does not hold any more.
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

/// By whom points were made.
#[derive(Debug, Clone, Copy)]
pub enum MadeBy<'a> {
    /// Points that were made by one of these policies.
    AnyOf(&'a [PolicyId]),
    /// Points that were made by none of these policies, or by hand.
    NoneOf(&'a [PolicyId]),
}

/// Which points to find.
#[derive(Debug, Clone, Copy)]
pub struct Unproved<'a> {
    /// Where.
    pub repository_id: &'a RepositoryId,
    /// Whose.
    pub made_by: MadeBy<'a>,
    /// What counts as a look: any, or only one at every block.
    pub depth: VerifyDepth,
    /// Looks that are older count for nothing.
    pub before: Timestamp,
    /// A point that nobody ever looked at counts where it waits for that for longer than since this.
    pub waiting_before: Timestamp,
}

/// A machine's points that want to be looked at: how old the oldest of both sorts are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oldest {
    /// The oldest look at a point.
    pub looked_at: Option<Timestamp>,
    /// Since when one waits that nobody ever looked at.
    pub waits_since: Option<Timestamp>,
}

impl Unproved<'_> {
    fn column(&self) -> entity::backups::Column {
        match self.depth {
            VerifyDepth::AtRest => entity::backups::Column::VerifiedAt,
            VerifyDepth::Deep => entity::backups::Column::DeepVerifiedAt,
        }
    }

    /// Whether no point can be meant.
    fn is_none(&self) -> bool {
        matches!(self.made_by, MadeBy::AnyOf([]))
    }

    fn points(&self) -> Select<entity::backups::Entity> {
        use entity::backups::{Column, Entity};
        let points = Entity::find()
            .filter(Column::RepositoryId.eq(self.repository_id.as_str()))
            .filter(Column::Status.eq(BackupStatus::Completed.as_str()));
        match self.made_by {
            MadeBy::AnyOf(policies) => points.filter(Column::PolicyId.is_in(policies.iter().map(PolicyId::as_str))),
            MadeBy::NoneOf([]) => points,
            MadeBy::NoneOf(policies) => {
                let others = Column::PolicyId.is_not_in(policies.iter().map(PolicyId::as_str));
                points.filter(Column::PolicyId.is_null().or(others))
            }
        }
    }

    /// Those that were never looked at.
    fn never(&self) -> Select<entity::backups::Entity> {
        let waits = entity::backups::Column::UnprovedSince.lt(Ts::from(self.waiting_before));
        self.points().filter(self.column().is_null()).filter(waits)
    }

    /// Those that were looked at too long ago.
    fn long_ago(&self) -> Select<entity::backups::Entity> {
        self.points().filter(self.column().lt(Ts::from(self.before)))
    }
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

    /// Points that nobody has looked at for so long, those whose look, or else whose waiting for one, is the oldest first; with the
    /// time of that.
    pub async fn longest_unproved(&self, which: &Unproved<'_>, limit: u64) -> Result<Vec<(Backup, Timestamp)>> {
        use entity::backups::{Column, Model};
        if which.is_none() {
            return Ok(Vec::new());
        }
        let column = which.column();
        let look = |row: &Model| match which.depth {
            VerifyDepth::AtRest => row.verified_at,
            VerifyDepth::Deep => row.deep_verified_at,
        };
        let never = which.never().order_by_asc(Column::UnprovedSince).order_by_asc(Column::CompletedAt);
        let never = never.limit(limit).all(self.0.pool());
        let long_ago = which.long_ago().order_by_asc(column).limit(limit).all(self.0.pool());
        let (mut rows, long_ago) = tokio::try_join!(never, long_ago)?;
        rows.extend(long_ago);
        let since = |row: &Model| look(row).or(row.unproved_since).unwrap_or(row.created_at);
        rows.sort_by(|a, b| (since(a), a.completed_at, &a.backup_id).cmp(&(since(b), b.completed_at, &b.backup_id)));
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let told = rows.into_iter().map(|row| {
            let since = since(&row).into();
            Ok((super::row::read(row, Vec::new())?, since))
        });
        told.collect()
    }

    /// The machines that have such points.
    pub async fn unproved_machines(&self, which: &Unproved<'_>) -> Result<BTreeMap<VmContextId, Oldest>> {
        use entity::backups::Column;
        if which.is_none() {
            return Ok(BTreeMap::new());
        }
        let oldest = async |points: Select<entity::backups::Entity>, column: Column| {
            let points = points.select_only().column(Column::VmContextId).column_as(column.min(), "since");
            points.group_by(Column::VmContextId).into_tuple::<(String, Option<Ts>)>().all(self.0.pool()).await
        };
        let never = oldest(which.never(), Column::UnprovedSince);
        let (never, long_ago) = tokio::try_join!(never, oldest(which.long_ago(), which.column()))?;
        let mut machines = BTreeMap::<VmContextId, Oldest>::new();
        for (vm, since) in &never {
            machines.entry(value::read("vm_context_id", vm)?).or_default().waits_since = since.map(Into::into);
        }
        for (vm, since) in &long_ago {
            machines.entry(value::read("vm_context_id", vm)?).or_default().looked_at = since.map(Into::into);
        }
        Ok(machines)
    }

    /// A point and all that it builds on, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a point that is not known.
    pub async fn with_all_below(&self, id: &BackupId) -> Result<Vec<Backup>> {
        use entity::backup_disks::{Column, Entity};
        let point = self.get(id).await?;
        // One machine's points in one repository: some hundreds of rows, and one statement instead of one for each generation.
        let links: Vec<(String, Option<String>)> = Entity::find()
            .select_only()
            .column(Column::BackupId)
            .column(Column::ParentBackupId)
            .filter(Column::VmContextId.eq(point.vm_context_id.as_str()))
            .filter(Column::RepositoryId.eq(point.repository_id.as_str()))
            .into_tuple()
            .all(self.0.pool())
            .await?;
        let ids: Vec<String> = reached(&links, id.as_str()).into_iter().map(str::to_owned).collect();
        self.by_ids(&ids).await
    }
}

/// A point and all that it builds on, by the links of each disk from a point to the one below it.
pub(super) fn reached<'a>(links: &'a [(String, Option<String>)], id: &'a str) -> BTreeSet<&'a str> {
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

/// Since when a point waits for a look that is made now. Where nobody ever looked at one of the machine's points, it takes over since
/// when these do: they may all go before the first of them is due.
pub(super) async fn waits_since(tx: &Tx, row: &entity::backups::Model, now: Timestamp) -> Result<Ts> {
    use entity::backups::{Column, Entity};
    let others: Option<(Option<Ts>, Option<Ts>)> = Entity::find()
        .select_only()
        .column_as(Column::VerifiedAt.max(), "looked_at")
        .column_as(Column::UnprovedSince.min(), "waits_since")
        .filter(Column::VmContextId.eq(&row.vm_context_id))
        .filter(Column::RepositoryId.eq(&row.repository_id))
        .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
        .into_tuple()
        .one(&**tx)
        .await?;
    match others {
        Some((None, Some(since))) => Ok(std::cmp::min(since, now.into())),
        _ => Ok(now.into()),
    }
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
    let columns = found.verification.as_ref().map(columns).transpose()?.unwrap_or_default();
    let set = ActiveModel {
        verify_state: Set(columns.state),
        verify_depth: Set(columns.depth),
        verified_at: Set(columns.at),
        verify_bytes: Set(columns.bytes),
        verify_ms: Set(columns.took_ms),
        verify_open_ms: Set(columns.open_ms),
        verify_finding: Set(columns.finding),
        // A look at rest leaves the time of a deep one as it is; nothing known any more is nothing decoded.
        deep_verified_at: match &found.verification {
            Some(found) if !decoded(found) => NotSet,
            _ => Set(columns.deep_at),
        },
        ..Default::default()
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
