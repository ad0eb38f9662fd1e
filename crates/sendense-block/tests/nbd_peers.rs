//! The NBD client against other people's servers: bytes, maps, sizes, exports.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::{Server, eventually, extent, noise, open, read_all, run};
use sendense_block::error::chain;
use sendense_block::nbd::{self, Client, Options, ZeroMode};
use sendense_block::{
    AllocationMap, ByteLen, ByteOffset, Cancel, ChangeMap, Content, Extent, ExtentSet, Flush, Kind, ReadAt, WriteAt,
    ZeroRange,
};
use std::path::Path;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn refused(options: &Options) -> sendense_block::Error {
    Client::connect(options, &Cancel::new()).map(|client| client.size()).expect_err("this must not open")
}

#[test]
fn reads_what_qemu_nbd_serves() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let bytes = noise(5 * MIB as usize, 1);
    std::fs::write(&image, &bytes).unwrap();
    let server = Server::qemu_nbd(&["-r", "-f", "raw", "-x", "disk", "-D", "a disk", "-e", "8"], &image);
    let client = open(&Options { connections: 4, ..Options::new(server.uri("disk")) });
    assert_eq!((client.size(), client.connections(), client.description()), (ByteLen(5 * MIB), 4, Some("a disk")));
    assert!(client.read_only());
    assert!(read_all(&client) == bytes);
    let mut odd = vec![0; 100_001];
    client.read_at(ByteOffset(65_537), &mut odd).unwrap();
    assert!(odd == bytes[65_537..65_537 + 100_001]);
    client.read_at(ByteOffset(5 * MIB), &mut []).unwrap();
    assert_eq!(client.read_at(ByteOffset(5 * MIB - 1), &mut [0; 2]).unwrap_err().kind, Kind::OutOfRange);
    assert_eq!(client.write_at(ByteOffset(0), &[1]).unwrap_err().kind, Kind::Denied);
    let error = refused(&Options::new(server.uri("other")));
    assert_eq!(error.kind, Kind::NotFound, "{}", chain(&error));
}

/// Random writes, zeros and trims through `client`, and the same on plain bytes.
fn scribble(client: &Client, bytes: &mut [u8], seed: u64) {
    let size = bytes.len() as u64;
    for round in 0..60u64 {
        let dice = noise(24, seed + round);
        let number = |at: usize| u64::from_le_bytes(dice[at..at + 8].try_into().unwrap());
        let at = number(0) % size;
        let len = (number(8) % (300 * KIB)).min(size - at).max(1);
        let (start, end) = (at as usize, (at + len) as usize);
        match number(16) % 5 {
            0 => {
                client.zero_range(extent(at, len)).unwrap();
                bytes[start..end].fill(0);
            }
            1 => {
                client.write_zeroes(extent(at, len), ZeroMode::Allocated).unwrap();
                bytes[start..end].fill(0);
            }
            2 => {
                let data = noise(len as usize, number(16));
                client.write_durable_at(ByteOffset(at), &data).unwrap();
                bytes[start..end].copy_from_slice(&data);
            }
            _ => {
                let data = noise(len as usize, number(16));
                client.write_at(ByteOffset(at), &data).unwrap();
                bytes[start..end].copy_from_slice(&data);
            }
        }
    }
}

#[test]
fn what_is_written_is_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, model) = (dir.path().join("disk.qcow2"), dir.path().join("model.raw"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "4M"]);
    let mut bytes = vec![0; 4 * MIB as usize];
    let server = Server::qemu_nbd(&["-f", "qcow2", "--discard=unmap"], &image);
    let client = open(&Options { request_bytes: 64 * 1024, ..server.options() });
    client.write_at(ByteOffset(0), &noise(MIB as usize, 9)).unwrap();
    client.trim(extent(0, MIB)).unwrap();
    client.zero_range(extent(0, MIB)).unwrap();
    scribble(&client, &mut bytes, 3);
    assert!(read_all(&client) == bytes);
    client.flush().unwrap();
    drop(client);
    drop(server);
    std::fs::write(&model, &bytes).unwrap();
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", image.to_str().unwrap(), model.to_str().unwrap()]);
}

