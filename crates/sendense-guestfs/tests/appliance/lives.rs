//! Appliances that end: by themselves, by force, and what is left of them.

use super::Test;
use super::images::{Served, confined, descendants, digest, folder, options, path, read, sh, volume};
use sendense_guestfs::appliance::{self, Disk};
use sendense_guestfs::sandbox::Level;
use sendense_guestfs::{Error, Session};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("nothing_is_left_of_a_closed_or_killed_appliance", nothing_is_left_of_a_closed_or_killed_appliance),
    ("the_room_is_confined", the_room_is_confined),
    ("a_disk_that_is_not_served_ends_the_appliance", a_disk_that_is_not_served_ends_the_appliance),
    ("a_server_that_dies_costs_its_own_session", a_server_that_dies_costs_its_own_session),
    ("points_of_one_machine_do_not_disturb_each_other", points_of_one_machine_do_not_disturb_each_other),
    ("a_disk_of_this_process", a_disk_of_this_process),
    ("a_large_file_keeps_its_pace", a_large_file_keeps_its_pace),
];

fn image(dir: &Path, content: &str) {
    let script = format!(
        "rm -rf tree; mkdir tree; echo {content} > tree/state; truncate -s 24M {content}.img
         mkfs.ext4 -q -F -O inline_data -L root -U 11111111-2222-3333-4444-555555555555 -d tree {content}.img"
    );
    sh(dir, &script);
}

