//! Live machines: what can be frozen, compared and read. Image folders, NBD exports, libvirt domains, vSphere.
//!
//! What lives here: the [`Source`] door and everything behind it that talks to a hypervisor. What does not: repositories,
//! the hub, who consumes the bytes. Everything here blocks and runs on threads of the caller.
//!
//! The story of one backup: `inspect` the machine, `freeze` all wanted disks at one moment, ask each disk for its
//! `changes`, `open` and read it, `check` that the frozen state was not disturbed, `release`. When the point is published
//! (or given up), `retire` deletes every tracking mark of ours that no chain needs.
//!
//! Invariant: whatever a source makes outside its own process (a checkpoint, a job, a child, a frozen guest) is in the
//! [`Journal`] before it is made, and bears the deployment's id in its name.

pub mod child;
pub mod error;
pub mod image;
pub mod instant;
pub mod journal;
pub mod libvirt;
pub mod model;
mod name;
pub mod nbd;
pub mod open;
pub mod paths;
pub mod remote;
pub mod target;
pub mod vsphere;

pub use error::{Error, Kind, Result};
pub use instant::Instant;
pub use journal::{Artefact, ArtefactKind, Journal};
pub use model::{
    ConfigDocument, DiscoveredDisk, DiscoveredVm, DiskRequest, FreezeRequest, FrozenDisk, FrozenFacts, Network,
    ReadHints, TestReport, VmRef,
};
pub use open::{SourceContext, open};
pub use remote::{NewRemoteVm, Overwriting, RemoteDisk, RemoteTarget, Restoring, Volume};
pub use target::Target;

use sendense_block::{Cancel, ChangeMap, Disk};
use sendense_types::{SourceKind, TrackingToken};
use std::sync::Arc;

/// A hypervisor, image folder or NBD server.
pub trait Source: Send + Sync {
    /// What it is.
    fn kind(&self) -> SourceKind;

    /// Connects and tells what was found and what is missing, without changing anything.
    fn test(&self, cancel: &Cancel) -> Result<TestReport>;

    /// All machines, also those that cannot be backed up (with the reason).
    fn discover(&self, cancel: &Cancel) -> Result<Vec<DiscoveredVm>>;

    /// One machine as it is now; `NotFound` when it is gone.
    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> Result<DiscoveredVm>;

    /// Freezes the requested disks at one moment. Either all of it is made, or nothing is left behind.
    fn freeze(&self, request: &FreezeRequest, journal: &Arc<dyn Journal>, cancel: &Cancel) -> Result<Box<dyn Frozen>>;

    /// Deletes tracking marks of this deployment on the machine except those in `keep`; returns those deleted. What
    /// cannot be deleted now (libvirt refuses it while the domain is off) stays for the next call and is not an error.
    fn retire(
        &self,
        vm: &VmRef,
        keep: &[TrackingToken],
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Vec<TrackingToken>>;

    /// Change tracking of the machine has called blocks unchanged that had changed: begins it anew, as far as that can be
    /// done. Called after the freeze of `request`, which found it out, is released; `fresh` are the tokens that it gave,
    /// none when its point did not come to be.
    fn reset_tracking(
        &self,
        _request: &FreezeRequest,
        _fresh: &[TrackingToken],
        _journal: &Arc<dyn Journal>,
        _cancel: &Cancel,
    ) -> Result<TrackingReset> {
        Ok(TrackingReset::NotOurs)
    }

    /// Undoes what a dead process left: ends the job, thaws the guest, ends the child, removes the file. Idempotent;
    /// `Ok(true)` when nothing of it remains and the journal's entry can be closed, `Ok(false)` when it must be tried
    /// again later. Marks a chain may need (checkpoints) are not deleted here but by [`Source::retire`].
    fn reap(&self, artefact: &Artefact, cancel: &Cancel) -> Result<bool>;

    /// What bears this deployment's id on any machine of the source and would be an orphan if its task did not live, as
    /// entries for [`Source::reap`]. The journal is not asked: it may have been lost.
    fn leftovers(&self, _cancel: &Cancel) -> Result<Vec<Artefact>> {
        Ok(Vec::new())
    }

    /// The way to restore machines to it, where there is one.
    fn target(&self) -> Option<&dyn Target> {
        None
    }

    /// The way to restore machines to it where it keeps their disks itself.
    fn remote_target(&self) -> Option<&dyn RemoteTarget> {
        None
    }

    /// The way to run machines of it on NBD exports of this host, where there is one.
    fn instant(&self) -> Option<&dyn Instant> {
        None
    }
}

/// Undoes what an artefact left on this host, for one whose source nobody knows any more: its children. True when nothing of
/// it remains; false when only its hypervisor could undo it.
pub fn reap_here(artefact: &Artefact) -> Result<bool> {
    match artefact.kind {
        ArtefactKind::ChildProcess if artefact.details.get("socket").is_some() => image::reap_child(artefact),
        ArtefactKind::ChildProcess => vsphere::reap_child(artefact),
        ArtefactKind::BackupJob
        | ArtefactKind::Checkpoint
        | ArtefactKind::FrozenGuest
        | ArtefactKind::File
        | ArtefactKind::Snapshot
        | ArtefactKind::Machine => Ok(false),
    }
}

/// Disks held at one moment. Dropping it without [`Frozen::release`] must still free everything, as well as it can.
pub trait Frozen: Send + Sync {
    /// What was frozen and how.
    fn facts(&self) -> &FrozenFacts;

    /// What changed on a disk since the token that [`DiskRequest::since`] named.
    fn changes(&self, disk_key: &str) -> Result<Changes>;

    /// Opens a disk for reading, from any number of threads.
    fn open(&self, disk_key: &str, cancel: &Cancel) -> Result<Arc<dyn Disk>>;

    /// After the last byte and before anything is published: fails when what was read may not be the frozen state (the
    /// domain was started, the image changed, the scratch file overflowed, the machine was powered off).
    fn check(&self) -> Result<()>;

    /// Lets the machine go. Idempotent in effect; every step is tried even if one fails.
    fn release(self: Box<Self>) -> Result<()>;
}

/// What is known of the changes since a token.
pub enum Changes {
    /// These, and nothing else.
    Delta(Arc<dyn ChangeMap>),
    /// Nothing is known; the reason is shown to people (`no change tracking`, `checkpoint missing`).
    Unknown {
        /// Why.
        reason: String,
    },
}

/// What became of a machine's change tracking after it was found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackingReset {
    /// What the last freeze began is new, and counts from its moment on: its tokens hold.
    FreshMarks,
    /// It begins anew with the next freeze; no token of before means anything.
    Begun,
    /// It is somebody else's, who must be told; no token of before should be believed.
    NotOurs,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delta(_) => f.write_str("Delta"),
            Self::Unknown { reason } => f.debug_struct("Unknown").field("reason", reason).finish(),
        }
    }
}
