//! The lab as the tests of the source see it: sources on its daemon, requests for its domains, points of their disks.

#[path = "../../../../../lab/libvirt/mod.rs"]
mod base;
pub mod child;

pub use crate::journal::Memory;
pub use crate::points::{Points, copy};
pub use base::guest::{Guest, LabDisk, disk_xml};
pub use base::{Lab, MIB, agent, lab, qemu_img, until};

use sendense_block::Cancel;
use sendense_source::{Artefact, DiscoveredVm, DiskRequest, FreezeRequest, Source, SourceContext, VmRef};
use sendense_types::{DeploymentId, TaskId, TrackingToken};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

impl Lab {
    /// A source on this daemon.
    pub fn source(&self) -> Arc<dyn Source> {
        self.source_with(serde_json::json!({}))
    }

    pub fn source_with(&self, more: serde_json::Value) -> Arc<dyn Source> {
        let mut config = serde_json::json!({
            "uri": self.uri, "scratch_dir": self.dir.join("scratch"), "scratch_floor_bytes": MIB,
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let context = SourceContext {
            source_id: "src-lab".parse().unwrap(),
            deployment_id: deployment(),
            run_dir: self.dir.clone(),
            roots: Default::default(),
        };
        sendense_source::libvirt::open(&config, context).unwrap()
    }
}

pub fn deployment() -> DeploymentId {
    "dep-lab".parse().unwrap()
}

impl Guest<'_> {
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
            task_id: task(TASK.fetch_add(1, Ordering::Relaxed)),
        }
    }

    #[track_caller]
    pub fn assert_points(&self, points: &Points) {
        for (target, bytes) in &self.model {
            let found = &points[*target].bytes;
            assert_eq!(found.len(), bytes.len(), "size of {target}");
            if bytes != found {
                let at = (0..bytes.len()).find(|at| bytes[*at] != found[*at]).unwrap();
                panic!("{target} differs from what the guest wrote at {at}: {} not {}", found[at], bytes[at]);
            }
        }
    }
}

pub fn task(number: u32) -> TaskId {
    format!("task-{}-{number}", std::process::id()).parse().unwrap()
}

/// One whole backup, and what a hub does after publishing: only the new tokens are kept.
#[track_caller]
pub fn back_up(guest: &Guest<'_>, source: &dyn Source, parents: &Points) -> Points {
    back_up_beside(guest, source, parents, &[])
}

/// The same where other repositories have points of the guest whose tokens must stay.
#[track_caller]
pub fn back_up_beside(guest: &Guest<'_>, source: &dyn Source, parents: &Points, others: &[&Points]) -> Points {
    let journal = Memory::new();
    let request = guest.request(source, parents);
    let frozen = source
        .freeze(&request, &journal.door(), &Cancel::new())
        .unwrap_or_else(|error| panic!("freeze: {}", sendense_block::error::chain(&error)));
    let points = copy(&*frozen, &request, parents).unwrap();
    frozen.check().unwrap();
    frozen.release().unwrap();
    let newest = points.values().chain(others.iter().flat_map(|points| points.values()));
    let keep: Vec<TrackingToken> = newest.filter_map(|point| point.token.clone()).collect();
    source.retire(&guest.vm(), &keep, &journal.door(), &Cancel::new()).unwrap();
    assert_eq!(journal.open(), Vec::<Artefact>::new(), "the journal is not closed");
    assert!(scratch_is_empty(guest.lab, &guest.uuid), "scratch is left");
    points
}

/// True when no job of the domain has a folder.
pub fn scratch_is_empty(lab: &Lab, domain: &str) -> bool {
    // The folders' names are digests; those of other tests' domains may be there.
    lab.try_virsh(&["backup-dumpxml", domain]).is_err()
}
