//! Domains that are off: what is read, and which files are opened for it.

use crate::lab::{Guest, MIB, Memory, Points, back_up, lab, qemu_img};
use sendense_block::Cancel;
use sendense_source::Kind;

#[test]
fn raw_and_compressed_images_are_read() {
    let lab = lab();
    let mut guest = Guest::define(lab, &[("vda", "raw", MIB), ("vdb", "qcow2", MIB)]);
    let (raw, image) = (guest.disks[0].path.clone(), guest.disks[1].path.clone());
    let bytes: Vec<u8> = (0..MIB).map(|at| (at / 1000) as u8).collect();
    std::fs::write(&raw, &bytes).unwrap();
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    guest.model.insert("vda", bytes.clone());
    guest.model.insert("vdb", bytes);
    let points = back_up(&guest, &*lab.source(), &Points::new());
    guest.assert_points(&points);
    assert_eq!((points["vda"].token.as_ref(), points["vdb"].token.as_ref()), (None, None));
}

/// Puts an overlay that names `backing` in the place of the guest's disk and tries to read it.
fn read_overlay(guest: &Guest<'_>, image_dirs: &[&std::path::Path], backing: &str) -> Result<Points, (Kind, String)> {
    let overlay = guest.disks[0].path.to_str().unwrap();
    // `-u`: the file is not looked at, as a stranger's image was not.
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, overlay, "1M"]);
    let source = guest.lab.source_with(serde_json::json!({ "image_dirs": image_dirs }));
    let request = guest.request(&*source, &Points::new());
    let frozen = source
        .freeze(&request, &Memory::new().door(), &Cancel::new())
        .map_err(|error| (error.kind, sendense_block::error::chain(&error)))?;
    let points = crate::lab::copy(&*frozen, &request, &Points::new()).unwrap();
    frozen.release().unwrap();
    Ok(points)
}

#[test]
fn an_image_cannot_name_a_file_of_the_host() {
    let lab = lab();
    let guest = Guest::define(lab, &[("vda", "qcow2", MIB)]);
    let elsewhere = tempfile::tempdir().unwrap();
    let secret = elsewhere.path().join("secret.raw");
    std::fs::write(&secret, vec![7; MIB as usize]).unwrap();
    let secret = secret.to_str().unwrap();
    let beside = guest.disks[0].path.with_file_name("link.raw");
    std::os::unix::fs::symlink(secret, &beside).unwrap();
    let climbing = format!("../../../../../../../../..{secret}");
    for name in ["/etc/passwd", secret, &climbing, "link.raw"] {
        let (kind, told) = read_overlay(&guest, &[], name).unwrap_err();
        assert!(matches!(kind, Kind::Denied | Kind::Unsafe), "{name}: {kind:?} {told}");
        assert!(told.contains("image_dirs"), "{name}: {told}");
    }
    for name in [r#"json:{"driver":"file","filename":"/etc/passwd"}"#, "nbd://localhost/x"] {
        assert_eq!(read_overlay(&guest, &[], name).unwrap_err().0, Kind::Unsupported, "{name}");
    }
    // The administrator may allow it.
    let points = read_overlay(&guest, &[elsewhere.path()], secret).unwrap();
    assert!(points["vda"].bytes.iter().all(|byte| *byte == 7));
    std::fs::remove_file(beside).unwrap();
}

#[test]
fn other_formats_are_told_and_do_not_hide_the_rest() {
    let lab = lab();
    let guest = Guest::define(lab, &[("vda", "qcow2", MIB), ("vdb", "vmdk", MIB)]);
    let source = lab.source();
    let found = guest.inspect(&*source);
    assert_eq!(found.disks[0].unsupported, None);
    let reason = found.disks[1].unsupported.as_deref().unwrap();
    assert_eq!(reason, "a vmdk disk can only be read while the domain runs");
    assert_eq!(back_up(&guest, &*source, &Points::new()).len(), 1);
    // An image that is gone is that disk's trouble.
    std::fs::remove_file(&guest.disks[0].path).unwrap();
    let found = guest.inspect(&*source);
    assert_eq!(found.disks[0].unsupported.as_deref(), Some("its size cannot be told"));
}
