//! A libvirt daemon of the test's own with domains that have no operating system, and a model of what their disks hold.
//!
//! Writes "by the guest" go through QEMU's own `qemu-io` on the device's backend, which marks dirty bitmaps as a guest's
//! writes do. The daemon and its QEMUs end when the test's process does, however it ends (`lab/libvirt.sh run`).
//!
//! What lives here: the daemon; the domains and their agent beside it. What does not: anything of Sendense, so that the tests
//! of every crate can use it. They name this file as a module by its path.

// Each test program uses its part of it, and none of it runs outside tests.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod agent;
pub mod guest;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
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

    /// The daemon dies as in a crash.
    pub fn kill_daemon(&self) {
        let pid = rustix::process::Pid::from_raw(self.daemon_pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// It is started again; the domains have gone on meanwhile.
    pub fn restart_daemon(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt.sh");
        let status = Command::new(script).arg("restart").arg(&self.dir).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "libvirtd does not start again");
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
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.hold.take();
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.wait();
        }
    }
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
