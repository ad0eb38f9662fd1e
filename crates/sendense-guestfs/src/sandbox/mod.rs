//! Confining the process that reads a guest's disk, before it has seen a byte of it.
//!
//! The floor is seccomp: after it the process can read what it holds open, use memory and answer; it cannot open, connect,
//! signal, start or become anything. Where it cannot be set, nothing is opened. Everything else is a further wall behind
//! it, put up where the kernel allows and reported as the [`Level`].
//!
//! What is given up in this order, because each step needs what the next one takes away:
//!
//! ```text
//!     namespaces (net, mount, ipc, uts, pid; user first when not root) -> the host's mounts -> empty root folder
//!     -> unprivileged ids -> capabilities -> landlock (no file, no port, no foreign signal) -> limits
//!     -> not dumpable, killed with its parent -> seccomp
//! ```
//!
//! A root hub's worker gets no user namespace: it has dropped its ids, and the namespace would only give some power back.
//! The pid namespace is for children, which there are none of; with it even a new thread is refused by the kernel.
//!
//! Invariant: after [`enter`] has answered, whatever it answered, there is no way back.

pub mod ids;
mod seccomp;

use crate::error::{Error, Result};
use landlock::{ABI, Access, AccessFs, AccessNet, RulesetAttr, RulesetStatus, Scope};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use std::fmt;

/// Address space of a worker: 64 MiB for the readers, the program itself, and room for what a fragmented heap wastes.
pub const ADDRESS_BYTES_MAX: u64 = 512 << 20;

/// How well a worker is confined. Seccomp is always there, so it is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level(u32);

/// The walls behind seccomp and what they are called.
const WALLS: [(u32, &str); 16] = [
    (Level::UNPRIVILEGED, "unprivileged user"),
    (Level::OWN_ID, "user of its own"),
    (Level::USER, "user namespace"),
    (Level::NET, "network namespace"),
    (Level::MOUNT, "mount namespace"),
    (Level::IPC, "ipc namespace"),
    (Level::UTS, "uts namespace"),
    (Level::PID, "pid namespace"),
    (Level::EMPTY_ROOT, "empty root folder"),
    (Level::NO_CAPABILITIES, "no capabilities"),
    (Level::LANDLOCK, "landlock"),
    (Level::LIMITS, "resource limits"),
    (Level::NOT_DUMPABLE, "not dumpable"),
    (Level::VIRTUAL, "virtual machine"),
    (Level::EMULATED, "emulated machine"),
    (Level::CONTROL_GROUP, "control group"),
];

impl Level {
    /// It runs as a user that owns nothing; only a root hub can arrange that.
    pub const UNPRIVILEGED: u32 = 1;
    /// Own user namespace.
    pub const USER: u32 = 1 << 1;
    /// Own network without any device.
    pub const NET: u32 = 1 << 2;
    /// Own mounts.
    pub const MOUNT: u32 = 1 << 3;
    /// Own System V objects and message queues.
    pub const IPC: u32 = 1 << 4;
    /// Own host name.
    pub const UTS: u32 = 1 << 5;
    /// Children (there are none) would see no other process.
    pub const PID: u32 = 1 << 6;
    /// `/` is an empty folder.
    pub const EMPTY_ROOT: u32 = 1 << 7;
    /// No capability is left.
    pub const NO_CAPABILITIES: u32 = 1 << 8;
    /// Landlock refuses files.
    pub const LANDLOCK: u32 = 1 << 9;
    /// Memory, files, processes, core dumps.
    pub const LIMITS: u32 = 1 << 10;
    /// Not to be traced or read by others of the same user.
    pub const NOT_DUMPABLE: u32 = 1 << 11;
    /// The disk's reader is a guest on a virtual processor of its own.
    pub const VIRTUAL: u32 = 1 << 12;
    /// The same on an emulated one.
    pub const EMULATED: u32 = 1 << 13;
    /// Its memory and its processes are bounded by the kernel for all of them together.
    pub const CONTROL_GROUP: u32 = 1 << 14;
    /// No other process is that user, so that none but root may signal or trace it.
    pub const OWN_ID: u32 = 1 << 15;

    /// From the wire; unknown bits mean nothing.
    pub fn from_bits(bits: u32) -> Level {
        Level(WALLS.iter().fold(0, |known, (bit, _)| known | (bits & bit)))
    }

    /// For the wire.
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// Whether a wall stands.
    pub fn has(self, wall: u32) -> bool {
        self.0 & wall == wall
    }

    /// The same with what only the hub can know, whatever the process says of it.
    pub(crate) fn with_group(self, stands: bool) -> Level {
        let mut level = Level(self.0 & !Level::CONTROL_GROUP);
        level.add(Level::CONTROL_GROUP, stands);
        level
    }

