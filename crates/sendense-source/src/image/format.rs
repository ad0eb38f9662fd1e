//! Which format a file is declared to have, and whether its first bytes contradict that.
//!
//! A format is never guessed from content: a guest that owns a raw disk writes whatever header it likes into it, and a
//! tool that believes it reads the host's files for the guest. So the declaration (extension, or `vm.toml`) decides; the
//! first bytes can only refuse it. Raw has no header and cannot be contradicted.

use crate::error::{Error, Kind, Result};
use std::fmt;
use std::path::Path;

/// Enough of a file's beginning to see every signature; VDI's lies at 64.
pub const HEAD_BYTES: usize = 512;

/// A declared format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's: sparse, stream-optimised, or a descriptor with extents.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

impl Format {
    /// What a file's extension declares, in upper or lower case; none for other files.
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "raw" | "img" | "bin" => Some(Self::Raw),
            "qcow2" | "qcow" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            "vhdx" => Some(Self::Vhdx),
            "vdi" => Some(Self::Vdi),
            _ => None,
        }
    }

    /// The word for it, which is also QEMU's driver name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }

    /// Fails when the file's first bytes are not those of this format.
    pub fn check_head(self, head: &[u8], path: &Path) -> Result<()> {
        let looks = looks_like(head);
        if self == Self::Raw || looks == self.word() {
            return Ok(());
        }
        let message = format!("{} is declared {self}, but begins like {looks}", path.display());
        Err(Error::new(Kind::Invalid, message).hint("name the file, or its `format` in vm.toml, after what it holds"))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// For comparison with the declared format and for messages only.
fn looks_like(head: &[u8]) -> &'static str {
    let text = head.iter().position(|byte| !byte.is_ascii_whitespace()).map_or(&head[..0], |start| &head[start..]);
    match head {
        [b'Q', b'F', b'I', 0xfb, ..] => "qcow2",
        [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => "vmdk",
        _ if text.starts_with(b"# Disk DescriptorFile") => "vmdk",
        _ if head.starts_with(b"vhdxfile") => "vhdx",
        _ if head.get(0x40..0x44) == Some(&0xbeda_107f_u32.to_le_bytes()) => "vdi",
        _ => "nothing known (raw bytes)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_declares_and_the_header_can_only_refuse() {
        assert_eq!(Format::of_name(Path::new("a/b.QCOW2")), Some(Format::Qcow2));
        assert_eq!(Format::of_name(Path::new("b.iso")), None);
        assert_eq!(Format::of_name(Path::new(".raw")), None);
        let qcow2 = b"QFI\xfb\0\0\0\x03";
        Format::Raw.check_head(qcow2, Path::new("a.raw")).unwrap();
        Format::Qcow2.check_head(qcow2, Path::new("a.qcow2")).unwrap();
        let error = Format::Vmdk.check_head(qcow2, Path::new("a.vmdk")).unwrap_err();
        assert!(error.message.contains("declared vmdk") && error.message.contains("like qcow2"), "{error}");
        for head in [&b""[..], b"\0\0\0\0", b"QFI"] {
            assert_eq!(Format::Qcow2.check_head(head, Path::new("a.qcow2")).unwrap_err().kind, Kind::Invalid);
        }
    }
}
