//! Machines made of points: compared byte for byte, handed over, or taken away again.

use crate::lab::{Lab, MIB, Trouble};
use crate::world::{Machine, Memory, Points, back_up};
use sendense_block::{ByteOffset, Cancel, Target};
use sendense_source::{ConfigDocument, Kind, NewRemoteVm, RemoteDisk, Restoring, Result, Source, VmRef};
use sendense_types::PowerState;
use sendense_vsphere::inventory::Power;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is recorded of a machine.
fn recorded(machine: &Machine<'_>, source: &dyn Source) -> Vec<ConfigDocument> {
    let journal = Memory::new();
    let frozen = source.freeze(&machine.request(source, &Points::new()), &journal.door(), &Cancel::new()).unwrap();
    let config = frozen.facts().config.clone();
    frozen.release().unwrap();
    config
}

/// The facts with something changed.
fn with(documents: &[ConfigDocument], change: impl FnOnce(&mut Value)) -> Vec<ConfigDocument> {
    let mut documents = documents.to_vec();
    let facts = documents.iter_mut().find(|document| document.kind == "facts").unwrap();
    let mut value: Value = serde_json::from_str(facts.content.as_deref().unwrap()).unwrap();
    change(&mut value);
    facts.content = Some(value.to_string());
    documents
}

struct Asked<'a> {
    name: &'a str,
    documents: &'a [ConfigDocument],
    networks: BTreeMap<String, Option<String>>,
    datastore: Option<&'a str>,
    keep_identity: bool,
}

impl<'a> Asked<'a> {
    fn new(name: &'a str, documents: &'a [ConfigDocument]) -> Self {
        Self { name, documents, networks: BTreeMap::new(), datastore: None, keep_identity: false }
    }

    fn create(&self, source: &dyn Source, points: &Points, journal: &Arc<Memory>) -> Result<Box<dyn Restoring>> {
        let disks: Vec<RemoteDisk> = points
            .iter()
            .map(|(key, point)| RemoteDisk { key: key.clone(), capacity_bytes: point.bytes.len() as u64 })
            .collect();
        let new = NewRemoteVm {
            name: self.name,
            documents: self.documents,
            disks: &disks,
            datastore: self.datastore,
            folder: None,
            cluster: None,
            networks: &self.networks,
            keep_identity: self.keep_identity,
            note: "restored by the test",
        };
        source.remote_target().unwrap().create(&new, &"task-restore".parse().unwrap(), &journal.door(), &Cancel::new())
    }
}

/// Writes what is not zero, as a restore does.
fn fill(target: &dyn Target, bytes: &[u8]) {
    try_fill(target, bytes).unwrap();
}

fn try_fill(target: &dyn Target, bytes: &[u8]) -> sendense_block::Result<()> {
    for (block, at) in bytes.chunks(65536).zip((0..).step_by(65536)) {
        if block.iter().any(|byte| *byte != 0) {
            target.write_at(ByteOffset(at), block)?;
        }
    }
    target.flush()
}

fn fill_all(restoring: &dyn Restoring, points: &Points) {
    for (number, point) in points.values().enumerate() {
        fill(&*restoring.open_write(number, &Cancel::new()).unwrap(), &point.bytes);
    }
}

