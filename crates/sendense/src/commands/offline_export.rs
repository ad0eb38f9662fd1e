//! `sendense offline export`: every point of a repository's folder over NBD, for a rescue shell.

use super::offline::{WHO, open, points};
use crate::output::{json, line, say};
use anyhow::{Context as _, Result};
use sendense_block::nbd::Uri;
use sendense_block::nbd::server::{Device, ExportGuard, ExportOptions, Exports, Listen, Options, Server};
use sendense_block::{self as block, AllocationMap, ByteLen, ByteOffset, Extent, MappedExtent, ReadAt};
use sendense_repo::manifest::Manifest;
use sendense_repo::{ChainReader, Repository, layout};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use serde_json::json as value;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Where the socket is when nobody says.
const SOCKET: &str = "sendense-nbd.sock";
/// Clients that list ask several times about each export.
const OPTIONS_PER_EXPORT: usize = 4;
/// A list of thousands of exports takes a client a while.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(120);
/// Images that are open at once, three chains of the greatest depth: below the usual limit of 1024 open files.
const IMAGES_MAX: usize = 3 * sendense_repo::CHAIN_DEPTH_MAX;
/// Disks that are left out and named one by one; a terminal shows as many.
const LEFT_OUT_TOLD_MAX: usize = 40;

/// Serves until it is told to end.
pub fn run(repo_path: &Path, socket: Option<PathBuf>, as_json: bool) -> Result<u8> {
    let repository = Arc::new(open(repo_path)?);
    let socket = super::absolute(&socket.unwrap_or_else(|| SOCKET.into()))?;
    let (points, mut problems) = points(&repository)?;
    let unreadable = problems;
    let known = Known::new(&repository, &points);
    let (exports, chains) = (Exports::new(), Arc::new(Chains::default()));
    let mut guards: Vec<(String, ExportGuard)> = Vec::new();
    let mut left_out = Vec::new();
    // On the day that this is needed something is broken: what is whole is served all the same.
    for (point, disk) in points.iter().flat_map(|point| point.disks.iter().map(move |disk| (point, disk))) {
        let name = format!("{}/{}/disk-{}", point.vm_context_id, point.backup_id, disk.disk_id);
        let description = format!("{}, disk {}, {}", point.vm.name, disk.disk_id, point.created_at);
        let device = Lazy {
            number: guards.len(),
            chains: chains.clone(),
            repository: repository.clone(),
            vm: point.vm_context_id.clone(),
            backup: point.backup_id.clone(),
            disk: disk.disk_id,
            size: disk.capacity(),
        };
        let options = ExportOptions { description, ..ExportOptions::default() };
        let offered = match known.lacks(&point.vm_context_id, &point.backup_id, disk.disk_id) {
            Some(why) => Err(why),
            None => exports.add(&name, Device::read_only(device), options).map_err(|error| block::error::chain(&error)),
        };
        match offered {
            Ok(guard) => guards.push((name, guard)),
            Err(why) => {
                problems += 1;
                // With a repository that is in ruins the list would hide everything else.
                if left_out.len() < LEFT_OUT_TOLD_MAX {
                    say(format!("warning: {name} is left out: {why}"));
                }
                left_out.push(value!({ "name": name, "reason": why }));
            }
        }
    }
    if left_out.len() > LEFT_OUT_TOLD_MAX {
        say(format!("warning: {} disks are left out; --json lists them all", left_out.len()));
    }
    let options = Options {
        list_names: true,
        handshake_options_max: 64 + OPTIONS_PER_EXPORT * guards.len(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        ..Options::new(Listen::Unix(socket))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        // Asked for before anybody can know that we serve.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Server::start(options, exports)?;
        let uris: Vec<_> = guards.iter().map(|(name, _)| server.uri(name)).collect::<Result<_, _>>()?;
        if as_json {
            let row = |((name, _), uri): (&(String, _), &Uri)| value!({ "name": name, "uri": uri.to_string() });
            let rows: Vec<_> = guards.iter().zip(&uris).map(row).collect();
            let told = value!({
                "success": problems == 0, "exports": rows, "left_out": left_out, "unreadable_manifests": unreadable,
            });
            json(&told)?;
        } else {
            for uri in &uris {
                line(uri.to_string());
            }
        }
        say(format!("{} disks are on offer, read-only; Ctrl-C ends it", uris.len()));
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        server.shutdown();
        anyhow::Ok(())
    })?;
    Ok(u8::from(problems > 0))
}

