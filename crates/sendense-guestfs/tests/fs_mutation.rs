//! Damaged images: a reader answers or refuses, soon, in bounded memory, and never panics.
//!
//! The bytes that a walk over a sound image reads are changed at random, one to many a time; where a file system has
//! checksums they are made right again half of the time, or every change would end there. `SENDENSE_MUTATIONS` sets the runs
//! for each image, `SENDENSE_MUTATION_SEED` the first seed.
#![allow(clippy::unwrap_used)]

mod fs_support;

use fs_support::*;
use sendense_block::{ByteLen, ByteOffset, ReadAt};
use sendense_guestfs::meta::FileType;
use sendense_guestfs::native::{FileSystem, fs};
use sendense_guestfs::{GuestPath, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Runs for each image when nothing else is asked for: 540 in all, in some seconds.
const RUNS: u64 = 60;
/// A walk of a sound image takes a fifth of a second without optimisation; a damaged one may read more, within bounds.
const RUN_TIME_MAX: Duration = Duration::from_secs(20);
/// What one walk may read from the device.
const READ_BYTES_MAX: u64 = 4 << 30;
const BLOCK: u64 = 512;

/// An image with changed blocks. Also counts what is read, and which blocks.
struct Disk {
    bytes: Arc<Vec<u8>>,
    changed: BTreeMap<u64, Vec<u8>>,
    read: AtomicU64,
    touched: Mutex<BTreeSet<u64>>,
    records: bool,
}

impl Disk {
    fn new(bytes: Arc<Vec<u8>>, changed: BTreeMap<u64, Vec<u8>>, records: bool) -> Disk {
        Disk { bytes, changed, read: AtomicU64::new(0), touched: Mutex::default(), records }
    }
}

impl ReadAt for Disk {
    fn size(&self) -> ByteLen {
        ByteLen(self.bytes.len() as u64)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        sendense_block::device::check_range("disk", self.size(), at, buf.len())?;
        let start = at.0 as usize;
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        let end = at.0 + buf.len() as u64;
        for (block, contents) in self.changed.range(at.0 / BLOCK..end.div_ceil(BLOCK)) {
            let (from, to) = ((block * BLOCK).max(at.0), ((block + 1) * BLOCK).min(end));
            buf[(from - at.0) as usize..(to - at.0) as usize]
                .copy_from_slice(&contents[(from - block * BLOCK) as usize..(to - block * BLOCK) as usize]);
        }
        let before = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if before > READ_BYTES_MAX {
            return Err(sendense_block::Error::new(
                sendense_block::Kind::Deadline,
                "read more than a walk may".to_owned(),
            ));
        }
        if self.records {
            self.touched.lock().unwrap().extend((at.0 / BLOCK..end.div_ceil(BLOCK)).filter(|block| {
                // Empty blocks would only ever be changed into noise.
                self.bytes[(block * BLOCK) as usize..].iter().take(BLOCK as usize).any(|byte| *byte != 0)
            }));
        }
        Ok(())
    }
}

/// Random numbers that a seed repeats (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Everything a user could ask for, but bounded: entries, bytes of each file, depth.
fn walk(fs: &mut dyn FileSystem) -> Result<()> {
    let mut folders = vec![GuestPath::root()];
    let mut entries = 0;
    let mut buf = vec![0; 64 * 1024];
    while let Some(folder) = folders.pop() {
        let mut after = None;
        while let Ok(page) = fs.list(&folder, after, 64) {
            for entry in page.entries {
                entries += 1;
                let path = folder.join(&entry.name).unwrap();
                assert!(entry.name.len() <= sendense_guestfs::path::NAME_BYTES_MAX);
                let _ = fs.stat(&path);
                let _ = fs.readlink(&path);
                if let Ok(mut file) = fs.open(&path) {
                    let size = file.size();
                    for at in [0, 5000, size / 2, size.saturating_sub(100), u64::MAX - 10] {
                        let _ = file.read_at(at, &mut buf);
                    }
                    let mut at = 0;
                    for _ in 0..20 {
                        match file.next_data(at) {
                            Ok(Some(range)) => {
                                assert!(range.start >= at && range.start < range.end && range.end <= size);
                                at = range.end;
                            }
                            _ => break,
                        }
                    }
                }
                if entry.meta.file_type == FileType::Directory && path.components().len() < 12 && folders.len() < 50 {
                    folders.push(path);
                }
            }
            match page.next {
                Some(next) if entries < 2000 => {
                    assert!(after.is_none_or(|after| next > after), "a page leads back");
                    after = Some(next);
                }
                _ => break,
            }
        }
        if entries >= 2000 {
            break;
        }
    }
    Ok(())
}

/// Puts a checksum right over a changed block where one of the known structures lies.
fn reseal(kind: &str, bytes: &[u8], changed: &mut BTreeMap<u64, Vec<u8>>) {
    let whole = |at: u64, len: u64, changed: &BTreeMap<u64, Vec<u8>>| -> Option<Vec<u8>> {
        let mut block = bytes.get(at as usize..(at + len) as usize)?.to_vec();
        for (number, contents) in changed.range(at / BLOCK..(at + len) / BLOCK) {
            let from = (number * BLOCK - at) as usize;
            block[from..from + BLOCK as usize].copy_from_slice(contents);
        }
        Some(block)
    };
    for number in changed.keys().copied().collect::<Vec<_>>() {
        let at = number * BLOCK;
        let found = match kind {
            "btrfs" => Some((at / 16384 * 16384, 16384, 0..4, 32..16384)),
            "xfs" => {
                let inode = whole(at, 512, changed).filter(|block| block.starts_with(b"IN"));
                let block = whole(at / 4096 * 4096, 4096, changed);
                let magic = block.as_ref().map(|block| &block[..4]);
                match (inode, magic) {
                    (Some(_), _) => Some((at, 512, 100..104, 0..512)),
                    (_, Some(b"XDB3" | b"XDD3")) => Some((at / 4096 * 4096, 4096, 4..8, 0..4096)),
                    (_, Some(b"BMA3")) => Some((at / 4096 * 4096, 4096, 64..68, 0..4096)),
                    _ => None,
                }
            }
            _ => None,
        };
        let Some((start, len, sum_at, covered)) = found else { continue };
        let Some(mut block) = whole(start, len, changed) else { continue };
        block[sum_at.clone()].fill(0);
        let sum = crc32c(&block[covered]).to_le_bytes();
        block[sum_at].copy_from_slice(&sum);
        for (number, contents) in (start / BLOCK..).zip(block.chunks_exact(BLOCK as usize)) {
            changed.insert(number, contents.to_vec());
        }
    }
}

/// Bit by bit: slow, and not the reader's own.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

fn mutate(name: &str, image: &Path) {
    let setting =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (runs, seed) = (setting("SENDENSE_MUTATIONS", RUNS), setting("SENDENSE_MUTATION_SEED", 1));
    let bytes = Arc::new(std::fs::read(image).unwrap());
    let sound = Arc::new(Disk::new(bytes.clone(), BTreeMap::new(), true));
    let mut fs = fs::open(sound.clone()).unwrap();
    let kind = fs.facts().kind;
    walk(&mut *fs).unwrap();
    let touched: Vec<u64> = sound.touched.lock().unwrap().iter().copied().collect();
    assert!(touched.len() > 20, "{name}: a walk read {} blocks", touched.len());
    let (mut opened, mut slowest) = (0, Duration::ZERO);
    for run in seed..seed + runs {
        let mut random = Random(run);
        let mut changed = BTreeMap::new();
        for _ in 0..1 << random.below(8) {
            let block = touched[random.below(touched.len())];
            let original = || bytes[(block * BLOCK) as usize..((block + 1) * BLOCK) as usize].to_vec();
            let contents: &mut Vec<u8> = changed.entry(block).or_insert_with(original);
            let at = random.below(contents.len());
            // Numbers at the edge break more than random ones.
            let value = [0, 0xff, 0x7f, 0x80, 1, random.next() as u8][random.below(6)];
            let len = [1, 1, 2, 4, 8][random.below(5)].min(contents.len() - at);
            contents[at..at + len].fill(value);
        }
        if run % 2 == 0 {
            reseal(kind, &bytes, &mut changed);
        }
        let begin = Instant::now();
        let disk = Arc::new(Disk::new(bytes.clone(), changed, false));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match fs::open(disk.clone()) {
            Ok(mut fs) => walk(&mut *fs).is_ok(),
            Err(_) => false,
        }));
        let took = begin.elapsed();
        slowest = slowest.max(took);
        opened += u64::from(outcome.unwrap_or_else(|_| panic!("{name}: seed {run} panicked")));
        assert!(took < RUN_TIME_MAX, "{name}: seed {run} took {took:?}");
        assert!(disk.read.load(Ordering::Relaxed) < READ_BYTES_MAX, "{name}: seed {run} reads without end");
    }
    assert!(opened > 0, "{name}: no damaged image could be opened, so that nothing was tested");
    // 64 MiB for the reader; the rest is the test's own: images, at most 320 MiB each, one at a time, and the harness.
    assert!(memory_peak_kib() < 1 << 20, "{} KiB", memory_peak_kib());
}

