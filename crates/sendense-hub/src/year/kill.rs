//! Faults below the repository: the process dies at a step, or one step fails.

use parking_lot::Mutex;
use sendense_repo::testing::stage::{Act, EIO, ENOSPC, Script};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What happens at a step that is counted from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It and all that follow are not done: the process is gone.
    Death,
    /// It fails, as on a disk that lost a sector.
    Failure,
    /// It finds no room.
    NoRoom,
}

/// The file system of one life of a hub.
#[derive(Default)]
pub(super) struct Fate {
    next: Mutex<Option<(u64, Fault)>>,
    is_dead: AtomicBool,
}

impl Fate {
    /// Something happens so many steps from now.
    pub fn arm(&self, steps: u64, fault: Fault) {
        *self.next.lock() = Some((steps, fault));
    }

    /// What has not happened does not happen any more.
    pub fn disarm(&self) {
        *self.next.lock() = None;
    }

    pub fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }
}

impl Script for Fate {
    fn before(&self, act: &Act<'_>) -> io::Result<()> {
        let failed = |errno| Err(io::Error::from_raw_os_error(errno));
        if self.is_dead() {
            return failed(EIO);
        }
        let mut next = self.next.lock();
        let Some((steps, fault)) = &mut *next else { return Ok(()) };
        if *steps > 0 {
            *steps -= 1;
            return Ok(());
        }
        match fault {
            Fault::Death => {
                self.is_dead.store(true, Ordering::SeqCst);
                failed(EIO)
            }
            Fault::NoRoom if !act.needs_room() => Ok(()),
            fault => {
                let errno = if *fault == Fault::NoRoom { ENOSPC } else { EIO };
                *next = None;
                failed(errno)
            }
        }
    }

    fn after(&self, _act: &Act<'_>) {}
}
