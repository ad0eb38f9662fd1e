//! Machines made of restore points: what the host cannot run is refused before anything is copied, and whatever step was the
//! last, what is left is nothing or a whole machine.

use crate::lab::{Guest, Lab, MIB, Memory, deployment, lab, qemu_img, task};
use sendense_block::Cancel;
use sendense_source::instant::InstantVm;
use sendense_source::target::{DiskFormat, NewVm, Planned};
use sendense_source::{ConfigDocument, DiskRequest, FreezeRequest, Kind, Result, Source, VmRef};
use std::collections::BTreeMap;

/// Plans a machine from a document, with the only card's network told.
fn plan(document: &str, network: Option<&str>) -> Result<Planned> {
    plan_named("planned", document, network)
}

fn plan_named(name: &str, document: &str, network: Option<&str>) -> Result<Planned> {
    let lab = lab();
    let source = lab.source();
    let documents =
        [ConfigDocument { kind: "libvirt-domain-xml".into(), content: Some(document.to_owned()), missing: None }];
    let networks = network.map(|new| ("lan".to_owned(), Some(new.to_owned()))).into_iter().collect::<BTreeMap<_, _>>();
    let new = NewVm {
        name,
        documents: &documents,
        disks: &["vda".to_owned()],
        folder: &lab.dir,
        format: DiskFormat::Qcow2,
        networks: &networks,
        keep_identity: false,
    };
    source.target().unwrap().plan(&new, &Cancel::new())
}

#[test]
fn what_the_host_cannot_run_is_refused_before_anything_is_copied() {
    let lab = lab();
    let card = "<interface type='network'><source network='lan'/><model type='virtio'/></interface>";
    let guest = Guest::define_with(lab, &[("vda", "qcow2", MIB)], card, "");
    let document = lab.virsh(&["dumpxml", "--inactive", &guest.name]);
    // The recorded network is nobody's business until the caller names one.
    let planned = plan(&document, None).unwrap();
    assert!(planned.notes.iter().any(|note| note.contains("was in the network lan")), "{:?}", planned.notes);
    for (place, told) in [("bridge:", "no name of a bridge"), ("bridge:../x", "no name of a bridge")] {
        let error = plan(&document, Some(place)).unwrap_err();
        assert!(error.kind == Kind::Unsupported && error.to_string().contains(told), "{error}");
    }
    assert!(plan(&document, Some("bridge:br0")).unwrap().definition.contains("bridge=\"br0\""));

    let error = plan(&document, Some("lam")).unwrap_err();
    assert!(error.kind == Kind::Unsupported && error.to_string().contains("no network lam"), "{error}");

    let machine = planned.definition.split("machine=\"").nth(1).unwrap().split('"').next().unwrap();
    let newer = document.replace(&format!("machine='{machine}'"), "machine='pc-q35-99.0'");
    assert_ne!(newer, document);
    let error = plan(&newer, None).unwrap_err();
    let told = sendense_block::error::chain(&error);
    assert!(error.kind == Kind::Unsupported && told.contains("pc-q35-99.0"), "{told}");
}

