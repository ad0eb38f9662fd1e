//! The NBD server with clients that lie, stall, flood and vanish.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::house::House;
use nbd_support::papers::Papers;
use nbd_support::{eventually, noise, open};
use proptest::prelude::*;
use sendense_block::backend::{Fault, Faulty, Memory, Operation};
use sendense_block::nbd::TlsIdentity;
use sendense_block::nbd::frame::{self, OptionReply, ReplyHeader, Request, errno, option, option_reply};
use sendense_block::nbd::server::{Device, ExportGuard, ExportOptions, Exports, Listen, Options, ServerTls, converse};
use sendense_block::{ByteLen, ByteOffset, Kind, ReadAt};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: u64 = 4 << 20;
const SHORT: Duration = Duration::from_secs(1);

fn house(change: impl FnOnce(&mut Options)) -> (House, ExportGuard) {
    let house = House::new(change);
    let memory = Memory::from_bytes(noise(SIZE as usize, 1));
    let guard = house.exports.add("x", Device::writable(memory), ExportOptions::default()).unwrap();
    (house, guard)
}

/// A client without manners.
struct Rude(UnixStream);

impl Rude {
    fn enter(house: &House) -> Self {
        let stream = UnixStream::connect(house.path("nbd.sock")).unwrap();
        stream.set_read_timeout(Some(nbd_support::PATIENCE)).unwrap();
        Self(stream)
    }

    fn greeted(house: &House) -> Self {
        let mut rude = Self::enter(house);
        let greeting = rude.take(18);
        assert_eq!(greeting[..8], frame::MAGIC_SERVER.to_be_bytes());
        rude.give(&3u32.to_be_bytes());
        rude
    }

    /// Ready for requests.
    fn ready(house: &House, structured: bool) -> Self {
        let mut rude = Self::greeted(house);
        if structured {
            rude.option(option::STRUCTURED_REPLY, &[]);
            assert_eq!(rude.reply().0, option_reply::ACK);
            rude.option(option::SET_META_CONTEXT, &query("x"));
            assert_eq!(rude.reply().0, option_reply::META_CONTEXT);
            assert_eq!(rude.reply().0, option_reply::ACK);
        }
        rude.option(option::GO, &wanted("x"));
        while rude.reply().0 == option_reply::INFO {}
        rude
    }

