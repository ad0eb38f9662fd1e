//! Images held for a backup.
//!
//! There is nothing to freeze: an image must be of a machine that is off, or a snapshot that nobody writes. What can be
//! done is to *see* a change: every file of every disk is stamped before its first byte is read, and [`Frozen::check`]
//! looks again after the last one. A point made from images that changed meanwhile is never published.

use super::inventory::Machine;
use super::layers::{Layers, Reader};
use super::locks::Writers;
use super::server::{ImageServer, Owner};
use crate::error::{Error, Kind, Result};
use crate::model::{ConfigDocument, FreezeRequest, FrozenDisk, FrozenFacts, ReadHints};
use crate::{Changes, Frozen};
use parking_lot::Mutex;
use sendense_block::{Cancel, Disk};
use sendense_types::Consistency;
use serde_json::json;
use std::sync::{Arc, Weak};

/// Large enough that a system call's cost does not show, small enough to stay in the CPU's cache.
const REQUEST_BYTES: usize = 1 << 20;
/// More readers than this only wait for each other, on any store.
const LANES_MAX: usize = 8;

/// The reason that is shown for reading everything.
pub const NO_TRACKING: &str = "no change tracking for images";

/// The held disks of one machine.
pub struct FrozenImages {
    facts: FrozenFacts,
    disks: Vec<(String, Layers)>,
    /// For whom tools are started.
    owner: Owner,
    /// The tools that were started. Bounded by the openings of one backup.
    servers: Mutex<Vec<Weak<ImageServer>>>,
}

impl FrozenImages {
    /// Holds these disks.
    pub fn new(machine: &Machine, request: &FreezeRequest, disks: Vec<(FrozenDisk, Layers)>, owner: Owner) -> Self {
        let mut config = vec![facts_document(machine, &disks)];
        if let Some(settings) = &machine.settings {
            config.push(ConfigDocument { kind: "vm-toml".into(), content: Some(settings.text.clone()), missing: None });
        }
        let facts = FrozenFacts {
            disks: disks.iter().map(|(disk, _)| disk.clone()).collect(),
            consistency: Consistency::Crash,
            consistency_note: note(&disks, request),
            config,
            hints: ReadHints {
                lanes: std::thread::available_parallelism().map_or(2, usize::from).min(LANES_MAX),
                request_bytes: REQUEST_BYTES,
            },
        };
        Self {
            facts,
            disks: disks.into_iter().map(|(disk, layers)| (disk.key, layers)).collect(),
            owner,
            servers: Mutex::default(),
        }
    }

    fn disk(&self, key: &str) -> Result<&Layers> {
        let found = self.disks.iter().find(|(held, _)| held == key);
        found.map(|(_, layers)| layers).ok_or_else(|| Error::new(Kind::NotFound, format!("disk {key} is not held")))
    }
}

impl Frozen for FrozenImages {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> Result<Changes> {
        self.disk(disk_key)?;
        Ok(Changes::Unknown { reason: NO_TRACKING.into() })
    }

    fn open(&self, disk_key: &str, cancel: &Cancel) -> Result<Arc<dyn Disk>> {
        cancel.check()?;
        let layers = self.disk(disk_key)?;
        match &layers.reader {
            Reader::Own(disk) => Ok(disk.clone()),
            // Each opening has its own tool, which ends with the last reader or with the release.
            Reader::Tool(image) => {
                let server = Arc::new(ImageServer::start(&self.owner, image, &layers.files, cancel)?);
                self.servers.lock().push(Arc::downgrade(&server));
                Ok(server)
            }
        }
    }

    fn check(&self) -> Result<()> {
        match self.disks.iter().find_map(|(_, layers)| layers.changed()) {
            None => Ok(()),
            Some(path) => Err(Error::new(
                Kind::Disturbed,
                format!("{} changed while it was read, so the backup would mix two states", path.display()),
            )
            .hint("back up a machine that is off, or a snapshot of its images")),
        }
    }

    fn release(self: Box<Self>) -> Result<()> {
        // What remains is done by dropping it.
        Ok(())
    }
}

impl Drop for FrozenImages {
    fn drop(&mut self) {
        self.servers.lock().iter().filter_map(Weak::upgrade).for_each(|server| server.stop());
    }
}

/// Why nothing can be quiesced.
pub(super) const NO_GUEST: &str = "an image has no guest that could be asked";

/// Why the point may be less than one would wish.
fn note(disks: &[(FrozenDisk, Layers)], request: &FreezeRequest) -> Option<String> {
    let writers = Writers::now();
    let mut files = disks.iter().flat_map(|(_, layers)| &layers.files);
    if let Some(file) = files.find(|file| writers.hold(&file.handle)) {
        let path = file.path.display();
        return Some(format!("a running machine holds {path} open: what it has not written to it yet is missing"));
    }
    if disks.iter().flat_map(|(_, layers)| &layers.files).any(|file| file.stamp.is_block_device()) {
        return Some("a write to a block device while it was read could not have been seen".into());
    }
    request.quiesce.then(|| NO_GUEST.into())
}

fn facts_document(machine: &Machine, disks: &[(FrozenDisk, Layers)]) -> ConfigDocument {
    let disks: Vec<_> = disks
        .iter()
        .map(|(disk, layers)| {
            let format = machine.disks.iter().find(|file| file.key == disk.key).map(|file| file.format.word());
            let files: Vec<_> = layers.files.iter().map(|file| file.path.display().to_string()).collect();
            json!({
                "key": disk.key,
                "format": format,
                "capacity_bytes": disk.capacity.0,
                "files": files,
            })
        })
        .collect();
    let facts = json!({
        "source": "image",
        "name": machine.vm.name,
        "instance_uuid": machine.vm.instance_uuid,
        "guest_os": machine.settings.as_ref().and_then(|settings| settings.guest_os.as_deref()),
        "disks": disks,
    });
    ConfigDocument { kind: "facts".into(), content: Some(facts.to_string()), missing: None }
}