#[test]
fn whatever_step_was_the_last_nothing_or_a_whole_machine_is_left() {
    let lab = lab();
    let guest = Guest::define(lab, &[("vda", "qcow2", MIB)]);
    let document = lab.virsh(&["dumpxml", "--inactive", &guest.name]);
    let (source, cancel) = (lab.source(), Cancel::new());
    let name = format!("{}-restored", guest.name);
    let planned = plan_named(&name, &document, None).unwrap();
    let part = planned.disks[0].with_extension("part");
    let artefact = planned.artefact("src-lab".parse().unwrap(), task(0), [part.clone()]);
    let defined = || lab.try_virsh(&["domstate", &name]).is_ok();
    let make = |file: &std::path::Path| qemu_img(&["create", "-q", "-f", "qcow2", file.to_str().unwrap(), "1M"]);

    // Recorded, and nothing made; a disk half made; a disk whole.
    for made in [None, Some(&part), Some(&planned.disks[0])] {
        if let Some(file) = made {
            make(file);
        }
        // After something was removed it is looked at once more.
        assert_eq!(source.reap(&artefact, &cancel).unwrap(), made.is_none());
        assert!(source.reap(&artefact, &cancel).unwrap());
        assert!(made.is_none_or(|file| !file.exists()) && !defined());
    }
    // Defined: from then on it is somebody's.
    make(&planned.disks[0]);
    source.target().unwrap().finish(&planned, &cancel).unwrap();
    assert!(source.reap(&artefact, &cancel).unwrap());
    assert!(planned.disks[0].exists() && defined());
    let definition = lab.virsh(&["dumpxml", "--inactive", &name]);

    // Another that wants the name is refused when it is planned, and at the last step if it was planned before.
    assert_eq!(plan_named(&name, &document, None).unwrap_err().kind, Kind::Busy);
    let mut late = plan_named(&format!("{name}-late"), &document, None).unwrap();
    late.vm.name.clone_from(&name);
    make(&late.disks[0]);
    assert_eq!(source.target().unwrap().finish(&late, &cancel).unwrap_err().kind, Kind::Busy);
    let left = late.artefact("src-lab".parse().unwrap(), task(1), []);
    assert!(!source.reap(&left, &cancel).unwrap() && source.reap(&left, &cancel).unwrap());
    assert!(!late.disks[0].exists() && planned.disks[0].exists());
    assert_eq!(lab.virsh(&["dumpxml", "--inactive", &name]), definition);
    lab.virsh(&["undefine", &name]);
    std::fs::remove_file(&planned.disks[0]).unwrap();
}

/// A domain with UEFI that was started once, so that libvirt has made its variables.
fn uefi<'a>(lab: &'a Lab, name: &str, os: &str) -> Uefi<'a> {
    let disk = lab.image(&format!("{name}.qcow2"), "qcow2", MIB);
    let document = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>{os}<features><acpi/></features>
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/>
         </disk><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
        disk.display()
    );
    let file = lab.dir.join(format!("{name}.xml"));
    std::fs::write(&file, document).unwrap();
    lab.virsh(&["define", file.to_str().unwrap()]);
    lab.virsh(&["start", name]);
    let uuid = lab.virsh(&["domuuid", name]).trim().to_owned();
    Uefi { lab, vm: VmRef { instance_uuid: uuid, name: name.to_owned() } }
}

struct Uefi<'a> {
    lab: &'a Lab,
    vm: VmRef,
}

impl Uefi<'_> {
    /// What a backup records of it.
    fn recorded(&self, source: &dyn Source) -> Vec<ConfigDocument> {
        let disk = source.inspect(&self.vm, &Cancel::new()).unwrap().disks.remove(0);
        let disk = DiskRequest { key: disk.key, binding: disk.binding, since: None, since_capacity: None };
        let request = FreezeRequest {
            vm: self.vm.clone(),
            disks: vec![disk],
            quiesce: false,
            quiesce_or_fail: false,
            deployment_id: deployment(),
            task_id: task(100),
        };
        let frozen = source.freeze(&request, &Memory::new().door(), &Cancel::new()).unwrap();
        let config = frozen.facts().config.clone();
        frozen.release().unwrap();
        config
    }
}

impl Drop for Uefi<'_> {
    fn drop(&mut self) {
        let _ = self.lab.try_virsh(&["destroy", &self.vm.name]);
        let _ = self.lab.try_virsh(&["undefine", &self.vm.name, "--nvram", "--checkpoints-metadata"]);
    }
}

const OS: &str = "<os><type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader></os>";

