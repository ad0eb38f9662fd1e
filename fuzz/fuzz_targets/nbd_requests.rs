//! What a client sends to the NBD server, from the greeting on: the first byte says how far the handshake is played right.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::ByteLen;
use sendense_block::backend::Memory;
use sendense_block::nbd::frame::{encode_option, option};
use sendense_block::nbd::server::{Device, ExportOptions, Exports, Listen, Options, converse};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn name(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((depth, rest)) = bytes.split_first() else { return };
    let mut input = vec![0, 0, 0, 3];
    if depth & 1 != 0 {
        input.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        let query = [name(b"x"), vec![0, 0, 0, 1], name(b"base:allocation")].concat();
        input.extend(encode_option(option::SET_META_CONTEXT, &query));
    }
    if depth & 2 != 0 {
        input.extend(encode_option(option::GO, &[name(b"x"), vec![0, 0]].concat()));
    }
    input.extend(rest);
    let exports = Exports::new();
    let device = Device::writable(Memory::zeroed(ByteLen(100_000)));
    let _guard = exports.add("x", device, ExportOptions::default()).expect("the name is free");
    let (mut ours, theirs) = UnixStream::pair().expect("sockets are to be had");
    let options = Options { workers_per_client: 2, ..Options::new(Listen::Unix("/unused".into())) };
    std::thread::scope(|scope| {
        let mut sending = ours.try_clone().expect("descriptors are to be had");
        scope.spawn(move || {
            // The server may hang up first.
            let _ = sending.write_all(&input);
            let _ = sending.shutdown(Shutdown::Write);
        });
        scope.spawn(|| {
            let _ = converse(theirs, options, &exports);
        });
        let _ = std::io::copy(&mut ours, &mut std::io::sink());
    });
});
