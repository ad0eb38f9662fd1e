//! A worker that was taken over: it greets like an honest one and then says anything. The hub's end must answer every call,
//! soon, with a checked value or an error.

use super::Test;
use super::images::{options, path, volume};
use sendense_guestfs::client::Worker;
use sendense_guestfs::meta::{Entry, FileType, GuestTime, Meta, State};
use sendense_guestfs::sandbox::Level;
use sendense_guestfs::sandbox::ids::NOBODY;
use sendense_guestfs::session::{Found, FoundEntry, RangePage, WalkOptions};
use sendense_guestfs::wire::reply::{Message, Part};
use sendense_guestfs::wire::request::{self, Start};
use sendense_guestfs::wire::{FRAME_BYTES_MAX, VERSION, frame};
use sendense_guestfs::{Error, GuestPath, Session, Volume};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("anything_a_worker_says_ends_in_an_answer", anything_a_worker_says_ends_in_an_answer),
    ("lies_are_found_out", lies_are_found_out),
    ("a_flood_is_cut_off", a_flood_is_cut_off),
];

/// Plays the hub's part of the greeting, with the files of a disk.
pub fn greet(mut socket: &UnixStream, files: &[OwnedFd]) {
    let start = Start { version: VERSION, uid: NOBODY, descriptors: files.len() as u32, setup: Vec::new() };
    let (tag, payload) = request::Message::Start(start).encode();
    frame::write(&mut socket, tag, &payload).unwrap();
    sendense_guestfs::worker::pass(socket, files).unwrap();
    let hello = Message::decode(&frame::read(&mut socket).unwrap()).unwrap();
    assert!(matches!(hello, Message::Hello { version: VERSION, .. }), "{hello:?}");
}

/// The taken-over worker. The mode says what it does.
pub fn child(mode: &str) -> ExitCode {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let _ = frame::read(&mut &socket);
    say(&socket, &Message::Hello { version: VERSION, level: Level::default() });
    let (kind, number) = mode.split_once('-').unwrap_or((mode, "0"));
    let number: u64 = number.parse().unwrap();
    while let Ok(asked) = frame::read(&mut &socket) {
        let id = match request::Message::decode(&asked) {
            Ok(request::Message::Request { id, .. }) => id,
            _ => continue,
        };
        match kind {
            "lie" => {
                for part in lies()[number as usize].1.clone() {
                    say(&socket, &Message::Part { id, part });
                }
                say(&socket, &Message::Done { id });
            }
            "flood" => loop {
                let part = if number == 0 { Part::Working } else { Part::Piece(vec![0; FRAME_BYTES_MAX - 64]) };
                let (tag, payload) = Message::Part { id, part }.encode();
                if frame::write(&mut &socket, tag, &payload).is_err() {
                    return ExitCode::SUCCESS;
                }
            },
            _ => noise(&socket, id, number),
        }
    }
    ExitCode::SUCCESS
}

fn say(mut socket: &UnixStream, message: &Message) {
    let (tag, payload) = message.encode();
    let _ = frame::write(&mut socket, tag, &payload);
}

/// Some frames, most of them sound up to a few changed bytes, and now and then bytes that are no frame at all.
fn noise(mut socket: &UnixStream, id: u32, seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(7919).wrapping_add(id.into()));
    let all = lies();
    for _ in 0..1 + dice.below(6) {
        let parts = &all[dice.below(all.len())].1;
        let id = if dice.below(8) == 0 { dice.below(4) as u32 } else { id };
        let message = match (dice.below(8), parts.first()) {
            (0, _) | (_, None) => Message::Done { id },
            (1, _) => Message::Failed { id, error: Error::NotFound },
            (_, Some(part)) => Message::Part { id, part: part.clone() },
        };
        let (tag, mut payload) = message.encode();
        for _ in 0..dice.below(3) {
            let at = dice.below(payload.len());
            payload[at] = dice.below(256) as u8;
        }
        if dice.below(12) == 0 {
            let _ = socket.write_all(&dice.next().to_le_bytes());
        } else {
            let _ = frame::write(&mut socket, tag, &payload);
        }
    }
    say(socket, &Message::Done { id });
}

/// Numbers that are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn meta() -> Meta {
    let modified = Some(GuestTime { seconds: 1, nanoseconds: 2 });
    Meta { inode: 1, file_type: FileType::File, size_bytes: 4, mode: 0o644, uid: 0, gid: 0, links: 1, modified }
}

fn entry(name: &str) -> Entry {
    Entry { name: name.into(), meta: meta(), target: None }
}

