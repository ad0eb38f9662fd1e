//! The journey of a machine on a server that is not known beforehand: full, incremental, restored into a new machine, compared.
//!
//! Run on a real vCenter by `vcenter.rs`, where somebody names one, and on the simulator always, so that it works on that day.
//! The machine must be switched off, so that every backup of it holds the same, and small, because points are held in memory. The
//! new machine is removed at the end.

// None of it runs outside tests.
#![allow(clippy::unwrap_used)]

use crate::journal::Memory;
use crate::points::{Points, copy};
use sendense_block::{ByteOffset, Cancel};
use sendense_source::{
    ConfigDocument, DiskRequest, FreezeRequest, NewRemoteVm, RemoteDisk, Source, SourceContext, VmRef, vsphere,
};
use sendense_types::{DeploymentId, PowerState};
use sendense_vsphere::{Http, HttpOptions, Login, Trust, Vim};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the disks may hold together.
const BYTES_MAX: u64 = 2 << 30;

fn deployment() -> DeploymentId {
    "dep-real-test".parse().unwrap()
}

/// A server, and the machine on it that may be lost.
pub struct Server {
    pub address: String,
    pub thumbprint: String,
    pub username: String,
    pub password: String,
    pub vddk_libdir: String,
    pub nbdkit_plugin: Option<String>,
    pub machine: String,
}

/// Backs the machine up twice, makes a new one of the first point, backs that up, and compares; gives the server's product.
pub fn journey(server: Server) -> String {
    let Server { address, thumbprint, username, password, vddk_libdir, nbdkit_plugin, machine: name } = server;
    let cancel = Cancel::new();
    let run_dir = tempfile::tempdir().unwrap();
    let mut config = json!({ "host": address, "thumbprint": thumbprint, "vddk_libdir": vddk_libdir });
    if let Some(plugin) = nbdkit_plugin {
        config["nbdkit_plugin"] = plugin.into();
    }
    let context = SourceContext {
        source_id: "src-real".parse().unwrap(),
        deployment_id: deployment(),
        run_dir: run_dir.path().to_path_buf(),
        roots: Default::default(),
    };
    let secret = json!({ "username": username, "password": password }).to_string();
    let source = vsphere::open(&config, Some(&secret), context).unwrap();
    let report = source.test(&cancel).unwrap();
    assert!(report.warnings.is_empty(), "{report:?}");

    let found = source.discover(&cancel).unwrap().into_iter().find(|found| found.vm.name == name);
    let vm = found.unwrap_or_else(|| panic!("there is no machine {name}"));
    assert_eq!(vm.power_state, PowerState::Off, "{name} must be switched off");
    assert!(vm.disks.iter().map(|disk| disk.capacity.0).sum::<u64>() <= BYTES_MAX, "{name} is too large for this");
    let (full, documents) = back_up(&*source, &vm.vm, &Points::new());
    let (second, _) = back_up(&*source, &vm.vm, &full);
    assert_equal(&full, &second);
    assert!(second.values().all(|point| point.reason.is_none()), "changes are not tracked: {second:?}");

    let copied = restore(&*source, &full, &documents, &format!("sendense-test-{}", std::process::id()));
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| back_up(&*source, &copied, &Points::new()).0));
    // Away with it, whatever it held.
    let trust = Trust::Pin(thumbprint.parse().unwrap());
    let http = Http::new(&HttpOptions { address, trust, proxy: None }).unwrap();
    let vim = Vim::connect(Arc::new(http), Login { username, password }, &cancel).unwrap();
    let machine = vim.find_machine(&copied.instance_uuid, &cancel).unwrap().unwrap();
    vim.destroy(&machine, &cancel).unwrap();
    assert_equal(&full, &again.unwrap());
    assert!(source.leftovers(&cancel).unwrap().is_empty(), "something of ours stays");
    report.product
}

fn back_up(source: &dyn Source, vm: &VmRef, parents: &Points) -> (Points, Vec<ConfigDocument>) {
    let disks = source.inspect(vm, &Cancel::new()).unwrap().disks;
    let disks = disks.into_iter().filter(|disk| disk.unsupported.is_none()).map(|disk| DiskRequest {
        since: parents.get(&disk.key).and_then(|point| point.token.clone()),
        since_capacity: parents.get(&disk.key).map(|point| point.bytes.len() as u64),
        key: disk.key,
        binding: disk.binding,
    });
    let request = FreezeRequest {
        vm: vm.clone(),
        disks: disks.collect(),
        quiesce: false,
        quiesce_or_fail: false,
        deployment_id: deployment(),
        task_id: "task-backup".parse().unwrap(),
    };
    let journal = Memory::new();
    let frozen = source.freeze(&request, &journal.door(), &Cancel::new()).unwrap();
    let points = copy(&*frozen, &request, parents).unwrap();
    let documents = frozen.facts().config.clone();
    frozen.check().unwrap();
    frozen.release().unwrap();
    assert!(journal.open().is_empty());
    (points, documents)
}

fn restore(source: &dyn Source, points: &Points, documents: &[ConfigDocument], name: &str) -> VmRef {
    let disks: Vec<RemoteDisk> = points
        .iter()
        .map(|(key, point)| RemoteDisk { key: key.clone(), capacity_bytes: point.bytes.len() as u64 })
        .collect();
    let new = NewRemoteVm {
        name,
        documents,
        disks: &disks,
        datastore: None,
        folder: None,
        cluster: None,
        networks: &BTreeMap::new(),
        keep_identity: false,
        note: "made by a test, which removes it",
    };
    let (task_id, journal, cancel) = ("task-restore".parse().unwrap(), Memory::new(), Cancel::new());
    let restoring = source.remote_target().unwrap().create(&new, &task_id, &journal.door(), &cancel).unwrap();
    for (number, point) in points.values().enumerate() {
        let target = restoring.open_write(number, &cancel).unwrap();
        for (block, at) in point.bytes.chunks(1 << 20).zip((0..).step_by(1 << 20)) {
            if block.iter().any(|byte| *byte != 0) {
                target.write_at(ByteOffset(at), block).unwrap();
            }
        }
        target.flush().unwrap();
    }
    let vm = restoring.vm().clone();
    restoring.finish().unwrap();
    vm
}

#[track_caller]
fn assert_equal(one: &Points, other: &Points) {
    let bytes = |points: &Points| points.values().map(|point| point.bytes.clone()).collect::<Vec<_>>();
    assert!(bytes(one) == bytes(other), "{one:?} and {other:?} differ");
}
