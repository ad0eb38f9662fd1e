//! A domain made of a restore point: planned, defined, or taken away again.
//!
//! Invariant: the files of a new domain bear a random part in their names, so that what the journal tells to remove is
//! nobody else's. Defining the domain is the last step, so one that is defined is whole, and is never taken away: by the
//! time that an interrupted restore is cleaned up, somebody may be using it.

use super::document::Document;
use super::domain::{Domain, Place};
use super::fit;
use super::rebuild::{self, Medium, Variables, Wanted};
use super::virsh::CHANGE;
use super::{Settings, config, virsh::Virsh, xml};
use crate::error::{Error, Kind, Result};
use crate::model::VmRef;
use crate::target::{NewVm, Planned};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use sendense_block::Cancel;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer names make file names that some file systems refuse.
const NAME_BYTES_MAX: usize = 100;

/// How long a definition whose answer did not come is looked for: as long as libvirt was waited for, once more.
const SETTLE_TIMEOUT: Duration = CHANGE;
/// How often an answering daemon is asked for it: one that was stopped and goes on answers us and works at what it had before
/// at the same time.
const SETTLE_LOOKS: u32 = 3;
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

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
    let recorded = new.documents.iter().find(|document| document.kind == "libvirt-domain-xml");
    let Some(recorded) = recorded.and_then(|document| document.content.as_deref()) else {
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
    let nvram = match config::variables(new.documents) {
        Some(Ok(bytes)) => Some((file("nvram", "fd"), bytes)),
        Some(Err(note)) => {
            notes.push(note);
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
        variables: nvram.as_ref().map_or(Variables::New, |(path, _)| Variables::File(path)),
        networks: new.networks,
        keep_macs: new.keep_identity,
    };
    let rebuilt = rebuild::rebuild(recorded, &wanted)?;
    notes.extend(rebuilt.notes);
    let definition = xml::parse(&rebuilt.document, "domain")?;
    fit::check(&settings.virsh, &definition, cancel)?;
    let nvram = nvram.filter(|_| rebuilt.has_variables);
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
    let (virsh, document) = (&settings.virsh, Document::new(&planned.definition)?);
    let _defining = DEFINING.lock().unwrap_or_else(PoisonError::into_inner);
    check_free(virsh, &planned.vm, cancel)?;
    // From here on it cannot be cancelled: the daemon may already be at it, and must not have it without its disks.
    match virsh.call(&["define", &document.path()], CHANGE, &Cancel::new()) {
        Ok(_) => Ok(()),
        Err(error) => settle(virsh, planned, error),
    }
}

/// A definition that failed, or whose answer did not come: the daemon may have made it all the same, or be about to.
fn settle(virsh: &Virsh, planned: &Planned, error: Error) -> Result<()> {
    let began = Instant::now();
    let mut looks = 0;
    loop {
        match is_defined(virsh, &planned.vm.instance_uuid, &planned.disks, &Cancel::new()) {
            Ok(true) => {
                let error = sendense_block::error::chain(&error);
                tracing::warn!(machine = planned.vm.name, %error, "libvirt defined a machine, and said that it failed");
                return Ok(());
            }
            // An answer that it is not there, after a clear no, is certain; after silence it is a moment's view.
            Ok(false) if error.kind != Kind::Unavailable => return Err(error),
            Ok(false) => looks += 1,
            Err(_) => {}
        }
        if looks == SETTLE_LOOKS || began.elapsed() > SETTLE_TIMEOUT {
            return Err(error);
        }
        std::thread::sleep(SETTLE_PAUSE);
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

/// A new file and its name, on stable storage. It is its folder's owner's: a session's QEMU must open it. Given away is what
/// was written, whatever that owner puts in its place.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, name) = place(path)?;
    let owner = folder.metadata()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file.write_all(bytes).and_then(|()| match fchown(&file, Some(owner.uid()), Some(owner.gid())) {
        // A system's daemon takes it itself when it starts a domain, and elsewhere the owner is the same.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => file.sync_all(),
    });
    if written.is_err() {
        rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
    }
    written.and_then(|()| folder.sync_all())
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

/// Takes away the files of a domain that was not finished. True when there is nothing left to look at: a daemon that was asked
/// to define it may do so after the first look, so what was removed is looked for once more in the next pass.
pub(super) fn reap(virsh: &Virsh, uuid: &str, details: &serde_json::Value, cancel: &Cancel) -> Result<bool> {
    let details = Details::deserialize(details)
        .map_err(|error| Error::new(Kind::Invalid, "the journal tells nothing of a machine").caused_by(error))?;
    let is_there = |file: &PathBuf| file.symlink_metadata().is_ok();
    if is_defined(virsh, uuid, &details.files, cancel)? {
        if details.files.iter().any(is_there) {
            tracing::warn!(domain = uuid, "a machine was restored before its restore was cut off; it stays");
            return Ok(true);
        }
        // It came after its files had gone: nobody can have used it, and it would only mislead.
        tracing::warn!(domain = uuid, "a machine was defined after its restore was given up; it is undefined");
        return match virsh.call(&["undefine", uuid, "--nvram"], CHANGE, cancel) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(true),
        };
    }
    let mut removed = false;
    for file in &details.files {
        match std::fs::remove_file(file) {
            Ok(()) => removed = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::new(Kind::Failed, format!("remove {}", file.display())).caused_by(error));
            }
        }
    }
    Ok(!removed)
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
        assert_eq!(std::fs::read(elsewhere.join("new-nvram.fd")).unwrap(), b"x");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&elsewhere, Some(1234), Some(1235)).unwrap();
            write_new(&elsewhere.join("given.fd"), b"x").unwrap();
            let given = std::fs::metadata(elsewhere.join("given.fd")).unwrap();
            assert_eq!((given.uid(), given.gid()), (1234, 1235));
        }
    }

    /// A daemon behind a `virsh` of paper: it knows the domains whose documents lie in its folder. What it does when it is
    /// asked to define one is told by the word in `mood`.
    struct Paper {
        dir: tempfile::TempDir,
        settings: Settings,
        planned: Planned,
    }

    const VIRSH: &str = r#"#!/bin/sh