/// The points that the folder holds, and which of their images are there.
struct Known<'a> {
    repository: &'a Repository,
    points: HashMap<(&'a VmContextId, &'a BackupId), &'a Manifest>,
    /// What was found of an image, looked at once: many points stand on it.
    images: RefCell<HashMap<PathBuf, Option<String>>>,
}

impl<'a> Known<'a> {
    fn new(repository: &'a Repository, points: &'a [Manifest]) -> Self {
        let points = points.iter().map(|point| ((&point.vm_context_id, &point.backup_id), point)).collect();
        Self { repository, points, images: RefCell::default() }
    }

    /// What a disk needs and does not have. That it can be read is not said: its images are opened by whoever reads it.
    fn lacks(&self, vm: &VmContextId, backup: &BackupId, disk: DiskNumber) -> Option<String> {
        let mut next = Some(backup);
        for _ in 0..sendense_repo::CHAIN_DEPTH_MAX {
            let id = next?;
            let Some(point) = self.points.get(&(vm, id)) else { return Some(format!("there is no point {id}")) };
            let Some(held) = point.disks.iter().find(|held| held.disk_id == disk) else {
                return Some(format!("the point {id} has no disk {disk}"));
            };
            if let Some(why) = self.image(layout::image(vm, disk, id)) {
                return Some(why);
            }
            next = held.parent_backup_id.as_ref();
        }
        next.map(|_| format!("its chain has more than {} points", sendense_repo::CHAIN_DEPTH_MAX))
    }

    fn image(&self, path: PathBuf) -> Option<String> {
        let look = |path: &Path| match self.repository.root().join(path).symlink_metadata() {
            Ok(found) if found.is_file() => None,
            Ok(_) => Some(format!("{} is no file", path.display())),
            Err(error) => Some(format!("{}: {error}", path.display())),
        };
        self.images.borrow_mut().entry(path).or_insert_with_key(|path| look(path)).clone()
    }
}

/// The chains that were read last: a repository holds far more points than a process may open files, and nobody looks at
/// all of them at once.
#[derive(Default)]
struct Chains(Mutex<VecDeque<(usize, Arc<ChainReader>)>>);

impl Chains {
    /// The chain with this number.
    fn get(&self, number: usize, open: impl FnOnce() -> block::Result<ChainReader>) -> block::Result<Arc<ChainReader>> {
        // What is in the list is whole at any time, so a thread that panicked left nothing half done.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, chain)) = lock().iter().find(|(found, _)| *found == number) {
            return Ok(chain.clone());
        }
        // Several threads may open the same chain the first time; what is opened twice is closed again.
        let chain = Arc::new(open()?);
        let mut chains = lock();
        chains.push_back((number, chain.clone()));
        while chains.len() > 1 && chains.iter().map(|(_, chain)| chain.links().len()).sum::<usize>() > IMAGES_MAX {
            chains.pop_front();
        }
        Ok(chain)
    }
}

/// A disk whose chain is opened when somebody reads it.
struct Lazy {
    number: usize,
    repository: Arc<Repository>,
    chains: Arc<Chains>,
    vm: VmContextId,
    backup: BackupId,
    disk: DiskNumber,
    size: ByteLen,
}

impl Lazy {
    fn chain(&self) -> block::Result<Arc<ChainReader>> {
        self.chains.get(self.number, || {
            self.repository.open_disk(&self.vm, &self.backup, self.disk, WHO).map_err(|error| {
                let context = format!("open disk {} of {}", self.disk, self.backup);
                block::Error::new(block::Kind::Io, context).caused_by(error)
            })
        })
    }
}

impl ReadAt for Lazy {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        self.chain()?.read_at(at, buf)
    }
}

impl AllocationMap for Lazy {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        self.chain()?.allocation(within)
    }
}
