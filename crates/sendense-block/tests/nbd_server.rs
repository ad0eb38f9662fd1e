//! The NBD server, asked by our own client and by other people's.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::house::House;
use nbd_support::{eventually, noise, open, read_all, run};
use sendense_block::backend::Memory;
use sendense_block::nbd::server::{Device, ExportOptions, Exports, Listen, Options, Server};
use sendense_block::nbd::{self, Client, ZeroMode};
use sendense_block::{
    AllocationMap, ByteLen, ByteOffset, Cancel, Content, Extent, Flush, Kind, ReadAt, WriteAt, ZeroRange,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Noise with two holes, of a size that is no multiple of 512.
fn holey(len: usize) -> Vec<u8> {
    let mut bytes = noise(len, 3);
    bytes[2 * MIB..4 * MIB].fill(0);
    bytes[5 * MIB + 65_536..5 * MIB + 131_072].fill(0);
    bytes
}

#[test]
fn our_client_reads_what_is_on_offer() {
    let house = House::new(|_| {});
    let bytes = holey(8 * MIB + 77);
    let options = ExportOptions { description: "a disk".into(), ..ExportOptions::default() };
    let device = Device::read_only(Memory::from_bytes(bytes.clone()));
    let guard = house.exports.add("disk-Zx81", device, options).unwrap();
    let client = open(&nbd::Options { connections: 4, ..house.options("disk-Zx81") });
    assert_eq!((client.size().0, client.connections()), (bytes.len() as u64, 4));
    assert_eq!((client.description(), client.read_only()), (Some("a disk"), true));
    assert!(read_all(&client) == bytes);
    let map = client.allocation(Extent::whole(client.size())).unwrap();
    let zeros: Vec<_> = map.iter().filter(|part| part.content == Content::Zero).map(|part| part.extent).collect();
    let extent = |at: usize, len: usize| nbd_support::extent(at as u64, len as u64);
    assert_eq!(zeros, [extent(2 * MIB, 2 * MIB), extent(5 * MIB + 65_536, 65_536)]);
    assert_eq!(guard.status().clients, 4);
    drop(client);
    eventually("the clients to be gone", || (guard.status().clients == 0).then_some(()));
    assert!(guard.status().bytes_read >= bytes.len() as u64);
}

#[test]
fn strangers_see_nothing_and_names_are_exact() {
    let house = House::new(|_| {});
    let device = || Device::read_only(Memory::zeroed(ByteLen(100)));
    let _guard = house.exports.add("secret", device(), ExportOptions::default()).unwrap();
    assert_eq!(nbd::list(&house.options(""), &Cancel::new()).unwrap(), []);
    for name in ["", "secre", "secret2", "SECRET", &"x".repeat(4000)] {
        let error = Client::connect(&house.options(name), &Cancel::new()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{name}");
    }
    let talkative = House::new(|options| options.list_names = true);
    let _guard = talkative.exports.add("open", device(), ExportOptions::default()).unwrap();
    let listed = nbd::list(&talkative.options(""), &Cancel::new()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].size), ("open", Some(ByteLen(100))));
    assert_eq!(listed[0].contexts, ["base:allocation"]);
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_server() {
    let house = House::new(|_| {});
    let path = house.path("nbd.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Server::start(Options::new(Listen::Unix(path.clone())), Exports::new());
    assert_eq!(second.map(|_| ()).unwrap_err().kind, Kind::Exists);
    house.server.shutdown();
    assert!(!path.exists());
    // What a dead server left behind is replaced; what is no socket is not touched.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Server::start(Options::new(Listen::Unix(path.clone())), Exports::new()).unwrap());
    std::fs::write(&path, "mine").unwrap();
    let over = Server::start(Options::new(Listen::Unix(path.clone())), Exports::new());
    assert_eq!(over.map(|_| ()).unwrap_err().kind, Kind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn beyond_this_machine_only_with_certificates() {
    let options = Options::new(Listen::Tcp("0.0.0.0:0".parse().unwrap()));
    assert_eq!(Server::start(options, Exports::new()).map(|_| ()).unwrap_err().kind, Kind::Denied);
}

#[test]
fn an_export_that_is_removed_cuts_its_clients_off() {
    let house = House::new(|_| {});
    let memory = Arc::new(Memory::zeroed(ByteLen(MIB as u64)));
    let guard = house.exports.add("a", Device::ReadOnly(memory.clone()), ExportOptions::default()).unwrap();
    let _other = house.exports.add("b", Device::ReadOnly(memory), ExportOptions::default()).unwrap();
    let (gone, stays) = (open(&house.options("a")), open(&house.options("b")));
    guard.close(Duration::from_secs(30)).unwrap();
    assert!(gone.read_at(ByteOffset(0), &mut [0; 512]).is_err());
    stays.read_at(ByteOffset(0), &mut [0; 512]).unwrap();
    assert_eq!(Client::connect(&house.options("a"), &Cancel::new()).map(|_| ()).unwrap_err().kind, Kind::NotFound);
    house.server.shutdown();
    assert!(stays.read_at(ByteOffset(0), &mut [0; 512]).is_err());
}

#[test]
fn random_work_through_the_server_is_the_same_on_plain_bytes() {
    let house = House::new(|_| {});
    let size = 3 * MIB + 777;
    let memory = Arc::new(Memory::zeroed(ByteLen(size as u64)));
    let _guard = house.exports.add("w", Device::Writable(memory.clone()), ExportOptions::default()).unwrap();
    let client = open(&nbd::Options { connections: 3, ..house.options("w") });
    let mut model = vec![0; size];
    for round in 0..400u64 {
        let dice = noise(32, 1000 + round);
        let number = |at: usize| u64::from_le_bytes(dice[at..at + 8].try_into().unwrap()) as usize;
        let at = number(0) % size;
        let len = (number(8) % [100, 5_000, 700_000][number(16) % 3]).min(size - at).max(1);
        let (place, range) = (at..at + len, nbd_support::extent(at as u64, len as u64));
        match number(24) % 8 {
            0 => {
                client.zero_range(range).unwrap();
                model[place].fill(0);
            }
            1 => {
                client.write_zeroes(range, ZeroMode::Allocated).unwrap();
                model[place].fill(0);
            }
            2 => {
                client.trim(range).unwrap();
                model[place].fill(0);
            }
            3 | 4 => {
                let data = noise(len, round);
                if round % 2 == 0 {
                    client.write_at(range.start(), &data).unwrap();
                } else {
                    client.write_durable_at(range.start(), &data).unwrap();
                }
                model[place].copy_from_slice(&data);
            }
            5 => {
                let mut end = range.start();
                for part in client.allocation(range).unwrap() {
                    assert_eq!(part.extent.start(), end);
                    end = part.extent.end();
                    let held = &model[part.extent.start().0 as usize..end.0 as usize];
                    assert!(part.content == Content::Data || held.iter().all(|byte| *byte == 0), "{part:?}");
                }
                assert_eq!(end, range.end());
            }
            _ => {
                let mut buf = vec![1; len];
                client.read_at(range.start(), &mut buf).unwrap();
                assert!(buf == model[place], "round {round}: {range}");
            }
        }
    }
    client.flush().unwrap();
    assert!(read_all(&client) == model && memory.to_bytes() == model);
}

#[test]
fn the_tools_of_libnbd_and_qemu_read_it() {
    let house = House::new(|_| {});
    let bytes = holey(8 * MIB + 77);
    let device = Device::read_only(Memory::from_bytes(bytes.clone()));
    let _guard = house.exports.add("disk", device, ExportOptions::default()).unwrap();
    let uri = house.uri("disk");
    let map = String::from_utf8(run("nbdinfo", &["--map", "--json", &uri]).stdout).unwrap();
    assert!(map.contains("\"offset\": 2097152") && map.contains("hole"), "{map}");
    let info = String::from_utf8(run("nbdinfo", &[&uri]).stdout).unwrap();
    assert!(info.contains("is_read_only: true") && info.contains("can_multi_conn: true"), "{info}");
    for connections in ["1", "4"] {
        let out = house.path(&format!("copy{connections}"));
        std::fs::write(&out, "").unwrap();
        let connections = format!("--connections={connections}");
        run("nbdcopy", &[&connections, &uri, out.to_str().unwrap()]);
        assert!(std::fs::read(&out).unwrap() == bytes);
    }
    let raw = house.path("raw");
    std::fs::write(&raw, &bytes).unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, raw.to_str().unwrap()]);
    let converted = house.path("converted.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, converted.to_str().unwrap()]);
    run("qemu-img", &["compare", "-F", "raw", converted.to_str().unwrap(), raw.to_str().unwrap()]);
}

/// A writable export of 16 MiB.
fn writable(house: &House) -> (Arc<Memory>, sendense_block::nbd::server::ExportGuard) {
    let memory = Arc::new(Memory::zeroed(ByteLen(16 * MIB as u64)));
    let guard = house.exports.add("w", Device::Writable(memory.clone()), ExportOptions::default()).unwrap();
    (memory, guard)
}

#[test]
fn fio_writes_at_random_and_finds_what_it_wrote() {
    let house = House::new(|_| {});
    let (_memory, guard) = writable(&house);
    let uri = format!("--uri={}", house.uri("w"));
    let jobs = ["--name=job", "--ioengine=nbd", &uri, "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=0"];
    let verify = ["--iodepth=32", "--size=16m", "--verify=crc32c", "--verify_state_save=0", "--randseed=7", "--thread"];
    run("fio", &[&jobs[..], &verify].concat());
    assert!(guard.status().bytes_written >= 16 * MIB as u64);
}

#[test]
fn nbdcopy_and_qemu_img_write_to_it() {
    let house = House::new(|_| {});
    let (memory, _guard) = writable(&house);
    let bytes = holey(16 * MIB);
    let raw = house.path("raw");
    std::fs::write(&raw, &bytes).unwrap();
    run("nbdcopy", &["--connections=4", "--flush", raw.to_str().unwrap(), &house.uri("w")]);
    assert!(memory.to_bytes() == bytes);
    let other = noise(16 * MIB, 9);
    std::fs::write(&raw, &other).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", raw.to_str().unwrap(), &house.uri("w")]);
    assert!(memory.to_bytes() == other);
}

#[test]
fn nbdkit_in_between_changes_nothing() {
    let house = House::new(|_| {});
    let bytes = holey(8 * MIB);
    let device = Device::read_only(Memory::from_bytes(bytes.clone()));
    let _guard = house.exports.add("disk", device, ExportOptions::default()).unwrap();
    let socket = format!("socket={}", house.path("nbd.sock").display());
    let proxy = nbd_support::Server::nbdkit(&["-r", "nbd", &socket, "export=disk"]);
    assert!(read_all(&proxy.connect()) == bytes);
}

#[test]
fn nbd_client_lists_and_nbdsh_uses_every_flag() {
    let house = House::new(|options| {
        options.listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
        options.list_names = true;
    });
    let (memory, _guard) = writable(&house);
    let nbd::Address::Tcp { port, .. } = house.server.address() else { panic!("it listens on TCP") };
    let port = port.to_string();
    let listed = String::from_utf8(run("nbd-client", &["-l", "127.0.0.1", "-p", &port]).stdout).unwrap();
    assert!(listed.lines().any(|line| line.trim() == "w"), "{listed}");
    let script = r#"
h.add_meta_context("base:allocation")
h.set_export_name("w")
h.connect_tcp("127.0.0.1", "PORT")
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_cache() and h.can_fua() and h.can_trim()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
h.pwrite(b"sendense" * 1024, 3, nbd.CMD_FLAG_FUA)
h.zero(100, 50, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 1 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
assert h.pread_structured(8, 3, lambda *chunk: 0, nbd.CMD_FLAG_DF) == b"sendense"
found = []
h.block_status(16 << 20, 0, lambda context, at, entries, error: found.extend(entries))
assert found == [65536, 0, (16 << 20) - 65536, 3], found
found = []
h.block_status(16 << 20, 0, lambda context, at, entries, error: found.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert found == [65536, 0], found
h.shutdown()
"#;
    run("nbdsh", &["-c", &script.replace("PORT", &port)]);
    let bytes = memory.to_bytes();
    let mut model = [&[0; 3][..], &b"sendense".repeat(1024)].concat();
    model[50..150].fill(0);
    assert!(bytes[..model.len()] == model && bytes[model.len()..].iter().all(|byte| *byte == 0));
}
