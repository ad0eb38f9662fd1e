//! The decoders of NBD replies: right streams against a stupid model, arbitrary bytes against panics and hangs.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::fake::{self, Fake};
use nbd_support::{extent, noise};
use proptest::prelude::*;
use sendense_block::nbd::frame::{self, Command, OptionReply, ReplyHeader, Request, chunk};
use sendense_block::nbd::reply::{Asked, replay};
use sendense_block::nbd::{self, Client, Options};
use sendense_block::{AllocationMap, ByteOffset, Cancel, Kind, ReadAt, WriteAt};
use std::time::{Duration, Instant};

/// A read and how its server cuts the reply: lengths of the pieces, and which are holes.
#[derive(Debug, Clone)]
struct Cut {
    offset: u64,
    pieces: Vec<(u32, bool)>,
}

impl Cut {
    fn len(&self) -> u32 {
        self.pieces.iter().map(|(len, _)| len).sum()
    }

    /// Its bytes.
    fn model(&self) -> Vec<u8> {
        let bytes = |(at, (len, hole)): (usize, &(u32, bool))| match hole {
            true => vec![0; *len as usize],
            false => noise(*len as usize, self.offset + at as u64),
        };
        self.pieces.iter().enumerate().flat_map(bytes).collect()
    }

    /// Its chunks in order, as (type, payload).
    fn chunks(&self) -> Vec<(u16, Vec<u8>)> {
        let model = self.model();
        let mut at = 0;
        self.pieces
            .iter()
            .map(|(len, hole)| {
                let (start, offset) = (at as usize, self.offset + u64::from(at));
                at += len;
                match hole {
                    true => (chunk::OFFSET_HOLE, fake::hole(offset, *len)),
                    false => (chunk::OFFSET_DATA, fake::data(offset, &model[start..at as usize])),
                }
            })
            .collect()
    }
}

fn cut() -> impl Strategy<Value = Cut> {
    (0u64..1 << 62, prop::collection::vec((1u32..600, any::<bool>()), 1..8))
        .prop_map(|(offset, pieces)| Cut { offset, pieces })
}

/// The chunks of all requests, interleaved by `order`, each request's last one marked.
fn stream(cuts: &[Cut], order: &[u8]) -> Vec<u8> {
    let mut left: Vec<Vec<_>> = cuts.iter().map(Cut::chunks).collect();
    let mut bytes = Vec::new();
    for pick in order.iter().copied().chain(std::iter::repeat(0)) {
        let open: Vec<usize> = (0..left.len()).filter(|at| !left[*at].is_empty()).collect();
        if open.is_empty() {
            return bytes;
        }
        let request = open[usize::from(pick) % open.len()];
        let chunks = &mut left[request];
        let (kind, payload) = chunks.remove(usize::from(pick) / 7 % chunks.len());
        let flags = if chunks.is_empty() { chunk::FLAG_DONE } else { 0 };
        let len = payload.len() as u32;
        bytes.extend(ReplyHeader::Chunk { flags, kind, cookie: request as u64, len }.encode());
        bytes.extend(payload);
    }
    bytes
}

fn asked(cuts: &[Cut]) -> Vec<Asked> {
    cuts.iter().map(|cut| Asked { command: Command::Read, offset: cut.offset, len: cut.len() }).collect()
}

fn some_requests() -> Vec<Asked> {
    [Command::Read, Command::Write, Command::BlockStatus, Command::Flush]
        .into_iter()
        .map(|command| Asked { command, offset: 4096, len: 8192 })
        .collect()
}

