//! Copies of a catalog, kept beside the points: what a repository cannot tell from its manifests.
//!
//! ```text
//! <repository>/.sendense-catalog/<moment>.<deployment_id>.copy
//! ```
//!
//! What lives here: names, writing, listing, reading, and how many stay. What does not: what is in a copy (sealed bytes, here)
//! and when one is made. The moment is in microseconds since 1970, with leading zeros, and never before the newest copy's: the
//! order of names is the order in which they were made, also when a clock was set back.
//!
//! Invariant: a copy that has its name is whole and durable, and no copy goes before the next one has its name.

use crate::crashsafe::{self, Kindred};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::repository::Repository;
use sendense_types::{DeploymentId, Timestamp};
use std::path::{Path, PathBuf};

/// A catalog of 5,000 machines with five disks each takes some 3 MiB; more than this is not a copy of ours.
pub const COPY_BYTES_MAX: u64 = 64 << 20;

/// Digits of a moment: enough for every positive number of microseconds.
const MOMENT_DIGITS: usize = 19;
const SUFFIX: &str = ".copy";
/// A copy that is being written, or that was when somebody died.
const HALF_SUFFIX: &str = ".copy.new";

/// A copy, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogCopy {
    /// Its name, by which it is read.
    pub name: String,
    /// Whose catalog.
    pub deployment_id: DeploymentId,
    /// When it was made.
    pub made_at: Timestamp,
    /// How large it is.
    pub bytes: u64,
}

/// Reads a copy's name.
pub fn parse_name(name: &str) -> Option<(Timestamp, DeploymentId)> {
    let (moment, rest) = name.split_once('.')?;
    let deployment = rest.strip_suffix(SUFFIX)?;
    let is_moment = moment.len() == MOMENT_DIGITS && moment.bytes().all(|byte| byte.is_ascii_digit());
    let micros = moment.parse().ok().filter(|_| is_moment)?;
    Some((Timestamp::from_micros(micros), deployment.parse().ok()?))
}

fn name_of(made_at: Timestamp, deployment: &DeploymentId) -> String {
    format!("{:0MOMENT_DIGITS$}.{deployment}{SUFFIX}", made_at.as_micros().max(0))
}

impl Repository {
    /// The copies that are there, of all deployments, the newest first. Needs no right to write.
    pub fn catalog_copies(&self) -> Result<Vec<CatalogCopy>> {
        let mut copies = Vec::new();
        for (name, kind) in self.catalog_entries()? {
            let parsed = name.to_str().and_then(|text| Some((text.to_owned(), parse_name(text)?)));
            let Some((name, (made_at, deployment_id))) = parsed.filter(|_| kind == Kindred::File) else { continue };
            let path = self.at(path_of(&name));
            let bytes = match path.symlink_metadata() {
                Ok(metadata) => metadata.len(),
                // A newer one has just taken its place.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(crashsafe::failed("stat", &path, error)),
            };
            copies.push(CatalogCopy { name, deployment_id, made_at, bytes });
        }
        copies.sort_by(|one, other| other.name.cmp(&one.name));
        Ok(copies)
    }

    /// The bytes of a copy.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Invalid`] for a name that none can have, or one larger than [`COPY_BYTES_MAX`].
    pub fn read_catalog_copy(&self, name: &str) -> Result<Vec<u8>> {
        if parse_name(name).is_none() {
            return Err(Error::invalid(format!("{name:?} is not the name of a copy of a catalog")));
        }
        crashsafe::read_small(self.root(), &path_of(name), COPY_BYTES_MAX)
            .map_err(|error| error.within(format!("read the catalog's copy {name}")))
    }

    /// Writes a copy of our catalog, durably, and removes the oldest of ours beyond `keep` (at least one stays). The bytes are made
    /// when the moment in its name is known, so that they can hold it: a name alone can be changed by whoever can write to the folder.
    ///
    /// # Errors
    /// [`Kind::Fenced`], [`Kind::NoSpace`], and what `make` says; then the copies that were there are there still.
    pub fn keep_catalog_copy(
        &self,
        keep: usize,
        now: Timestamp,
        make: impl FnOnce(Timestamp) -> Result<Vec<u8>>,
    ) -> Result<CatalogCopy> {
        self.keep_copy(keep, now, make).map_err(|error| error.within("keep a copy of the catalog"))
    }

    fn keep_copy(
        &self,
        keep: usize,
        now: Timestamp,
        make: impl FnOnce(Timestamp) -> Result<Vec<u8>>,
    ) -> Result<CatalogCopy> {
        let ownership = self.ownership()?;
        let deployment_id = ownership.claim().deployment_id.clone();
        let _turn = ownership.turn(now)?;
        let (fs, dir) = (self.fs(), self.at(layout::CATALOG_DIR));
        crashsafe::ensure_dir(fs, &dir)?;
        for (name, kind) in self.catalog_entries()? {
            if kind == Kindred::File && name.to_str().is_some_and(|name| name.ends_with(HALF_SUFFIX)) {
                crashsafe::remove_file_if_there(fs, &dir.join(name))?;
            }
        }
        let ours = |copy: &CatalogCopy| copy.deployment_id == deployment_id;
        let mut there: Vec<CatalogCopy> = self.catalog_copies()?.into_iter().filter(ours).collect();
        let newest = there.first().map_or(0, |copy| copy.made_at.as_micros());
        let made_at = Timestamp::from_micros(now.as_micros().max(newest.saturating_add(1)));
        let bytes = make(made_at)?;
        if bytes.len() as u64 > COPY_BYTES_MAX {
            let why = format!("it has {} bytes, and {COPY_BYTES_MAX} are the most", bytes.len());
            return Err(Error::invalid(why));
        }
        let name = name_of(made_at, &deployment_id);
        let half = dir.join(format!("{name}.new"));
        crashsafe::write_new(fs, &half, &bytes)?;
        crashsafe::rename_new(fs, &half, &dir.join(&name))?;
        crashsafe::sync_dir(fs, &dir)?;
        for copy in there.drain(..).skip(keep.max(1) - 1) {
            crashsafe::remove_file_if_there(fs, &dir.join(&copy.name))?;
        }
        crashsafe::sync_dir(fs, &dir)?;
        Ok(CatalogCopy { name, deployment_id, made_at, bytes: bytes.len() as u64 })
    }

