//! The client, the simulator, the library under nbdkit, and VMware's own client, side by side.

#![allow(clippy::unwrap_used)]

#[path = "../../../lab/vsphere/mod.rs"]
mod lab;

use lab::{Guest, Lab, MIB, PASSWORD, Trouble, USERNAME};
use sendense_block::{ByteLen, ByteOffset, Cancel, Extent};
use sendense_vsphere::change::Question;
use sendense_vsphere::inventory::Power;
use sendense_vsphere::{Error, FaultKind, Ref, Vim, privilege};
use std::process::Command;

fn block(n: u64) -> Extent {
    Extent::between(ByteOffset(n << 16), ByteOffset((n + 1) << 16))
}

fn snapshot(vim: &Vim, guest: &Guest<'_>, name: &str) -> (Ref, String) {
    let made = vim.create_snapshot(&guest.machine, name, "a test's", false, &Cancel::new()).unwrap();
    let devices = vim.snapshot_devices(&made, &Cancel::new()).unwrap();
    (made, devices.disk(2000).unwrap().backing.change_id.clone().unwrap_or_default())
}

fn areas(vim: &Vim, guest: &Guest<'_>, at: &Ref, since: &str) -> sendense_vsphere::Result<Vec<Extent>> {
    let question =
        Question { machine: &guest.machine, snapshot: at, disk_key: 2000, capacity: ByteLen(8 * MIB), since };
    vim.changed_areas(&question, &Cancel::new()).map(|set| set.as_slice().to_vec())
}

#[test]
fn a_machine_is_made_looked_at_tracked_and_removed() {
    let lab = Lab::new();
    let cancel = &Cancel::new();
    assert_eq!(lab.try_vim("wrong").unwrap_err().kind(), Some(FaultKind::InvalidLogin));
    let vim = lab.vim();
    assert!(vim.about().is_vcenter);
    let guest = lab.machine(&vim, "web 1", &[8 * MIB, 3 * MIB]);

    let found = vim.machines(cancel).unwrap().remove(0);
    assert_eq!((found.name.as_str(), found.power, found.hardware_version), ("web 1", Power::Off, Some(13)));
    let disks: Vec<_> =
        found.devices.disks.iter().map(|disk| (disk.key, disk.label.as_str(), disk.capacity_bytes)).collect();
    assert_eq!(disks, [(2000, "Hard disk 1", 8 * MIB), (2001, "Hard disk 2", 3 * MIB)]);
    assert_eq!(vim.folders(cancel).unwrap().path(found.parent.as_ref(), &found.name), "DC0/vm/web 1");
    let uuid = found.instance_uuid.unwrap();
    assert_eq!(vim.find_machine(&uuid, cancel).unwrap(), Some(guest.machine.clone()));
    assert_eq!(vim.find_machine("50000000-0000-0000-0000-000000000000", cancel).unwrap(), None);
    let wanted: Vec<&str> = privilege::BACKUP.iter().map(|(id, _)| *id).collect();
    assert_eq!(vim.missing_privileges(vim.root_folder(), &wanted, cancel).unwrap(), Vec::<String>::new());

    let (untracked, id) = snapshot(&vim, &guest, "untracked");
    assert_eq!(id, "", "nothing is tracked yet");
    assert_eq!(areas(&vim, &guest, &untracked, "*").unwrap_err().kind(), Some(FaultKind::FileFault));
    vim.remove_snapshot(&untracked, cancel).unwrap();

    vim.set_change_tracking(&guest.machine, true, cancel).unwrap();
    assert!(vim.machine(&guest.machine, cancel).unwrap().change_tracking);
    let (first, since) = snapshot(&vim, &guest, "first");
    for n in [0, 1, 5, 7, 9, 127] {
        guest.write(&vim, 0, (n << 16) + 100, b"new");
    }
    let (second, next) = snapshot(&vim, &guest, "second");
    assert_ne!(since, next);
    let expected = [Extent::between(ByteOffset(0), ByteOffset(2 << 16)), block(5), block(7), block(9), block(127)];
    assert_eq!(areas(&vim, &guest, &second, &since).unwrap(), expected);
    let before = lab.proxy.count("QueryChangedDiskAreas");
    lab.control("areas-max", "2");
    assert_eq!(areas(&vim, &guest, &second, &since).unwrap(), expected);
    assert_eq!(lab.proxy.count("QueryChangedDiskAreas") - before, 3, "two areas at a time");
    assert_eq!(areas(&vim, &guest, &second, &next).unwrap(), []);

    lab.control("reset", "");
    let (third, other) = snapshot(&vim, &guest, "third");
    assert_ne!(other.split('/').next(), next.split('/').next(), "another epoch");
    assert_eq!(areas(&vim, &guest, &third, &next).unwrap_err().kind(), Some(FaultKind::FileFault));

    let names: Vec<_> = vim.snapshots(&guest.machine, cancel).unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["first", "second", "third"]);
    lab.control("leave-deltas", "");
    for one in [first, second, third] {
        vim.remove_snapshot(&one, cancel).unwrap();
    }
    assert!(vim.machine(&guest.machine, cancel).unwrap().consolidation_needed);
    lab.control("locked", "1");
    let locked = vim.consolidate(&guest.machine, cancel).unwrap_err();
    assert!(locked.kind() == Some(FaultKind::FileLocked) && locked.is_transient());
    vim.consolidate(&guest.machine, cancel).unwrap();
    assert!(!vim.machine(&guest.machine, cancel).unwrap().consolidation_needed);
    assert!(lab.snapshots().is_empty() && vim.snapshots(&guest.machine, cancel).unwrap().is_empty());

    vim.power_on(&guest.machine, cancel).unwrap();
    assert_eq!(vim.destroy(&guest.machine, cancel).unwrap_err().kind(), Some(FaultKind::InvalidPowerState));
    vim.power_off(&guest.machine, cancel).unwrap();
    vim.destroy(&guest.machine, cancel).unwrap();
    let gone = vim.machine(&guest.machine, cancel).unwrap_err();
    assert_eq!(gone.kind(), Some(FaultKind::ManagedObjectNotFound));
    vim.log_out(cancel);
}

