//! A process that freezes a domain and is then killed or stopped: the test's own program, started once more.

use super::{Guest, Memory, Points, deployment, task};
use sendense_block::Cancel;
use sendense_source::{Artefact, DiskRequest, FreezeRequest, Journal, Result, Source, SourceContext};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

const ROLE: &str = "SENDENSE_LAB_CHILD";

/// The child and what it says.
pub struct Victim {
    pub child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Victim {
    /// Starts the test `test` again as a child that freezes the guest.
    pub fn start(test: &str, guest: &Guest<'_>, source: &dyn Source, quiesce: bool) -> Self {
        let request = guest.request(source, &Points::new());
        let told = serde_json::json!({
            "uri": guest.lab.uri, "scratch": guest.lab.dir.join("scratch"), "disks": request.disks, "vm": request.vm,
            "quiesce": quiesce,
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, told.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits until it has written that many artefacts down.
    pub fn recorded(&mut self, count: usize) -> Vec<Artefact> {
        let found = self.lines.by_ref().filter_map(|line| line.unwrap().strip_prefix("recorded ").map(str::to_owned));
        found.take(count).map(|line| serde_json::from_str(&line).unwrap()).collect()
    }

    /// Waits until the domain is frozen and the job runs.
    pub fn frozen(&mut self) {
        assert!(self.lines.any(|line| line.unwrap() == "frozen"), "the child froze nothing");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says each entry aloud.
struct Loud(Arc<Memory>);

impl Journal for Loud {
    fn record(&self, artefact: &Artefact) -> Result<u64> {
        say(&format!("recorded {}", serde_json::to_string(artefact).unwrap()));
        self.0.record(artefact)
    }

    fn close(&self, entry: u64) -> Result<()> {
        self.0.close(entry)
    }

    fn open_entries(&self) -> Result<Vec<(u64, Artefact)>> {
        self.0.open_entries()
    }
}

fn say(line: &str) {
    // On a line of its own: the test harness writes its own words before.
    std::io::stdout().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// The child's part; returns in any other process.
pub fn play() {
    let Ok(told) = std::env::var(ROLE) else { return };
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let context = SourceContext {
        source_id: "src-lab".parse().unwrap(),
        deployment_id: deployment(),
        run_dir: "/tmp".into(),
        roots: Default::default(),
    };
    let config = serde_json::json!({"uri": told["uri"], "scratch_dir": told["scratch"], "scratch_floor_bytes": 1});
    let source = sendense_source::libvirt::open(&config, context).unwrap();
    let disks: Vec<DiskRequest> = serde_json::from_value(told["disks"].clone()).unwrap();
    let request = FreezeRequest {
        vm: serde_json::from_value(told["vm"].clone()).unwrap(),
        disks,
        quiesce: told["quiesce"] == true,
        quiesce_or_fail: false,
        deployment_id: deployment(),
        task_id: task(0),
    };
    let journal: Arc<dyn Journal> = Arc::new(Loud(Memory::new()));
    let _frozen = source.freeze(&request, &journal, &Cancel::new()).unwrap();
    say("frozen");
    loop {
        std::thread::park();
    }
}
