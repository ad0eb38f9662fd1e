//! A libvirt daemon of the test's own with domains that have no operating system, and a model of what their disks hold.
//!
//! Writes "by the guest" go through QEMU's own `qemu-io` on the device's backend, which marks dirty bitmaps as a guest's
//! writes do. The daemon and its QEMUs end when the test's process does, however it ends (`lab/libvirt.sh run`).

pub mod agent;
pub mod child;

use parking_lot::Mutex;
use sendense_block::{Cancel, Extent};
use sendense_source::{
    Artefact, Changes, DiscoveredVm, DiskRequest, FreezeRequest, Frozen, Journal, Result, Source, SourceContext, VmRef,
};
use sendense_types::{DeploymentId, TaskId, TrackingToken};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub const MIB: u64 = 1 << 20;

/// A daemon.
pub struct Lab {
    pub dir: PathBuf,
    pub uri: String,
    keeper: Option<Child>,
    hold: Option<ChildStdin>,
}

/// The daemon that most tests of a binary share.
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(Lab::new)
}

impl Lab {
    /// Another daemon, for a test that ill-treats it.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Sockets lie below: the path must be short, so not below the target folder.
        let dir = std::env::temp_dir().join(format!(
            "sdlv-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt.sh");
        let mut keeper = Command::new(script)
            .arg("run")
            .arg(&dir)
            .env("LIBVIRT_CAPABILITIES", Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-capabilities"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hold = keeper.stdin.take();
        let mut uri = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        assert!(!uri.is_empty(), "no libvirt daemon: install libvirt-daemon-system, libvirt-clients, qemu-system-x86");
        Self { dir, uri: uri.trim().to_owned(), keeper: Some(keeper), hold }
    }

    pub fn daemon_pid(&self) -> i32 {
        std::fs::read_to_string(self.dir.join("libvirtd.pid")).unwrap().trim().parse().unwrap()
    }

    pub fn try_virsh(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("virsh")
            .args(["--quiet", "--connect", &self.uri])
            .args(args)
            .env("LC_ALL", "C")
            .output()
            .expect("install libvirt-clients");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        self.try_virsh(args).unwrap_or_else(|error| panic!("virsh {args:?}: {error}"))
    }

    /// A new image, readable for QEMU.
    pub fn image(&self, name: &str, format: &str, size: u64) -> PathBuf {
        let path = self.dir.join("images").join(name);
        qemu_img(&["create", "-q", "-f", format, path.to_str().unwrap(), &size.to_string()]);
        self.give(&path);
        path
    }

    /// Gives a file to QEMU's user.
    pub fn give(&self, path: &Path) {
        let owner = std::fs::metadata(&self.dir).unwrap();
        let _ = std::os::unix::fs::chown(path, Some(owner.uid()), None);
    }

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

impl Drop for Lab {
    fn drop(&mut self) {
        self.hold.take();
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.wait();
        }
    }
}

pub fn deployment() -> DeploymentId {
    "dep-lab".parse().unwrap()
}

#[track_caller]
pub fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().expect("install qemu-utils");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks until it is so; the bound is for a machine that is busy with other things.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A disk of a domain in the lab.
#[derive(Clone)]
pub struct LabDisk {
    pub target: &'static str,
    pub format: &'static str,
    pub path: PathBuf,
}

/// A domain. Dropping it takes it away.
pub struct Guest<'a> {
    pub lab: &'a Lab,
    pub name: String,
    pub uuid: String,
    /// What each disk holds, by target.
    pub model: BTreeMap<&'static str, Vec<u8>>,
    pub disks: Vec<LabDisk>,
}

