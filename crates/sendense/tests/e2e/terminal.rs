//! The command line on a terminal of a person's: colours, a bar that moves, and Ctrl-C.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, PATIENCE, SENDENSE, field};
use crate::servers;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A command on a terminal.
pub struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn run(hub: &Hub, columns: u16, args: &str) -> Self {
        // The shell gives way to the program, so that the exit code is the program's.
        let command = format!("stty cols {columns} rows 25; exec {SENDENSE} {args}");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"])
            .env("SENDENSE_URL", &hub.url)
            .env("SENDENSE_TOKEN_FILE", hub.data_dir.join("admin-token"))
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .env_remove("SENDENSE_TOKEN")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("script: {error}; install the Debian package bsdutils"));
        let (screen, mut shown) = (Arc::<Mutex<Vec<u8>>>::default(), child.stdout.take().unwrap());
        let (keys, kept) = (child.stdin.take(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = shown.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        Self { child, keys, screen }
    }

    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until the screen has shown it.
    pub fn shows(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !is_there(&self.screen()) {
            assert!(Instant::now() < patience, "never shown: {what}\n{:?}", self.screen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn press_ctrl_c(&mut self) {
        self.types("\x03");
    }

    /// The person types.
    pub fn types(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    pub fn ended(&mut self) -> Option<i32> {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < patience, "it does not end: {:?}", self.screen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its terminal goes with it, and the program that sits there with the terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_person_sees_a_bar_that_moves_and_ctrl_c_ends_the_looking_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web.raw"), 1 << 20, &mut Random::new(92));
    let (_server, uri) = servers::slow_nbd(dir, "slow", "50ms");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.ok(&["source", "add", "nbd", "--name", "slow", "--uri", &uri]);
    let found = hub.json(&["source", "discover", "slow"]);
    let vm = field(&found["vms"][0], "vm_context_id");

    let mut terminal = Terminal::run(&hub, 100, &format!("backup start {vm} --repo main --wait"));
    let percents = |screen: &str| -> Vec<u32> {
        let before = screen.split('%').map(|part| part.rsplit(|letter: char| !letter.is_ascii_digit()).next());
        before.flatten().filter_map(|digits| digits.parse().ok()).collect()
    };
    // Two numbers, so that it is seen to move; the bar's and the words' place is drawn again and again.
    terminal.shows("a bar that moves", |screen| {
        let seen = percents(screen);
        screen.contains("MiB") && screen.contains('[') && seen.iter().any(|percent| Some(percent) > seen.first())
    });
    terminal.press_ctrl_c();
    assert_eq!(terminal.ended(), Some(130), "{:?}", terminal.screen());
    assert!(terminal.screen().contains("goes on"), "{:?}", terminal.screen());

    let running = hub.json(&["backup", "list", "--status", "running"]);
    assert_eq!(running["total"], 1, "{running:#}");
    let id = field(&running["backups"][0], "backup_id");
    hub.ok(&["backup", "cancel", id]);

    // A person's tables are coloured; the same for a program are not.
    let backup = hub.backup("web", &[]);
    let green = "\u{1b}[38;5;10m";
    // A terminal that does not know how wide it is (a serial line, a container) is taken for one that is wide enough.
    for columns in [0, 200] {
        let mut terminal = Terminal::run(&hub, columns, "backup list --status completed");
        assert_eq!(terminal.ended(), Some(0), "{:?}", terminal.screen());
        terminal.shows("a coloured state", |screen| screen.contains(green) && screen.contains("completed"));
        terminal.shows("a row", |screen| screen.lines().any(|line| line.starts_with(field(&backup, "backup_id"))));
    }
    assert!(!hub.ok(&["backup", "list", "--status", "completed"]).contains('\u{1b}'));
}
