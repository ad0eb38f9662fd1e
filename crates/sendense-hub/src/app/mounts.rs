//! Browsing restore points: open, look, fetch, close.

use super::backups::disk_asked;
use super::{App, Caller};
use crate::fault::{OrProblem, Result, invalid};
use crate::maintenance::Use;
use crate::mounts::archive::{self, Bounds};
use crate::mounts::outlet::{self, Pieces};
use crate::mounts::{Mount, Point, fault, words};
use sendense_api as dto;
use sendense_api::{ArchiveFormat, CreateMount, GuestFile, ListQuery, Page, Role};
use sendense_guestfs::meta::{FileType, Meta};
use sendense_guestfs::session::WalkOptions;
use sendense_guestfs::{Error, GuestPath, Key, VolumeId};
use sendense_types::MountId;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a search may take; a call is answered within two minutes.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(60);
/// How many entries a search looks at.
const SEARCH_ENTRIES_MAX: u64 = 5_000_000;
/// How many folders that could not be read a search names.
const UNREADABLE_MAX: usize = 100;

/// A file that can be fetched.
pub(crate) struct File {
    mount: Arc<Mount>,
    volume: VolumeId,
    /// Without links.
    path: GuestPath,
    /// The name that was asked for.
    pub name: Vec<u8>,
    pub size_bytes: u64,
    pub etag: String,
    pub modified: Option<i64>,
}

/// What a search found.
pub(crate) struct Search {
    pub files: Vec<GuestFile>,
    pub total: u64,
    pub truncated: bool,
    pub unreadable: Vec<String>,
}

impl App {
    /// Opens a restore point for browsing.
    pub async fn create_mount(&self, caller: &Caller, asked: CreateMount) -> Result<dto::Mount> {
        caller.require(Role::Operator)?;
        let row = self.point(&asked.backup_id).await?;
        let disk_id = disk_asked(&row, asked.disk_id)?;
        let volume = asked.volume.as_deref().map(VolumeId::parse).transpose();
        let volume = volume.map_err(|error| fault::of_guestfs(&error))?;
        let repository = self.core.repositories.by_id(&self.core, &row.repository_id, Use::Read).await?;
        let id = MountId::generate();
        let point =
            Point { backup_id: row.backup_id, vm_context_id: row.vm_context_id, vm_name: row.vm_name.into(), disk_id };
        let (who, of) = (id.to_string(), point.clone());
        let detach = move || {
            repository.detach_disk(&of.vm_context_id, &of.backup_id, of.disk_id, &format!("mount {who}")).or_problem()
        };
        let mount = self.core.mounts.open(id, point, volume, detach).await?;
        tracing::info!(mount_id = %mount.id, backup_id = %mount.point.backup_id, disk_id = disk_id.0, by = %caller.identity,
            confinement = mount.confinement().as_deref().unwrap_or("none"), "restore point opened for browsing");
        Ok(self.mount_out(&mount))
    }

    /// Closes an open point.
    pub async fn delete_mount(&self, caller: &Caller, id: &MountId) -> Result<()> {
        caller.require(Role::Operator)?;
        self.core.mounts.close(id).await?;
        tracing::info!(mount_id = %id, by = %caller.identity, "restore point closed");
        Ok(())
    }

    /// The open points.
    pub async fn list_mounts(&self, page: ListQuery) -> Result<Page<dto::Mount>> {
        let all = self.core.mounts.all();
        let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
        let items = all.iter().skip(skip).take(page.limit.get() as usize).map(|mount| self.mount_out(mount));
        Ok(Page { items: items.collect(), total: all.len() as u64 })
    }

    /// How many points are open and may be.
    pub fn mount_resources(&self) -> dto::MountResources {
        self.core.mounts.resources()
    }

    /// What closes idle points.
    pub fn cleanup_status(&self) -> dto::CleanupStatus {
        self.core.mounts.cleanup_status(!self.core.stop.is_cancelled())
    }

    /// What is on the disk.
    pub async fn list_volumes(&self, id: &MountId) -> Result<Vec<dto::Volume>> {
        let mount = self.core.mounts.get(id)?;
        // Asked anew, so that a process that has died is noticed here.
        let volumes = mount.ask(|reader| reader.volumes()).await?;
        Ok(volumes_out(&mount, volumes))
    }

    /// Opens an encrypted volume.
    pub async fn unlock_volume(
        &self,
        caller: &Caller,
        id: &MountId,
        volume: &str,
        key: &dto::Secret,
    ) -> Result<Vec<dto::Volume>> {
        caller.require(Role::Operator)?;
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(Some(volume))?;
        let key = Key::new(key.expose().as_bytes().to_vec()).map_err(|error| fault::of_guestfs(&error))?;
        tracing::info!(mount_id = %id, volume = %volume, by = %caller.identity, "a volume is unlocked");
        let volumes = mount.unlock(volume, key).await?;
        Ok(volumes_out(&mount, volumes))
    }

