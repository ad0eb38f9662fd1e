//! What is in an image folder: which entries are machines and which files are their disks.
//!
//! An entry that is a folder with images (or a `vm.toml`) is a machine; an entry that is an image is a machine with one
//! disk. Hidden entries and files of other kinds are left alone. Nothing that is wrong with one entry hides the others:
//! it is told as that machine's reason why it cannot be backed up.

use super::format::Format;
use super::layers::{self, Layers, Look, Place, Role, Scope};
use super::locks::Writers;
use super::vm_toml;
use super::vm_toml::VmToml;
use crate::error::{Error, Kind, Result};
use crate::model::VmRef;
use crate::name;
use sendense_types::DiskBinding;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Twenty times the machines that one hub is meant for; a folder with more is not one of machines.
const ENTRIES_MAX: usize = 100_000;
/// Files looked at in one machine's folder: four times the disks that a hypervisor gives to a machine.
const FILES_MAX: usize = 1024;

/// An entry that may be a machine.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the folder.
    pub file_name: OsString,
    /// A folder, or an image.
    pub is_folder: bool,
    /// For people; unique unless `vm.toml` files give names.
    pub shown: String,
}

impl Entry {
    /// What the machine is.
    pub fn instance_uuid(&self) -> String {
        instance_uuid_of(&self.file_name)
    }

    /// Whether it is one of those that may be machines.
    fn is_machine(&self) -> bool {
        self.is_folder || Format::of_name(Path::new(&self.file_name)).is_some()
    }
}

fn instance_uuid_of(file_name: &OsStr) -> String {
    name::instance_uuid(name::IMAGE_FOLDER, file_name.as_encoded_bytes())
}

/// A machine as found.
pub struct Machine {
    /// What it is.
    pub vm: VmRef,
    /// Its disks in order.
    pub disks: Vec<DiskFile>,
    /// Its `vm.toml`.
    pub settings: Option<VmToml>,
    /// Why it cannot be backed up at all.
    pub unsupported: Option<String>,
}

/// A disk as declared.
pub struct DiskFile {
    /// Unique within the machine.
    pub key: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Where it may lie.
    pub place: Place,
    /// What it is declared to be.
    pub format: Format,
    /// What it is: its place in the source and its format.
    pub binding: DiskBinding,
    /// What was found there; without file handles, which a large folder would run out of.
    pub found: Result<Glance>,
}

/// What a glance at a disk showed.
#[derive(Debug, Clone)]
pub struct Glance {
    /// Its size.
    pub capacity: sendense_block::ByteLen,
    /// The files it is made of beside its own.
    pub others: Vec<(PathBuf, Role)>,
    /// The resolved path of its own file.
    pub own: PathBuf,
    /// A machine that runs on this host may write it.
    pub written: bool,
}

/// What a look at a disk needs.
struct Lookout<'a> {
    scope: &'a Scope,
    writers: &'a Writers,
}

/// What a listing says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Folder,
    Other,
    /// It may lead to a folder.
    Link,
}

/// The names in a folder, hidden ones left out, without a look at what they name: one that hangs holds up nobody else's.
fn list(root: &Path) -> Result<Vec<(OsString, Listed)>> {
    let failed = |error| Error::new(Kind::Unavailable, format!("list {}", root.display())).caused_by(error);
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        // An error here means that the listing is cut short: better none than one that hides machines.
        let entry = entry.map_err(failed)?;
        let file_name = entry.file_name();
        if file_name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let listed = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => Listed::Link,
            Ok(kind) if kind.is_dir() => Listed::Folder,
            // What has gone meanwhile is found to be gone when it is looked at.
            _ => Listed::Other,
        };
        if listed == Listed::Other && Format::of_name(Path::new(&file_name)).is_none() {
            continue;
        }
        if names.len() == ENTRIES_MAX {
            let message = format!("{} has more than {ENTRIES_MAX} entries", root.display());
            return Err(Error::new(Kind::Unsupported, message));
        }
        names.push((file_name, listed));
    }
    Ok(names)
}

/// Whether a name is that of a folder; a link is followed.
fn is_folder(root: &Path, (file_name, listed): &(OsString, Listed)) -> bool {
    match listed {
        Listed::Folder => true,
        Listed::Other => false,
        Listed::Link => root.join(file_name).is_dir(),
    }
}

/// The entry that is this machine. Of the others nothing is asked but their names, and links only where one would be shown by
/// the same name.
pub fn entry(root: &Path, instance_uuid: &str) -> Result<Option<Entry>> {
    Ok(pick(&list(root)?, instance_uuid, |other| is_folder(root, other)))
}

