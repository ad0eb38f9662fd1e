//! The process between the hub and the room: makes the namespaces, starts the room's first process in them, and waits.
//!
//! It exists because a process cannot enter a pid namespace of its own making; only its children do. When it is killed the
//! room's first process is killed by the kernel, and with that one everything in the namespace.
//!
//! Invariant: it never looks at what comes over the socket.

use crate::error::{Error, Result};
use crate::sandbox::Level;
use crate::worker::{close_strays, last_words, standard_input};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

/// The whole life of the process.
pub fn run() -> ExitCode {
    let Ok(socket) = standard_input() else { return ExitCode::FAILURE };
    match live(&socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_words(&socket, &error);
            ExitCode::FAILURE
        }
    }
}

fn live(socket: &UnixStream) -> Result<()> {
    close_strays(socket)?;
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|errno| Error::Sandbox(format!("be killed with the hub: {errno}")))?;
    let level = namespaces()?;
    let mut room = Command::new("/proc/self/exe")
        .arg(super::ROOM)
        .arg(level.to_string())
        .env_clear()
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::Sandbox(format!("start the first process of a pid namespace: {error}")))?;
    // It says itself why it ends.
    room.wait().map(|_| ()).map_err(|error| Error::Io(format!("wait for the room: {error}")))
}

/// Namespaces are the floor here, not an extra: the programs in the room open files and start processes.
fn namespaces() -> Result<u32> {
    let (user, group) = (Uid::effective(), Gid::effective());
    let mut level = Level::NET | Level::MOUNT | Level::IPC | Level::UTS | Level::PID;
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
        level |= Level::USER;
    }
    unshare(flags).map_err(|errno| Error::Sandbox(format!("make namespaces: {errno}")))?;
    if !user.is_root() {
        // Root of the namespace only until the room stands.
        let map = |file: &str, text: String| {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| Error::Sandbox(format!("write {file}: {error}")))
        };
        map("setgroups", "deny".into())?;
        map("uid_map", format!("0 {user} 1"))?;
        map("gid_map", format!("0 {group} 1"))?;
    }
    Ok(level)
}