    /// A page of a folder, by name; links on the way to it are followed inside the volume.
    pub async fn list_files(
        &self,
        id: &MountId,
        path: GuestPath,
        volume: Option<&str>,
        offset: u64,
        limit: usize,
    ) -> Result<Page<GuestFile>> {
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(volume)?;
        let (of, at) = (volume.clone(), path.clone());
        let resolved = mount.ask(move |reader| reader.resolve(&of, &at)).await?;
        let folder = mount.folder(volume, resolved, offset, limit).await?;
        let entries = folder.page(offset, limit).iter();
        // Under the path that was asked for: a person who followed a link stays where he thinks he is.
        let items = entries.filter_map(|entry| {
            let path = path.join(&entry.name).ok()?;
            Some(words::file(&path, &entry.meta, entry.target.as_deref()))
        });
        Ok(Page { items: items.collect(), total: folder.total })
    }

    /// One entry; a link is described, not followed.
    pub async fn file_info(&self, id: &MountId, path: GuestPath, volume: Option<&str>) -> Result<dto::GuestFileInfo> {
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(volume)?;
        let (of, at) = (volume.clone(), path.clone());
        let (meta, target, resolved) = mount
            .ask(move |reader| {
                let meta = reader.stat(&of, &at)?;
                if meta.file_type != FileType::Symlink {
                    return Ok((meta, None, None));
                }
                let target = reader.readlink(&of, &at)?;
                let resolved = match reader.resolve(&of, &at) {
                    Ok(resolved) => Some(resolved),
                    Err(error @ (Error::WorkerDied(_) | Error::Io(_))) => return Err(error),
                    Err(_) => None,
                };
                Ok((meta, Some(target), resolved))
            })
            .await?;
        Ok(dto::GuestFileInfo {
            file: words::file(&path, &meta, target.as_deref()),
            volume: volume.to_string(),
            inode: meta.inode,
            links: meta.links,
            resolved_path_encoded: resolved.map(|path| dto::encode_path(&path.to_bytes())),
            etag: (meta.file_type == FileType::File).then(|| etag(&mount, &volume, &meta)),
        })
    }

    /// A file that can be fetched; links are followed inside the volume.
    pub(crate) async fn file(&self, id: &MountId, path: GuestPath, volume: Option<&str>) -> Result<File> {
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(volume)?;
        let (of, at) = (volume.clone(), path.clone());
        let (resolved, meta) = mount
            .ask(move |reader| {
                let resolved = reader.resolve(&of, &at)?;
                let meta = reader.stat(&of, &resolved)?;
                Ok((resolved, meta))
            })
            .await?;
        if meta.file_type != FileType::File {
            return Err(fault::of_guestfs(&Error::NotRegular));
        }
        let name = path.name().map(<[u8]>::to_vec).unwrap_or_default();
        let etag = etag(&mount, &volume, &meta);
        let modified = meta.modified.map(|time| time.seconds);
        Ok(File { mount, volume, path: resolved, name, size_bytes: meta.size_bytes, etag, modified })
    }

    /// The bytes of a part of a file.
    pub(crate) async fn read_file(&self, caller: &Caller, file: File, part: std::ops::Range<u64>) -> Result<Pieces> {
        let task = file.mount.begin(1)?;
        let (reader, volume, path) = (task.reader().clone(), file.volume.clone(), file.path.clone());
        let opened = {
            let part = part.clone();
            crate::core::blocking(move || reader.read(&volume, &path, part)).await?
        };
        let mut stream = opened.map_err(|error| fault::of_guestfs(&error))?;
        let what = file.path.to_bytes().escape_ascii().to_string();
        tracing::info!(mount_id = %file.mount.id, backup_id = %file.mount.point.backup_id, path = %what, from = part.start,
            until = part.end, by = %caller.identity, "a file is fetched");
        Ok(outlet::run(task, what, move |outlet| {
            while let Some(piece) = stream.next_piece().map_err(|error| std::io::Error::other(error.to_string()))? {
                outlet.send(piece)?;
            }
            Ok(())
        }))
    }

