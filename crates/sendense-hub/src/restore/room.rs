//! Room at the targets of restores: a restore that cannot fit is refused before it begins, also when what is free is for
//! others that have begun.
//!
//! Invariant: of what is free on a file system, what running restores to it have still to write is nobody else's.

use super::file::failed;
use crate::fault::Result;
use parking_lot::Mutex;
use sendense_block::copy::Progress;
use sendense_repo::room;
use sendense_types::TaskId;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// What running restores have still to write.
#[derive(Default)]
pub(crate) struct Rooms(Mutex<HashMap<TaskId, Need>>);

struct Need {
    /// The file system.
    device: u64,
    bytes: u64,
    progress: Arc<Progress>,
}

impl Need {
    fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.progress.snapshot().stored.0)
    }
}

/// Room for a restore, while it runs.
pub(crate) struct Room<'a>(&'a Rooms, TaskId);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

impl Rooms {
    /// Refuses so many bytes in a folder, when they do not fit now.
    pub fn check(&self, name: &str, bytes: u64, folder: &Path) -> Result<()> {
        self.look(name, bytes, folder, &self.0.lock()).map(drop)
    }

    /// The same, and keeps the room for this task, whose progress says how much of it is written.
    pub fn take(
        &self,
        name: &str,
        bytes: u64,
        folder: &Path,
        task_id: &TaskId,
        progress: &Arc<Progress>,
    ) -> Result<Room<'_>> {
        let mut needs = self.0.lock();
        let device = self.look(name, bytes, folder, &needs)?;
        needs.insert(task_id.clone(), Need { device, bytes, progress: progress.clone() });
        Ok(Room(self, task_id.clone()))
    }

    /// A restore that was left behind writes nothing more.
    pub fn give_back(&self, task_id: &TaskId) {
        self.0.lock().remove(task_id);
    }

    fn look(&self, name: &str, bytes: u64, folder: &Path, needs: &HashMap<TaskId, Need>) -> Result<u64> {
        let of_folder = |error: &sendense_repo::Error| failed(folder, error);
        let metadata = folder.metadata().map_err(|error| {
            of_folder(&sendense_repo::Error::io(format!("ask for the room of {}", folder.display()), error))
        })?;
        let free = room::free_bytes(folder).map_err(|error| of_folder(&error))?;
        let others = needs.values().filter(|need| need.device == metadata.dev()).map(Need::left);
        room::check(name, bytes, free, others.fold(0, u64::saturating_add), &folder.display().to_string())
            .map_err(|error| of_folder(&error))?;
        Ok(metadata.dev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::ByteLen;
    use sendense_types::ProblemCode;

    /// More than any file system has, so that what is refused does not depend on this machine.
    const TOO_MUCH: u64 = u64::MAX / 2;

    #[test]
    fn what_others_have_still_to_write_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let (rooms, progress) = (Rooms::default(), Arc::new(Progress::default()));
        let refused = |others: &str| {
            let problem = rooms.check("disk 1", TOO_MUCH, folder.path()).unwrap_err();
            assert_eq!(problem.code, ProblemCode::NoSpace);
            assert!(problem.details.starts_with(&format!("disk 1 takes {TOO_MUCH} bytes, and ")), "{problem:?}");
            assert!(problem.details.ends_with(others), "{problem:?}");
        };
        refused(&format!("are free in {}", folder.path().display()));
        let task_id = TaskId::generate();
        let room = rooms.take("disk 0", 4096, folder.path(), &task_id, &progress).unwrap();
        refused(", 4096 of them for other restores");
        // What is written is not free any more, and not promised either.
        progress.taken(ByteLen(4000));
        refused(", 96 of them for other restores");
        rooms.check("disk 1", 4096, folder.path()).unwrap();
        let elsewhere = rooms.take("disk 2", 50, Path::new("/proc"), &TaskId::generate(), &Arc::default());
        refused(", 96 of them for other restores");
        drop((room, elsewhere));
        refused(&format!("are free in {}", folder.path().display()));
    }
}
