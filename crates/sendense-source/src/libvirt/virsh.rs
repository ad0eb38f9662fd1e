//! One call of `virsh`: its arguments, its deadline, what its complaint means.
//!
//! What lives here: starting it and sorting its failures into kinds. What does not: which commands there are.
//! Invariant: no call outlives its deadline, and a domain is always named by its UUID, so that no name that a user chose
//! is ever read as a flag or as a number.

use crate::child::{Child, Ended, Spec};
use crate::error::{Error, Kind, Result};
use crate::libvirt::xml::DOCUMENT_BYTES_MAX;
use sendense_block::Cancel;
use std::ffi::OsString;
use std::time::Duration;

/// A question. It takes 15 ms; a daemon that has just started probes QEMU for seconds first (measured: 4).
pub(super) const QUESTION: Duration = Duration::from_secs(15);
/// A change of a domain. libvirt itself waits up to 30 s for the domain's lock and says so then.
pub(super) const CHANGE: Duration = Duration::from_secs(40);

/// What a call needs of our environment: where a session daemon's socket lies, and where ssh looks for its keys.
const ENVIRONMENT: [&str; 6] =
    ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "SSH_AUTH_SOCK", "KRB5CCNAME"];

/// The way to one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Virsh {
    pub uri: String,
    pub program: OsString,
}

impl Virsh {
    /// Runs a command to its end and gives what it printed. The deadline kills it; so does `cancel`.
    pub fn call(&self, args: &[&str], deadline: Duration, cancel: &Cancel) -> Result<String> {
        let mut spec = Spec::new(&self.program, "libvirt-clients")
            .args(["--quiet", "--connect", &self.uri])
            .args(args)
            .deadline(deadline)
            .stdout_bytes_max(DOCUMENT_BYTES_MAX);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                spec = spec.env(name, value);
            }
        }
        let command = args.first().copied().unwrap_or_default();
        let outcome = Child::spawn(&spec)?.wait(cancel)?;
        match outcome.ended {
            Ended::Exited if outcome.status.success() => {}
            Ended::Exited => {
                let complaint = outcome.complaint();
                let complaint = complaint.trim_start_matches("error: ");
                return Err(sorted(command, complaint));
            }
            Ended::Deadline => {
                let seconds = deadline.as_secs();
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("libvirt gave no answer to {command} in {seconds} s"),
                )
                .hint("is libvirtd (or virtqemud) alive?"));
            }
            Ended::Killed => return Err(Error::new(Kind::Cancelled, format!("virsh {command} was stopped"))),
        }
        if outcome.stdout_cut {
            return Err(Error::new(Kind::Failed, format!("virsh {command} said more than {DOCUMENT_BYTES_MAX} bytes")));
        }
        String::from_utf8(outcome.stdout)
            .map_err(|error| Error::new(Kind::Failed, format!("virsh {command} said no text")).caused_by(error))
    }

    /// A question about something; see [`Virsh::call`].
    pub fn ask(&self, args: &[&str], cancel: &Cancel) -> Result<String> {
        self.call(args, QUESTION, cancel)
    }
}

/// What parts of libvirt's texts (9.0, C locale) say, in the order in which they are looked for. virsh gives no numbers.
const MEANINGS: [(&str, Kind); 22] = [
    ("Domain not found", Kind::NotFound),
    ("no domain with matching", Kind::NotFound),
    ("failed to get domain", Kind::NotFound),
    ("Domain checkpoint not found", Kind::NotFound),
    ("Storage pool not found", Kind::NotFound),
    ("Storage volume not found", Kind::NotFound),
    ("cannot acquire state change lock", Kind::Busy),
    ("is being used by another", Kind::Busy),
    ("already active", Kind::Busy),
    ("another job", Kind::Busy),
    ("authentication failed", Kind::Denied),
    ("authentication unavailable", Kind::Denied),
    ("access denied", Kind::Denied),
    ("Permission denied", Kind::Denied),
    ("domain is not running", Kind::Disturbed),
    ("failed to connect to the hypervisor", Kind::Unavailable),
    ("Failed to connect socket", Kind::Unavailable),
    ("End of file while reading data", Kind::Unavailable),
    ("client socket is closed", Kind::Unavailable),
    ("Connection refused", Kind::Unavailable),
    ("guest agent is not", Kind::Unavailable),
    ("not supported", Kind::Unsupported),
];

fn sorted(command: &str, complaint: &str) -> Error {
    let kind = MEANINGS.iter().find(|(part, _)| complaint.contains(part)).map_or(Kind::Failed, |(_, kind)| *kind);
    Error::new(kind, format!("virsh {command}: {complaint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(complaint: &str, expected: Kind) {
        assert_eq!(sorted("x", complaint).kind, expected, "{complaint}");
    }

    #[test]
    fn complaints_become_kinds() {
        check("failed to get domain '2f4c'", Kind::NotFound);
        check(
            "failed to connect to the hypervisor; Failed to connect socket to '/run/x': No such file",
            Kind::Unavailable,
        );
        check("failed to connect to the hypervisor; authentication failed: no agent", Kind::Denied);
        check(
            "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainBackupBegin)",
            Kind::Busy,
        );
        check("Guest agent is not responding: QEMU guest agent is not connected", Kind::Unavailable);
        check("checkpoint inconsistent: missing or broken bitmap 'c1' for disk 'vda'", Kind::Failed);
    }

    #[test]
    fn a_missing_virsh_names_its_package() {
        let virsh = Virsh { uri: "qemu:///system".into(), program: "virsh-that-is-not-there".into() };
        let error = virsh.ask(&["version"], &Cancel::new()).unwrap_err();
        assert_eq!(error.kind, Kind::MissingTool);
        assert!(error.to_string().contains("libvirt-clients"), "{error}");
    }
}
