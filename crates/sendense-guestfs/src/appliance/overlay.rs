//! An empty QCOW2 image: the sheet that takes the guest kernel's writes (a replayed log) over the chain, and goes with the
//! session.
//!
//! Which image lies under it is told to the storage daemon, so that no file name stands in it and none is ever probed.
//!
//! Invariant: nothing of the disk is in it; it is made of the disk's size alone.

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the first table stands for: a cluster of 8-byte entries, a cluster each.
const L1_ENTRY_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// The largest disk: 64 TiB need 131,072 entries in the first table, which are 1 MiB.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// The image of a disk of `size_bytes`, which is at most [`DISK_BYTES_MAX`].
pub fn empty(size_bytes: u64) -> Vec<u8> {
    let entries = size_bytes.div_ceil(L1_ENTRY_BYTES);
    let l1_clusters = (entries * 8).div_ceil(CLUSTER_BYTES).max(1);
    // header, reference count table, one block of reference counts (for 32,768 clusters), first table
    let clusters = 3 + l1_clusters;
    let mut image = vec![0; (clusters * CLUSTER_BYTES) as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &size_bytes.to_be_bytes());
    put(36, &(entries as u32).to_be_bytes());
    put(40, &(3 * CLUSTER_BYTES).to_be_bytes());
    put(48, &CLUSTER_BYTES.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    // 16-bit reference counts, and a header of 104 bytes, which an end of extensions follows.
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER_BYTES as usize, &(2 * CLUSTER_BYTES).to_be_bytes());
    for cluster in 0..clusters as usize {
        put(2 * CLUSTER_BYTES as usize + 2 * cluster, &1u16.to_be_bytes());
    }
    image
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn qemu_finds_nothing_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        for size in [512, 1 << 20, (1 << 40) + 512, DISK_BYTES_MAX] {
            let path = dir.path().join("overlay.qcow2");
            std::fs::write(&path, empty(size)).unwrap();
            let run = |args: &[&str]| {
                let output = Command::new("qemu-img").args(args).arg(&path).output();
                output.unwrap_or_else(|error| panic!("qemu-img: {error}: install the Debian package qemu-utils"))
            };
            let check = run(&["check", "-f", "qcow2"]);
            assert!(check.status.success(), "{size}: {}", String::from_utf8_lossy(&check.stderr));
            let info = String::from_utf8(run(&["info", "--output=json", "-f", "qcow2"]).stdout).unwrap();
            assert!(info.contains(&format!("\"virtual-size\": {size},")), "{info}");
            assert!(!info.contains("backing"), "{info}");
        }
    }
}
