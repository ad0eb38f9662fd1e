//! How workers end, and what their end costs: their own session and nothing else.

use super::Test;
use super::images::{evil, options, path, volume};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sendense_guestfs::client::Worker;
use sendense_guestfs::{Error, Session};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("a_killed_worker_costs_its_session", a_killed_worker_costs_its_session),
    ("a_panic_ends_the_process_and_says_why", a_panic_ends_the_process_and_says_why),
    ("a_hanging_worker_is_killed", a_hanging_worker_is_killed),
    ("a_worker_that_never_greets_is_killed", a_worker_that_never_greets_is_killed),
    ("a_disk_that_cannot_be_opened_is_said", a_disk_that_cannot_be_opened_is_said),
    ("nothing_is_left_after_a_hundred_sessions", nothing_is_left_after_a_hundred_sessions),
    ("a_worker_dies_with_the_hub", a_worker_dies_with_the_hub),
    ("a_worker_that_is_let_go_ends_by_itself", a_worker_that_is_let_go_ends_by_itself),
];

fn is_alive(id: u32) -> bool {
    std::path::Path::new(&format!("/proc/{id}")).exists()
}

/// Polls until the process is gone.
fn await_end(id: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_alive(id) {
        assert!(Instant::now() < deadline, "process {id} is still there");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn a_killed_worker_costs_its_session() {
    let (victim, other) = (evil(), evil());
    assert!(victim.stat(&volume("disk"), &path("/quiet")).is_ok());
    kill(Pid::from_raw(victim.process_id() as i32), Signal::SIGKILL).unwrap();
    let error = victim.stat(&volume("disk"), &path("/quiet")).unwrap_err();
    assert!(matches!(&error, Error::WorkerDied(_)), "{error:?}");
    await_end(victim.process_id());
    assert!(matches!(victim.volumes(), Err(Error::WorkerDied(_))));
    assert!(other.stat(&volume("disk"), &path("/quiet")).is_ok());
}

fn a_panic_ends_the_process_and_says_why() {
    let worker = evil();
    let error = worker.stat(&volume("disk"), &path("/panic")).unwrap_err();
    assert!(matches!(&error, Error::WorkerDied(why) if why.contains("a reader lost its way")), "{error:?}");
    await_end(worker.process_id());
}

fn a_hanging_worker_is_killed() {
    let mut options = options("evil");
    options.patience.step = Duration::from_millis(300);
    options.patience.slow = Duration::from_secs(10);
    let worker = std::sync::Arc::new(Worker::start(options).unwrap());
    assert!(worker.stat(&volume("disk"), &path("/quiet")).is_ok());
    // Another call of the same session waits behind it and ends with it.
    let waiting = {
        let worker = worker.clone();
        std::thread::spawn(move || worker.stat(&volume("disk"), &path("/hang")))
    };
    let error = worker.stat(&volume("disk"), &path("/hang")).unwrap_err();
    assert!(matches!(&error, Error::WorkerDied(why) if why.contains("no answer")), "{error:?}");
    assert_eq!(waiting.join().unwrap(), Err(error));
    await_end(worker.process_id());
}

fn a_worker_that_never_greets_is_killed() {
    let mut options = options("mute");
    options.patience.start = Duration::from_millis(300);
    let error = Worker::start(options).err();
    assert!(matches!(&error, Some(Error::WorkerDied(why)) if why.contains("not ready")), "{error:?}");
}

fn a_disk_that_cannot_be_opened_is_said() {
    assert_eq!(Worker::start(options("broken-disk")).err(), Some(Error::Io("disk-0.qcow2: not an image".into())));
    let mut missing = options("evil");
    missing.program = "/no/such/program".into();
    assert!(matches!(Worker::start(missing).err(), Some(Error::Io(_))));
}

fn children() -> usize {
    let own = std::process::id().to_string();
    std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"))
        .map_or(0, |line| line.split_whitespace().count())
}

fn nothing_is_left_after_a_hundred_sessions() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    Box::new(evil()).close();
    let (before, children_before) = (open(), children());
    let mut ids = Vec::new();
    for n in 0..100 {
        let worker = Box::new(evil());
        ids.push(worker.process_id());
        match n % 3 {
            0 => worker.close(),
            1 => drop(worker),
            _ => {
                let _ = worker.stat(&volume("disk"), &path("/panic"));
            }
        }
    }
    ids.into_iter().for_each(await_end);
    let deadline = Instant::now() + Duration::from_secs(10);
    while open() > before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!((open(), children()), (before, children_before));
}

/// A hub that is killed cannot clean up: its worker ends with it, even while it spins. The hub is a shell here, so that the
/// worker's parent is another process than this one.
fn a_worker_dies_with_the_hub() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    let (ours, theirs) = UnixStream::pair().unwrap();
    // The worker's socket stays open here, so that only its parent's death can end it.
    let mut hub = Command::new("bash")
        .args(["-c", "\"$0\" worker:evil <&0 & echo $! >&2; wait"])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(hub.stderr.take().unwrap()), &mut line).unwrap();
    let worker: u32 = line.trim().parse().unwrap();
    super::hostile::greet(&ours, &[]);
    assert!(is_alive(worker));
    hub.kill().unwrap();
    hub.wait().unwrap();
    await_end(worker);
    drop(ours);
}

/// Its end is no forbidden call: it closes the disk and its socket and says that all was well, however it is built.
fn a_worker_that_is_let_go_ends_by_itself() {
    use sendense_guestfs::wire::{frame, request};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    let dir = super::images::folder();
    let image = super::images::ext4(dir.path(), "disk.img", 8, "", "echo a > a");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .arg("worker:disk")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    super::hostile::greet(&ours, &[std::fs::File::open(&image).unwrap().into()]);
    let call = request::Message::Request { id: 1, call: request::Call::Volumes };
    let (tag, payload) = call.encode();
    frame::write(&mut &ours, tag, &payload).unwrap();
    // One frame for the volume, one that says that there are no more.
    for _ in 0..2 {
        frame::read(&mut &ours).unwrap();
    }
    drop(ours);
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match worker.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it is still there"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert_eq!(status.code(), Some(0), "{status}");
}