    /// The server may have hung up meanwhile.
    fn give(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All that comes until the server hangs up.
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => bytes,
        }
    }

    fn option(&mut self, option: u32, payload: &[u8]) {
        self.give(&frame::encode_option(option, payload));
    }

    fn reply(&mut self) -> (u32, Vec<u8>) {
        let head = OptionReply::decode(&self.take(frame::OPTION_REPLY_BYTES).try_into().unwrap()).unwrap();
        (head.kind, self.take(head.len as usize))
    }

    fn ask(&mut self, flags: u16, command: u16, offset: u64, len: u32) {
        self.give(&Request { flags, command, cookie: 42, offset, len }.encode());
    }

    fn simple(&mut self, data: usize) -> (u32, Vec<u8>) {
        match ReplyHeader::decode(&self.take(frame::SIMPLE_REPLY_BYTES)).unwrap() {
            Some((ReplyHeader::Simple { error, cookie: 42 }, _)) => {
                (error, self.take(if error == 0 { data } else { 0 }))
            }
            other => panic!("{other:?} instead of a simple reply"),
        }
    }

    fn chunk(&mut self) -> (u16, u16, Vec<u8>) {
        match ReplyHeader::decode(&self.take(frame::CHUNK_BYTES)).unwrap() {
            Some((ReplyHeader::Chunk { flags, kind, cookie: 42, len }, _)) => (flags, kind, self.take(len as usize)),
            other => panic!("{other:?} instead of a chunk"),
        }
    }

    fn error(&mut self) -> u32 {
        let (flags, kind, payload) = self.chunk();
        assert_eq!((flags, kind), (frame::chunk::FLAG_DONE, frame::chunk::ERROR));
        u32::from_be_bytes(payload[..4].try_into().unwrap())
    }

    /// The server hangs up, whatever it says before.
    fn must_be_cut_off(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn wanted(name: &str) -> Vec<u8> {
    [text(name), vec![0, 0]].concat()
}

fn query(name: &str) -> Vec<u8> {
    [text(name), vec![0, 0, 0, 1], text("base:allocation")].concat()
}

/// A polite client is served all the same.
fn still_serves(house: &House) {
    let mut buf = [0; 4096];
    open(&house.options("x")).read_at(ByteOffset(512), &mut buf).unwrap();
    assert!(buf == noise(SIZE as usize, 1)[512..512 + 4096]);
}

fn all_gone(house: &House) {
    eventually("the clients to be gone", || (house.server.clients() == 0).then_some(()));
}

#[test]
fn handshakes_that_break_the_rules_end() {
    let (house, _guard) = house(|options| options.handshake_options_max = 20);
    let mut rude = Rude::enter(&house);
    rude.give(&0x8000_0003u32.to_be_bytes());
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.give(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n");
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.give(&[&frame::MAGIC_OPTION.to_be_bytes()[..], &option::GO.to_be_bytes(), &[0xff; 4]].concat());
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.option(option::EXPORT_NAME, b"unknown");
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    // Too long to be a name, but short enough to be read away: any answer would be taken for an export's size.
    rude.option(option::EXPORT_NAME, &[b'x'; 100_000]);
    assert_eq!(rude.rest(), b"");
    let mut rude = Rude::greeted(&house);
    for _ in 0..100 {
        rude.option(option::LIST, &[]);
    }
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.option(option::ABORT, &[]);
    assert_eq!(rude.reply().0, option_reply::ACK);
    rude.must_be_cut_off();
    still_serves(&house);
    all_gone(&house);
}

#[test]
fn malformed_options_are_answered() {
    let (house, _guard) = house(|_| {});
    let mut rude = Rude::greeted(&house);
    for (option, payload, kind) in [
        (option::LIST, vec![1], option_reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![1], option_reply::ERR_INVALID),
        (option::SET_META_CONTEXT, query("x"), option_reply::ERR_INVALID),
        (option::GO, vec![0, 0, 0, 9, b'x'], option_reply::ERR_INVALID),
        (option::INFO, vec![], option_reply::ERR_INVALID),
        (option::GO, wanted(&"x".repeat(300)), option_reply::ERR_UNKNOWN),
        (option::GO, vec![0; 100_000], option_reply::ERR_TOO_BIG),
        (option::STARTTLS, vec![], option_reply::ERR_POLICY),
        (4, vec![], option_reply::ERR_UNSUP),
        (option::STRUCTURED_REPLY, vec![], option_reply::ACK),
        (option::SET_META_CONTEXT, query("y"), option_reply::ERR_UNKNOWN),
        (option::LIST_META_CONTEXT, [text("x"), vec![0xff; 4]].concat(), option_reply::ERR_INVALID),
    ] {
        rude.option(option, &payload);
        assert_eq!(rude.reply().0, kind, "option {option}");
    }
    // The failed choice of contexts left none.
    rude.option(option::GO, &wanted("x"));
    while rude.reply().0 == option_reply::INFO {}
    rude.ask(0, 7, 0, 512);
    assert_eq!(rude.error(), errno::EINVAL);
}

#[test]
fn a_client_of_the_old_kind_gets_its_padding() {
    let (house, _guard) = house(|_| {});
    let mut rude = Rude::enter(&house);
    rude.take(18);
    rude.give(&1u32.to_be_bytes());
    rude.option(option::EXPORT_NAME, b"x");
    let answer = rude.take(134);
    assert_eq!(answer[..8], SIZE.to_be_bytes());
    assert_eq!(answer[10..], [0; 124]);
    // 600 KiB are several pieces of work and one simple reply.
    rude.ask(0, 0, 1000, 600 << 10);
    assert!(rude.simple(600 << 10).1 == noise(SIZE as usize, 1)[1000..1000 + (600 << 10)]);
}

#[test]
fn bad_requests_are_answered_and_the_next_ones_served() {
    let (house, _guard) = house(|_| {});
    let mut rude = Rude::ready(&house, false);
    for (flags, command, offset, len, error) in [
        (0, 0, SIZE, 1, errno::EINVAL),
        (0, 0, u64::MAX, u32::MAX, errno::EINVAL),
        (0, 99, 0, 0, errno::EINVAL),
        (1 << 9, 3, 0, 0, errno::EINVAL),
        (0, 6, SIZE - 1, 2, errno::ENOSPC),
        (0, 4, SIZE, 2, errno::EINVAL),
        (0, 7, 0, 512, errno::EINVAL),
        (0, 3, 0, 0, 0),
        (0, 5, 0, u32::MAX, errno::EINVAL),
        (0, 5, 0, 1 << 20, 0),
        (0, 0, SIZE, 0, 0),
    ] {
        rude.ask(flags, command, offset, len);
        assert_eq!(rude.simple(0).0, error, "command {command} at {offset}, {len} bytes");
    }
    // A refused write's payload is no request.
    rude.ask(0, 1, SIZE - 10, 100_000);
    rude.give(&vec![0x25; 100_000]);
    assert_eq!(rude.simple(0).0, errno::ENOSPC);
    // One cookie for two requests: two replies.
    rude.ask(0, 0, 0, 512);
    rude.ask(0, 0, 0, 512);
    for _ in 0..2 {
        assert!(rude.simple(512).1 == noise(SIZE as usize, 1)[..512]);
    }
    rude.ask(0, 2, 0, 0);
    rude.must_be_cut_off();
}

#[test]
fn structured_replies_are_whole_with_df_and_end_with_done() {
    let (house, _guard) = house(|_| {});
    let mut rude = Rude::ready(&house, true);
    let bytes = noise(SIZE as usize, 1);
    rude.ask(frame::command_flags::DF, 0, 100, 2 << 20);
    let (flags, kind, payload) = rude.chunk();
    assert_eq!((flags, kind), (frame::chunk::FLAG_DONE, frame::chunk::OFFSET_DATA));
    assert!(payload[8..] == bytes[100..100 + (2 << 20)]);
    rude.ask(0, 0, 100, 2 << 20);
    let mut found = vec![0; bytes.len()];
    loop {
        let (flags, kind, payload) = rude.chunk();
        assert_eq!(kind, frame::chunk::OFFSET_DATA);
        let at = u64::from_be_bytes(payload[..8].try_into().unwrap()) as usize;
        found[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
        if flags & frame::chunk::FLAG_DONE != 0 {
            break;
        }
    }
    assert!(found[100..100 + (2 << 20)] == bytes[100..100 + (2 << 20)]);
    rude.ask(0, 0, 0, 0);
    assert_eq!(rude.chunk(), (frame::chunk::FLAG_DONE, frame::chunk::NONE, vec![]));
}

#[test]
fn a_device_that_fails_costs_its_request_only() {
    let house = House::new(|_| {});
    let memory = Arc::new(Memory::zeroed(ByteLen(SIZE)));
    let faulty = Faulty::new(memory, false, |_, operation| match operation {
        Operation::Read(range) if range.start().0 < 1 << 20 => Some(Fault::Fail(Kind::Io)),
        Operation::Write(..) => Some(Fault::Fail(Kind::NoSpace)),
        Operation::Flush => panic!("the device is broken"),
        _ => None,
    });
    let _guard = house.exports.add("x", Device::writable(faulty), ExportOptions::default()).unwrap();
    let mut rude = Rude::ready(&house, false);
    // The first pieces fail, the last ones do not: one reply says so.
    rude.ask(0, 0, 0, 3 << 20);
    assert_eq!(rude.simple(0).0, errno::EIO);
    rude.ask(0, 0, 2 << 20, 512);
    assert_eq!(rude.simple(512), (0, vec![0; 512]));
    rude.ask(0, 1, 0, 3);
    rude.give(b"abc");
    assert_eq!(rude.simple(0).0, errno::ENOSPC);
    // A request that nobody can answer ends the connection rather than to wait for ever.
    rude.ask(0, 3, 0, 0);
    rude.must_be_cut_off();
    all_gone(&house);
    let mut rude = Rude::ready(&house, true);
    rude.ask(frame::command_flags::DF, 0, 0, 3 << 20);
    assert_eq!(rude.error(), errno::EIO);
}

#[test]
fn whoever_stalls_must_be_cut_off() {
    let (house, _guard) = house(|options| {
        options.handshake_timeout = SHORT;
        options.stall_timeout = SHORT;
    });
    // Nothing, half an option, half a request, half a payload.
    Rude::enter(&house).must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.give(&[0x49; 7]);
    rude.must_be_cut_off();
    let mut rude = Rude::ready(&house, true);
    rude.give(&[0x25, 0x60]);
    rude.must_be_cut_off();
    let mut rude = Rude::ready(&house, true);
    rude.ask(0, 1, 0, 100_000);
    rude.give(&[0; 50_000]);
    rude.must_be_cut_off();
    // Reads, and takes no reply: 256 MiB are asked for.
    let mut rude = Rude::ready(&house, true);
    for _ in 0..64 {
        rude.ask(0, 0, 0, SIZE as u32);
    }
    still_serves(&house);
    all_gone(&house);
    drop(rude);
    // A client that merely asks nothing is not stalled.
    let mut quiet = Rude::ready(&house, false);
    let end = Instant::now() + 3 * SHORT;
    eventually("some stall times to pass", || (Instant::now() > end).then_some(()));
    quiet.ask(0, 3, 0, 0);
    assert_eq!(quiet.simple(0).0, 0);
}

#[test]
fn idle_clients_leave_when_there_is_a_limit() {
    let (house, _guard) = house(|options| options.idle_timeout = Some(SHORT));
    Rude::ready(&house, false).must_be_cut_off();
    all_gone(&house);
}

#[test]
fn requests_that_are_none_end_the_connection() {
    let (house, _guard) = house(|options| options.stall_timeout = SHORT);
    let mut rude = Rude::ready(&house, true);
    rude.give(&[0x13; 28]);
    rude.must_be_cut_off();
    let mut rude = Rude::ready(&house, true);
    rude.ask(0, 1, 0, (32 << 20) + 1);
    rude.must_be_cut_off();
    // Clients that vanish in mid request.
    for cut in [1, 27, 28, 5_000] {
        let mut rude = Rude::ready(&house, true);
        let request = Request { flags: 0, command: 1, cookie: 1, offset: 0, len: 9_000 }.encode();
        rude.give(&[&request[..], &[7; 9_000]].concat()[..cut]);
    }
    let mut rude = Rude::ready(&house, true);
    for _ in 0..1_000 {
        rude.ask(0, 0, 0, 65_536);
        rude.ask(0, 50, 0, 0);
    }
    drop(rude);
    still_serves(&house);
    all_gone(&house);
}

#[test]
fn a_flood_of_bad_requests_takes_no_memory() {
    let (house, _guard) = house(|options| options.stall_timeout = SHORT);
    let mut rude = Rude::ready(&house, true);
    rude.0.set_write_timeout(Some(nbd_support::PATIENCE)).unwrap();
    let request = Request { flags: 0, command: 77, cookie: 42, offset: 0, len: 0 }.encode();
    // 28 MB of requests would have 60 MB of replies. The server stops to read long before, and then hangs up.
    let flood = request.repeat(1_000);
    let sent = (0..1_000).take_while(|_| rude.0.write_all(&flood).is_ok()).count();
    assert!(sent < 200, "{sent} thousand requests were taken without a reply");
    all_gone(&house);
}

#[test]
fn too_many_clients_are_turned_away() {
    let (house, _guard) = house(|options| options.clients_max = 2);
    let (first, second) = (Rude::ready(&house, false), Rude::greeted(&house));
    Rude::enter(&house).must_be_cut_off();
    drop((first, second));
    all_gone(&house);
    still_serves(&house);
}

#[test]
fn a_server_that_ends_waits_for_nobody() {
    let (house, guard) = house(|_| {});
    let clients = [Rude::enter(&house), Rude::greeted(&house), Rude::ready(&house, true)];
    house.server.shutdown();
    clients.into_iter().for_each(Rude::must_be_cut_off);
    guard.close(Duration::ZERO).unwrap();
}

#[test]
fn before_tls_nothing_is_said() {
    let papers = Papers::new();
    let identity =
        TlsIdentity { certificate_file: papers.file("server-cert.pem"), key_file: papers.file("server-key.pem") };
    let tls = ServerTls { identity, client_ca_file: papers.file("ca-cert.pem") };
    let (house, _guard) = house(|options| options.tls = Some(tls));
    let mut rude = Rude::greeted(&house);
    for (option, payload) in [
        (option::LIST, vec![]),
        (option::INFO, wanted("x")),
        (option::GO, wanted("nothing")),
        (option::STRUCTURED_REPLY, vec![]),
        (option::SET_META_CONTEXT, query("x")),
        (77, vec![]),
    ] {
        rude.option(option, &payload);
        assert_eq!(rude.reply().0, option_reply::ERR_TLS_REQD, "option {option}");
    }
    // What is sent in the clear behind STARTTLS is TLS or the end.
    rude.option(option::STARTTLS, &[]);
    rude.option(option::GO, &wanted("x"));
    assert_eq!(rude.reply().0, option_reply::ACK);
    rude.must_be_cut_off();
    let mut rude = Rude::greeted(&house);
    rude.option(option::EXPORT_NAME, b"x");
    rude.must_be_cut_off();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_in_an_orderly_way(
        depth in 0usize..3,
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        requests in prop::collection::vec((0u16..40, 0u16..10, 0u64..5000, 0u32..5000), 0..20),
    ) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let exports = Exports::new();
        let device = Device::writable(Memory::zeroed(ByteLen(4096)));
        let _guard = exports.add("x", device, ExportOptions::default()).unwrap();
        let mut input = vec![0, 0, 0, 3];
        if depth > 0 {
            input.extend(frame::encode_option(option::STRUCTURED_REPLY, &[]));
            input.extend(frame::encode_option(option::SET_META_CONTEXT, &query("x")));
            input.extend(frame::encode_option(option::GO, &wanted("x")));
        }
        if depth > 1 {
            for (flags, command, offset, len) in requests {
                input.extend(Request { flags, command, cookie: 1, offset, len }.encode());
                if command == 1 {
                    input.extend(vec![5; len as usize]);
                }
            }
        }
        input.extend(bytes);
        std::thread::scope(|scope| {
            let mut sending = ours.try_clone().unwrap();
            scope.spawn(move || {
                let _ = sending.write_all(&input);
                let _ = sending.shutdown(std::net::Shutdown::Write);
            });
            let serving = scope.spawn(|| converse(theirs, Options::new(Listen::Unix("/unused".into())), &exports));
            let _ = std::io::copy(&mut ours, &mut std::io::sink());
            // Either is right; a panic is not.
            let _ = serving.join().expect("the server panicked");
        });
    }
}
