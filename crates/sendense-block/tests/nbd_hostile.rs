//! The NBD client against servers that break the protocol, each in its own way. None may hang, panic or give wrong bytes.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::fake::{BASE, BITMAP, Fake, Peer, SIZE, data, error, hole, status};
use nbd_support::{extent, noise, open};
use sendense_block::error::chain;
use sendense_block::nbd::frame::{self, Command, chunk, info, option, option_reply};
use sendense_block::nbd::{self, Client, Options};
use sendense_block::{
    AllocationMap, ByteLen, ByteOffset, Cancel, ChangeMap, Content, Error, ExtentSet, Flush, Kind, ReadAt, WriteAt,
};
use std::io;
use std::time::{Duration, Instant};

const DONE: u16 = chunk::FLAG_DONE;

fn connect(options: &Options) -> Result<(), Error> {
    Client::connect(options, &Cancel::new()).map(drop)
}

/// A server that answers the handshake by `script`: what the client makes of it.
#[track_caller]
fn handshake(kind: Kind, words: &str, script: impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static) {
    let fake = Fake::serve(script);
    expect(connect(&fake.options()), kind, words);
}

#[track_caller]
fn expect<T>(result: Result<T, Error>, kind: Kind, words: &str) {
    let error = result.map(drop).expect_err(words);
    assert!(
        error.kind == kind && chain(&error).contains(words),
        "{kind:?} {words:?}: {:?} {}",
        error.kind,
        chain(&error)
    );
}

