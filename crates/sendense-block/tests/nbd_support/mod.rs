//! Other people's NBD servers, started for one test and ended with it.

// Each test binary uses its own part of this; a helper that fails is a test that fails.
#![allow(dead_code, clippy::unwrap_used)]

pub mod fake;
pub mod house;
pub mod papers;

use sendense_block::nbd::{Client, Options, Uri};
use sendense_block::{Cancel, ReadAt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a busy machine, short enough to notice.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    child: Child,
    pub socket: PathBuf,
    pub dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn package(tool: &str) -> &'static str {
    match tool {
        "nbdkit" => "nbdkit",
        "qemu-storage-daemon" => "qemu-system-common",
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "fio" => "fio",
        "nbd-client" => "nbd-client",
        _ => "qemu-utils",
    }
}

fn missing(tool: &str, error: std::io::Error) -> ! {
    panic!("{tool} is needed by this test and does not start ({error}): apt-get install {}", package(tool))
}

fn spawn(tool: &str, args: &[String], dir: &Path) -> Child {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| missing(tool, error))
}

/// Runs a tool to its end and wants success.
pub fn run(tool: &str, args: &[&str]) -> Output {
    // Debian's tools that are scripts need Debian's Python, whatever else is installed.
    let path = format!("/usr/bin:/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(tool).args(args).env("PATH", path).output().unwrap_or_else(|error| missing(tool, error));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Polls until `ready` gives something.
pub fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Server {
    /// Starts a server; `args` gets the folder and the socket it must listen on.
    pub fn start(tool: &str, args: impl FnOnce(&Path, &str) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let args = args(dir.path(), socket.to_str().unwrap());
        let child = spawn(tool, &args, dir.path());
        let mut server = Self { child, socket, dir };
        server.wait_until_it_listens();
        server
    }

    /// Ends the server and starts nbdkit with other arguments on the same socket.
    pub fn replace(&mut self, args: &[&str]) {
        self.kill();
        let _ = std::fs::remove_file(&self.socket);
        let args: Vec<_> =
            ["-f", "-U", self.socket.to_str().unwrap()].iter().chain(args).map(|s| (*s).into()).collect();
        self.child = spawn("nbdkit", &args, self.dir.path());
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        // A socket exists from bind on, but answers only from listen on.
        eventually("the server's socket", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log());
            }
            self.listens().then_some(())
        });
    }

    fn listens(&self) -> bool {
        // Asking by connecting would be a client too many for servers that end with their last client.
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        let name = self.socket.to_str().unwrap();
        // Flags 00010000: the socket accepts connections.
        table.lines().any(|line| line.ends_with(name) && line.contains(" 00010000 "))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// `nbdkit -f -U socket ARGS`.
    pub fn nbdkit(args: &[&str]) -> Self {
        Self::start("nbdkit", |_, socket| {
            ["-f", "-U", socket].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
        })
    }

    /// `qemu-nbd -k socket ARGS IMAGE`.
    pub fn qemu_nbd(args: &[&str], image: &Path) -> Self {
        Self::start("qemu-nbd", |_, socket| {
            let image = image.to_str().unwrap();
            ["-t", "-k", socket].iter().chain(args).chain(&[image]).map(|arg| (*arg).to_owned()).collect()
        })
    }

    pub fn uri(&self, export: &str) -> Uri {
        Uri::unix(&self.socket, export).unwrap()
    }

    pub fn options(&self) -> Options {
        Options::new(self.uri(""))
    }

    pub fn connect(&self) -> Client {
        open(&self.options())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

pub fn open(options: &Options) -> Client {
    Client::connect(options, &Cancel::new())
        .unwrap_or_else(|error| panic!("{}: {}", options.uri, sendense_block::error::chain(&error)))
}

/// Bytes that differ everywhere and are the same each time.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// The whole export.
pub fn read_all(client: &Client) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(client.size().0).unwrap()];
    client.read_at(sendense_block::ByteOffset(0), &mut bytes).unwrap();
    bytes
}

pub fn extent(at: u64, len: u64) -> sendense_block::Extent {
    sendense_block::Extent::new(sendense_block::ByteOffset(at), sendense_block::ByteLen(len)).unwrap()
}
