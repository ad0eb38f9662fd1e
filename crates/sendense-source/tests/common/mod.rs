//! What the tests of sources share: a journal in memory, a folder of images, foreign tools.

// Each test program uses its part of it, and none of it runs outside tests.
#![allow(dead_code, clippy::unwrap_used)]

pub mod journal;

use journal::Memory;
use sendense_block::{ByteLen, ByteOffset, Cancel, Content, Disk, Extent};
use sendense_source::paths::Roots;
use sendense_source::{
    DiscoveredVm, DiskRequest, FreezeRequest, Frozen, Journal, Result, Source, SourceContext, VmRef,
};
use sendense_types::{DeploymentId, SourceId, SourceKind, TaskId};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A temporary folder with `images/` below it as the source and `outside/` beside it.
pub struct Lab {
    _dir: tempfile::TempDir,
    pub base: PathBuf,
    pub images: PathBuf,
    pub outside: PathBuf,
    pub journal: Arc<Memory>,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let lab = Self {
            _dir: dir,
            images: base.join("images"),
            outside: base.join("outside"),
            base,
            journal: Arc::default(),
        };
        for folder in [&lab.images, &lab.outside, &lab.base.join("run")] {
            std::fs::create_dir(folder).unwrap();
        }
        lab
    }

    /// `images/` is allowed, and what is added.
    pub fn context(&self, more: &[PathBuf]) -> SourceContext {
        SourceContext {
            source_id: "src-test".parse::<SourceId>().unwrap(),
            deployment_id: "dep-test".parse::<DeploymentId>().unwrap(),
            run_dir: self.base.join("run"),
            roots: Roots::new(more.iter().cloned().chain([self.images.clone()]).collect()),
        }
    }

    pub fn source(&self) -> Arc<dyn Source> {
        self.source_allowing(&[])
    }

    pub fn source_allowing(&self, more: &[PathBuf]) -> Arc<dyn Source> {
        let config = serde_json::json!({ "path": self.images });
        sendense_source::open(SourceKind::Image, &config, None, self.context(more)).unwrap()
    }

    pub fn freeze(&self, source: &dyn Source, vm: &DiscoveredVm) -> Result<Box<dyn Frozen>> {
        freeze(source, vm, &(self.journal.clone() as Arc<dyn Journal>))
    }
}

pub fn freeze(source: &dyn Source, vm: &DiscoveredVm, journal: &Arc<dyn Journal>) -> Result<Box<dyn Frozen>> {
    source.freeze(&request(vm), journal, &Cancel::new())
}

pub fn request(vm: &DiscoveredVm) -> FreezeRequest {
    let disk = |disk: &sendense_source::DiscoveredDisk| DiskRequest {
        key: disk.key.clone(),
        binding: disk.binding.clone(),
        since: None,
        since_capacity: None,
    };
    FreezeRequest {
        vm: vm.vm.clone(),
        disks: vm.disks.iter().map(disk).collect(),
        quiesce: false,
        quiesce_or_fail: false,
        deployment_id: "dep-test".parse().unwrap(),
        task_id: "task-test".parse::<TaskId>().unwrap(),
    }
}

pub fn discover(source: &dyn Source) -> Vec<DiscoveredVm> {
    source.discover(&Cancel::new()).unwrap()
}

pub fn vm(source: &dyn Source, name: &str) -> DiscoveredVm {
    let vms = discover(source);
    let found = vms.iter().find(|vm| vm.vm.name == name);
    found
        .unwrap_or_else(|| panic!("no machine {name} among {:?}", vms.iter().map(|vm| &vm.vm.name).collect::<Vec<_>>()))
        .clone()
}

pub fn vm_ref(instance_uuid: &str) -> VmRef {
    VmRef { instance_uuid: instance_uuid.into(), name: "x".into() }
}

/// All bytes of a disk, and a check that what its allocation map calls zero is zero and that the map covers the disk.
pub fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let size = disk.size();
    let mut bytes = vec![0xee; size.0 as usize];
    for piece in Extent::whole(size).pieces(ByteLen(1 << 20)) {
        let range = piece.start().0 as usize..piece.end().0 as usize;
        disk.read_at(piece.start(), &mut bytes[range]).unwrap();
    }
    let mut at = ByteOffset(0);
    for mapped in disk.allocation(Extent::whole(size)).unwrap() {
        assert_eq!(mapped.extent.start(), at);
        at = mapped.extent.end();
        let range = mapped.extent.start().0 as usize..at.0 as usize;
        assert!(mapped.content == Content::Data || bytes[range].iter().all(|byte| *byte == 0), "{mapped:?}");
    }
    assert_eq!(at.0, size.0);
    bytes
}

/// Bytes that look like a disk: data, zeros, text that compresses.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; len];
    for (number, block) in bytes.chunks_mut(64 << 10).enumerate() {
        match number % 4 {
            0 => {
                for byte in block {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    *byte = (state >> 56) as u8;
                }
            }
            1 => block.fill(seed as u8 | 0x40),
            _ => {}
        }
    }
    bytes
}

/// Runs a foreign tool; a missing one fails the test with the name of its Debian package.
pub fn tool<A: AsRef<OsStr>>(program: &str, package: &str, args: impl IntoIterator<Item = A>) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: install the Debian package {package}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn qemu_img<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> String {
    tool("qemu-img", "qemu-utils", args)
}

/// Writes a raw file and converts it; `options` are qemu-img's for the target.
pub fn convert(raw: &[u8], to: &Path, format: &str, options: &[&str]) {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), raw).unwrap();
    let mut args: Vec<&OsStr> = ["convert", "-f", "raw", "-O", format].map(OsStr::new).to_vec();
    args.extend(options.iter().map(OsStr::new));
    args.extend([source.path().as_os_str(), to.as_os_str()]);
    qemu_img(args);
}

/// A server of a test: killed when the test ends, however it ends.
pub struct Server(std::process::Child);

impl Server {
    /// Starts a server and waits, at most 20 s, until `ready` says that it serves.
    pub fn start(program: &str, package: &str, args: &[&OsStr], ready: impl Fn() -> bool) -> Self {
        let child = Command::new(program)
            .args(args)
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}: install the Debian package {package}"));
        let mut server = Self(child);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !ready() {
            assert!(server.0.try_wait().unwrap().is_none(), "{program} ended at once");
            assert!(std::time::Instant::now() < until, "{program} does not serve");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn accepts(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}
