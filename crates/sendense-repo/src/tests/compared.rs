//! A disk that is compared as it is read: it gives what was backed up, or an error that names the block; and nothing else.

use crate::compared::{ComparedDisk, Damage, Given, OnDamage};
use crate::extract::{Format, How, Owner, extract};
use crate::layout;
use crate::repository::Repository;
use crate::testing::world::{self, Point};
use crate::testing::{Dice, now};
use sendense_block::backend::Memory;
use sendense_block::codec::Level;
use sendense_block::copy::{self, Differential, Options, Progress, Restore};
use sendense_block::error::chain;
use sendense_block::{
    AllocationMap, BlockIndex, ByteLen, ByteOffset, Cancel, Content, DigestMap, Extent, Kind, Known, ReadAt,
};
use sendense_types::DiskNumber;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCK: usize = 65536;
const DISK: DiskNumber = DiskNumber(0);

/// Three points of a disk of eight blocks and a bit. Of each three blocks one is text (a frame), one noise (raw) and one zeros.
/// Block 1 is the second point's, block 4 the first's, block 7 the third's, and so on.
struct House {
    folder: tempfile::TempDir,
    repository: Repository,
    points: [Point; 3],
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = Point::full("vm-a", "bk-1", &[&world::pattern(1, 8 * BLOCK + 700)]);
        let mut second = first.child("bk-2");
        second.disk(0)[BLOCK + 5..2 * BLOCK - 9].fill(7);
        second.disk(0)[BLOCK..2 * BLOCK].copy_from_slice(&noise(8));
        let mut third = second.child("bk-3");
        third.disk(0)[7 * BLOCK..8 * BLOCK].copy_from_slice(&noise(9));
        third.disk(0)[8 * BLOCK..].fill(3);
        third.disk(0)[3 * BLOCK..4 * BLOCK].fill(0);
        let repository = world::open(&folder.path().join("repository")).unwrap();
        let points = [first, second, third];
        for point in &points {
            world::back_up(&repository, point, now()).unwrap();
        }
        Self { folder, repository, points }
    }

    fn image(&self, point: usize) -> PathBuf {
        let point = &self.points[point];
        self.folder.path().join("repository").join(layout::image(&point.vm, DISK, &point.id))
    }

    fn open(&self, point: usize) -> crate::Result<ComparedDisk> {
        let point = &self.points[point];
        self.repository.open_compared(&point.vm, &point.id, DISK, "test", OnDamage::Fail)
    }

    /// The same, for whoever needs what is left of it.
    fn open_all_the_same(&self, point: usize) -> ComparedDisk {
        let point = &self.points[point];
        self.repository.open_compared(&point.vm, &point.id, DISK, "test", OnDamage::Pass).unwrap()
    }

    fn bytes(&self, point: usize) -> &[u8] {
        &self.points[point].disks[&DISK].bytes
    }

    fn file(&self, point: usize) -> String {
        layout::image(&self.points[point].vm, DISK, &self.points[point].id).display().to_string()
    }

    /// Flips a bit of a block of noise where it lies in an image.
    fn rot(&self, image: usize, block: usize) {
        let content = &self.bytes(image)[block * BLOCK..][..BLOCK];
        let stored = std::fs::read(self.image(image)).unwrap();
        let at = stored.windows(BLOCK).step_by(512).position(|part| part == content).expect("it lies as it is") * 512;
        flip(&self.image(image), at as u64 + 777, 2);
    }
}

fn noise(seed: u64) -> Vec<u8> {
    world::pattern(seed, 2 * BLOCK).split_off(BLOCK)
}

fn flip(path: &Path, at: u64, bit: u8) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn read(disk: &ComparedDisk, at: usize, len: usize) -> sendense_block::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    disk.read_at(ByteOffset(at as u64), &mut bytes).map(|()| bytes)
}

fn data(disk: &ComparedDisk, within: Extent) -> Vec<Extent> {
    let map = disk.allocation(within).unwrap();
    let ends = map.iter().map(|mapped| mapped.extent.end());
    assert!(
        map.iter().map(|mapped| mapped.extent.start()).eq([within.start()].into_iter().chain(ends).take(map.len()))
    );
    assert_eq!(map.last().map_or(within.start(), |mapped| mapped.extent.end()), within.end());
    map.iter().filter(|mapped| mapped.content == Content::Data).map(|mapped| mapped.extent).collect()
}

