//! What is told of domains: the words of [`DiscoveredVm`] made of a domain's description and its disks' sizes.
//!
//! What lives here: listing domains and judging them. What does not: the reading of XML.

use super::domain::{Disk, Domain};
use super::virsh::Virsh;
use super::{Settings, off};
use crate::error::{Error, Kind, Result};
use crate::model::{DiscoveredDisk, DiscoveredVm, VmRef};
use parking_lot::Mutex;
use sendense_block::{ByteLen, Cancel};
use sendense_types::PowerState;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A domain with what only libvirt or the images' headers know beside its XML.
pub(super) struct Found {
    pub domain: Domain,
    /// The XML as it came.
    pub document: String,
    /// Sizes by target. A disk whose size cannot be told is missing.
    pub capacities: BTreeMap<String, ByteLen>,
}

/// Looks at one domain.
pub(super) fn look(settings: &Settings, uuid: &str, cancel: &Cancel) -> Result<Found> {
    // Two questions at once: a freeze waits for both.
    let (document, sizes) = std::thread::scope(|scope| {
        let sizes = scope.spawn(|| settings.virsh.ask(&["domblkinfo", uuid, "--all"], cancel));
        let document = settings.virsh.ask(&["dumpxml", uuid], cancel);
        (document, sizes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let document = document?;
    let mut domain = Domain::parse(&document)?;
    let mut capacities = capacities(&settings.virsh, &domain, sizes, cancel)?;
    if !domain.running && settings.local {
        off::complete_layers(settings, &mut domain);
        for disk in domain.disks.iter().filter(|disk| disk.unsupported().is_none()) {
            if let Some(size) =
                (!capacities.contains_key(&disk.target)).then(|| off::capacity(settings, disk)).flatten()
            {
                capacities.insert(disk.target.clone(), size);
            }
        }
    }
    Ok(Found { domain, document, capacities })
}

/// After so many domains in a row about which there is no answer it is the daemon that hangs, not a domain's storage.
const SILENT_MAX: usize = 3;

/// Domains that are looked at at once. A look is two questions side by side, and most of a question's 15 ms is `virsh`
/// starting and waiting; four looks keep a small host's cores busy and are fewer questions than libvirtd serves at once (20).
const LOOKS_MAX: usize = 4;

/// All domains, in libvirt's order. One that vanishes meanwhile is left out; what is wrong with one is told as its reason
/// and hides no other.
pub(super) fn all(settings: &Settings, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
    let list = settings.virsh.ask(&["list", "--all", "--uuid"], cancel)?;
    let uuids: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let (next, silent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (found, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..LOOKS_MAX.min(uuids.len()) {
            scope.spawn(|| {
                while failed.lock().is_none() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(uuid) = uuids.get(at) else { break };
                    match one_of_all(settings, uuid, &silent, cancel) {
                        Ok(Some(vm)) => _ = found.lock().insert(at, vm),
                        Ok(None) => {}
                        Err(error) => _ = failed.lock().get_or_insert(error),
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(found.into_inner().into_values().collect()),
    }
}

/// A domain of the list; none when it has vanished. Fails only where the others would fail too.
fn one_of_all(settings: &Settings, uuid: &str, silent: &AtomicUsize, cancel: &Cancel) -> Result<Option<DiscoveredVm>> {
    cancel.check()?;
    let looked = look(settings, uuid, cancel);
    let in_a_row = match &looked {
        Err(error) if error.kind == Kind::Unavailable => silent.fetch_add(1, Ordering::Relaxed) + 1,
        _ => {
            silent.store(0, Ordering::Relaxed);
            0
        }
    };
    match looked {
        Ok(domain) => Ok(Some(describe(&domain))),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) if in_a_row >= SILENT_MAX || matches!(error.kind, Kind::Cancelled | Kind::MissingTool) => Err(error),
        Err(error) => Ok(Some(undescribed(uuid, &error))),
    }
}

/// A domain of which nothing but the UUID is known.
fn undescribed(uuid: &str, error: &Error) -> DiscoveredVm {
    let reason = sendense_block::error::chain(error);
    DiscoveredVm {
        vm: VmRef { instance_uuid: uuid.to_owned(), name: uuid.to_owned() },
        path: None,
        folder: None,
        power_state: PowerState::Unknown,
        guest_os: None,
        cpu_count: None,
        memory_bytes: None,
        disks: Vec::new(),
        networks: Vec::new(),
        hardware: None,
        snapshots: Vec::new(),
        change_tracking: Err(reason.clone()),
        unsupported: Some(reason),
    }
}

/// For people: the target and what is special about the disk.
pub(super) fn label(disk: &Disk) -> String {
    let mut label = disk.target.clone();
    for (word, holds) in [("read-only", disk.readonly), ("shareable", disk.shareable), ("transient", disk.transient)] {
        if holds {
            label.push_str(&format!(" ({word})"));
        }
    }
    label
}

/// The words for a domain.
pub(super) fn describe(found: &Found) -> DiscoveredVm {
    let domain = &found.domain;
    let disks: Vec<DiscoveredDisk> = domain.disks.iter().map(|disk| describe_disk(found, disk)).collect();
    let supported = domain.disks.iter().filter(|disk| disk.unsupported().is_none());
    let untracked: Vec<String> =
        supported.filter_map(|disk| disk.untracked().map(|reason| format!("{}: {reason}", disk.target))).collect();
    DiscoveredVm {
        vm: VmRef { instance_uuid: domain.uuid.clone(), name: domain.name.clone() },
        path: domain.title.clone(),
        // libvirt has no folders.
        folder: None,
        power_state: if domain.running { PowerState::On } else { PowerState::Off },
        guest_os: domain.guest_os.clone(),
        cpu_count: domain.cpu_count,
        memory_bytes: domain.memory_bytes,
        unsupported: disks
            .iter()
            .all(|disk| disk.unsupported.is_some())
            .then(|| "it has no disk that can be read".into()),
        disks,
        networks: domain.networks.clone(),
        hardware: None,
        snapshots: Vec::new(),
        change_tracking: if untracked.is_empty() { Ok(()) } else { Err(untracked.join("; ")) },
    }
}

fn describe_disk(found: &Found, disk: &Disk) -> DiscoveredDisk {
    let capacity = found.capacities.get(&disk.target).copied();
    let unsupported = disk
        .unsupported()
        .or_else(|| (!found.domain.running).then(|| off::unsupported(disk)).flatten())
        .or_else(|| capacity.is_none().then(|| "its size cannot be told".into()));
    DiscoveredDisk {
        key: disk.target.clone(),
        label: label(disk),
        binding: disk.binding(),
        capacity: capacity.unwrap_or_default(),
        format: disk.format().to_owned(),
        datastore: disk.top().datastore(),
        path: None,
        mode: None,
        unsupported,
    }
}

/// Sizes as the guest sees them. `all` is the answer for all disks at once; where that fails because of one of them, they
/// are asked for one by one.
fn capacities(
    virsh: &Virsh,
    domain: &Domain,
    all: Result<String>,
    cancel: &Cancel,
) -> Result<BTreeMap<String, ByteLen>> {
    let several = match all {
        Ok(text) => parse_sizes(&text),
        Err(error) if error.kind == Kind::Failed => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    let mut sizes: BTreeMap<String, ByteLen> =
        several.into_iter().filter(|(target, _)| domain.disk(target).is_some()).collect();
    for disk in domain.disks.iter().filter(|disk| disk.unsupported().is_none()) {
        if sizes.contains_key(&disk.target) {
            continue;
        }
        match virsh.ask(&["domblkinfo", &domain.uuid, "--device", &disk.target], cancel) {
            Ok(text) => {
                if let Some(size) = text.lines().find_map(|line| line.strip_prefix("Capacity:")?.trim().parse().ok()) {
                    sizes.insert(disk.target.clone(), ByteLen(size));
                }
            }
            Err(error) if error.kind == Kind::Failed => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sizes)
}

/// Lines of target, capacity, allocation, physical; `-` for an empty drive.
fn parse_sizes(text: &str) -> BTreeMap<String, ByteLen> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (target, size) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        words.nth(1).map(|_| (target, ByteLen(size)))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script in the place of `virsh`.
    fn program(dir: &std::path::Path, script: &str) -> std::ffi::OsString {
        let program = dir.join("virsh");
        crate::child::write_script(&program, script);
        program.into()
    }

    /// A `virsh` that knows three domains, the second of which is broken in the given way.
    fn found_with(broken: &str) -> Result<Vec<DiscoveredVm>> {
        let dir = tempfile::tempdir().unwrap();
        let uuid = |n: u8| format!("23b7165e-2efc-40b7-9fc7-4af794dd015{n}");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n*list*) printf '{0}\\n{1}\\n{2}\\n' ;;\n*{1}*) {broken} ;;\n*domblkinfo*) echo ;;\n\
             *{0}*) echo '<domain><name>a</name><uuid>{0}</uuid></domain>' ;;\n\
             *) echo '<domain><name>c</name><uuid>{2}</uuid></domain>' ;;\nesac\n",
            uuid(0),
            uuid(1),
            uuid(2)
        );
        let mut settings = Settings::for_tests();
        settings.virsh.program = program(dir.path(), &script);
        all(&settings, &Cancel::new())
    }

    #[test]
    fn a_broken_domain_hides_no_other() {
        for (broken, reason) in [
            ("echo 'error: internal error: x' >&2; exit 1", "internal error: x"),
            ("echo '<domain>'", "ends in the middle"),
            ("echo 'error: End of file while reading data' >&2; exit 1", "End of file"),
        ] {
            let found = found_with(broken).unwrap();
            assert_eq!(found.len(), 3);
            assert_eq!((found[0].vm.name.as_str(), found[2].vm.name.as_str()), ("a", "c"));
            let told = found[1].unsupported.as_deref().unwrap();
            assert!(told.contains(reason), "{told:?} does not say {reason:?}");
        }
        let found = found_with("echo \"error: failed to get domain 'x'\" >&2; exit 1").unwrap();
        assert_eq!(found.len(), 2, "one that vanished is left out");
    }

    /// Side by side, and still in libvirt's order; a daemon that has gone silent is given up before the end of the list.
    #[test]
    fn many_domains_are_told_in_order_and_a_silent_daemon_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let discover = |answer: &str| {
            let script = format!(
                "#!/bin/sh\nfor word; do last=$word; done\ncase \"$*\" in\n\
                 *list*) seq -f '23b7165e-2efc-40b7-9fc7-4af794dd%04.0f' 0 49 ;;\n*domblkinfo*) echo ;;\n\
                 *) echo \"$last\" >>{}\n{answer} ;;\nesac\n",
                asked.display()
            );
            let mut settings = Settings::for_tests();
            settings.virsh.program = program(dir.path(), &script);
            all(&settings, &Cancel::new())
        };
        let found = discover("echo \"<domain><name>d$last</name><uuid>$last</uuid></domain>\"").unwrap();
        let names: Vec<_> = found.iter().map(|vm| vm.vm.name.clone()).collect();
        assert_eq!((names.len(), names.is_sorted()), (50, true), "{names:?}");
        std::fs::remove_file(&asked).unwrap();
        let error = discover("echo 'error: Connection refused' >&2; exit 1").unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        let questions = std::fs::read_to_string(&asked).unwrap().lines().count();
        assert!((SILENT_MAX..SILENT_MAX + LOOKS_MAX).contains(&questions), "{questions} domains were asked about");
    }

    #[test]
    fn sizes_are_read_from_the_table() {
        let sizes = parse_sizes(" vda   1073741824   200704     196624\n sda   -   -   -\n\n vdb 512 0 0\nx");
        assert_eq!(sizes, BTreeMap::from([("vda".into(), ByteLen(1 << 30)), ("vdb".into(), ByteLen(512))]));
    }
}
