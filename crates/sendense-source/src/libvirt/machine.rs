//! A domain made of a restore point: planned, defined, or taken away again.
//!
//! Invariant: the files of a new domain bear a random part in their names, so that what the journal tells to remove is
//! nobody else's. Defining the domain is the last step, so one that is defined is whole, and is never taken away: by the
//! time that an interrupted restore is cleaned up, somebody may be using it.

use super::document::Document;
use super::domain::{Domain, Place};
use super::fit;
use super::rebuild::{self, Medium, Wanted};
use super::virsh::CHANGE;
use super::{Settings, virsh::Virsh, xml};
use crate::error::{Error, Kind, Result};
use crate::model::VmRef;
use crate::target::{NewVm, Planned};
use base64::Engine;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use sendense_block::Cancel;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longer names make file names that some file systems refuse.
const NAME_BYTES_MAX: usize = 100;

/// Held from the last look for a domain of the same identity until ours is defined: `virsh define` replaces a domain that
/// has the same name *and* UUID, which only `keep_identity` can bring about.
pub(super) static DEFINING: Mutex<()> = Mutex::new(());

/// A name that is neither a flag, nor a path, nor a number of a running domain.
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    let letters = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._+-".contains(letter));
    let first = name.chars().next().is_some_and(|letter| letter.is_ascii_alphanumeric());
    let number = name.chars().all(|letter| letter.is_ascii_digit());
    if !letters || !first || number || name.len() > NAME_BYTES_MAX {
        let message = format!(
            "{name:?} is no name for a {what}: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ + -, the first a letter or digit, \
             not digits alone"
        );
        return Err(Error::new(Kind::Invalid, message));
    }
    Ok(())
}

/// A disk's target, which may become part of a file's name.
pub(super) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 32 || !key.chars().all(|letter| letter.is_ascii_alphanumeric()) {
        return Err(Error::new(Kind::Invalid, format!("{key:?} is no target of a disk")));
    }
    Ok(())
}

pub(super) fn folder(settings: &Settings, pool: &str, cancel: &Cancel) -> Result<PathBuf> {
    if pool.starts_with('/') {
        return Ok(PathBuf::from(pool));
    }
    check_name("pool", pool)?;
    let text = settings.virsh.ask(&["pool-dumpxml", pool], cancel)?;
    let root = xml::parse(&text, "pool")?;
    match (root.attribute("type"), root.child("target").and_then(|target| target.child_text("path"))) {
        (Some("dir" | "fs" | "netfs"), Some(path)) => Ok(PathBuf::from(path)),
        (kind, _) => Err(Error::new(Kind::Unsupported, format!("the pool {pool} is no folder but of type {kind:?}"))
            .hint("restore the disks by themselves, or name a folder")),
    }
}

pub(super) fn plan(settings: &Settings, new: &NewVm<'_>, cancel: &Cancel) -> Result<Planned> {
    if !settings.local {
        return Err(Error::new(Kind::Unsupported, format!("{} is a daemon on another host", settings.virsh.uri)));
    }
    check_name("machine", new.name)?;
    xml::check_path(new.folder)?;
    let document = |kind: &str| new.documents.iter().find(|document| document.kind == kind)?.content.as_deref();
    let Some(recorded) = document("libvirt-domain-xml") else {
        return Err(Error::new(Kind::Unsupported, "the point holds no configuration of a libvirt domain")
            .hint("restore its disks by themselves and define a machine around them"));
    };
    let uuid = match new.keep_identity {
        true => Domain::parse(recorded)?.uuid,
        false => uuid::Uuid::new_v4().to_string(),
    };
    let vm = VmRef { instance_uuid: uuid, name: new.name.to_owned() };
    check_free(&settings.virsh, &vm, cancel)?;
    // Not of the UUID where that is kept: two tries must not have the same files.
    let own = uuid::Uuid::new_v4().simple().to_string();
    let file = |what: &str, end: &str| new.folder.join(format!("{}-{what}-{}.{end}", new.name, &own[..8]));
    let mut disks = Vec::new();
    for key in new.disks {
        check_key(key)?;
        disks.push(file(key, new.format.as_str()));
    }
    let mut notes = Vec::new();
    let nvram = match document("nvram").map(|text| base64::engine::general_purpose::STANDARD.decode(text)) {
        Some(Ok(bytes)) => Some((file("nvram", "fd"), bytes)),
        Some(Err(_)) => {
            notes.push("the recorded variables of the firmware cannot be read; it starts with its own".to_owned());
            None
        }
        None => None,
    };
    let format = new.format.as_str();
    let media = disks.iter().map(|path| Medium::File { path, format });
    let wanted = Wanted {
        name: new.name,
        uuid: &vm.instance_uuid,
        disks: new.disks.iter().map(String::as_str).zip(media).collect(),
        nvram: nvram.as_ref().map(|(path, _)| path.as_path()),
        networks: new.networks,
        keep_macs: new.keep_identity,
    };
    let rebuilt = rebuild::rebuild(recorded, &wanted)?;
    notes.extend(rebuilt.notes);
    let definition = xml::parse(&rebuilt.document, "domain")?;
    fit::check(&settings.virsh, &definition, cancel)?;
    Ok(Planned { vm, disks, nvram, definition: rebuilt.document, notes })
}