/// Restores to a file; gives what it holds, or the error, after which nothing may be left.
fn restore(house: &House, point: usize, format: Format) -> Result<Vec<u8>, String> {
    let target = house.folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let how = How {
        format,
        lanes: 2,
        suffix: "part",
        disk_name: "disk 0",
        overwrite: false,
        owner: Owner::Us,
        needed_bytes: None,
        is_last: true,
    };
    let path = target.join("disk");
    let done = house.open(point).and_then(|disk| extract(&disk, &path, how, &Progress::default(), &Cancel::new()));
    let found = match done {
        Ok(()) => Ok(std::fs::read(&path).unwrap()),
        Err(error) => {
            assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "an unfinished file is left");
            Err(chain(&error))
        }
    };
    std::fs::remove_dir_all(&target).unwrap();
    found
}

#[test]
fn what_is_sound_is_given_in_whatever_parts_it_is_asked_for() {
    let house = House::new();
    let mut dice = Dice(5);
    for point in 0..3 {
        let (disk, bytes) = (house.open(point).unwrap(), house.bytes(point));
        assert_eq!(disk.size(), ByteLen(bytes.len() as u64));
        assert!(restore(&house, point, Format::Raw).unwrap() == bytes);
        for _ in 0..200 {
            let at = dice.below(bytes.len() + 1);
            let at = if dice.below(2) == 0 { at / BLOCK * BLOCK } else { at };
            let end = at + dice.below(bytes.len() - at + 1);
            let end = if dice.below(2) == 0 { end.next_multiple_of(BLOCK).min(bytes.len()) } else { end };
            assert!(read(&disk, at, end - at).unwrap() == bytes[at..end], "{at}..{end}");
        }
        assert_eq!(read(&disk, bytes.len() - 1, 2).unwrap_err().kind, Kind::OutOfRange);
        // What is data of a chain that is sound is data here, to the block, and no more.
        let mut known = vec![Known::Zero; bytes.len().div_ceil(BLOCK)];
        disk.known(BlockIndex(0), &mut known).unwrap();
        let of_blocks: Vec<bool> = bytes.chunks(BLOCK).map(|block| block.iter().any(|byte| *byte != 0)).collect();
        assert!(known.iter().zip(&of_blocks).all(|(known, data)| (*known != Known::Zero) == *data));
        for _ in 0..50 {
            let from = dice.below(bytes.len());
            let end = from + dice.below(bytes.len() - from + 1);
            let within = Extent::between(ByteOffset(from as u64), ByteOffset(end as u64));
            let wanted: sendense_block::ExtentSet = (0..of_blocks.len())
                .filter(|block| of_blocks[*block])
                .map(|block| Extent::block(BlockIndex(block as u64)).intersect(within))
                .collect();
            assert_eq!(data(&disk, within), wanted.as_slice(), "{within}");
        }
        assert_eq!(disk.failure(), None);
    }
}

/// Rot in one image, and which points must not be given for it.
#[track_caller]
fn rots(image: usize, block: usize, hurt: [bool; 3]) {
    let house = House::new();
    house.rot(image, block);
    for (point, hurt) in hurt.into_iter().enumerate() {
        let (disk, bytes) = (house.open(point).unwrap(), house.bytes(point));
        let whole = read(&disk, 0, bytes.len());
        for format in [Format::Raw, Format::Qcow2] {
            let restored = restore(&house, point, format);
            assert_eq!(restored.is_err(), hurt, "{format:?} of point {point}");
            if let (Ok(restored), Format::Raw) = (&restored, format) {
                assert!(restored == bytes);
            }
        }
        if !hurt {
            assert!(whole.unwrap() == bytes);
            continue;
        }
        let error = whole.unwrap_err();
        let (start, id) = (block * BLOCK, &house.points[point].id);
        let told = format!(
            "block {block} (bytes {start}..{}) of disk 0 of {id}, which lies in {}, does not hold what was backed up",
            start + BLOCK,
            house.file(image)
        );
        assert_eq!((error.kind, disk.failure()), (Kind::Corrupt, Some(told.clone())));
        assert!(chain(&error).contains(&told), "{}", chain(&error));
        // All others are given, also by a read that ends where it begins.
        assert!(read(&disk, 0, start).unwrap() == bytes[..start]);
        assert!(read(&disk, start + BLOCK, 9).unwrap() == bytes[start + BLOCK..][..9]);
        assert_eq!(
            read(&disk, start + 3, 1).unwrap_err().kind,
            Kind::Corrupt,
            "a part of a block is proved by all of it"
        );
    }
}

