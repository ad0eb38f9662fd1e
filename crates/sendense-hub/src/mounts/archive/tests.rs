//! What goes into an archive: not more than it may hold, and nothing that a lying reader would put elsewhere.

#![allow(clippy::unwrap_used)]

use super::*;
use sendense_api as dto;
use sendense_block::backend::{File, Options};
use sendense_guestfs::native::{self, Readers};
use sendense_guestfs::session::{ByteStream, RangePage, Walk};
use sendense_guestfs::{Key, Session, Volume};
use std::path::Path;
use std::process::Command;

type Answer<T> = sendense_guestfs::Result<T>;

/// The reader of an ext4 in this process. As a liar it tells of a link, and of a file below it.
struct Here {
    reader: native::Session,
    lies: bool,
}

impl Session for Here {
    fn volumes(&self) -> Answer<Vec<Volume>> {
        self.reader.volumes()
    }
    fn unlock(&self, volume: &VolumeId, key: &Key) -> Answer<Vec<Volume>> {
        self.reader.unlock(volume, key)
    }
    fn resolve(&self, volume: &VolumeId, path: &GuestPath) -> Answer<GuestPath> {
        self.reader.resolve(volume, path)
    }
    fn stat(&self, volume: &VolumeId, path: &GuestPath) -> Answer<Meta> {
        self.reader.stat(volume, path)
    }
    fn readlink(&self, volume: &VolumeId, path: &GuestPath) -> Answer<Vec<u8>> {
        self.reader.readlink(volume, path)
    }
    fn list(
        &self,
        volume: &VolumeId,
        path: &GuestPath,
        after: Option<u64>,
        limit: usize,
    ) -> Answer<sendense_guestfs::meta::Page> {
        self.reader.list(volume, path, after, limit)
    }
    fn read(&self, volume: &VolumeId, path: &GuestPath, range: Range<u64>) -> Answer<Box<dyn ByteStream>> {
        self.reader.read(volume, path, range)
    }
    fn data_ranges(&self, volume: &VolumeId, path: &GuestPath, from: u64) -> Answer<RangePage> {
        self.reader.data_ranges(volume, path, from)
    }
    fn walk(&self, volume: &VolumeId, path: &GuestPath, options: &WalkOptions) -> Answer<Box<dyn Walk>> {
        let walk = self.reader.walk(volume, path, options)?;
        if self.lies { Ok(Box::new(Lies { root: walk.root().clone(), told: false })) } else { Ok(walk) }
    }
    fn level(&self) -> Option<sendense_guestfs::sandbox::Level> {
        None
    }
    fn close(self: Box<Self>) {}
}

impl Reader for Here {
    fn ended(&self) -> Option<Error> {
        None
    }
    fn stop(&self) {}
    fn backend(&self, _: &VolumeId) -> dto::Backend {
        dto::Backend::Native
    }
    fn confinement(&self) -> Option<String> {
        None
    }
}

struct Lies {
    root: GuestPath,
    told: bool,
}

impl Walk for Lies {
    fn root(&self) -> &GuestPath {
        &self.root
    }

    fn next_batch(&mut self) -> Answer<Option<Vec<Found>>> {
        if std::mem::replace(&mut self.told, true) {
            return Ok(None);
        }
        let meta = |file_type| Meta {
            inode: 12,
            file_type,
            size_bytes: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            links: 1,
            modified: None,
        };
        let found = |path: &str, file_type, target: Option<&[u8]>| Found {
            path: GuestPath::parse(path.as_bytes()).unwrap(),
            outcome: Ok(FoundEntry { meta: meta(file_type), target: target.map(<[u8]>::to_vec) }),
        };
        Ok(Some(vec![found("/away", FileType::Symlink, Some(b"/etc")), found("/away/passwd", FileType::File, None)]))
    }
}

/// Five files of a thousand bytes, and one of a MiB that begins with a hole of all but its last block.
fn disk(dir: &Path) -> std::path::PathBuf {
    let script = "mkdir tree; for n in 1 2 3 4 5; do head -c 1000 /dev/zero | tr '\\0' x > tree/$n; done
        truncate -s 1M tree/sparse; printf end | dd of=tree/sparse bs=1 seek=1048573 conv=notrunc status=none
        truncate -s 8M disk; mkfs.ext4 -q -F -b 4096 -d tree disk";
    let made = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    let told = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{told} (Debian package e2fsprogs)");
    dir.join("disk")
}

fn packed(disk: &Path, lies: bool, format: ArchiveFormat, bounds: Bounds) -> std::result::Result<usize, String> {
    let disk = Arc::new(File::open(disk, Options::Read).unwrap());
    let reader = Here { reader: native::Session::open(disk, Readers::default()), lies };
    let volume = reader.volumes().unwrap()[0].id.clone();
    let mut out = Vec::new();
    let done = pack_to(&mut out, Arc::new(reader), &volume, &GuestPath::root(), format, bounds);
    done.map(|()| out.len()).map_err(|error| error.to_string())
}

#[test]
fn more_than_may_be_packed_breaks_it_off() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    let packed = |format, entries, bytes| packed(&disk, false, format, Bounds { entries, bytes });
    // Five files, the sparse one, and lost+found; with as many as it may see, a walk does not know that it is at its end.
    for (format, content) in [(ArchiveFormat::Zip, 5000 + (1 << 20)), (ArchiveFormat::TarGz, 5000 + 4096)] {
        packed(format, 8, content).unwrap();
        let too_many = packed(format, 6, content).unwrap_err();
        assert!(too_many.contains("limit reached"), "{too_many}");
        let too_large = packed(format, 8, content - 1).unwrap_err();
        assert!(too_large.contains("holds more than an archive may"), "{too_large}");
    }
}

#[test]
fn nothing_goes_below_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    for format in [ArchiveFormat::Zip, ArchiveFormat::TarGz] {
        let refused = packed(&disk, true, format, Bounds { entries: 100, bytes: 1 << 20 });
        assert_eq!(refused, Err("an entry below a link".to_owned()));
    }
}
