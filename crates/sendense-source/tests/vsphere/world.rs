//! The lab as the source's tests see it: a source on it, machines with a model of what their guests wrote, backups as a hub
//! makes them.

pub use crate::journal::Memory;
use crate::lab::{Guest, Lab, PASSWORD, USERNAME, write};
pub use crate::points::{Points, copy};
use sendense_block::Cancel;
use sendense_source::{Artefact, DiscoveredVm, DiskRequest, FreezeRequest, Source, SourceContext, VmRef};
use sendense_types::{Consistency, DeploymentId, TaskId};
use sendense_vsphere::Vim;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub fn deployment() -> DeploymentId {
    "dep-lab".parse().unwrap()
}

impl Lab {
    pub fn source(&self) -> Arc<dyn Source> {
        self.source_with(json!({}))
    }

    pub fn source_with(&self, more: Value) -> Arc<dyn Source> {
        let shown = sendense_vsphere::probe(&self.address(), None, &Cancel::new()).unwrap();
        let mut config = json!({
            "host": self.address(), "thumbprint": shown.fingerprint().to_string(),
            "vddk_libdir": self.libdir, "nbdkit_plugin": self.plugin,
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let secret = json!({ "username": USERNAME, "password": PASSWORD }).to_string();
        let context = SourceContext {
            source_id: "src-lab".parse().unwrap(),
            deployment_id: deployment(),
            run_dir: self.run_dir(),
            roots: Default::default(),
        };
        sendense_source::vsphere::open(&config, Some(&secret), context).unwrap()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.folder("run")
    }

    /// Nothing of ours is left: no snapshot, no process, no password, no socket.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.snapshots(), Vec::<String>::new(), "snapshots are left");
        let left: Vec<_> = std::fs::read_dir(self.run_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "the run folder is not empty");
        assert_eq!(self.kits(), Vec::<i32>::new(), "nbdkit is left");
    }

    /// Processes of nbdkit that serve a disk of this lab.
    pub fn kits(&self) -> Vec<i32> {
        let marker = self.run_dir();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let serves = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("nbdkit") && line.contains(&*marker.to_string_lossy())
        };
        pids.filter(serves).collect()
    }
}

/// A machine, and what its guest has written, disk by disk.
pub struct Machine<'lab> {
    pub guest: Guest<'lab>,
    pub vim: Vim,
    pub model: Vec<Vec<u8>>,
    pub uuid: String,
    pub name: String,
}

impl<'lab> Machine<'lab> {
    pub fn new(lab: &'lab Lab, name: &str, disks: &[u64]) -> Self {
        let vim = lab.vim();
        let guest = lab.machine(&vim, name, disks);
        let uuid = vim.machine(&guest.machine, &Cancel::new()).unwrap().instance_uuid.unwrap();
        let model = disks.iter().map(|size| vec![0; *size as usize]).collect();
        Self { guest, vim, model, uuid, name: name.into() }
    }

    pub fn write(&mut self, disk: usize, at: usize, bytes: &[u8]) {
        write(&self.guest.file(&self.vim, disk), at as u64, bytes);
        self.model[disk][at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn vm(&self) -> VmRef {
        VmRef { instance_uuid: self.uuid.clone(), name: self.name.clone() }
    }

    pub fn inspect(&self, source: &dyn Source) -> DiscoveredVm {
        source.inspect(&self.vm(), &Cancel::new()).unwrap()
    }

    /// What a hub would ask for: all supported disks, against the points it has.
    pub fn request(&self, source: &dyn Source, parents: &Points) -> FreezeRequest {
        static TASK: AtomicU32 = AtomicU32::new(0);
        let disks = self.inspect(source).disks.into_iter().filter(|disk| disk.unsupported.is_none()).map(|disk| {
            let parent = parents.get(&disk.key);
            DiskRequest {
                key: disk.key,
                binding: disk.binding,
                since: parent.and_then(|point| point.token.clone()),
                since_capacity: parent.map(|point| point.bytes.len() as u64),
            }
        });
        FreezeRequest {
            vm: self.vm(),
            disks: disks.collect(),
            quiesce: false,
            quiesce_or_fail: false,
            deployment_id: deployment(),
            task_id: format!("task-{}", TASK.fetch_add(1, Ordering::Relaxed)).parse::<TaskId>().unwrap(),
        }
    }

    #[track_caller]
    pub fn assert_points(&self, points: &Points) {
        assert_eq!(points.len(), self.model.len());
        for (bytes, (key, point)) in self.model.iter().zip(points) {
            assert_eq!(point.bytes.len(), bytes.len(), "size of {key}");
            let differs = (0..bytes.len()).find(|at| bytes[*at] != point.bytes[*at]);
            assert_eq!(differs, None, "{key} differs from what the guest wrote");
        }
    }
}

/// One whole backup; nothing is left of it but the points.
#[track_caller]
pub fn back_up(machine: &Machine<'_>, source: &dyn Source, parents: &Points) -> Points {
    let journal = Memory::new();
    let request = machine.request(source, parents);
    let frozen = source
        .freeze(&request, &journal.door(), &Cancel::new())
        .unwrap_or_else(|error| panic!("freeze: {}", sendense_block::error::chain(&error)));
    assert_eq!(frozen.facts().consistency, Consistency::Crash);
    let points = copy(&*frozen, &request, parents).unwrap();
    frozen.check().unwrap();
    frozen.release().unwrap();
    assert_eq!(journal.open(), Vec::<Artefact>::new(), "the journal is not closed");
    machine.guest.lab.assert_clean();
    points
}
