//! A running domain, held by a backup job: QEMU gives the frozen bytes through NBD and keeps what the guest overwrites.
//!
//! What lives here: the story of a freeze from the domain's description to the first connection, and the frozen state
//! itself. What does not: the single steps (`job`, `agent`, `scratch`, `checkpoint`).
//!
//! ```text
//! inspect -> plan -> journal -> folder -> freeze guest -> begin job + checkpoint -> thaw guest -> read ... -> end job
//! ```

use super::agent;
use super::config::Places;
use super::discover::Found;
use super::domain::Domain;
use super::job::{self, Begun, DiskPlan, Owner};
use super::name::Checkpoint;
use super::scratch::{self, Folder, Verdict, Watch};
use super::virsh::Virsh;
use super::{Settings, checkpoint, layers};
use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::model::{DiskRequest, FreezeRequest, FrozenDisk, FrozenFacts, ReadHints};
use crate::{Changes, Frozen};
use parking_lot::Mutex;
use sendense_block::nbd::{Client, Options, Uri};
use sendense_block::{AllocationMap, ByteLen, ByteOffset, Cancel, Disk, Extent, MappedExtent, ReadAt};
use sendense_types::Consistency;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes per read: what a lane hashes and writes at once.
const READ_BYTES: usize = 1 << 20;

/// Bytes per NBD request, several of which make a read. Measured on two cores with QEMU 7.2, 3 GiB of data, seconds of wall
/// clock and of QEMU's processor time: 128 KiB 3.7 and 1.7, 256 KiB 3.3 and 1.3, 1 MiB 3.7 and 1.3 to 3 (QEMU maps and
/// zeroes fresh memory for each large request). A third lane and more connections gain nothing.
const REQUEST_BYTES: u32 = 256 << 10;

/// What the journal needs to end a job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// The folder with the socket and the scratch files.
    pub folder: String,
    /// The checkpoint that began with the job. It is not deleted by reaping: a published point may name it.
    pub checkpoint: String,
}

/// A frozen, running domain.
pub(super) struct Live {
    virsh: Virsh,
    domain: Domain,
    facts: FrozenFacts,
    plans: Vec<DiskPlan>,
    folder: Folder,
    journal: Arc<dyn Journal>,
    entry: u64,
    cancel: Cancel,
    clients: Mutex<BTreeMap<usize, Client>>,
    verdict: Verdict,
    watch: Option<Watch>,
    begun: Begun,
    released: bool,
}

/// Freezes a running domain.
pub(super) fn freeze(
    settings: &Settings,
    found: Found,
    request: &FreezeRequest,
    journal: &Arc<dyn Journal>,
    cancel: &Cancel,
) -> Result<Box<dyn Frozen>> {
    let Found { domain, document, capacities } = found;
    let virsh = &settings.virsh;
    let made = Checkpoint { deployment_id: request.deployment_id.clone(), task_id: request.task_id.clone() };
    // Two questions at once: each costs as much as a tenth of a small incremental.
    let (idle, plans) = std::thread::scope(|scope| {
        let idle = scope.spawn(|| job::check_idle(virsh, &domain, cancel));
        let plans = plan(settings, &domain, &capacities, request, cancel);
        (idle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), plans)
    });
    idle?;
    let plans = plans?;
    let folder = Folder::of(&settings.scratch_dir, &made, &domain.uuid)?;
    let record = JobRecord { folder: folder.path().to_string_lossy().into_owned(), checkpoint: made.name() };
    let record =
        serde_json::to_value(record).map_err(|error| Error::new(Kind::Failed, "write it down").caused_by(error))?;
    let entry = journal.record(&artefact(settings, request, ArtefactKind::BackupJob, record))?;

    // From here on dropping `live` undoes what was done.
    let mut live = Live {
        virsh: virsh.clone(),
        facts: FrozenFacts {
            disks: Vec::new(),
            consistency: Consistency::Crash,
            consistency_note: None,
            config: super::config::documents(document, &Places::new(settings, &domain)),
            // QEMU answers from one thread: two lanes keep it busy through one connection, more contend with it.
            hints: ReadHints { lanes: 2, request_bytes: READ_BYTES },
        },
        domain,
        plans,
        folder,
        journal: journal.clone(),
        entry,
        cancel: cancel.clone(),
        clients: Mutex::default(),
        verdict: Verdict::default(),
        watch: None,
        begun: Begun::Surely,
        released: false,
    };
    live.folder.make()?;
    let free = scratch::free_bytes(live.folder.path())?;
    if free < settings.scratch_floor_bytes {
        return Err(scratch::too_full(&settings.scratch_dir, free, settings.scratch_floor_bytes));
    }
    let quiesced = live.quiesce(settings, request)?;
    let begun = job::begin(virsh, &live.domain, &live.folder, &made, &mut live.plans, cancel);
    let thawed = quiesced.map_or(Ok(()), |quiesced| live.thaw(request, quiesced));
    if let Err(error) = begun {
        if matches!(error.kind, Kind::Unavailable | Kind::Cancelled) {
            live.begun = Begun::Perhaps;
        }
        return Err(error);
    }
    thawed?;
    live.facts.disks = facts(&live.domain, &live.plans, request, &capacities, &made)?;
    live.watch = Some(watch(settings, &live)?);
    Ok(Box::new(live))
}