/// Nothing existing is replaced.
pub(super) fn check_free(virsh: &Virsh, vm: &VmRef, cancel: &Cancel) -> Result<()> {
    for (flag, what) in [("--name", &vm.name), ("--uuid", &vm.instance_uuid)] {
        let text = virsh.ask(&["list", "--all", flag], cancel)?;
        if text.lines().any(|line| line.trim() == what) {
            return Err(Error::new(Kind::Busy, format!("a machine {what} exists already")));
        }
    }
    Ok(())
}

pub(super) fn finish(settings: &Settings, planned: &Planned, cancel: &Cancel) -> Result<()> {
    if let Some((path, bytes)) = &planned.nvram {
        write_new(path, bytes)
            .map_err(|error| Error::new(Kind::Failed, format!("write {}", path.display())).caused_by(error))?;
    }
    for path in planned.files() {
        // A system daemon does it itself when it starts a domain, and where we may not, the owner is the same anyway.
        if let Err(error) = give(path) {
            tracing::debug!(path = %path.display(), %error, "give a disk to its folder's owner");
        }
    }
    let (virsh, document) = (&settings.virsh, Document::new(&planned.definition)?);
    let _defining = DEFINING.lock().unwrap_or_else(PoisonError::into_inner);
    check_free(virsh, &planned.vm, cancel)?;
    // From here on it cannot be cancelled: the daemon may already be at it, and must not have it without its disks.
    let last = Cancel::new();
    match virsh.call(&["define", &document.path()], CHANGE, &last) {
        Ok(_) => Ok(()),
        // A daemon that was slow to answer may have done it.
        Err(error) => match is_defined(virsh, &planned.vm.instance_uuid, &planned.disks, &last) {
            Ok(true) => Ok(()),
            _ => Err(error),
        },
    }
}

/// The folder that a file lies in, and the file's name. The path was resolved when it was checked, so a link on the way was
/// put there since, and leads nowhere.
fn place(path: &Path) -> io::Result<(File, &OsStr)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok((File::from(folder), name))
}

/// A new file and its name, on stable storage.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, name) = place(path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    file.sync_all()?;
    folder.sync_all()
}

/// Lets the folder's owner have the file, as a session's QEMU needs. That owner may have put something else in its place
/// meanwhile, so what is given away is a file that has no other name.
fn give(path: &Path) -> io::Result<()> {
    let (folder, name) = place(path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&folder, name, flags, Mode::empty())?);
    let (held, folder) = (file.metadata()?, folder.metadata()?);
    if !held.is_file() || held.nlink() != 1 {
        return Err(io::Error::other("it is no longer the file that was made"));
    }
    fchown(&file, Some(folder.uid()), Some(folder.gid()))
}

/// What the journal says of a machine.
#[derive(Deserialize)]
struct Details {
    files: Vec<PathBuf>,
}

/// There is a domain of that UUID, and it is ours: it uses one of these files.
fn is_defined(virsh: &Virsh, uuid: &str, files: &[PathBuf], cancel: &Cancel) -> Result<bool> {
    match virsh.ask(&["dumpxml", "--inactive", uuid], cancel) {
        Ok(document) => Ok(Domain::parse(&document)?
            .disks
            .iter()
            .flat_map(|disk| &disk.layers)
            .any(|layer| matches!(&layer.place, Place::File(path) if files.contains(path)))),
        Err(error) if error.kind == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes away the files of a domain that was not finished.
pub(super) fn reap(virsh: &Virsh, uuid: &str, details: &serde_json::Value, cancel: &Cancel) -> Result<bool> {
    let details = Details::deserialize(details)
        .map_err(|error| Error::new(Kind::Invalid, "the journal tells nothing of a machine").caused_by(error))?;
    if is_defined(virsh, uuid, &details.files, cancel)? {
        tracing::info!(domain = uuid, "a machine was restored before the restore was interrupted; it stays");
        return Ok(true);
    }
    for file in &details.files {
        match std::fs::remove_file(file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::new(Kind::Failed, format!("remove {}", file.display())).caused_by(error));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_something_else_are_refused() {
        for name in ["web", "web-2.restored", "0a"] {
            assert!(check_name("machine", name).is_ok(), "{name}");
        }
        for name in ["", "-web", "--all", "a/b", "..", "7", "a b", "a\nb", "ä", &"x".repeat(101)] {
            assert_eq!(check_name("machine", name).unwrap_err().kind, Kind::Invalid, "{name}");
        }
    }

    #[test]
    fn a_folder_that_became_a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (granted, elsewhere) = (dir.join("granted"), dir.join("elsewhere"));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &granted).unwrap();
        assert!(write_new(&granted.join("new-nvram.fd"), b"x").is_err());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        write_new(&elsewhere.join("new-nvram.fd"), b"x").unwrap();
        assert!(write_new(&elsewhere.join("new-nvram.fd"), b"y").is_err(), "nothing is replaced");
        assert!(give(&granted.join("new-nvram.fd")).is_err());
        give(&elsewhere.join("new-nvram.fd")).unwrap();
        assert_eq!(std::fs::read(elsewhere.join("new-nvram.fd")).unwrap(), b"x");
    }
}
