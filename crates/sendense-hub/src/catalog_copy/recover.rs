//! From a copy to a hub that can be started, on a machine that has nothing but a repository and the recovery key.
//!
//! Invariant: nothing is written before the copy was opened and read whole, and never into a data directory or a database that
//! holds a catalog, and never while the hub that the repository knows may still run. The points are not in a copy: the hub takes them in from the manifests when it starts.

use super::contents::Contents;
use super::key::RecoveryKey;
use super::{Error, seal};
use crate::data_dir::DataDir;
use crate::hub::sqlite_url;
use sendense_catalog::{Catalog, Counts};
use sendense_repo::{CatalogCopy, Repository};
use sendense_types::{DeploymentId, HubId, Timestamp};
use std::path::{Path, PathBuf};

/// What is recovered, and to where.
#[derive(Debug)]
pub struct Recover {
    /// The repository's folder. It is only read.
    pub repository: PathBuf,
    /// This copy; none: the newest.
    pub copy: Option<String>,
    /// Of this deployment's copies only, where several have used the folder.
    pub deployment_id: Option<DeploymentId>,
    /// The key.
    pub key: RecoveryKey,
    /// The new data directory.
    pub data_dir: PathBuf,
    /// The database; none: the embedded one.
    pub database_url: Option<String>,
    /// The operator says that the old hub is gone, although its lease on the repository runs.
    pub old_hub_is_gone: bool,
    /// The present moment.
    pub now: Timestamp,
}

/// What was recovered.
#[derive(Debug)]
pub struct Recovered {
    /// From which copy.
    pub copy: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// Whose catalog.
    pub deployment_id: DeploymentId,
    /// Which hub it is now: another one of the same deployment.
    pub hub_id: HubId,
    /// What was in it.
    pub counts: Counts,
}

/// A copy, as it is shown to who has no key.
#[derive(Debug)]
pub struct Shown {
    /// Where it lies.
    pub copy: CatalogCopy,
    /// Which hub made it and which key opens it; why that cannot be told.
    pub header: Result<seal::Header, seal::Error>,
}

/// The copies in a repository, the newest first.
pub fn list(repository: &Path) -> Result<Vec<Shown>, Error> {
    let repository = Repository::open_read_only(repository)?;
    let copies = repository.catalog_copies()?.into_iter().map(|copy| {
        // One that cannot be read is shown as that: the others are what somebody looks for.
        let read = repository.read_catalog_copy(&copy.name);
        let header =
            read.map_err(|error| seal::Error::Unreadable(sendense_block::error::chain(&error))).and_then(|sealed| {
                let (header, _) = seal::header(&sealed)?;
                seal::check_name(&header, &copy.name)?;
                Ok(header)
            });
        Shown { header, copy }
    });
    Ok(copies.collect())
}

/// Recovers.
pub async fn recover(wanted: Recover) -> Result<Recovered, Error> {
    let repository = Repository::open_read_only(&wanted.repository)?;
    let name = match &wanted.copy {
        Some(name) => name.clone(),
        None => newest(&repository, &wanted)?,
    };
    let sealed = repository.read_catalog_copy(&name)?;
    let opened = seal::open(&wanted.key, &sealed).and_then(|(header, plain)| {
        seal::check_name(&header, &name)?;
        Ok((header, plain))
    });
    let (header, plain) = opened.map_err(|source| Error::Sealed { name: name.clone(), source })?;
    let contents = Contents::read(&plain)?;

    if is_used(&wanted.data_dir)? {
        return Err(Error::NotBare(wanted.data_dir));
    }
    if !wanted.old_hub_is_gone {
        check_old_hub(&repository, &header.deployment_id, wanted.now)?;
    }
    let data_dir = DataDir::open(&wanted.data_dir)?;
    let url = wanted.database_url.unwrap_or_else(|| sqlite_url(&data_dir.catalog_path()));
    let catalog = Catalog::open(&url).await?;
    let restored = catalog.restore_essentials(&contents.catalog).await;
    let closed = catalog.close().await;
    restored.and(closed)?;
    // Last: a data directory with these is one that a hub starts from.
    contents.put_files(&data_dir)?;
    Ok(Recovered {
        copy: name,
        made_at: header.made_at,
        deployment_id: header.deployment_id,
        hub_id: data_dir.hub_id().clone(),
        counts: contents.catalog.counts(),
    })
}

/// Refuses while a hub of the deployment has a lease: two that know nothing of each other's tasks would each take the other's
/// snapshots for leftovers. Another deployment's lease is none of the old hub's.
fn check_old_hub(repository: &Repository, deployment_id: &DeploymentId, now: Timestamp) -> Result<(), Error> {
    match sendense_repo::owner::read(repository.root())? {
        Some(record) if record.deployment_id == *deployment_id && record.lease_until > now => {
            Err(Error::OldHub { hub_id: record.hub_id, until: record.lease_until })
        }
        _ => Ok(()),
    }
}

fn newest(repository: &Repository, wanted: &Recover) -> Result<String, Error> {
    let copies = repository.catalog_copies()?;
    let is_wanted = |copy: &&CatalogCopy| wanted.deployment_id.as_ref().is_none_or(|id| *id == copy.deployment_id);
    let found: Vec<&CatalogCopy> = copies.iter().filter(is_wanted).collect();
    let at = wanted.repository.display();
    match found.split_first() {
        None => Err(Error::None(format!("no copy of a catalog lies in {at}"))),
        Some((newest, others)) => match others.iter().find(|copy| copy.deployment_id != newest.deployment_id) {
            None => Ok(newest.name.clone()),
            Some(other) => Err(Error::None(format!(
                "copies of several deployments lie in {at} ({}, {}): say which one is meant",
                newest.deployment_id, other.deployment_id
            ))),
        },
    }
}

/// True when a hub has lived there: what is in a data directory that was only just made says nothing yet.
fn is_used(data_dir: &Path) -> Result<bool, Error> {
    for name in ["catalog.db", "key", "admin-token"] {
        let path = data_dir.join(name);
        if path.try_exists().map_err(|source| Error::File { path, source })? {
            return Ok(true);
        }
    }
    Ok(false)
}