#[test]
fn a_raw_block_that_rots_in_a_full_is_restored_to_nowhere() {
    rots(0, 4, [true; 3]);
}

#[test]
fn one_that_rots_in_the_middle_of_a_chain_hurts_its_point_and_later_ones() {
    rots(1, 1, [false, true, true]);
}

#[test]
fn one_that_a_newer_point_hides_does_not_hurt_that() {
    rots(0, 7, [true, true, false]);
    rots(0, 1, [true, false, false]);
}

/// Makes an image forget that it holds a block: the entry of its first L2 table says that nothing is there.
fn forget(image: &Path, block: u64) {
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // The header's L1 table, and its first entry: QCOW2's specification.
    let table = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&[0; 8], table + 8 * block).unwrap();
}

#[test]
fn a_block_that_an_image_has_lost_is_no_hole() {
    for (image, block) in [(0, 4), (0, 0), (1, 1), (2, 8)] {
        let house = House::new();
        forget(&house.image(image), block as u64);
        let disk = house.open(2).unwrap();
        let this = Extent::block(BlockIndex(block as u64)).intersect(Extent::whole(disk.size()));
        assert_eq!(data(&disk, this), [this], "block {block}");
        let told = restore(&house, 2, Format::Raw).unwrap_err();
        assert!(told.contains(&format!("block {block} ")) && told.contains(&house.file(image)), "{told}");
    }
}

#[test]
fn a_zero_that_an_image_has_lost_does_not_show_what_lies_below() {
    let house = House::new();
    assert!(house.bytes(0)[3 * BLOCK] != 0 && house.bytes(2)[3 * BLOCK] == 0);
    forget(&house.image(2), 3);
    let told = restore(&house, 2, Format::Raw).unwrap_err();
    assert!(told.contains("block 3 "), "{told}");
}

/// Whatever bit rots, of whatever file: a point is restored as it was, or not at all.
#[test]
fn no_flipped_bit_reaches_a_target() {
    let house = House::new();
    let (mut dice, mut refused) = (Dice(11), 0);
    let (mut given, mut cases) = (0, 0);
    for point in 0..3 {
        for path in [house.image(point), house.image(point).with_extension("digests")] {
            let len = path.metadata().unwrap().len();
            let places: Vec<u64> = (0..40).map(|_| dice.roll() % len).chain([0, 70, len - 1]).collect();
            for at in places {
                let bit = dice.below(8) as u8;
                flip(&path, at, bit);
                for restored in 0..3 {
                    let wanted = house.bytes(restored);
                    let opened = house.open(restored).map_err(|error| chain(&error));
                    let read = opened.and_then(|disk| {
                        let read = read(&disk, 0, wanted.len()).map_err(|error| chain(&error))?;
                        // A restore does not read what is a hole.
                        let (held, data) = (data(&disk, Extent::whole(disk.size())), Extent::block);
                        for (number, block) in (0..).map(BlockIndex).zip(wanted.chunks(BLOCK)) {
                            let is_hole = !held.iter().any(|held| !held.intersect(data(number)).is_empty());
                            assert!(!is_hole || block.iter().all(|byte| *byte == 0), "block {number} is a hole");
                        }
                        Ok(read)
                    });
                    match read {
                        Ok(bytes) => {
                            given += usize::from(restored >= point);
                            let of = &house.points[restored].id;
                            assert!(bytes == wanted, "byte {at} of {} makes {of} wrong", path.display());
                        }
                        Err(_) => refused += 1,
                    }
                    cases += 1;
                }
                flip(&path, at, bit);
            }
        }
    }
    assert!(refused > cases / 4 && given > 0, "{refused} of {cases} were refused");
    assert!(restore(&house, 2, Format::Raw).unwrap() == house.bytes(2), "nobody remembers damage that is gone");
}

