//! Disks of every awkward size.

use crate::layout;
use crate::repository::Repository;
use crate::testing::now;
use crate::testing::qemu;
use crate::testing::world::{self, Point, back_up, pattern};
use crate::verify::Depth;
use crate::{DiskSpec, DraftSpec};
use sendense_block::{Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Digest, Payload, ReadAt};
use sendense_types::{BackupId, DiskBinding, DiskNumber};

/// One chain whose disk has another size in each point: what was cut off never comes back when it grows again.
#[test]
fn a_disk_grows_and_shrinks_by_odd_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let whole = pattern(1, 3 * 65536 + 1);
    let mut points = vec![Point::full("vm-a", "bk-0", &[&whole])];
    for (number, size) in [1, 65537, 511, 131_072, 65535, 0, 513, 65536, 200_000].into_iter().enumerate() {
        let mut point = points[number].child(&format!("bk-{}", number + 1));
        point.disk(0).resize(size, 0);
        // Something is written here and there, and half of the time nothing.
        if number % 2 == 0 && size > 600 {
            point.disk(0)[size - 600..size - 590].fill(number as u8 + 1);
        }
        points.push(point);
    }
    for point in &points {
        back_up(&repository, point, now()).unwrap();
    }
    for point in &points {
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&root, &points.iter().collect::<Vec<_>>());
}

#[test]
fn a_disk_of_nothing_but_zeros_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let first = Point::full("vm-a", "bk-1", &[&[0; 300_000]]);
    let second = first.child("bk-2");
    for point in [&first, &second] {
        let manifest = back_up(&repository, point, now()).unwrap();
        let image = &manifest.disks[0].image;
        assert_eq!((image.data_blocks, image.zero_blocks, image.stored_bytes), (0, 0, 0));
        world::check_bytes(&repository, point).unwrap();
        world::check_sound(&repository, point, Depth::Deep).unwrap();
    }
    qemu::check(&root, &[&first, &second]);
}

const TIB: u64 = 1 << 40;
/// An odd end.
const CAPACITY: ByteLen = ByteLen(TIB + 777);

/// Makes a point of a 1 TiB disk that holds these blocks, each filled with one byte.
fn back_up_huge(repository: &Repository, id: &str, parent: Option<&str>, blocks: &[(u64, u8)]) {
    let mut point = Point::full("vm-huge", id, &[]);
    let parent: Option<BackupId> = parent.map(|id| id.parse().unwrap());
    point.disks.insert(DiskNumber(0), world::Disk { bytes: Vec::new(), parent: parent.clone() });
    let spec = DraftSpec {
        backup_id: point.id.clone(),
        vm_context_id: point.vm.clone(),
        parents: point.parents(),
        expected_bytes: 1 << 20,
        who: "test".into(),
    };
    let mut draft = repository.begin_draft(spec, now()).unwrap();
    let binding = DiskBinding("huge".into());
    let disk = draft.begin_disk(DiskSpec { number: DiskNumber(0), binding, capacity: CAPACITY, parent }).unwrap();
    for (index, byte) in blocks {
        let mut bytes = vec![*byte; 65536];
        // The tail is padded with zeros.
        bytes[(CAPACITY.0 - index * 65536).min(65536) as usize..].fill(0);
        let (digest, payload) = match byte {
            0 => (Digest::of_zero_block(), Payload::Zero),
            _ => (Digest::of(&bytes), Payload::Raw(&bytes)),
        };
        disk.put(&[Block { index: BlockIndex(*index), digest, payload }]).unwrap();
    }
    draft.seal().unwrap().publish(world::facts(&point), now()).unwrap();
}

#[test]
fn a_sparse_disk_of_one_tebibyte_takes_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let repository = world::open(&root).unwrap();
    let (middle, last) = (TIB / 2 / 65536, TIB / 65536);
    back_up_huge(&repository, "bk-1", None, &[(0, 1), (middle, 2), (last - 1, 3), (last, 4)]);
    back_up_huge(&repository, "bk-2", Some("bk-1"), &[(middle, 0), (middle + 1, 5), (last, 6)]);
    let point = Point { vm: "vm-huge".parse().unwrap(), id: "bk-2".parse().unwrap(), disks: [].into() };
    world::check_sound(&repository, &point, Depth::Deep).unwrap();
    let disk = repository.open_disk(&point.vm, &point.id, DiskNumber(0), "test").unwrap();
    assert_eq!(disk.size(), CAPACITY);
    let image = root.join(layout::image(&point.vm, DiskNumber(0), &point.id));
    let image = image.to_str().unwrap();
    let mut reads = Vec::new();
    for (index, byte) in [(0, 1), (1, 0), (middle, 0), (middle + 1, 5), (last - 1, 3), (last, 6)] {
        let at = index * 65536;
        let len = (CAPACITY.0 - at).min(65536);
        let mut bytes = vec![0xEE; len as usize];
        disk.read_at(ByteOffset(at), &mut bytes).unwrap();
        assert!(bytes.iter().all(|found| *found == byte), "block {index}");
        reads.extend(["-c".to_owned(), format!("read -P {byte} {at} {len}")]);
    }
    qemu::run("qemu-img", &["check", "-q", "-f", "qcow2", image]);
    let mut args = vec!["-r", "-f", "qcow2", image];
    args.extend(reads.iter().map(String::as_str));
    let said = qemu::run("qemu-io", &args);
    assert!(!said.contains("verification failed"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("read ")).count(), 6, "{said}");
    // Seven blocks of 64 KiB, two images with their tables, two digests files with an index of 64 KiB each.
    let bytes: u64 = world::tree(&root).iter().map(|file| root.join(file).metadata().unwrap().len()).sum();
    assert!(bytes < 3 << 20, "{bytes}");
}
