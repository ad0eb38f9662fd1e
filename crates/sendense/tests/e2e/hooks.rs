//! Programs of the administrator, run before and after backups.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, PATIENCE, field, path};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A machine, a folder of hooks, and a hub that may run them.
struct Place {
    dir: PathBuf,
    hub: Hub,
}

impl Place {
    fn new(dir: &Path) -> Self {
        let hooks = dir.join("hooks");
        std::fs::create_dir(&hooks).unwrap();
        mode(&hooks, "755");
        Disk::create(&dir.join("vms/web/disk0.raw"), 1 << 20, &mut Random::new(71));
        let hub = Hub::launch(dir, "hub", &["--hooks-dir", path(&hooks)]).unwrap();
        hub.set_up_images(dir);
        Self { dir: dir.to_owned(), hub }
    }

    /// Makes a hook. Another process writes it: a file that this one has open at the moment at which another test forks cannot
    /// be executed until that child has become its program.
    fn hook(&self, name: &str, script: &str) -> PathBuf {
        let file = self.dir.join("hooks").join(name);
        let mut shell = Command::new("sh")
            .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&file)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let folder = path(&self.dir).to_owned();
        shell
            .stdin
            .take()
            .unwrap()
            .write_all(format!("#!/bin/sh\ncd '{folder}' || exit 9\n{script}\n").as_bytes())
            .unwrap();
        assert!(shell.wait().unwrap().success());
        file
    }

    fn policy(&self, args: &[&str]) {
        self.hub.ok(&[&["policy", "create", "gold", "--vm", "*", "--repo", "main"], args].concat());
        self.hub.ok(&["schedule", "create", "yearly", "--policy", "gold", "--cron", "0 0 1 1 *"]);
    }

    /// Begins a backup of the policy and gives its id.
    fn begin(&self) -> String {
        let newest = || self.hub.json(&["backup", "list"])["backups"][0]["backup_id"].as_str().map(str::to_owned);
        let known = newest();
        // The execution before ends a moment after its backup.
        wait(|| self.hub.run(&["schedule", "trigger", "yearly"]).status.success(), || self.hub.log());
        let patience = Instant::now() + PATIENCE;
        loop {
            match newest() {
                Some(id) if Some(&id) != known.as_ref() => return id,
                _ => {}
            }
            assert!(Instant::now() < patience, "{}", self.hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ended(&self, id: &str) -> Value {
        let patience = Instant::now() + PATIENCE;
        loop {
            let backup = self.hub.json(&["backup", "show", id])["backup"].clone();
            if !matches!(field(&backup, "status"), "pending" | "running") {
                return backup;
            }
            assert!(Instant::now() < patience, "{backup:#}\n{}", self.hub.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a backup's log has this: what comes after it runs when it has ended.
    fn said(&self, id: &str, line: &str) {
        wait(|| self.hub.ok(&["backup", "log", id]).contains(line), || self.hub.ok(&["backup", "log", id]));
    }

    /// How many hooks are noted as still to be run.
    fn owed(&self) -> usize {
        std::fs::read_dir(self.hub.data_dir.join("hooks")).unwrap().count()
    }

    /// The hub is started anew, with the same folder of hooks.
    fn start_again(&mut self) {
        let hooks = self.dir.join("hooks");
        self.hub = Hub::launch(&self.dir, "hub", &["--hooks-dir", path(&hooks)]).unwrap();
    }

    /// The policy is forgotten, so that another one may come and nothing is tried again.
    fn clear(&self) {
        self.hub.ok(&["schedule", "delete", "yearly"]);
        self.hub.ok(&["policy", "delete", "gold", "--yes"]);
    }

    /// What a hook was told, when it has written that down.
    fn told(&self, file: &str) -> BTreeMap<String, String> {
        let file = self.dir.join(file);
        wait(|| file.exists(), || self.hub.log());
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
    }
}

fn wait(mut what: impl FnMut() -> bool, log: impl Fn() -> String) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < patience, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mode(path: &Path, mode: &str) {
    assert!(Command::new("chmod").arg(mode).arg(path).status().unwrap().success());
}

/// Writes the environment down, all of it at once.
fn writes(file: &str) -> String {
    format!("env > {file}.part && mv {file}.part {file}")
}

/// True while a process runs: a corpse that nobody has buried yet does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}

/// Starts two processes that stay, and writes their pids and its own down.
const FAMILY: &str = "sleep 1000 & echo $! > pids.part\n(sleep 1000 & echo $! >> pids.part; wait) &\n\
                      while [ \"$(wc -l < pids.part)\" -lt 2 ]; do :; done\necho $$ >> pids.part; mv pids.part pids";

fn family(dir: &Path) -> Vec<String> {
    std::fs::read_to_string(dir.join("pids")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn hooks_run_before_and_after_and_are_told_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    place.hook(
        "first",
        &format!(
            "test -e gone && exit 7\necho ready; open=$(ls -l /proc/$$/fd); echo \"$open\" > fds; {}",
            writes("before")
        ),
    );
    place.hook("last", &format!("echo back >&2; {}", writes("after")));
    place.policy(&["--before", "first", "--after", "last"]);
    let id = place.begin();
    let made = place.ended(&id);
    assert_eq!(field(&made, "status"), "completed", "{made:#}");
    let (before, after) = (place.told("before"), place.told("after"));
    for (told, hook) in [(&before, "before"), (&after, "after")] {
        let names: Vec<&str> = told.keys().map(String::as_str).collect();
        let own = ["LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(names.iter().all(|name| name.starts_with("SENDENSE_") || own.contains(name)), "{names:?}");
        assert_eq!((told["SENDENSE_HOOK"].as_str(), told["SENDENSE_VM"].as_str()), (hook, "web"));
        assert_eq!((told["SENDENSE_BACKUP_ID"].as_str(), told["SENDENSE_POLICY"].as_str()), (id.as_str(), "gold"));
        assert_eq!(told["SENDENSE_VM_ID"], field(&made, "vm_context_id"));
    }
    assert_eq!((after["SENDENSE_OUTCOME"].as_str(), after["SENDENSE_ERROR_CODE"].as_str()), ("completed", ""));
    assert!(!before.contains_key("SENDENSE_OUTCOME"));
    // It has nothing open of the hub's own: its script, its two pipes, and nothing on stdin. What was open in whoever runs this
    // test is open in all below it.
    let inherited =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let inherited: Vec<PathBuf> = inherited.collect();
    let fds = std::fs::read_to_string(dir.path().join("fds")).unwrap();
    let open: Vec<&str> = fds.lines().filter_map(|line| line.split_once("-> ").map(|(_, open)| open)).collect();
    let script = dir.path().join("hooks/first");
    let may = |open: &&str| {
        *open == "/dev/null" || Path::new(open) == script || inherited.iter().any(|fd| fd == Path::new(open))
    };
    let (own, pipes): (Vec<_>, Vec<_>) =
        open.into_iter().filter(|open| !may(open)).partition(|open| !open.starts_with("pipe:["));
    assert!(own.is_empty() && (2..=4).contains(&pipes.len()), "{fds}");
    for line in ["first stdout: ready", "last stderr: back", "hook last (after) has ended well"] {
        place.said(&id, line);
    }

    // What fails before is a failure of the backup, which is tried again; what comes after is run all the same.
    std::fs::remove_file(dir.path().join("after")).unwrap();
    std::fs::write(dir.path().join("gone"), "").unwrap();
    let id = place.begin();
    let failed = place.ended(&id);
    assert_eq!((field(&failed, "status"), field(&failed, "error_code")), ("failed", "hook_failed"), "{failed:#}");
    assert!(field(&failed, "error_message").contains("hook first failed: exit status: 7"), "{failed:#}");
    let after = place.told("after");
    assert_eq!((after["SENDENSE_OUTCOME"].as_str(), after["SENDENSE_ERROR_CODE"].as_str()), ("failed", "hook_failed"));
    let executions = place.hub.json(&["schedule", "executions", "yearly"]);
    let execution = field(&executions["executions"][0], "execution_id").to_owned();
    let waits =
        || place.hub.json(&["schedule", "execution", &execution])["execution"]["vms"][0]["outcome"] == "waiting";
    wait(waits, || place.hub.log());

    // By hand, and for no policy, nothing is run.
    std::fs::remove_file(dir.path().join("after")).unwrap();
    place.hub.ok(&["backup", "start", "web", "--repo", "main", "--wait"]);
    assert!(!dir.path().join("after").exists());
    wait(|| place.owed() == 0, || place.hub.log());
    assert_eq!(place.hub.stop(), Some(0));
}

#[test]
fn only_programs_of_the_folder_that_nobody_else_can_change_are_run() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let hook = place.hook("first", "echo ran >> ran");
    std::os::unix::fs::symlink("/bin/true", dir.path().join("hooks/link")).unwrap();
    let base = ["policy", "create", "gold", "--vm", "*", "--repo", "main"];
    for name in ["none", "link", "/bin/true", "../hooks/first", "first;true", ""] {
        place.hub.fails(2, &[&base[..], &["--before", name]].concat());
        place.hub.fails(2, &[&base[..], &["--after", name]].concat());
    }
    place.policy(&["--before", "first"]);
    // What was right when the policy was made may not be so when it is run.
    for (changed, to) in [(hook.clone(), "777"), (dir.path().join("hooks"), "775"), (hook, "644")] {
        let told = Command::new("stat").args(["-c", "%a", path(&changed)]).output().unwrap();
        mode(&changed, to);
        let failed = place.ended(&place.begin());
        assert_eq!((field(&failed, "status"), field(&failed, "error_code")), ("failed", "hook_failed"), "{failed:#}");
        mode(&changed, String::from_utf8(told.stdout).unwrap().trim());
        place.clear();
        place.policy(&["--before", "first"]);
    }
    assert!(!dir.path().join("ran").exists(), "none of them was run");
    assert_eq!(field(&place.ended(&place.begin()), "status"), "completed");
    assert!(dir.path().join("ran").exists());
    assert_eq!(place.hub.stop(), Some(0));

    // Nor does a hub start with such a folder.
    mode(&dir.path().join("hooks"), "757");
    let refused = Hub::launch(dir.path(), "other", &["--hooks-dir", path(&dir.path().join("hooks"))]);
    let said = refused.err().expect("it does not start");
    assert!(said.contains("may be written by others"), "{said}");
}

#[test]
fn a_hook_that_stays_or_floods_is_ended_with_all_that_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    place.hook("stays", &format!("{FAMILY}\nwait"));
    place.hook("floods", "yes flood");
    // However slow the machine is, one of these is long enough for it to begin both of them.
    let id = ["2", "8", "32"]
        .into_iter()
        .find_map(|seconds| {
            place.policy(&["--before", "stays", "--after", "floods", "--hook-timeout", seconds]);
            let id = place.begin();
            let failed = place.ended(&id);
            let told = format!("did not end within {seconds} s");
            assert!(field(&failed, "error_message").contains(&told), "{failed:#}");
            place.said(&id, &format!("hook floods did not end within {seconds} s"));
            let has_said = place.hub.ok(&["backup", "log", &id]).contains("floods stdout: flood");
            if dir.path().join("pids").exists() && has_said {
                return Some(id);
            }
            place.clear();
            None
        })
        .expect("32 s are enough");
    wait(|| !family(dir.path()).iter().any(|pid| runs(pid)), || place.hub.log());
    let log = place.hub.json(&["backup", "log", &id]);
    let lines = log["entries"].as_array().unwrap();
    let floods = lines.iter().filter(|line| field(line, "message").contains("floods stdout: flood")).count();
    assert!((1..=50).contains(&floods), "{floods} of {}", lines.len());
    place.clear();

    // A cancel does not wait for it.
    std::fs::remove_file(dir.path().join("pids")).unwrap();
    place.hook("last", &writes("after"));
    place.policy(&["--before", "stays", "--after", "last"]);
    let id = place.begin();
    wait(|| dir.path().join("pids").exists(), || place.hub.log());
    place.hub.ok(&["backup", "cancel", &id]);
    assert_eq!(field(&place.ended(&id), "status"), "cancelled");
    assert_eq!(place.told("after")["SENDENSE_OUTCOME"], "cancelled");
    wait(|| !family(dir.path()).iter().any(|pid| runs(pid)), || place.hub.log());
    assert_eq!(place.hub.stop(), Some(0));
}

#[test]
fn a_hub_that_is_killed_leaves_no_hook_and_owes_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = Place::new(dir.path());
    place.hook("stays", &format!("{FAMILY}\nwait"));
    place.hook("last", &writes("after"));
    place.policy(&["--before", "stays", "--after", "last"]);
    let id = place.begin();
    wait(|| dir.path().join("pids").exists(), || place.hub.log());
    let family = family(dir.path());
    assert!(family.iter().all(|pid| runs(pid)), "{family:?}");
    place.hub.kill_9();
    wait(|| !family.iter().any(|pid| runs(pid)), || format!("{family:?} outlived the hub"));
    assert!(!dir.path().join("after").exists());
    // What it stops is not to stay so: nobody waits for another backup.
    std::fs::remove_file(dir.path().join("pids")).unwrap();
    place.start_again();
    place.hub.ok(&["schedule", "disable", "yearly"]);
    let after = place.told("after");
    assert_eq!(
        (after["SENDENSE_OUTCOME"].as_str(), after["SENDENSE_BACKUP_ID"].as_str()),
        ("interrupted", id.as_str())
    );
    place.said(&id, "hook last (after) has ended well");
}

/// What a hook starts again it may not start again in the middle of the next try, which has stopped it for itself.
#[test]
fn what_comes_after_a_backup_that_was_cut_off_comes_before_its_retry() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = Place::new(dir.path());
    place.hook("first", "echo before $SENDENSE_BACKUP_ID >> order; test -e retried || exec sleep 1000");
    // However long it takes, the retry waits for it.
    let waits = "while [ ! -e go ]; do sleep 0.05; done";
    place.hook(
        "last",
        &format!("echo after $SENDENSE_BACKUP_ID >> order; {waits}; echo done $SENDENSE_BACKUP_ID >> order"),
    );
    place.policy(&["--before", "first", "--after", "last"]);
    let order = || std::fs::read_to_string(dir.path().join("order")).unwrap_or_default();
    let cut_off = place.begin();
    wait(|| order() == format!("before {cut_off}\n"), || place.hub.log());
    place.hub.kill_9();
    std::fs::write(dir.path().join("retried"), "").unwrap();
    place.start_again();
    // What ends with a hub is tried again at once.
    let newest = || place.hub.json(&["backup", "list"])["backups"][0].clone();
    wait(|| field(&newest(), "backup_id") != cut_off, || place.hub.log());
    let retry = field(&newest(), "backup_id").to_owned();
    place.said(&retry, &format!("what comes after backup {cut_off} is run first"));
    wait(|| order().contains(&format!("after {cut_off}\n")), || place.hub.log());
    assert_eq!(order(), format!("before {cut_off}\nafter {cut_off}\n"));
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(field(&place.ended(&retry), "status"), "completed");
    wait(|| order().contains(&format!("done {retry}\n")), || place.hub.log());
    let of = |id: &str| format!("after {id}\ndone {id}\n");
    assert_eq!(order(), format!("before {cut_off}\n{}before {retry}\n{}", of(&cut_off), of(&retry)));
    wait(|| place.owed() == 0, || place.hub.log());
    assert_eq!(place.hub.stop(), Some(0));
}

#[test]
fn what_comes_after_a_backup_finds_its_point() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let (sendense, token) = (crate::hub::SENDENSE, place.hub.data_dir.join("admin-token"));
    let asks = format!(
        "export SENDENSE_URL={} SENDENSE_TOKEN_FILE='{}'\n'{sendense}' backup show $SENDENSE_BACKUP_ID --json > shown.part\n\
         mv shown.part shown",
        place.hub.url,
        path(&token)
    );
    place.hook("last", &asks);
    place.policy(&["--after", "last"]);
    let id = place.begin();
    let shown = dir.path().join("shown");
    wait(|| shown.exists(), || place.hub.log());
    let shown: Value = serde_json::from_str(&std::fs::read_to_string(shown).unwrap()).unwrap();
    let point = &shown["backup"];
    assert_eq!((field(point, "backup_id"), field(point, "status")), (id.as_str(), "completed"), "{shown:#}");
    assert_eq!(place.hub.stop(), Some(0));
}

/// What it is to start again stays stopped: nobody may forget that.
#[test]
fn what_cannot_be_begun_after_a_backup_stays_owed_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = Place::new(dir.path());
    place.hook("first", "mv hooks/last last.away");
    place.hook("last", &writes("after"));
    place.policy(&["--before", "first", "--after", "last"]);
    let id = place.begin();
    assert_eq!(field(&place.ended(&id), "status"), "completed");
    place.said(&id, "hook last cannot be run");
    assert_eq!(place.owed(), 1);
    let health = crate::files::json(&crate::files::curl(&place.hub, &["--fail"], "/debug/health").stdout);
    let hooks = health["checks"].as_array().unwrap().iter().find(|check| check["name"] == "hooks").unwrap();
    assert_eq!(field(hooks, "status"), "degraded", "{hooks:#}");
    assert!(field(hooks, "detail").contains(&id), "{hooks:#}");

    // A policy whose program is not there stops nothing: it owes nothing either.
    let refused = place.ended(&place.begin());
    assert_eq!((field(&refused, "status"), field(&refused, "error_code")), ("failed", "hook_failed"), "{refused:#}");
    assert_eq!(place.owed(), 1);

    // Somebody puts it right, and another life of the hub finds what it owes.
    place.hub.ok(&["schedule", "disable", "yearly"]);
    place.hub.end();
    std::fs::rename(dir.path().join("last.away"), dir.path().join("hooks/last")).unwrap();
    place.start_again();
    let after = place.told("after");
    assert_eq!((after["SENDENSE_BACKUP_ID"].as_str(), after["SENDENSE_OUTCOME"].as_str()), (id.as_str(), "completed"));
    wait(|| place.owed() == 0, || place.hub.log());
    assert_eq!(place.hub.stop(), Some(0));
}
