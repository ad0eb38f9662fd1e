//! Chains: which points of a disk build on each other, and which is the newest.
//!
//! What lives here: reading a chain, the tokens in use, and the one function that sets a chain's row. What does not: files.
//! The order within a chain comes from parent links. Only between points that no link connects (two fulls) does the time
//! decide. Invariant: a chain's row names completed points, and its full is the root of its latest.

use super::list::is_completed;
use super::{Backup, Backups};
use crate::entity;
use crate::error::{Error, Noun, Result};
use crate::tx::Tx;
use crate::value::{self, Ts};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect,
};
use sendense_types::{BackupId, BackupStatus, DiskNumber, RepositoryId, TrackingToken, VmContextId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Machines whose links are read at once: with a year of daily points and four disks each these are 300,000 rows, some tens of MiB.
const VMS_AT_ONCE: usize = 200;

/// The newest chain of a disk in a repository.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Of which machine.
    pub vm_context_id: VmContextId,
    /// In which repository.
    pub repository_id: RepositoryId,
    /// Of which disk.
    pub disk_id: DiskNumber,
    /// The point that builds on nothing.
    pub full_backup_id: BackupId,
    /// The newest point.
    pub latest_backup_id: BackupId,
    /// From the full to the latest, each building on the one before it.
    pub backups: Vec<Backup>,
}

/// A tracking token that must not be removed from the hypervisor: a chain's newest point names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInUse {
    /// In which repository.
    pub repository_id: RepositoryId,
    /// Of which disk.
    pub disk_id: DiskNumber,
    /// The chain's newest point.
    pub backup_id: BackupId,
    /// Its token.
    pub token: TrackingToken,
}

/// A point of one disk, as the chain's arithmetic sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) backup_id: String,
    pub(super) parent: Option<String>,
    pub(super) created_at: Ts,
}

/// Which chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) vm_context_id: String,
    pub(super) repository_id: String,
    pub(super) disk_id: i32,
}

impl Key {
    pub(super) fn new(vm_context_id: &str, repository_id: &str, disk_id: DiskNumber) -> Result<Self> {
        let (vm_context_id, repository_id) = (vm_context_id.to_owned(), repository_id.to_owned());
        Ok(Self { vm_context_id, repository_id, disk_id: value::store_u32("disk_id", disk_id.0)? })
    }
}

