//! What is inside a disk: partitions, volumes and file systems, read-only.
//!
//! What lives here: guest paths, what a file is ([`meta`]), the readers ([`native`]) and the process that runs them. What
//! does not: restore points, QCOW2, HTTP. The disk is handed in as a `ReadAt`.
//!
//! Invariant: every byte of the disk is hostile. A reader answers with an error, never with a panic, an endless loop or
//! memory that grows with a number found on the disk.

pub mod error;
pub mod meta;
pub mod native;
pub mod path;

pub use error::{Error, Reason, Result};
pub use path::GuestPath;
