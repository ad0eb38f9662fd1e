//! Machines that run on disks which somebody else serves over NBD: an instant recovery's.
//!
//! The story: `socket` says where the disks must be served so that the hypervisor reaches them, `make_folder` prepares that
//! place, the caller serves them there and calls `admit`; `plan` writes the definition, `start` makes the machine known and starts it.
//! `end` takes the machine away again, `remove_folder` the place. The caller records all of it before `make_folder`.

use crate::error::Result;
use crate::model::{ConfigDocument, VmRef};
use crate::target::DiskFormat;
use sendense_block::Cancel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct InstantVm<'a> {
    /// Its name, which no other machine has.
    pub name: &'a str,
    /// The recorded configuration. It comes from a repository's folder and is believed in nothing.
    pub documents: &'a [ConfigDocument],
    /// The keys of the disks that there are, each with the name of its export; the others of the configuration are left out.
    pub disks: &'a [(String, String)],
    /// Where they are served.
    pub socket: &'a Path,
    /// By the name of the network or bridge that a card was in, or the card's MAC address: the new network, `bridge:` and the
    /// name of a bridge, or none. Cards that are not named are not plugged in.
    pub networks: &'a BTreeMap<String, Option<String>>,
}

/// A machine that can be started.
#[derive(Debug, Clone)]
pub struct PlannedInstant {
    /// What it will be.
    pub vm: VmRef,
    /// What the hypervisor is told.
    pub definition: String,
    /// The firmware's variables.
    pub nvram: Option<Vec<u8>>,
    /// What is not as it was, for people.
    pub notes: Vec<String>,
}

/// How such a machine is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is none, or none that has a disk of ours: somebody else's business.
    Gone,
    /// Switched off.
    Off,
    /// It runs, or somebody paused it.
    Running,
    /// It was stopped because a disk gave an error, and goes on when it is told to.
    Stopped,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moving {
    /// Bytes that are copied.
    pub done: u64,
    /// Bytes that will be.
    pub total: u64,
}

/// A hypervisor on this host whose machines can run on NBD exports.
pub trait Instant: Send + Sync {
    /// Where the disks of a recovery with this id must be served. Pure.
    fn socket(&self, id: &str) -> Result<PathBuf>;

    /// Makes the folder of a socket, in which nobody but us can put anything. What is there already is no error.
    fn make_folder(&self, socket: &Path) -> Result<()>;

    /// Lets the hypervisor connect to a socket that listens by now.
    fn admit(&self, socket: &Path) -> Result<()>;

    /// Removes the folder of a socket. What is gone already is no error.
    fn remove_folder(&self, socket: &Path) -> Result<()>;

    /// Decides everything without making anything. [`crate::Kind::Busy`] when the name is taken.
    fn plan(&self, new: &InstantVm<'_>, cancel: &Cancel) -> Result<PlannedInstant>;

    /// Makes the machine known and starts it. Its disks are served. Gives what could not be done on the way, for people.
    fn start(&self, planned: &PlannedInstant, cancel: &Cancel) -> Result<Vec<String>>;

    /// How it is.
    fn look(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Standing>;

    /// Lets a machine go on that was stopped because a disk gave an error.
    fn resume(&self, vm: &VmRef, cancel: &Cancel) -> Result<()>;

    /// The keys of the disks that the machine, as it runs and as it is stored, still has at this socket; none when there is
    /// no such machine.
    fn served(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Option<Vec<String>>>;

    /// Begins to copy a disk of a running machine into a new file of its own; what the machine writes meanwhile goes to both.
    fn begin_move(&self, vm: &VmRef, key: &str, file: &Path, format: DiskFormat, cancel: &Cancel) -> Result<()>;

    /// How far that is; none when nothing is copied.
    fn moving(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<Option<Moving>>;

    /// Lets the machine go on with the copy alone. False when it is not complete yet.
    fn finish_move(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<bool>;

    /// Ends a copy; the machine goes on with what it had. Nothing that is copied is no error.
    fn stop_move(&self, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<()>;

    /// Switches the machine off and makes it unknown, if it has a disk that is served at this socket. What is gone already
    /// is no error.
    fn end(&self, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<()>;
}