#[test]
fn a_machine_of_three_disks_becomes_a_new_one() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[8 * MIB, 3 * MIB + 1024, MIB]);
    machine.write(0, 0, b"boot");
    machine.write(0, 5 << 20, &[5; 300_000]);
    machine.write(1, (3 << 20) + 1000, &[6; 24]);
    machine.write(2, 70_000, &[7; 70_000]);
    let source = lab.source();
    let points = back_up(&machine, &*source, &Points::new());
    let card = |network: &str, mac: &str| json!({"key": 4000, "type": "VirtualVmxnet3", "label": "Network adapter", "network": network, "mac": mac});
    let documents = with(&recorded(&machine, &*source), |facts| {
        facts["networks"] = json!([
            card("VM Network", "00:50:56:00:00:01"),
            card("gone", "00:50:56:00:00:02"),
            card("lan", "00:50:56:00:00:03"),
        ]);
    });
    let journal = Memory::new();
    let mut asked = Asked::new("web again", &documents);
    asked.networks = BTreeMap::from([
        ("lan".into(), Some("DC0_DVPG0".into())),
        ("00:50:56:00:00:02".into(), Some("VM Network".into())),
    ]);
    let restoring = asked.create(&*source, &points, &journal).unwrap();
    let vm: VmRef = restoring.vm().clone();
    let notes: Vec<_> = restoring.notes().iter().filter(|note| note.contains("Network adapter")).collect();
    assert!(notes.len() == 1 && notes[0].contains("VM Network, nobody said where it goes"), "{notes:?}");
    assert_eq!(journal.open().len(), 1, "the machine is in the journal while it is not whole");
    let unfinished = machine.vim.find_machine(&vm.instance_uuid, &Cancel::new()).unwrap().unwrap();
    let look = || machine.vim.machine(&unfinished, &Cancel::new()).unwrap();
    assert!(look().annotation.unwrap().contains("sendense-"), "it bears the mark");
    fill_all(&*restoring, &points);
    restoring.finish().unwrap();
    assert!(journal.open().is_empty());
    lab.assert_clean();

    let made = look();
    assert_eq!((made.name.as_str(), made.power), ("web again", Power::Off));
    assert_eq!(made.annotation.as_deref(), Some("restored by the test"));
    assert_eq!((made.cpu_count, made.memory_mb, made.hardware_version), (Some(2), Some(256), Some(13)));
    let cards: Vec<_> = made.devices.cards.iter().map(|card| (card.kind.as_str(), card.mac.clone())).collect();
    assert!(cards.len() == 3 && cards.iter().all(|(kind, _)| *kind == "VirtualVmxnet3"), "{cards:?}");
    assert!(
        cards.iter().all(|(_, mac)| mac.as_deref() != Some("00:50:56:00:00:01")),
        "a copy has addresses of its own"
    );
    let found = source.inspect(&vm, &Cancel::new()).unwrap();
    assert_eq!((found.power_state, found.disks.len()), (PowerState::Off, 3));
    for ((model, disk), point) in machine.model.iter().zip(&made.devices.disks).zip(points.values()) {
        assert_eq!(disk.capacity_bytes, point.bytes.len() as u64);
        assert_eq!(disk.backing.thin, Some(true));
        let (store, path) = disk.backing.file_name.as_ref().unwrap()[1..].split_once("] ").unwrap();
        let file = lab.root.join(store).join(path);
        assert!(std::fs::read(&file).unwrap() == *model, "{} differs", disk.label);
        let data = model.chunks(65536).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64 * 65536;
        let held = std::fs::metadata(&file).unwrap().blocks() * 512;
        assert!(held <= data + 65536, "thin stays thin: {held} bytes for {data}");
    }
    let uuid = vm.instance_uuid.clone();
    let copy = Machine {
        guest: crate::lab::Guest { lab: &lab, machine: unfinished },
        vim: lab.vim(),
        model: machine.model.clone(),
        uuid,
        name: vm.name,
    };
    let again = back_up(&copy, &*source, &Points::new());
    copy.assert_points(&again);
}