#[test]
fn what_a_server_cannot_do_is_done_otherwise_or_named() {
    let server = Server::nbdkit(&["memory", "1T"]);
    let client = server.connect();
    client.write_at(ByteOffset(1 << 39), &noise(4096, 1)).unwrap();
    client.write_zeroes(Extent::whole(client.size()), ZeroMode::Fast).unwrap();
    let mut block = [1; 4096];
    client.read_at(ByteOffset(1 << 39), &mut block).unwrap();
    assert_eq!(block, [0; 4096]);

    // No WRITE_ZEROES: zeros are written.
    let server = Server::nbdkit(&["--filter=nozero", "memory", "4M"]);
    let client = server.connect();
    let mut bytes = vec![0; 4 * MIB as usize];
    scribble(&client, &mut bytes, 21);
    assert!(read_all(&client) == bytes);
    let error = client.write_zeroes(extent(0, 512), ZeroMode::Fast).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported, "{}", chain(&error));

    // A server that cannot flush can promise nothing.
    let script = ["get_size=echo 1M", "pread=dd if=/dev/zero bs=$3 count=1", "pwrite=cat >/dev/null"];
    let server = Server::nbdkit(&[&["eval"][..], &script].concat());
    let client = server.connect();
    client.flush().unwrap();
    client.write_at(ByteOffset(0), &[1; 512]).unwrap();
    for error in [client.flush(), client.trim(extent(0, 512)), client.write_durable_at(ByteOffset(0), &[1])] {
        assert_eq!(error.unwrap_err().kind, Kind::Unsupported);
    }
}

#[test]
fn block_sizes_are_respected() {
    let server = Server::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "3M",
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=131072",
        "blocksize-error-policy=error",
    ]);
    let client = server.connect();
    let sizes = client.block_sizes();
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (4096, 65_536, 131_072));
    assert_eq!(client.max_request(), ByteLen(131_072));
    let mut bytes = vec![0; 3 * MIB as usize];
    scribble(&client, &mut bytes, 11);
    assert!(read_all(&client) == bytes);
    for (at, len) in [(1, 1), (4095, 2), (4096, 4096), (5000, 100), (4000, 9000), (3 * MIB - 1, 1), (1, 3 * MIB - 2)] {
        let mut part = vec![0; len as usize];
        client.read_at(ByteOffset(at), &mut part).unwrap();
        assert!(part == bytes[at as usize..(at + len) as usize], "{len} bytes at {at}");
    }
    let map = client.allocation(extent(5000, MIB)).unwrap();
    assert_eq!(map.first().unwrap().extent.start(), ByteOffset(5000));
    assert_eq!(map.last().unwrap().extent.end(), ByteOffset(5000 + MIB));
}

#[test]
fn unaligned_writes_from_many_threads_undo_nothing() {
    let server = Server::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=4096",
        "blocksize-error-policy=error",
    ]);
    let client = server.connect();
    // Neighbours share blocks: 8 threads write every eighth piece of 1000 bytes.
    let pieces = 1000;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for piece in (thread..pieces).step_by(8) {
                    client.write_at(ByteOffset(piece * 1000), &noise(1000, piece)).unwrap();
                }
            });
        }
    });
    let bytes = read_all(&client);
    for piece in 0..pieces {
        assert!(bytes[piece as usize * 1000..][..1000] == noise(1000, piece), "piece {piece}");
    }
}

#[test]
fn simple_replies_do_too() {
    let server = Server::nbdkit(&["--no-sr", "memory", "2M"]);
    let client = server.connect();
    assert!(!client.has_context("base:allocation"));
    let mut bytes = vec![0; 2 * MIB as usize];
    scribble(&client, &mut bytes, 5);
    assert!(read_all(&client) == bytes);
    let map = client.allocation(extent(1, MIB)).unwrap();
    assert_eq!(map, [sendense_block::MappedExtent { extent: extent(1, MIB), content: Content::Data }]);
    assert_eq!(client.allocation(extent(MIB, 2 * MIB)).unwrap_err().kind, Kind::OutOfRange);
}

/// What `nbdinfo --map` says: the ranges with the zero flag.
fn nbdinfo_zeros(uri: &str) -> ExtentSet {
    let map = run("nbdinfo", &["--map", uri]);
    let text = String::from_utf8(map.stdout).unwrap();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(|word| word.parse::<u64>());
            let (at, len, flags) = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
            (flags & 2 != 0).then(|| extent(at, len))
        })
        .collect()
}

fn zeros(client: &Client, within: Extent) -> ExtentSet {
    let map = client.allocation(within).unwrap();
    let mut at = within.start();
    for mapped in &map {
        assert_eq!(mapped.extent.start(), at, "the map has no gaps: {map:?}");
        assert!(!mapped.extent.is_empty());
        at = mapped.extent.end();
    }
    assert_eq!(at, within.end());
    map.iter().filter(|mapped| mapped.content == Content::Zero).map(|mapped| mapped.extent).collect()
}

