//! Bringing a disk back: where its bytes go, and that nothing half-written is left there.
//!
//! What lives here: targets. What does not: which chain is read (jobs ask the repository) and whether the request is
//! allowed (app). Everything here blocks and runs on threads. Invariant: a new file appears under its name only when
//! it is whole and on stable storage, and a restore that failed or was stopped leaves none; what existed before (a device, a
//! file that is written onto) bears a mark in its first block from the first write until it is whole.

mod device;
mod documents;
mod file;
mod nbd;
mod onto;
mod room;
mod vmdk;

pub(crate) use device::check_unused;
pub(crate) use documents::documents;
pub(crate) use file::{failed as target_problem, remove_parts, restore_file};
pub(crate) use nbd::{check_uri, restore_nbd};
pub(crate) use onto::{Onto, restore_onto};
pub(crate) use room::Rooms;

use sendense_block::copy::Progress;
use sendense_block::{Cancel, Disk};
use std::sync::Arc;

/// Lanes of one restore: reading the chain and writing the target take turns, and decompression uses a core.
pub(crate) const LANES: usize = 4;
/// Bytes per read: enough that a spinning repository streams, little enough to stay in a core's cache.
const REQUEST_BYTES: usize = 512 * 1024;

/// What every restore needs.
pub(crate) struct Job<'a> {
    /// The disk's name, for messages.
    pub name: &'a str,
    /// The point's disk, its true size.
    pub disk: Arc<dyn Disk>,
    /// The room that a new file takes, where it was counted.
    pub needed_bytes: Option<u64>,
    /// Lanes that it may use.
    pub lanes: usize,
    /// Told of the work.
    pub progress: &'a Arc<Progress>,
    /// Asked between chunks.
    pub cancel: &'a Cancel,
}

impl Job<'_> {
    pub(crate) fn options(&self) -> sendense_block::copy::Options {
        sendense_block::copy::Options {
            lanes: self.lanes,
            request_bytes: REQUEST_BYTES,
            // A restored image is for a machine to run on: compressed clusters would slow it down.
            level: sendense_block::codec::Level::Off,
        }
    }
}