#[test]
fn digests_that_rot_are_damage_that_is_told() {
    let house = House::new();
    // The first group, behind the header.
    flip(&house.image(1).with_extension("digests"), 64 + 2048 + 3, 1);
    let disk = house.open(2).unwrap();
    assert_eq!(disk.allocation(Extent::whole(disk.size())).unwrap_err().kind, Kind::Corrupt);
    assert_eq!(read(&disk, 0, 1).unwrap_err().kind, Kind::Corrupt);
    let told = disk.failure().unwrap();
    assert!(told.contains("disk 0 of bk-3") && told.contains("bk-2.digests"), "{told}");
    assert!(restore(&house, 0, Format::Raw).unwrap() == house.bytes(0), "the first point needs them not");
}

/// What is left is given where somebody needs it, and all that is damaged is told.
#[track_caller]
fn passes(house: &House, point: usize, wanted: &[u8], wanted_damage: &[(u64, u64, Given)]) -> Damage {
    let of = |damage: Damage| -> Vec<(u64, u64, Given)> {
        let blocks = |bytes: u64| bytes / BLOCK as u64;
        damage.ranges().iter().map(|(range, given)| (blocks(range.start().0), blocks(range.len().0), *given)).collect()
    };
    // At once, in parts, and as a restore does it: sparsely, and by several at once.
    let disk = house.open_all_the_same(point);
    assert!(read(&disk, 0, wanted.len()).unwrap() == wanted);
    assert_eq!(of(disk.damage()), wanted_damage);
    let disk = house.open_all_the_same(point);
    for at in (0..wanted.len()).step_by(50_000) {
        let len = 50_000.min(wanted.len() - at);
        assert!(read(&disk, at, len).unwrap() == wanted[at..at + len]);
    }
    assert_eq!(of(disk.damage()), wanted_damage);
    let disk = house.open_all_the_same(point);
    let target = Memory::from_bytes(vec![0; wanted.len()]);
    let options = Options { lanes: 3, request_bytes: 3 * BLOCK, level: Level::Off };
    let (name, progress, cancel) = ("disk 0", &Progress::default(), &Cancel::new());
    let job = Restore { name, disk: &disk, target: &target, target_is_zero: true, options, progress, cancel };
    copy::restore(&job).unwrap();
    assert!(target.to_bytes() == wanted);
    assert_eq!((of(disk.damage()), disk.failure()), (wanted_damage.to_vec(), None));
    // Onto what exists, which is compared with what is left.
    let disk = house.open_all_the_same(point);
    let target = Memory::from_bytes(vec![0xee; wanted.len()]);
    let job = Differential { name, disk: &disk, digests: &disk, target: &target, options, progress, cancel };
    copy::differential(&job).unwrap();
    assert!(target.to_bytes() == wanted);
    assert_eq!(of(disk.damage()), wanted_damage);
    disk.damage()
}

#[test]
fn what_is_sound_is_given_as_it_is_where_damage_is_allowed() {
    let house = House::new();
    for point in 0..3 {
        assert!(passes(&house, point, house.bytes(point), &[]).is_empty());
    }
}

#[test]
fn what_rotted_is_given_as_it_is_where_that_is_wanted() {
    let house = House::new();
    house.rot(0, 4);
    house.rot(1, 1);
    house.rot(0, 7);
    let mut wanted = house.bytes(2).to_vec();
    // The bit that flipped in each.
    [1, 4].into_iter().for_each(|block| wanted[block * BLOCK + 777] ^= 4);
    let damage = passes(&house, 2, &wanted, &[(1, 1, Given::AsRead), (4, 1, Given::AsRead)]);
    assert_eq!((damage.blocks(), damage.is_more()), (2, false));
}

#[test]
fn what_cannot_be_decoded_is_zeros_and_what_is_known_to_be_zero_too() {
    let house = House::new();
    // Block 6 is text of the first point's: a frame.
    let disk = house.open(0).unwrap();
    let mut frame = Vec::new();
    assert!(disk.chain().read_frame(BlockIndex(6), &mut frame).unwrap());
    let image = std::fs::read(house.image(0)).unwrap();
    let at = image.windows(frame.len()).position(|part| part == frame).unwrap();
    flip(&house.image(0), at as u64, 0);
    // A block that the image has lost reads as what lies below: nothing.
    forget(&house.image(0), 4);
    // A zero that the third point's has lost would show the first one's text.
    forget(&house.image(2), 3);
    let mut wanted = house.bytes(2).to_vec();
    wanted[4 * BLOCK..5 * BLOCK].fill(0);
    wanted[6 * BLOCK..7 * BLOCK].fill(0);
    passes(&house, 2, &wanted, &[(4, 1, Given::AsRead), (6, 1, Given::Zeros)]);
}