fn artefact(settings: &Settings, request: &FreezeRequest, kind: ArtefactKind, details: Value) -> Artefact {
    Artefact {
        source_id: settings.source_id.clone(),
        task_id: request.task_id.clone(),
        kind,
        vm_key: request.vm.instance_uuid.clone(),
        details,
    }
}

/// What to ask for of each disk, as far as can be told before libvirt looks at the bitmaps.
fn plan(
    settings: &Settings,
    domain: &Domain,
    capacities: &BTreeMap<String, ByteLen>,
    request: &FreezeRequest,
    cancel: &Cancel,
) -> Result<Vec<DiskPlan>> {
    let covered = checkpoint::covered_by_tokens(&settings.virsh, &domain.uuid, request, cancel)?;
    let layered = |asked: &DiskRequest| domain.disk(&asked.key).is_some_and(|disk| disk.layers.len() > 1);
    // Only where there are several: each question costs as much as a tenth of a small incremental.
    let sizes = match request.disks.iter().any(layered) {
        true => settings.virsh.ask(&["domstats", "--block", "--backing", &domain.uuid], cancel)?,
        false => String::new(),
    };
    let sizes = layers::parse_sizes(&sizes);
    let plans = request.disks.iter().map(|asked| {
        let Some(disk) = domain.disk(&asked.key) else {
            let gone = "the disk was removed".to_owned();
            return DiskPlan { target: asked.key.clone(), since: Err(gone.clone()), track: Err(gone) };
        };
        let capacity = capacities.get(&asked.key).copied();
        let since = || {
            checkpoint::believed(&covered, asked, disk, capacity, &request.deployment_id)?;
            asked.since.as_ref().map(|token| token.0.clone()).ok_or_else(String::new)
        };
        let untracked = disk.untracked();
        let sizes = sizes.get(&asked.key).map_or(Ok(()), |sizes| layers::check_sizes(sizes));
        DiskPlan {
            target: asked.key.clone(),
            since: untracked.clone().map_or_else(since, Err),
            track: untracked.map_or(sizes, Err),
        }
    });
    Ok(plans.collect())
}

fn facts(
    domain: &Domain,
    plans: &[DiskPlan],
    request: &FreezeRequest,
    capacities: &BTreeMap<String, ByteLen>,
    made: &Checkpoint,
) -> Result<Vec<FrozenDisk>> {
    let disks = request.disks.iter().zip(plans).map(|(asked, plan)| {
        if let Err(reason) = &plan.track {
            tracing::info!(domain = domain.name, disk = asked.key, reason, "the next backup will read the whole disk");
        }
        let found = domain.disk(&asked.key).zip(capacities.get(&asked.key));
        let (disk, capacity) =
            found.ok_or_else(|| Error::new(Kind::Disturbed, format!("the size of {} is not known", asked.key)))?;
        Ok(FrozenDisk {
            key: asked.key.clone(),
            binding: disk.binding(),
            label: super::discover::label(disk),
            capacity: *capacity,
            token: plan.track.is_ok().then(|| made.token()),
        })
    });
    disks.collect()
}

