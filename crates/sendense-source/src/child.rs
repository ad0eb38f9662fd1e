//! A child process that cannot outlive us, cannot fill our memory and cannot be waited for in vain.
//!
//! What lives here: starting a tool, capturing its last words, its deadline, its end; and finding a child of a dead
//! predecessor again. What does not: which tools there are.
//!
//! A child is started through `setpriv --pdeathsig KILL` (util-linux), so that the kernel ends it when we die, however
//! we die. A signal that was asked for after our death never comes, so a one-line shell looks once more whether its parent
//! is still us before it becomes the tool. The signal follows the *thread* that started the child, so each child has its
//! own supervisor thread, which starts it, reads what it says, watches its deadline and stays until it has reaped it.
//!
//! Invariant: while the supervisor runs it holds the child unreaped, so the pid in [`Identity`] is nobody else's.

use crate::error::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use sendense_block::Cancel;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What is kept of each of stdout and stderr unless told otherwise: more than any tool's error message, and small
/// enough that a hundred children do not show in the hub's memory.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// How long the end of a killed child is waited for. SIGKILL takes effect at once unless the child hangs in the kernel
/// (a dead NFS server); then its supervisor stays behind and reaps it whenever that ends.
const REAP_WAIT: Duration = Duration::from_secs(5);

/// Becomes the tool unless the parent (`$0` is our pid) died before its death could be watched. The shell interprets
/// nothing of the tool's name and arguments.
const ONLY_BELOW_US: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// What to start and how.
#[derive(Debug, Clone)]
pub struct Spec {
    program: OsString,
    package: String,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    deadline: Option<Duration>,
    stdout_bytes_max: usize,
}

impl Spec {
    /// A program by name (looked up in `PATH`) or absolute path, and the Debian package that has it.
    pub fn new(program: impl Into<OsString>, package: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            package: package.into(),
            args: Vec::new(),
            envs: Vec::new(),
            deadline: None,
            stdout_bytes_max: OUTPUT_BYTES_MAX,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable. The child gets nothing else of our environment but `PATH`; messages are in the C locale.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// The child is killed when it still runs after this long. Without it, whoever holds the [`Child`] bounds its life.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How much of stdout to keep, where the tool's answer may be longer than [`OUTPUT_BYTES_MAX`].
    pub fn stdout_bytes_max(mut self, bytes: usize) -> Self {
        self.stdout_bytes_max = bytes;
        self
    }

    fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
}

/// Which process: a pid alone may be given to another one later, together with its start it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// Why a child is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Exited,
    /// It ran into its deadline and was killed.
    Deadline,
    /// It was killed on request.
    Killed,
}

/// How a child ended and what it said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Why it ended.
    pub ended: Ended,
    /// Its exit status.
    pub status: ExitStatus,
    /// The last of its stdout.
    pub stdout: Vec<u8>,
    /// True when stdout was longer than was kept.
    pub stdout_cut: bool,
    /// The last of its stderr.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// What it said on stderr, as one line for a message.
    pub fn complaint(&self) -> String {
        one_line(&self.stderr)
    }
}

#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    bytes_max: usize,
    cut: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let over = self.bytes.len().saturating_sub(self.bytes_max);
        self.cut |= over > 0;
        self.bytes.drain(..over);
    }
}

#[derive(Default)]
struct State {
    stdout: Tail,
    stderr: Tail,
    end: Option<(Ended, ExitStatus)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A running (or ended) child. Dropping it kills and reaps it.
pub struct Child {
    name: String,
    identity: Identity,
    shared: Arc<Shared>,
    /// Any byte, or the end of the stream, tells the supervisor to kill.
    killer: Arc<UnixStream>,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("name", &self.name).field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Child {
    /// Starts a child. A missing program is [`Kind::MissingTool`], naming its package.
    pub fn spawn(spec: &Spec) -> Result<Self> {
        let setpriv = find_tool(OsStr::new("setpriv"), "util-linux")?;
        let program = find_tool(&spec.program, &spec.package)?;
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "--no-new-privs", "--", "/bin/sh", "-c", ONLY_BELOW_US]);
        command.arg(std::process::id().to_string()).arg(program).args(&spec.args);
        command.env_clear().env("PATH", search_path()).env("LC_ALL", "C").envs(spec.envs.iter().cloned());
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