#[test]
fn holes_are_what_nbdinfo_says() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let name = image.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", name, "3G"]);
    for write in ["write 0 64k", "write 1M 300k", "write 1G 64k", "write -z 2G 1M", "write 3145664k 64k"] {
        run("qemu-io", &["-f", "qcow2", "-c", write, name]);
    }
    let server = Server::qemu_nbd(&["-r", "-f", "qcow2", "-e", "2"], &image);
    let client = server.connect();
    let whole = Extent::whole(client.size());
    let expected = nbdinfo_zeros(&server.uri("").to_string());
    assert_eq!(zeros(&client, whole), expected);
    assert_eq!(whole.len().0 - expected.byte_len().0, (64 + 320 + 64 + 64) * KIB);
    // Windows that cut extents.
    let window = extent(100 * KIB + 1, 2 * MIB);
    let cut = expected.intersection(&[window].into_iter().collect());
    assert_eq!(zeros(&client, window), cut);
    assert_eq!(client.allocation(extent(5, 0)).unwrap(), []);

    let server = Server::nbdkit(&["--filter=noextents", "memory", "1M"]);
    assert!(zeros(&server.connect(), extent(0, MIB)).is_empty());
    let server = Server::nbdkit(&["memory", "1M"]);
    assert_eq!(zeros(&server.connect(), extent(0, MIB)).byte_len(), ByteLen(MIB));
}

#[test]
fn a_terabyte_of_nothing_is_mapped_at_once() {
    let server = Server::nbdkit(&["memory", "1T"]);
    let client = server.connect();
    client.write_at(ByteOffset(1 << 39), &[1; 4096]).unwrap();
    let map = client.allocation(Extent::whole(client.size())).unwrap();
    let data: Vec<_> = map.iter().filter(|mapped| mapped.content == Content::Data).collect();
    assert_eq!((map.len(), data.len()), (3, 1));
    assert_eq!(data[0].extent.start(), ByteOffset(1 << 39));
}

fn image_with_bitmap(dir: &Path) -> std::path::PathBuf {
    let image = dir.join("disk.qcow2");
    let name = image.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", name, "64M"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write 0 1M", name]);
    run("qemu-img", &["bitmap", "--add", "-g", "64k", name, "since monday"]);
    for write in ["write 4M 64k", "write 4260k 4k", "discard 32M 128k", "write 65472k 64k"] {
        run("qemu-io", &["-f", "qcow2", "-c", write, name]);
    }
    image
}

#[test]
fn a_dirty_bitmap_tells_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_bitmap(dir.path());
    let context = "qemu:dirty-bitmap:since monday".to_owned();
    let server = Server::qemu_nbd(&["-r", "-f", "qcow2", "-x", "disk", "-e", "2", "-B", "since monday"], &image);
    let contexts = vec![context.clone(), "qemu:dirty-bitmap:other".to_owned(), "base:allocation".to_owned()];
    let client = open(&Options { contexts, ..Options::new(server.uri("disk")) });
    assert!(client.has_context(&context) && client.has_context("base:allocation"));
    assert!(client.change_map("qemu:dirty-bitmap:other").is_none());
    let map = client.change_map(&context).unwrap();
    let whole = Extent::whole(client.size());
    let expected: ExtentSet = [
        extent(4 * MIB, 64 * KIB),
        extent(4224 * KIB, 64 * KIB),
        extent(32 * MIB, 128 * KIB),
        extent(65_472 * KIB, 64 * KIB),
    ]
    .into_iter()
    .collect();
    assert_eq!(map.changed(whole).unwrap(), expected);
    let window = extent(4 * MIB + 1, 10);
    assert_eq!(map.changed(window).unwrap(), [window].into_iter().collect());
    assert!(map.changed(extent(0, 4 * MIB)).unwrap().is_empty());
    assert_eq!(map.changed(extent(64 * MIB, 1)).unwrap_err().kind, Kind::OutOfRange);
    // Both contexts come in every reply; each is read for itself.
    assert!(!zeros(&client, whole).contains(extent(0, MIB)));

    let exports = nbd::list(&server.options(), &Cancel::new()).unwrap();
    assert_eq!(exports.len(), 1);
    assert_eq!(exports[0].name, "disk");
    assert!(exports[0].contexts.contains(&context), "{exports:?}");
}

