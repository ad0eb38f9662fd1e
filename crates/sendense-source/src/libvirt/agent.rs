//! The guest's file systems, frozen through the guest agent for the moment in which the job begins.
//!
//! What lives here: freezing, thawing, and the watcher that thaws when we cannot. What does not: when to freeze.
//!
//! A guest that stays frozen is an outage. So before the freeze a **watcher** is started: a shell in a process group of
//! its own, which holds the reading end of a pipe. It ends at once when we write `thawed`. When the pipe is closed (we
//! died, however) or [`WATCH_SECONDS`] have passed (we hang), it thaws the guest itself and ends. It is the only child that
//! may outlive us, and it cannot do so for longer than its tries take.
//!
//! The agent is asked by `qemu-agent-command` and not by `domfsfreeze`, because only the former takes a time limit: a hung
//! agent holds libvirt's lock on the agent for ever otherwise, and then nobody can thaw.

use super::virsh::Virsh;
use crate::child::find_tool;
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// When the watcher thaws, counted from before the freeze, so that the guest is not frozen for more than 10 s.
const WATCH_SECONDS: u64 = 9;
/// After this much of a freeze the watcher may have thawed, and what was made meanwhile is not consistent.
const SURE: Duration = Duration::from_secs(WATCH_SECONDS - 1);
/// How long the agent may take to thaw; it is one ioctl per file system.
const THAW_SECONDS: u64 = 3;

/// How long it tries. libvirt may be busy ending the freeze that we were killed in, or be dead: a service manager has
/// started it again long before, and if nobody does, the journal's entry stays and the guest is thawed at the next start.
const TRY_SECONDS: u64 = 120;

/// `$1` seconds, `$2` virsh, `$3` URI, `$4` domain, `$5` the thaw command, `$6` seconds of trying. A dead daemon refuses at
/// once, a hung one costs a try's 6 s. Signals to our group or from a service manager that tidies up after our death are
/// ignored; the child's inherit that.
const WATCHER: &str = r#"trap "" HUP INT TERM
word=$(timeout -s KILL "$1" head -n 1)
[ "$word" = thawed ] && exit 0
read -r now rest </proc/uptime
end=$((${now%.*} + $6))
while [ "${now%.*}" -lt "$end" ]; do
    timeout -s KILL 6 "$2" --quiet --connect "$3" qemu-agent-command --timeout 3 "$4" "$5" && exit 0
    sleep 1
    read -r now rest </proc/uptime
done"#;

const FREEZE: &str = r#"{"execute":"guest-fsfreeze-freeze"}"#;
const THAW: &str = r#"{"execute":"guest-fsfreeze-thaw"}"#;

/// A guest whose file systems are frozen. Dropping it lets the watcher thaw at once.
pub(super) struct Quiesced {
    virsh: Virsh,
    domain: String,
    watcher: Watcher,
    since: Instant,
    file_systems: u64,
}

/// Why a guest was not frozen.
pub(super) struct NotFrozen {
    pub error: Error,
    /// It is certain that no file system of it is frozen. If not, the watcher goes on trying to thaw it.
    pub thawed: bool,
}

/// Freezes the guest's file systems.
pub(super) fn freeze(virsh: &Virsh, domain: &str, timeout_s: u64, cancel: &Cancel) -> Result<Quiesced, NotFrozen> {
    let since = Instant::now();
    let watcher = Watcher::start(virsh, domain).map_err(|error| NotFrozen { error, thawed: true })?;
    // While the agent is silent its guest may be frozen already: the rest of the watcher's time is for thawing.
    let timeout_s = timeout_s.clamp(1, WATCH_SECONDS - THAW_SECONDS - 1);
    match ask(virsh, domain, FREEZE, timeout_s, cancel) {
        Ok(file_systems) => {
            Ok(Quiesced { virsh: virsh.clone(), domain: domain.to_owned(), watcher, since, file_systems })
        }
        Err(error) => {
            // It may have frozen some file systems before it failed.
            let thawed = ask(virsh, domain, THAW, THAW_SECONDS, &Cancel::new()).is_ok();
            if thawed {
                watcher.dismiss();
            }
            Err(NotFrozen { error, thawed })
        }
    }
}

/// Thaws a guest that a dead process of ours froze.
pub(super) fn thaw(virsh: &Virsh, domain: &str, cancel: &Cancel) -> Result<()> {
    ask(virsh, domain, THAW, THAW_SECONDS, cancel).map(drop)
}

impl Quiesced {
    /// Thaws. The first result says whether the guest was frozen all the time (if not, why), the second whether it is
    /// certainly thawed now; if not, the watcher goes on trying.
    pub fn thaw(self) -> (Result<(), String>, Result<()>) {
        let answer = ask(&self.virsh, &self.domain, THAW, THAW_SECONDS, &Cancel::new());
        let held = match &answer {
            _ if self.file_systems == 0 => Err("the guest agent froze no file system".to_owned()),
            _ if self.since.elapsed() > SURE => Err("the freeze took too long and was broken off".to_owned()),
            Ok(0) => Err("somebody else thawed the guest in the meantime".to_owned()),
            Ok(_) => Ok(()),
            // It was frozen until now; it is only not known to be thawed.
            Err(_) => Ok(()),
        };
        match answer {
            Ok(_) => {
                self.watcher.dismiss();
                (held, Ok(()))
            }
            Err(error) => (held, Err(error)),
        }
    }
}

fn ask(virsh: &Virsh, domain: &str, command: &str, timeout_s: u64, cancel: &Cancel) -> Result<u64> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "return")]
        count: u64,
    }
    let seconds = timeout_s.to_string();
    // libvirt synchronises with the agent first, for which it allows as long again.
    let deadline = Duration::from_secs(timeout_s * 2 + 1);
    let text = virsh.call(&["qemu-agent-command", "--timeout", &seconds, domain, command], deadline, cancel)?;
    let answer: Answer = serde_json::from_str(text.trim())
        .map_err(|error| Error::new(Kind::Failed, "the guest agent's answer cannot be read").caused_by(error))?;
    Ok(answer.count)
}

/// The shell that thaws when we cannot.
struct Watcher {
    child: Option<Child>,
    pipe: Option<ChildStdin>,
}

impl Watcher {
    fn start(virsh: &Virsh, domain: &str) -> Result<Self> {
        let program = find_tool(&virsh.program, "libvirt-clients")?;
        find_tool(OsStr::new("timeout"), "coreutils")?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WATCHER, "thaw-watcher", &WATCH_SECONDS.to_string()]).arg(program);
        command.args([&virsh.uri, domain, THAW, &TRY_SECONDS.to_string()]).env("LC_ALL", "C").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let failed = |error| Error::new(Kind::Failed, "start the watcher that thaws the guest").caused_by(error);
        let mut child = command.spawn().map_err(failed)?;
        let pipe = child.stdin.take();
        Ok(Self { child: Some(child), pipe })
    }

    /// There is nothing left to thaw.
    fn dismiss(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // It fails when the watcher's time is over; then it has thawed, too.
            let _ = pipe.write_all(b"thawed\n");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Without a word before, this is what sets it to work.
        self.pipe.take();
        let Some(mut child) = self.child.take() else { return };
        // Reap it: in milliseconds if it was dismissed, else by a thread, since it may try for a while.
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        if let Err(error) = std::thread::Builder::new().name("thaw-watcher".into()).spawn(move || child.wait()) {
            tracing::warn!(%error, "a watcher's end is not waited for");
        }
    }
}
