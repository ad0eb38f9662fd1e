//! On real files: locks, other bases, holes, large disks, threads.

use crate::backend::Memory;
use crate::device::{AllocationMap, ChangeMap, Content, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange};
use crate::error::{Kind, Result};
use crate::extent::Extent;
use crate::overlay::{Held, Overlay};
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

const B: u64 = BLOCK_BYTES;

/// A base of zeros that takes no memory.
struct Nothing(u64);

impl ReadAt for Nothing {
    fn size(&self) -> ByteLen {
        ByteLen(self.0)
    }
    fn read_at(&self, _: ByteOffset, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
}

impl AllocationMap for Nothing {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        Ok(vec![MappedExtent { extent: within, content: Content::Zero }])
    }
}

fn extent(at: u64, len: u64) -> Extent {
    Extent::new(ByteOffset(at), ByteLen(len)).unwrap()
}

#[test]
fn one_process_at_a_time_and_one_base_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let base = || Arc::new(Nothing(10 * B + 1));
    assert_eq!(Overlay::open(dir.path(), base(), b"a").map(|_| ()).unwrap_err().kind, Kind::NotFound);
    let overlay = Overlay::create(dir.path(), base(), b"a").unwrap();
    for name in ["data", "journal", "lock"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(Overlay::open(dir.path(), base(), b"a").map(|_| ()).unwrap_err().kind, Kind::Unavailable);
    assert_eq!(Overlay::remove(dir.path()).unwrap_err().kind, Kind::Unavailable);
    overlay.write_at(ByteOffset(10 * B), &[9]).unwrap();
    for (at, len) in [(10 * B, 2), (10 * B + 1, 1), (u64::MAX, 1)] {
        assert_eq!(overlay.write_at(ByteOffset(at), &vec![1; len]).unwrap_err().kind, Kind::OutOfRange);
    }
    overlay.flush().unwrap();
    drop(overlay);
    let fails = |base: Arc<Nothing>, id: &[u8]| Overlay::open(dir.path(), base, id).map(|_| ()).unwrap_err().kind;
    assert_eq!(fails(base(), b"b"), Kind::Invalid);
    assert_eq!(fails(Arc::new(Nothing(10 * B)), b"a"), Kind::Invalid);
    assert_eq!(Overlay::create(dir.path(), base(), b"a").map(|_| ()).unwrap_err().kind, Kind::Exists);
    let overlay = Overlay::open(dir.path(), base(), b"a").unwrap();
    assert_eq!(overlay.changed(Extent::whole(overlay.size())).unwrap().as_slice(), [extent(10 * B, 1)]);
    drop(overlay);
    std::fs::write(dir.path().join("mine"), "stays").unwrap();
    Overlay::remove(dir.path()).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    // Data without a journal is somebody's overlay still; an empty file is not.
    std::fs::write(dir.path().join("data"), "x").unwrap();
    assert_eq!(Overlay::create(dir.path(), base(), b"a").map(|_| ()).unwrap_err().kind, Kind::Corrupt);
    Overlay::remove(dir.path()).unwrap();
    std::fs::write(dir.path().join("data"), "").unwrap();
    drop(Overlay::create(dir.path(), base(), b"a").unwrap());
    std::fs::OpenOptions::new().write(true).open(dir.path().join("data")).unwrap().set_len(B).unwrap();
    assert_eq!(Overlay::open(dir.path(), base(), b"a").map(|_| ()).unwrap_err().kind, Kind::Corrupt);
    let too_long = Overlay::create(dir.path(), base(), &[0; 1025]).map(|_| ()).unwrap_err();
    assert_eq!(too_long.kind, Kind::Invalid);
}

#[test]
fn discarding_gives_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay::create(dir.path(), Arc::new(Nothing(64 * B)), b"").unwrap();
    overlay.write_at(ByteOffset(0), &vec![1; 64 * B as usize]).unwrap();
    overlay.flush().unwrap();
    let used = || std::fs::metadata(dir.path().join("data")).unwrap().blocks() * 512;
    assert!(used() >= 64 * B, "{}", used());
    overlay.zero_range(extent(B / 2, 63 * B)).unwrap();
    overlay.flush().unwrap();
    assert!(used() <= 3 * B, "{}", used());
    assert_eq!(overlay.held(), Held { data: ByteLen(2 * B), zero: ByteLen(62 * B) });
}

#[test]
fn a_disk_of_many_groups_is_kept() {
    // More changed groups than one append takes.
    let (stride, count) = (512 << 20, 300);
    let dir = tempfile::tempdir().unwrap();
    let base = || Arc::new(Nothing(count * stride));
    let overlay = Overlay::create(dir.path(), base(), b"").unwrap();
    for n in 0..count {
        overlay.write_at(ByteOffset(n * stride + 512), &[n as u8 | 1; 16]).unwrap();
    }
    overlay.flush().unwrap();
    overlay.zero_range(extent(stride / 2, 100 * stride)).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let overlay = Overlay::open(dir.path(), base(), b"").unwrap();
    for n in 0..count {
        let mut bytes = [7; 17];
        overlay.read_at(ByteOffset(n * stride + 512), &mut bytes).unwrap();
        let want = if (1..=100).contains(&n) { 0 } else { n as u8 | 1 };
        assert_eq!(bytes, *[[want; 16].as_slice(), &[0]].concat(), "group {n}");
    }
    assert_eq!(overlay.held().data.0, 200 * B);
    assert_eq!(overlay.held().zero.0, 100 * stride);
}

#[test]
fn threads_that_share_blocks_do_not_lose_each_others_writes() {
    const THREADS: u64 = 6;
    const PART: u64 = 512;
    let dir = tempfile::tempdir().unwrap();
    let base = || Arc::new(Memory::from_bytes(vec![0xaa; 8 * B as usize]));
    let overlay = Overlay::create(dir.path(), base(), b"").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let overlay = &overlay;
            scope.spawn(move || {
                // Each thread has its own sectors of every block; the first write of a block fills what belongs to others.
                for round in 0..40 {
                    for block in 0..8 {
                        let at = ByteOffset(block * B + thread * PART);
                        if (round + thread) % 5 == 0 {
                            overlay.zero_range(extent(at.0, PART)).unwrap();
                        }
                        overlay.write_at(at, &[(round + thread) as u8; PART as usize]).unwrap();
                        let mut read = [0; PART as usize];
                        overlay.read_at(at, &mut read).unwrap();
                        assert_eq!(read, [(round + thread) as u8; PART as usize]);
                    }
                    if round % 8 == thread {
                        overlay.flush().unwrap();
                    }
                }
                overlay.flush().unwrap();
            });
        }
    });
    drop(overlay);
    let overlay = Overlay::open(dir.path(), base(), b"").unwrap();
    for block in 0..8 {
        let mut bytes = vec![0; B as usize];
        overlay.read_at(ByteOffset(block * B), &mut bytes).unwrap();
        for (part, bytes) in bytes.chunks(PART as usize).enumerate() {
            let want = if (part as u64) < THREADS { 39 + part as u8 } else { 0xaa };
            assert!(bytes.iter().all(|byte| *byte == want), "block {block}, part {part}");
        }
    }
}