#[test]
fn what_fails_or_dies_leaves_no_machine_and_what_is_whole_stays() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[MIB, MIB]);
    machine.write(0, 0, b"boot");
    let (source, cancel) = (lab.source(), Cancel::new());
    let points = back_up(&machine, &*source, &Points::new());
    let documents = recorded(&machine, &*source);
    let journal = Memory::new();
    let there = |vm: &VmRef| machine.vim.find_machine(&vm.instance_uuid, &cancel).unwrap();

    let restoring = Asked::new("abandoned", &documents).create(&*source, &points, &journal).unwrap();
    let vm = restoring.vm().clone();
    fill(&*restoring.open_write(0, &cancel).unwrap(), &points["disk-2000"].bytes);
    restoring.abandon().unwrap();
    assert_eq!((there(&vm), journal.open().len()), (None, 0));

    // The server makes it, and the answer is lost.
    lab.proxy.arm("CreateVM_Task", 1, 1, Trouble::Lose);
    assert!(Asked::new("lost", &documents).create(&*source, &points, &journal).is_err());
    assert_eq!((machine.vim.machines(&cancel).unwrap().len(), journal.open().len()), (1, 0));

    // The process dies.
    let restoring = Asked::new("orphan", &documents).create(&*source, &points, &journal).unwrap();
    let vm = restoring.vm().clone();
    std::mem::forget(restoring);
    let left = journal.open().remove(0);
    machine.vim.power_on(&there(&vm).unwrap(), &cancel).unwrap();
    assert!(!source.reap(&left, &cancel).unwrap(), "nobody switches off what somebody has started");
    machine.vim.power_off(&there(&vm).unwrap(), &cancel).unwrap();
    assert!(source.reap(&left, &cancel).unwrap() && source.reap(&left, &cancel).unwrap());
    assert_eq!(there(&vm), None);
    let mut theirs = left;
    theirs.details["mark"] = json!("sendense-5-dep-x-task-1");
    assert_eq!(source.reap(&theirs, &cancel).unwrap_err().kind, Kind::Unsafe);

    // Dying between the last two steps: the machine is whole.
    let journal = Memory::new();
    let restoring = Asked::new("whole", &documents).create(&*source, &points, &journal).unwrap();
    let (vm, entry) = (restoring.vm().clone(), journal.open().remove(0));
    fill_all(&*restoring, &points);
    restoring.finish().unwrap();
    assert!(source.reap(&entry, &cancel).unwrap());
    assert!(there(&vm).is_some());
    lab.assert_clean();
}

