//! Processes that a dead predecessor of ours left: found again without ever hitting another one.
//!
//! What lives here: which process is which, and killing the right one. What does not: children of this process (they have
//! their supervisor). Invariant: a signal goes out by a handle (`pidfd`) of a process that was shown to be the right one
//! *after* the handle was opened; a pid that was given to another process meanwhile is noticed.

use crate::error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long the end of a killed child is waited for. SIGKILL takes effect at once unless the child hangs in the kernel
/// (a dead NFS server); then its supervisor stays behind and reaps it whenever that ends.
pub(super) const REAP_WAIT: Duration = Duration::from_secs(5);

/// Which process: a pid alone may be given to another one later, together with its start it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// Ends a process that a dead predecessor of ours started. `Ok(true)` when it is gone (also when it was gone before, or
/// its pid belongs to another process by now), `Ok(false)` when it is still dying.
pub fn reap(identity: Identity) -> Result<bool> {
    kill_if(identity.pid, || Ok(start_ticks(identity.pid)? == Some(identity.start_ticks)))
}

/// Ends every process that has `marker` as one of its arguments: for children whose pid could not be written down before
/// they existed. `marker` must be unmistakable (an absolute path in our own run folder).
pub fn reap_marked(marker: &OsStr) -> Result<bool> {
    let entries = fs::read_dir("/proc").map_err(|error| Error::new(Kind::Failed, "list /proc").caused_by(error))?;
    let mut all = true;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let bears = || match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(line) => Ok(line.split(|byte| *byte == 0).any(|arg| arg == marker.as_bytes())),
            // Gone meanwhile, or not ours to look at.
            Err(_) => Ok(false),
        };
        all &= kill_if(pid, bears)?;
    }
    Ok(all)
}

/// Kills a process when `is_it` says so before *and* after we hold it by a handle that no other process can get.
fn kill_if(pid: i32, is_it: impl Fn() -> io::Result<bool>) -> Result<bool> {
    let failed = |error: io::Error| Error::new(Kind::Failed, format!("look at process {pid}")).caused_by(error);
    let (true, Some(valid)) = (is_it().map_err(failed)?, Pid::from_raw(pid)) else { return Ok(true) };
    let handle = match rustix::process::pidfd_open(valid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(errno) => return Err(failed(errno.into())),
    };
    if !is_it().map_err(failed)? {
        return Ok(true);
    }
    match rustix::process::pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(errno) => {
            return Err(Error::new(Kind::Denied, format!("kill process {pid}")).caused_by(io::Error::from(errno)));
        }
    }
    let timeout = Timespec { tv_sec: REAP_WAIT.as_secs() as i64, tv_nsec: 0 };
    let gone = rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout));
    Ok(matches!(gone, Ok(1..)))
}

/// When a process started; none when there is no such process or only its corpse.
pub(super) fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    Ok(stat(pid)?.filter(|stat| stat.alive).map(|stat| stat.start_ticks))
}

pub(super) struct Stat {
    alive: bool,
    pub(super) start_ticks: u64,
}

pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // ESRCH: it went while the file was read.
        Err(error) if error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    // State is field 3; field 22 is the 19th after it.
    Some(Stat { alive: !matches!(state, "Z" | "X"), start_ticks: fields.nth(18)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_start() {
        let stat = b"42 (a) Z (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let parsed = parse_stat(stat).unwrap();
        assert_eq!((parsed.alive, parsed.start_ticks), (true, 987654));
        assert!(!parse_stat(b"42 (a) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2").unwrap().alive);
        assert!(parse_stat(b"42").is_none() && parse_stat(b"42 (a) S 1").is_none());
    }
}