fn watch(settings: &Settings, live: &Live) -> Result<Watch> {
    let (virsh, domain, folder) = (live.virsh.clone(), live.domain.uuid.clone(), live.folder.clone());
    let verdict = live.verdict.clone();
    Watch::start(live.folder.path().to_owned(), settings.scratch_floor_bytes, move |error| {
        tracing::warn!(domain, %error, "a backup is given up so that the guest does not suffer");
        verdict.tell(&error);
        if let Err(error) = job::end(&virsh, &domain, &folder, Begun::Surely) {
            tracing::error!(domain, %error, "the backup job could not be ended");
        }
    })
}

/// Ends the job that a dead process left, if it still runs, and takes its folder away.
pub(super) fn reap(virsh: &Virsh, domain: &str, details: &Value) -> Result<bool> {
    let record = JobRecord::deserialize(details)
        .map_err(|error| Error::new(Kind::Invalid, "read what the journal says of a job").caused_by(error))?;
    let folder = Folder::of_journal(&record.folder)
        .ok_or_else(|| Error::new(Kind::Unsafe, format!("{:?} is no folder of ours", record.folder)))?;
    job::end(virsh, domain, &folder, Begun::Surely)?;
    folder
        .remove()
        .map_err(|error| Error::new(Kind::Failed, format!("remove {}", folder.path().display())).caused_by(error))?;
    Ok(true)
}

/// A guest that is frozen, and its entry in the journal.
type QuiescedGuest = (agent::Quiesced, u64);

impl Live {
    /// Freezes the guest's file systems if that is wanted and possible; if it is not possible, the facts say why.
    fn quiesce(&mut self, settings: &Settings, request: &FreezeRequest) -> Result<Option<QuiescedGuest>> {
        if !request.quiesce {
            return Ok(None);
        }
        if let Some(note) = job::cannot_quiesce(self.domain.agent) {
            self.not_quiesced(request, note)?;
            return Ok(None);
        }
        let entry = self.journal.record(&artefact(settings, request, ArtefactKind::FrozenGuest, Value::Null))?;
        match agent::freeze(&self.virsh, &self.domain.uuid, settings.agent_timeout_s, &self.cancel) {
            Ok(quiesced) => Ok(Some((quiesced, entry))),
            Err(agent::NotFrozen { error, thawed }) => {
                // Else the entry stays open, and whoever reaps thaws once more.
                if thawed {
                    self.journal.close(entry)?;
                }
                if error.kind == Kind::Cancelled {
                    return Err(error);
                }
                let why = sendense_block::error::chain(&error);
                self.not_quiesced(request, format!("the guest agent did not freeze: {why}"))?;
                Ok(None)
            }
        }
    }

    /// The point is one as after a power cut and says why, unless that is not wanted.
    fn not_quiesced(&mut self, request: &FreezeRequest, why: String) -> Result<()> {
        if request.quiesce_or_fail {
            return Err(crate::error::cannot_quiesce(&request.vm.name, &why));
        }
        self.facts.consistency_note = Some(why);
        Ok(())
    }

    /// Lets the guest's file systems go on, and says in the facts what the freeze was worth.
    fn thaw(&mut self, request: &FreezeRequest, (quiesced, entry): QuiescedGuest) -> Result<()> {
        let (held, thawed) = quiesced.thaw();
        match thawed {
            Ok(()) => self.journal.close(entry)?,
            // The watcher goes on, and so does whoever reaps.
            Err(error) => tracing::warn!(domain = self.domain.name, %error, "a guest is not known to be thawed"),
        }
        match held {
            Ok(()) => {
                self.facts.consistency = Consistency::Filesystem;
                Ok(())
            }
            Err(note) => self.not_quiesced(request, note),
        }
    }

