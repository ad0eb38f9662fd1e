//! Machines as found, fulls, incrementals, several disks, pages.

use crate::lab::{Lab, MIB, PASSWORD, Trouble, USERNAME};
use crate::vcenter::{Server, journey};
use crate::world::{Machine, Memory, Points, back_up, copy};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use sendense_block::Cancel;
use sendense_source::Kind;
use sendense_types::{Consistency, PowerState};

#[test]
fn machines_are_found_with_their_disks_and_the_account_is_looked_at() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web 1", &[8 * MIB, 3 * MIB]);
    let source = lab.source();
    let report = source.test(&Cancel::new()).unwrap();
    assert!(report.product.contains("vCenter"), "{report:?}");
    assert_eq!(report.warnings, Vec::<String>::new());
    let denied = "<returnval><entity type=\"Folder\">group-d1</entity><privAvailability><privId>\
                  VirtualMachine.State.CreateSnapshot</privId><isGranted>true</isGranted></privAvailability></returnval>";
    lab.proxy.arm("HasPrivilegeOnEntities", 1, 1, Trouble::Answer(denied.into()));
    let warnings = source.test(&Cancel::new()).unwrap().warnings;
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert!(warnings[0].contains("backups need: Virtual machine > Snapshot management > Remove snapshot"));
    let without = lab.source_with(serde_json::json!({"vddk_libdir": lab.folder("empty"), "transports": "nbd:san"}));
    let warnings = without.test(&Cancel::new()).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("lib64"), "{warnings:?}");

    let found = source.discover(&Cancel::new()).unwrap().remove(0);
    let (path, folder) = (found.path.clone(), found.folder.clone());
    assert_eq!(found, sendense_source::DiscoveredVm { path, folder, ..machine.inspect(&*source) });
    assert_eq!(found.path.as_deref(), Some("DC0/vm/web 1"));
    assert_eq!(found.folder.as_deref(), Some("DC0/vm"));
    assert_eq!((found.power_state, found.cpu_count, found.memory_bytes), (PowerState::Off, Some(2), Some(256 * MIB)));
    assert_eq!((found.unsupported.as_deref(), &found.change_tracking), (None, &Ok(())));
    let disks: Vec<_> =
        found.disks.iter().map(|disk| (disk.key.as_str(), disk.label.as_str(), disk.capacity.0)).collect();
    assert_eq!(disks, [("disk-2000", "Hard disk 1", 8 * MIB), ("disk-2001", "Hard disk 2", 3 * MIB)]);
    assert_eq!(found.disks[0].datastore.as_deref(), Some("LocalDS_0"));
    assert_ne!(found.disks[0].binding, found.disks[1].binding);

    let mut gone = machine.vm();
    gone.instance_uuid = "50000000-0000-0000-0000-000000000000".into();
    assert_eq!(source.inspect(&gone, &Cancel::new()).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn twenty_incrementals_of_two_disks_are_what_the_guest_wrote() {
    let lab = Lab::new();
    // Some answers end before the disk does.
    lab.control("areas-max", "3");
    let mut machine = Machine::new(&lab, "web", &[8 * MIB, 2 * MIB + 3 * 1024]);
    let source = lab.source();
    machine.write(0, 70_000, &[7; 200_000]);
    let mut points = back_up(&machine, &*source, &Points::new());
    machine.assert_points(&points);
    assert!(points.values().all(|point| point.token.is_some()), "tracking is on from the first backup");
    assert!(points["disk-2000"].data < MIB, "holes are not read: {points:?}");

    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut below = |bound: usize| random.next_u32() as usize % bound;
    for round in 0..20u8 {
        for _ in 0..below(12) {
            let disk = below(2);
            let size = machine.model[disk].len();
            let at = below(size);
            let bytes = vec![round; 1 + below((size - at).min(100_000))];
            machine.write(disk, at, &bytes);
        }
        let before = lab.proxy.count("QueryChangedDiskAreas");
        points = back_up(&machine, &*source, &points);
        machine.assert_points(&points);
        assert!(points.values().all(|point| point.reason.is_none()), "{points:?}");
        assert!(lab.proxy.count("QueryChangedDiskAreas") - before >= 2);
    }
    points = back_up(&machine, &*source, &points);
    assert!(points.values().all(|point| point.data == 0), "nothing was written: {points:?}");
}

#[test]
fn the_guest_is_quiesced_where_it_can_be() {
    let lab = Lab::new();
    let machine = Machine::new(&lab, "web", &[MIB]);
    let source = lab.source();
    let consistency = |source: &dyn sendense_source::Source| {
        let journal = Memory::new();
        let mut request = machine.request(source, &Points::new());
        request.quiesce = true;
        let frozen = source.freeze(&request, &journal.door(), &Cancel::new())?;
        let said = (frozen.facts().consistency, frozen.facts().consistency_note.clone());
        copy(&*frozen, &request, &Points::new()).unwrap();
        frozen.release().unwrap();
        assert!(journal.open().is_empty());
        Ok::<_, sendense_source::Error>(said)
    };
    assert_eq!(consistency(&*source).unwrap(), (Consistency::Crash, None), "it is off, and so in order");
    machine.vim.power_on(&machine.guest.machine, &Cancel::new()).unwrap();
    let (reached, note) = consistency(&*source).unwrap();
    assert!(reached == Consistency::Crash && note.unwrap().contains("tools do not run"));
    let strict = lab.source_with(serde_json::json!({"quiesce_or_fail": true}));
    assert!(consistency(&*strict).unwrap_err().to_string().contains("cannot be quiesced"));
    lab.control("tools", "");
    machine.vim.power_off(&machine.guest.machine, &Cancel::new()).unwrap();
    machine.vim.power_on(&machine.guest.machine, &Cancel::new()).unwrap();
    assert_eq!(consistency(&*source).unwrap(), (Consistency::Filesystem, None));
    lab.proxy.arm("CreateSnapshot_Task", 1, 1, Trouble::Task("FilesystemQuiesceFault"));
    let (reached, note) = consistency(&*source).unwrap();
    assert!(reached == Consistency::Crash && note.unwrap().contains("FilesystemQuiesceFault"));
    lab.proxy.arm("CreateSnapshot_Task", 1, 1, Trouble::Task("ApplicationQuiesceFault"));
    assert!(consistency(&*strict).is_err());
    lab.assert_clean();
}

/// What `tests/vcenter.rs` does with a real one must work on the day when somebody has one.
#[test]
fn the_journey_that_is_meant_for_a_real_vcenter_ends_well_on_this_one() {
    let lab = Lab::new();
    let mut machine = Machine::new(&lab, "web", &[4 * MIB, MIB]);
    machine.write(0, 1 << 20, &[7; 200_000]);
    let shown = sendense_source::vsphere::certificate(&lab.address(), None, &Cancel::new()).unwrap();
    let product = journey(Server {
        address: lab.address(),
        thumbprint: shown.fingerprint().to_string(),
        username: USERNAME.into(),
        password: PASSWORD.into(),
        vddk_libdir: lab.libdir.to_str().unwrap().into(),
        nbdkit_plugin: Some(lab.plugin.to_str().unwrap().into()),
        machine: "web".into(),
    });
    assert!(product.contains("vCenter"), "{product}");
    let names: Vec<_> = machine.vim.machines(&Cancel::new()).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!((names, lab.snapshots()), (vec!["web".to_owned()], Vec::new()));
}
