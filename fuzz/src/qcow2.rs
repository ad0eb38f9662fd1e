//! Small QCOW2 images, and repairs of a header that chance would never let through.

use flate2::{Compress, Compression, FlushCompress};
use sendense_block::backend::Memory;
use sendense_block::{ByteOffset, ReadAt};
use sendense_qcow2::check::check;
use sendense_qcow2::{Chain, Image, Layer};
use std::sync::Arc;

/// Cluster size of the images made here: the smallest there is, so that a whole image is a few KiB.
const CLUSTER: usize = 512;

/// A copy with a header that a reader takes: magic, version, features, and tables that lie in the file. What stands in the
/// tables stays as it is.
pub fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut image = bytes.to_vec();
    if image.len() < 3 * CLUSTER {
        return None;
    }
    let word = |image: &[u8], at: usize| u32::from_be_bytes(*image[at..].first_chunk().expect("three clusters"));
    let long = |image: &[u8], at: usize| u64::from_be_bytes(*image[at..].first_chunk().expect("three clusters"));
    let set = |image: &mut Vec<u8>, at: usize, value: u32| image[at..at + 4].copy_from_slice(&value.to_be_bytes());
    set(&mut image, 0, 0x5146_49fb);
    let version = 2 + (word(&image, 4) & 1);
    set(&mut image, 4, version);
    let mut bits = 9 + word(&image, 20).wrapping_sub(9) % 13;
    // No larger than leaves room for some clusters.
    while image.len() >> bits < 3 {
        bits -= 1;
    }
    set(&mut image, 20, bits);
    set(&mut image, 32, 0);
    let zstd = version == 3 && image[79] & 8 != 0;
    if version == 3 {
        image[72..80].fill(0);
        image[79] = if zstd { 8 } else { 0 };
        let order = word(&image, 96) % 7;
        set(&mut image, 96, order);
        set(&mut image, 100, 112);
        image[104] = u8::from(zstd);
    }
    let cluster = 1usize << bits;
    let clusters = image.len() / cluster;
    // The L1 table, and a disk that is no larger than the table's entries in the file map.
    let l1 = (long(&image, 40) as usize >> bits) % clusters * cluster;
    image[40..48].copy_from_slice(&(l1 as u64).to_be_bytes());
    let entries = ((image.len() - l1) / 8).min(word(&image, 36).max(1) as usize);
    set(&mut image, 36, entries as u32);
    let mapped = (entries as u64).saturating_mul(1 << (2 * bits - 3));
    let size = long(&image, 24).min(mapped);
    image[24..32].copy_from_slice(&size.to_be_bytes());
    // A backing file's name that passes the header is refused; such an image has none.
    let (name_at, name_len) = (long(&image, 8), u64::from(word(&image, 16)));
    if name_len > 1023 || name_at.saturating_add(name_len) > cluster as u64 {
        image[8..16].fill(0);
    }
    Some(image)
}

/// An image with every sort of cluster: raw, zero, compressed, absent; with its refcounts, a backing file's name and, if
/// wanted, a bitmap.
fn small(version: u32, zstd: bool, bitmap: bool) -> Vec<u8> {
    let content = [b"data ".repeat(100), vec![0; 12]].concat();
    let mut frame = vec![0; CLUSTER];
    let frame_len = if zstd {
        zstd_safe::compress(&mut frame[..], &content, 1).expect("text shrinks")
    } else {
        let mut deflate = Compress::new(Compression::default(), false);
        deflate.compress(&content, &mut frame, FlushCompress::Finish).expect("text shrinks");
        deflate.total_out() as usize
    };
    let at = |cluster: u64| cluster * CLUSTER as u64;
    let mut header = Vec::new();
    header.extend(0x5146_49fbu32.to_be_bytes());
    header.extend(version.to_be_bytes());
    header.extend(440u64.to_be_bytes());
    header.extend(8u32.to_be_bytes());
    header.extend(9u32.to_be_bytes());
    header.extend((80 * CLUSTER as u64).to_be_bytes());
    header.extend(0u32.to_be_bytes());
    header.extend(2u32.to_be_bytes()); // two L1 entries: 64 clusters each
    header.extend(at(1).to_be_bytes());
    header.extend(at(3).to_be_bytes());
    header.extend(1u32.to_be_bytes());
    header.extend([0; 12]);
    if version == 3 {
        header.extend(if zstd { 8u64 } else { 0 }.to_be_bytes());
        header.extend([0; 8]);
        header.extend(u64::from(bitmap).to_be_bytes());
        header.extend(4u32.to_be_bytes());
        header.extend(112u32.to_be_bytes());
        header.extend([u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]);
    }
    header.extend([&0xe279_2acau32.to_be_bytes()[..], &5u32.to_be_bytes(), b"qcow2\0\0\0"].concat());
    if bitmap {
        header.extend([&0x2385_2875u32.to_be_bytes()[..], &24u32.to_be_bytes(), &1u32.to_be_bytes(), &[0; 4]].concat());
        header.extend([32u64.to_be_bytes(), at(7).to_be_bytes()].concat());
    }
    header.extend([0; 8]);
    header.resize(440, 0);
    header.extend(b"base.img");
    header.resize(CLUSTER, 0);

    let mut clusters = vec![vec![0; CLUSTER]; 10];
    let put =
        |cluster: &mut Vec<u8>, n: usize, entry: u64| cluster[8 * n..8 * n + 8].copy_from_slice(&entry.to_be_bytes());
    const COPIED: u64 = 1 << 63;
    clusters[0] = header;
    put(&mut clusters[1], 0, at(2) | COPIED);
    put(&mut clusters[2], 0, at(5) | COPIED);
    put(&mut clusters[2], 1, if version == 3 { 1 } else { 0 });
    put(&mut clusters[2], 2, 1 << 62 | at(6));
    put(&mut clusters[2], 4, 1 << 62 | at(6));
    put(&mut clusters[3], 0, at(4));
    for n in 0..10 {
        clusters[4][2 * n + 1] = if n == 6 { 2 } else { 1 };
    }
    clusters[5] = content;
    clusters[6][..frame_len].copy_from_slice(&frame[..frame_len]);
    // The bitmap's directory, table and bits.
    let entry =
        [&at(8).to_be_bytes()[..], &1u32.to_be_bytes(), &2u32.to_be_bytes(), &[1, 9, 0, 4], &[0; 4], b"cp-1\0\0\0\0"];
    clusters[7][..32].copy_from_slice(&entry.concat());
    put(&mut clusters[8], 0, at(9));
    clusters[9][..3].fill(0b1010_0110);
    clusters.truncate(if bitmap { 10 } else { 7 });
    clusters.concat()
}

/// Small images of both versions and compressions, with and without a bitmap; and those of a full point and of one on it.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![small(2, false, false), small(3, false, false), small(3, true, false), small(3, true, true)];
    // A seed that the reader refuses at its door would teach the fuzzer nothing.
    for seed in &seeds {
        let image = Image::open(Arc::new(Memory::from_bytes(seed.clone()))).expect("a seed is an image");
        if image.bitmaps().expect("a seed's bitmaps can be listed").is_empty() {
            let report = check(&image).expect("a seed can be checked");
            assert!(report.is_clean(), "{report:?}");
        }
        let chain = Chain::new(vec![Layer::Qcow2(Arc::new(image))]).expect("one image is a chain");
        chain.read_at(ByteOffset(0), &mut [0; 80 * CLUSTER]).expect("a seed's disk can be read");
    }
    seeds.extend(crate::point::files().images);
    seeds
}