    fn catalog_entries(&self) -> Result<Vec<(std::ffi::OsString, Kindred)>> {
        match crashsafe::entries(&self.at(layout::CATALOG_DIR)) {
            Err(error) if error.kind == Kind::NotFound => Ok(Vec::new()),
            entries => entries,
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(layout::CATALOG_DIR).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stage::{Fault, Faults, Renames, Stage};
    use crate::testing::{now, world};
    use proptest::prelude::*;

    fn names(repository: &Repository) -> Vec<String> {
        repository.catalog_copies().unwrap().into_iter().map(|copy| copy.name).collect()
    }

    #[test]
    fn the_newest_stay_whatever_the_clock_says() {
        let folder = tempfile::tempdir().unwrap();
        let repository = world::open(&folder.path().join("repository")).unwrap();
        assert_eq!(names(&repository), [""; 0]);
        let mut made = Vec::new();
        for number in 0..9_u8 {
            // A clock that runs backwards.
            let mut moment = None;
            let make = |made_at| {
                moment = Some(made_at);
                Ok(vec![number; 10])
            };
            let copy = repository.keep_catalog_copy(7, now().plus_seconds(-i64::from(number)), make).unwrap();
            assert_eq!(moment, Some(copy.made_at), "what is in it can say when it was made");
            assert_eq!(parse_name(&copy.name), Some((copy.made_at, copy.deployment_id.clone())));
            made.push(copy.name);
        }
        let kept: Vec<String> = made.iter().rev().take(7).cloned().collect();
        assert_eq!(names(&repository), kept);
        assert_eq!(repository.read_catalog_copy(&kept[0]).unwrap(), [8; 10]);
        assert_eq!(repository.read_catalog_copy(&made[0]).unwrap_err().kind, Kind::NotFound);
        for name in ["../x", "", "x.copy", ".sendense-repository.json", "0000000000000000001.a/b.copy"] {
            assert_eq!(repository.read_catalog_copy(name).unwrap_err().kind, Kind::Invalid, "{name}");
        }
        // Nothing of it is strange to a start, and a repository is still one when the owner record was lost.
        let report = repository.recover(&world::Amnesia, now()).unwrap();
        assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
        let reader = Repository::open_read_only(repository.root()).unwrap();
        assert_eq!(names(&reader), kept);
        let refused = reader.keep_catalog_copy(7, now(), |_| Ok(vec![1])).unwrap_err();
        assert_eq!(refused.kind, Kind::Denied);
        std::fs::remove_file(repository.root().join(layout::OWNER_FILE)).unwrap();
        assert_eq!(repository.keep_catalog_copy(7, now(), |_| Ok(vec![1])).unwrap_err().kind, Kind::Fenced);
        world::open(repository.root()).unwrap();
    }

    /// Whatever step is the last one: the copies that were there are there, or one more and its bytes are right.
    #[test]
    fn a_copy_is_whole_or_is_not_there() {
        for fault in [Fault::Gone, Fault::Once(5), Fault::Full] {
            for at in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let root = folder.path().join("repository");
                let first = world::open(&root).unwrap().keep_catalog_copy(2, now(), |_| Ok(b"first".to_vec())).unwrap();
                let second =
                    world::open(&root).unwrap().keep_catalog_copy(2, now(), |_| Ok(b"second".to_vec())).unwrap();
                let faults = Faults::new(fault, at);
                let stage = Stage::new(faults.clone(), Renames::AtOnce);
                let result = Repository::open_on(stage, &root, world::options(), now())
                    .and_then(|repository| repository.keep_catalog_copy(2, now(), |_| Ok(b"third".to_vec())));
                let next = world::open(&root).unwrap();
                let found = names(&next);
                assert!(found.contains(&second.name), "{fault:?} at {at}: {found:?}");
                if let Some(new) = found.iter().find(|name| ![&first.name, &second.name].contains(name)) {
                    assert_eq!(next.read_catalog_copy(new).unwrap(), b"third");
                } else {
                    assert!(result.is_err() && found.contains(&first.name));
                }
                // The next one cleans up.
                let fourth = next.keep_catalog_copy(2, now(), |_| Ok(b"fourth".to_vec())).unwrap();
                let left = std::fs::read_dir(root.join(layout::CATALOG_DIR)).unwrap().count();
                assert_eq!((names(&next)[0].as_str(), left), (fourth.name.as_str(), 2));
                if faults.met().is_none() {
                    assert!(at > 5);
                    break;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_or_refused(name in ".{0,60}", micros in 0_i64..i64::MAX) {
            let _ = parse_name(&name);
            let deployment: DeploymentId = "dep-1".parse().unwrap();
            let at = Timestamp::from_micros(micros);
            prop_assert_eq!(parse_name(&name_of(at, &deployment)), Some((at, deployment)));
        }
    }
}