    fn number(&self, key: &str) -> Result<usize> {
        let number = self.plans.iter().position(|plan| plan.target == key);
        number.ok_or_else(|| Error::new(Kind::NotFound, format!("the disk {key} was not frozen")))
    }

    fn client(&self, number: usize, cancel: &Cancel) -> Result<Client> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&number) {
            return Ok(client.clone());
        }
        self.verdict.check()?;
        let mut options = Options::new(Uri::unix(self.folder.socket(), &job::export(number))?);
        options.read_only = true;
        options.request_bytes = REQUEST_BYTES;
        if self.plans[number].since.is_ok() {
            options.contexts = vec![job::delta_context(number)];
        }
        let client = Client::connect(&options, cancel).map_err(|error| {
            let denied = error.kind == sendense_block::Kind::Denied;
            let error = Error::from(error);
            if denied { error.hint("the user of this process must be in the group of QEMU's user") } else { error }
        })?;
        let expected = self.facts.disks[number].capacity;
        if client.size() != expected {
            let message = format!("{} was resized from {expected} to {}", self.plans[number].target, client.size());
            return Err(Error::new(Kind::Disturbed, message));
        }
        clients.insert(number, client.clone());
        Ok(client)
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.released, true) {
            return Ok(());
        }
        self.watch.take();
        self.clients.lock().clear();
        // As long as the job runs, QEMU needs what lies in the folder, and the journal must know of it.
        let ended = job::end(&self.virsh, &self.domain.uuid, &self.folder, self.begun)?;
        if !ended && self.begun == Begun::Perhaps {
            let message = format!("it is not certain that no backup job begins on the domain {}", self.domain.name);
            return Err(Error::new(Kind::Unavailable, message));
        }
        self.folder.remove().map_err(|error| {
            Error::new(Kind::Failed, format!("remove {}", self.folder.path().display())).caused_by(error)
        })?;
        self.journal.close(self.entry)
    }
}

impl Frozen for Live {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> Result<Changes> {
        let number = self.number(disk_key)?;
        if let Err(reason) = &self.plans[number].since {
            return Ok(Changes::Unknown { reason: reason.clone() });
        }
        let context = job::delta_context(number);
        Ok(match self.client(number, &self.cancel)?.change_map(&context) {
            Some(map) => Changes::Delta(Arc::new(map)),
            None => Changes::Unknown { reason: format!("QEMU does not export {context}") },
        })
    }

    fn open(&self, disk_key: &str, cancel: &Cancel) -> Result<Arc<dyn Disk>> {
        let client = self.client(self.number(disk_key)?, cancel)?;
        Ok(Arc::new(Watched { client, verdict: self.verdict.clone() }))
    }

    fn check(&self) -> Result<()> {
        self.verdict.check()?;
        let name = &self.domain.name;
        let fate = match job::owner(&self.virsh, &self.domain.uuid, &self.folder, &Cancel::new())? {
            Owner::Ours => return Ok(()),
            Owner::Other => format!("another backup job has taken the place of ours on the domain {name}"),
            Owner::Nobody => {
                format!("the domain {name} was powered off, or its backup job was ended, during the backup")
            }
        };
        // The watch may have ended it just now.
        self.verdict.check()?;
        Err(Error::new(Kind::Disturbed, fate))
    }

    fn release(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(domain = self.domain.name, %error, "a backup job is left for reaping");
        }
    }
}

/// A disk whose errors tell when it was we who ended the job.
struct Watched {
    client: Client,
    verdict: Verdict,
}

impl Watched {
    fn explained(&self, error: sendense_block::Error) -> sendense_block::Error {
        match self.verdict.check() {
            Ok(()) => error,
            Err(verdict) => sendense_block::Error::new(error.kind, verdict.to_string()).caused_by(error),
        }
    }
}

impl ReadAt for Watched {
    fn size(&self) -> ByteLen {
        self.client.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        self.client.read_at(at, buf).map_err(|error| self.explained(error))
    }
}

impl AllocationMap for Watched {
    fn allocation(&self, within: Extent) -> sendense_block::Result<Vec<MappedExtent>> {
        self.client.allocation(within).map_err(|error| self.explained(error))
    }
}