#[test]
fn greetings() {
    handshake(Kind::Protocol, "no NBD server", |peer| peer.give(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    handshake(Kind::Protocol, "greets with", |peer| peer.give(b"NBDMAGICNBDMAGIC"));
    handshake(Kind::Unsupported, "oldstyle", |peer| {
        peer.give(&frame::MAGIC_SERVER.to_be_bytes())?;
        peer.give(&frame::MAGIC_OLDSTYLE.to_be_bytes())?;
        peer.give(&[0; 136])
    });
    handshake(Kind::Unsupported, "fixed newstyle", |peer| peer.give(b"NBDMAGICIHAVEOPT\0\0"));
    handshake(Kind::Unavailable, "in mid reply", |peer| {
        peer.give(b"NBDMAG")?;
        peer.hang_up();
        Ok(())
    });
}

#[test]
fn option_replies() {
    handshake(Kind::Protocol, "instead of its magic", |peer| {
        peer.greet()?;
        peer.option()?;
        peer.give(&[7; 20])
    });
    handshake(Kind::Protocol, "answers option 3 instead of 8", |peer| {
        peer.greet()?;
        peer.option()?;
        peer.ack(option::LIST)
    });
    handshake(Kind::Protocol, "option reply of 4294967295 bytes", |peer| {
        peer.greet()?;
        let option = peer.option()?.0;
        peer.give(&frame::OptionReply { option, kind: option_reply::INFO, len: u32::MAX }.encode())
    });
    handshake(Kind::Protocol, "acknowledgement with a payload", |peer| {
        peer.greet()?;
        let option = peer.option()?.0;
        peer.reply(option, option_reply::ACK, b"x")
    });
    handshake(Kind::Protocol, "holds a NUL", |peer| {
        peer.until(option::GO, true)?;
        peer.reply(option::GO, option_reply::ERR_POLICY, b"go\0away")
    });
    handshake(Kind::Protocol, "string of 4097 bytes", |peer| {
        peer.until(option::GO, true)?;
        peer.reply(option::GO, option_reply::ERR_POLICY, &[b'x'; 4097])
    });
    handshake(Kind::Denied, "policy forbids it (not you)", |peer| {
        peer.until(option::GO, true)?;
        peer.reply(option::GO, option_reply::ERR_POLICY, b"not you")
    });
    handshake(Kind::Unavailable, "shutting down", |peer| {
        peer.until(option::GO, true)?;
        peer.reply(option::GO, option_reply::ERR_SHUTDOWN, b"")
    });
    handshake(Kind::NotFound, "no export of that name", |peer| {
        peer.until(option::GO, true)?;
        peer.reply(option::GO, option_reply::ERR_UNKNOWN, b"")
    });
}

#[test]
fn descriptions_of_exports() {
    fn item(kind: u16, payload: &'static [u8]) -> impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static {
        move |peer| {
            peer.until(option::GO, true)?;
            peer.export(SIZE, 1)?;
            peer.reply(option::GO, option_reply::INFO, &[&kind.to_be_bytes()[..], payload].concat())?;
            peer.ack(option::GO)
        }
    }
    handshake(Kind::Protocol, "without its size", |peer| {
        peer.until(option::GO, true)?;
        peer.ack(option::GO)
    });
    handshake(Kind::Protocol, "ends", item(info::EXPORT, &[0; 9]));
    handshake(Kind::Protocol, "1 bytes too many", item(info::EXPORT, &[0; 11]));
    handshake(Kind::Protocol, "ends", item(info::BLOCK_SIZE, &[0; 11]));
    handshake(Kind::Protocol, "not UTF-8", item(info::NAME, &[0xff]));
    handshake(Kind::Protocol, "holds a NUL", item(info::DESCRIPTION, b"\0"));
    handshake(Kind::Protocol, "string of 4097 bytes", item(info::NAME, &[b'x'; 4097]));
    for (minimum, preferred, maximum) in [
        (0, 4096, 8192),
        (3, 4096, 8192),
        (131_072, 131_072, 131_072),
        (512, 256, 8192),
        (512, 4096, 1000),
        (4096, 4096, 0),
        (1, 3, 9),
    ] {
        handshake(Kind::Protocol, "make no sense", move |peer| {
            peer.until(option::GO, true)?;
            peer.block_sizes(minimum, preferred, maximum)
        });
    }
    handshake(Kind::Protocol, "more than 64 replies", |peer| {
        peer.until(option::GO, true)?;
        loop {
            peer.export(SIZE, 1)?;
        }
    });
    // Unknown information is none of our business.
    let fake = Fake::serve(item(0x4242, &[0; 100]));
    assert_eq!(open(&fake.options()).size(), ByteLen(SIZE));
}

#[test]
fn metadata_contexts() {
    fn contexts(list: &'static [(u32, &'static str)]) -> impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static {
        move |peer| {
            peer.until(option::SET_META_CONTEXT, true)?;
            for (id, name) in list {
                peer.context(*id, name)?;
            }
            Ok(())
        }
    }
    handshake(Kind::Protocol, "not asked for", contexts(&[(1, "base:allocatio")]));
    handshake(Kind::Protocol, "twice", contexts(&[(1, "base:allocation"), (1, "qemu:dirty-bitmap:b")]));
    handshake(Kind::Protocol, "twice", contexts(&[(1, "base:allocation"), (2, "base:allocation")]));
    handshake(Kind::Protocol, "ends", |peer| {
        peer.until(option::SET_META_CONTEXT, true)?;
        peer.reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, b"abc")
    });
    handshake(Kind::Protocol, "with item 2", |peer| {
        peer.until(option::SET_META_CONTEXT, true)?;
        peer.reply(option::SET_META_CONTEXT, option_reply::SERVER, b"abcd")
    });
}

#[test]
fn lists() {
    fn list(script: impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static) -> Result<Vec<nbd::ExportInfo>, Error> {
        let fake = Fake::serve(|peer| {
            peer.until(option::LIST, false)?;
            script(peer)
        });
        nbd::list(&fake.options(), &Cancel::new())
    }
    let long = list(|peer| peer.reply(option::LIST, option_reply::SERVER, &[0xff; 10]));
    expect(long, Kind::Protocol, "claims 4294967295 bytes where 6 are left");
    let endless = list(|peer| {
        loop {
            peer.reply(option::LIST, option_reply::SERVER, &[0, 0, 0, 1, b'x'])?;
        }
    });
    expect(endless, Kind::Protocol, "more than 16384 exports");
    expect(list(|peer| peer.reply(option::LIST, option_reply::ERR_POLICY, b"")), Kind::Denied, "policy");
    let good = list(|peer| {
        peer.reply(option::LIST, option_reply::SERVER, b"\0\0\0\x01xabout x")?;
        peer.ack(option::LIST)?;
        // It describes none of them, which is its right.
        let (asked, _) = peer.option()?;
        peer.reply(asked, option_reply::ERR_POLICY, b"")?;
        assert_eq!(peer.option()?.0, option::ABORT);
        Ok(())
    });
    let good = good.unwrap();
    assert_eq!((good.len(), good[0].name.as_str(), good[0].description.as_str()), (1, "x", "about x"));
    assert_eq!((good[0].size, good[0].read_only), (None, None));
}

