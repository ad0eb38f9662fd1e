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
        name::instance_uuid(name::IMAGE_FOLDER, self.file_name.as_encoded_bytes())
    }
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

/// The entries of a folder that may be machines, in natural order.
pub fn entries(root: &Path) -> Result<Vec<Entry>> {
    let failed = |error| Error::new(Kind::Unavailable, format!("list {}", root.display())).caused_by(error);
    let mut entries = Vec::new();
    let mut stems: HashMap<OsString, usize> = HashMap::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        // An error here means that the listing is cut short: better none than one that hides machines.
        let entry = entry.map_err(failed)?;
        let file_name = entry.file_name();
        if file_name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let is_folder = entry.path().is_dir();
        if !is_folder && Format::of_name(Path::new(&file_name)).is_none() {
            continue;
        }
        *stems.entry(stem(&file_name, is_folder).to_owned()).or_default() += 1;
        if entries.len() == ENTRIES_MAX {
            let message = format!("{} has more than {ENTRIES_MAX} entries", root.display());
            return Err(Error::new(Kind::Unsupported, message));
        }
        entries.push(Entry { file_name, is_folder, shown: String::new() });
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