fn memory_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn fill(image: &Path, options: &str) {
    let mounted = Mounted::new(image, options);
    build_plain_tree(&mounted.dir, 150);
    sh(&mounted.dir, "ln -sf etc/passwd link; sync -f .");
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(mounted.dir.join("pieces")).unwrap();
    for piece in 0..300_u64 {
        file.write_all_at(&[1; 512], piece * 12288).unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn ext_with_and_without_checksums() {
    let dir = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("plain", "-t ext4 -O ^metadata_csum"),
        ("three", "-t ext3 -b 1024"),
        ("inline", "-t ext4 -O inline_data,^metadata_csum"),
    ] {
        sh(dir.path(), &format!("truncate -s 48M {name}.img; mke2fs -q {options} {name}.img"));
        let image = dir.path().join(format!("{name}.img"));
        let mounted = Mounted::new(&image, ",commit=300");
        build_plain_tree(&mounted.dir, 150);
        sh(
            &mounted.dir,
            "ln -s etc/passwd link; sync -f .; rm -r many; mkdir other; sync -f .; touch other/x; sync -f .",
        );
        // While mounted, so that the journal is replayed too.
        let copy = image.with_extension("copy");
        std::fs::copy(&image, &copy).unwrap();
        drop(mounted);
        mutate(name, &copy);
    }
}

#[test]
fn xfs_with_a_dirty_log() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), "truncate -s 320M x.img; mkfs.xfs -q x.img");
    let image = dir.path().join("x.img");
    fill(&image, "");
    mutate("xfs", &image);
    let mounted = Mounted::new(&image, "");
    sh(&mounted.dir, "rm -r many; mkdir other; for i in {1..60}; do echo $i > other/$i; done; sync -f .");
    let copy = image.with_extension("copy");
    std::fs::copy(&image, &copy).unwrap();
    drop(mounted);
    mutate("xfs, dirty", &copy);
}