#[test]
fn plain_text_before_encryption_is_refused() {
    let fake = Fake::serve(|peer| {
        peer.greet()?;
        let mut bytes =
            frame::OptionReply { option: option::STARTTLS, kind: option_reply::ACK, len: 0 }.encode().to_vec();
        // Somebody on the way adds an answer to a question that will only be asked inside the encryption.
        bytes.extend(frame::OptionReply { option: option::STRUCTURED_REPLY, kind: option_reply::ACK, len: 0 }.encode());
        peer.option()?;
        peer.give(&bytes)
    });
    let options = fake.options();
    let result = connect(&Options { uri: options.uri.clone().with_tls(), ..options });
    expect(result, Kind::Protocol, "TLS failed");
}

#[test]
fn dripping_handshakes_meet_their_deadline() {
    let fake = Fake::serve(|peer| {
        for byte in frame::MAGIC_SERVER.to_be_bytes() {
            peer.give(&[byte])?;
            std::thread::sleep(Duration::from_millis(60));
        }
        Ok(())
    });
    let start = Instant::now();
    let hasty = Options { handshake_timeout: Duration::from_millis(200), ..fake.options() };
    expect(connect(&hasty), Kind::Deadline, "server sent too little");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn export_name_where_go_is_not_known() {
    let fake = Fake::serve(|peer| {
        peer.until(option::EXPORT_NAME, false)?;
        peer.give(&[&SIZE.to_be_bytes()[..], &3u16.to_be_bytes()].concat())?;
        let request = peer.request()?;
        assert_eq!((request.command, request.offset, request.len), (Command::Read.code(), 512, 512));
        peer.simple(request.cookie, 0, &[5; 512])
    });
    let client = open(&fake.options());
    assert_eq!((client.size(), client.read_only(), client.block_sizes().minimum), (ByteLen(SIZE), true, 512));
    // Unaligned for a server that said nothing about sizes.
    let mut buf = [0; 3];
    client.read_at(ByteOffset(600), &mut buf).unwrap();
    assert_eq!(buf, [5; 3]);
    handshake(Kind::NotFound, "no export of that name", |peer| {
        peer.until(option::EXPORT_NAME, false)?;
        peer.hang_up();
        Ok(())
    });
}

#[test]
fn durable_writes_use_fua_or_a_flush() {
    for (flags, expected) in [
        (frame::export_flags::SEND_FLUSH, vec![(Command::Write, 0), (Command::Flush, 0)]),
        (frame::export_flags::SEND_FUA, vec![(Command::Write, frame::command_flags::FUA)]),
    ] {
        let fake = Fake::serve(move |peer| {
            peer.until(option::GO, true)?;
            peer.export(SIZE, flags)?;
            peer.block_sizes(1, 4096, 1 << 20)?;
            peer.ack(option::GO)?;
            for (command, flags) in expected {
                let request = peer.request()?;
                assert_eq!((request.command, request.flags), (command.code(), flags));
                if command == Command::Write {
                    peer.take(request.len as usize)?;
                }
                peer.simple(request.cookie, 0, &[])?;
            }
            assert_eq!(peer.request()?.command, Command::Disconnect.code());
            Ok(())
        });
        open(&fake.options()).write_durable_at(ByteOffset(0), &[1; 512]).unwrap();
    }
}

/// A server that answers a read of 4096 bytes at 8192 by `script`: it must be caught, and the connection be dead.
#[track_caller]
fn read(words: &str, script: impl FnOnce(&mut Peer, u64) -> io::Result<()> + Send + 'static) {
    read_from(true, words, script);
}

#[track_caller]
fn read_from(structured: bool, words: &str, script: impl FnOnce(&mut Peer, u64) -> io::Result<()> + Send + 'static) {
    let fake = Fake::requests(structured, |peer| {
        let request = peer.request()?;
        script(peer, request.cookie)
    });
    let client = open(&fake.options());
    let start = Instant::now();
    let error = client.read_at(ByteOffset(8192), &mut [0; 4096]).expect_err(words);
    assert!(
        error.kind == Kind::Protocol && chain(&error).contains(words),
        "{words:?}: {:?} {}",
        error.kind,
        chain(&error)
    );
    assert_eq!(error.at, Some(ByteOffset(8192)));
    assert!(start.elapsed() < Duration::from_secs(4), "found out by waiting");
    expect(client.read_at(ByteOffset(0), &mut [0; 1]), Kind::Protocol, words);
}

#[test]
fn read_replies() {
    read("no reply magic", |peer, _| peer.give(&[0; 20]));
    read("never made", |peer, cookie| peer.chunk(cookie + 640, DONE, chunk::NONE, &[]));
    read("never made", |peer, _| peer.simple(u64::MAX, 5, &[]));
    read("simple reply to a read", |peer, cookie| peer.simple(cookie, 0, &[0; 4096]));
    read_from(false, "none were agreed", |peer, cookie| peer.chunk(cookie, DONE, chunk::NONE, &[]));
    read("4096 of 4096 bytes never came", |peer, cookie| peer.chunk(cookie, DONE, chunk::NONE, &[]));
    read("the first at 8192", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(8193, &[1; 4095])));
    read("outside the request", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(8191, &[1; 4096])));
    read("outside the request", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(8193, &[1; 4096])));
    read("outside the request", |peer, cookie| {
        peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(u64::MAX, &[1; 4096]))
    });
    read("outside the request", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_HOLE, &hole(8192, u32::MAX)));
    read("overlaps", |peer, cookie| {
        peer.chunk(cookie, 0, chunk::OFFSET_DATA, &data(8192, &[1; 4000]))?;
        peer.chunk(cookie, DONE, chunk::OFFSET_HOLE, &hole(12_000, 288))
    });
    read("data chunk of 4097 bytes", |peer, cookie| {
        peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(8192, &[1; 4097]))
    });
    read("data chunk of 4294967287 bytes", |peer, cookie| {
        let header = frame::ReplyHeader::Chunk { flags: DONE, kind: chunk::OFFSET_DATA, cookie, len: u32::MAX };
        peer.give(&header.encode())
    });
    read("no data", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(8192, &[])));
    read("no data", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &[0; 3]));
    read("hole of no bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_HOLE, &hole(8192, 0)));
    read("hole chunk of 11 bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_HOLE, &[0; 11]));
    read("empty chunk with 1 bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::NONE, &[0]));
    read("not the last", |peer, cookie| peer.chunk(cookie, 0, chunk::NONE, &[]));
    read("chunk of type 3", |peer, cookie| peer.chunk(cookie, DONE, 3, &[]));
    read("chunk of type 5 in the reply to a request to read", |peer, cookie| {
        peer.chunk(cookie, DONE, chunk::BLOCK_STATUS, &status(BASE, &[(4096, 0)]))
    });
    read("has over 72 chunks", |peer, cookie| {
        for at in (8192..12_288).step_by(2) {
            peer.chunk(cookie, 0, chunk::OFFSET_DATA, &data(at, &[1]))?;
        }
        Ok(())
    });
}

#[test]
fn error_replies() {
    read("says success", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR, &error(0, b"")));
    read("error chunk of 5 bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR, &[0; 5]));
    read("error chunk of 9000 bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR, &[0; 9000]));
    read("claims 9 bytes where 1 are left", |peer, cookie| {
        peer.chunk(cookie, DONE, chunk::ERROR, &[0, 0, 0, 5, 0, 9, b'x'])
    });
    read("holds a NUL", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR, &error(5, b"a\0b")));
    read("string of 4097 bytes", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR, &error(5, &[b'x'; 4097])));
    read("error at 12288, outside the request", |peer, cookie| {
        peer.chunk(cookie, DONE, chunk::ERROR_OFFSET, &[&error(5, b"")[..], &12_288u64.to_be_bytes()].concat())
    });
    read("message ends", |peer, cookie| peer.chunk(cookie, DONE, chunk::ERROR_OFFSET, &error(5, b"")));
    read("has over 72 chunks", |peer, cookie| {
        loop {
            peer.chunk(cookie, 0, chunk::ERROR, &error(5, b""))?;
        }
    });
}

#[test]
fn errors_that_are_well_said_leave_the_connection_alive() {
    let fake = Fake::requests(true, |peer| {
        let cookie = peer.request()?.cookie;
        let bad = [&error(5, "scratched \u{fc}".as_bytes())[..], &9000u64.to_be_bytes()].concat();
        peer.chunk(cookie, 0, chunk::ERROR_OFFSET, &bad)?;
        // Padding of a chunk that was promised, then another error, then the end.
        peer.chunk(cookie, 0, chunk::OFFSET_DATA, &data(8192, &[0; 4096]))?;
        peer.chunk(cookie, 0, chunk::ERROR, &error(22, b"later"))?;
        peer.chunk(cookie, DONE, chunk::NONE, &[])?;
        let cookie = peer.request()?.cookie;
        // An error of a kind that is yet to be invented.
        peer.chunk(cookie, DONE, chunk::ERROR_BIT + 77, &[&error(28, b"full")[..], b"future"].concat())?;
        let cookie = peer.request()?.cookie;
        peer.chunk(cookie, DONE, chunk::OFFSET_HOLE, &hole(0, 512))?;
        let cookie = peer.request()?.cookie;
        peer.chunk(cookie, DONE, chunk::ERROR, &error(frame::errno::ESHUTDOWN, b""))
    });
    let client = open(&fake.options());
    let error = client.read_at(ByteOffset(8192), &mut [0; 4096]).unwrap_err();
    assert_eq!((error.kind, error.at), (Kind::Io, Some(ByteOffset(9000))));
    assert!(chain(&error).contains("scratched \u{fc}"), "{}", chain(&error));
    expect(client.read_at(ByteOffset(0), &mut [0; 512]), Kind::NoSpace, "full");
    let mut buf = [1; 512];
    client.read_at(ByteOffset(0), &mut buf).unwrap();
    assert_eq!(buf, [0; 512]);
    // Going down: this request has its own error, and no other may follow.
    expect(client.read_at(ByteOffset(0), &mut buf), Kind::Unavailable, "ESHUTDOWN");
    expect(client.read_at(ByteOffset(0), &mut buf), Kind::Unavailable, "shutting down");
}

#[test]
fn replies_of_several_requests_come_in_any_order() {
    let fake = Fake::requests(true, |peer| {
        let requests: Vec<_> = (0..4).map(|_| peer.request()).collect::<io::Result<_>>()?;
        // Backwards by request, and within each the tail first, with a hole; all interleaved.
        for round in 0..3u64 {
            for request in requests.iter().rev() {
                let at = request.offset;
                match round {
                    0 => peer.chunk(request.cookie, 0, chunk::OFFSET_DATA, &data(at + 6000, &[at as u8 + 1; 2192]))?,
                    1 => peer.chunk(request.cookie, 0, chunk::OFFSET_HOLE, &hole(at, 2000))?,
                    _ => peer.chunk(request.cookie, 0, chunk::OFFSET_DATA, &data(at + 2000, &[at as u8 + 2; 4000]))?,
                }
            }
        }
        for request in &requests {
            peer.chunk(request.cookie, DONE, chunk::NONE, &[])?;
        }
        Ok(())
    });
    let client = open(&fake.options());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                let at = thread * 8192 + thread;
                let mut buf = vec![9; 8192];
                client.read_at(ByteOffset(at), &mut buf).unwrap();
                let expected = [vec![0; 2000], vec![at as u8 + 2; 4000], vec![at as u8 + 1; 2192]].concat();
                assert!(buf == expected, "thread {thread}");
            });
        }
    });
}

