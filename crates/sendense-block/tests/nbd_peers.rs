//! The NBD client against other people's servers.

mod nbd_support;

use nbd_support::{Server, noise, open, read_all};

use sendense_block::nbd::{self};
use sendense_block::{ByteLen, ByteOffset, Kind, ReadAt, WriteAt};

const MIB: u64 = 1 << 20;

#[test]
fn reads_what_qemu_nbd_serves() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    let bytes = noise(5 * MIB as usize, 1);
    std::fs::write(&image, &bytes).unwrap();
    let server = Server::qemu_nbd(&["-r", "-f", "raw", "-x", "disk", "-e", "4"], &image);
    let client = open(&nbd::Options { connections: 4, ..nbd::Options::new(server.uri("disk")) });
    assert_eq!((client.size(), client.connections()), (ByteLen(5 * MIB), 4));
    assert!(client.read_only());
    assert!(read_all(&client) == bytes);
    let mut odd = vec![0; 100_001];
    client.read_at(ByteOffset(65_537), &mut odd).unwrap();
    assert!(odd == bytes[65_537..65_537 + 100_001]);
    assert_eq!(client.read_at(ByteOffset(5 * MIB - 1), &mut [0; 2]).unwrap_err().kind, Kind::OutOfRange);
    assert_eq!(client.write_at(ByteOffset(0), &[1]).unwrap_err().kind, Kind::Denied);
}