#[test]
fn btrfs_compressed() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), "truncate -s 160M b.img; mkfs.btrfs -q b.img");
    let image = dir.path().join("b.img");
    fill(&image, ",compress-force=zstd");
    fill(&image, ",compress-force=lzo");
    mutate("btrfs", &image);
}

#[test]
fn ntfs() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), "truncate -s 64M n.img; mkntfs -q -F n.img 2>/dev/null");
    let image = dir.path().join("n.img");
    fill(&image, ",compression");
    let mounted = Mounted::new(&image, ",compression");
    sh(&mounted.dir, "mkdir p; setfattr -h -v 0x00080000 -n system.ntfs_attrib p; seq 1 30000 > p/numbers");
    drop(mounted);
    mutate("ntfs", &image);
    index_sizes_are_only_claims(&image);
}

/// Folders whose index claims to be as large as a disk can be: what it has is read, and no more is counted.
fn index_sizes_are_only_claims(image: &Path) {
    const INDEX_ALLOCATION: u32 = 0xa0;
    let mut bytes = std::fs::read(image).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let mut claims = 0;
    for record in
        (0..bytes.len() - 1023).step_by(1024).filter(|at| bytes[*at..].starts_with(b"FILE")).collect::<Vec<_>>()
    {
        let mut at = record + usize::from(bytes[record + 20]);
        while at + 64 <= record + 1024 && ![u32::MAX, 0].contains(&word(&bytes, at)) && word(&bytes, at + 4) != 0 {
            if word(&bytes, at) == INDEX_ALLOCATION {
                // The upper bytes of its size.
                bytes[at + 53..at + 56].fill(0x80);
                claims += 1;
            }
            at += word(&bytes, at + 4) as usize;
        }
    }
    assert!(claims > 0);
    let begin = Instant::now();
    let mut fs = fs::open(Arc::new(Disk::new(Arc::new(bytes), BTreeMap::new(), false))).unwrap();
    walk(&mut *fs).unwrap();
    assert!(begin.elapsed() < RUN_TIME_MAX);
}

#[test]
fn fat_and_iso() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    build_plain_tree(&tree, 150);
    sh(dir.path(), "truncate -s 32M f.img; mkfs.vfat -F 16 f.img >/dev/null; mcopy -sQ -i f.img tree/* ::/");
    mutate("vfat", &dir.path().join("f.img"));
    sh(dir.path(), "ln -s etc/passwd tree/link; genisoimage -quiet -R -J -joliet-long -o i.iso tree 2>/dev/null");
    mutate("iso9660", &dir.path().join("i.iso"));
}
