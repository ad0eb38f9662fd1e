//! A block device as a target: whether anybody uses it, and opening it so that nobody can meanwhile.
//!
//! The kernel's own answer decides (`O_EXCL`: mounts, swap, RAID, LVM and every other exclusive holder, of the device or of
//! a partition of it). What is looked up here first only gives the refusal a reason that helps.

use crate::fault::{Result, of_block, of_source};
use sendense_block::backend::File;
use sendense_block::{ByteLen, ReadAt};
use sendense_source::paths::Roots;
use sendense_types::{Problem, ProblemCode};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Opens a device that nobody uses and that is large enough, for us alone.
pub(super) fn open(roots: &Roots, path: &Path, need: ByteLen) -> Result<File> {
    check_unused(path)?;
    let file = roots.open_device(path).map_err(|error| match error.kind {
        sendense_source::Kind::Busy => in_use(path, "the kernel says that somebody holds it"),
        _ => of_source(&error),
    })?;
    let file =
        File::from_std(file, path.display().to_string(), false).map_err(|error| of_block("open the device", &error))?;
    if file.size() < need {
        let details = format!("{} has {}, the disk {need}", path.display(), file.size());
        return Err(Problem::new(ProblemCode::Conflict, "the target is too small", details));
    }
    Ok(file)
}

/// Fails when the device or a partition of it is mounted, swapped to, or part of another device, as far as can be seen.
pub(crate) fn check_unused(path: &Path) -> Result<()> {
    let number = |path: &Path| path.metadata().ok().map(|found| found.rdev());
    let Some(device) = number(path) else { return Ok(()) };
    let name = |device| format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let whole = Path::new("/sys/dev/block").join(name(device));
    let mut numbers = BTreeSet::from([name(device)]);
    let mut places = vec![whole.clone()];
    for entry in std::fs::read_dir(&whole).into_iter().flatten().flatten() {
        if let Ok(number) = std::fs::read_to_string(entry.path().join("dev"))
            && entry.path().join("partition").exists()
        {
            numbers.insert(number.trim().to_owned());
            places.push(entry.path());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(place) = mounted(&mounts, &numbers) {
        return Err(in_use(path, &format!("it, or a partition of it, is mounted at {place}")));
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swap_files(&swaps).filter_map(|swap| number(Path::new(swap))).any(|swap| numbers.contains(&name(swap))) {
        return Err(in_use(path, "it, or a partition of it, is swap space"));
    }
    for place in places {
        if let Some(holder) = std::fs::read_dir(place.join("holders")).into_iter().flatten().flatten().next() {
            return Err(in_use(path, &format!("{} is built on it", holder.file_name().to_string_lossy())));
        }
    }
    Ok(())
}

fn in_use(path: &Path, why: &str) -> Problem {
    Problem::new(ProblemCode::Conflict, "the device is in use", format!("{}: {why}", path.display()))
}

/// Where one of these devices (`major:minor`) is mounted, by the text of `/proc/self/mountinfo`.
fn mounted<'a>(mounts: &'a str, devices: &BTreeSet<String>) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?;
        let place = fields.nth(1)?;
        devices.contains(device).then_some(place)
    })
}

/// The files and devices of `/proc/swaps`.
fn swap_files(swaps: &str) -> impl Iterator<Item = &str> {
    swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_swaps_are_read() {
        let mounts = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n23 22 0:5 / /dev rw - devtmpfs x rw\nshort\n";
        let of = |device: &str| mounted(mounts, &BTreeSet::from([device.to_owned()]));
        assert_eq!((of("254:1"), of("254:2"), of("0:5")), (Some("/"), None, Some("/dev")));
        let swaps = "Filename\tType\tSize\n/dev/vdb partition 1 0 -2\n/swap.img file 1 0 -3\n";
        assert_eq!(swap_files(swaps).collect::<Vec<_>>(), ["/dev/vdb", "/swap.img"]);
        assert_eq!(swap_files("").count(), 0);
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let roots = Roots::new(vec![path.parent().unwrap().to_owned()]);
        assert_eq!(open(&roots, &path, ByteLen(0)).unwrap_err().code, ProblemCode::InvalidInput);
    }
}
