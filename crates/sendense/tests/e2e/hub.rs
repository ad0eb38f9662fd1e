//! A hub process of a test's own, and the command line pointed at it.

use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test; another build of it where a benchmark says so.
pub const SENDENSE: &str = match option_env!("SENDENSE_BENCHED") {
    Some(benched) => benched,
    None => env!("CARGO_BIN_EXE_sendense"),
};

/// How long anything may take before the test fails instead of hanging: generous, because test machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running hub.
pub struct Hub {
    child: Child,
    /// Where it listens.
    pub url: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    log: PathBuf,
}

impl Hub {
    /// Starts a hub whose data lies in `dir/hub` and that may touch everything below `dir`; returns when it serves.
    pub fn start(dir: &Path) -> Self {
        Self::try_start(dir, "127.0.0.1:0").unwrap_or_else(|log| panic!("the hub did not start:\n{log}"))
    }

    /// The same, logging everything that there is.
    pub fn start_talkative(dir: &Path) -> Self {
        Self::launch_logging(dir, "hub", &[], "trace").unwrap_or_else(|log| panic!("the hub did not start:\n{log}"))
    }

    /// The same on another address; when the hub ends instead of serving, what it logged.
    pub fn try_start(dir: &Path, listen: &str) -> Result<Self, String> {
        Self::launch(dir, "hub", &["--listen", listen])
    }

    /// Starts a hub whose data lies in `dir/name`, with more arguments; a later `--listen` counts. When it ends instead of
    /// serving, what it logged.
    pub fn launch(dir: &Path, name: &str, more: &[&str]) -> Result<Self, String> {
        Self::launch_logging(dir, name, more, "info,sqlx=warn,sea_orm=warn,hyper=warn")
    }

    /// Starts a hub that owns `dir` and nothing else on this machine: no user, no group, no capability of root's.
    pub fn start_as_nobody(dir: &Path) -> Self {
        // Where the tests were built nobody else may look. Copied by another process: a program that this one has open for
        // writing while another test forks cannot be started.
        let program = dir.join("sendense");
        tool("coreutils", "cp", &[SENDENSE, path(&program)]);
        std::fs::create_dir_all(dir.join("repo")).unwrap();
        tool("coreutils", "chown", &["-R", "65534:65534", path(dir)]);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        command.arg(&program).env("HOME", dir);
        let started = Self::launch_as(command, dir, "hub", &[], "info,sqlx=warn,sea_orm=warn,hyper=warn");
        started.unwrap_or_else(|log| panic!("the hub did not start:\n{log}"))
    }

    /// Starts a hub through another program, whose last argument is the hub's command line.
    pub fn start_below(dir: &Path, mut command: Command) -> Self {
        command.arg(SENDENSE);
        let started = Self::launch_as(command, dir, "hub", &[], "info,sqlx=warn,sea_orm=warn,hyper=warn");
        started.unwrap_or_else(|log| panic!("the hub did not start:\n{log}"))
    }

    fn launch_logging(dir: &Path, name: &str, more: &[&str], filter: &str) -> Result<Self, String> {
        Self::launch_as(Command::new(SENDENSE), dir, name, more, filter)
    }

    fn launch_as(mut command: Command, dir: &Path, name: &str, more: &[&str], filter: &str) -> Result<Self, String> {
        let data_dir = dir.join(name);
        let log = dir.join(format!("{name}.log"));
        let listen: &[&str] = if more.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = command
            .args([&["hub"], listen, more, &["--data-dir"]].concat())
            .arg(&data_dir)
            .arg("--allow-path")
            .arg(dir)
            .env_remove("SENDENSE_DATABASE_URL")
            .env("RUST_LOG", filter)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Ends with the line, or with the process: a hub that neither serves nor ends is caught by the test runner.
        while let Some(Ok(line)) = lines.next() {
            if let Some(url) = line.strip_prefix("listening on ") {
                let url = url.to_owned();
                // Nobody may make the hub wait for a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, url, data_dir, log });
            }
        }
        let _ = child.wait();
        Err(std::fs::read_to_string(&log).unwrap_or_default())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without warning and waits until it is gone.
    pub fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it where it is (SIGSTOP), as a suspended machine does; returns when all of it stands still.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        let patience = Instant::now() + PATIENCE;
        let stands = |thread: &Path| {
            // The state follows the name, which is in brackets and may hold anything. One that has ended stands, too.
            let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_else(|_| ") T".to_owned());
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
        };
        let threads = || std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        while !threads().all(|thread| stands(&thread.unwrap().path())) {
            assert!(Instant::now() < patience, "the hub does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to end (SIGTERM) and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.end()
    }

    /// The same for one that another takes the place of.
    pub fn end(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the hub did not end on SIGTERM:\n{}", self.log());
    }

    /// Waits until it ends by itself; gives its exit code and what it logged.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), self.log());
            }
            assert!(Instant::now() < patience, "the hub did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs the command line with the admin's token.
    pub fn run(&self, args: &[&str]) -> Output {
        let token = self.data_dir.join("admin-token");
        cli(&self.url, Some(&token)).args(args).output().unwrap()
    }

    /// Runs it, expects success, gives stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "sendense {args:?}\n{stdout}{stderr}\nhub log:\n{}", self.log());
        stdout
    }

    /// Runs it with `--json` and expects success.
    pub fn json(&self, args: &[&str]) -> Value {
        let stdout = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("sendense {args:?}: {error}:\n{stdout}"))
    }

