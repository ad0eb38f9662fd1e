//! Archives in the "newc" format, which is how a kernel takes its first files.
//!
//! Invariant: names are relative and come from this program, never from a disk.

/// Bytes everything in the archive is aligned to.
const ALIGN: usize = 4;
const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const CHARACTER: u32 = 0o020_600;

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: std::collections::BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// An executable file; the folders on its way are made.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(path, FILE, content, (0, 0));
    }

    /// A folder and those above it, once.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_start_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.folders.insert(path.to_owned());
        self.entry(path, FOLDER, &[], (0, 0));
    }

    /// A character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path.trim_start_matches('/'), CHARACTER, &[], (major, minor));
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name with its NUL, checksum
        let size = u32::try_from(content.len()).expect("no program of this machine reaches 4 GiB");
        let name_len = path.len() as u32 + 1;
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn others_read_the_archive() {
        let mut archive = Archive::default();
        archive.file("/lib64/ld.so", b"loader");
        archive.file("/lib64/sub/odd", b"12345");
        archive.folder("/proc");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGN, 0);
        let mut bsdtar = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("busybox: {error}: install the Debian package busybox-static"));
        bsdtar.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = bsdtar.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "lib64\nlib64/ld.so\nlib64/sub\nlib64/sub/odd\nproc\n");
    }
}