impl Backups<'_> {
    /// The newest chain of a disk. Without a repository: the one whose latest point was added last.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a disk that has no completed point there.
    pub async fn chain(
        &self,
        vm_context_id: &VmContextId,
        disk_id: DiskNumber,
        repository_id: Option<&RepositoryId>,
    ) -> Result<Chain> {
        use entity::chains::{Column, Entity};
        let mut select = Entity::find()
            .filter(Column::VmContextId.eq(vm_context_id.as_str()))
            .filter(Column::DiskId.eq(value::store_u32("disk_id", disk_id.0)?));
        if let Some(repository_id) = repository_id {
            select = select.filter(Column::RepositoryId.eq(repository_id.as_str()));
        }
        let row = select
            .order_by_desc(Column::UpdatedAt)
            .order_by_desc(Column::LatestBackupId)
            .one(self.0.pool())
            .await?
            .ok_or_else(|| Error::not_found(Noun::Disk, format!("{disk_id} of {vm_context_id}")))?;
        let key = Key { vm_context_id: row.vm_context_id, repository_id: row.repository_id, disk_id: row.disk_id };
        let links = links(self.0.pool(), &key).await?;
        let path = path(&links, &row.latest_backup_id);
        let mut backups = self.by_ids(&path).await?;
        // By place in the path, oldest first.
        let place: BTreeMap<&str, usize> = path.iter().rev().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
        backups.sort_by_key(|backup| place.get(backup.backup_id.as_str()).copied());
        Ok(Chain {
            vm_context_id: vm_context_id.clone(),
            repository_id: value::read("repository_id", &key.repository_id)?,
            disk_id,
            full_backup_id: value::read("full_backup_id", &row.full_backup_id)?,
            latest_backup_id: value::read("latest_backup_id", &row.latest_backup_id)?,
            backups,
        })
    }

    /// How many points the longest chain of each of these machines has in a repository, of the disks that its newest point there holds;
    /// machines without a point there are left out.
    pub async fn longest_chains(
        &self,
        vms: &[VmContextId],
        repository_id: &RepositoryId,
    ) -> Result<HashMap<VmContextId, u64>> {
        use entity::{backup_disks, backups, chains};
        let there = Expr::col((backups::Entity, backups::Column::RepositoryId)).eq(repository_id.as_str());
        let mut longest = HashMap::new();
        for part in vms.chunks(VMS_AT_ONCE) {
            let ids = || part.iter().map(VmContextId::as_str);
            let newest = self.newest_ids(part, Some(is_completed().and(there.clone()))).await?;
            let newest: HashSet<String> = newest.into_iter().collect();
            let chains = chains::Entity::find()
                .filter(chains::Column::RepositoryId.eq(repository_id.as_str()))
                .filter(chains::Column::VmContextId.is_in(ids()))
                .all(self.0.pool())
                .await?;
            let links: Vec<(String, String, i32, Option<String>)> = backup_disks::Entity::find()
                .select_only()
                .columns([backup_disks::Column::VmContextId, backup_disks::Column::BackupId])
                .columns([backup_disks::Column::DiskId, backup_disks::Column::ParentBackupId])
                .filter(backup_disks::Column::RepositoryId.eq(repository_id.as_str()))
                .filter(backup_disks::Column::VmContextId.is_in(ids()))
                .filter(backup_disks::Column::Status.eq(BackupStatus::Completed.as_str()))
                .into_tuple()
                .all(self.0.pool())
                .await?;
            // Every machine with a point there has an entry, and so have the disks of that point.
            let mut held = HashSet::new();
            let mut parents = HashMap::new();
            for (vm, backup, disk, parent) in &links {
                parents.insert((backup.as_str(), *disk), parent.as_deref());
                if newest.contains(backup) {
                    held.insert((vm.as_str(), *disk));
                    longest.entry(value::read("vm_context_id", vm)?).or_insert(0);
                }
            }
            for chain in chains.iter().filter(|chain| held.contains(&(chain.vm_context_id.as_str(), chain.disk_id))) {
                let (mut points, mut at) = (0, Some(chain.latest_backup_id.as_str()));
                // No longer than all points: a damaged table must not hang us.
                while let Some(parent) = at.and_then(|id| parents.get(&(id, chain.disk_id))) {
                    points += 1;
                    at = parent.filter(|_| points < links.len() as u64);
                }
                let known = longest.entry(value::read("vm_context_id", &chain.vm_context_id)?).or_insert(0);
                *known = std::cmp::max(points, *known);
            }
        }
        Ok(longest)
    }

    /// The newest completed point of a disk in a repository: what the next incremental builds on.
    pub async fn newest_completed(
        &self,
        vm_context_id: &VmContextId,
        repository_id: &RepositoryId,
        disk_id: DiskNumber,
    ) -> Result<Option<Backup>> {
        let key = (
            vm_context_id.as_str().to_owned(),
            repository_id.as_str().to_owned(),
            value::store_u32("disk_id", disk_id.0)?,
        );
        let Some(chain) = entity::chains::Entity::find_by_id(key).one(self.0.pool()).await? else { return Ok(None) };
        Ok(self.by_ids(&[chain.latest_backup_id]).await?.pop())
    }

    /// The tokens that the newest points of a machine's chains name, in every repository. Checkpoints of any other name
    /// that bear our deployment id may go.
    pub async fn tokens_in_use(&self, vm_context_id: &VmContextId) -> Result<Vec<TokenInUse>> {
        use entity::chains::Column;
        let chains = entity::chains::Entity::find()
            .filter(Column::VmContextId.eq(vm_context_id.as_str()))
            .order_by_asc(Column::RepositoryId)
            .order_by_asc(Column::DiskId)
            .all(self.0.pool())
            .await?;
        let latest: BTreeSet<&str> = chains.iter().map(|chain| chain.latest_backup_id.as_str()).collect();
        let disks = entity::backup_disks::Entity::find()
            .filter(entity::backup_disks::Column::BackupId.is_in(latest))
            .all(self.0.pool())
            .await?;
        let mut tokens = Vec::new();
        for chain in &chains {
            let disk =
                disks.iter().find(|disk| disk.backup_id == chain.latest_backup_id && disk.disk_id == chain.disk_id);
            if let Some(token) = disk.and_then(|disk| disk.change_id.clone()) {
                tokens.push(TokenInUse {
                    repository_id: value::read("repository_id", &chain.repository_id)?,
                    disk_id: DiskNumber(value::read_u32("disk_id", chain.disk_id)?),
                    backup_id: value::read("backup_id", &chain.latest_backup_id)?,
                    token: TrackingToken(token),
                });
            }
        }
        Ok(tokens)
    }
}