#[test]
fn where_the_digests_are_damaged_nothing_is_proved_and_all_is_given() {
    let house = House::new();
    let digests = house.image(1).with_extension("digests");
    let blocks = house.bytes(2).len().div_ceil(BLOCK) as u64;
    let needed = || house.open_all_the_same(2).needed_bytes(&Cancel::new()).unwrap();
    let whole = needed();
    assert!(whole < house.bytes(2).len() as u64, "a part of the disk is zero");
    // A group, the header, or all of it.
    flip(&digests, 64 + 2048 + 3, 1);
    passes(&house, 2, house.bytes(2), &[(0, blocks, Given::Unproved)]);
    flip(&digests, 3, 1);
    passes(&house, 2, house.bytes(2), &[(0, blocks, Given::Unproved)]);
    assert_eq!(needed(), whole, "what is zero takes no room");
    std::fs::remove_file(&digests).unwrap();
    passes(&house, 2, house.bytes(2), &[(0, blocks, Given::Unproved)]);
    assert!(house.open(2).is_err());
}

#[test]
fn a_table_that_is_lost_costs_its_blocks_and_no_others() {
    let house = House::new();
    // The L1 entry of the second image leads nowhere: of all blocks it is the only one that holds block 1.
    let number =
        |at: u64| u64::from_be_bytes(std::fs::read(house.image(1)).unwrap()[at as usize..][..8].try_into().unwrap());
    let l1 = number(40);
    let file = std::fs::File::options().write(true).open(house.image(1)).unwrap();
    file.write_all_at(&0x8000_0fff_ffff_0000_u64.to_be_bytes(), l1).unwrap();
    let told = restore(&house, 2, Format::Raw).unwrap_err();
    assert!(told.contains("disk 0"), "{told}");
    let disk = house.open_all_the_same(2);
    let bytes = read(&disk, 0, house.bytes(2).len()).unwrap();
    for (block, (read, wanted)) in bytes.chunks(BLOCK).zip(house.bytes(2).chunks(BLOCK)).enumerate() {
        // The third image holds these itself, so they are not looked for below.
        let is_whole = [3, 7, 8].contains(&block) || wanted.iter().all(|byte| *byte == 0);
        assert!(read == wanted || !is_whole && read.iter().all(|byte| *byte == 0), "block {block}");
    }
    assert_eq!(disk.damage().blocks_given(Given::Zeros), 4, "blocks 0, 1, 4 and 6");
}

/// A repository that is away has lost nothing: its blocks are no zeros.
#[test]
fn what_is_away_is_not_taken_for_damage() {
    let house = House::new();
    let disk = house.open_all_the_same(2);
    assert!(disk.passes_over(Kind::Io) && disk.passes_over(Kind::Corrupt));
    assert!([Kind::Unavailable, Kind::Cancelled, Kind::Denied].iter().all(|kind| !disk.passes_over(*kind)));
    let root = house.folder.path().join("repository");
    std::fs::rename(&root, root.with_extension("elsewhere")).unwrap();
    assert!(!disk.passes_over(Kind::Io));
    std::fs::rename(root.with_extension("elsewhere"), &root).unwrap();
    assert!(disk.passes_over(Kind::Io));
    assert!(!house.open(2).unwrap().passes_over(Kind::Corrupt));
}

/// Merged points have one image for both, with the digests of both.
#[test]
fn a_point_that_others_were_merged_into_is_compared_too() {
    for (way, clones) in world::WAYS {
        let house = House::new();
        let repository = world::open_sharing(&house.folder.path().join("repository"), clones).unwrap();
        world::merge_by(way, &repository, &house.points[0]).unwrap();
        assert!(restore(&house, 1, Format::Raw).unwrap() == house.bytes(1));
        assert!(restore(&house, 2, Format::Raw).unwrap() == house.bytes(2));
        // Block 4 was the first point's, and lies in the second's image now.
        house.rot(1, 4);
        for point in [1, 2] {
            let told = restore(&house, point, Format::Raw).unwrap_err();
            assert!(told.contains("block 4 ") && told.contains(&house.file(1)), "{told}");
        }
    }
}