        let name = spec.name();
        let failed = |what: &str, error: io::Error| Error::new(Kind::Failed, format!("{what} {name}")).caused_by(error);
        let (killer, orders) = UnixStream::pair().map_err(|error| failed("make a socket for", error))?;
        let shared = Arc::new(Shared::default());
        shared.state.lock().stdout.bytes_max = spec.stdout_bytes_max;
        shared.state.lock().stderr.bytes_max = OUTPUT_BYTES_MAX;
        let (started, start) = mpsc::sync_channel(1);
        let (theirs, deadline) = (shared.clone(), spec.deadline);
        std::thread::Builder::new()
            .name("child".into())
            .spawn(move || match Supervisor::start(command, orders, deadline) {
                Ok((supervisor, identity)) => {
                    let _ = started.send(Ok(identity));
                    supervisor.run(&theirs);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(|error| failed("start a thread for", error))?;
        let identity = start
            .recv()
            .map_err(|_| Error::new(Kind::Failed, format!("start {name}")))?
            .map_err(|error| failed("start", error))?;
        Ok(Self { name, identity, shared, killer: Arc::new(killer) })
    }

    /// Which process it is, for the journal.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How it ended, or none while it runs.
    pub fn outcome(&self) -> Option<Outcome> {
        outcome_of(&self.shared.state.lock())
    }

    /// What it has said on stderr until now, as one line for a message.
    pub fn complaint(&self) -> String {
        one_line(&self.shared.state.lock().stderr.bytes)
    }

    /// Waits until it ends or somebody asks to stop, which kills it.
    pub fn wait(&self, cancel: &Cancel) -> Result<Outcome> {
        let killer = self.killer.clone();
        let _hook = cancel.on_cancel(move || order(&killer));
        let mut state = self.shared.state.lock();
        loop {
            if let Some(outcome) = outcome_of(&state) {
                drop(state);
                cancel.check()?;
                return Ok(outcome);
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// Kills it and waits a bounded time for its end; true when it is gone.
    pub fn kill(&self) -> bool {
        order(&self.killer);
        let until = Instant::now() + REAP_WAIT;
        let mut state = self.shared.state.lock();
        while state.end.is_none() {
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                return state.end.is_some();
            }
        }
        true
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.kill() {
            tracing::error!(program = self.name, pid = self.identity.pid, "a killed child does not end");
        }
    }
}

/// Runs a tool to its end; an exit status other than 0 is an error that quotes what it said.
pub fn run(spec: &Spec, cancel: &Cancel) -> Result<Outcome> {
    let outcome = Child::spawn(spec)?.wait(cancel)?;
    let name = spec.name();
    match outcome.ended {
        Ended::Exited if outcome.status.success() => Ok(outcome),
        Ended::Deadline => Err(Error::new(Kind::Unavailable, format!("{name} did not end in time and was killed"))),
        _ => Err(Error::new(Kind::Failed, format!("{name} failed ({}): {}", outcome.status, outcome.complaint()))),
    }
}

/// The path of a tool, or [`Kind::MissingTool`] naming the Debian package that has it.
pub fn find_tool(program: &OsStr, package: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let named = PathBuf::from(program);
    let found = if named.is_absolute() {
        Some(named).filter(runs)
    } else {
        std::env::split_paths(&search_path()).map(|folder| folder.join(program)).find(runs)
    };
    found.ok_or_else(|| {
        Error::new(Kind::MissingTool, format!("the program {} is not installed", program.to_string_lossy()))
            .hint(format!("install the package {package}"))
    })
}

/// Our `PATH`, with the administrator's folders at its end: an unprivileged service often lacks them.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

fn order(killer: &UnixStream) {
    // The other end is gone when the child is; then there is nothing to kill.
    let _ = rustix::net::send(killer, b"k", rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT);
}

fn outcome_of(state: &State) -> Option<Outcome> {
    let (ended, status) = state.end?;
    Some(Outcome {
        ended,
        status,
        stdout: state.stdout.bytes.clone(),
        stdout_cut: state.stdout.cut,
        stderr: state.stderr.bytes.clone(),
    })
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    // 1,000 characters fit into a log line; the end of a complaint says more than its beginning.
    let skip = line.chars().count().saturating_sub(1000);
    line.chars().skip(skip).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Belongs to the thread that started the child.
struct Supervisor {
    child: std::process::Child,
    pidfd: OwnedFd,
    orders: UnixStream,
    deadline: Option<Instant>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
}

impl Supervisor {
    fn start(mut command: Command, orders: UnixStream, deadline: Option<Duration>) -> io::Result<(Self, Identity)> {
        let mut child = command.spawn()?;
        let ready = (|| {
            let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
            let valid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("the kernel gave pid 0"))?;
            let pidfd = rustix::process::pidfd_open(valid, PidfdFlags::empty())?;
            // It may have ended by now, but it stays in /proc until it is waited for.
            let start_ticks = stat(pid)?.ok_or_else(|| io::Error::other("the child is not in /proc"))?.start_ticks;
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            for pipe in [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
                rustix::fs::fcntl_setfl(pipe, rustix::fs::OFlags::NONBLOCK)?;
            }
            Ok((Identity { pid, start_ticks }, pidfd, stdout, stderr))
        })();
        match ready {
            Ok((identity, pidfd, stdout, stderr)) => {
                let deadline = deadline.and_then(|after| Instant::now().checked_add(after));
                Ok((Self { child, pidfd, orders, deadline, stdout, stderr }, identity))
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    fn run(mut self, shared: &Shared) {
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
                let _ = self.child.kill();
                // From here on only the child's end is waited for.
                if polled.is_err() {
                    break;
                }
            }
        }
        // It is dead (or dying, if poll failed): this does not wait for long.
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(Signal::KILL.as_raw()));
        self.drain(shared);
        shared.state.lock().end = Some((ended, status));
        shared.changed.notify_all();
    }

    /// Takes what the pipes hold now.
    fn drain(&mut self, shared: &Shared) {
        drain(&mut self.stdout, |bytes| shared.state.lock().stdout.push(bytes));
        drain(&mut self.stderr, |bytes| shared.state.lock().stderr.push(bytes));
    }
}

/// Reads until the pipe is empty; one at its end is closed, so that it does not wake us again.
fn drain(pipe: &mut Option<impl Read>, mut push: impl FnMut(&[u8])) {
    let mut buf = [0; 16 << 10];
    while let Some(open) = pipe {
        match open.read(&mut buf) {
            Ok(len @ 1..) => push(&buf[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => *pipe = None,
        }
    }
}

/// When a process started; none when there is no such process or only its corpse.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    Ok(stat(pid)?.filter(|stat| stat.alive).map(|stat| stat.start_ticks))
}

struct Stat {
    alive: bool,
    start_ticks: u64,
}

fn stat(pid: i32) -> io::Result<Option<Stat>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    fn shell(script: &str) -> Spec {
        Spec::new("sh", "dash").arg("-c").arg(script)
    }

    fn is_gone(identity: Identity) -> bool {
        start_ticks(identity.pid).unwrap() != Some(identity.start_ticks)
    }

    /// Polls for at most 10 s: far longer than the kernel needs to end a process.
    fn eventually(mut what: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if what() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn output_and_status_are_captured_and_bounded() {
        let outcome = Child::spawn(&shell("echo out; echo err >&2; exit 3")).unwrap().wait(&Cancel::new()).unwrap();
        assert_eq!((outcome.ended, outcome.status.code()), (Ended::Exited, Some(3)));
        assert_eq!((outcome.stdout.as_slice(), outcome.complaint().as_str()), (&b"out\n"[..], "err"));
        let outcome = run(&shell("head -c 1000000 /dev/zero | tr '\\0' x; echo end"), &Cancel::new()).unwrap();
        assert_eq!(outcome.stdout.len(), OUTPUT_BYTES_MAX);
        assert!(outcome.stdout_cut && outcome.stdout.ends_with(b"xend\n"));
        assert!(run(&shell("echo no >&2; exit 1"), &Cancel::new()).unwrap_err().message.ends_with(": no"));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Child::spawn(&Spec::new("no-such-program", "no-package")).unwrap_err();
        assert_eq!(error.kind, Kind::MissingTool);
        assert!(error.to_string().contains("no-package"));
    }

    #[test]
    fn deadline_cancel_and_drop_end_it() {
        let late =
            Child::spawn(&Spec::new("sleep", "coreutils").arg("1000").deadline(Duration::from_millis(20))).unwrap();
        assert_eq!(late.wait(&Cancel::new()).unwrap().ended, Ended::Deadline);

        let child = Child::spawn(&Spec::new("sleep", "coreutils").arg("1000")).unwrap();
        let cancel = Cancel::new();
        cancel.cancel();
        assert_eq!(child.wait(&cancel).unwrap_err().kind, Kind::Cancelled);
        assert_eq!(child.outcome().unwrap().ended, Ended::Killed);

        let child = Child::spawn(&Spec::new("sleep", "coreutils").arg("1000")).unwrap();
        let identity = child.identity();
        assert!(!is_gone(identity));
        drop(child);
        assert!(is_gone(identity));
    }

    #[test]
    fn reaping_hits_the_very_process_only() {
        let child = Child::spawn(&Spec::new("sleep", "coreutils").arg("1000")).unwrap();
        let identity = child.identity();
        assert!(reap(Identity { start_ticks: identity.start_ticks + 1, ..identity }).unwrap());
        assert!(!is_gone(identity), "a process with another start was killed");
        assert!(reap(identity).unwrap() && reap(identity).unwrap());
        assert!(eventually(|| is_gone(identity)));

        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("socket");
        let tail = |path: &std::path::Path| {
            fs::write(path, "").unwrap();
            Child::spawn(&Spec::new("tail", "coreutils").arg("-f").arg(path)).unwrap()
        };
        // setpriv bears the marker too and becomes the tool, under the same pid.
        let (marked, other) = (tail(&marker), tail(&dir.path().join("socket2")));
        assert!(reap_marked(marker.as_os_str()).unwrap());
        assert!(eventually(|| is_gone(marked.identity())));
        assert!(!is_gone(other.identity()));
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_start() {
        let stat = b"42 (a) Z (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let parsed = parse_stat(stat).unwrap();
        assert_eq!((parsed.alive, parsed.start_ticks), (true, 987654));
        assert!(!parse_stat(b"42 (a) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2").unwrap().alive);
        assert!(parse_stat(b"42").is_none() && parse_stat(b"42 (a) S 1").is_none());
    }

    /// Plays two roles: the test starts its own program again as the parent that is to be killed.
    #[test]
    fn killing_the_parent_kills_the_child() {
        const ROLE: &str = "SENDENSE_TEST_PARENT";
        if std::env::var_os(ROLE).is_some() {
            let child = Child::spawn(&Spec::new("sleep", "coreutils").arg("1000")).unwrap();
            println!("\nCHILD {} {}", child.identity().pid, child.identity().start_ticks);
            let _ = child.wait(&Cancel::new());
            return;
        }
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::tests::killing_the_parent_kills_the_child", "--nocapture"])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufReader::new(parent.stdout.take().unwrap()).lines();
        let line =
            lines.map(Result::unwrap).find(|line| line.starts_with("CHILD ")).expect("the parent names its child");
        let mut fields = line.split(' ').skip(1);
        let pid = fields.next().unwrap().parse().unwrap();
        let identity = Identity { pid, start_ticks: fields.next().unwrap().parse().unwrap() };
        assert!(!is_gone(identity));
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert!(eventually(|| is_gone(identity)), "the child outlived its parent");
    }
}
