//! Reply streams that get past the first header.

use sendense_block::nbd::frame::{ReplyHeader, chunk};

/// Requests that the target has in flight.
pub const REQUESTS: u64 = 3;

/// The input as a stream of replies: of each, four bytes tell kind, flags, cookie and length, then its payload. Lengths and
/// cookies are such as a server might send, right and wrong; offsets within payloads are near the requests' own.
pub fn replies(mut bytes: &[u8]) -> Vec<u8> {
    const KINDS: [u16; 7] = [
        chunk::NONE,
        chunk::OFFSET_DATA,
        chunk::OFFSET_HOLE,
        chunk::BLOCK_STATUS,
        chunk::ERROR,
        chunk::ERROR_OFFSET,
        chunk::ERROR_BIT | 77,
    ];
    let mut out = Vec::new();
    while let Some(([how, who, long, longer], rest)) = bytes.split_first_chunk::<4>() {
        bytes = rest;
        let cookie = u64::from(who % 16).min(REQUESTS);
        if how & 0x80 != 0 {
            let error = if how & 1 == 0 { 0 } else { u32::from(*long) };
            out.extend(ReplyHeader::Simple { error, cookie }.encode());
        } else {
            let kind = KINDS[usize::from(how >> 1) % KINDS.len()];
            let shift = longer >> 4;
            let len = u32::from(*long) + (u32::from(longer & 15) << shift.min(16));
            out.extend(ReplyHeader::Chunk { flags: u16::from(how & 1), kind, cookie, len }.encode());
            // Six bytes zero: offsets of 16 bits, for those are where the requests lie.
            if matches!(kind, chunk::OFFSET_DATA | chunk::OFFSET_HOLE) && who & 0x80 == 0 {
                out.extend([0; 6]);
            }
            let taken = bytes.len().min(len as usize);
            out.extend(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
    }
    out
}

fn reply(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    [ReplyHeader::Chunk { flags, kind, cookie, len }.encode(), payload.to_vec()].concat()
}

/// Good answers to the target's requests (a read of 1024 bytes at 4096, the status of 64 KiB, a write), in both styles, and
/// inputs for [`replies`] and for the URI's parser.
pub fn seeds() -> Vec<Vec<u8>> {
    let at = 4096u64.to_be_bytes();
    let mut seeds = vec![
        [ReplyHeader::Simple { error: 0, cookie: 0 }.encode(), vec![7; 1024]].concat(),
        [ReplyHeader::Simple { error: 0, cookie: 2 }.encode(), ReplyHeader::Simple { error: 5, cookie: 0 }.encode()]
            .concat(),
        reply(1, chunk::OFFSET_DATA, 0, &[&at[..], &[7; 1024]].concat()),
        [
            reply(0, chunk::OFFSET_HOLE, 0, &[&at[..], &512u32.to_be_bytes()].concat()),
            reply(0, chunk::OFFSET_DATA, 0, &[&4608u64.to_be_bytes()[..], &[1; 512]].concat()),
            reply(1, chunk::NONE, 0, &[]),
        ]
        .concat(),
        reply(1, chunk::BLOCK_STATUS, 1, &[0, 0, 0, 1, 0, 0, 128, 0, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0]),
        reply(1, chunk::ERROR_OFFSET, 0, &[&[0, 0, 0, 5, 0, 2, b'n', b'o'][..], &at].concat()),
    ];
    seeds.push(vec![5, 0, 12, 0, 0x10, 0, 0, 0, 4, 0, 0, 0, 7, 1, 20, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 3]);
    seeds.push([&[3, 0, 8, 0x40 | 8][..], &[0x10, 0], &[9; 1024]].concat());
    for uri in [
        "nbd://backup.example:10810/disk%201",
        "nbds://[::1]/x?tls-certificates=/etc/pki",
        "nbd+unix:///export?socket=/run/nbd.sock",
    ] {
        seeds.push(uri.as_bytes().to_vec());
    }
    seeds
}
