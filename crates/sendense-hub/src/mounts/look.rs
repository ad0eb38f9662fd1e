//! Points that are opened for one look each, one after another, and not kept: a file's history.
//!
//! They take no place of those that people browse in, and have few of their own. What does not live here: what is looked at.
//! Invariant: when the one who waits has gone, the process that was looking is killed and the place is free again.

use super::{Mounts, Open, Reader, fault, words_of};
use crate::core::blocking;
use crate::fault::Result;
use parking_lot::Mutex;
use sendense_guestfs::Volume;
use sendense_repo::Detached;
use sendense_types::{Problem, ProblemCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who may look at once: each has one process, so these are two more beside the eight that are browsed in.
const LOOKERS_MAX: usize = 2;

/// The places.
pub(super) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKERS_MAX)))
    }
}

/// The right to open one point after another.
pub(crate) struct Looker {
    open: Arc<Open>,
    place: Arc<OwnedSemaphorePermit>,
}

impl Mounts {
    /// Gives the right to look, while there is a place.
    pub fn begin_looking(&self) -> Result<Looker> {
        let place = self.lookers.0.clone().try_acquire_owned().map_err(|_| {
            let details = format!("{LOOKERS_MAX} are under way");
            Problem::new(ProblemCode::Busy, "too many histories are being read", details)
        })?;
        Ok(Looker { open: self.open.clone(), place: Arc::new(place) })
    }
}

impl Looker {
    /// Opens a point, asks, and closes it. `detach` opens its files and claims its chain; all of it blocks, and is given up
    /// after `time_max`.
    pub async fn look<T: Send + 'static>(
        &self,
        time_max: Duration,
        detach: impl FnOnce() -> Result<Detached> + Send + 'static,
        ask: impl FnOnce(&dyn Reader, &[Volume]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let held = Arc::new(Held::default());
        // Also when this future is dropped in the middle, because the client has gone.
        let _end = End(held.clone());
        // Kept until the process is gone, and not only until nobody waits for it.
        let (open, place) = (self.open.clone(), self.place.clone());
        let looked = blocking(move || {
            let _place = place;
            let Detached { files, words, guard: _guard } = detach()?;
            let words = words_of(&words)?;
            if held.is_over() {
                return Err(over());
            }
            let reader = open(files, words).map_err(|error| fault::of_guestfs(&error))?;
            if !held.keep(&reader) {
                return Err(over());
            }
            let volumes = reader.volumes().map_err(|error| fault::of_guestfs(&error))?;
            let answer = ask(&*reader, &volumes);
            reader.stop();
            answer
        });
        match tokio::time::timeout(time_max, looked).await {
            Ok(looked) => looked?,
            Err(_) => {
                let details = format!("it was given up after {} s", time_max.as_secs());
                Err(Problem::new(ProblemCode::ReaderFailed, "reading the disk takes too long", details))
            }
        }
    }
}

/// Never seen: nobody waits any more.
fn over() -> Problem {
    Problem::new(ProblemCode::Cancelled, "nobody waits for the answer", "")
}

/// The process of a look, which may be stopped from outside.
#[derive(Default)]
struct Held(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Opening,
    Open(Arc<dyn Reader>),
    Over,
}

impl Held {
    fn is_over(&self) -> bool {
        matches!(*self.0.lock(), Stage::Over)
    }

    /// False when it is too late.
    fn keep(&self, reader: &Arc<dyn Reader>) -> bool {
        let mut stage = self.0.lock();
        let in_time = !matches!(*stage, Stage::Over);
        match in_time {
            true => *stage = Stage::Open(reader.clone()),
            false => reader.stop(),
        }
        in_time
    }
}

struct End(Arc<Held>);

impl Drop for End {
    fn drop(&mut self) {
        if let Stage::Open(reader) = std::mem::replace(&mut *self.0.0.lock(), Stage::Over) {
            reader.stop();
        }
    }
}
