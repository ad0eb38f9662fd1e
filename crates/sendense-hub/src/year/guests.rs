//! Machines of an image folder that change from day to day, and what their disks hold.

use sendense_block::{ByteOffset, Digest, ReadAt};
use sendense_repo::testing::Dice;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCK: usize = 65_536;
/// Disks are small, and mostly holes: what is looked for is in the order of things, not in their mass.
const BLOCKS_MAX: usize = 12;

/// What a disk holds, in a few bytes: its size, and a digest of all its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    bytes: u64,
    digest: Digest,
}

impl Fingerprint {
    pub fn of(disk: &dyn ReadAt) -> Self {
        let bytes = disk.size().0;
        let mut content = vec![0; usize::try_from(bytes).unwrap()];
        disk.read_at(ByteOffset(0), &mut content).unwrap();
        Self { bytes, digest: Digest::of(&content) }
    }

    fn of_file(path: &Path) -> Self {
        let content = fs::read(path).unwrap();
        Self { bytes: content.len() as u64, digest: Digest::of(&content) }
    }
}

/// The machines.
pub(super) struct Guests {
    folder: PathBuf,
    away: PathBuf,
    made: usize,
    /// By name; whether it is there now.
    machines: BTreeMap<String, bool>,
}

impl Guests {
    /// Machines in a folder; those that are away lie in another.
    pub fn new(folder: PathBuf, away: PathBuf, count: usize, dice: &mut Dice) -> Self {
        for folder in [&folder, &away] {
            fs::create_dir_all(folder).unwrap();
        }
        let mut guests = Self { folder, away, made: 0, machines: BTreeMap::new() };
        (0..count).for_each(|_| guests.add(dice));
        guests
    }

    /// A machine with one disk or two. A third of the names each belong to a policy.
    fn add(&mut self, dice: &mut Dice) {
        let name = format!("{}-{}", ["a", "b", "c"][self.made % 3], self.made);
        self.made += 1;
        let folder = self.folder.join(&name);
        fs::create_dir(&folder).unwrap();
        for number in 0..=dice.below(2) {
            add_disk(&folder, number, dice);
        }
        self.machines.insert(name, true);
    }

    /// A day passes.
    pub fn live(&mut self, dice: &mut Dice, calm: bool) {
        let names: Vec<(String, bool)> = self.machines.iter().map(|(name, there)| (name.clone(), *there)).collect();
        let count = names.len();
        for (name, is_there) in names {
            let (here, away) = (self.folder.join(&name), self.away.join(&name));
            if !is_there {
                if calm || dice.below(4) == 0 {
                    fs::rename(&away, &here).unwrap();
                    self.machines.insert(name, true);
                }
                continue;
            }
            match dice.below(100) {
                0 if !calm => {
                    fs::rename(&here, &away).unwrap();
                    self.machines.insert(name, false);
                }
                1..5 => change_disks(&here, &self.away.join(format!("disks of {name}")), dice),
                5..60 => write(&here, dice),
                60..64 => resize(&here, dice),
                _ => {}
            }
        }
        if !calm && dice.below(20) == 0 && self.made < count + count / 4 + 1 {
            self.add(dice);
        }
    }

    /// What the disks of a machine hold now, by their keys; none when it is not there.
    pub fn fingerprint(&self, name: &str) -> Option<BTreeMap<String, Fingerprint>> {
        self.machines.get(name).filter(|is_there| **is_there)?;
        let disks = disks(&self.folder.join(name));
        Some(disks.into_iter().map(|path| (key(&path), Fingerprint::of_file(&path))).collect())
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.machines.get(name).copied().unwrap_or(false)
    }
}

fn key(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn disks(folder: &Path) -> Vec<PathBuf> {
    let mut disks: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    disks.sort();
    disks
}

fn add_disk(folder: &Path, number: usize, dice: &mut Dice) {
    let file = File::create_new(folder.join(format!("disk{number}.raw"))).unwrap();
    file.set_len(size(dice)).unwrap();
    write(folder, dice);
}

/// Whole blocks, or some bytes more.
fn size(dice: &mut Dice) -> u64 {
    let blocks = 1 + dice.below(BLOCKS_MAX);
    (blocks * BLOCK + [0, 512, 1000][dice.below(3)]) as u64
}

/// A second disk comes or goes, for good or for some time: then it comes back as it was.
fn change_disks(folder: &Path, away: &Path, dice: &mut Dice) {
    fs::create_dir_all(away).unwrap();
    let (there, parked) = (disks(folder), disks(away));
    match (there.as_slice(), parked.as_slice()) {
        ([_], [back, ..]) => fs::rename(back, folder.join(key(back))).unwrap(),
        ([_], []) => add_disk(folder, 1 + dice.below(3), dice),
        ([.., last], []) if dice.below(3) > 0 => fs::rename(last, away.join(key(last))).unwrap(),
        ([.., last], _) => fs::remove_file(last).unwrap(),
        ([], _) => panic!("a machine without a disk"),
    }
}

fn resize(folder: &Path, dice: &mut Dice) {
    for path in disks(folder) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(size(dice)).unwrap();
    }
}

/// Some bytes somewhere in each disk; now and then zeros.
fn write(folder: &Path, dice: &mut Dice) {
    for path in disks(folder) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        for _ in 0..=dice.below(3) {
            let at = dice.below(size);
            let len = (1 + dice.below(2 * BLOCK)).min(size - at);
            let fill = if dice.below(5) == 0 { 0 } else { dice.roll() };
            let bytes: Vec<u8> = fill.to_le_bytes().into_iter().cycle().take(len).collect();
            file.write_all_at(&bytes, at as u64).unwrap();
        }
    }
}
