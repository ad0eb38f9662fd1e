//! Disks made with other people's tools, served by other people's NBD server, and appliances on them.

use sendense_block::backend::{File, Options as FileOptions};
use sendense_guestfs::appliance::{self, Disk, Fallback, Kit, Options};
use sendense_guestfs::client::Worker;
use sendense_guestfs::native::{self, Readers};
use sendense_guestfs::sandbox::{Level, ids};
use sendense_guestfs::{GuestPath, Result, Session, VolumeId};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Runs a shell script in `dir`; a missing tool fails with its package.
pub fn sh(dir: &Path, script: &str) -> String {
    let output =
        Command::new("bash").arg("-euo").arg("pipefail").arg("-c").arg(script).current_dir(dir).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}\n(the tools are in the Debian packages fdisk, e2fsprogs, xfsprogs, util-linux, lvm2, qemu-utils)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder for images.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The parts, put together once. A missing program fails with its package's name.
pub fn kit() -> Kit {
    static KIT: OnceLock<(TempDir, Kit)> = OnceLock::new();
    let (_, kit) = KIT.get_or_init(|| {
        let folder = folder();
        let kit = Kit::prepare(folder.path()).unwrap_or_else(|error| panic!("{error}"));
        (folder, kit)
    });
    kit.clone()
}

/// How an appliance of this program is started.
pub fn options() -> Options {
    let mut options = Options::new(kit());
    options.program = std::env::current_exe().unwrap();
    options
}

/// An image served by `qemu-nbd`, for reading only.
pub struct Served {
    server: Child,
    socket: PathBuf,
    size_bytes: u64,
}

impl Served {
    /// Serves `image`, of `format`, whose disk has `size_bytes`.
    pub fn new(image: &Path, format: &str, size_bytes: u64) -> Served {
        let socket = image.with_extension("nbd");
        let _ = std::fs::remove_file(&socket);
        let server = Command::new("qemu-nbd")
            .args(["--read-only", "--persistent", "--shared=8", "--export-name=disk", "-f", format, "-k"])
            .arg(&socket)
            .arg(image)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd: {error}: install the Debian package qemu-utils"));
        let served = Served { server, socket, size_bytes };
        let begun = Instant::now();
        while UnixStream::connect(&served.socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        served
    }

    /// A raw image.
    pub fn raw(image: &Path) -> Served {
        Served::new(image, "raw", std::fs::metadata(image).unwrap().len())
    }

    pub fn disk(&self) -> Disk {
        let socket = UnixStream::connect(&self.socket).unwrap();
        Disk { socket, export: "disk".into(), size_bytes: self.size_bytes }
    }

    /// An appliance alone.
    pub fn boot(&self) -> Worker {
        appliance::start(options(), self.disk()).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The native readers with an appliance behind them, as the hub opens a point.
pub fn open(image: &Path, served: &Arc<Served>) -> Fallback<native::Session> {
    let disk = Arc::new(File::open(image, FileOptions::Read).unwrap());
    let native = native::Session::open(disk, Readers::default());
    let served = served.clone();
    Fallback::new(native, Box::new(move || Ok((options(), served.disk()))))
}

pub fn path(path: &str) -> GuestPath {
    GuestPath::parse(path.as_bytes()).unwrap()
}

pub fn volume(id: &str) -> VolumeId {
    VolumeId::parse(id).unwrap()
}

/// A whole file.
pub fn read(session: &dyn Session, id: &str, file: &GuestPath) -> Result<Vec<u8>> {
    let mut stream = session.read(&volume(id), file, 0..u64::MAX)?;
    let mut content = Vec::new();
    while let Some(piece) = stream.next_piece()? {
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

/// Digest of every regular file, target of every link, by path; everything that a walk finds.
pub fn digests(session: &dyn Session, id: &str) -> BTreeMap<Vec<u8>, String> {
    let mut digests = BTreeMap::new();
    let mut walk = session.walk(&volume(id), &GuestPath::root(), &Default::default()).unwrap();
    let mut files = Vec::new();
    while let Some(batch) = walk.next_batch().unwrap() {
        for found in batch {
            let entry = found.outcome.unwrap_or_else(|error| panic!("{:?}: {error}", found.path));
            match entry.meta.file_type {
                sendense_guestfs::meta::FileType::File => files.push(found.path),
                sendense_guestfs::meta::FileType::Symlink => {
                    let target = String::from_utf8_lossy(&entry.target.unwrap()).into_owned();
                    digests.insert(found.path.to_bytes(), format!("-> {target}"));
                }
                sendense_guestfs::meta::FileType::Directory | sendense_guestfs::meta::FileType::Other => {}
            }
        }
    }
    for file in files {
        let content = read(session, id, &file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        digests.insert(file.to_bytes(), blake3::hash(&content).to_hex().to_string());
    }
    digests
}

/// The same of a folder of this machine.
pub fn digests_of(folder: &Path) -> BTreeMap<Vec<u8>, String> {
    use std::os::unix::ffi::OsStrExt;
    let mut digests = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            let mut name = vec![b'/'];
            name.extend_from_slice(path.strip_prefix(folder).unwrap().as_os_str().as_bytes());
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_symlink() {
                digests.insert(name, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
            } else if kind.is_file() {
                digests.insert(name, blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string());
            }
        }
    }
    digests
}

/// Digest of an image, to see that nobody has written to it.
pub fn digest(image: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(image).unwrap()).unwrap();
    hasher.finalize().to_hex().to_string()
}

/// Processes that descend from `ancestor`, itself included.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let mut family = vec![ancestor];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

/// What the system says of a process that sees a hostile disk: filtered, without any privilege, and with nothing of the host's file
/// system. `outside` is the room's process whose user all of its others are, which no other process is.
pub fn confined(pid: u32, outside: u32, level: Level) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {status}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!((field("Seccomp:"), field("NoNewPrivs:")), ("2".into(), "1".into()), "{status}");
    assert!(
        ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"].iter().all(|set| field(set) == "0000000000000000"),
        "{status}"
    );
    assert!(!field("Uid:").split_whitespace().any(|uid| uid == "0"), "{status}");
    if nix::unistd::Uid::effective().is_root() {
        let own = ids::of_process(outside);
        for ids in ["Uid:", "Gid:"] {
            assert_eq!(field(ids).split_whitespace().collect::<Vec<_>>(), [own.to_string().as_str(); 4], "{status}");
        }
        assert_eq!(level.has(Level::OWN_ID), ids::is_own(own), "{level}");
    }
    let root = format!("/proc/{pid}/root");
    for secret in ["etc/passwd", "root", "home", "bin/sh", "usr/bin/env", "dev/kvm", "sys/kernel"] {
        assert!(std::fs::symlink_metadata(format!("{root}/{secret}")).is_err(), "{secret}");
    }
}
