//! Backups of running domains against a real libvirt and QEMU.

use crate::lab::{Guest, MIB, Points, back_up, lab};
use sendense_block::Cancel;
use sendense_types::PowerState;

#[test]
fn domains_are_discovered() {
    let lab = lab();
    let guest = Guest::define_with(
        lab,
        &[("vda", "qcow2", 8 * MIB), ("vdb", "raw", 4 * MIB)],
        "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
         <controller type='sata' index='0'/>
         <interface type='user'><mac address='52:54:00:12:34:56'/><model type='e1000'/></interface>",
        "",
    );
    let source = lab.source();
    assert!(source.test(&Cancel::new()).unwrap().product.contains("QEMU"));
    for state in [PowerState::Off, PowerState::On] {
        if state == PowerState::On {
            guest.start();
        }
        let all = source.discover(&Cancel::new()).unwrap();
        let found = all.into_iter().find(|found| found.vm.instance_uuid == guest.uuid).unwrap();
        assert_eq!((found.power_state, found.vm.name.as_str()), (state, guest.name.as_str()));
        assert_eq!(found.path, Some(format!("lab/{}", guest.name)));
        assert_eq!((found.cpu_count, found.memory_bytes, found.unsupported), (Some(1), Some(64 * MIB), None));
        assert_eq!(found.networks[0].mac.as_deref(), Some("52:54:00:12:34:56"));
        let disks: Vec<_> = found
            .disks
            .iter()
            .map(|disk| (disk.key.as_str(), disk.format.as_str(), disk.capacity.0, disk.unsupported.as_deref()))
            .collect();
        assert_eq!(
            disks,
            [
                ("vda", "qcow2", 8 * MIB, None),
                ("vdb", "raw", 4 * MIB, None),
                ("sda", "unknown", 0, Some("a CD-ROM drive")),
            ]
        );
        assert_eq!(found.change_tracking, Err("vdb: raw disk, no change tracking".into()));
    }
}

#[test]
fn a_full_and_incrementals_of_two_disks_are_what_the_guest_wrote() {
    let lab = lab();
    let mut guest =
        Guest::start_new(lab, &[("vda", "qcow2", 24 * MIB), ("vdb", "qcow2", 8 * MIB), ("vdc", "raw", 2 * MIB)]);
    let source = lab.source();
    guest.write("vda", 17, MIB, 8 * MIB);
    guest.write("vdc", 3, 0, MIB);
    let mut points = back_up(&guest, &*source, &Points::new());
    guest.assert_points(&points);
    for round in 0..6u64 {
        guest.write("vda", 0x80 + round as u8, round * 3 * MIB + 4096, 70_000);
        guest.zero("vda", (2 + round) * MIB, 100 << 10, round % 2 == 0);
        if round == 3 {
            guest.write("vdb", 9, 5 * MIB - 512, 1024);
        }
        points = back_up(&guest, &*source, &points);
        guest.assert_points(&points);
        assert_eq!(points["vda"].reason, None);
        assert!(points["vda"].read <= MIB, "{} bytes were read", points["vda"].read);
        assert_eq!(points["vdb"].read > 0, round == 3);
        assert_eq!(points["vdc"].reason.as_deref(), Some("raw disk, no change tracking"));
        assert_eq!(points["vdc"].token, None);
        // Only the newest point's checkpoint is left.
        assert_eq!(guest.checkpoints(), [points["vda"].token.clone().unwrap().0]);
    }
}