    /// Runs it, expects this exit code, gives stderr.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "sendense {args:?}\n{}{stderr}", text(&output.stdout));
        stderr
    }

    /// Listens to its events from now on.
    pub fn listen(&self, dir: &Path) -> Listener {
        let heard = dir.join("events");
        let token = std::fs::read_to_string(self.data_dir.join("admin-token")).unwrap();
        let child = Command::new("curl")
            // It may have a certificate of its own making.
            .args(["--silent", "--show-error", "--no-buffer", "--insecure", "--dump-header"])
            .args([heard.with_extension("head").as_os_str(), "--output".as_ref(), heard.as_os_str()])
            .args(["--header", &format!("Authorization: Bearer {}", token.trim())])
            .arg(format!("{}/api/v1/events", self.url))
            .spawn()
            .unwrap_or_else(|error| panic!("curl: {error}; install the Debian package curl"));
        let listener = Listener { child, heard };
        // Once the answer has begun, nothing is missed.
        listener
            .wait("the head", |_| std::fs::metadata(listener.heard.with_extension("head")).is_ok_and(|m| m.len() > 0));
        listener
    }

    /// Adds a repository `main` in `dir/repo` and an image source `images` over `dir/vms`, and discovers.
    pub fn set_up_images(&self, dir: &Path) {
        std::fs::create_dir_all(dir.join("repo")).unwrap();
        self.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
        self.ok(&["source", "add", "image", "--name", "images", "--path", path(&dir.join("vms"))]);
        self.ok(&["source", "discover", "images"]);
    }

    /// Backs a machine up and waits; gives the backup object.
    pub fn backup(&self, vm: &str, more: &[&str]) -> Value {
        let args = [&["backup", "start", vm, "--repo", "main", "--wait"], more].concat();
        self.json(&args)["backup"].clone()
    }
}

/// Somebody who listens to a hub's events.
pub struct Listener {
    child: Child,
    heard: PathBuf,
}

impl Listener {
    /// Waits for an event of this type; gives its data.
    pub fn event(&self, name: &str) -> Value {
        self.nth_event(name, 1)
    }

    /// One of several, counted from 1.
    pub fn nth_event(&self, name: &str, nth: usize) -> Value {
        let find = |text: &str| {
            let rest = text.splitn(nth + 1, &format!("event: {name}\n")).nth(nth)?;
            // Its last line may not have come yet.
            let data = rest.split("\n\n").next().filter(|_| rest.contains("\n\n"))?;
            data.lines().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        };
        let text = self.wait(name, |text| find(text).is_some());
        find(&text).unwrap()
    }

    fn wait(&self, what: &str, heard: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&self.heard).unwrap_or_default();
            if heard(&text) {
                return text;
            }
            assert!(Instant::now() < patience, "{what} was not heard, but:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line without anything of the caller's environment that could point it elsewhere.
pub fn cli(url: &str, token_file: Option<&Path>) -> Command {
    let mut command = Command::new(SENDENSE);
    for name in ["SENDENSE_TOKEN", "SENDENSE_TOKEN_FILE", "SENDENSE_CA_FILE", "SENDENSE_FINGERPRINT"] {
        command.env_remove(name);
    }
    command.env("SENDENSE_URL", url).stdin(Stdio::null());
    if let Some(file) = token_file {
        command.env("SENDENSE_TOKEN_FILE", file);
    }
    command
}

/// Runs a tool of somebody else's; fails the test when it fails or is missing.
pub fn tool(package: &str, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the Debian package {package}"));
    assert!(output.status.success(), "{program} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A field as text.
pub fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("no text {name} in {object:#}"))
}

/// Every file below a folder, relative, sorted.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = match std::fs::read_dir(&next) {
            // One that a hub removes in this moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && next != folder => continue,
            entries => entries.unwrap(),
        };
        for entry in entries.map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
        }
    }
    found.sort();
    found
}

/// The files below a folder that hold these letters in clear.
pub fn holders(folder: &Path, secret: &str) -> Vec<String> {
    assert!(secret.len() >= 8, "{secret:?} may be anywhere by chance");
    let holds = |name: &String| {
        let file = folder.join(name);
        file.is_file() && std::fs::read(file).unwrap().windows(secret.len()).any(|part| part == secret.as_bytes())
    };
    tree(folder).into_iter().filter(holds).collect()
}