/// Bytes that look like replies often enough to get past the first check.
fn nearly_replies() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![0u64..5, Just(4096), Just(8192), any::<u64>()];
    let chunk =
        (any::<bool>(), prop_oneof![0u16..7, 0x8000u16..0x8004], number.clone(), number, 0usize..64, any::<u64>());
    let message = chunk.prop_map(|(done, kind, cookie, at, len, seed)| {
        let mut payload = at.to_be_bytes().to_vec();
        payload.extend(noise(len, seed));
        let len = payload.len() as u32;
        let flags = u16::from(done);
        [ReplyHeader::Chunk { flags, kind, cookie, len }.encode(), payload].concat()
    });
    let simple = (0u64..5, 0u32..40).prop_map(|(cookie, error)| ReplyHeader::Simple { error, cookie }.encode());
    let junk = prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec(prop_oneof![4 => message, 2 => simple, 1 => junk], 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_order_of_chunks_gives_the_same_bytes(
        cuts in prop::collection::vec(cut(), 1..5),
        order in prop::collection::vec(any::<u8>(), 0..40),
        end in any::<prop::sample::Index>(),
    ) {
        let bytes = stream(&cuts, &order);
        let answers = replay(&asked(&cuts), true, &bytes).unwrap();
        prop_assert_eq!(answers.len(), cuts.len());
        for (cut, answer) in cuts.iter().zip(answers.values()) {
            prop_assert_eq!(&answer.data, &cut.model());
            prop_assert_eq!(&answer.failure, &None);
        }
        // Cut off anywhere: what has ended is right, the rest is missing, nothing is wrong.
        for (cookie, answer) in replay(&asked(&cuts), true, &bytes[..end.index(bytes.len())]).unwrap() {
            prop_assert_eq!(&answer.data, &cuts[cookie as usize].model());
        }
    }

    #[test]
    fn a_chunk_that_is_left_out_or_comes_twice_is_noticed(
        cut in cut(),
        which in any::<prop::sample::Index>(),
        twice in any::<bool>(),
    ) {
        let mut chunks = cut.chunks();
        let at = which.index(chunks.len());
        let victim = chunks.remove(at);
        if twice {
            chunks.extend([victim.clone(), victim]);
        }
        let mut bytes = Vec::new();
        for (kind, payload) in chunks {
            bytes.extend(ReplyHeader::Chunk { flags: 0, kind, cookie: 0, len: payload.len() as u32 }.encode());
            bytes.extend(payload);
        }
        bytes.extend(ReplyHeader::Chunk { flags: 1, kind: chunk::NONE, cookie: 0, len: 0 }.encode());
        prop_assert_eq!(replay(&asked(&[cut]), true, &bytes).unwrap_err().kind, Kind::Protocol);
    }

    #[test]
    fn arbitrary_replies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), structured in any::<bool>()) {
        let _ = replay(&some_requests(), structured, &bytes);
    }

    #[test]
    fn replies_that_are_nearly_right_never_panic(bytes in nearly_replies(), structured in any::<bool>()) {
        if let Ok(answers) = replay(&some_requests(), structured, &bytes) {
            for (cookie, answer) in answers {
                prop_assert_eq!(answer.data.len(), if cookie == 0 { 8192 } else { 0 });
                for descriptors in answer.status.values() {
                    prop_assert!(descriptors.iter().map(|d| u64::from(d.len)).sum::<u64>() <= 8192);
                    prop_assert!(descriptors.iter().all(|d| d.len > 0));
                }
            }
        }
    }

    #[test]
    fn flipped_bits_never_panic(cuts in prop::collection::vec(cut(), 1..4), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut bytes = stream(&cuts, &[]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let _ = replay(&asked(&cuts), true, &bytes);
    }

    #[test]
    fn messages_survive_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, len: u32, option: u32, kind: u16) {
        let request = Request { flags, command, cookie, offset, len };
        prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        let reply = OptionReply { option, kind: u32::from(kind), len };
        prop_assert_eq!(OptionReply::decode(&reply.encode()).unwrap(), reply);
        for header in [ReplyHeader::Simple { error: len, cookie }, ReplyHeader::Chunk { flags, kind, cookie, len }] {
            let bytes = header.encode();
            prop_assert_eq!(ReplyHeader::decode(&bytes).unwrap(), Some((header, bytes.len())));
            for short in 0..bytes.len() {
                prop_assert_eq!(ReplyHeader::decode(&bytes[..short]).unwrap(), None);
            }
        }
    }
}

fn hasty(fake: &Fake) -> Options {
    let timeout = Duration::from_millis(500);
    Options { handshake_timeout: timeout, request_timeout: timeout, ..fake.options() }
}

proptest! {
    // Each case is a thread, a socket and a handshake.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_server_replies_the_client_comes_back(bytes in nearly_replies(), structured in any::<bool>()) {
        let fake = Fake::requests(structured, move |peer| {
            peer.request()?;
            peer.give(&bytes)?;
            peer.hang_up();
            Ok(())
        });
        let start = Instant::now();
        let client = Client::connect(&hasty(&fake), &Cancel::new()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| client.read_at(ByteOffset(4096), &mut [0; 8192]));
            scope.spawn(|| client.write_at(ByteOffset(4096), &[0; 8192]));
            scope.spawn(|| client.allocation(extent(4096, 8192)));
        });
        prop_assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }

    #[test]
    fn whatever_a_server_greets_with_the_client_comes_back(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        replies in prop::collection::vec((any::<bool>(), 0u32..12, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let fake = Fake::serve(move |peer| {
            peer.greet()?;
            for (wrong, kind, payload) in replies {
                let (option, _) = peer.option()?;
                let kind = if kind > 5 { frame::option_reply::ERROR_BIT + kind - 5 } else { kind };
                peer.reply(if wrong { kind } else { option }, kind, &payload)?;
            }
            peer.give(&bytes)?;
            peer.hang_up();
            Ok(())
        });
        let start = Instant::now();
        let _ = nbd::list(&hasty(&fake), &Cancel::new());
        prop_assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}
