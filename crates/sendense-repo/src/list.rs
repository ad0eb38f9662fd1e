//! Which points there are, told from their manifests alone.
//!
//! Invariant: a manifest that cannot be read is reported and hides no other. Whoever must know *all* points of a VM (a
//! deletion) asks for [`Listing::complete`].

use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::manifest::{self, MANIFEST_BYTES_MAX, Manifest};
use crate::repository::Repository;
use sendense_types::{BackupId, VmContextId};
use std::path::PathBuf;

/// The points of one VM.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that could be read, parents before children, else by id. Without segment digests (empty lists), which are
    /// most of a manifest.
    pub points: Vec<Manifest>,
    /// Manifests that could not be read.
    pub problems: Vec<Problem>,
}

/// A manifest that could not be read.
#[derive(Debug)]
pub struct Problem {
    /// The file, relative to the repository.
    pub path: PathBuf,
    /// The point it should be of.
    pub backup_id: BackupId,
    /// Why.
    pub error: Error,
}

impl Listing {
    /// The points, or the first problem: for those who must not decide on half of the truth.
    pub fn complete(self) -> Result<Vec<Manifest>> {
        match self.problems.into_iter().next() {
            None => Ok(self.points),
            Some(problem) => Err(problem.error.within("list all points of the VM")),
        }
    }
}

impl Repository {
    /// Reads a point's manifest and checks that it is the one its name says.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Corrupt`] when it is damaged; [`Kind::Unsupported`] when it is of a later version.
    pub fn manifest(&self, vm: &VmContextId, backup: &BackupId) -> Result<Manifest> {
        let path = layout::manifest(vm, backup);
        let bytes = crashsafe::read_small(self.root(), &path, MANIFEST_BYTES_MAX)
            .map_err(|error| error.within(format!("read the manifest of {backup}")))?;
        let damaged = |error: Error| match error.kind {
            Kind::Invalid => Error::corrupt(&path, None, format!("read {}", path.display())).caused_by(error),
            _ => error.within(format!("read {}", path.display())),
        };
        let manifest = manifest::parse(&bytes).map_err(damaged)?;
        if manifest.backup_id != *backup || manifest.vm_context_id != *vm {
            let context = format!("it is the manifest of {} of {}", manifest.backup_id, manifest.vm_context_id);
            return Err(damaged(Error::invalid(context)));
        }
        Ok(manifest)
    }

    /// The VM a point belongs to.
    pub fn find(&self, backup: &BackupId) -> Result<VmContextId> {
        for vm in self.vms()? {
            let path = self.at(layout::manifest(&vm, backup));
            match path.symlink_metadata() {
                Ok(_) => return Ok(vm),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(crashsafe::failed("look for", &path, error)),
            }
        }
        Err(Error::new(Kind::NotFound, format!("no point {backup} in the repository")))
    }

    /// The points of a VM. Fails only when its folder cannot be listed.
    pub fn list(&self, vm: &VmContextId) -> Result<Listing> {
        let mut listing = Listing::default();
        for (path, entry, _) in self.vm_entries(vm)? {
            let VmEntry::Manifest(backup_id) = entry else { continue };
            match self.manifest(vm, &backup_id) {
                Ok(mut manifest) => {
                    manifest.disks.iter_mut().for_each(|disk| disk.image.segments = Vec::new());
                    listing.points.push(manifest);
                }
                // Deleted since the folder was listed.
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => listing.problems.push(Problem { path, backup_id, error }),
            }
        }
        listing.points = parents_first(listing.points);
        Ok(listing)
    }
}

/// Sorts points so that each comes after its parents. Those of a loop, which only a forger can make, come last.
fn parents_first(points: Vec<Manifest>) -> Vec<Manifest> {
    use std::collections::{BTreeMap, BTreeSet};
    let ids: BTreeSet<BackupId> = points.iter().map(|point| point.backup_id.clone()).collect();
    let mut waiting: BTreeMap<BackupId, Vec<usize>> = BTreeMap::new();
    let mut missing: Vec<usize> = Vec::with_capacity(points.len());
    for (at, point) in points.iter().enumerate() {
        let parents: BTreeSet<&BackupId> = point.parents().filter(|id| ids.contains(*id)).collect();
        missing.push(parents.len());
        for parent in parents {
            waiting.entry(parent.clone()).or_default().push(at);
        }
    }
    let mut ready: BTreeSet<(BackupId, usize)> =
        (0..points.len()).filter(|at| missing[*at] == 0).map(|at| (points[at].backup_id.clone(), at)).collect();
    let mut order = Vec::with_capacity(points.len());
    while let Some((id, at)) = ready.pop_first() {
        order.push(at);
        for child in waiting.remove(&id).unwrap_or_default() {
            missing[child] -= 1;
            if missing[child] == 0 {
                ready.insert((points[child].backup_id.clone(), child));
            }
        }
    }
    order.extend((0..points.len()).filter(|at| missing[*at] > 0));
    let mut points: Vec<Option<Manifest>> = points.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| points[at].take()).collect()
}
