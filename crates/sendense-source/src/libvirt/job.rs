//! The backup job in QEMU, as libvirt runs it: what is asked for, beginning it, and ending it.
//!
//! What lives here: the documents of `backup-begin`, the repeated beginning with fewer demands, whose job runs. What does
//! not: reading from it.
//!
//! libvirt checks at the beginning whether each bitmap that an incremental needs is there and sound over all layers of the
//! disk. When it refuses, the disk it names is asked for completely and the job begins anew; each refusal takes one demand
//! away, so that there are at most two more tries than there are disks with demands.
//!
//! Invariant: a job is ended only if its server's socket is ours.

use super::document::Document;
use super::domain::{Agent, Domain};
use super::name::Checkpoint;
use super::scratch::Folder;
use super::virsh::{CHANGE, Virsh};
use super::{layers, xml};
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the end of a job is waited for after it was asked for. QEMU cancels within one request; the bound only keeps
/// a hung disk from hanging us.
const END_WAIT: Duration = Duration::from_secs(10);

/// How long a job is waited for whose beginning was cut off. It takes QEMU 75 ms; where it takes longer the journal keeps
/// the entry, and reaping settles it.
const DOUBT_WAIT: Duration = Duration::from_secs(2);

/// What is asked for of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskPlan {
    /// The disk.
    pub target: String,
    /// Changes since this checkpoint, or why none are known.
    pub since: Result<String, String>,
    /// A bitmap for the next incremental, or why there is none.
    pub track: Result<(), String>,
}

/// How many demands are left.
fn demands(plans: &[DiskPlan]) -> usize {
    plans.iter().map(|plan| usize::from(plan.since.is_ok()) + usize::from(plan.track.is_ok())).sum()
}

/// The export of the disk with this place in the request.
pub(super) fn export(number: usize) -> String {
    format!("disk-{number}")
}

/// The metadata context with its changes.
pub(super) fn delta_context(number: usize) -> String {
    format!("qemu:dirty-bitmap:delta-{number}")
}

/// The `<domainbackup>`: pull mode, all disks that are not named stay out.
fn backup_xml(plans: &[DiskPlan], domain: &Domain, folder: &Folder) -> String {
    let mut text = String::from("<domainbackup mode='pull'>\n");
    let socket = xml::escaped(&folder.socket().to_string_lossy());
    let _ = writeln!(text, "  <server transport='unix' socket='{socket}'/>\n  <disks>");
    for (number, plan) in plans.iter().enumerate() {
        let (target, scratch) = (xml::escaped(&plan.target), folder.scratch(number));
        let mode = match &plan.since {
            Ok(since) => {
                format!("backupmode='incremental' incremental='{}' exportbitmap='delta-{number}'", xml::escaped(since))
            }
            Err(_) => "backupmode='full'".to_owned(),
        };
        let scratch = xml::escaped(&scratch.to_string_lossy());
        let export = export(number);
        let _ = writeln!(
            text,
            "    <disk name='{target}' backup='yes' type='file' exportname='{export}' {mode}><scratch file='{scratch}'/></disk>"
        );
    }
    for disk in domain.disks.iter().filter(|disk| !plans.iter().any(|plan| plan.target == disk.target)) {
        let _ = writeln!(text, "    <disk name='{}' backup='no'/>", xml::escaped(&disk.target));
    }
    text.push_str("  </disks>\n</domainbackup>\n");
    text
}

/// The `<domaincheckpoint>` with a bitmap for each disk that can have one; none when no disk can.
fn checkpoint_xml(plans: &[DiskPlan], domain: &Domain, checkpoint: &Checkpoint) -> Option<String> {
    let tracked = |target: &str| plans.iter().any(|plan| plan.target == target && plan.track.is_ok());
    if !domain.disks.iter().any(|disk| tracked(&disk.target)) {
        return None;
    }
    let name = xml::escaped(&checkpoint.name());
    let stamps = layers::stamps(domain.disks.iter().filter(|disk| tracked(&disk.target)));
    let description = xml::escaped(&layers::write(&stamps));
    let mut text = format!("<domaincheckpoint>\n  <name>{name}</name>\n  <description>{description}</description>\n");
    text.push_str("  <disks>\n");
    for disk in &domain.disks {
        let what = if tracked(&disk.target) { "bitmap" } else { "no" };
        let _ = writeln!(text, "    <disk name='{}' checkpoint='{what}'/>", xml::escaped(&disk.target));
    }
    text.push_str("  </disks>\n</domaincheckpoint>\n");
    Some(text)
}

/// Begins the job and, at the same moment, the checkpoint. Takes demands out of `plans` that cannot be met.
pub(super) fn begin(
    virsh: &Virsh,
    domain: &Domain,
    folder: &Folder,
    checkpoint: &Checkpoint,
    plans: &mut [DiskPlan],
    cancel: &Cancel,
) -> Result<()> {
    loop {
        let job = Document::new(&backup_xml(plans, domain, folder))?;
        let mark = checkpoint_xml(plans, domain, checkpoint).map(|text| Document::new(&text)).transpose()?;
        let mut args = vec!["backup-begin".to_owned(), domain.uuid.clone(), job.path()];
        args.extend(mark.as_ref().map(Document::path));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match virsh.call(&args, CHANGE, cancel) {
            Ok(_) => return Ok(()),
            Err(error) => {
                if error.kind == Kind::Cancelled || !demand_less(plans, domain, &error.message) {
                    return Err(told(error));
                }
            }
        }
    }
}

