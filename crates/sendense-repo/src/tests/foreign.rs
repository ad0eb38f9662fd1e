//! Images that another program wrote, sound and in nothing like ours but what they hold: they are merged as any other.

use crate::layout;
use crate::manifest::{self, HexDigest};
use crate::merge::Way;
use crate::repository::Repository;
use crate::testing::world::{self, Point, WAYS, back_up, pattern};
use crate::testing::{now, qemu};
use crate::verify::{Depth, READ_BYTES, segment_digest};
use sendense_block::backend::{File, Options};
use sendense_block::{Cancel, Extent, ReadAt};
use sendense_types::DiskNumber;
use std::path::PathBuf;

const CLUSTER: usize = 65536;

fn path(repository: &Repository, point: &Point) -> PathBuf {
    repository.root().join(layout::image(&point.vm, DiskNumber(0), &point.id))
}

/// The number that lies there.
fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// An image's bytes, with what a person who knows the format would change in it.
struct Tables {
    bytes: Vec<u8>,
    l2: usize,
    refcounts: usize,
}

impl Tables {
    fn of(bytes: Vec<u8>) -> Self {
        let place = |at: usize| number(&bytes, at) & 0x00ff_ffff_ffff_fe00;
        let (l1, table) = (place(40), place(48));
        let (l2, refcounts) = (place(l1), place(table));
        Self { bytes, l2, refcounts }
    }

    fn entry(&self, block: usize) -> u64 {
        number(&self.bytes, self.l2 + 8 * block) as u64
    }

    fn set(&mut self, block: usize, entry: u64) {
        self.bytes[self.l2 + 8 * block..][..8].copy_from_slice(&entry.to_be_bytes());
    }

    fn set_refcount(&mut self, at: usize, count: u16) {
        self.bytes[self.refcounts + 2 * (at / CLUSTER)..][..2].copy_from_slice(&count.to_be_bytes());
    }
}

/// Another program's image takes the place of a point's, and the manifest tells of it.
fn put(repository: &Repository, point: &Point, bytes: &[u8]) {
    let image = path(repository, point);
    std::fs::write(&image, bytes).unwrap();
    let mut known = repository.manifest(&point.vm, &point.id).unwrap();
    let file = File::open(&image, Options::Read).unwrap();
    let all = Extent::whole(file.size());
    assert!(all.len().0 <= known.disks[0].image.segment_bytes, "one segment");
    let digest = segment_digest(&file, all, &mut vec![0; READ_BYTES as usize], &Cancel::new(), &|_| ()).unwrap();
    known.disks[0].image.file_bytes = all.len().0;
    known.disks[0].image.segments = vec![HexDigest(digest)];
    let at = repository.root().join(layout::manifest(&point.vm, &point.id));
    std::fs::write(at, manifest::write(&known).unwrap()).unwrap();
    qemu::run("qemu-img", &["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
    world::check_bytes(repository, point).unwrap();
    world::check_sound(repository, point, Depth::Deep).unwrap();
}

/// Blocks that no compressor makes smaller.
fn noise(seed: u64, blocks: u64) -> Vec<u8> {
    (seed..seed + blocks).flat_map(|seed| pattern(seed, 2 * CLUSTER).split_off(CLUSTER)).collect()
}

/// A full whose first two blocks are the same, and a child with a block that became zero and so many that were written anew.
fn pair(clones: bool, changed: u64) -> (tempfile::TempDir, Repository, [Point; 3]) {
    let folder = tempfile::tempdir().unwrap();
    let repository = world::open_sharing(&folder.path().join("repository"), clones).unwrap();
    let mut bytes = [noise(5, 1), noise(5, 1)].concat();
    bytes.extend(pattern(6, 20 * CLUSTER));
    let first = Point::full("vm-a", "bk-1", &[&bytes]);
    let mut second = first.child("bk-2");
    second.disk(0)[3 * CLUSTER..4 * CLUSTER].fill(0);
    second.disk(0)[7 * CLUSTER..][..changed as usize * CLUSTER].copy_from_slice(&noise(70, changed));
    let mut third = second.child("bk-3");
    third.disk(0)[9] ^= 1;
    for point in [&first, &second, &third] {
        back_up(&repository, point, now()).unwrap();
    }
    (folder, repository, [first, second, third])
}

fn merge_all(way: Way, repository: &Repository, [first, second, third]: &[Point; 3]) {
    for going in [first, second] {
        world::merge_by(way, repository, going)
            .unwrap_or_else(|error| panic!("{way:?} {}: {}", going.id, sendense_block::error::chain(&error)));
    }
    world::check_bytes(repository, third).unwrap();
    world::check_sound(repository, third, Depth::Deep).unwrap();
    qemu::check(repository.root(), &[third]);
}

/// One cluster of two blocks, as a snapshot that has gone leaves it.
#[test]
fn a_cluster_of_two_blocks_is_merged() {
    for (way, clones) in WAYS {
        let (_folder, repository, points) = pair(clones, 3);
        let mut tables = Tables::of(std::fs::read(path(&repository, &points[0])).unwrap());
        let (kept, left) = (tables.entry(0) & !(1 << 63), tables.entry(1) & !(1 << 63));
        assert_ne!(kept, left);
        // Nobody has it for himself.
        tables.set(0, kept);
        tables.set(1, kept);
        tables.set_refcount(kept as usize, 2);
        tables.set_refcount(left as usize, 0);
        put(&repository, &points[0], &tables.bytes);
        merge_all(way, &repository, &points);
    }
}

/// Zeros that were written over a cluster, which stays the block's own.
#[test]
fn zeros_over_a_cluster_are_merged() {
    for (way, clones) in WAYS {
        // The child is the larger one, which the new image would begin as.
        let (_folder, repository, points) = pair(clones, 15);
        let mut tables = Tables::of(std::fs::read(path(&repository, &points[1])).unwrap());
        assert_eq!(tables.entry(3), 1, "flagged");
        let end = tables.bytes.len();
        tables.bytes.resize(end + CLUSTER, 0xaa);
        tables.set(3, end as u64 | 1 << 63 | 1);
        tables.set_refcount(end, 1);
        put(&repository, &points[1], &tables.bytes);
        merge_all(way, &repository, &points);
    }
}

/// All of it in another order, and compressed in another way.
#[test]
fn an_image_of_qemu_is_merged() {
    for (way, clones) in WAYS {
        for how in ["compression_type=zlib", "compression_type=zstd"] {
            let (folder, repository, points) = pair(clones, 3);
            let (raw, image) = (folder.path().join("raw"), folder.path().join("image"));
            std::fs::write(&raw, &points[0].disks[&DiskNumber(0)].bytes).unwrap();
            let files = [raw.to_str().unwrap(), image.to_str().unwrap()];
            qemu::run("qemu-img", &[&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", how][..], &files].concat());
            put(&repository, &points[0], &std::fs::read(&image).unwrap());
            merge_all(way, &repository, &points);
        }
    }
}
