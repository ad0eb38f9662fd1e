//! What QEMU's own tools say of the images.

use super::world::{Point, tree};
use crate::layout;
use std::path::Path;
use std::process::Command;

/// Copies the images to another place, without anything else of the repository, and asks QEMU about some of them.
pub fn check(root: &Path, points: &[&Point]) {
    let moved = tempfile::tempdir().unwrap();
    for file in tree(root).into_iter().filter(|path| path.extension().is_some_and(|suffix| suffix == "qcow2")) {
        let to = moved.path().join(&file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(root.join(&file), to).unwrap();
    }
    for point in points {
        for (number, disk) in &point.disks {
            let image = moved.path().join(layout::image(&point.vm, *number, &point.id));
            let raw = moved.path().join("raw");
            run("qemu-img", &["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
            run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
            let mut bytes = std::fs::read(&raw).unwrap();
            assert_eq!(bytes.len(), disk.bytes.len().next_multiple_of(512));
            bytes.truncate(disk.bytes.len());
            assert!(bytes == disk.bytes, "qemu-img reads other bytes of disk {number} of {}", point.id);
        }
    }
}

/// Runs one of QEMU's tools; what it said on its standard output.
pub fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("run {tool} (Debian package qemu-utils): {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}