/// Waits until none of the processes is there any more.
pub fn gone(processes: &[u32]) {
    let begun = Instant::now();
    loop {
        let alive: Vec<&u32> = processes
            .iter()
            .filter(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // A dead one that nobody has buried yet holds nothing.
                stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
            })
            .collect();
        if alive.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "still there: {alive:?} of {processes:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until an appliance is known to be dead: a kill reaches its processes one after the other, and until it has it may
/// still answer.
pub fn dies(appliance: &dyn Session) {
    let begun = Instant::now();
    loop {
        match appliance.stat(&volume("disk"), &path("/")) {
            Err(Error::WorkerDied(_)) => return,
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(10), "it still answers"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn nothing_is_left_of_a_closed_or_killed_appliance() {
    let dir = folder();
    image(dir.path(), "one");
    let served = Served::raw(&dir.path().join("one.img"));
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    for end in ["close", "drop", "kill", "kill the room"] {
        let appliance = served.boot();
        assert_eq!(read(&appliance, "disk", &path("/state")).unwrap(), b"one\n");
        let outside = appliance.process_id();
        let family = descendants(outside);
        // Outside, the room's first process, the daemon, the guest's kernel and what that one runs.
        assert!(family.len() >= 5, "{family:?}");
        let kill = |pid: u32| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        match end {
            "close" => Box::new(appliance).close(),
            "drop" => drop(appliance),
            "kill" => {
                kill(outside);
                dies(&appliance);
            }
            _ => {
                kill(family[1]);
                dies(&appliance);
            }
        }
        gone(&family);
        assert_eq!(mounts(), before, "{end}");
    }
}

/// What the system says of the processes that see a hostile disk.
fn the_room_is_confined() {
    let dir = folder();
    image(dir.path(), "one");
    let served = Served::raw(&dir.path().join("one.img"));
    let appliance = served.boot();
    let level = appliance.level().unwrap();
    for wall in [Level::NET, Level::MOUNT, Level::IPC, Level::UTS, Level::PID, Level::NO_CAPABILITIES, Level::LIMITS] {
        assert!(level.has(wall), "{level}");
    }
    assert!(level.has(Level::UNPRIVILEGED) || level.has(Level::USER), "{level}");
    let family = descendants(appliance.process_id());
    let own = |what: &str| std::fs::read_link(format!("/proc/self/ns/{what}")).unwrap();
    for pid in &family[1..] {
        confined(*pid, family[0], level);
        for namespace in ["net", "mnt", "ipc", "uts", "pid"] {
            assert_ne!(std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap(), own(namespace));
        }
    }
}

fn a_disk_that_is_not_served_ends_the_appliance() {
    let (socket, other) = UnixStream::pair().unwrap();
    drop(other);
    let begun = Instant::now();
    let error = appliance::start(options(), Disk { socket, export: "disk".into(), size_bytes: 1 << 20 }).map(|_| ());
    match error {
        Err(Error::Io(text) | Error::WorkerDied(text)) => assert!(text.contains("storage daemon"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    // One that never answers.
    let (socket, _silent) = UnixStream::pair().unwrap();
    let mut options = options();
    options.patience.start = Duration::from_secs(3);
    let error = appliance::start(options, Disk { socket, export: "disk".into(), size_bytes: 1 << 20 }).map(|_| ());
    assert!(matches!(error, Err(Error::WorkerDied(_))), "{error:?}");
}

fn a_server_that_dies_costs_its_own_session() {
    let dir = folder();
    image(dir.path(), "one");
    image(dir.path(), "two");
    let (one, two) = (Served::raw(&dir.path().join("one.img")), Served::raw(&dir.path().join("two.img")));
    let (first, second) = (one.boot(), two.boot());
    assert_eq!(first.volumes().unwrap().len(), 1);
    drop(one);
    // What the guest has not read yet cannot be read; it says so or ends, and does not hang.
    let answer = read(&first, "disk", &path("/lost+found/none"));
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(read(&second, "disk", &path("/state")).unwrap(), b"two\n");
}

fn points_of_one_machine_do_not_disturb_each_other() {
    let dir = folder();
    image(dir.path(), "old");
    image(dir.path(), "new");
    let (old, new) = (Served::raw(&dir.path().join("old.img")), Served::raw(&dir.path().join("new.img")));
    let sessions = [old.boot(), new.boot()];
    let volumes: Vec<_> = sessions.iter().map(|session| session.volumes().unwrap()).collect();
    assert_eq!(volumes[0], volumes[1]);
    assert_eq!(volumes[0][0].uuid.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
    for _ in 0..3 {
        assert_eq!(read(&sessions[0], "disk", &path("/state")).unwrap(), b"old\n");
        assert_eq!(read(&sessions[1], "disk", &path("/state")).unwrap(), b"new\n");
    }
}

/// The hub's own server in place of another's.
fn a_disk_of_this_process() {
    let dir = folder();
    image(dir.path(), "own");
    let file = sendense_block::backend::File::open(&dir.path().join("own.img"), sendense_block::backend::Options::Read);
    let disk = Disk::serve(std::sync::Arc::new(file.unwrap())).unwrap();
    let appliance = appliance::start(options(), disk).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read(&appliance, "disk", &path("/state")).unwrap(), b"own\n");
    Box::new(appliance).close();
}

/// A chain of a full image and an increment, through the daemon that serves it; the pace is printed, the bytes are checked.
fn a_large_file_keeps_its_pace() {
    let dir = folder();
    let script = "mkdir tree; seq 1 24000000 > tree/large; truncate -s 320M raw.img
        mkfs.ext4 -q -F -O inline_data -m 0 -d tree raw.img
        qemu-img convert -f raw -O qcow2 -o compression_type=zstd -c raw.img full.qcow2
        qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 tip.qcow2
        qemu-io -f qcow2 -c 'write -P 7 319M 64k' tip.qcow2 > io.log; rm raw.img";
    sh(dir.path(), script);
    let chain = ["full.qcow2", "tip.qcow2"].map(|name| digest(&dir.path().join(name)));
    let served = Served::new(&dir.path().join("tip.qcow2"), "qcow2", 320 << 20);
    let begun = Instant::now();
    let appliance = served.boot();
    appliance.list(&volume("disk"), &path("/"), None, 100).unwrap();
    println!("  open to first listing: {} ms", begun.elapsed().as_millis());
    let begun = Instant::now();
    let mut stream = appliance.read(&volume("disk"), &path("/large"), 0..u64::MAX).unwrap();
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    while let Some(piece) = stream.next_piece().unwrap() {
        hasher.update(&piece);
        bytes += piece.len();
    }
    println!("  {bytes} bytes in {} ms", begun.elapsed().as_millis());
    let expected = blake3::hash(&std::fs::read(dir.path().join("tree/large")).unwrap());
    assert_eq!(hasher.finalize(), expected);
    drop(stream);
    Box::new(appliance).close();
    assert_eq!(["full.qcow2", "tip.qcow2"].map(|name| digest(&dir.path().join(name))), chain);
}