#[test]
fn what_a_server_and_nbdkit_do_to_a_restore_leaves_nothing() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[MIB, MIB]);
    machine.write(0, 0, b"boot");
    machine.write(0, 900_000, b"more");
    let (source, cancel) = (lab.source(), Cancel::new());
    let points = back_up(&machine, &*source, &Points::new());
    let documents = recorded(&machine, &*source);
    let journal = Memory::new();
    let asked = Asked::new("new", &documents);
    let one_is_there = || machine.vim.machines(&cancel).unwrap().len() == 1 && journal.open().is_empty();

    // The server refuses, tries and fails, or cannot be reached.
    for (method, trouble, kind) in [
        ("CreateVM_Task", Trouble::Fault("NoPermission"), Kind::Denied),
        ("CreateVM_Task", Trouble::Task("NoDiskSpace"), Kind::Failed),
        ("CreateVM_Task", Trouble::Task("DuplicateName"), Kind::Busy),
        ("CreateVM_Task", Trouble::Drop, Kind::Unavailable),
    ] {
        lab.proxy.arm(method, 1, 1, trouble.clone());
        let error = asked.create(&*source, &points, &journal).err().unwrap();
        assert!(error.kind == kind && one_is_there(), "{trouble:?}: {error}");
    }

    // nbdkit dies while a disk is written.
    let restoring = asked.create(&*source, &points, &journal).unwrap();
    let target = restoring.open_write(0, &cancel).unwrap();
    target.write_at(ByteOffset(0), &[1; 65536]).unwrap();
    let kit = rustix::process::Pid::from_raw(lab.kits()[0]).unwrap();
    rustix::process::kill_process(kit, rustix::process::Signal::KILL).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while target.write_at(ByteOffset(65536), &[2; 65536]).is_ok() {
        assert!(Instant::now() < patience, "nbdkit does not end");
    }
    drop(target);
    restoring.abandon().unwrap();
    assert!(one_is_there());
    lab.assert_clean();

    // The datastore is full, which is what a person must be told.
    let restoring = asked.create(&*source, &points, &journal).unwrap();
    let target = restoring.open_write(0, &cancel).unwrap();
    lab.control("full-from", "500000");
    let error = try_fill(&*target, &points["disk-2000"].bytes).unwrap_err();
    assert_eq!(error.kind, sendense_block::Kind::NoSpace, "{}", sendense_block::error::chain(&error));
    lab.uncontrol("full-from");
    drop(target);
    drop(restoring);
    assert!(one_is_there());

    // A person stops it before a disk is opened; tidying up goes on all the same.
    let restoring = asked.create(&*source, &points, &journal).unwrap();
    let stopped = Cancel::new();
    stopped.cancel();
    assert_eq!(restoring.open_write(0, &stopped).err().unwrap().kind, Kind::Cancelled);
    drop(restoring);
    assert!(one_is_there());

    // It cannot be taken away now: the journal keeps it, and a later look does it.
    let restoring = asked.create(&*source, &points, &journal).unwrap();
    lab.proxy.arm("Destroy_Task", 1, 1, Trouble::Task("FileLocked"));
    assert_eq!(restoring.abandon().unwrap_err().kind, Kind::Busy);
    let left = journal.open();
    assert_eq!((left.len(), machine.vim.machines(&cancel).unwrap().len()), (1, 2));
    assert!(source.reap(&left[0], &cancel).unwrap());
    assert_eq!(machine.vim.machines(&cancel).unwrap().len(), 1);
    lab.assert_clean();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    let points = back_up(&machine, &*source, &Points::new());
    let documents = recorded(&machine, &*source);
    let refused = |asked: Asked<'_>| {
        let journal = Memory::new();
        let error = asked.create(&*source, &points, &journal).err().unwrap();
        assert!(journal.open().is_empty());
        error
    };
    assert_eq!(refused(Asked::new("a/b", &documents)).kind, Kind::Invalid);
    assert_eq!(refused(Asked::new("web", &documents)).kind, Kind::Busy);
    assert_eq!(refused(Asked { keep_identity: true, ..Asked::new("x", &documents) }).kind, Kind::Busy);
    let error = refused(Asked { datastore: Some("tape"), ..Asked::new("x", &documents) });
    assert!(error.kind == Kind::NotFound && error.to_string().contains("LocalDS_0"), "{error}");
    assert_eq!(refused(Asked::new("x", &[])).kind, Kind::Unsupported);
    let wild = with(&documents, |facts| facts["cpu_count"] = json!(1_000_000));
    assert_eq!(refused(Asked::new("x", &wild)).kind, Kind::Invalid);
    let networks = BTreeMap::from([("lan".to_owned(), Some("nowhere".to_owned()))]);
    let lan = with(&documents, |facts| {
        facts["networks"] = json!([{"type": "VirtualE1000", "label": "n", "network": "lan"}]);
    });
    assert_eq!(refused(Asked { networks, ..Asked::new("x", &lan) }).kind, Kind::NotFound);
    assert_eq!(machine.vim.machines(&Cancel::new()).unwrap().len(), 1);

    let denied = "<returnval><entity type=\"Folder\">group-d1</entity><privAvailability><privId>\
                  Datastore.AllocateSpace</privId><isGranted>true</isGranted></privAvailability></returnval>";
    lab.proxy.arm("HasPrivilegeOnEntities", 2, 1, Trouble::Answer(denied.into()));
    let warnings = source.test(&Cancel::new()).unwrap().warnings;
    assert_eq!(warnings.len(), 9, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.contains("restores need:")), "{warnings:?}");
    assert!(warnings.iter().any(|warning| warning.contains("Edit inventory > Create new")), "{warnings:?}");
}
