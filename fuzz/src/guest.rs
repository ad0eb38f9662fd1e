//! Disks of guests: sound ones, made by the file systems' own tools, and what an input changes on them.
//!
//! An input of random bytes is no file system, and a whole one is too large to be an input. So an input's first byte chooses a
//! sound disk, and the rest says which bytes of it are others; or it is itself the disk.

use sendense_block::{ByteLen, ByteOffset, ReadAt};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of a block, which a change lies in.
const BLOCK: u64 = 512;
/// Bytes of one change: the block's number (2), the place in it (2), the byte.
const CHANGE_BYTES: usize = 5;
/// What one input may make a reader read; an honest walk of these disks reads some MiB.
const READ_BYTES_MAX: u64 = 1 << 30;

/// How the disks are made, in an empty folder that has `tree`.
const MAKE: [&str; 7] = [
    "truncate -s 4M disk; mkfs.ext4 -q -F -b 1024 -d tree disk",
    "truncate -s 4M disk; mkfs.ext4 -q -F -O ^extents,^64bit,^metadata_csum -d tree disk",
    "truncate -s 110M disk; mkfs.btrfs -q -r tree disk",
    "truncate -s 4M disk; mkfs.vfat disk; mcopy -s -i disk tree/* ::/",
    "genisoimage -quiet -R -J -o disk tree",
    "truncate -s 4M disk; mkntfs -q -F disk; ntfscp -q disk tree/numbers numbers; ntfscp -q disk tree/few few",
    "truncate -s 300M disk; printf '/dev/null\n0 0\nd--755 0 0\nnumbers ---644 0 0 tree/numbers\nd d--755 0 0\nf ---644 0 0 tree/few\n$\n$\n' > proto
     mkfs.xfs -q -p proto disk",
];

/// A sound disk, as a file that has lost its name, and the blocks that a walk of it reads, which alone are worth a change.
struct Sound {
    file: Arc<File>,
    read: Vec<u64>,
}

/// A disk for an input. Counts what is read, and knows no other changes than the input's.
pub struct Disk {
    bytes: Bytes,
    size: u64,
    changed: BTreeMap<u64, u8>,
    read: Mutex<Read>,
}

enum Bytes {
    Sound(Arc<File>),
    Plain(Vec<u8>),
}

#[derive(Default)]
struct Read {
    bytes: u64,
    /// None where nobody wants to know.
    blocks: Option<BTreeSet<u64>>,
}

impl Disk {
    fn plain(bytes: Vec<u8>) -> Arc<Disk> {
        let size = bytes.len() as u64;
        Arc::new(Disk { bytes: Bytes::Plain(bytes), size, changed: BTreeMap::new(), read: Mutex::default() })
    }

    fn sound(file: Arc<File>, changed: BTreeMap<u64, u8>, read: Read) -> Arc<Disk> {
        let size = file.metadata().expect("an open file").len();
        Arc::new(Disk { bytes: Bytes::Sound(file), size, changed, read: Mutex::new(read) })
    }
}

impl ReadAt for Disk {
    fn size(&self) -> ByteLen {
        ByteLen(self.size)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        sendense_block::device::check_range("disk", self.size(), at, buf.len())?;
        let (from, until) = (at.0, at.0 + buf.len() as u64);
        match &self.bytes {
            Bytes::Sound(file) => file.read_exact_at(buf, from).expect("it is as long as it was"),
            Bytes::Plain(bytes) => buf.copy_from_slice(&bytes[from as usize..until as usize]),
        }
        for (place, byte) in self.changed.range(from..until) {
            buf[(place - from) as usize] = *byte;
        }
        let mut read = self.read.lock().expect("nobody panics while holding it");
        read.bytes += buf.len() as u64;
        assert!(read.bytes < READ_BYTES_MAX, "a disk that is read without end");
        if let Some(blocks) = &mut read.blocks {
            // Empty ones would only ever be changed into noise.
            let used = (from / BLOCK..until.div_ceil(BLOCK)).filter(|block| {
                let part = (block * BLOCK).max(from) - from..((block + 1) * BLOCK).min(until) - from;
                buf[part.start as usize..part.end as usize].iter().any(|byte| *byte != 0)
            });
            blocks.extend(used);
        }
        Ok(())
    }
}

/// The disk that an input means.
pub fn disk(input: &[u8], walk: fn(Arc<Disk>)) -> Arc<Disk> {
    let Some((which, rest)) = input.split_first() else { return Disk::plain(Vec::new()) };
    let Some(sound) = sound(walk).get(usize::from(*which)) else {
        return Disk::plain(rest.to_vec());
    };
    let changes = rest.chunks_exact(CHANGE_BYTES).map(|change| {
        let number = |at: usize| usize::from(u16::from_le_bytes([change[at], change[at + 1]]));
        let block = sound.read[number(0) % sound.read.len()];
        (block * BLOCK + number(2) as u64 % BLOCK, change[4])
    });
    Disk::sound(sound.file.clone(), changes.collect(), Read::default())
}

fn sound(walk: fn(Arc<Disk>)) -> &'static [Sound] {
    static SOUND: OnceLock<Vec<Sound>> = OnceLock::new();
    SOUND.get_or_init(|| MAKE.iter().map(|make| made(make, walk)).collect())
}

fn made(make: &str, walk: fn(Arc<Disk>)) -> Sound {
    let dir = tempfile::tempdir().expect("there is room for a folder");
    let tree = "mkdir -p tree/d/e; seq 1 20000 > tree/numbers; echo few > tree/few; cp tree/few tree/d/f; seq -f tree/d/e/n%g 200 | xargs touch";
    let run =
        Command::new("bash").args(["-euc", &format!("exec > log 2>&1; {tree}; {make}")]).current_dir(&dir).status();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    assert!(run.is_ok_and(|status| status.success()), "{make}\n{log}\n(Debian packages: scripts/deps.sh fuzz)");
    let file = Arc::new(File::open(dir.path().join("disk")).expect("the disk was made"));
    let disk = Disk::sound(file.clone(), BTreeMap::new(), Read { bytes: 0, blocks: Some(BTreeSet::new()) });
    walk(disk.clone());
    let read = std::mem::take(&mut *disk.read.lock().expect("nobody panics while holding it"));
    let read: Vec<u64> = read.blocks.unwrap_or_default().into_iter().collect();
    assert!(read.len() > 10, "{make}: a walk read {} blocks", read.len());
    Sound { file, read }
}

/// Each disk as it is, with a few changes, and two plain ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..MAKE.len() as u8).map(|which| vec![which]).collect();
    for which in 0..MAKE.len() as u8 {
        let changes =
            (0..40u8).flat_map(|number| [number.wrapping_mul(7), 0, number.wrapping_mul(13), 0, 0xff - number]);
        seeds.push(std::iter::once(which).chain(changes).collect());
    }
    let mut table = vec![0; 64 * 512];
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    table[446 + 4] = 0x83;
    table[446 + 8] = 8;
    table[446 + 12] = 32;
    table[8 * 512..8 * 512 + 6].copy_from_slice(b"LUKS\xba\xbe");
    seeds.push([vec![0xff], table.clone()].concat());
    table[512..520].copy_from_slice(b"EFI PART");
    table[8 * 512 + 512..8 * 512 + 520].copy_from_slice(b"LABELONE");
    seeds.push([vec![0xff], table].concat());
    seeds
}
