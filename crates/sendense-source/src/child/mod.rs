//! A child process that cannot outlive us, cannot fill our memory and cannot be waited for in vain.
//!
//! What lives here: what to start, the running child, what it said. Below: its supervisor thread (`supervisor`), and the
//! children of a dead predecessor (`reap`). What does not: which tools there are.
//!
//! A child is started through `setpriv --pdeathsig KILL` (util-linux), so that the kernel ends it when we die, however
//! we die. A signal that was asked for after our death never comes, so a one-line shell looks once more whether its parent
//! is still us before it becomes the tool. The signal follows the *thread* that started the child, so each child has its
//! own supervisor thread, which starts it, reads what it says, watches its deadline and stays until it has reaped it.
//!
//! Invariant: while the supervisor runs it holds the child unreaped, so the pid in [`Identity`] is nobody else's.

mod reap;
mod supervisor;

pub use reap::{Identity, reap, reap_marked};

use crate::error::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex};
use reap::REAP_WAIT;
use sendense_block::Cancel;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use supervisor::Supervisor;

/// What is kept of each of stdout and stderr unless told otherwise: more than any tool's error message, and small
/// enough that a hundred children do not show in the hub's memory.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Becomes the tool unless the parent (`$0` is our pid) died before its death could be watched. The shell interprets
/// nothing of the tool's name and arguments.
const ONLY_BELOW_US: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// The same for a child that has its process group (`kill 0` means the group). A watcher in the group waits on a socket whose
/// other end only we hold: when we die, however that is, it reads the end of it and ends the group, itself included.
const ONLY_BELOW_US_WITH_ITS_GROUP: &str = r#"[ "$PPID" = "$0" ] || exit 1
exec 3<&0 </dev/null
(read -r end <&3; kill -s KILL 0) >/dev/null 2>&1 &
exec "$@" 3<&-"#;

/// What to start and how.
#[derive(Debug, Clone)]
pub struct Spec {
    program: OsString,
    package: String,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    deadline: Option<Duration>,
    stdout_bytes_max: usize,
    has_group: bool,
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
            has_group: false,
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

    /// The child is a program of somebody else's that may start programs of its own: all that stays in its process group ends with
    /// it, with its deadline, with an order to kill it, and with us.
    pub fn with_its_group(mut self) -> Self {
        self.has_group = true;
        self
    }

    fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }
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
    /// When the supervisor killed it, be it for its deadline or on request.
    killed_at: Option<Instant>,
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
        Self::spawn_with(spec, Stdio::null())
    }

    /// The same, with something on its stdin; our copy of that is closed. A child with its group has nothing there.
    pub fn spawn_with(spec: &Spec, stdin: Stdio) -> Result<Self> {
        let setpriv = find_tool(OsStr::new("setpriv"), "util-linux")?;
        let program = find_tool(&spec.program, &spec.package)?;
        let mut command = Command::new(setpriv);
        let script = if spec.has_group { ONLY_BELOW_US_WITH_ITS_GROUP } else { ONLY_BELOW_US };
        command.args(["--pdeathsig", "KILL", "--no-new-privs", "--", "/bin/sh", "-c", script]);
        command.arg(std::process::id().to_string()).arg(program).args(&spec.args);
        command.env_clear().env("PATH", search_path()).env("LC_ALL", "C").envs(spec.envs.iter().cloned());
        command.current_dir("/").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());

        let name = spec.name();
        let failed = |what: &str, error: io::Error| Error::new(Kind::Failed, format!("{what} {name}")).caused_by(error);
        let (killer, orders) = UnixStream::pair().map_err(|error| failed("make a socket for", error))?;
        let group = match spec.has_group {
            true => {
                let (life, theirs) = UnixStream::pair().map_err(|error| failed("make a socket for", error))?;
                command.process_group(0).stdin(std::os::fd::OwnedFd::from(theirs));
                Some(life)
            }
            false => None,
        };
        let shared = Arc::new(Shared::default());
        shared.state.lock().stdout.bytes_max = spec.stdout_bytes_max;
        shared.state.lock().stderr.bytes_max = OUTPUT_BYTES_MAX;
        let (started, start) = mpsc::sync_channel(1);
        let (theirs, deadline) = (shared.clone(), spec.deadline);
        std::thread::Builder::new()
            .name("child".into())
            .spawn(move || match Supervisor::start(command, orders, deadline, group) {
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

    /// Waits until it ends or somebody asks to stop, which kills it. One that hangs in the kernel may outlive being killed; that is
    /// waited for a bounded time, and then it is an error. Its supervisor stays with it.
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
            let Some(killed_at) = state.killed_at else {
                self.shared.changed.wait(&mut state);
                continue;
            };
            let timed_out = self.shared.changed.wait_until(&mut state, killed_at + REAP_WAIT).timed_out();
            if timed_out && state.end.is_none() {
                drop(state);
                cancel.check()?;
                let message = format!("{} was killed and does not end: it hangs in the kernel", self.name);
                return Err(Error::new(Kind::Failed, message)
                    .hint("a device or a share that it uses does not answer; it ends when that does"));
            }
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
    run_with(spec, Stdio::null(), cancel)
}

/// The same, with something on its stdin, such as a socket that it is to speak over.
pub fn run_with(spec: &Spec, stdin: Stdio, cancel: &Cancel) -> Result<Outcome> {
    let outcome = Child::spawn_with(spec, stdin)?.wait(cancel)?;
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

/// Writes a script that can be started. Another process writes it: a file that this one has open for writing at the moment at
/// which another test forks cannot be executed until that child has become its program.
#[cfg(test)]
pub(crate) fn write_script(path: &std::path::Path, text: &str) {
    use std::io::Write;
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("start a shell");
    shell.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("write the script");
    assert!(shell.wait().expect("wait for the shell").success(), "write {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;
    use reap::start_ticks;
    use std::io::BufRead;

    fn shell(script: &str) -> Spec {
        Spec::new("sh", "dash").arg("-c").arg(script)
    }

    fn is_gone(identity: Identity) -> bool {
        start_ticks(identity.pid).unwrap() != Some(identity.start_ticks)
    }

    /// Polls for at most 10 s: far longer than the kernel needs to end a process.
    fn eventually(mut what: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(60);
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
    fn a_tool_speaks_over_the_socket_that_it_was_given() {
        use std::io::{Read, Write};
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"hello\n").unwrap();
        run_with(
            &shell("read word && echo $word again >&0"),
            std::os::fd::OwnedFd::from(theirs).into(),
            &Cancel::new(),
        )
        .unwrap();
        let mut said = String::new();
        // Ends: nobody but the child held the other end.
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello again\n");
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
        // setpriv bears the marker too and becomes the tool, under the same pid; in between it bears nothing.
        let (marked, other) = (tail(&marker), tail(&dir.path().join("socket2")));
        let words = || fs::read(format!("/proc/{}/cmdline", marked.identity().pid)).unwrap_or_default();
        let is_tool = |words: &[u8]| !words.windows(7).any(|part| part == b"setpriv") && words.ends_with(b"/socket\0");
        assert!(eventually(|| is_tool(&words())));
        assert!(reap_marked(marker.as_os_str()).unwrap());
        assert!(eventually(|| is_gone(marked.identity())));
        assert!(!is_gone(other.identity()));
    }

    /// The pids of two processes that a child with its group has started: one in a pipe of its own.
    fn family(child: &Child) -> Vec<Identity> {
        let said = || String::from_utf8_lossy(&child.shared.state.lock().stdout.bytes).into_owned();
        assert!(eventually(|| said().lines().count() == 2), "{:?}", said());
        let identity = |line: &str| {
            let pid = line.parse().unwrap();
            Identity { pid, start_ticks: start_ticks(pid).unwrap().expect("it runs") }
        };
        said().lines().map(identity).collect()
    }

    const FAMILY: &str = "sleep 1000 & echo $!; (sleep 1000 & echo $!; wait) & ";

    #[test]
    fn what_a_child_has_started_ends_with_its_deadline_its_order_and_itself() {
        let dir = tempfile::tempdir().unwrap();
        let end = dir.path().join("end");
        let until_told = format!("until test -e {}; do sleep 0.05; done", end.display());
        for expected in [Ended::Deadline, Ended::Killed, Ended::Exited] {
            let last = if expected == Ended::Exited { &until_told } else { "wait" };
            let spec = shell(&format!("{FAMILY}{last}")).with_its_group();
            // Longer than the slowest machine takes to begin two processes.
            let spec = if expected == Ended::Deadline { spec.deadline(Duration::from_secs(10)) } else { spec };
            let child = Child::spawn(&spec).unwrap();
            let family = family(&child);
            assert!(!family.iter().copied().any(is_gone));
            match expected {
                Ended::Deadline => {}
                Ended::Killed => assert!(child.kill()),
                Ended::Exited => fs::write(&end, "").unwrap(),
            }
            assert_eq!(child.wait(&Cancel::new()).unwrap().ended, expected);
            assert!(eventually(|| family.iter().copied().all(is_gone)), "{expected:?}: {family:?}");
        }
    }

    #[test]
    fn a_flood_of_words_holds_up_neither_deadline_nor_order() {
        let flood = Spec::new("yes", "coreutils").with_its_group();
        let of = |seconds| Child::spawn(&flood.clone().deadline(Duration::from_secs(seconds))).unwrap();
        // However slow the machine is, one of these is long enough for it to be flooded.
        let outcome = [1, 4, 16].into_iter().map(|seconds| of(seconds).wait(&Cancel::new()).unwrap());
        let mut outcome = outcome.inspect(|outcome| assert_eq!(outcome.ended, Ended::Deadline));
        let outcome = outcome.find(|outcome| outcome.stdout_cut).expect("16 s are enough");
        assert_eq!(outcome.stdout.len(), OUTPUT_BYTES_MAX);
        let child = Child::spawn(&flood).unwrap();
        assert!(eventually(|| !child.shared.state.lock().stdout.bytes.is_empty()));
        assert!(child.kill(), "it is gone");
    }

    #[test]
    fn killing_us_kills_what_a_child_has_started() {
        const ROLE: &str = "SENDENSE_TEST_GROUP_PARENT";
        if std::env::var_os(ROLE).is_some() {
            let child = Child::spawn(&shell(&format!("{FAMILY}wait")).with_its_group()).unwrap();
            let family = family(&child).into_iter().chain([child.identity()]);
            let told: Vec<_> = family.map(|one| format!("{} {}", one.pid, one.start_ticks)).collect();
            println!("\nFAMILY {}", told.join(" "));
            let _ = child.wait(&Cancel::new());
            return;
        }
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::tests::killing_us_kills_what_a_child_has_started", "--nocapture"])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufReader::new(parent.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.starts_with("FAMILY ")).expect("they are told");
        let numbers: Vec<u64> = line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        let family: Vec<_> =
            numbers.chunks(2).map(|pair| Identity { pid: pair[0] as i32, start_ticks: pair[1] }).collect();
        assert_eq!(family.len(), 3);
        assert!(!family.iter().copied().any(is_gone));
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert!(eventually(|| family.iter().copied().all(is_gone)), "somebody outlived us");
    }

    /// Nothing in a test can hang in the kernel for sure, so the supervisor is left out: it says that it has killed, and no more.
    #[test]
    fn a_killed_child_that_does_not_end_is_not_waited_for() {
        let (killer, orders) = UnixStream::pair().unwrap();
        let shared = Arc::new(Shared::default());
        let identity = Identity { pid: 1, start_ticks: 0 };
        let child = Child { name: "hangs".to_owned(), identity, shared: shared.clone(), killer: Arc::new(killer) };
        let long_ago = Instant::now().checked_sub(REAP_WAIT).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| child.wait(&Cancel::new()).unwrap_err().message);
            shared.state.lock().killed_at = Some(long_ago);
            shared.changed.notify_all();
            assert_eq!(waits.join().unwrap(), "hangs was killed and does not end: it hangs in the kernel");
        });
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(child.wait(&cancel).is_err(), "nor when it was asked for");
        // So that its drop finds it gone.
        shared.state.lock().end = Some((Ended::Killed, std::process::ExitStatus::default()));
        drop(orders);
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