#[test]
fn a_reply_to_a_request_that_has_ended() {
    let fake = Fake::requests(true, |peer| {
        let first = peer.request()?;
        peer.chunk(first.cookie, DONE, chunk::OFFSET_HOLE, &hole(0, 512))?;
        peer.request()?;
        peer.chunk(first.cookie, DONE, chunk::OFFSET_HOLE, &hole(0, 512))
    });
    let client = open(&fake.options());
    let mut buf = [1; 512];
    client.read_at(ByteOffset(0), &mut buf).unwrap();
    expect(client.read_at(ByteOffset(0), &mut buf), Kind::Protocol, "has ended");
}

#[test]
fn one_bad_reply_ends_all_that_is_in_flight() {
    let fake = Fake::requests(true, |peer| {
        for _ in 0..8 {
            peer.request()?;
        }
        peer.give(b"nonsense")
    });
    let client = open(&fake.options());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| expect(client.read_at(ByteOffset(0), &mut [0; 512]), Kind::Protocol, "no reply magic"));
        }
    });
}

#[test]
fn broken_off_and_stalled_payloads() {
    let fake = Fake::requests(true, |peer| {
        let request = peer.request()?;
        let bytes = data(request.offset, &[1; 4096]);
        let header =
            frame::ReplyHeader::Chunk { flags: DONE, kind: chunk::OFFSET_DATA, cookie: request.cookie, len: 4104 };
        peer.give(&[&header.encode()[..], &bytes[..2000]].concat())?;
        peer.hang_up();
        Ok(())
    });
    expect(open(&fake.options()).read_at(ByteOffset(0), &mut [0; 4096]), Kind::Unavailable, "in mid reply");
    let stalled = |drip: bool| {
        Fake::requests(false, move |peer| {
            let request = peer.request()?;
            peer.simple(request.cookie, 0, &[1; 100])?;
            for _ in 0..if drip { 1000 } else { 0 } {
                peer.give(&[1])?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
    };
    for drip in [false, true] {
        let fake = stalled(drip);
        let client = open(&Options { request_timeout: Duration::from_millis(100), ..fake.options() });
        let start = Instant::now();
        expect(client.read_at(ByteOffset(0), &mut [0; 4096]), Kind::Deadline, "");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[test]
fn replies_to_writes() {
    let write = |script: fn(&mut Peer, u64) -> io::Result<()>| {
        let fake = Fake::requests(true, move |peer| {
            let request = peer.request()?;
            peer.take(request.len as usize)?;
            script(peer, request.cookie)
        });
        let client = open(&fake.options());
        client.write_at(ByteOffset(0), &[1; 512]).and_then(|()| {
            // An answer that brought more than was asked for is found by the next request.
            client.flush()
        })
    };
    expect(
        write(|peer, cookie| peer.chunk(cookie, DONE, chunk::OFFSET_DATA, &data(0, &[1; 512]))),
        Kind::Protocol,
        "chunk of type 1 in the reply to a request to write",
    );
    expect(write(|peer, cookie| peer.simple(cookie, 28, &[])), Kind::NoSpace, "ENOSPC");
    expect(write(|peer, cookie| peer.simple(cookie, 0, &[0; 512])), Kind::Protocol, "no reply magic");
    expect(
        write(|peer, cookie| {
            peer.chunk(cookie, 0, chunk::ERROR, &error(5, b""))?;
            peer.simple(cookie, 0, &[])
        }),
        Kind::Protocol,
        "simple reply in a structured one",
    );
}

/// A server that answers a block status request by these chunks: what the client makes of the first 64 KiB.
fn ask_status(chunks: Vec<Vec<u8>>, what: fn(&Client) -> Result<(), Error>) -> Result<(), Error> {
    let fake = Fake::requests(true, move |peer| {
        let cookie = peer.request()?.cookie;
        for chunk in chunks {
            peer.chunk(cookie, 0, chunk::BLOCK_STATUS, &chunk)?;
        }
        peer.chunk(cookie, DONE, chunk::NONE, &[])
    });
    what(&open(&fake.options()))
}

#[test]
fn block_status_replies() {
    let allocation = |chunks: Vec<Vec<u8>>| ask_status(chunks, |client| client.allocation(extent(0, 65_536)).map(drop));
    let covering = |context| status(context, &[(65_536, 0)]);
    expect(allocation(vec![]), Kind::Protocol, "without a status");
    expect(allocation(vec![status(BASE, &[])]), Kind::Protocol, "block status chunk of 4 bytes");
    expect(allocation(vec![vec![0; 15]]), Kind::Protocol, "block status chunk of 15 bytes");
    expect(allocation(vec![status(BASE, &[(0, 0)])]), Kind::Protocol, "extent of no bytes");
    expect(allocation(vec![status(BASE, &[(65_536, 0), (1, 0)])]), Kind::Protocol, "beyond the request");
    expect(allocation(vec![covering(BITMAP)]), Kind::Protocol, "nothing about \"base:allocation\"");
    expect(allocation(vec![covering(55)]), Kind::Protocol, "nothing about");
    expect(allocation(vec![covering(BASE), covering(BASE)]), Kind::Protocol, "comes twice");
    let bitmap = |chunks: Vec<Vec<u8>>| {
        ask_status(chunks, |client| {
            let map = client.change_map("qemu:dirty-bitmap:b").unwrap();
            let set = map.changed(extent(100, 65_536 - 100))?;
            let expected: ExtentSet = [extent(100, 412)].into_iter().collect();
            assert_eq!(set, expected);
            Ok(())
        })
    };
    expect(bitmap(vec![covering(BASE)]), Kind::Protocol, "nothing about \"qemu:dirty-bitmap:b\"");
    // The last extent may reach beyond what was asked.
    bitmap(vec![covering(BASE), status(BITMAP, &[(412, 1), (u32::MAX, 0)])]).unwrap();
}

#[test]
fn a_status_that_comes_piecemeal_is_asked_for_again() {
    let fake = Fake::requests(true, |peer| {
        for round in 0..4 {
            let request = peer.request()?;
            assert_eq!(request.offset, round * 16_384);
            peer.chunk(request.cookie, DONE, chunk::BLOCK_STATUS, &status(BASE, &[(8192, 3), (8192, 1)]))?;
        }
        let cookie = peer.request()?.cookie;
        peer.chunk(cookie, DONE, chunk::ERROR, &error(5, b"no map today"))
    });
    let client = open(&fake.options());
    let map = client.allocation(extent(0, 65_536)).unwrap();
    assert_eq!(map.len(), 8);
    for (mapped, at) in map.iter().zip((0..).step_by(8192)) {
        // Only the zero flag promises zeros: a hole alone may read as anything.
        let content = if at % 16_384 == 0 { Content::Zero } else { Content::Data };
        assert_eq!((mapped.extent, mapped.content), (extent(at, 8192), content));
    }
    expect(client.allocation(extent(0, 1)), Kind::Io, "no map today");
}

/// A server that does one thing at a time and takes no request before its reply is gone.
fn serve_in_memory(peer: &mut Peer) -> io::Result<()> {
    let mut disk = vec![0; SIZE as usize];
    loop {
        let request = peer.request()?;
        let (start, end) = (request.offset as usize, request.offset as usize + request.len as usize);
        match Command::from_code(request.command) {
            Some(Command::Read) => {
                peer.chunk(request.cookie, DONE, chunk::OFFSET_DATA, &data(request.offset, &disk[start..end]))?;
            }
            Some(Command::Write) => {
                let bytes = peer.take(request.len as usize)?;
                disk[start..end].copy_from_slice(&bytes);
                peer.chunk(request.cookie, DONE, chunk::NONE, &[])?;
            }
            _ => return Ok(()),
        }
    }
}

/// Reads and writes larger than any socket buffer: a client that sends while somebody waits for it to receive hangs here.
#[test]
fn a_server_that_does_one_thing_at_a_time_does_not_lock_us_up() {
    let fake = Fake::requests(true, serve_in_memory);
    let client = open(&fake.options());
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let client = client.clone();
            scope.spawn(move || {
                let part = SIZE / 8;
                let at = ByteOffset(thread * part);
                for round in 0..20 {
                    let bytes = noise(part as usize, thread * 1000 + round);
                    client.write_at(at, &bytes).unwrap();
                    let mut whole = vec![0; SIZE as usize];
                    client.read_at(ByteOffset(0), &mut whole).unwrap();
                    assert!(whole[at.0 as usize..][..part as usize] == bytes, "thread {thread} round {round}");
                }
            });
        }
    });
}