/// The file of a domain's variables.
fn variables(lab: &Lab, name: &str) -> std::path::PathBuf {
    let document = lab.virsh(&["dumpxml", name]);
    let element = document.split("</nvram>").next().unwrap_or_else(|| panic!("no variables in {document}"));
    element.rsplit('>').next().unwrap().into()
}

#[test]
fn the_firmwares_variables_come_back_with_a_machine() {
    assert!(std::path::Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists(), "install the Debian package ovmf");
    let lab = lab();
    let guest = uefi(lab, "uefi", OS);
    let file = variables(lab, "uefi");
    lab.virsh(&["destroy", "uefi"]);
    // The end of the store is spare room.
    let mut written = std::fs::read(&file).unwrap();
    let end = written.len() - 9;
    written[end..].copy_from_slice(b"variables");
    std::fs::write(&file, &written).unwrap();

    let unallowed = guest.recorded(&*lab.source());
    let said = unallowed.iter().find(|document| document.kind == "nvram").unwrap().missing.clone().unwrap();
    assert!(said.contains("image_dirs"), "{said}");
    let source = lab.source_with(serde_json::json!({ "image_dirs": [lab.dir] }));
    let documents = guest.recorded(&*source);
    let networks = BTreeMap::new();
    let new = NewVm {
        name: "uefi-restored",
        documents: &documents,
        disks: &["vda".to_owned()],
        folder: &lab.dir.join("images"),
        format: DiskFormat::Qcow2,
        networks: &networks,
        keep_identity: false,
    };
    let planned = source.target().unwrap().plan(&new, &Cancel::new()).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", planned.disks[0].to_str().unwrap(), "1M"]);
    lab.give(&planned.disks[0]);
    source.target().unwrap().finish(&planned, &Cancel::new()).unwrap();
    let (restored, _) = planned.nvram.clone().unwrap();
    assert_eq!(variables(lab, "uefi-restored"), restored);
    assert!(std::fs::read(&restored).unwrap() == written, "the variables differ");
    let new = Uefi { lab, vm: planned.vm };
    lab.virsh(&["start", "uefi-restored"]);
    drop(new);

    // A machine that runs on exports finds them where libvirt keeps them. Its disks are not served, so it does not start.
    let instant = source.instant().unwrap();
    let socket = instant.socket("rcv-uefi").unwrap();
    let disks = [("vda".to_owned(), "secret".to_owned())];
    let wanted =
        InstantVm { name: "uefi-instant", documents: &documents, disks: &disks, socket: &socket, networks: &networks };
    let planned = instant.plan(&wanted, &Cancel::new()).unwrap();
    instant.start(&planned, &Cancel::new()).unwrap_err();
    let usual = file.with_file_name("uefi-instant_VARS.fd");
    assert!(std::fs::read(&usual).unwrap() == written, "the variables differ");
    instant.end(&planned.vm, &socket, &Cancel::new()).unwrap();
    assert!(!usual.exists() && lab.try_virsh(&["domstate", "uefi-instant"]).is_err());
    // What another machine left there is not replaced, and the machine goes without.
    std::fs::write(&usual, "mine").unwrap();
    instant.start(&planned, &Cancel::new()).unwrap_err();
    assert_eq!(std::fs::read(&usual).unwrap(), b"mine");
    lab.virsh(&["undefine", "uefi-instant", "--keep-nvram"]);
    std::fs::remove_file(&usual).unwrap();

    // A machine whose variables are not there is made all the same, and that is told.
    let bare: Vec<_> = documents.into_iter().filter(|document| document.kind != "nvram").collect();
    let new = NewVm {
        name: "uefi-bare",
        documents: &bare,
        disks: &["vda".to_owned()],
        folder: &lab.dir,
        format: DiskFormat::Qcow2,
        networks: &networks,
        keep_identity: false,
    };
    let planned = source.target().unwrap().plan(&new, &Cancel::new()).unwrap();
    assert!(planned.nvram.is_none() && planned.notes.iter().any(|note| note.contains("variables")), "{planned:?}");
}
