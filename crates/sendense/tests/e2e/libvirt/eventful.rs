//! Thirty backups of a domain to which everything happens, into two repositories, through the binary.
//!
//! What happens comes from a deck of cards that is shuffled from a seed, so that every run meets all of it in an order of its
//! own choice of seed; `SENDENSE_TEST_SEED` repeats or varies one. Before each backup the disks are copied by `qemu-img`, the
//! stranger whose word counts; at the end every point must restore to its copy. For each disk it is foretold whether its
//! changes are known: where they are, nothing else may have been read, and where they are not, the point must say why.

// A run that fails is understood, and repeated, by its story.
#![allow(clippy::print_stdout)]

use super::lab::guest::{Guest, LabDisk, disk_xml};
use super::lab::{MIB, lab, qemu_img, until};
use super::{back_up, disk_of, scratch, start_hub, token};
use crate::disk::Random;
use crate::hub::{Hub, field, path, tree};
use crate::kill::settled;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const DISKS: [(&str, &str, u64); 3] = [("vda", "qcow2", 64 * MIB), ("vdb", "qcow2", 16 * MIB), ("vdc", "raw", 8 * MIB)];
const REPOSITORIES: [&str; 2] = ["main", "second"];

/// What happens before a backup, beside writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Nothing,
    PowerOff,
    Grow,
    Shrink,
    ShrinkAndGrow,
    Snapshot,
    Commit,
    RemoveDisk,
    DeleteNewest,
    KillHub,
}

const DECK: [(Card, usize); 10] = [
    (Card::Nothing, 10),
    (Card::PowerOff, 5),
    (Card::Grow, 2),
    (Card::Shrink, 1),
    (Card::ShrinkAndGrow, 2),
    (Card::Snapshot, 2),
    (Card::Commit, 1),
    (Card::RemoveDisk, 2),
    (Card::DeleteNewest, 3),
    (Card::KillHub, 2),
];

/// A point with what it must restore to.
struct Point {
    backup: Value,
    repository: &'static str,
    /// By target.
    copies: BTreeMap<&'static str, PathBuf>,
    /// Disks that lost a part of themselves since, though they may have their old size again.
    cut: BTreeSet<&'static str>,
    /// What vda consisted of.
    layers: Vec<PathBuf>,
}

struct World<'a> {
    dir: &'a Path,
    guest: Guest<'a>,
    hub: Hub,
    random: Random,
    points: Vec<Point>,
    running: bool,
    /// vdb is out of the domain until this round.
    removed_until: Option<usize>,
    overlays: usize,
    /// What vda consists of, highest first.
    layers: Vec<PathBuf>,
    deltas: usize,
}

