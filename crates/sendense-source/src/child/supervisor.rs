//! The thread that starts a child and stays with it to its end.
//!
//! What lives here: the loop over what the child says, its deadline, the order to kill, its end. Invariant: the child is
//! reaped by this thread and nobody else, and until then its pid is its own.

use super::reap::{self, Identity};
use super::{Ended, Shared};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// Belongs to the thread that started the child.
pub(super) struct Supervisor {
    child: std::process::Child,
    pidfd: OwnedFd,
    orders: UnixStream,
    deadline: Option<Instant>,
    /// Of a child with its process group: while this is open, the group's watcher lets it live.
    group: Option<UnixStream>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
}

impl Supervisor {
    pub(super) fn start(
        mut command: Command,
        orders: UnixStream,
        deadline: Option<Duration>,
        group: Option<UnixStream>,
    ) -> io::Result<(Self, Identity)> {
        let mut child = command.spawn()?;
        let ready = (|| {
            let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
            let valid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the kernel gave pid 0"))?;
            let pidfd = rustix::process::pidfd_open(valid, PidfdFlags::empty())?;
            // It may have ended by now, but it stays in /proc until it is waited for.
            let start_ticks =
                reap::stat(pid)?.ok_or_else(|| io::Error::other("the child is not in /proc"))?.start_ticks;
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            for pipe in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
                rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK)?;
            }
            Ok((Identity { pid, start_ticks }, pidfd, stdout, stderr))
        })();
        match ready {
            Ok((identity, pidfd, stdout, stderr)) => {
                let deadline = deadline.and_then(|after| Instant::now().checked_add(after));
                Ok((Self { child, pidfd, orders, deadline, group, stdout, stderr }, identity))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(super) fn run(mut self, shared: &Shared) {
        let mut ended = Ended::Exited;
        loop {
            let timeout = self.deadline.filter(|_| ended == Ended::Exited).map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            let pipes = [self.stdout.as_ref().map(AsFd::as_fd), self.stderr.as_ref().map(AsFd::as_fd)];
            fds.extend(pipes.into_iter().flatten().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
            if ended == Ended::Exited {
                fds.push(PollFd::new(&self.orders, PollFlags::IN));
            }
            let polled = rustix::event::poll(&mut fds, timeout.as_ref());
            let gone = !fds[0].revents().is_empty();
            let ordered = ended == Ended::Exited && fds.last().is_some_and(|orders| !orders.revents().is_empty());
            drop(fds);
            self.drain(shared);
            match polled {
                _ if gone => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // Without poll there is no deadline and no kill: end the child rather than lose control of it.
                Err(_) => ended = Ended::Killed,
            }
            let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if ended == Ended::Exited && ordered {
                ended = Ended::Killed;
            } else if ended == Ended::Exited && late {
                ended = Ended::Deadline;
            }
            if ended != Ended::Exited {
                self.end_group();
                let _ = self.child.kill();
                let mut state = shared.state.lock();
                if state.killed_at.is_none() {
                    state.killed_at = Some(Instant::now());
                    shared.changed.notify_all();
                }
                // From here on only the child's end is waited for.
                if polled.is_err() {
                    break;
                }
            }
        }
        // What it has left in its group goes, too. Until it is waited for, nobody else can have its number, nor a group of it.
        self.end_group();
        // It is dead (or dying, if poll failed): this does not wait for long.
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(Signal::KILL.as_raw()));
        self.drain(shared);
        shared.state.lock().end = Some((ended, status));
        shared.changed.notify_all();
    }

    /// Ends all that is in the child's process group, where it has one of its own.
    fn end_group(&self) {
        let leader = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(_), Some(leader)) = (&self.group, leader) {
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }

    /// Takes what the pipes hold now.
    fn drain(&mut self, shared: &Shared) {
        drain(&mut self.stdout, |bytes| shared.state.lock().stdout.push(bytes));
        drain(&mut self.stderr, |bytes| shared.state.lock().stderr.push(bytes));
    }
}

/// Reads at one look: a child that says more than we can read is looked at again, after its deadline and orders were.
const READS_MAX: usize = 64;

/// Reads until the pipe is empty, or so often; one at its end is closed, so that it does not wake us again.
fn drain(pipe: &mut Option<impl Read>, mut push: impl FnMut(&[u8])) {
    let mut buf = [0; 16 << 10];
    for _ in 0..READS_MAX {
        let Some(open) = pipe else { return };
        match open.read(&mut buf) {
            Ok(len @ 1..) => push(&buf[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => *pipe = None,
        }
    }
}
