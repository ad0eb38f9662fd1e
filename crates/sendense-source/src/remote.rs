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
use sendense_block::copy::Existing;
use sendense_block::{
    AllocationMap, ByteLen, ByteOffset, Cancel, Extent, Flush, MappedExtent, ReadAt, Target, WriteAt, ZeroRange,
};
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

    /// Takes a machine that exists, to write onto the disks with those keys and sizes. [`crate::Kind::Busy`] while it runs, has
    /// snapshots, or another task is at it. From here on its next backup compares all blocks.
    fn onto(
        &self,
        vm: &VmRef,
        disks: &[RemoteDisk],
        task_id: &TaskId,
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Box<dyn Overwriting>>;
}

/// A machine whose disks are being written onto. Dropping it lets it go, as it is then.
pub trait Overwriting: Send + Sync {
    /// Opens the disk at that place of the list. Fails when the machine was started or got a snapshot meanwhile.
    fn open(&self, disk: usize, cancel: &Cancel) -> Result<Volume>;

    /// Lets the machine go; an error when something was done to it meanwhile, so that nobody knows what it holds.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A disk of a hypervisor's that can be read and written.
pub struct Volume(Arc<dyn Existing>);

impl Volume {
    /// As a value, whoever serves it.
    pub fn new(disk: Arc<dyn Existing>) -> Self {
        Self(disk)
    }
}

impl ReadAt for Volume {
    fn size(&self) -> ByteLen {
        self.0.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        self.0.read_at(at, buf)
    }
}

impl AllocationMap for Volume {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.0.allocation(within)
    }
}

impl WriteAt for Volume {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> sendense_block::Result<()> {
        self.0.write_at(at, data)
    }
}

impl ZeroRange for Volume {
    fn zero_range(&self, range: Extent) -> sendense_block::Result<()> {
        self.0.zero_range(range)
    }
}

impl Flush for Volume {
    fn flush(&self) -> sendense_block::Result<()> {
        self.0.flush()
    }
}

impl Existing for Volume {
    fn forget(&self, range: Extent) {
        self.0.forget(range);
    }
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