fn found(at: &str) -> Found {
    Found { path: GuestPath::parse(at.as_bytes()).unwrap(), outcome: Ok(FoundEntry { meta: meta(), target: None }) }
}

type Ask = fn(&Worker) -> Result<(), Error>;

/// A call, the answer that must not be believed, and what it is.
fn lies() -> Vec<(Ask, Vec<Part>)> {
    let disk = Volume {
        id: volume("disk"),
        kind: "ext4".into(),
        label: None,
        uuid: None,
        size_bytes: 1,
        state: State::Readable,
        consistency: None,
    };
    let volumes: Ask = |worker| worker.volumes().map(drop);
    let stat: Ask = |worker| worker.stat(&volume("disk"), &path("/x")).map(drop);
    let list: Ask = |worker| worker.list(&volume("disk"), &path("/"), None, 2).map(drop);
    let ranges: Ask = |worker| worker.data_ranges(&volume("disk"), &path("/x"), 5).map(drop);
    let read: Ask = |worker| {
        let mut stream = worker.read(&volume("disk"), &path("/x"), 2..6)?;
        while stream.next_piece()?.is_some() {}
        Ok(())
    };
    let walk: Ask = |worker| {
        let options = WalkOptions { entries_max: 2, ..WalkOptions::default() };
        let mut walk = worker.walk(&volume("disk"), &path("/x"), &options)?;
        while walk.next_batch()?.is_some() {}
        Ok(())
    };
    let opened = |size| Part::Opened { file_size_bytes: size };
    let page = |ranges, next| Part::Ranges(RangePage { ranges, next, file_size_bytes: 100 });
    let root = || Part::Path(path("/x"));
    vec![
        (volumes, vec![Part::Volume(disk.clone()), Part::Volume(disk)]),
        (volumes, vec![Part::Meta(meta())]),
        (stat, vec![]),
        (stat, vec![Part::Target(b"x".to_vec())]),
        (stat, vec![Part::Meta(meta()), Part::Meta(meta())]),
        (list, vec![Part::Entries(vec![entry("a"), entry("b"), entry("c")]), Part::Next(None)]),
        (list, vec![Part::Entries(vec![entry("a"), entry("a")]), Part::Next(None)]),
        (list, vec![Part::Entries(vec![entry("a")])]),
        (list, vec![Part::Next(Some(1))]),
        (list, vec![Part::Entries(vec![entry("a")]), Part::Next(None), Part::Next(None)]),
        (read, vec![]),
        (read, vec![opened(10), Part::Piece(vec![0; 5])]),
        (read, vec![opened(10), Part::Piece(vec![0; 3])]),
        (read, vec![opened(4), Part::Piece(vec![0; 4])]),
        (read, vec![opened(10), opened(10)]),
        (ranges, vec![page(Vec::new(), Some(3))]),
        (ranges, vec![page(vec![0..9, 9..10], None)]),
        (walk, vec![root(), Part::Found(vec![found("/y")])]),
        (walk, vec![root(), Part::Found(vec![found("/x")])]),
        (walk, vec![root(), Part::Found(vec![found("/x/a"), found("/x/b"), found("/x/c")])]),
        (walk, vec![root(), Part::Found(vec![])]),
        (walk, vec![Part::Found(vec![found("/x/a")])]),
    ]
}

fn lies_are_found_out() {
    for (number, (ask, parts)) in lies().into_iter().enumerate() {
        let worker = Worker::start(options(&format!("lie-{number}"))).unwrap();
        let answer = ask(&worker);
        assert!(
            matches!(&answer, Err(Error::WorkerDied(why)) if why.contains("broke the protocol")),
            "{parts:?}: {answer:?}"
        );
        assert!(matches!(worker.volumes(), Err(Error::WorkerDied(_))));
    }
}

fn anything_a_worker_says_ends_in_an_answer() {
    for seed in 0..60 {
        let mut options = options(&format!("noise-{seed}"));
        // A worker may also say too little: then this is how long a call waits.
        options.patience.step = Duration::from_millis(500);
        options.patience.slow = Duration::from_millis(500);
        let begun = Instant::now();
        let worker = Worker::start(options).unwrap();
        for (ask, _) in lies() {
            let _ = ask(&worker);
            if worker.ended().is_some() {
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "seed {seed}");
    }
}

fn a_flood_is_cut_off() {
    for number in 0..2 {
        let worker = Worker::start(options(&format!("flood-{number}"))).unwrap();
        // One who does not take what comes: the worker may send its credit and no byte more.
        let stream = worker.stat(&volume("disk"), &path("/x"));
        assert!(matches!(&stream, Err(Error::WorkerDied(why)) if why.contains("broke the protocol")), "{stream:?}");
    }
}