/// All completed points of a disk in a repository.
pub(super) async fn links(db: &impl ConnectionTrait, key: &Key) -> Result<Vec<Link>> {
    use entity::backup_disks::{Column, Entity};
    let disks: Vec<(String, Option<String>)> = Entity::find()
        .select_only()
        .column(Column::BackupId)
        .column(Column::ParentBackupId)
        .filter(Column::VmContextId.eq(&key.vm_context_id))
        .filter(Column::DiskId.eq(key.disk_id))
        .filter(Column::RepositoryId.eq(&key.repository_id))
        .filter(Column::Status.eq(BackupStatus::Completed.as_str()))
        .into_tuple()
        .all(db)
        .await?;
    let times: Vec<(String, Ts)> = entity::backups::Entity::find()
        .select_only()
        .column(entity::backups::Column::BackupId)
        .column(entity::backups::Column::CreatedAt)
        .filter(entity::backups::Column::VmContextId.eq(&key.vm_context_id))
        .into_tuple()
        .all(db)
        .await?;
    let times: BTreeMap<String, Ts> = times.into_iter().collect();
    disks
        .into_iter()
        .map(|(backup_id, parent)| {
            let created_at = times.get(&backup_id).copied();
            let created_at = created_at.ok_or_else(|| Error::not_found(Noun::Backup, &backup_id))?;
            Ok(Link { backup_id, parent, created_at })
        })
        .collect()
}

/// Sets a chain's row from the points there are. `prefer` is the newest one if it is known; where points build on it, the
/// newest of those is taken. The caller holds the VM's lock.
pub(super) async fn settle(tx: &Tx, key: &Key, prefer: Option<&str>, now: Ts) -> Result<()> {
    let links = links(&**tx, key).await?;
    settle_links(tx, key, &links, prefer, now).await
}

/// As [`settle`], from given points.
pub(super) async fn settle_links(tx: &Tx, key: &Key, links: &[Link], prefer: Option<&str>, now: Ts) -> Result<()> {
    use entity::chains::{ActiveModel, Column, Entity, Model};
    let of_chain = || {
        Column::VmContextId
            .eq(&key.vm_context_id)
            .and(Column::RepositoryId.eq(&key.repository_id))
            .and(Column::DiskId.eq(key.disk_id))
    };
    let Some(latest) = newest(links, prefer) else {
        Entity::delete_many().filter(of_chain()).exec(&**tx).await?;
        return Ok(());
    };
    let path = path(links, latest);
    let full = path.last().map_or(latest, String::as_str);
    let set = ActiveModel {
        full_backup_id: Set(full.to_owned()),
        latest_backup_id: Set(latest.to_owned()),
        updated_at: Set(now),
        ..Default::default()
    };
    let done = Entity::update_many().set(set).filter(of_chain()).exec(&**tx).await?;
    if done.rows_affected == 0 {
        let row = Model {
            vm_context_id: key.vm_context_id.clone(),
            repository_id: key.repository_id.clone(),
            disk_id: key.disk_id,
            full_backup_id: full.to_owned(),
            latest_backup_id: latest.to_owned(),
            updated_at: now,
        };
        Entity::insert(row.into_active_model()).exec_without_returning(&**tx).await?;
    }
    Ok(())
}

/// The newest point: from `prefer` down to a point on which nothing builds, else the youngest such point of all.
pub(super) fn newest<'l>(links: &'l [Link], prefer: Option<&str>) -> Option<&'l str> {
    let mut children = BTreeMap::<&str, Vec<&Link>>::new();
    for link in links {
        if let Some(parent) = &link.parent {
            children.entry(parent).or_default().push(link);
        }
    }
    let youngest = |a: &&&Link, b: &&&Link| (a.created_at, &a.backup_id).cmp(&(b.created_at, &b.backup_id));
    if let Some(mut at) = prefer.and_then(|id| links.iter().find(|link| link.backup_id == id)) {
        // Parent links cannot form a ring (a parent exists before its child), but a damaged table must not hang us.
        for _ in 0..links.len() {
            match children.get(at.backup_id.as_str()).and_then(|list| list.iter().max_by(youngest)) {
                Some(child) => at = child,
                None => break,
            }
        }
        return Some(&at.backup_id);
    }
    let leaves = links.iter().filter(|link| !children.contains_key(link.backup_id.as_str()));
    leaves.max_by_key(|link| (link.created_at, &link.backup_id)).map(|link| link.backup_id.as_str())
}

/// The points from `latest` up to the one that builds on nothing.
pub(super) fn path(links: &[Link], latest: &str) -> Vec<String> {
    let by_id: BTreeMap<&str, &Link> = links.iter().map(|link| (link.backup_id.as_str(), link)).collect();
    let mut path = Vec::new();
    let mut next = Some(latest);
    while let Some(link) = next.and_then(|id| by_id.get(id)) {
        if path.len() == links.len() {
            break;
        }
        path.push(link.backup_id.clone());
        next = link.parent.as_deref();
    }
    path
}
