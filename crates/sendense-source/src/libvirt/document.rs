//! A document for `virsh`, which takes them as files only.
//!
//! Invariant: the file has no name in any folder, so that nobody puts another in its place (the scratch folder belongs to
//! QEMU's user) and nothing of it is left behind, whatever dies.

use crate::error::{Error, Kind, Result};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

/// A document in memory. It can be read by children of this process as long as it lives.
pub(super) struct Document {
    file: File,
}

impl Document {
    /// Puts the text into memory.
    pub fn new(text: &str) -> Result<Self> {
        let failed = || Error::new(Kind::Failed, "keep a document for virsh");
        let memory = rustix::fs::memfd_create("sendense", MemfdFlags::CLOEXEC);
        let mut file = File::from(memory.map_err(|errno| failed().caused_by(errno))?);
        file.write_all(text.as_bytes()).map_err(|error| failed().caused_by(error))?;
        Ok(Self { file })
    }

    /// The path by which a child reads it from its beginning.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_reads_it_and_it_is_gone_afterwards() {
        let document = Document::new("<a/>").unwrap();
        let path = document.path();
        for _ in 0..2 {
            assert_eq!(std::process::Command::new("cat").arg(&path).output().unwrap().stdout, b"<a/>");
        }
        drop(document);
        // The number may belong to another file by now.
        assert_ne!(std::fs::read(&path).ok().as_deref(), Some(b"<a/>".as_slice()));
    }
}
