//! What is inside a disk: partitions, volumes and file systems, read-only.
//!
//! What lives here: guest paths, what a file is ([`meta`]), what can be asked ([`session`]), the readers ([`native`]) and the
//! confined process that runs them. What does not: restore points, QCOW2, HTTP. The disk is handed in as a `ReadAt`.
//!
//! ```text
//!     hub: client::Worker --(wire: frames over a socketpair)--> worker process: sandbox, worker::run
//!          a Session                                                             native::Engine
//!                                                        volumes (GPT, LVM, LUKS, MD) -> fs -> resolve, walk
//! ```
//!
//! Invariant: every byte of the disk is hostile. A reader answers with an error, never with a panic, an endless loop or
//! memory that grows with a number found on the disk.

pub mod appliance;
pub mod client;
pub mod error;
pub mod glob;
pub mod meta;
pub mod native;
pub mod path;
pub mod sandbox;
pub mod session;
pub mod volume;
pub mod wire;
pub mod worker;

pub use error::{Error, Reason, Result};
pub use path::GuestPath;
pub use session::Session;
pub use volume::{Key, Volume, VolumeId};
