//! A domain whose disks are exports of the hub's NBD server: planned, started, looked at, ended.
//!
//! Invariant: a domain is ended only when it bears the UUID that we chose for it and still has a disk that is ours; one that
//! somebody has moved to other disks is theirs. Nobody but us can put anything into a socket's folder, though the folder above
//! belongs to QEMU's user: what is given away is reached through a handle of a folder that is known to be ours.

use super::document::Document;
use super::machine::{DEFINING, check_free, check_key, check_name, write_new};
use super::rebuild::{self, Medium, Variables, Wanted};
use super::virsh::{CHANGE, Virsh};
use super::{Settings, config, fit, scratch, uuid_of, xml};
use crate::error::{Error, Kind, Result};
use crate::instant::{InstantVm, Moving, PlannedInstant, Standing};
use crate::model::VmRef;
use crate::target::DiskFormat;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use sendense_block::Cancel;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// The socket's name in its folder.
const SOCKET: &str = "nbd";
/// The beginning of a folder's name.
const PREFIX: &str = "sr-";

/// The name is short, because a socket's path is, and says whose it is only as a digest; the caller's record knows.
pub(super) fn socket(settings: &Settings, id: &str) -> Result<PathBuf> {
    if !settings.local {
        return Err(Error::new(Kind::Unsupported, format!("{} is a daemon on another host", settings.virsh.uri)));
    }
    let digest = blake3::hash(format!("{} {id}", settings.deployment_id).as_bytes()).to_hex();
    let socket = settings.scratch_dir.join(format!("{PREFIX}{}", &digest[..16])).join(SOCKET);
    scratch::check_socket(&socket)?;
    Ok(socket)
}

fn folder_of(socket: &Path) -> Result<&Path> {
    let folder = socket.parent().filter(|folder| {
        let name = folder.file_name().and_then(|name| name.to_str());
        folder.is_absolute() && name.is_some_and(|name| name.starts_with(PREFIX)) && socket.ends_with(SOCKET)
    });
    folder.ok_or_else(|| Error::new(Kind::Invalid, format!("{} is no socket of a recovery", socket.display())))
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied { Kind::Denied } else { Kind::Failed };
    Error::new(kind, format!("{what} {}", path.display())).caused_by(error)
}

/// A handle of the folder, which is ours and no link.
fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(folder, flags, Mode::empty())?;
    if rustix::fs::fstat(&handle)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("somebody put another folder in its place"));
    }
    Ok(handle)
}

/// Its owner puts sockets there; the group of the folder above, which is QEMU's, may reach them.
pub(super) fn make_folder(socket: &Path) -> Result<()> {
    let folder = folder_of(socket)?;
    let above = folder.parent().unwrap_or(Path::new("/"));
    if !above.exists() {
        scratch::make_like_above(above).map_err(|error| failed("make the folder above", above, error))?;
    }
    let made = || {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let (handle, above) = (open_folder(folder)?, fs::metadata(above)?);
        // For others the set-group-id bit of the folder above does what is needed.
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&handle, None, Some(Gid::from_raw(above.gid())))?;
        }
        // QEMU's user may be the owner of the folder above without being of its group.
        rustix::fs::fchmod(&handle, Mode::from_raw_mode(0o711))?;
        Ok(())
    };
    made().map_err(|error| failed("make the folder", folder, error))
}