#[test]
fn a_storage_daemon_lists_its_exports() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        std::fs::write(dir.path().join(name), noise(MIB as usize, name.len() as u64)).unwrap();
    }
    let server = Server::start("qemu-storage-daemon", |_, socket| {
        let mut args = vec!["--nbd-server".to_owned(), format!("addr.type=unix,addr.path={socket},max-connections=8")];
        for (name, writable) in [("one", "on"), ("two", "off")] {
            let path = dir.path().join(name);
            args.push("--blockdev".into());
            args.push(format!("file,node-name={name},filename={}", path.display()));
            args.push("--export".into());
            args.push(format!("nbd,id={name},node-name={name},name=disk {name},writable={writable}"));
        }
        args
    });
    // The daemon listens before it exports.
    let exports = eventually("both exports", || {
        nbd::list(&server.options(), &Cancel::new()).ok().filter(|exports| exports.len() == 2)
    });
    let facts: Vec<_> = exports.iter().map(|e| (e.name.as_str(), e.size, e.read_only)).collect();
    let size = Some(ByteLen(MIB));
    assert!(facts.contains(&("disk one", size, Some(false))), "{facts:?}");
    assert!(facts.contains(&("disk two", size, Some(true))), "{facts:?}");
    let client = open(&Options::new(server.uri("disk one")));
    client.write_at(ByteOffset(512), &noise(512, 77)).unwrap();
    client.flush().unwrap();
    assert!(std::fs::read(dir.path().join("one")).unwrap()[512..1024] == noise(512, 77));
}

#[test]
fn several_connections_are_opened_only_where_that_is_safe() {
    let server = Server::nbdkit(&["--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable"]);
    let several = Options { connections: 4, ..server.options() };
    assert_eq!(open(&several).connections(), 1);
    let client = open(&Options { read_only: true, ..several });
    assert_eq!(client.connections(), 4);
    assert_eq!(client.zero_range(extent(0, 1)).unwrap_err().kind, Kind::Denied);
    assert_eq!(client.trim(extent(0, 1)).unwrap_err().kind, Kind::Denied);
}

#[test]
fn many_threads_on_one_connection_and_on_several() {
    let server = Server::nbdkit(&["memory", "16M"]);
    for connections in [1, 4] {
        let client = open(&Options { connections, request_bytes: 16 * 1024, ..server.options() });
        assert_eq!(client.connections(), connections);
        std::thread::scope(|scope| {
            for thread in 0..16u64 {
                let client = client.clone();
                scope.spawn(move || {
                    let mut buf = vec![0; 100_000];
                    for round in 0..20u64 {
                        let at = ByteOffset(thread * MIB + round * 1000);
                        let data = noise(100_000, thread * 100 + round);
                        client.write_at(at, &data).unwrap();
                        client.read_at(at, &mut buf).unwrap();
                        assert!(buf == data, "thread {thread} round {round}");
                    }
                });
            }
        });
    }
}

#[test]
fn the_last_client_to_leave_says_goodbye() {
    let mut server = Server::nbdkit(&["--filter=exitlast", "-v", "memory", "1M"]);
    let client = server.connect();
    let clone = client.clone();
    drop(client);
    clone.read_at(ByteOffset(0), &mut [0; 512]).unwrap();
    drop(clone);
    eventually("nbdkit's end", || server.has_ended().then_some(()));
    assert!(server.log().contains("client sent NBD_CMD_DISC"), "{}", server.log());
}

#[test]
fn oldstyle_servers_are_named() {
    let server = Server::nbdkit(&["-o", "memory", "1M"]);
    let error = refused(&server.options());
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(chain(&error).contains("oldstyle"), "{}", chain(&error));
    let server = Server::nbdkit(&["--mask-handshake=0", "memory", "1M"]);
    assert_eq!(refused(&server.options()).kind, Kind::Unsupported);
    // Without NO_ZEROES all goes as usual.
    let server = Server::nbdkit(&["--mask-handshake=1", "memory", "1M"]);
    assert_eq!(server.connect().size(), ByteLen(MIB));
}

#[test]
fn nobody_there_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody");
    let error = refused(&Options::new(nbd::Uri::unix(&socket, "").unwrap()));
    assert_eq!(error.kind, Kind::Unavailable, "{}", chain(&error));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = refused(&Options::new(nbd::Uri::unix(&socket, "").unwrap()));
    assert_eq!(error.kind, Kind::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains("nobody"), "{}", chain(&error));
}