#[test]
fn thirty_backups_of_an_eventful_life_restore_to_what_the_disks_held() {
    let seed = std::env::var("SENDENSE_TEST_SEED").map_or(0x5eed, |text| text.parse().unwrap());
    println!("SENDENSE_TEST_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start_new(lab(), &DISKS);
    let (hub, layers) = (start_hub(dir.path(), &guest), vec![guest.disks[0].path.clone()]);
    let mut world = World {
        dir: dir.path(),
        guest,
        hub,
        random: Random::new(seed),
        points: Vec::new(),
        running: true,
        removed_until: None,
        overlays: 0,
        layers,
        deltas: 0,
    };
    let mut deck: Vec<Card> = DECK.iter().flat_map(|(card, count)| std::iter::repeat_n(*card, *count)).collect();
    for at in (1..deck.len()).rev() {
        deck.swap(at, world.random.below(at as u64 + 1) as usize);
    }
    for (round, card) in deck.into_iter().enumerate() {
        world.live(round, card);
        if card == Card::KillHub {
            world.kill_hub(round);
        }
        let repository = REPOSITORIES[usize::from(world.random.below(3) == 0)];
        world.back_up(round, repository);
    }
    // The story is worth something only if tracking was used in it.
    assert!(world.deltas >= 30, "only {} disks of {} points were deltas", world.deltas, world.points.len());
    world.every_image_is_sound();
    world.every_point_restores();
}

impl World<'_> {
    fn targets(&self) -> Vec<&'static str> {
        DISKS.iter().map(|disk| disk.0).filter(|target| *target != "vdb" || self.removed_until.is_none()).collect()
    }

    fn start(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            self.guest.start();
        }
    }

    fn power_off(&mut self) {
        if std::mem::replace(&mut self.running, false) {
            self.guest.power_off();
        }
    }

    /// What happens between two backups.
    fn live(&mut self, round: usize, card: Card) {
        if self.removed_until.is_some_and(|until| until <= round) {
            self.put_back(round);
        }
        // A domain that is off stays so for two backups now and then.
        if self.running || card != Card::Nothing || self.random.below(3) > 0 {
            self.start();
            for _ in 0..1 + self.random.below(3) {
                self.write(round);
            }
        }
        println!("{round}: {card:?}");
        match card {
            Card::Nothing | Card::KillHub => {}
            Card::PowerOff => self.power_off(),
            Card::Grow => {
                let target = self.qcow2_disk();
                let size = self.guest.model[target].len() as u64 + 65536 + 512 * self.random.below(4000);
                self.guest.lab.virsh(&["blockresize", &self.guest.uuid, target, &format!("{size}B")]);
                self.resized(target, size);
            }
            Card::Shrink | Card::ShrinkAndGrow => {
                self.power_off();
                let target = self.qcow2_disk();
                let size = self.guest.model[target].len() as u64;
                let smaller = size - 512 * self.random.below(size / 2048);
                let image = if target == "vda" { self.layers[0].clone() } else { self.guest.disks[1].path.clone() };
                let resize = ["resize", "-q", "-f", "qcow2"];
                qemu_img(&[&resize[..], &["--shrink", path(&image), &smaller.to_string()]].concat());
                self.resized(target, smaller);
                if card == Card::ShrinkAndGrow {
                    qemu_img(&[&resize[..], &[path(&image), &size.to_string()]].concat());
                    self.resized(target, size);
                }
            }
            Card::Snapshot => self.snapshot(),
            Card::Commit => {
                self.snapshot();
                self.write(round);
                self.guest.lab.virsh(&["blockcommit", &self.guest.uuid, "vda", "--active", "--pivot", "--wait"]);
                self.committed();
            }
            Card::RemoveDisk => {
                if self.removed_until.is_none() {
                    // There is no guest system that would let a disk go while it runs.
                    self.power_off();
                    self.guest.lab.virsh(&["detach-disk", &self.guest.uuid, "vdb", "--config"]);
                }
                self.removed_until = Some(round + 2);
            }
            Card::DeleteNewest => self.delete_newest(round),
        }
    }

    fn qcow2_disk(&mut self) -> &'static str {
        if self.removed_until.is_none() && self.random.below(2) == 0 { "vdb" } else { "vda" }
    }

    fn resized(&mut self, target: &'static str, size: u64) {
        let bytes = self.guest.model.get_mut(target).unwrap();
        if size < bytes.len() as u64 {
            for point in &mut self.points {
                point.cut.insert(target);
            }
        }
        bytes.resize(size as usize, 0);
    }

    /// The guest writes, zeroes or trims something somewhere.
    fn write(&mut self, round: usize) {
        let targets = self.targets();
        let target = targets[self.random.below(targets.len() as u64) as usize];
        let size = self.guest.model[target].len() as u64;
        let at = self.random.below(size);
        let len = (1 + self.random.below(300 << 10)).min(size - at);
        let pattern = self.random.below(255) as u8 + 1;
        let clusters = (at.next_multiple_of(65536), (at + len) / 65536 * 65536);
        let what = match self.random.below(6) {
            0 => {
                self.guest.zero(target, at, len, false);
                "zeroed"
            }
            1 => {
                self.guest.zero(target, at, len, true);
                "zeroed and unmapped"
            }
            2 if clusters.0 < clusters.1 => {
                self.guest.trim(target, clusters.0, clusters.1 - clusters.0);
                "trimmed inside of"
            }
            _ => {
                self.guest.write(target, pattern, at, len);
                "written to"
            }
        };
        println!("{round}: {what} {len} bytes of {target} at {at}");
    }

    fn snapshot(&mut self) {
        self.overlays += 1;
        let guest = &self.guest;
        let overlay = guest.lab.dir.join("images").join(format!("{}-s{}.qcow2", guest.name, self.overlays));
        let spec = format!("vda,snapshot=external,file={}", path(&overlay));
        let mut args = vec!["snapshot-create-as", &guest.uuid, "s", "--disk-only", "--no-metadata"];
        args.extend(["--diskspec", &spec, "--diskspec", "vdc,snapshot=no"]);
        if self.removed_until.is_none() {
            args.extend(["--diskspec", "vdb,snapshot=no"]);
        }
        guest.lab.virsh(&args);
        self.layers.insert(0, overlay);
    }

    /// A lowest layer that is larger than what was committed into it gives the disk its size, and what it holds there.
    fn committed(&mut self) {
        self.layers.drain(..self.layers.len() - 1);
        let now = self.dir.join("committed");
        self.guest.try_qemu_io("vda", "flush");
        qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "raw", path(&self.layers[0]), path(&now)]);
        let (now, model) = (std::fs::read(&now).unwrap(), self.guest.model.get_mut("vda").unwrap());
        assert!(now.len() >= model.len() && now[..model.len()] == **model, "the lab's model of vda is wrong");
        *model = now;
    }

    fn put_back(&mut self, round: usize) {
        let disk: &LabDisk = &self.guest.disks[1];
        let file = self.guest.lab.dir.join(format!("{}-vdb.xml", self.guest.name));
        std::fs::write(&file, disk_xml(disk)).unwrap();
        let how = if self.running { vec!["--live", "--config"] } else { vec!["--config"] };
        self.guest.lab.virsh(&[&["attach-device", &self.guest.uuid, path(&file)], &how[..]].concat());
        self.removed_until = None;
        println!("{round}: vdb is back, {how:?}");
    }

    /// The newest point of one repository is deleted, when it has others to go on from.
    fn delete_newest(&mut self, round: usize) {
        let Some(at) = self.points.iter().rposition(|point| point.repository == "main") else { return };
        if self.points.iter().filter(|point| point.repository == "main").count() < 2 {
            return;
        }
        let point = self.points.remove(at);
        self.restores(&point);
        self.hub.ok(&["backup", "delete", field(&point.backup, "backup_id"), "--yes"]);
        println!("{round}: {} is deleted", field(&point.backup, "backup_id"));
    }

    /// The hub is killed in the middle of a backup, and another one is started.
    fn kill_hub(&mut self, round: usize) {
        self.start();
        let copies = self.copies(&format!("{round}-killed"));
        let started =
            self.hub.json(&["backup", "start", &self.guest.name, "--repo", "main", "--type", "full"])["backup"].clone();
        let id = field(&started, "backup_id").to_owned();
        let domain = self.guest.uuid.clone();
        let job = ["backup-dumpxml", &domain];
        until("the backup job runs", || {
            let ended = || self.hub.json(&["backup", "show", &id])["backup"]["completed_at"].is_string();
            (self.guest.lab.try_virsh(&job).is_ok() || ended()).then_some(())
        });
        self.hub.kill_9();
        self.hub = Hub::start(self.dir);
        if settled(&self.hub, &self.dir.join("main"), &id, round) {
            let backup = self.hub.json(&["backup", "show", &id])["backup"].clone();
            println!("{round}: killed, and it was a point already");
            let layers = self.layers.clone();
            self.points.push(Point { backup, repository: "main", copies, cut: BTreeSet::new(), layers });
        } else {
            println!("{round}: killed in the middle");
        }
        let scratch = scratch(self.guest.lab, &self.guest);
        until("what the dead hub left is reaped", || {
            let empty = std::fs::read_dir(&scratch).unwrap().count() == 0;
            (empty && self.guest.lab.try_virsh(&job).is_err()).then_some(())
        });
    }

    /// Copies of the disks as they are.
    fn copies(&self, name: &str) -> BTreeMap<&'static str, PathBuf> {
        let copies = self.targets().into_iter().map(|target| {
            if self.running {
                self.guest.try_qemu_io(target, "flush");
            }
            let disk = self.guest.disks.iter().find(|disk| disk.target == target).unwrap();
            let image = if target == "vda" { &self.layers[0] } else { &disk.path };
            let copy = self.dir.join(format!("copy-{name}-{target}"));
            qemu_img(&["convert", "-U", "-f", disk.format, "-O", "raw", path(image), path(&copy)]);
            let (bytes, model) = (std::fs::read(&copy).unwrap(), &self.guest.model[target]);
            assert_eq!(bytes.len(), model.len(), "the lab's model of {target} is wrong");
            assert!(bytes == *model, "the lab's model of {target} is wrong");
            (target, copy)
        });
        copies.collect()
    }

    fn newest(&self, repository: &str, target: &str) -> Option<&Point> {
        let mut points = self.points.iter().rev();
        points.find(|point| point.repository == repository && point.copies.contains_key(target))
    }

    /// What may be said of why the next point of a disk is no delta; nothing when it must be one, with true where it may be.
    fn foretold(&self, repository: &str, target: &str, checkpoints: &[String]) -> (Vec<&'static str>, bool) {
        let Some(parent) = self.newest(repository, target) else {
            return (vec!["full: this repository holds no earlier point"], false);
        };
        let mut reasons = Vec::new();
        if target == "vdc" {
            reasons.push("raw disk, no change tracking");
        }
        match token(&parent.backup, target) {
            None => reasons.push("no change tracking at the parent"),
            Some(token) if !checkpoints.contains(&token) => reasons.extend(["is missing", "has no bitmap"]),
            Some(_) => {}
        }
        if disk_of(&parent.backup, target)["capacity_bytes"] != self.guest.model[target].len() {
            reasons.push("size has changed");
        }
        if target == "vda" && !self.layers.ends_with(&parent.layers) {
            reasons.push("no longer has the layers");
        }
        let doubtful = reasons.is_empty() && parent.cut.contains(target);
        if doubtful {
            reasons.push("change tracking contradicts the parent");
        }
        (reasons, doubtful)
    }

    fn back_up(&mut self, round: usize, repository: &'static str) {
        let copies = self.copies(&round.to_string());
        let checkpoints = self.guest.checkpoints();
        let backup = back_up(&self.hub, &self.guest, repository, &[]);
        for target in self.targets() {
            let (reasons, doubtful) = self.foretold(repository, target, &checkpoints);
            let disk = disk_of(&backup, target);
            match disk["type_reason"].as_str() {
                None => assert!(reasons.is_empty() || doubtful, "{target} is a delta in spite of {reasons:?}"),
                Some(said) => {
                    assert!(reasons.iter().any(|part| said.contains(part)), "{said:?} is none of {reasons:?}")
                }
            }
            self.deltas += usize::from(disk["type_reason"].is_null());
            let parent = self.newest(repository, target).map(|point| field(&point.backup, "backup_id"));
            let wanted = if parent.is_some() { "incremental" } else { "full" };
            assert_eq!(field(disk, "backup_type"), wanted, "{disk:#}");
            assert_eq!(disk["backing_file"].as_str().map(str::to_owned), parent.map(|id| format!("{id}.qcow2")));
        }
        assert_eq!(backup["disks"].as_array().unwrap().len(), self.targets().len());
        println!("{round}: {} in {repository}: {}", field(&backup, "backup_id"), backup["type_reason"]);
        let layers = self.layers.clone();
        self.points.push(Point { backup, repository, copies, cut: BTreeSet::new(), layers });
        if self.running {
            // A domain that is off keeps what it has. What a deleted point has made go does not come back with its parent.
            let made = token(&self.points[self.points.len() - 1].backup, "vda");
            let could: BTreeSet<String> = checkpoints.into_iter().chain(made).collect();
            let there: BTreeSet<String> = self.guest.checkpoints().into_iter().collect();
            assert_eq!(there, &could & &self.checkpoints_wanted());
        }
    }

    /// Those that the newest point of a chain names, in any repository.
    fn checkpoints_wanted(&self) -> BTreeSet<String> {
        let newest = REPOSITORIES.iter().flat_map(|repository| {
            DISKS.iter().filter_map(|disk| token(&self.newest(repository, disk.0)?.backup, disk.0))
        });
        newest.collect()
    }

    fn every_image_is_sound(&self) {
        for repository in REPOSITORIES.map(|name| self.dir.join(name)) {
            let images: Vec<_> = tree(&repository).into_iter().filter(|file| file.ends_with(".qcow2")).collect();
            assert!(!images.is_empty(), "{} is empty", repository.display());
            for image in images {
                qemu_img(&["check", "-q", path(&repository.join(image))]);
            }
        }
    }

    fn every_point_restores(&self) {
        for point in &self.points {
            self.restores(point);
        }
    }

    fn restores(&self, point: &Point) {
        let id = field(&point.backup, "backup_id");
        for (target, copy) in &point.copies {
            let number = disk_of(&point.backup, target)["disk_id"].to_string();
            let out = self.dir.join("restored");
            self.hub.ok(&["restore", "disk", id, "--disk", &number, "--to", path(&out), "--wait"]);
            assert_same(&out, copy);
            std::fs::remove_file(&out).unwrap();
        }
    }
}

/// Fails, saying where, when two files differ.
fn assert_same(found: &Path, wanted: &Path) {
    let size = |file: &Path| file.metadata().unwrap().len();
    assert_eq!(size(found), size(wanted), "size of {}, restored", wanted.display());
    let (mut one, mut other) = (File::open(found).unwrap(), File::open(wanted).unwrap());
    let (mut left, mut at) = (size(found), 0);
    let (mut found, mut expected) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    while left > 0 {
        let len = left.min(MIB) as usize;
        one.read_exact(&mut found[..len]).unwrap();
        other.read_exact(&mut expected[..len]).unwrap();
        if found[..len] != expected[..len] {
            let differs = (0..len).find(|byte| found[*byte] != expected[*byte]).unwrap();
            panic!("{} is restored wrongly from byte {}", wanted.display(), at + differs as u64);
        }
        (left, at) = (left - len as u64, at + len as u64);
    }
}