cd "$(dirname "$0")" && shift 3
case $1 in
list) ;;
define)
    case $(cat mood) in
    refuses) echo "error: internal error: no" >&2; exit 1 ;;
    lies) cat "$2" >domain.xml; echo "error: End of file while reading data: Input/output error" >&2; exit 1 ;;
    silent) cat "$2" >late.xml; echo "error: client socket is closed" >&2; exit 1 ;;
    *) cat "$2" >domain.xml ;;
    esac ;;
dumpxml)
    # What was asked for late comes with the second look after it.
    if [ -f domain.xml ]; then cat domain.xml; exit; fi
    echo "error: failed to get domain 'x'" >&2
    [ "$(cat mood)" = silent ] && [ -f late.xml ] && { [ -f asked ] && mv late.xml domain.xml; touch asked; }
    exit 1 ;;
undefine) rm domain.xml ;;
esac
"#;

    impl Paper {
        fn new(mood: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().canonicalize().unwrap();
            std::fs::write(path.join("mood"), mood).unwrap();
            crate::child::write_script(&path.join("virsh"), VIRSH);
            let mut settings = Settings::for_tests();
            settings.virsh.program = path.join("virsh").into();
            let disk = path.join("new-vda.qcow2");
            std::fs::write(&disk, "disk").unwrap();
            let vm = VmRef { name: "new".into(), instance_uuid: "11111111-2222-4333-8444-555555555555".into() };
            let definition = format!(
                "<domain type='kvm'><name>new</name><uuid>{}</uuid><memory>1024</memory><vcpu>1</vcpu><os><type>hvm</type></os>
                 <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
                 <target dev='vda'/></disk></devices></domain>",
                vm.instance_uuid,
                disk.display()
            );
            let planned = Planned { vm, disks: vec![disk], nvram: None, definition, notes: Vec::new() };
            Self { dir, settings, planned }
        }

        fn finish(&self) -> Result<()> {
            finish(&self.settings, &self.planned, &Cancel::new())
        }

        fn reap(&self) -> bool {
            let artefact = self.planned.artefact("src-1".parse().unwrap(), "task-1".parse().unwrap(), []);
            reap(&self.settings.virsh, &artefact.vm_key, &artefact.details, &Cancel::new()).unwrap()
        }

        fn is_defined(&self) -> bool {
            self.dir.path().join("domain.xml").exists()
        }

        fn has_disk(&self) -> bool {
            self.planned.disks[0].exists()
        }
    }

    #[test]
    fn a_machine_that_libvirt_refuses_leaves_nothing() {
        let paper = Paper::new("refuses");
        assert!(paper.finish().unwrap_err().to_string().contains("internal error: no"));
        assert!(!paper.reap(), "it is looked at once more");
        assert!(!paper.has_disk() && paper.reap());
    }

    #[test]
    fn a_machine_that_is_there_although_libvirt_said_an_error_is_restored() {
        let paper = Paper::new("lies");
        paper.finish().unwrap();
        assert!(paper.is_defined() && paper.has_disk());
    }

    #[test]
    fn a_machine_that_libvirt_makes_after_it_was_silent_is_found_while_somebody_waits() {
        let paper = Paper::new("silent");
        paper.finish().unwrap();
        assert!(paper.is_defined() && paper.has_disk());
        assert!(paper.reap() && paper.is_defined() && paper.has_disk(), "it is somebody's");
    }

    #[test]
    fn a_machine_that_libvirt_makes_after_its_files_have_gone_goes_too() {
        let paper = Paper::new("silent");
        // Nobody waited: the hub was killed when it had asked for the machine.
        assert!(!paper.reap() && !paper.has_disk() && !paper.is_defined());
        std::fs::write(paper.dir.path().join("domain.xml"), &paper.planned.definition).unwrap();
        assert!(paper.reap());
        assert!(!paper.is_defined(), "a machine without disks stays");
    }
}