#[test]
fn trouble_on_the_way_is_told_or_survived() {
    let lab = Lab::new();
    let (vim, cancel) = (lab.vim(), &Cancel::new());
    let guest = lab.machine(&vim, "web", &[8 * MIB]);
    // A question is asked again, a session made anew; an order is not repeated, since it may have been carried out.
    lab.proxy.arm("RetrievePropertiesEx", 1, 1, Trouble::Drop);
    assert_eq!(vim.machines(cancel).unwrap().len(), 1);
    let logins = lab.proxy.count("Login");
    lab.proxy.arm("CreateContainerView", 1, 1, Trouble::Fault("NotAuthenticated"));
    assert_eq!(vim.machines(cancel).unwrap().len(), 1);
    assert_eq!(lab.proxy.count("Login"), logins + 1);
    lab.proxy.arm("CreateSnapshot_Task", 1, 1, Trouble::Lose);
    let lost = vim.create_snapshot(&guest.machine, "lost", "", false, cancel).unwrap_err();
    assert!(matches!(lost, Error::Unreachable { .. }), "{lost:?}");
    assert_eq!(vim.snapshots(&guest.machine, cancel).unwrap()[0].name, "lost");
    lab.proxy.arm("CreateSnapshot_Task", 1, 1, Trouble::Task("ApplicationQuiesceFault"));
    let quiesce = vim.create_snapshot(&guest.machine, "quiet", "", true, cancel).unwrap_err();
    assert_eq!(quiesce.kind(), Some(FaultKind::ApplicationQuiesceFault));
}

