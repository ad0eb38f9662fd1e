//! This program as the process that reads a guest's disk. The hub starts it; it is no command for people.
//!
//! What lives here: putting the disk together from the descriptors that the hub passed. Invariant: nothing runs before it, and
//! it opens no path.

use sendense_block::ReadAt;
use sendense_guestfs::native::Readers;
use sendense_repo::{ChainReader, Words};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

/// The whole life of the process.
pub fn run() -> ExitCode {
    sendense_guestfs::worker::run(Readers::default(), disk)
}

fn disk(files: Vec<OwnedFd>, setup: &[u8]) -> Result<Arc<dyn ReadAt>, String> {
    let words: Words =
        serde_json::from_slice(setup).map_err(|error| format!("the description of the chain: {error}"))?;
    let chain = ChainReader::attach(files, &words).map_err(|error| error.to_string())?;
    Ok(Arc::new(chain))
}