impl<'a> Guest<'a> {
    /// Defines a domain with disks of these targets, formats and sizes.
    pub fn define(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)]) -> Self {
        Self::define_with(lab, disks, "", "")
    }

    pub fn define_with(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)], devices: &str, tail: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("guest{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let model = disks.iter().map(|(target, _, size)| (*target, vec![0; *size as usize])).collect();
        let disks: Vec<LabDisk> = disks
            .iter()
            .map(|(target, format, size)| LabDisk {
                target,
                format,
                path: lab.image(&format!("{name}-{target}.{format}"), format, *size),
            })
            .collect();
        let xml: String = disks.iter().map(disk_xml).collect();
        let document = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{name}</name>
             <title>lab/{name}</title><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
             <devices>{xml}{devices}<controller type='usb' model='none'/><memballoon model='none'/></devices>{tail}</domain>"
        );
        let file = lab.dir.join(format!("{name}.xml"));
        std::fs::write(&file, document).unwrap();
        lab.virsh(&["define", file.to_str().unwrap()]);
        let uuid = lab.virsh(&["domuuid", &name]).trim().to_owned();
        Self { lab, name, uuid, model, disks }
    }

    /// Defines and starts one.
    pub fn start_new(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)]) -> Self {
        let guest = Self::define(lab, disks);
        guest.start();
        guest
    }

    pub fn start(&self) {
        self.lab.virsh(&["start", &self.name]);
    }

    /// Ends QEMU in order, so that bitmaps are stored.
    pub fn power_off(&self) {
        self.lab.virsh(&["destroy", "--graceful", &self.name]);
    }

    pub fn qemu_pid(&self) -> i32 {
        let file = self.lab.dir.join("run/libvirt/qemu/run").join(format!("{}.pid", self.name));
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    pub fn kill_qemu(&self) {
        let pid = rustix::process::Pid::from_raw(self.qemu_pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until("the domain is seen to be off", || {
            self.lab.virsh(&["domstate", &self.name]).contains("shut off").then_some(())
        });
    }

    #[track_caller]
    fn qemu_io(&self, target: &str, command: &str) {
        let answer = self.try_qemu_io(target, command);
        assert!(!answer.contains("failed") && !answer.contains("rror"), "qemu-io {command}: {answer}");
    }

    pub fn try_qemu_io(&self, target: &str, command: &str) -> String {
        // Virtio disks are numbered in the order of their targets.
        let document = self.lab.virsh(&["dumpxml", &self.uuid]);
        let at = document.find(&format!("<target dev='{target}'")).unwrap();
        let alias = document[at..].split("<alias name='").nth(1).unwrap().split('\'').next().unwrap();
        let line = format!("qemu-io -d /machine/peripheral/{alias}/virtio-backend \"{command}\"");
        self.lab.virsh(&["qemu-monitor-command", &self.uuid, "--hmp", &line])
    }

    pub fn write(&mut self, target: &'static str, pattern: u8, at: u64, len: u64) {
        self.qemu_io(target, &format!("write -P {pattern} {at} {len}"));
        self.model.get_mut(target).unwrap()[at as usize..(at + len) as usize].fill(pattern);
    }

    /// Zeros, by a flagged write or by a trim of an unmapping disk (which reads as zeros in QCOW2 without a backing file).
    pub fn zero(&mut self, target: &'static str, at: u64, len: u64, unmap: bool) {
        self.qemu_io(target, &format!("write -z {} {at} {len}", if unmap { "-u" } else { "" }));
        self.model.get_mut(target).unwrap()[at as usize..(at + len) as usize].fill(0);
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
            deployment_id: deployment(),
            task_id: task(TASK.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub fn checkpoints(&self) -> Vec<String> {
        self.lab.virsh(&["checkpoint-list", &self.uuid, "--name"]).split_whitespace().map(str::to_owned).collect()
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

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.lab.try_virsh(&["destroy", &self.uuid]);
        let _ = self.lab.try_virsh(&["undefine", &self.uuid, "--checkpoints-metadata", "--snapshots-metadata"]);
    }
}

pub fn disk_xml(disk: &LabDisk) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/><source file='{}'/>
         <target dev='{}' bus='virtio'/></disk>",
        disk.format,
        disk.path.display(),
        disk.target
    )
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