#[test]
fn a_bare_host_is_spoken_to_as_well() {
    let lab = Lab::with(&["-esx"], &[]);
    let vim = lab.vim();
    assert!(!vim.about().is_vcenter, "{:?}", vim.about());
    let guest = lab.machine(&vim, "alone", &[MIB]);
    assert_eq!(vim.machines(&Cancel::new()).unwrap()[0].reference, guest.machine);
    vim.port_groups(&Cancel::new()).unwrap();
}

/// nbdkit with its real plugin and our library, one connection's worth of a command.
fn through_nbdkit(lab: &Lab, snapshot: &Ref, file: &str, run: &str) -> Result<String, String> {
    let password = lab.folder("secret").join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let thumbprint = sendense_vsphere::probe(&lab.address(), None, &Cancel::new()).unwrap().vddk_thumbprint();
    let output = Command::new("nbdkit")
        .args(["--readonly", "--exit-with-parent", "-U", "-"])
        .arg(&lab.plugin)
        .arg(format!("libdir={}", lab.libdir.display()))
        .arg(format!("server={}", lab.address()))
        .arg(format!("user={USERNAME}"))
        .arg(format!("password=+{}", password.display()))
        .arg(format!("thumbprint={thumbprint}"))
        .args(["vm=moref=vm-1", "transports=nbdssl"])
        .arg(format!("snapshot={}", snapshot.id))
        .arg(format!("file={file}"))
        .args(["--run", run])
        .env("LC_ALL", "C")
        .output()
        .expect("install nbdkit");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn nbdkit_reads_a_snapshot_through_its_own_plugin() {
    let lab = Lab::with(&[], &["handles=1"]);
    let (vim, cancel) = (lab.vim(), &Cancel::new());
    let guest = lab.machine(&vim, "web", &[8 * MIB]);
    guest.write(&vim, 0, MIB, &[0xaa; 70_000]);
    let (made, _) = snapshot(&vim, &guest, "s");
    guest.write(&vim, 0, MIB, &[0xbb; 10]);
    let name = vim.snapshot_devices(&made, cancel).unwrap().disks[0].backing.file_name.clone().unwrap();
    let out = lab.folder("out").join("disk.raw");
    let copy = format!("nbdcopy \"$uri\" {}", out.display());
    through_nbdkit(&lab, &made, &name, &copy).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(bytes.len() as u64, 8 * MIB);
    assert!(bytes[MIB as usize..][..70_000].iter().all(|byte| *byte == 0xaa), "what the snapshot froze");
    assert!(bytes[..MIB as usize].iter().chain(&bytes[MIB as usize + 70_000..]).all(|byte| *byte == 0));
    let map = through_nbdkit(&lab, &made, &name, "nbdinfo --map \"$uri\"").unwrap();
    let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(rows, [["0", "1048576", "3"], ["1048576", "131072", "0"], ["1179648", "7208960", "3"]]);

    lab.control("bad-offset", "1048576");
    assert!(through_nbdkit(&lab, &made, &name, &copy).is_err());
    lab.uncontrol("bad-offset");
    // The mark of somebody else's session: ours, which lives.
    let mark = lab.root.join(".handles").join(format!("{}-0", std::process::id()));
    std::fs::write(&mark, "").unwrap();
    let busy = through_nbdkit(&lab, &made, &name, &copy).unwrap_err();
    assert!(busy.contains("NBD_ERR_INSUFFICIENT_RESOURCES"), "{busy}");
    std::fs::remove_file(&mark).unwrap();
    let gone = through_nbdkit(&lab, &made, "[LocalDS_0] no/such.vmdk", &copy).unwrap_err();
    assert!(gone.contains("VixDiskLib_Open: [LocalDS_0] no/such.vmdk: A file was not found"), "{gone}");
}

#[test]
fn vmwares_own_client_sees_the_same() {
    let lab = Lab::new();
    let vim = lab.vim();
    let guest = lab.machine(&vim, "web", &[8 * MIB]);
    let file = guest.file(&vim, 0);
    let said = lab.python("witness.py", &["web", file.to_str().unwrap()]);
    assert_eq!(said, "2000 Hard disk 1 8388608 0 8388608\n196608 65536\n");
}
