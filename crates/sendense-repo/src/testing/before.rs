//! The repository that something happens to.

use super::now;
use super::world::{self, Disk, Point, back_up, pattern};
use crate::delete::Extent;
use crate::error::Result;
use crate::repository::Repository;
use sendense_types::DiskNumber;
use std::path::PathBuf;

/// Two machines. The first has two disks and two points, the second one of each.
pub struct Before {
    folder: tempfile::TempDir,
    pub first: Point,
    pub second: Point,
    pub other: Point,
}

impl Before {
    pub fn new() -> Self {
        let first = Point::full("vm-a", "bk-1", &[&pattern(1, 3 * 65536 + 700), &pattern(2, 65536)]);
        let mut second = first.child("bk-2");
        second.disk(0)[70_000..90_000].fill(7);
        Self::with(first, second)
    }

    /// With other points of the first machine.
    pub fn with(first: Point, second: Point) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let other = Point::full("vm-b", "bk-b", &[&pattern(3, 1000)]);
        let before = Self { first, second, other, folder };
        let repository = world::open(&before.root()).unwrap();
        for point in [&before.first, &before.second, &before.other] {
            back_up(&repository, point, now()).unwrap();
        }
        before
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// An incremental that changes one disk's size and content, leaves one as it was, and has a new one.
    pub fn third(&self) -> Point {
        let mut third = self.second.child("bk-3");
        third.disk(0).truncate(2 * 65536 + 5);
        third.disk(0)[..10].fill(9);
        third.disks.insert(DiskNumber(2), Disk { bytes: pattern(4, 66_000), parent: None });
        third
    }

    /// The points that are there.
    pub fn points(&self) -> [&Point; 3] {
        [&self.first, &self.second, &self.other]
    }
}

/// Deletes a point.
pub fn delete(repository: &Repository, point: &Point, extent: Extent) -> Result<()> {
    let plan = repository.plan_delete(&point.vm, &[point.id.clone()].into(), extent)?;
    repository.execute_delete(plan, "test", now())
}