    fn add(&mut self, wall: u32, stands: bool) {
        if stands {
            self.0 |= wall;
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seccomp")?;
        WALLS.iter().filter(|(bit, _)| self.has(*bit)).try_for_each(|(_, name)| write!(f, ", {name}"))
    }
}

/// Confines this process, which must have one thread. `uid` is what a root process becomes.
///
/// # Errors
/// [`Error::Sandbox`] when root cannot be given up or seccomp cannot be set; then nothing may be opened.
pub fn enter(uid: u32) -> Result<Level> {
    let mut level = walls(uid)?;
    // The kernel forgets this when ids change, so it comes after them. Should the parent have died before, the socket says so.
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(|errno| fault("be killed with the hub", errno))?;
    level.add(Level::NOT_DUMPABLE, prctl::set_dumpable(false).is_ok());
    seccomp::apply()?;
    Ok(level)
}

/// Everything but seccomp.
fn walls(uid: u32) -> Result<Level> {
    let mut level = Level::default();
    let others = [
        (CloneFlags::CLONE_NEWNET, Level::NET),
        (CloneFlags::CLONE_NEWNS, Level::MOUNT),
        (CloneFlags::CLONE_NEWIPC, Level::IPC),
        (CloneFlags::CLONE_NEWUTS, Level::UTS),
        (CloneFlags::CLONE_NEWPID, Level::PID),
    ];
    let root = Uid::effective().is_root();
    if !root {
        level.add(Level::USER, unshare(CloneFlags::CLONE_NEWUSER).is_ok());
    }
    for (flag, wall) in others {
        level.add(wall, unshare(flag).is_ok());
    }
    let proc_path = if level.has(Level::MOUNT) && leave_mounts().is_ok() { "" } else { "/proc" };
    // Of all folders this one holds least: what this process holds open, and nothing once it has ended.
    let empty = format!("{proc_path}/self/fdinfo");
    level.add(Level::EMPTY_ROOT, chroot(&*empty).is_ok() && chdir("/").is_ok());
    if root {
        become_user(uid)?;
        level.add(Level::UNPRIVILEGED, true);
        level.add(Level::OWN_ID, ids::is_own(uid));
    }
    level.add(Level::NO_CAPABILITIES, no_capabilities());
    prctl::set_no_new_privs().map_err(|errno| fault("give up new privileges", errno))?;
    level.add(Level::LANDLOCK, landlock());
    level.add(Level::LIMITS, limits());
    Ok(level)
}

/// Makes `/proc` the root folder and gives up every other mount, in a mount namespace of its own.
///
/// The namespace is a copy: while it lives it holds each file system that was mounted when it was made. Whoever unmounts one
/// elsewhere would be told that it is done, and the disk below would stay in use until the last reader has ended. Not every
/// kernel and root allows this (a root in the first memory file system, say); then the copy stays, out of reach.
fn leave_mounts() -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // In a user namespace only mounts that were made there can become the root.
    mount(Some("/proc"), "/proc", none, MsFlags::MS_REC | MsFlags::MS_BIND, none)?;
    chdir("/proc")?;
    // The old root comes to lie over the new one (pivot_root(2), "pivot_root(".", ".")"), and is then the one that goes.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn become_user(uid: u32) -> Result<()> {
    if uid == 0 {
        return Err(Error::Sandbox("the unprivileged user must not be root".into()));
    }
    setgroups(&[]).map_err(|errno| fault("leave all groups", errno))?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group).map_err(|errno| fault("change the group", errno))?;
    setresuid(user, user, user).map_err(|errno| fault("change the user", errno))
}

fn no_capabilities() -> bool {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).is_ok()
}

/// No path, no port, no signal or abstract socket to others: as much of it as this kernel knows.
fn landlock() -> bool {
    // The newest rules that were looked at; an older kernel enforces those it has.
    let abi = ABI::V6;
    let rules = landlock::Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self());
    rules.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

fn limits() -> bool {
    // The hard bound leaves room for the one call that is allowed more, see `memory_for_a_key`.
    let limits = [
        (Resource::RLIMIT_AS, ADDRESS_BYTES_MAX, MEMORY_BYTES_MAX),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_FSIZE, 0, 0),
        (Resource::RLIMIT_NPROC, 0, 0),
        // What is open stays open; nothing joins it.
        (Resource::RLIMIT_NOFILE, 0, 0),
        (Resource::RLIMIT_MEMLOCK, 0, 0),
        (Resource::RLIMIT_MSGQUEUE, 0, 0),
    ];
    limits.into_iter().all(|(resource, soft, hard)| setrlimit(resource, soft, hard).is_ok())
}

/// Deriving a key from a passphrase with Argon2 is meant to take memory; `cryptsetup` gives slots up to 1 GiB.
const KEY_ADDRESS_BYTES: u64 = crate::native::engine::DERIVATION_BYTES_MAX + (64 << 20);
/// The most that a reader can ever have.
pub const MEMORY_BYTES_MAX: u64 = ADDRESS_BYTES_MAX + KEY_ADDRESS_BYTES;

/// Runs `derive` with the address space that a key slot may ask for. Where the limit cannot be raised, it stays.
pub fn memory_for_a_key<T>(derive: impl FnOnce() -> T) -> T {
    let hard = MEMORY_BYTES_MAX;
    let raised = setrlimit(Resource::RLIMIT_AS, hard, hard).is_ok();
    let derived = derive();
    if raised {
        // Lowering a soft limit cannot fail; if it did, the hard one still holds.
        let _ = setrlimit(Resource::RLIMIT_AS, ADDRESS_BYTES_MAX, hard);
    }
    derived
}

fn fault(what: &str, errno: Errno) -> Error {
    Error::Sandbox(format!("{what}: {}", errno.desc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_says_what_stands_and_drops_what_it_does_not_know() {
        let level = Level::from_bits(Level::NET | Level::LANDLOCK | 1 << 31);
        assert_eq!(level.to_string(), "seccomp, network namespace, landlock");
        assert_eq!(level.to_bits(), Level::NET | Level::LANDLOCK);
        assert!(level.has(Level::NET) && !level.has(Level::USER));
        // Nobody says of himself that he is in a group.
        let liar = Level::from_bits(Level::NET | Level::CONTROL_GROUP);
        assert_eq!(liar.with_group(false).to_string(), "seccomp, network namespace");
        assert!(level.with_group(true).has(Level::LANDLOCK | Level::CONTROL_GROUP));
    }
}
