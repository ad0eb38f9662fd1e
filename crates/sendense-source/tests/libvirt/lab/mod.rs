//! The lab as the tests of the source see it: sources on its daemon, requests for its domains, points of their disks.

#[path = "../../../../../lab/libvirt/mod.rs"]
mod base;
pub mod child;

pub use base::guest::{Guest, LabDisk, disk_xml};
pub use base::{Lab, MIB, agent, lab, qemu_img, until};

use parking_lot::Mutex;
use sendense_block::{Cancel, Extent};
use sendense_source::{
    Artefact, Changes, DiscoveredVm, DiskRequest, FreezeRequest, Frozen, Journal, Result, Source, SourceContext, VmRef,
};
use sendense_types::{DeploymentId, TaskId, TrackingToken};
use std::collections::BTreeMap;
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

/// A restore point of one disk.
#[derive(Clone, Default)]
pub struct Point {
    pub bytes: Vec<u8>,
    pub token: Option<TrackingToken>,
    /// How many bytes were read for it.
    pub read: u64,
    /// Why it is not a delta.
    pub reason: Option<String>,
}

impl std::fmt::Debug for Point {
    /// Without the bytes, which fill the screen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {} read, {:?}, {:?}", self.bytes.len(), self.read, self.token, self.reason)
    }
}

/// The newest point of each disk, by key.
pub type Points = BTreeMap<String, Point>;

/// Reads every disk as a mover would: only what changed onto the parent, or all of it.
pub fn copy(frozen: &dyn Frozen, request: &FreezeRequest, parents: &Points) -> Result<Points> {
    let mut points = Points::new();
    for (asked, facts) in request.disks.iter().zip(&frozen.facts().disks) {
        let disk = frozen.open(&asked.key, &Cancel::new())?;
        assert_eq!(disk.size(), facts.capacity);
        let whole = Extent::whole(facts.capacity);
        let mut point = Point { token: facts.token.clone(), ..Point::default() };
        let wanted = match frozen.changes(&asked.key)? {
            Changes::Delta(map) => {
                point.bytes = parents[&asked.key].bytes.clone();
                assert_eq!(point.bytes.len() as u64, facts.capacity.0, "a delta over a resize");
                map.changed(whole)?.to_blocks(whole.end())
            }
            Changes::Unknown { reason } => {
                point.bytes = vec![0; facts.capacity.0 as usize];
                point.reason = Some(reason);
                [whole].into_iter().collect()
            }
        };
        for extent in wanted.as_slice() {
            for mapped in disk.allocation(*extent)? {
                let range = mapped.extent.start().0 as usize..mapped.extent.end().0 as usize;
                let mut bytes = vec![0xee; range.len()];
                disk.read_at(mapped.extent.start(), &mut bytes)?;
                if mapped.content == sendense_block::Content::Zero {
                    assert!(sendense_block::digest::is_zero(&bytes), "the map says zero at {:?}", mapped.extent);
                }
                point.bytes[range].copy_from_slice(&bytes);
                point.read += bytes.len() as u64;
            }
        }
        points.insert(asked.key.clone(), point);
    }
    Ok(points)
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

/// A journal in memory.
#[derive(Default)]
pub struct Memory(Mutex<(u64, BTreeMap<u64, Artefact>)>);

impl Memory {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn door(self: &Arc<Self>) -> Arc<dyn Journal> {
        self.clone()
    }

    pub fn open(&self) -> Vec<Artefact> {
        self.0.lock().1.values().cloned().collect()
    }
}

impl Journal for Memory {
    fn record(&self, artefact: &Artefact) -> Result<u64> {
        let mut state = self.0.lock();
        state.0 += 1;
        let number = state.0;
        state.1.insert(number, artefact.clone());
        Ok(number)
    }

    fn close(&self, entry: u64) -> Result<()> {
        self.0.lock().1.remove(&entry);
        Ok(())
    }

    fn open_entries(&self) -> Result<Vec<(u64, Artefact)>> {
        Ok(self.0.lock().1.iter().map(|(number, artefact)| (*number, artefact.clone())).collect())
    }
}