/// A system daemon's QEMU is another user: the one that the folder above belongs to.
pub(super) fn admit(socket: &Path) -> Result<()> {
    let folder = folder_of(socket)?;
    let above = folder.parent().unwrap_or(Path::new("/"));
    let admitted = || {
        let (handle, above) = (open_folder(folder)?, fs::metadata(above)?);
        if rustix::process::geteuid().is_root() {
            let (owner, group) = (Uid::from_raw(above.uid()), Gid::from_raw(above.gid()));
            rustix::fs::chownat(&handle, SOCKET, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        // Nobody but us can put a link in its place.
        rustix::fs::chmodat(&handle, SOCKET, Mode::from_raw_mode(0o660), AtFlags::empty())?;
        Ok(())
    };
    admitted().map_err(|error: io::Error| failed("let the hypervisor connect to", socket, error))
}

pub(super) fn remove_folder(socket: &Path) -> Result<()> {
    let folder = folder_of(socket)?;
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // A server that was killed left its socket; nothing else is ever there.
    let removed = gone(fs::remove_file(socket)).and_then(|()| gone(fs::remove_dir(folder)));
    removed.map_err(|error| failed("remove", folder, error))
}

pub(super) fn plan(settings: &Settings, new: &InstantVm<'_>, cancel: &Cancel) -> Result<PlannedInstant> {
    check_name("machine", new.name)?;
    let recorded = new.documents.iter().find(|document| document.kind == "libvirt-domain-xml");
    let Some(recorded) = recorded.and_then(|document| document.content.as_deref()) else {
        return Err(Error::new(Kind::Unsupported, "the point holds no configuration of a libvirt domain")
            .hint("recover its disks without --libvirt and define a machine around them"));
    };
    let vm = VmRef { instance_uuid: uuid::Uuid::new_v4().to_string(), name: new.name.to_owned() };
    check_free(&settings.virsh, &vm, cancel)?;
    new.disks.iter().try_for_each(|(key, _)| check_key(key))?;
    let disks = new.disks.iter().map(|(key, name)| (key.as_str(), Medium::Export { socket: new.socket, name }));
    let mut notes = Vec::new();
    let nvram = match config::variables(new.documents) {
        Some(Ok(bytes)) => Some(bytes),
        Some(Err(note)) => {
            notes.push(note);
            None
        }
        None => None,
    };
    let wanted = Wanted {
        name: new.name,
        uuid: &vm.instance_uuid,
        disks: disks.collect(),
        // Where libvirt keeps them they stay when the disks move, and go when the machine does.
        variables: if nvram.is_some() { Variables::Usual } else { Variables::New },
        networks: new.networks,
        keep_macs: false,
    };
    let rebuilt = rebuild::rebuild(recorded, &wanted)?;
    notes.extend(rebuilt.notes);
    let definition = xml::parse(&rebuilt.document, "domain")?;
    fit::check(&settings.virsh, &definition, cancel)?;
    let nvram = nvram.filter(|_| rebuilt.has_variables);
    Ok(PlannedInstant { vm, definition: rebuilt.document, nvram, notes })
}

pub(super) fn start(virsh: &Virsh, planned: &PlannedInstant, cancel: &Cancel) -> Result<Vec<String>> {
    let (document, uuid) = (Document::new(&planned.definition)?, uuid_of(&planned.vm)?);
    {
        let _defining = DEFINING.lock().unwrap_or_else(PoisonError::into_inner);
        check_free(virsh, &planned.vm, cancel)?;
        virsh.call(&["define", &document.path()], CHANGE, cancel)?;
    }
    let mut notes = Vec::new();
    if let Some(bytes) = &planned.nvram
        && let Err(error) = put_variables(virsh, uuid, bytes, cancel)
    {
        // A machine that is needed now is worth more than its boot entries.
        let error = sendense_block::error::chain(&error);
        notes.push(format!("the firmware's variables are not restored, it looks for a boot loader itself: {error}"));
    }
    virsh.call(&["start", uuid], CHANGE, cancel)?;
    Ok(notes)
}

/// Puts the variables where libvirt will look for them. What is there already is another machine's, and stays.
fn put_variables(virsh: &Virsh, uuid: &str, bytes: &[u8], cancel: &Cancel) -> Result<()> {
    let document = virsh.ask(&["dumpxml", "--inactive", uuid], cancel)?;
    let root = xml::parse(&document, "domain")?;
    let Some(path) = root.child("os").and_then(|os| os.child_text("nvram")).map(Path::new) else {
        let why = "libvirt chooses the firmware when the machine starts, and says only then where they are";
        return Err(Error::new(Kind::Unsupported, why));
    };
    // The daemon's own path may have links of the administrator's on the way.
    let resolved = path.parent().map(Path::canonicalize).transpose();
    let resolved = resolved.map_err(|error| failed("find the folder of", path, error))?;
    let (Some(folder), Some(name)) = (resolved, path.file_name()) else {
        return Err(Error::new(Kind::Failed, format!("{} is no file", path.display())));
    };
    write_new(&folder.join(name), bytes).map_err(|error| failed("write", path, error))
}

pub(super) fn look(virsh: &Virsh, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Standing> {
    let uuid = uuid_of(vm)?;
    let asked = |args: &[&str]| match virsh.ask(args, cancel) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let Some(document) = asked(&["dumpxml", uuid])? else { return Ok(Standing::Gone) };
    if served_disks(&document, socket)?.is_empty() {
        return Ok(Standing::Gone);
    }
    let Some(state) = asked(&["domstate", "--reason", uuid])? else { return Ok(Standing::Gone) };
    Ok(match state.trim() {
        "paused (I/O error)" => Standing::Stopped,
        state if state.starts_with("shut off") || state.starts_with("crashed") => Standing::Off,
        _ => Standing::Running,
    })
}

/// The targets of the disks that are served at this socket.
fn served_disks(document: &str, socket: &Path) -> Result<Vec<String>> {
    let root = xml::parse(document, "domain")?;
    let disks = root.child("devices").map(|devices| devices.children("disk")).into_iter().flatten();
    let is_ours = |disk: &&xml::Element| {
        let host = disk.child("source").and_then(|source| source.child("host"));
        host.and_then(|host| host.attribute("socket")).is_some_and(|path| Path::new(path) == socket)
    };
    let target = |disk: &xml::Element| Some(disk.child("target")?.attribute("dev")?.to_owned());
    Ok(disks.filter(is_ours).filter_map(target).collect())
}

pub(super) fn resume(virsh: &Virsh, vm: &VmRef, cancel: &Cancel) -> Result<()> {
    virsh.call(&["resume", uuid_of(vm)?], CHANGE, cancel).map(drop)
}

pub(super) fn end(virsh: &Virsh, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<()> {
    let uuid = uuid_of(vm)?;
    match look(virsh, vm, socket, cancel)? {
        Standing::Gone => return Ok(()),
        Standing::Off => {}
        Standing::Running | Standing::Stopped => match virsh.call(&["destroy", uuid], CHANGE, cancel) {
            // It ended by itself meanwhile.
            Err(error) if !matches!(error.kind, Kind::NotFound | Kind::Disturbed) => return Err(error),
            _ => {}
        },
    }
    let undefine = ["undefine", uuid, "--nvram", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata"];
    match virsh.call(&undefine, CHANGE, cancel) {
        Err(error) if error.kind != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn served(virsh: &Virsh, vm: &VmRef, socket: &Path, cancel: &Cancel) -> Result<Option<Vec<String>>> {
    let uuid = uuid_of(vm)?;
    let mut found = Vec::new();
    // What it would start with next time counts as well.
    for args in [&["dumpxml", uuid][..], &["dumpxml", "--inactive", uuid]] {
        match virsh.ask(args, cancel) {
            Ok(document) => found.extend(served_disks(&document, socket)?),
            Err(error) if error.kind == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    found.sort();
    found.dedup();
    Ok(Some(found))
}

pub(super) fn begin_move(
    virsh: &Virsh,
    vm: &VmRef,
    key: &str,
    file: &Path,
    format: DiskFormat,
    cancel: &Cancel,
) -> Result<()> {
    check_key(key)?;
    let Some(path) = file.to_str().filter(|path| path.starts_with('/')) else {
        return Err(Error::new(Kind::Invalid, format!("{} is no path that libvirt takes", file.display())));
    };
    if file.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::Busy, format!("{path} exists")));
    }
    // A copy that ends with the machine's run, which the caller outlives; libvirt demands that this is said.
    let args = ["blockcopy", uuid_of(vm)?, key, "--dest", path, "--format", format.as_str(), "--transient-job"];
    virsh.call(&args, CHANGE, cancel).map(drop)
}

pub(super) fn moving(virsh: &Virsh, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<Option<Moving>> {
    check_key(key)?;
    let text = virsh.ask(&["blockjob", uuid_of(vm)?, key, "--info", "--raw"], cancel)?;
    let number = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)?.parse().ok());
    Ok(number("cur=").zip(number("end=")).map(|(done, total)| Moving { done, total }))
}

pub(super) fn finish_move(virsh: &Virsh, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<bool> {
    check_key(key)?;
    match virsh.call(&["blockjob", uuid_of(vm)?, key, "--pivot"], CHANGE, cancel) {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("not ready for pivot") => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn stop_move(virsh: &Virsh, vm: &VmRef, key: &str, cancel: &Cancel) -> Result<()> {
    check_key(key)?;
    match moving(virsh, vm, key, cancel) {
        Ok(Some(_)) => virsh.call(&["blockjob", uuid_of(vm)?, key, "--abort"], CHANGE, cancel).map(drop),
        Ok(None) => Ok(()),
        // A machine that is off copies nothing.
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Disturbed) => Ok(()),
        Err(error) => Err(error),
    }
}
