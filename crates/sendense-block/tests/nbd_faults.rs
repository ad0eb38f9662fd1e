//! The NBD client when servers fail, stall, die and come back, and when somebody cancels.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::{Server, extent, noise, open, read_all};
use sendense_block::error::chain;
use sendense_block::nbd::{Client, Options, Reconnect};
use sendense_block::{AllocationMap, ByteLen, ByteOffset, Cancel, Error, Flush, Kind, ReadAt, WriteAt, ZeroRange};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn read_error(client: &Client, at: u64) -> Error {
    client.read_at(ByteOffset(at), &mut [0; 4096]).expect_err("this read must fail")
}

#[test]
fn the_servers_errors_keep_their_kind_and_place() {
    for (name, kind) in [("EIO", Kind::Io), ("EPERM", Kind::Denied), ("ENOMEM", Kind::Io), ("EINVAL", Kind::Invalid)] {
        let server =
            Server::nbdkit(&["--filter=error", "memory", "1M", &format!("error-pread={name}"), "error-pread-rate=1"]);
        let client = server.connect();
        client.write_at(ByteOffset(0), &[1; 512]).unwrap();
        for at in [0, 8192] {
            let error = read_error(&client, at);
            assert_eq!((error.kind, error.at), (kind, Some(ByteOffset(at))), "{}", chain(&error));
            assert!(chain(&error).contains("read 4096 bytes of nbd+unix://"), "{}", chain(&error));
            assert!(chain(&error).contains(name), "{}", chain(&error));
        }
        // The connection is as good as before.
        client.write_at(ByteOffset(0), &[2; 512]).unwrap();
    }
    let server =
        Server::nbdkit(&["--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=1", "error-zero-rate=1"]);
    let client = server.connect();
    assert_eq!(client.write_at(ByteOffset(512), &[1; 512]).unwrap_err().kind, Kind::NoSpace);
    assert_eq!(client.zero_range(extent(0, MIB)).unwrap_err().kind, Kind::NoSpace);
    assert_eq!(read_all(&client), vec![0; MIB as usize]);
    let server = Server::nbdkit(&["--filter=error", "memory", "1M", "error-extents=EIO", "error-extents-rate=1"]);
    assert_eq!(server.connect().allocation(extent(0, MIB)).unwrap_err().kind, Kind::Io);
    let server = Server::nbdkit(&["full", "1M"]);
    let client = server.connect();
    assert_eq!(client.write_at(ByteOffset(0), &[1; 512]).unwrap_err().kind, Kind::NoSpace);
}

#[test]
fn errors_amid_many_requests_hit_only_their_own() {
    let server = Server::nbdkit(&["--filter=error", "pattern", "64M", "error-pread=EIO", "error-pread-rate=10%"]);
    let client = open(&Options { request_bytes: 4096, ..server.options() });
    let (mut good, mut bad) = (0, 0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u64)
            .map(|thread| {
                let client = &client;
                scope.spawn(move || {
                    let mut counts = (0, 0);
                    for round in 0..50 {
                        let at = (thread * 50 + round) * 16 * 1024;
                        let mut buf = vec![0; 16 * 1024];
                        match client.read_at(ByteOffset(at), &mut buf) {
                            Ok(()) => {
                                // The pattern plugin's bytes: each 8 bytes are their own offset.
                                for (word, offset) in buf.chunks(8).zip((at..).step_by(8)) {
                                    assert_eq!(word, offset.to_be_bytes());
                                }
                                counts.0 += 1;
                            }
                            Err(error) => {
                                assert_eq!(error.kind, Kind::Io, "{}", chain(&error));
                                counts.1 += 1;
                            }
                        }
                    }
                    counts
                })
            })
            .collect();
        for thread in threads {
            let counts = thread.join().unwrap();
            good += counts.0;
            bad += counts.1;
        }
    });
    assert!(good > 100 && bad > 20, "{good} good, {bad} bad");
}

/// One after the other, 16 reads that take 300 ms each take 4.8 s.
#[test]
fn sixteen_requests_are_in_flight_on_one_connection() {
    let server = Server::nbdkit(&["--filter=delay", "memory", "16M", "rdelay=300ms"]);
    let client = open(&Options { request_bytes: 64 * 1024, ..server.options() });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let client = &client;
            scope.spawn(move || client.read_at(ByteOffset(thread * MIB), &mut [0; 4096]).unwrap());
        }
    });
    assert!(start.elapsed() < Duration::from_millis(2400), "16 threads took {:?}", start.elapsed());
    let start = Instant::now();
    client.read_at(ByteOffset(0), &mut vec![0; MIB as usize]).unwrap();
    assert!(start.elapsed() < Duration::from_millis(2400), "one call of 16 requests took {:?}", start.elapsed());
}

