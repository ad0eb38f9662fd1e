//! Machines restored to a hypervisor that keeps its disks itself: nothing of them is a file of this host.
//!
//! The story: `create` decides everything, refuses what cannot be, writes to the journal what it is about to make, and makes
//! the machine, switched off, with empty disks; each disk is opened with `open_write` and filled; `finish` says that it is
//! whole. Whatever fails before that takes the machine away again, and whoever dies leaves it to
//! [`crate::Source::reap`].
//!
//! What lives here: the door. Beside it is [`crate::Target`], for hypervisors whose disks are files that the caller makes.

use crate::error::Result;
use crate::journal::Journal;
use crate::model::{ConfigDocument, VmRef};
use sendense_block::{Cancel, Target};
use sendense_types::TaskId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct NewRemoteVm<'a> {
    /// Its name, which no other machine in its place has.
    pub name: &'a str,
    /// The recorded configuration. It comes from a repository's folder and is believed in nothing.
    pub documents: &'a [ConfigDocument],
    /// The disks that there are, in the order in which they are opened; the others of the configuration are left out.
    pub disks: &'a [RemoteDisk],
    /// Where its disks go; where the original's were when none.
    pub datastore: Option<&'a str>,
    /// The folder in the inventory, as discovery tells paths; the outermost one when none.
    pub folder: Option<&'a str>,
    /// The cluster or host that runs it; any that reaches the datastore when none.
    pub cluster: Option<&'a str>,
    /// By the old network's name, or a card's MAC address: the new network, or none. All other cards are not plugged in, either:
    /// the recorded configuration does not decide which network a machine reaches.
    pub networks: &'a BTreeMap<String, Option<String>>,
    /// Take the recorded UUIDs and MAC addresses: for the only one of its kind, not for a copy.
    pub keep_identity: bool,
    /// A line for people that the machine bears.
    pub note: &'a str,
}

/// A disk of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDisk {
    /// Its key when it was backed up.
    pub key: String,
    /// Its size in bytes.
    pub capacity_bytes: u64,
}

/// A hypervisor that machines can be restored to.
pub trait RemoteTarget: Send + Sync {
    /// Makes the machine, switched off, its disks empty. [`crate::Kind::Busy`] when the name, or a kept UUID, is taken.
    fn create(
        &self,
        new: &NewRemoteVm<'_>,
        task_id: &TaskId,
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Box<dyn Restoring>>;
}

/// A machine that is being restored. Dropping it before [`Restoring::finish`] takes it away, as well as that can be done.
pub trait Restoring: Send {
    /// What it is.
    fn vm(&self) -> &VmRef;

    /// What is not as it was, for people.
    fn notes(&self) -> &[String];

    /// Opens the disk at this place of the request for writing. It is empty: every byte reads as zero. Dropping what is
    /// given closes it.
    fn open_write(&self, disk: usize, cancel: &Cancel) -> Result<Arc<dyn Target>>;

    /// All disks are whole, and closed: the machine is somebody's from now on.
    fn finish(self: Box<Self>) -> Result<()>;

    /// Takes the machine away again. What cannot be taken away now stays in the journal.
    fn abandon(self: Box<Self>) -> Result<()>;
}
