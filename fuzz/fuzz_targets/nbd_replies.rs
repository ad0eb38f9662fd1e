//! Replies of an NBD server, as a connection would decode them.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::nbd::frame::{Command, OptionReply, ReplyHeader, Request};
use sendense_block::nbd::reply::{Asked, replay};

fuzz_target!(|bytes: &[u8]| {
    let asked = [
        Asked { command: Command::Read, offset: 4096, len: 1024 },
        Asked { command: Command::BlockStatus, offset: 0, len: 65536 },
        Asked { command: Command::Write, offset: 0, len: 512 },
    ];
    for structured in [false, true] {
        let _ = replay(&asked, structured, bytes);
    }
    let _ = (Request::decode(bytes), ReplyHeader::decode(bytes), OptionReply::decode(bytes));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<sendense_block::nbd::Uri>();
    }
});