    /// A folder as an archive, and its name.
    pub(crate) async fn read_folder(
        &self,
        caller: &Caller,
        id: &MountId,
        path: GuestPath,
        volume: Option<&str>,
        format: ArchiveFormat,
    ) -> Result<(Vec<u8>, Pieces)> {
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(volume)?;
        let (of, at) = (volume.clone(), path.clone());
        // So that what is no folder is said before the answer begins.
        mount.ask(move |reader| reader.list(&of, &reader.resolve(&of, &at)?, None, 1)).await?;
        // The walk, the file that is read, and its data ranges.
        let task = mount.begin(3)?;
        let what = path.to_bytes().escape_ascii().to_string();
        tracing::info!(mount_id = %id, backup_id = %mount.point.backup_id, path = %what, format = format.as_str(),
            by = %caller.identity, "a folder is fetched");
        let mut name = path.name().unwrap_or(mount.point.vm_name.as_bytes()).to_vec();
        name.push(b'.');
        name.extend(format.as_str().bytes());
        let limits = &self.core.limits;
        let bounds = Bounds { entries: limits.archive_entries_max, bytes: limits.archive_bytes_max };
        let pieces = outlet::run(task, what, move |outlet| archive::pack(outlet, &volume, &path, format, bounds));
        Ok((name, pieces))
    }

    /// Names below a folder.
    pub(crate) async fn search_files(
        &self,
        id: &MountId,
        path: GuestPath,
        volume: Option<&str>,
        options: WalkOptions,
        offset: u64,
        limit: usize,
    ) -> Result<Search> {
        if options.name.as_ref().is_none_or(Vec::is_empty) {
            return Err(invalid("name is required"));
        }
        let mount = self.core.mounts.get(id)?;
        let volume = mount.volume(volume)?;
        let options = WalkOptions { entries_max: SEARCH_ENTRIES_MAX, ..options };
        mount.ask(move |reader| search(reader, &volume, &path, &options, offset, limit)).await
    }

    fn mount_out(&self, mount: &Mount) -> dto::Mount {
        let (status, error_message) = mount.status();
        let default = mount.default_volume();
        let volumes = volumes_out(mount, mount.volumes());
        let backend = match &default {
            Some(volume) => mount.backend(&volume.id),
            None => dto::Backend::Native,
        };
        dto::Mount {
            mount_id: mount.id.clone(),
            backup_id: mount.point.backup_id.clone(),
            vm_context_id: mount.point.vm_context_id.clone(),
            vm_name: mount.point.vm_name.clone(),
            disk_id: mount.point.disk_id,
            status,
            error_message,
            backend,
            confinement: mount.confinement(),
            mount_path: None,
            nbd_device: None,
            volume: default.as_ref().map(|volume| volume.id.to_string()),
            filesystem_type: default.map(|volume| volume.kind),
            volumes,
            active_streams: mount.streams(),
            created_at: mount.created_at,
            last_accessed_at: mount.last_used(),
            expires_at: self.core.mounts.expires_at(mount),
        }
    }
}

fn volumes_out(mount: &Mount, volumes: Vec<sendense_guestfs::Volume>) -> Vec<dto::Volume> {
    let out = |volume: sendense_guestfs::Volume| {
        let backend = mount.backend(&volume.id);
        words::volume(volume, backend)
    };
    volumes.into_iter().map(out).collect()
}

fn search(
    reader: &dyn crate::mounts::Reader,
    volume: &VolumeId,
    path: &GuestPath,
    options: &WalkOptions,
    offset: u64,
    limit: usize,
) -> sendense_guestfs::Result<Search> {
    let until = Instant::now() + SEARCH_TIME_MAX;
    let mut found = Search { files: Vec::new(), total: 0, truncated: false, unreadable: Vec::new() };
    let mut walk = reader.walk(volume, path, options)?;
    loop {
        let batch = match walk.next_batch() {
            Ok(Some(batch)) if Instant::now() < until => batch,
            Ok(None) => return Ok(found),
            Ok(Some(_)) | Err(Error::Limit(_)) => {
                found.truncated = true;
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        for one in batch {
            match one.outcome {
                Ok(entry) => {
                    if found.total >= offset && found.files.len() < limit {
                        found.files.push(words::file(&one.path, &entry.meta, entry.target.as_deref()));
                    }
                    found.total += 1;
                }
                Err(error) if found.unreadable.len() < UNREADABLE_MAX => {
                    found.unreadable.push(format!("{}: {error}", one.path.to_bytes().escape_ascii()));
                }
                Err(_) => {}
            }
        }
    }
}

/// The same for the same bytes, whichever mount they are read through: restore point, disk, volume, inode, time and size.
fn etag(mount: &Mount, volume: &VolumeId, meta: &Meta) -> String {
    let (seconds, nanoseconds) = meta.modified.map_or((0, 0), |time| (time.seconds, time.nanoseconds));
    let of = format!(
        "{} {} {volume} {} {seconds}.{nanoseconds} {}",
        mount.point.backup_id, mount.point.disk_id, meta.inode, meta.size_bytes
    );
    format!("\"{}\"", hex::encode(&Sha256::digest(of.as_bytes())[..16]))
}
