//! The sandbox, from inside.

use super::Test;
use super::child::ATTEMPTS;
use super::images::{evil, options, path, sh, volume};
use sendense_guestfs::client::Worker;
use sendense_guestfs::sandbox::{self, Level, ids};
use sendense_guestfs::{Error, Session};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

pub const TESTS: &[Test] = &[
    ("every_attempt_ends_the_worker", every_attempt_ends_the_worker),
    ("without_seccomp_nothing_is_opened", without_seccomp_nothing_is_opened),
    ("the_level_is_what_the_kernel_shows", the_level_is_what_the_kernel_shows),
    ("a_reader_is_a_user_of_its_own", a_reader_is_a_user_of_its_own),
    ("no_mount_of_the_host_is_held", no_mount_of_the_host_is_held),
    ("nothing_is_inherited", nothing_is_inherited),
    ("memory_is_bounded", memory_is_bounded),
    ("a_control_group_bounds_what_is_started", a_control_group_bounds_what_is_started),
    (WITHOUT_RIGHTS, the_same_without_rights),
];

/// Not among the tests that it runs again.
const WITHOUT_RIGHTS: &str = "the_same_without_rights";

/// Each is tried in a worker of its own. The kernel kills the worker at the forbidden call; no attempt even gets an answer.
fn every_attempt_ends_the_worker() {
    for what in ATTEMPTS {
        let worker = evil();
        assert_eq!(worker.stat(&volume("disk"), &path("/quiet")).unwrap().size_bytes, 1);
        let answer = worker.stat(&volume("disk"), &path(&format!("/{what}")));
        let Err(Error::WorkerDied(how)) = &answer else { panic!("{what}: {answer:?}") };
        assert!(how.contains("sandbox forbids"), "{what}: {how}");
        assert_eq!(worker.ended(), answer.err());
    }
    assert!(!std::path::Path::new("/tmp/created-by-a-worker").exists());
}

fn without_seccomp_nothing_is_opened() {
    let answer = Worker::start(options("no-seccomp")).err();
    assert!(matches!(&answer, Some(Error::Sandbox(why)) if why.contains("seccomp")), "{answer:?}");
}

fn the_level_is_what_the_kernel_shows() {
    let worker = evil();
    let level = worker.level().unwrap();
    let id = worker.process_id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!((field("Seccomp"), field("NoNewPrivs"), field("Threads")), ("2".into(), "1".into(), "1".into()));
    assert_eq!(field("CapEff"), "0000000000000000", "{level}");
    let root = nix::unistd::Uid::effective().is_root();
    assert_eq!(
        (level.has(Level::UNPRIVILEGED), level.has(Level::OWN_ID)),
        (root, root && ids::is_own(ids::of_process(id)))
    );
    if root {
        let own = [ids::of_process(id).to_string().as_str(); 4].join("\t");
        assert_eq!((field("Uid"), field("Gid"), field("Groups")), (own.clone(), own, String::new()));
        // A root hub's worker always reaches these.
        for (wall, name) in [(Level::NET, "net"), (Level::MOUNT, "mnt"), (Level::IPC, "ipc"), (Level::UTS, "uts")] {
            let link = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/{name}")).unwrap();
            assert!(level.has(wall), "{level}");
            assert_ne!(link(&id.to_string()), link("self"), "{name}");
        }
        assert!(level.has(Level::EMPTY_ROOT | Level::NO_CAPABILITIES | Level::LIMITS | Level::NOT_DUMPABLE), "{level}");
        assert!(std::fs::read_link(format!("/proc/{id}/root")).unwrap().ends_with("fdinfo"));
    }
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let limit = |name: &str| {
        limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().rev().nth(2).unwrap().to_owned()
    };
    assert_eq!(
        (limit("Max open files"), limit("Max processes"), limit("Max core file size")),
        ("0".into(), "0".into(), "0".into())
    );
}

/// Two readers of a root hub cannot signal each other, and neither can whatever else runs as `nobody`: a process of the one's
/// user is refused at the other, where one of the same user is not.
fn a_reader_is_a_user_of_its_own() {
    if !nix::unistd::Uid::effective().is_root() {
        // Its user is the hub's, seen from a user namespace of its own.
        let level = evil().level().unwrap();
        assert!(!level.has(Level::OWN_ID) && level.has(Level::USER), "{level}");
        return;
    }
    let (one, other) = (evil(), evil());
    let user = |worker: &Worker| ids::of_process(worker.process_id());
    if !ids::is_own(user(&one)) {
        println!("  the users of this container end below those of readers: they are all one");
        assert!(!one.level().unwrap().has(Level::OWN_ID));
        return;
    }
    assert_ne!(user(&one), user(&other));
    let may_signal = |user: u32, process: u32| {
        let id = user.to_string();
        let run = std::process::Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "bash", "-c", &format!("kill -0 {process}")])
            .output()
            .unwrap_or_else(|error| panic!("setpriv: {error}: install the Debian package util-linux"));
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success() || told.contains("Operation not permitted"), "{told}");
        run.status.success()
    };
    for (reader, stranger) in [(&one, &other), (&other, &one)] {
        assert!(may_signal(user(reader), reader.process_id()), "the question is asked wrongly");
        assert!(!may_signal(user(stranger), reader.process_id()));
        assert!(!may_signal(ids::NOBODY, reader.process_id()));
        for database in ["passwd", "group"] {
            let id = user(reader).to_string();
            let known = std::process::Command::new("getent").args([database, &id]).status().unwrap();
            assert_eq!(known.code(), Some(2), "{id} is somebody in {database}");
        }
    }
}

