//! Machines made of restore points: what the host cannot run is refused before anything is copied, and whatever step was the
//! last, what is left is nothing or a whole machine.

use crate::lab::{Guest, MIB, lab, qemu_img, task};
use sendense_block::Cancel;
use sendense_source::target::{DiskFormat, NewVm, Planned};
use sendense_source::{ConfigDocument, Kind, Result};
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
    assert!(source.reap(&late.artefact("src-lab".parse().unwrap(), task(1), []), &cancel).unwrap());
    assert!(!late.disks[0].exists() && planned.disks[0].exists());
    assert_eq!(lab.virsh(&["dumpxml", "--inactive", &name]), definition);
    lab.virsh(&["undefine", &name]);
    std::fs::remove_file(&planned.disks[0]).unwrap();
}
