//! Archives in the "newc" format, which is how a kernel takes its first files.
//!
//! Invariant: names are relative and come from this program, never from a disk.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

/// Bytes everything in the archive is aligned to.
const ALIGN: u64 = 4;
const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const CHARACTER: u32 = 0o020_600;

/// An archive under construction, written as it grows.
pub struct Archive<W: Write> {
    to: W,
    bytes: u64,
    folders: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// One without entries.
    pub fn new(to: W) -> Archive<W> {
        Archive { to, bytes: 0, folders: BTreeSet::new(), entries: 0 }
    }

    /// An executable file of `size` bytes; the folders on its way are made.
    ///
    /// # Errors
    /// Those of reading and writing, and content that is shorter than was said.
    pub fn file(&mut self, path: &str, content: impl Read, size: u64) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.entry(path, FILE, size, (0, 0))?;
        let copied = io::copy(&mut content.take(size), &mut self.to)?;
        self.bytes += copied;
        if copied < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad()
    }

    /// A folder and those above it, once.
    ///
    /// # Errors
    /// Those of writing.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.folders.insert(path.to_owned());
        self.entry(path, FOLDER, 0, (0, 0))
    }

    /// A character device.
    ///
    /// # Errors
    /// Those of writing.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path.trim_start_matches('/'), CHARACTER, 0, (major, minor))
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, 0, (0, 0))?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, size: u64, device: (u32, u32)) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let name_len = path.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name with its NUL, checksum
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_len, 0];
        let mut header = String::from("070701");
        numbers.iter().for_each(|number| header += &format!("{number:08x}"));
        self.write(header.as_bytes())?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let surplus = self.bytes.next_multiple_of(ALIGN) - self.bytes;
        self.write(&[0; ALIGN as usize][..surplus as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn others_read_the_archive() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/lib64/ld.so", &b"loader"[..], 6).unwrap();
        archive.file("/lib64/sub/odd", &b"12345 and more"[..], 5).unwrap();
        archive.folder("/proc").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() as u64 % ALIGN, 0);
        let short = Archive::new(Vec::new()).file("/short", &b"1"[..], 2);
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
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
