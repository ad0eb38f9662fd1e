//! Images, mounts and the comparison of what a reader shows with what the kernel shows.
#![allow(dead_code, clippy::unwrap_used)]

use sendense_block::backend::{File, Options};
use sendense_guestfs::meta::{FileType, Meta};
use sendense_guestfs::native::{FileSystem, fs};
use sendense_guestfs::{GuestPath, Result};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Runs a shell script in `dir` and returns what it prints.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash").arg("-euc").arg(script).current_dir(dir).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}\n(Debian packages: scripts/deps.sh test)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails when a program is missing.
pub fn need(program: &str, package: &str) {
    let found = Command::new("sh").arg("-c").arg(format!("command -v {program}")).output().unwrap().status.success();
    assert!(found, "{program} is missing: install the Debian package {package}");
}

/// An image mounted through a loop device until dropped. Needs root.
pub struct Mounted {
    pub dir: PathBuf,
    image: PathBuf,
}

impl Mounted {
    pub fn new(image: &Path, options: &str) -> Mounted {
        assert_eq!(sh(Path::new("/"), "id -u").trim(), "0", "this test mounts images, which needs root");
        // Beside the image and named after all of it: images that differ in their extension are mounted at the same time.
        let dir = PathBuf::from(format!("{}.mnt", image.display()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = format!("mount -o loop{options} {} {}", image.display(), dir.display());
        sh(Path::new("/"), &script);
        Mounted { dir, image: image.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Something that looks at new mounts may hold it for a moment; what stays mounted would falsify what follows.
        for _ in 0..100 {
            if Command::new("umount").arg(&self.dir).output().unwrap().status.success() {
                return self.wait_until_written();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(std::thread::panicking(), "umount {}", self.dir.display());
    }
}

impl Mounted {
    /// A process that copied the mounts in this moment holds the file system a little longer, and with it what is not written
    /// yet. The loop device goes with its last use.
    fn wait_until_written(&self) {
        let uses = || Command::new("losetup").arg("--associated").arg(&self.image).output().unwrap().stdout;
        for _ in 0..1200 {
            if uses().is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(std::thread::panicking(), "{} is still mounted somewhere", self.image.display());
    }
}

/// Opens an image by its contents.
pub fn try_open(image: &Path) -> Result<Box<dyn FileSystem>> {
    fs::open(Arc::new(File::open(image, Options::Read).unwrap()))
}

pub fn open(image: &Path) -> Box<dyn FileSystem> {
    try_open(image).unwrap_or_else(|error| panic!("open {}: {error}", image.display()))
}

/// What blkid says: (type, label, uuid).
pub fn blkid(image: &Path) -> (String, Option<String>, Option<String>) {
    let field = |name: &str| {
        let script = format!("blkid -p -o value -s {name} {} || true", image.display());
        Some(sh(Path::new("/"), &script).trim().to_owned()).filter(|text| !text.is_empty())
    };
    (field("TYPE").unwrap(), field("LABEL"), field("UUID"))
}

/// All that is compared of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub file_type: FileType,
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub inode: u64,
    pub size: u64,
    pub modified: (i64, u32),
    pub target: Option<Vec<u8>>,
    pub digest: Option<String>,
}

pub type Tree = BTreeMap<Vec<u8>, Shown>;

/// Files longer than this are compared at their data only.
const DIGEST_MAX: u64 = 64 * 1024 * 1024;

/// A mounted tree, as the kernel shows it.
pub fn kernel_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let full = root.join(&path);
            let meta = std::fs::symlink_metadata(&full).unwrap();
            let kind = meta.file_type();
            let file_type = if kind.is_file() {
                FileType::File
            } else if kind.is_dir() {
                folders.push(path.clone());
                FileType::Directory
            } else if kind.is_symlink() {
                FileType::Symlink
            } else {
                FileType::Other
            };
            let digest = (file_type == FileType::File && meta.len() <= DIGEST_MAX)
                .then(|| blake3::hash(&std::fs::read(&full).unwrap()).to_string());
            let target = kind.is_symlink().then(|| std::fs::read_link(&full).unwrap().into_os_string().into_vec());
            let shown = Shown {
                file_type,
                mode: meta.permissions().mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                links: meta.nlink(),
                inode: meta.ino(),
                size: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec() as u32),
                target,
                digest,
            };
            tree.insert([b"/", path.as_os_str().as_bytes()].concat(), shown);
        }
    }
    tree
}

/// The same of a reader: every page, every entry, every byte. Also checks that pages hold each name once and agree with
/// `stat` and `readlink`.
pub fn reader_tree(fs: &mut dyn FileSystem, page: usize) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![GuestPath::root()];
    while let Some(folder) = folders.pop() {
        let mut after = None;
        loop {
            let listed = fs.list(&folder, after, page).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
            assert!(listed.entries.len() <= page);
            for entry in listed.entries {
                let path = folder.join(&entry.name).unwrap();
                let meta = fs.stat(&path).unwrap();
                assert_eq!(meta, entry.meta, "{path:?}");
                let target = (meta.file_type == FileType::Symlink).then(|| fs.readlink(&path).unwrap());
                assert_eq!(target, entry.target);
                let small = meta.file_type == FileType::File && meta.size_bytes <= DIGEST_MAX;
                let digest = small.then(|| digest(fs, &path, &meta));
                if meta.file_type == FileType::Directory {
                    folders.push(path.clone());
                }
                let before = tree.insert(path.to_bytes(), shown(&meta, target, digest));
                assert!(before.is_none(), "{path:?} was listed twice");
            }
            match listed.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    tree
}

fn shown(meta: &Meta, target: Option<Vec<u8>>, digest: Option<String>) -> Shown {
    Shown {
        file_type: meta.file_type,
        mode: meta.mode,
        owner: (meta.uid, meta.gid),
        links: meta.links.into(),
        inode: meta.inode,
        size: meta.size_bytes,
        modified: meta.modified.map_or((0, 0), |time| (time.seconds, time.nanoseconds)),
        target,
        digest,
    }
}

/// The digest of a file, read in pieces that fit no block size.
fn digest(fs: &mut dyn FileSystem, path: &GuestPath, meta: &Meta) -> String {
    let mut file = fs.open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_eq!(file.size(), meta.size_bytes);
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0xaa; 100_003];
    let mut offset = 0;
    loop {
        let len = file.read_at(offset, &mut buf).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        hasher.update(&buf[..len]);
        offset += len as u64;
        if len < buf.len() {
            break;
        }
    }
    assert_eq!(offset, meta.size_bytes, "{path:?}");
    hasher.finalize().to_string()
}

/// Compares two trees and names the first difference.
pub fn same<T: PartialEq + Debug>(kernel: &BTreeMap<Vec<u8>, T>, reader: &BTreeMap<Vec<u8>, T>) {
    for (path, shown) in kernel {
        assert_eq!(reader.get(path), Some(shown), "{}", String::from_utf8_lossy(path));
    }
    for path in reader.keys() {
        assert!(kernel.contains_key(path), "{} is not there", String::from_utf8_lossy(path));
    }
}

/// A file's contents.
pub fn cat(fs: &mut dyn FileSystem, path: &str) -> Result<Vec<u8>> {
    let mut file = fs.open(&GuestPath::parse(path.as_bytes()).unwrap())?;
    let mut bytes = vec![0; file.size() as usize];
    let len = file.read_at(0, &mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Builds the tree that a hostile or merely unusual guest may have.
pub fn build_tree(dir: &Path, entries: usize) {
    sh(
        dir,
        "mkdir -p etc many; printf root:x:0:0 > etc/passwd; head -c 3000000 /dev/urandom > big; : > empty
         head -c 5000 /dev/urandom > etc/few; printf %1000s x > etc/fast
         ln -s /etc/passwd evil; ln -s ../../../../etc/shadow evil_rel; ln -s loop_b loop_a; ln -s loop_a loop_b; ln -s / root
         ln -s $(printf '%0.sx' {1..200}) long_link; ln etc/few hard; mkfifo fifo
         chmod 4711 etc/passwd; touch -d @-86400.25 etc/few; touch -d '2400-01-02 03:04:05.678901234' etc/fast
         chmod 1777 etc; mkdir -p locked; chmod 0 locked",
    );
    if Command::new("sh").arg("-c").arg("mknod dev b 7 0 && chown 70000:80000 big").current_dir(dir).status().is_err() {
        panic!("mknod");
    }
    for name in [&b"line\nbreak"[..], b"\xff\xfe not text", &[b'n'; 255], b" ", b"\\", b"a:b*?\"<>|"] {
        std::fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for index in 0..entries {
        std::fs::write(dir.join(format!("many/file_{index:06}")), format!("content {index}\n")).unwrap();
    }
    let mut deep = OsString::from(".");
    for level in 0..200 {
        deep.push(format!("/d{level}"));
    }
    std::fs::create_dir_all(dir.join(&deep)).unwrap();
    std::fs::write(dir.join(&deep).join("bottom"), "deep").unwrap();
    sparse_file(&dir.join("sparse"));
}

/// 10 GB with three pieces of data.
pub fn sparse_file(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(10_000_000_000).unwrap();
    for at in [0, 5_000_000_000, 9_999_999_990] {
        file.write_all_at(b"0123456789", at).unwrap();
    }
}

/// Walks a sparse file by its data only and checks what is there.
pub fn check_sparse(fs: &mut dyn FileSystem) {
    let mut file = fs.open(&GuestPath::parse(b"/sparse").unwrap()).unwrap();
    assert_eq!(file.size(), 10_000_000_000);
    let (mut at, mut bytes, mut pieces) = (0, 0, Vec::new());
    while let Some(range) = file.next_data(at).unwrap() {
        assert!(range.start >= at && range.end > range.start && range.end <= file.size());
        let mut buf = vec![0; (range.end - range.start) as usize];
        assert_eq!(file.read_at(range.start, &mut buf).unwrap(), buf.len());
        pieces.extend(
            buf.windows(10).enumerate().filter(|(_, w)| w == b"0123456789").map(|(i, _)| range.start + i as u64),
        );
        (at, bytes) = (range.end, bytes + buf.len());
    }
    assert_eq!(pieces, [0, 5_000_000_000, 9_999_999_990]);
    assert!(bytes < 1_000_000, "{bytes} bytes of a sparse file are data");
    let mut hole = [1; 64];
    assert_eq!(file.read_at(7_000_000_000, &mut hole).unwrap(), 64);
    assert_eq!(hole, [0; 64]);
    assert_eq!(file.read_at(10_000_000_000, &mut hole).unwrap(), 0);
    assert_eq!(file.read_at(u64::MAX, &mut hole).unwrap(), 0);
}

/// A tree for file systems without owners, modes and links.
pub fn build_plain_tree(dir: &Path, entries: usize) {
    sh(
        dir,
        "mkdir -p etc many; printf root:x:0:0 > etc/passwd; head -c 3000000 /dev/urandom > big; : > empty
         head -c 5000 /dev/urandom > etc/few; printf %1000s x > etc/fast; touch -d '2001-02-03 04:05:06' etc/few",
    );
    for index in 0..entries {
        std::fs::write(dir.join(format!("many/file_{index:06}")), format!("content {index}\n")).unwrap();
    }
    let deep: PathBuf = (0..60).map(|level| format!("d{level}")).collect();
    std::fs::create_dir_all(dir.join(&deep)).unwrap();
    std::fs::write(dir.join(&deep).join("bottom"), "deep").unwrap();
}

/// Does what a busy guest does, in an order that the seed gives: `steps` creations, writes, cuts, renames, links and removals.
pub fn random_history(dir: &Path, seed: u64, steps: usize) {
    use std::fs;
    use std::os::unix::fs::FileExt;
    let mut state = seed;
    let mut random = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    for step in 0..steps {
        let folder = dir.join(format!("folder{}", random(12)));
        let _ = fs::create_dir(&folder);
        let name = |number: u64| format!("{}{number}", "n".repeat(number as usize % 60));
        let (one, two) =
            (folder.join(name(random(150))), dir.join(format!("folder{}", random(12))).join(name(random(150))));
        // Most of these fail now and then, as they do in a guest.
        let _ = match random(12) {
            0..4 => fs::write(&one, vec![step as u8; random(30_000) as usize]),
            4 => fs::rename(&one, &two),
            5 => fs::hard_link(&one, &two),
            6 => std::os::unix::fs::symlink(name(random(150)), &one),
            7 | 8 => fs::remove_file(&one),
            9 => fs::OpenOptions::new().write(true).open(&one).and_then(|file| file.set_len(random(50_000))),
            10 if random(40) == 0 => fs::remove_dir_all(&folder),
            10 => fs::create_dir(two.with_extension("d")),
            _ => fs::File::create(&one).and_then(|file| {
                (0..random(40)).try_for_each(|piece| file.write_all_at(&[step as u8; 700], piece * 9000))?;
                if random(4) == 0 { file.sync_all() } else { Ok(()) }
            }),
        };
    }
}

/// Copies a mounted image after each part of a random history, and compares what the reader shows of the copy with what
/// the kernel shows after its own replay.
pub fn check_random_history(image: &Path, options: &str, oracle_options: &str, parts: u64, steps: usize) -> usize {
    let (copy, oracle) = (image.with_extension("copy"), image.with_extension("oracle"));
    let mounted = Mounted::new(image, options);
    let mut replayed = 0;
    for part in 0..parts {
        random_history(&mounted.dir, part + 1, steps);
        sh(&mounted.dir, "sync -f .");
        std::fs::copy(image, &copy).unwrap();
        std::fs::copy(&copy, &oracle).unwrap();
        let kernel = kernel_tree(&Mounted::new(&oracle, oracle_options).dir);
        let mut fs = open(&copy);
        replayed += usize::from(fs.facts().consistency == sendense_guestfs::meta::Consistency::Replayed);
        same(&kernel, &reader_tree(&mut *fs, 30));
    }
    replayed
}
