//! Guests' disks, as a reader's process meets them: volumes, file systems, and everything that a user may ask of them.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_fuzz::guest::{Disk, disk, seeds};
use sendense_guestfs::meta::{FileType, State};
use sendense_guestfs::native::{self, Readers};
use sendense_guestfs::{GuestPath, Key, Session, VolumeId};
use std::sync::Arc;

/// Entries that are looked at, of all volumes together; the sound disks have some two hundred.
const ENTRIES_MAX: usize = 300;

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |input: &[u8]| {
    look(disk(input, look));
});

fn look(disk: Arc<Disk>) {
    let session = native::Session::open(disk, Readers::default());
    let Ok(volumes) = session.volumes() else { return };
    let mut left = ENTRIES_MAX;
    for volume in volumes {
        match volume.state {
            State::Readable => walk(&session, &volume.id, &mut left),
            State::Locked => {
                let key = Key::new(b"sesame".to_vec()).expect("it is short");
                let _ = session.unlock(&volume.id, &key);
            }
            State::Empty | State::Unsupported(_) | State::Corrupt(_) => {}
        }
    }
}

fn walk(session: &native::Session, volume: &VolumeId, left: &mut usize) {
    let mut folders = vec![GuestPath::root()];
    while let Some(folder) = folders.pop() {
        let mut after = None;
        while let Ok(page) = session.list(volume, &folder, after, 64) {
            for entry in page.entries {
                let Some(fewer) = left.checked_sub(1) else { return };
                *left = fewer;
                let path = folder.join(&entry.name).expect("a name that a reader gives is one");
                let _ = session.stat(volume, &path);
                let _ = session.resolve(volume, &path);
                match entry.meta.file_type {
                    FileType::Directory if path.components().len() < 8 => folders.push(path),
                    FileType::File => read(session, volume, &path),
                    _ => {}
                }
            }
            match page.next {
                Some(next) => {
                    assert!(after.is_none_or(|after| next > after), "a page leads back");
                    after = Some(next);
                }
                None => break,
            }
        }
    }
}

/// The beginning, the end, and where the data lies.
fn read(session: &native::Session, volume: &VolumeId, path: &GuestPath) {
    for part in [0..5000, u64::MAX - 5000..u64::MAX] {
        let Ok(mut stream) = session.read(volume, path, part.clone()) else { continue };
        let mut bytes = 0;
        while let Ok(Some(piece)) = stream.next_piece() {
            bytes += piece.len() as u64;
        }
        assert!(bytes <= part.end - part.start, "more than was asked for");
    }
    if let Ok(page) = session.data_ranges(volume, path, 0) {
        assert!(page.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
