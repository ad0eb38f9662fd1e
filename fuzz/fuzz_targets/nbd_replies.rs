//! Replies of an NBD server, as a connection would decode them, and the other parsers of that protocol.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::nbd::Uri;
use sendense_block::nbd::frame::{Command, Cursor, OptionReply, Request};
use sendense_block::nbd::reply::{Asked, replay};
use sendense_fuzz::nbd::{replies, seeds};

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| {
    let asked = [
        Asked { command: Command::Read, offset: 4096, len: 1024 },
        Asked { command: Command::BlockStatus, offset: 0, len: 65536 },
        Asked { command: Command::Write, offset: 0, len: 512 },
    ];
    for stream in [bytes, &replies(bytes)] {
        for structured in [false, true] {
            let Ok(answers) = replay(&asked, structured, stream) else { continue };
            for (cookie, answer) in answers {
                let asked = &asked[cookie as usize];
                for descriptors in answer.status.values() {
                    let told: u64 = descriptors.iter().map(|descriptor| u64::from(descriptor.len)).sum();
                    assert!(told <= u64::from(asked.len), "more is told than was asked");
                }
                if asked.command == Command::Read {
                    assert_eq!(answer.data.len(), asked.len as usize);
                }
            }
        }
    }
    if let Some(bytes) = bytes.first_chunk()
        && let Ok(request) = Request::decode(bytes)
    {
        assert_eq!(request.encode(), *bytes);
    }
    if let Some(bytes) = bytes.first_chunk()
        && let Ok(reply) = OptionReply::decode(bytes)
    {
        assert_eq!(reply.encode(), *bytes);
    }
    let mut cursor = Cursor::new(bytes);
    let _ = cursor.u16().and_then(|len| cursor.string(len.into()));
    if let Ok(uri) = String::from_utf8_lossy(bytes).parse::<Uri>() {
        assert_eq!(uri.to_string().parse::<Uri>().expect("a URI that was read can be written"), uri);
    }
});
