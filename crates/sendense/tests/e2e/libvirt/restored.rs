//! A whole machine comes back as another: its disks compared, started, and nothing left of one that was not finished.

use super::lab::guest::Guest;
use super::lab::{Lab, lab, until};
use super::{back_up, start_hub};
use crate::hub::{Hub, field, path, tool, tree};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const MAC: &str = "52:54:00:0a:0b:0c";

/// A folder for disks that QEMU's user may use.
pub(super) fn pool(lab: &Lab, dir: &Path) -> PathBuf {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let pool = dir.join("pool");
    std::fs::create_dir(&pool).unwrap();
    lab.give(&pool);
    pool
}

/// The files of a domain's disks by target.
pub(super) fn disks(lab: &Lab, domain: &str) -> Vec<(String, String)> {
    let text = lab.virsh(&["domblklist", domain]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    text.lines().map(words).filter(|words| words.len() == 2).map(|words| (words[0].clone(), words[1].clone())).collect()
}

/// A point of a guest with two disks: of the second one, which has data in its 16th block and nowhere else, a bit has rotted.
pub(super) struct Rotten {
    pub guest: Guest<'static>,
    pub dir: TempDir,
    pub hub: Hub,
    pub pool: PathBuf,
    /// The point.
    pub id: String,
    /// Which image of the repository is damaged.
    pub image: String,
}

impl Rotten {
    pub fn new() -> Self {
        let lab = lab();
        let mut guest = Guest::define(lab, &[("vda", "qcow2", MIB), ("vdb", "raw", 3 * MIB)]);
        guest.start();
        guest.write("vda", 0x55, 0, MIB);
        guest.write("vdb", 0x66, MIB, 65536);
        let dir = tempfile::tempdir().unwrap();
        let hub = start_hub(dir.path(), &guest);
        let pool = pool(lab, dir.path());
        // Not compressed, so that the block lies in the image as it is.
        let id = field(&back_up(&hub, &guest, "main", &["--compression", "off"]), "backup_id").to_owned();
        let image = rot_where(&dir.path().join("main"), &format!("disk-1/{id}.qcow2"), 0x66);
        Self { guest, dir, hub, pool, id, image }
    }
}

/// A bit flips in the block that holds nothing but this byte, in the image of a repository whose name ends so; gives the image's name.
fn rot_where(repository: &Path, ends: &str, byte: u8) -> String {
    let image = tree(repository).into_iter().find(|file| file.ends_with(ends)).unwrap();
    let mut bytes = std::fs::read(repository.join(&image)).unwrap();
    let at = bytes.windows(65536).position(|part| part.iter().all(|found| *found == byte)).unwrap();
    bytes[at + 5] ^= 1;
    std::fs::write(repository.join(&image), bytes).unwrap();
    image
}

#[test]
fn a_machine_is_restored_as_another_and_starts() {
    let lab = lab();
    // What reaches into the host is in the recorded configuration, and must not come back.
    let devices = format!(
        "<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>
         <serial type='file'><source path='{0}/serial.log'/></serial>",
        lab.dir.display()
    );
    let tail = "<qemu:commandline><qemu:arg value='-msg'/><qemu:arg value='timestamp=on'/></qemu:commandline>";
    let mut guest = Guest::define_with(lab, &[("vda", "qcow2", 8 * MIB), ("vdb", "raw", 3 * MIB)], &devices, tail);
    guest.start();
    guest.write("vda", 0x11, 65536, 3 * MIB);
    guest.write("vdb", 0x22, MIB, MIB);
    let dir = tempfile::tempdir().unwrap();
    let hub = start_hub(dir.path(), &guest);
    let pool = pool(lab, dir.path());
    let id = field(&back_up(&hub, &guest, "main", &[]), "backup_id").to_owned();
    guest.write("vda", 0x33, 0, MIB);

    let named = format!("{}-pool", guest.name);
    lab.virsh(&["pool-create-as", &named, "dir", "--target", path(&pool)]);
    for (format, place) in [("qcow2", path(&pool)), ("raw", &named)] {
        let name = format!("{}-{format}", guest.name);
        let args = ["restore", "vm", &id, "--source", "lab", "--name", &name, "--format", format, "--wait"];
        let pooled = ["--pool", place];
        let said = hub.json(&[&args[..], &pooled].concat());
        assert!(field(&said["task"], "summary").contains("switched off"), "{said:#}");
        assert!(lab.virsh(&["domstate", &name]).contains("shut off"));
        let document = lab.virsh(&["dumpxml", "--inactive", &name]);
        for gone in [guest.uuid.as_str(), MAC, "qemu:", "serial.log", "type='file'><source path"] {
            assert!(!document.contains(gone), "{gone} is in {document}");
        }
        let found = disks(lab, &name);
        assert_eq!(found.len(), 2, "{found:?}");
        for (target, file) in &found {
            assert!(file.starts_with(path(&pool)), "{file}");
            // What the guest never wrote takes no room.
            let held = std::fs::metadata(file).unwrap();
            assert!(held.blocks() * 512 < guest.model[target.as_str()].len() as u64 - MIB, "{file} is not sparse");
            let out = dir.path().join(format!("{name}-{target}.out"));
            tool("qemu-utils", "qemu-img", &["convert", "-f", format, "-O", "raw", file, path(&out)]);
            let mut model = guest.model[target.as_str()].clone();
            if target == "vda" {
                // Written after the backup.
                model[..MIB as usize].fill(0);
                model[65536..MIB as usize].fill(0x11);
            }
            assert!(std::fs::read(&out).unwrap() == model, "{target} differs");
        }
        lab.virsh(&["start", &name]);
        assert!(lab.virsh(&["domstate", &name]).contains("running"));

        // The name is taken now: nothing is made.
        let before = tree(&pool);
        let again = hub.run(&[&args[..], &pooled].concat());
        let complaint = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.status.success() && complaint.contains("exists"), "{complaint}");
        assert_eq!(tree(&pool), before);
        lab.virsh(&["destroy", &name]);
        lab.virsh(&["undefine", &name]);
    }
    lab.virsh(&["pool-destroy", &named]);
    // The old machine is there: its identity is not given away, and its definition not replaced.
    let definition = lab.virsh(&["dumpxml", "--inactive", &guest.name]);
    let args = ["restore", "vm", &id, "--source", "lab", "--keep-identity", "--wait", "--pool", path(&pool)];
    for name in [guest.name.as_str(), "another-name"] {
        let before = tree(&pool);
        let refused = hub.run(&[&args[..], &["--name", name]].concat());
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && complaint.contains("exists"), "{complaint}");
        assert_eq!(tree(&pool), before);
    }
    assert_eq!(lab.virsh(&["dumpxml", "--inactive", &guest.name]), definition);
    // A network that is not there is asked for: told before anything is copied.
    let network = format!("{MAC}=nowhere");
    let args = ["restore", "vm", &id, "--source", "lab", "--name", "lost", "--network", &network, "--wait"];
    let refused = hub.run(&[&args[..], &["--pool", path(&pool)]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no network nowhere"), "{refused:?}");
    // Not below an allowed folder.
    let args = ["restore", "vm", &id, "--libvirt", &lab.uri, "--name", "elsewhere", "--wait", "--pool", "/var/tmp"];
    assert!(!hub.run(&args).status.success());
    assert!(lab.try_virsh(&["domstate", "elsewhere"]).is_err());
    // Nor in a repository, by its path or by the name of a pool that lies there.
    let inside = dir.path().join("main").join("vms");
    std::fs::create_dir(&inside).unwrap();
    lab.virsh(&["pool-create-as", &named, "dir", "--target", path(&inside)]);
    for place in [path(&inside), &named] {
        let args = ["restore", "vm", &id, "--source", "lab", "--name", "inside", "--wait", "--pool", place];
        let refused = hub.run(&args);
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && complaint.contains("repository"), "{complaint}");
        assert!(tree(&inside).is_empty(), "{place}");
    }
    lab.virsh(&["pool-destroy", &named]);
    assert!(lab.try_virsh(&["domstate", "inside"]).is_err());
}

