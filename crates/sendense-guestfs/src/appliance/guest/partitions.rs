//! The kernel's partitions of the disk, made to be those of the disk's table.
//!
//! Invariant: a device is given for a partition of the table only, and begins and ends where the table says.

use super::kernel;
use crate::appliance::first_files::{ADD_PARTITION, FORGET_PARTITION};
use crate::native::volumes::Partition;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the kernel counts in, whatever the disk's sectors are.
const SECTOR: u64 = 512;

/// One of the kernel's.
struct Known {
    name: String,
    number: u32,
    start: u64,
    len: u64,
}

impl Known {
    fn is(&self, partition: &Partition) -> bool {
        (self.number, self.start, self.len) == (partition.number, partition.start, partition.len)
    }
}

/// Makes the kernel forget what is not in the table, and tells it of what it has not found: a phantom may stand in the place of
/// others, and would have LVM's tool see a disk twice. What cannot be changed has no device.
pub fn agree(disk: &str, table: &[Partition]) {
    let node = format!("/dev/{disk}");
    let known = known(disk);
    for extra in known.iter().filter(|known| !table.iter().any(|partition| known.is(partition))) {
        run(FORGET_PARTITION, &[&node, &extra.number.to_string()]);
    }
    for missing in table.iter().filter(|partition| !known.iter().any(|known| known.is(partition))) {
        let [start, len] = [missing.start / SECTOR, missing.len / SECTOR].map(|sectors| sectors.to_string());
        run(ADD_PARTITION, &[&node, &missing.number.to_string(), &start, &len]);
    }
}

/// The kernel's name for a partition of the table.
pub fn device(disk: &str, partition: &Partition) -> Option<String> {
    known(disk).into_iter().find(|known| known.is(partition)).map(|known| known.name)
}

fn known(disk: &str) -> Vec<Known> {
    let folder = Path::new("/sys/class/block").join(disk);
    let number =
        |name: &str, field: &str| fs::read_to_string(folder.join(name).join(field)).ok()?.trim().parse::<u64>().ok();
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let partition = |name: String| {
        let [start, len] = [number(&name, "start")?, number(&name, "size")?].map(|sectors| sectors * SECTOR);
        Some(Known { number: number(&name, "partition")?.try_into().ok()?, start, len, name })
    };
    entries.filter_map(|entry| partition(entry.file_name().into_string().ok()?)).collect()
}

fn run(tool: &str, arguments: &[&str]) {
    let told = match Command::new(tool).args(arguments).env_clear().output() {
        Ok(run) if run.status.success() => return,
        Ok(run) => String::from_utf8_lossy(&run.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    kernel::say(&format!("{tool} {}: {told}", arguments.join(" ")));
}