/// A copy of the host's mounts, out of reach as it is, would keep every disk in use that is unmounted meanwhile.
fn no_mount_of_the_host_is_held() {
    if !nix::unistd::Uid::effective().is_root() {
        // Mounting takes root, and so does looking at the mounts of a process that may not be looked at.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    sh(dir.path(), "truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir at; mount -o loop disk.img at");
    let worker = evil();
    let held = mounts_of(&worker);
    sh(dir.path(), "umount at");
    assert!(held.iter().all(|kind| kind == "proc"), "{held:?}");
    // A loop device goes with the last use of its file system. Another process of the tests may stand between two steps.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !sh(dir.path(), &format!("losetup --associated {}", image.display())).trim().is_empty() {
        assert!(std::time::Instant::now() < deadline, "the disk is still in use");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(worker.stat(&volume("disk"), &path("/quiet")).unwrap().size_bytes, 1);
}

/// The kinds of the file systems that a worker has mounted.
fn mounts_of(worker: &Worker) -> Vec<String> {
    let listed = fs::read_to_string(format!("/proc/{}/mountinfo", worker.process_id())).unwrap();
    // "… - proc proc rw", see proc_pid_mountinfo(5).
    listed.lines().map(|line| line.split(" - ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

/// A descriptor that someone forgot to mark reaches the child, and is closed before anything else happens.
fn nothing_is_inherited() {
    let file: OwnedFd =
        std::fs::File::open("/etc/hostname").or_else(|_| std::fs::File::open("/etc/passwd")).unwrap().into();
    // A high number, so that nothing the worker opens itself takes its place.
    let high = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(700)).unwrap();
    let mut options = options("stray");
    options.setup = high.to_string().into_bytes();
    let started = Worker::start(options);
    nix::unistd::close(high).unwrap();
    started.unwrap_or_else(|error| panic!("{error} ({})", file.as_raw_fd()));
}

fn memory_is_bounded() {
    // More than the bound is given to the derivation of a key, and taken back after it.
    let worker = evil();
    let all = Error::Limit(sandbox::ADDRESS_BYTES_MAX.to_string());
    assert_eq!(worker.stat(&volume("disk"), &path("/key")), Err(all));
    assert!(matches!(worker.stat(&volume("disk"), &path("/memory")), Err(Error::WorkerDied(_))));
    for what in ["/memory", "/deep"] {
        let worker = evil();
        let answer = worker.stat(&volume("disk"), &path(what));
        assert!(matches!(answer, Err(Error::WorkerDied(_))), "{what}: {answer:?}");
    }
}

/// The group of this process for a controller, where one could be made below it: version 1 by its name, version 2 where the
/// controller is given on.
fn own_group(controller: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let place = groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (names, path) = line.split_once(':')?;
        if names == controller {
            return Some(PathBuf::from(format!("/sys/fs/cgroup/{controller}{path}")));
        }
        let folder = PathBuf::from(format!("/sys/fs/cgroup{path}"));
        let given = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
        (names.is_empty() && given.split_whitespace().any(|name| name == controller)).then_some(folder)
    })?;
    let probe = place.join(format!("probe-{}-{controller}", std::process::id()));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).ok().map(|()| place)
}

/// Where a control group could be made by hand, a worker is in one, and the kernel holds it to it; elsewhere none is named.
fn a_control_group_bounds_what_is_started() {
    let (Some(memory), Some(processes)) = (own_group("memory"), own_group("pids")) else {
        let level = evil().level().unwrap();
        println!("  this machine has no control group to give: {level}");
        assert!(!level.has(Level::CONTROL_GROUP), "{level}");
        return;
    };
    let mut options = options("evil");
    options.bounds.memory_bytes = 48 << 20;
    let worker = Worker::start(options).unwrap();
    assert!(worker.level().unwrap().has(Level::CONTROL_GROUP), "{}", worker.level().unwrap());
    let listed = fs::read_to_string(format!("/proc/{}/cgroup", worker.process_id())).unwrap();
    let name = listed.lines().find_map(|line| line.split('/').find(|part| part.starts_with("sendense-reader-")));
    let name = name.unwrap_or_else(|| panic!("{listed}")).to_owned();
    let (memory, processes) = (memory.join(&name), processes.join(&name));
    let first = |folder: &Path, files: [&str; 2]| {
        let read = files.iter().find_map(|file| fs::read_to_string(folder.join(file)).ok());
        read.unwrap().trim().to_owned()
    };
    assert_eq!(first(&memory, ["memory.max", "memory.limit_in_bytes"]), (48 << 20).to_string());
    assert_eq!(first(&processes, ["pids.max", "pids.max"]), "1");
    for folder in [&memory, &processes] {
        assert_eq!(first(folder, ["cgroup.procs", "cgroup.procs"]), worker.process_id().to_string());
    }
    // Its own limit is ten times that; who ends it is the kernel.
    let answer = worker.stat(&volume("disk"), &path("/memory"));
    assert_eq!(answer, Err(Error::WorkerDied("it was killed".into())));
    Box::new(worker).close();
    assert!(!memory.exists() && !processes.exists(), "a group outlives its process");
}

/// All of this once more in a process without any rights, as a hub that is not root is: user namespaces take the place of ids.
fn the_same_without_rights() {
    if !nix::unistd::Uid::effective().is_root() {
        // Then it was so all the time.
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let folder = super::images::folder();
    let program = folder.path().join("worker");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&program)
        .args(TESTS.iter().map(|(name, _)| name).filter(|name| **name != WITHOUT_RIGHTS))
        .output()
        .unwrap_or_else(|error| panic!("setpriv: {error}: install the Debian package util-linux"));
    let told = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{told}");
    assert_eq!(told.matches("... ok").count(), TESTS.len() - 1, "{told}");
}
