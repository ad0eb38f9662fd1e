//! Clients of exports that are no good guests, and one that is a whole machine.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, field, path, text, tool};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const SIZE: usize = 24 << 20;
const REQUEST: usize = 1 << 20;

/// A client of the oldest manner: it names its export and asks, one byte string after the other.
struct Client(UnixStream);

impl Client {
    fn enter(uri: &str) -> Self {
        let (name, socket) = uri.strip_prefix("nbd+unix:///").unwrap().split_once("?socket=").unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
        // Fixed newstyle without padding, then the export's name.
        let mut words = 3_u32.to_be_bytes().to_vec();
        words.extend(b"IHAVEOPT");
        words.extend(1_u32.to_be_bytes());
        words.extend((name.len() as u32).to_be_bytes());
        words.extend(name.as_bytes());
        stream.write_all(&words).unwrap();
        let mut size = [0; 10];
        stream.read_exact(&mut size).unwrap();
        Self(stream)
    }

    /// Asks for the mebibyte with this number.
    fn ask(&mut self, number: u64) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(number.to_be_bytes());
        request.extend((number * REQUEST as u64).to_be_bytes());
        request.extend((REQUEST as u32).to_be_bytes());
        self.0.write_all(&request).unwrap();
    }

    /// Takes a reply: its number and its bytes; none when the connection is at its end.
    fn take(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut header = [0; 16];
        self.0.read_exact(&mut header).ok()?;
        assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "a reply without an error");
        let mut bytes = vec![0; REQUEST];
        self.0.read_exact(&mut bytes).ok()?;
        Some((u64::from_be_bytes(header[8..].try_into().unwrap()), bytes))
    }
}

fn clients(hub: &Hub, export_id: &str) -> u64 {
    let listed = hub.json(&["exports"]);
    let exports = listed["exports"].as_array().unwrap();
    exports.iter().find(|export| field(export, "export_id") == export_id).unwrap()["clients"].as_u64().unwrap()
}

#[test]
fn clients_that_stall_or_vanish_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(41);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let first = field(&hub.backup("web", &[]), "backup_id").to_owned();
    disk.write_somewhere(4 << 20, &mut random);
    let second = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let export = hub.json(&["export", &second])["export"].clone();
    let (id, uri) = (field(&export, "export_id"), field(&export, "uri"));

    // One asks for everything and takes nothing; one begins a request and is gone; one is gone with its replies under way.
    let mut stalling = Client::enter(uri);
    (0..SIZE / REQUEST).for_each(|number| stalling.ask(number as u64));
    let mut vanishing = Client::enter(uri);
    vanishing.0.write_all(&0x2560_9513_u32.to_be_bytes()).unwrap();
    drop(vanishing);
    let mut vanishing = Client::enter(uri);
    (0..8).for_each(|number| vanishing.ask(number));
    drop(vanishing);
    let end = Instant::now() + PATIENCE;
    while clients(&hub, id) != 1 {
        assert!(Instant::now() < end, "clients that are gone are still counted");
    }
    let copy = dir.join("copy");
    tool("libnbd-bin", "nbdcopy", &[uri, path(&copy)]);
    assert_holds(&copy, &disk.bytes);

    // While somebody reads, nothing of the chain goes away, and what is read stays right.
    for point in [&second, &first] {
        let said = hub.fails(4, &["backup", "delete", point, "--cascade", "--yes"]);
        assert!(said.contains(&format!("export {id}")), "{said}");
    }
    for _ in 0..SIZE / REQUEST {
        let (number, bytes) = stalling.take().expect("it only took its time");
        assert!(disk.bytes[number as usize * REQUEST..][..REQUEST] == bytes, "mebibyte {number}");
    }

    // Taking the export back waits for nobody: who stalls is cut off, and only then the chain is free.
    (0..SIZE / REQUEST).for_each(|number| stalling.ask(number as u64));
    let begun = Instant::now();
    hub.ok(&["unexport", id]);
    assert!(begun.elapsed() < PATIENCE / 4, "a client that takes nothing held up its own end");
    hub.ok(&["backup", "delete", &first, "--cascade", "--yes"]);
    let taken = std::iter::from_fn(|| stalling.take()).count();
    assert!(taken < SIZE / REQUEST, "the connection ended before everything was sent");
}

/// Reads sector `from` and writes it to sector 1, reads that again, says its first 16 bytes to the debug port and leaves with
/// status 33; with another one when the BIOS cannot do it.
fn boot_sector(from: u64) -> Vec<u8> {
    let mut code = vec![
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, // flat segments, a stack
        0xbe, 0x50, 0x7c, 0xb4, 0x42, 0xcd, 0x13, 0x72, 0x26, // read by the packet at 0x50, or go to 60
        0xbe, 0x60, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x72, 0x1c, // write
        0xbe, 0x70, 0x7c, 0xb4, 0x42, 0xcd, 0x13, 0x72, 0x13, // read again
        0xbe, 0x00, 0x82, 0xb9, 0x10, 0x00, 0xfc, 0xac, 0xe6, 0xe9, 0xe2, 0xfb, // 16 bytes to port 0xe9
        0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, // leave with 0x10 * 2 + 1
        0xb0, 0x7f, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd, // 60: leave with 0xff
    ];
    for (at, memory, sector) in [(0x50, 0x8000_u32, from), (0x60, 0x8000, 1), (0x70, 0x8200, 1)] {
        code.resize(at, 0);
        code.extend([16, 0, 1, 0]);
        code.extend(memory.to_le_bytes());
        code.extend(sector.to_le_bytes());
    }
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

#[test]
fn a_machine_boots_from_an_export_and_writes_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE + 70_001, &mut Random::new(42));
    let sector = 40_000;
    let mut guest_writes = |at: usize, bytes: &[u8]| {
        std::fs::File::options().write(true).open(&disk.path).unwrap().write_all_at(bytes, at as u64).unwrap();
        disk.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    };
    guest_writes(0, &boot_sector(sector as u64));
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    hub.backup("web", &[]);
    // The full has the boot sector, the incremental what it reads.
    guest_writes(sector * 512, b"HELLO FROM CHAIN and no more");
    let point = field(&hub.backup("web", &[]), "backup_id").to_owned();
    let uri = hub.ok(&["export", &point]).trim().to_owned();

    let scratch = dir.join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let machine = Command::new("timeout")
        .args(["--kill-after=5", "120", "qemu-system-x86_64", "-snapshot", "-nodefaults", "-display", "none"])
        .args(["-no-reboot", "-machine", "pc,accel=tcg", "-m", "32", "-debugcon", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .arg("-drive")
        .arg(format!("file={uri},format=raw,if=ide"))
        .env("TMPDIR", &scratch)
        .output()
        .expect("timeout (Debian package coreutils)");
    let said = text(&machine.stdout);
    let why = format!("{said}{} (Debian package qemu-system-x86)", text(&machine.stderr));
    assert_eq!((machine.status.code(), said.as_str()), (Some(33), "HELLO FROM CHAIN"), "{why}");
    assert_copy(&uri, dir, &disk.bytes);
}

/// The export holds what it held before.
fn assert_copy(uri: &str, dir: &Path, want: &[u8]) {
    let copy = dir.join("copy");
    tool("libnbd-bin", "nbdcopy", &[uri, path(&copy)]);
    assert_holds(&copy, want);
}