#[test]
fn a_silent_server_meets_its_deadline_and_takes_the_others_along() {
    let server = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=20"]);
    let client = open(&Options { request_timeout: Duration::from_millis(300), ..server.options() });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let error = read_error(&client, 0);
                assert_eq!(error.kind, Kind::Deadline, "{}", chain(&error));
            });
        }
    });
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // Nobody knows what the server still does with them: the connection is gone.
    assert_eq!(read_error(&client, 0).kind, Kind::Deadline);
}

#[test]
fn cancelling_ends_everything_at_once_and_for_good() {
    let server = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=20", "wdelay=20"]);
    let cancel = Cancel::new();
    let client = Client::connect(&Options { connections: 2, ..server.options() }, &cancel).unwrap();
    let started = std::sync::Barrier::new(7);
    let asked = std::thread::scope(|scope| {
        for thread in 0..6 {
            let (client, started) = (&client, &started);
            scope.spawn(move || {
                started.wait();
                let result = if thread % 2 == 0 {
                    client.read_at(ByteOffset(0), &mut [0; 4096])
                } else {
                    client.write_at(ByteOffset(0), &[0; 4096])
                };
                let error = result.unwrap_err();
                assert_eq!(error.kind, Kind::Cancelled, "{}", chain(&error));
            });
        }
        started.wait();
        let asked = Instant::now();
        cancel.cancel();
        asked
    });
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let start = Instant::now();
    assert_eq!(read_error(&client, 0).kind, Kind::Cancelled);
    drop(client);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(Client::connect(&server.options(), &cancel).map(drop).unwrap_err().kind, Kind::Cancelled);
}

#[test]
fn cancelling_ends_a_handshake() {
    // A listener that never says a word.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mute");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let options = Options::new(sendense_block::nbd::Uri::unix(&socket, "").unwrap());
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| Client::connect(&options, &cancel).map(drop).unwrap_err());
        let start = Instant::now();
        cancel.cancel();
        assert_eq!(opening.join().unwrap().kind, Kind::Cancelled);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
    let start = Instant::now();
    let hasty = Options { handshake_timeout: Duration::from_millis(200), ..options };
    let error = Client::connect(&hasty, &Cancel::new()).map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Deadline, "{}", chain(&error));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_full_backlog_meets_the_connect_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("busy");
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(socket.as_path()).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let mut options = Options::new(sendense_block::nbd::Uri::unix(&socket, "").unwrap());
    options.connect_timeout = Duration::from_millis(200);
    let error = Client::connect(&options, &Cancel::new()).map(drop).unwrap_err();
    assert_eq!(error.kind, Kind::Deadline, "{}", chain(&error));
}

#[test]
fn a_dead_server_fails_what_is_in_flight_at_once() {
    let mut server = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=20"]);
    let client = server.connect();
    let barrier = std::sync::Barrier::new(5);
    let killed = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let error = read_error(&client, 0);
                assert_eq!(error.kind, Kind::Unavailable, "{}", chain(&error));
            });
        }
        barrier.wait();
        let killed = Instant::now();
        server.kill();
        killed
    });
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    assert_eq!(read_error(&client, 0).kind, Kind::Unavailable);
}

#[test]
fn a_connection_is_replaced_for_reads_only_and_only_by_the_same_export() {
    let mut server = Server::nbdkit(&["pattern", "1M"]);
    let reconnect = Some(Reconnect { retries: 3, back_off: Duration::from_millis(10) });
    let client = open(&Options { reconnect, ..server.options() });
    let bytes = read_all(&client);

    server.replace(&["pattern", "1M"]);
    assert!(read_all(&client) == bytes);
    client.allocation(extent(0, MIB)).unwrap();

    server.replace(&["pattern", "2M"]);
    let error = read_error(&client, 0);
    assert_eq!(error.kind, Kind::Protocol);
    assert!(chain(&error).contains("changed its size"), "{}", chain(&error));
    assert_eq!(client.size(), ByteLen(MIB));

    server.kill();
    let start = Instant::now();
    assert_eq!(read_error(&client, 0).kind, Kind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn after_a_write_nothing_is_replaced() {
    let mut server = Server::nbdkit(&["memory", "1M"]);
    let reconnect = Some(Reconnect { retries: 3, back_off: Duration::from_millis(10) });
    let client = open(&Options { reconnect, ..server.options() });
    client.write_at(ByteOffset(0), &noise(4096, 1)).unwrap();
    server.replace(&["pattern", "1M"]);
    // The new server never saw the write, so a flush there would be a lie.
    assert_eq!(client.flush().unwrap_err().kind, Kind::Unavailable);
    assert_eq!(read_error(&client, 0).kind, Kind::Unavailable);
}