fn pick(
    listed: &[(OsString, Listed)],
    instance_uuid: &str,
    is_folder: impl Fn(&(OsString, Listed)) -> bool,
) -> Option<Entry> {
    let own = listed.iter().find(|(file_name, _)| instance_uuid_of(file_name) == instance_uuid)?;
    let mut entry = Entry { file_name: own.0.clone(), is_folder: is_folder(own), shown: String::new() };
    if !entry.is_machine() {
        return None;
    }
    let short = stem(&entry.file_name, entry.is_folder);
    let bears_it = |other: &&(OsString, Listed)| {
        let may = [false, true].iter().any(|folder| stem(&other.0, *folder) == short);
        may && {
            let other = Entry { file_name: other.0.clone(), is_folder: is_folder(other), shown: String::new() };
            other.is_machine() && stem(&other.file_name, other.is_folder) == short
        }
    };
    let unique = entry.is_folder || listed.iter().filter(bears_it).nth(1).is_none();
    entry.shown = name::text(if unique { short } else { &entry.file_name });
    Some(entry)
}

/// The entries of a folder that may be machines, in natural order.
pub fn entries(root: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut stems: HashMap<OsString, usize> = HashMap::new();
    for named in list(root)? {
        let is_folder = is_folder(root, &named);
        let entry = Entry { file_name: named.0, is_folder, shown: String::new() };
        if !entry.is_machine() {
            continue;
        }
        *stems.entry(stem(&entry.file_name, is_folder).to_owned()).or_default() += 1;
        entries.push(entry);
    }
    for entry in &mut entries {
        let short = stem(&entry.file_name, entry.is_folder);
        let unique = entry.is_folder || stems.get(short) == Some(&1);
        entry.shown = name::text(if unique { short } else { &entry.file_name });
    }
    entries.sort_by(|one, two| name::natural(&one.file_name, &two.file_name));
    Ok(entries)
}

fn stem(file_name: &OsStr, is_folder: bool) -> &OsStr {
    if is_folder { file_name } else { Path::new(file_name).file_stem().unwrap_or(file_name) }
}

/// Looks at an entry; none when it is a folder without anything of ours in it.
pub fn machine(root: &Path, entry: &Entry, scope: &Scope, writers: &Writers) -> Option<Machine> {
    let lookout = Lookout { scope, writers };
    let mut machine = Machine {
        vm: VmRef { instance_uuid: entry.instance_uuid(), name: entry.shown.clone() },
        disks: Vec::new(),
        settings: None,
        unsupported: None,
    };
    let found = if entry.is_folder {
        folder_disks(&root.join(&entry.file_name), &entry.file_name, &lookout, &mut machine)
    } else {
        let format = Format::of_name(Path::new(&entry.file_name))?;
        let name = name::text(&entry.file_name);
        machine.disks = vec![disk(name.clone(), name, root.join(&entry.file_name), Place::Folder, format, &lookout)];
        Ok(())
    };
    match found {
        Err(error) => machine.unsupported = Some(sendense_block::error::chain(&error)),
        Ok(()) if machine.disks.is_empty() && machine.settings.is_none() => return None,
        Ok(()) if machine.disks.is_empty() => machine.unsupported = Some("it has no disk images".into()),
        Ok(()) => {}
    }
    Some(machine)
}

fn folder_disks(folder: &Path, entry: &OsStr, lookout: &Lookout<'_>, machine: &mut Machine) -> Result<()> {
    let scope = lookout.scope;
    let folder = scope.folder.check_existing(folder)?;
    machine.settings = vm_toml::read(&folder, &scope.folder)?;
    if let Some(settings) = &machine.settings {
        if let Some(name) = &settings.name {
            machine.vm.name.clone_from(name);
        }
        if !settings.disks.is_empty() {
            machine.disks =
                settings.disks.iter().map(|declared| declared_disk(&folder, entry, declared, lookout)).collect();
            return Ok(());
        }
    }
    let failed = |error| Error::new(Kind::Denied, format!("list {}", folder.display())).caused_by(error);
    let mut names = Vec::new();
    for file in fs::read_dir(&folder).map_err(failed)? {
        let file = file.map_err(failed)?;
        let (file_name, is_folder) = (file.file_name(), file.path().is_dir());
        if let Some(format) = Format::of_name(Path::new(&file_name))
            && !is_folder
            && !file_name.as_encoded_bytes().starts_with(b".")
        {
            names.push((file_name, format));
        }
        if names.len() > FILES_MAX {
            let message = format!("{} has more than {FILES_MAX} images", folder.display());
            return Err(Error::new(Kind::Unsupported, message).hint("name the machine's disks in its vm.toml"));
        }
    }
    names.sort_by(|one, two| name::natural(&one.0, &two.0));
    let mut disks: Vec<DiskFile> = names
        .into_iter()
        .map(|(file_name, format)| {
            let name = format!("{}/{}", name::text(entry), name::text(&file_name));
            disk(name::text(&file_name), name, folder.join(&file_name), Place::Folder, format, lookout)
        })
        .collect();
    // What lies below another image of the machine is a part of that disk, not a disk.
    let parts: HashSet<PathBuf> = disks
        .iter()
        .filter_map(|disk| disk.found.as_ref().ok())
        .flat_map(|glance| glance.others.iter().map(|(path, _)| path.clone()))
        .collect();
    disks.retain(|disk| !parts.contains(disk.found.as_ref().map_or(&disk.path, |glance| &glance.own)));
    machine.disks = disks;
    Ok(())
}

