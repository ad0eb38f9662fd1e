//! What a disk consisted of when a checkpoint began, and whether it still does.
//!
//! A bitmap records what is written *to a layer*. When a layer is taken away (an overlay is committed into the one below it)
//! its bitmap is merged, but one thing is recorded by none: an overlay that was made smaller than what lies below it, and
//! committed then, gives the disk back what the lower layer holds behind the overlay's end. Nothing of the overlay is left
//! that would tell. So a checkpoint is believed only while the layers that it began on are all there, in their order, and are
//! the same files; new ones may lie on top, since going back to what lies below them is no change since the checkpoint.
//!
//! What lives here: remembering layers with a checkpoint, and comparing. What does not: bitmaps.
//!
//! libvirt keeps the domain's description, with the layers of each disk, in the checkpoint itself, as it was at that very
//! moment. Names come back, though (`web.snap1`, every night), so the files' numbers and times of birth go into the
//! checkpoint's description, which libvirt keeps for us.

use super::domain::{Disk, Layer, Place};
use sendense_block::ByteLen;
use std::collections::BTreeMap;
use std::path::Path;

/// What begins our part of a checkpoint's description.
const HEADING: &str = "sendense-layers ";

/// Files as they were, by their paths: what tells two of the same name apart.
pub(super) type Stamps = BTreeMap<String, String>;

/// What tells the file from another one of its name; none when that cannot be told from here.
fn stamp(path: &Path) -> Option<String> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::INO | StatxFlags::BTIME).ok()?;
    // Not every file system knows the birth, nor is a device's number the same after the next mount.
    let born = (found.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(found.stx_btime);
    Some(born.map_or_else(
        || found.stx_ino.to_string(),
        |born| format!("{} {}.{:09}", found.stx_ino, born.tv_sec, born.tv_nsec),
    ))
}

/// The stamps of these disks' layers as they are now.
pub(super) fn stamps<'a>(disks: impl Iterator<Item = &'a Disk>) -> Stamps {
    let files = disks.flat_map(|disk| &disk.layers).filter_map(|layer| match &layer.place {
        Place::File(path) => Some(path),
        _ => None,
    });
    files.filter_map(|path| Some((path.to_string_lossy().into_owned(), stamp(path)?))).collect()
}

/// A checkpoint's description, to be read back by [`read`].
pub(super) fn write(stamps: &Stamps) -> String {
    format!("{HEADING}{}", serde_json::json!(stamps))
}

/// The stamps in a checkpoint's description; none when they are not there.
pub(super) fn read(description: &str) -> Option<Stamps> {
    serde_json::from_str(description.trim().strip_prefix(HEADING)?).ok()
}

/// What a checkpoint knows of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// The layers when it began, highest first.
    pub layers: Vec<Layer>,
    /// What told their files apart.
    pub stamps: Stamps,
}

impl Recorded {
    /// Fails with the reason unless all its layers are the disk's lowest ones still.
    pub fn check_kept(&self, disk: &Disk) -> Result<(), String> {
        let places = |layers: &[Layer]| layers.iter().map(|layer| layer.place.clone()).collect::<Vec<_>>();
        let (then, now) = (places(&self.layers), places(&disk.layers));
        if !now.ends_with(&then) {
            let gone = then.iter().find(|place| !now.contains(place));
            let gone = gone.map_or_else(|| "their order has changed".to_owned(), |place| format!("{place} is gone"));
            return Err(format!("the disk no longer has the layers that the checkpoint began on: {gone}"));
        }
        for place in then {
            let Place::File(path) = place else { continue };
            let before = self.stamps.get(&*path.to_string_lossy());
            if let Some((before, now)) = before.zip(stamp(&path))
                && *before != now
            {
                return Err(format!("{} is another file than when the checkpoint began", path.display()));
            }
        }
        Ok(())
    }

    /// Whether the disk has just the layers that it had: also none on top.
    pub fn is_same(&self, disk: &Disk) -> bool {
        self.layers.len() == disk.layers.len() && self.check_kept(disk).is_ok()
    }
}

/// Fails with the reason when a layer is larger than one above it: the disk would grow, and show what lies there, if those
/// above were committed. `sizes` are the layers', highest first.
pub(super) fn check_sizes(sizes: &[ByteLen]) -> Result<(), String> {
    let mut smallest: Option<ByteLen> = None;
    for (depth, size) in sizes.iter().enumerate() {
        match smallest {
            Some(above) if *size > above => {
                let layer = if depth == 1 { "the layer below".to_owned() } else { format!("layer {depth} below") };
                return Err(format!("no change tracking: {layer} has {size} and an overlay above it only {above}"));
            }
            _ => smallest = Some(*size),
        }
    }
    Ok(())
}

