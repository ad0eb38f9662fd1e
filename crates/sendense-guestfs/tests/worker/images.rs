//! Disks made with other people's tools, and sessions on them.

use sendense_guestfs::client::{Options, Worker};
use sendense_guestfs::{GuestPath, Result, VolumeId};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Runs a shell script in `dir`; a missing tool fails with its package.
pub fn sh(dir: &Path, script: &str) -> String {
    let output =
        Command::new("bash").arg("-euo").arg("pipefail").arg("-c").arg(script).current_dir(dir).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}\n(the tools are in the Debian packages fdisk, e2fsprogs, util-linux, lvm2, cryptsetup-bin, qemu-utils)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder for images.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// An ext4 image of `mib` whose tree is made by `script` in the current folder.
pub fn ext4(dir: &Path, name: &str, mib: u64, options: &str, script: &str) -> PathBuf {
    sh(
        dir,
        &format!(
            "rm -rf tree; mkdir tree; (cd tree; {script}); truncate -s {mib}M {name}; mkfs.ext4 -q -F {options} -d tree {name}; rm -rf tree"
        ),
    );
    dir.join(name)
}

/// How a worker of this program is started.
pub fn options(mode: &str) -> Options {
    let mut options = Options::new(vec![format!("worker:{mode}").into()], Vec::new(), Vec::new());
    options.program = std::env::current_exe().unwrap();
    options
}

/// A worker on a raw image.
pub fn open(image: &Path) -> Worker {
    let mut options = options("disk");
    options.descriptors = vec![File::open(image).unwrap().into()];
    Worker::start(options).unwrap_or_else(|error| panic!("open {}: {error}", image.display()))
}

/// A worker that tries what an attacker would.
pub fn evil() -> Worker {
    Worker::start(options("evil")).unwrap()
}

pub fn path(path: &str) -> GuestPath {
    GuestPath::parse(path.as_bytes()).unwrap()
}

pub fn volume(id: &str) -> VolumeId {
    VolumeId::parse(id).unwrap()
}

/// A whole file.
pub fn read(session: &dyn sendense_guestfs::Session, id: &str, file: &str) -> Result<Vec<u8>> {
    let mut stream = session.read(&volume(id), &path(file), 0..u64::MAX)?;
    let mut content = Vec::new();
    while let Some(piece) = stream.next_piece()? {
        content.extend_from_slice(&piece);
    }
    Ok(content)
}