fn declared_disk(folder: &Path, entry: &OsStr, declared: &vm_toml::DeclaredDisk, lookout: &Lookout<'_>) -> DiskFile {
    let key = name::text(declared.path.as_os_str());
    let name = if declared.path.is_absolute() { key.clone() } else { format!("{}/{key}", name::text(entry)) };
    let path = folder.join(declared.path.components().collect::<PathBuf>());
    disk(key, name, path, Place::Allowed, declared.format, lookout)
}

fn disk(key: String, name: String, path: PathBuf, place: Place, format: Format, lookout: &Lookout<'_>) -> DiskFile {
    let found = layers::examine(&path, format, place, lookout.scope, Look::Glance);
    let found = found.map(|layers| glance(&layers, lookout.writers));
    DiskFile { key, binding: DiskBinding(format!("image:{name}:{format}")), path, place, format, found }
}

fn glance(layers: &Layers, writers: &Writers) -> Glance {
    let written = layers.files.iter().any(|file| writers.hold(&file.handle));
    let mut files = layers.files.iter();
    let own = files.next().map(|file| file.path.clone()).unwrap_or_default();
    Glance {
        capacity: layers.capacity,
        others: files.map(|file| (file.path.clone(), file.role)).collect(),
        own,
        written,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::RefCell;

    fn listed(names: &[(&str, Listed)]) -> Vec<(OsString, Listed)> {
        names.iter().map(|(name, listed)| ((*name).into(), *listed)).collect()
    }

    #[test]
    fn nothing_is_asked_of_the_machines_beside_it() {
        let all = listed(&[
            ("web", Listed::Folder),
            ("web.raw", Listed::Other),
            ("mail.raw", Listed::Other),
            ("mail.qcow2", Listed::Link),
            ("db.vmdk", Listed::Link),
            ("elsewhere", Listed::Link),
            ("notes.raw", Listed::Link),
        ]);
        for (name, is_folder, shown, looked_at) in [
            ("web", true, "web", vec![]),
            ("web.raw", false, "web.raw", vec![]),
            ("mail.raw", false, "mail.raw", vec!["mail.qcow2"]),
            ("db.vmdk", false, "db", vec!["db.vmdk", "db.vmdk"]),
            ("elsewhere", true, "elsewhere", vec!["elsewhere"]),
        ] {
            let asked = RefCell::new(Vec::new());
            let is_folder_of = |named: &(OsString, Listed)| match named.1 {
                Listed::Folder => true,
                Listed::Other => false,
                Listed::Link => {
                    let name = named.0.to_str().unwrap().to_owned();
                    let leads_to_folder = name == "elsewhere";
                    asked.borrow_mut().push(name);
                    leads_to_folder
                }
            };
            let found = pick(&all, &instance_uuid_of(OsStr::new(name)), is_folder_of).unwrap();
            assert_eq!((found.is_folder, &*found.shown), (is_folder, shown), "{name}");
            assert_eq!(asked.into_inner(), looked_at, "{name}");
        }
        assert!(pick(&all, &instance_uuid_of(OsStr::new("none")), |_| unreachable!()).is_none());
    }

    #[test]
    fn one_is_found_as_all_are() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["web", "a.raw", "targets"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for file in
            ["web.raw", "mail.raw", "mail.vdi", "db.img", ".hidden.raw", "notes.txt", "targets/one.raw", "w\u{e4}.raw"]
        {
            fs::write(dir.path().join(file), "").unwrap();
        }
        for (link, target) in
            [("link.raw", "db.img"), ("web.vmdk", "targets"), ("gone.qcow2", "nowhere"), ("note", "notes.txt")]
        {
            std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
        }
        let all = entries(dir.path()).unwrap();
        assert_eq!(all.len(), 11, "{all:?}");
        for entry in &all {
            let one = super::entry(dir.path(), &entry.instance_uuid()).unwrap().unwrap();
            let told = |entry: &Entry| (entry.file_name.clone(), entry.is_folder, entry.shown.clone());
            assert_eq!(told(&one), told(entry));
        }
        for none in [".hidden.raw", "notes.txt", "note", "absent"] {
            assert!(super::entry(dir.path(), &instance_uuid_of(OsStr::new(none))).unwrap().is_none(), "{none}");
        }
    }
}