/// The sizes of all layers by target, highest first, from `domstats --block --backing`.
pub(super) fn parse_sizes(text: &str) -> BTreeMap<String, Vec<ByteLen>> {
    let (mut sizes, mut target): (BTreeMap<String, Vec<ByteLen>>, Option<String>) = (BTreeMap::new(), None);
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once('=') else { continue };
        match name.rsplit('.').next() {
            Some("name") => target = Some(value.to_owned()),
            Some("capacity") => {
                if let Some((target, size)) = target.as_ref().zip(value.parse().ok()) {
                    sizes.entry(target.clone()).or_default().push(ByteLen(size));
                }
            }
            _ => {}
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::domain::Domain;
    use expect_test::{Expect, expect};

    /// A disk with these files on top of each other, highest first.
    fn disk(paths: &[&str]) -> Disk {
        let below = paths[1..].iter().rev().fold("<backingStore/>".to_owned(), |below, path| {
            format!("<backingStore type='file'><format type='qcow2'/><source file='{path}'/>{below}</backingStore>")
        });
        let document = format!(
            "<domain id='1'><name>d</name><uuid>23b7165e-2efc-40b7-9fc7-4af794dd0157</uuid><devices>
             <disk type='file' device='disk'><driver type='qcow2'/><source file='{}'/>{below}<target dev='vda'/></disk>
             </devices></domain>",
            paths[0]
        );
        Domain::parse(&document).unwrap().disks.remove(0)
    }

    fn recorded(disk: &Disk) -> Recorded {
        Recorded { layers: disk.layers.clone(), stamps: stamps(std::iter::once(disk)) }
    }

    fn check(then: &[&str], now: &[&str], expected: Expect) {
        let kept = recorded(&disk(then)).check_kept(&disk(now));
        expected.assert_eq(&kept.map_or_else(|why| why, |()| "kept".to_owned()));
    }

    #[test]
    fn layers_may_come_on_top_and_none_may_go() {
        check(&["/i/a"], &["/i/a"], expect!["kept"]);
        check(&["/i/a"], &["/i/s1", "/i/a"], expect!["kept"]);
        check(&["/i/s1", "/i/a"], &["/i/s2", "/i/s1", "/i/a"], expect!["kept"]);
        check(
            &["/i/s1", "/i/a"],
            &["/i/a"],
            expect!["the disk no longer has the layers that the checkpoint began on: file:/i/s1 is gone"],
        );
        check(
            &["/i/s2", "/i/s1", "/i/a"],
            &["/i/s2", "/i/a"],
            expect!["the disk no longer has the layers that the checkpoint began on: file:/i/s1 is gone"],
        );
        check(
            &["/i/s2", "/i/s1", "/i/a"],
            &["/i/s1", "/i/s2", "/i/a"],
            expect!["the disk no longer has the layers that the checkpoint began on: their order has changed"],
        );
        assert!(recorded(&disk(&["/i/a"])).is_same(&disk(&["/i/a"])));
        assert!(!recorded(&disk(&["/i/a"])).is_same(&disk(&["/i/s1", "/i/a"])));
    }

    #[test]
    fn another_file_of_the_same_name_is_another_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("s1"), dir.path().join("other"));
        std::fs::write(&path, "one").unwrap();
        std::fs::write(&other, "two").unwrap();
        let disk = disk(&[path.to_str().unwrap()]);
        let then = recorded(&disk);
        let kept = Recorded { stamps: read(&format!("\n {} ", write(&then.stamps))).unwrap(), ..then };
        // What is written to it changes nothing.
        std::fs::write(&path, "longer than before").unwrap();
        assert_eq!(kept.check_kept(&disk), Ok(()));
        std::fs::rename(&other, &path).unwrap();
        let why = kept.check_kept(&disk).unwrap_err();
        assert!(why.contains("is another file"), "{why}");
        assert_eq!(read("my own notes"), None);
    }

    #[test]
    fn a_layer_above_that_is_smaller_is_told() {
        let check = |sizes: &[u64]| check_sizes(&sizes.iter().copied().map(ByteLen).collect::<Vec<_>>());
        assert_eq!(check(&[8]), Ok(()));
        assert_eq!(check(&[8, 8, 4]), Ok(()));
        let why = check(&[4 << 20, 8 << 20]).unwrap_err();
        assert_eq!(
            why,
            "no change tracking: the layer below has 8388608 bytes and an overlay above it only 4194304 bytes"
        );
        assert!(check(&[8 << 20, 4 << 20, 5 << 20]).unwrap_err().contains("layer 2 below"));
    }

    #[test]
    fn sizes_of_layers_are_read_from_the_statistics() {
        let text = "Domain: 'd'\n  block.count=3\n  block.0.name=vda\n  block.0.path=/i/name=x\n  block.0.capacity=8\n  \
                    block.1.name=vda\n  block.1.capacity=9\n  block.2.name=vdb\n  block.2.physical=1\n  block.2.capacity=7\n";
        let found = parse_sizes(text);
        assert_eq!(found["vda"], [ByteLen(8), ByteLen(9)]);
        assert_eq!(found["vdb"], [ByteLen(7)]);
    }
}
