//! Whether a running machine holds an image open for writing.
//!
//! QEMU locks one byte of an image for each thing it may do to it (`block/file-posix.c`: permissions from byte 100 on,
//! writing is the second), and the kernel shows locks in `/proc/locks` to everybody. What is seen here is certain; what
//! is not seen may still be there: other hypervisors lock otherwise, and not every file system shows its own numbers.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

/// The byte that QEMU locks when it may write.
const QEMU_WRITES: u64 = 101;
/// 100,000 locks; a host with more is not looked at to the end.
const BYTES_MAX: u64 = 8 << 20;

/// The files that are open for writing in a QEMU on this host, by device and inode.
#[derive(Debug, Default)]
pub struct Writers(Vec<(u64, u64)>);

impl Writers {
    /// Those of now. A host that does not tell has none.
    pub fn now() -> Self {
        let mut text = String::new();
        let read = fs::File::open("/proc/locks").and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
        if read.is_err() { Self::default() } else { Self(text.lines().filter_map(written_file).collect()) }
    }

    /// True when the file is among them.
    pub fn hold(&self, file: &fs::File) -> bool {
        file.metadata().is_ok_and(|found| found.is_file() && self.0.contains(&(found.dev(), found.ino())))
    }
}

/// `3: OFDLCK ADVISORY  READ -1 fe:00:131 101 101` is QEMU's word that it may write.
fn written_file(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    // A lock that somebody waits for has an arrow here and is not held.
    if fields.next()? != "OFDLCK" {
        return None;
    }
    let mut place = fields.nth(3)?.split(':');
    let major = u32::from_str_radix(place.next()?, 16).ok()?;
    let minor = u32::from_str_radix(place.next()?, 16).ok()?;
    let inode = place.next()?.parse().ok()?;
    let first: u64 = fields.next()?.parse().ok()?;
    let last = match fields.next()? {
        "EOF" => u64::MAX,
        number => number.parse().ok()?,
    };
    (first..=last).contains(&QEMU_WRITES).then(|| (rustix::fs::makedev(major, minor), inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_held_locks_of_the_writing_byte_count() {
        let file = Some((rustix::fs::makedev(0xfe, 0x10), 131));
        assert_eq!(written_file("3: OFDLCK ADVISORY  READ  -1 fe:10:131 101 101"), file);
        assert_eq!(written_file("3: OFDLCK ADVISORY  WRITE -1 fe:10:131 0 EOF"), file);
        assert_eq!(written_file("3: -> OFDLCK ADVISORY  READ -1 fe:10:131 101 101"), None);
        assert_eq!(written_file("3: OFDLCK ADVISORY  READ -1 fe:10:131 100 100"), None);
        assert_eq!(written_file("3: POSIX  ADVISORY  WRITE 42 fe:10:131 0 EOF"), None);
        assert_eq!(written_file("3: OFDLCK ADVISORY READ -1 fe:10"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in "[0-9a-fOFDLCKE: >-]{0,60}") {
            let _ = written_file(&line);
        }
    }
}