/// Takes one demand back because of what libvirt said; false when it said nothing about demands.
fn demand_less(plans: &mut [DiskPlan], domain: &Domain, complaint: &str) -> bool {
    let named = |plan: &DiskPlan| complaint.contains(&format!("'{}'", plan.target));
    let before = demands(plans);
    // `checkpoint inconsistent: missing or broken bitmap 'C' for disk 'vda'`
    // `Domain checkpoint not found: Checkpoint 'C' for incremental backup of disk 'vda' not found`
    let lost = complaint.contains("checkpoint inconsistent") || complaint.contains("for incremental backup of disk");
    // `Can't make bitmap 'C' persistent in 'libvirt-2-format': Cannot store dirty bitmaps in qcow2 v2 files`
    let cannot_track = complaint.contains("dirty bitmaps") || complaint.contains("checkpoint for transient");
    if lost {
        let reason = format!("the checkpoint's bitmap is missing or broken ({complaint})");
        let some = plans.iter().any(|plan| plan.since.is_ok() && named(plan));
        for plan in plans.iter_mut().filter(|plan| plan.since.is_ok() && (!some || named(plan))) {
            plan.since = Err(reason.clone());
        }
    } else if cannot_track {
        let on_node = |plan: &DiskPlan| {
            let disk = domain.disk(&plan.target).and_then(|disk| disk.node_index.clone());
            disk.is_some_and(|index| complaint.contains(&format!("'libvirt-{index}-format'")))
        };
        let some = plans.iter().any(|plan| plan.track.is_ok() && on_node(plan));
        for plan in plans.iter_mut().filter(|plan| plan.track.is_ok() && (!some || on_node(plan))) {
            plan.track = Err(format!("no change tracking: {complaint}"));
        }
    }
    demands(plans) < before
}

fn told(error: Error) -> Error {
    match error.kind {
        Kind::Denied => {
            error.hint("QEMU's user must be able to write to scratch_dir (owner, group, and AppArmor where it is used)")
        }
        Kind::Busy => error.hint("another job runs on the domain"),
        _ => error,
    }
}

/// Whose backup job runs on a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// None runs, or the domain is off or gone.
    Nobody,
    /// The one in this folder.
    Ours,
    /// Somebody else's.
    Other,
}

/// Whose backup job runs on a domain now.
pub(super) fn owner(virsh: &Virsh, domain: &str, folder: &Folder, cancel: &Cancel) -> Result<Owner> {
    match virsh.ask(&["backup-dumpxml", domain], cancel) {
        Ok(document) => Ok(if socket_is(&document, &folder.socket())? { Owner::Ours } else { Owner::Other }),
        Err(error) if error.kind == Kind::NotFound || error.kind == Kind::Disturbed => Ok(Owner::Nobody),
        Err(error) if error.message.contains("no domain backup job") => Ok(Owner::Nobody),
        Err(error) => Err(error),
    }
}

fn socket_is(document: &str, socket: &Path) -> Result<bool> {
    let root = xml::parse(document, "domainbackup")?;
    Ok(root.child("server").and_then(|server| server.attribute("socket")) == Some(&*socket.to_string_lossy()))
}

/// How the call that begins a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// It said whether it began.
    Surely,
    /// It was cut off: the job may begin yet.
    Perhaps,
}

/// Ends our job and waits until it has ended; does nothing to another's. True when there was one. One that has perhaps
/// begun is waited for a little before it is believed that there is none.
pub(super) fn end(virsh: &Virsh, domain: &str, folder: &Folder, how: Begun) -> Result<bool> {
    // What must be tidied up is tidied up also after a person asked to stop.
    let cancel = Cancel::new();
    let begun = Instant::now();
    let mut asked = false;
    loop {
        let ours = owner(virsh, domain, folder, &cancel)? == Owner::Ours;
        match (ours, asked) {
            (true, false) => match virsh.call(&["domjobabort", domain], CHANGE, &cancel) {
                // It ended by itself just now, or the domain did.
                Err(error) if error.kind != Kind::Disturbed && !error.message.contains("no job is active") => {
                    return Err(error);
                }
                _ => asked = true,
            },
            (true, true) if begun.elapsed() > END_WAIT => {
                let message = format!("the backup job did not end within {} s", END_WAIT.as_secs());
                return Err(Error::new(Kind::Unavailable, message));
            }
            (false, false) if how == Begun::Perhaps && begun.elapsed() < DOUBT_WAIT => {
                std::thread::sleep(Duration::from_millis(50))
            }
            (false, asked) => return Ok(asked),
            (true, true) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Fails with `Busy` when any job runs on the domain: a second one would wait 30 s for the first one's lock.
pub(super) fn check_idle(virsh: &Virsh, domain: &Domain, cancel: &Cancel) -> Result<()> {
    let text = virsh.ask(&["domjobinfo", &domain.uuid], cancel)?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
            .map(|(_, value)| value.trim())
    };
    match field("Job type") {
        None | Some("None") => Ok(()),
        Some(kind) => {
            let operation = field("Operation").unwrap_or(kind).to_lowercase();
            Err(Error::new(Kind::Busy, format!("a job ({operation}) runs on the domain {} already", domain.name)))
        }
    }
}

/// Why the guest is not asked to come to rest although that was wanted, or none if it can be.
pub(super) fn cannot_quiesce(agent: Agent) -> Option<String> {
    match agent {
        Agent::NoChannel => Some("the domain has no channel for a guest agent".into()),
        Agent::Silent => Some("no guest agent is connected".into()),
        Agent::Connected => None,
    }
}
