//! `vm.toml`: what an administrator says about the machine in its folder.
//!
//! It is the way to name block devices, to order disks, to declare a format that no extension tells, and to give a name:
//!
//! ```toml
//! name = "web"
//! guest_os = "Debian 12"
//!
//! [[disks]]
//! path = "system.img"
//! format = "raw"
//!
//! [[disks]]
//! path = "/dev/vg0/web-data"
//! format = "raw"
//! ```
//!
//! Relative paths start at the machine's folder. Every path must lie below a folder that the hub's configuration allows.

use super::format::Format;
use crate::error::{Error, Kind, Result};
use crate::paths::Roots;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file's name in a machine's folder.
pub const FILE_NAME: &str = "vm.toml";
/// A thousand disks with long paths are smaller.
const BYTES_MAX: u64 = 256 << 10;
/// More disks than any hypervisor gives to a machine (vSphere: 256).
const DISKS_MAX: usize = 256;

/// The settings of one machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmToml {
    /// The machine's name; its folder's name without it.
    pub name: Option<String>,
    /// The guest's operating system, for people.
    pub guest_os: Option<String>,
    /// Its disks in order; without any, the images in the folder.
    #[serde(default)]
    pub disks: Vec<DeclaredDisk>,
    /// The file as it stands, for the manifest.
    #[serde(skip)]
    pub text: String,
}

/// One declared disk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredDisk {
    /// A file or a block device.
    pub path: PathBuf,
    /// What it holds.
    pub format: Format,
}

/// Reads a folder's `vm.toml`, if it has one.
pub fn read(folder: &Path, scope: &Roots) -> Result<Option<VmToml>> {
    let path = folder.join(FILE_NAME);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let mut text = String::new();
    let wrong = |why: String| Error::new(Kind::Invalid, format!("{}: {why}", path.display()));
    scope
        .open_read(&path)?
        .take(BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong("cannot be read as text".into()).caused_by(error))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(wrong(format!("is longer than {BYTES_MAX} bytes")));
    }
    parse(text).map(Some).map_err(wrong)
}

fn parse(text: String) -> Result<VmToml, String> {
    let mut settings: VmToml = toml::from_str(&text).map_err(|error| error.to_string())?;
    if settings.disks.len() > DISKS_MAX {
        return Err(format!("names more than {DISKS_MAX} disks"));
    }
    for (number, disk) in settings.disks.iter().enumerate() {
        if settings.disks[..number].iter().any(|earlier| earlier.path == disk.path) {
            return Err(format!("names the disk {} twice", disk.path.display()));
        }
    }
    if let Some(name) = &settings.name
        && name.parse::<sendense_types::Name>().is_err()
    {
        return Err(format!("{name:?} is not a name"));
    }
    settings.text = text;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn declared_disks_are_read_and_mistakes_told() {
        let good = "name = 'web'\n[[disks]]\npath = '/dev/vg0/web'\nformat = 'raw'\n";
        let read = parse(good.into()).unwrap();
        assert_eq!(read.disks, [DeclaredDisk { path: "/dev/vg0/web".into(), format: Format::Raw }]);
        for (text, part) in [
            ("nam = 'web'", "unknown field"),
            ("[[disks]]\npath = 'a'\nformat = 'auto'", "unknown variant"),
            ("[[disks]]\npath = 'a'", "missing field `format`"),
            ("name = \"a\\u0007\"", "not a name"),
            ("disks = [{path='a',format='raw'},{path='a',format='raw'}]", "twice"),
        ] {
            let error = parse(text.into()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = parse(text);
        }
    }
}
