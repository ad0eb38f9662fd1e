//! Keeps the reads of a backup to a bandwidth, whatever disk they come from.

use crate::remote::throttle::Throttle;
use parking_lot::Mutex;
use sendense_block::device::{AllocationMap, MappedExtent, ReadAt};
use sendense_block::{ByteLen, ByteOffset, Cancel, Disk, Extent, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest pause between two looks at whether to stop.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// So many bytes in a second, for all disks of a backup together.
pub(crate) struct Pace(Mutex<Throttle>);

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self(Mutex::new(Throttle::new(Some(bytes_per_second), Instant::now())))
    }

    /// Waits until so many bytes may be read.
    fn wait(&self, bytes: usize, cancel: &Cancel) -> Result<()> {
        let turn = self.0.lock().book(bytes, Instant::now());
        loop {
            let left = self.0.lock().until(turn, Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if let Err(error) = cancel.check() {
                self.0.lock().give_back(bytes);
                return Err(error);
            }
            std::thread::sleep(left.min(PAUSE_MAX));
        }
    }
}

/// A disk that is read at a pace.
pub(crate) struct Paced {
    disk: Arc<dyn Disk>,
    pace: Arc<Pace>,
    cancel: Cancel,
}

impl Paced {
    pub fn new(disk: Arc<dyn Disk>, pace: Arc<Pace>, cancel: Cancel) -> Self {
        Self { disk, pace, cancel }
    }
}

impl ReadAt for Paced {
    fn size(&self) -> ByteLen {
        self.disk.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.pace.wait(buf.len(), &self.cancel)?;
        self.disk.read_at(at, buf)
    }
}

impl AllocationMap for Paced {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        self.disk.allocation(within)
    }
}
