//! An export held for a backup: one connection, opened at the freeze and used for everything.

use super::bitmap::Trusted;
use crate::error::{Error, Kind, Result};
use crate::model::{ConfigDocument, DiscoveredVm, FreezeRequest, FrozenDisk, FrozenFacts, ReadHints};
use crate::{Changes, Frozen};
use sendense_block::nbd::Client;
use sendense_block::{Cancel, Disk, ReadAt};
use sendense_types::Consistency;
use serde_json::json;
use std::sync::Arc;

/// Why nothing can be quiesced.
pub(super) const NO_GUEST: &str = "an NBD export has no guest that could be asked";

/// The client cuts this into requests of its own size and keeps several of them in flight.
const REQUEST_BYTES: usize = 1 << 20;
/// Enough to hide a round trip while one lane compresses; a server on the same two cores gains nothing from more.
const LANES_MAX: usize = 4;

/// A held export.
pub struct FrozenExport {
    facts: FrozenFacts,
    client: Client,
    changes: Result<Trusted, String>,
}

impl FrozenExport {
    /// Holds what `client` is connected to. `request` has exactly one disk.
    pub fn new(
        vm: DiscoveredVm,
        description: String,
        client: Client,
        chosen: Result<Trusted, String>,
        request: &FreezeRequest,
    ) -> Self {
        let size = client.size();
        // The server may offer in its list what it then does not give.
        let chosen = chosen.and_then(|trusted| match client.has_context(&trusted.context()) {
            true => Ok(trusted),
            false => Err(format!("the NBD server does not give {}", trusted.context())),
        });
        let token = chosen.as_ref().ok().map(|trusted| trusted.token(size));
        let changes = chosen.and_then(|trusted| {
            let since = request.disks.iter().find_map(|disk| disk.since.as_ref());
            trusted.covers(since, size).map(|()| trusted)
        });
        let disks = vm.disks.iter().map(|disk| FrozenDisk {
            key: disk.key.clone(),
            binding: disk.binding.clone(),
            label: disk.label.clone(),
            capacity: size,
            token: token.clone(),
        });
        let content = json!({
            "source": "nbd",
            "name": vm.vm.name,
            "instance_uuid": vm.vm.instance_uuid,
            "server": vm.path,
            "description": description,
            "disks": [{ "key": super::DISK_KEY, "format": "raw", "capacity_bytes": size.0 }],
        });
        let config = ConfigDocument { kind: "facts".into(), content: Some(content.to_string()), missing: None };
        let facts = FrozenFacts {
            disks: disks.collect(),
            consistency: Consistency::Crash,
            consistency_note: request.quiesce.then(|| NO_GUEST.to_owned()),
            config: vec![config],
            hints: ReadHints {
                lanes: std::thread::available_parallelism().map_or(2, usize::from).min(LANES_MAX),
                request_bytes: REQUEST_BYTES,
            },
        };
        Self { facts, client, changes }
    }

    fn check_key(&self, disk_key: &str) -> Result<()> {
        match disk_key {
            super::DISK_KEY => Ok(()),
            other => Err(Error::new(Kind::NotFound, format!("disk {other} is not held"))),
        }
    }
}

impl Frozen for FrozenExport {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> Result<Changes> {
        self.check_key(disk_key)?;
        Ok(match &self.changes {
            Err(reason) => Changes::Unknown { reason: reason.clone() },
            Ok(trusted) => match self.client.change_map(&trusted.context()) {
                Some(map) => Changes::Delta(Arc::new(map)),
                None => Changes::Unknown { reason: format!("the NBD server does not give {}", trusted.context()) },
            },
        })
    }

    fn open(&self, disk_key: &str, cancel: &Cancel) -> Result<Arc<dyn Disk>> {
        self.check_key(disk_key)?;
        cancel.check()?;
        Ok(Arc::new(self.client.clone()))
    }

    fn check(&self) -> Result<()> {
        // A server that went away and came back has broken the connection, and with it every read since.
        Ok(())
    }

    fn release(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