#[test]
fn a_hub_that_is_killed_leaves_nothing_of_an_unfinished_machine() {
    let lab = lab();
    let mut guest = Guest::define(lab, &[("vda", "qcow2", 48 * MIB)]);
    guest.start();
    guest.write("vda", 0x44, 0, 48 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let mut hub = start_hub(dir.path(), &guest);
    let pool = pool(lab, dir.path());
    let id = field(&back_up(&hub, &guest, "main", &[]), "backup_id").to_owned();
    let name = format!("{}-killed", guest.name);
    hub.json(&["restore", "vm", &id, "--source", "lab", "--name", &name, "--pool", path(&pool), "--format", "raw"]);
    until("something in the pool", || (!tree(&pool).is_empty()).then_some(()));
    hub.kill_9();
    let finished = lab.try_virsh(&["domstate", &name]).is_ok();
    hub = Hub::start(dir.path());
    // One that was defined before the kill is whole and stays.
    until("nothing or all of it", || {
        let defined = lab.try_virsh(&["domstate", &name]).is_ok();
        (defined != tree(&pool).is_empty()).then_some(())
    });
    if !finished {
        let args = ["restore", "vm", &id, "--source", "lab", "--name", &name, "--pool", path(&pool), "--wait"];
        hub.ok(&args);
    }
    let _ = lab.try_virsh(&["undefine", &name]);
}

#[test]
fn a_rotten_block_makes_no_machine_unless_what_is_left_is_wanted() {
    let Rotten { guest, dir: _dir, hub, pool, id, image } = Rotten::new();
    let lab = guest.lab;
    let name = format!("{}-rotten", guest.name);
    let pooled = ["--pool", path(&pool), "--format", "raw", "--wait"];
    let restore = [&["restore", "vm", &id, "--source", "lab", "--name", &name][..], &pooled].concat();
    let said = hub.fails(6, &restore);
    assert!(said.contains(&format!("disk 1 of {id} is damaged")) && said.contains(&image), "{said}");
    assert!(lab.try_virsh(&["domstate", &name]).is_err(), "it is defined");
    assert_eq!(tree(&pool), [""; 0], "also the disk that is whole is taken away");

    let made = hub.json(&[&restore[..], &["--allow-damaged"]].concat());
    assert!(field(&made["task"], "summary").contains("WARNING: 1 blocks are damaged"), "{made:#}");
    for (target, file) in disks(lab, &name) {
        let mut left = guest.model[target.as_str()].clone();
        if target == "vdb" {
            left[MIB as usize + 5] ^= 1;
        }
        assert!(std::fs::read(&file).unwrap() == left, "{target} differs");
    }
    assert_eq!(disks(lab, &name).len(), 2);
    lab.virsh(&["undefine", &name]);
}
