//! A domain that is off: its images are read by our own reader, which takes none of QEMU's locks, so the domain can start
//! at any time. If it does, or an image changes, what was read is not a point.
//!
//! What lives here: following an image's chain, the persistent bitmaps of all its layers, noticing a disturbance. What does
//! not: the QCOW2 format.
//!
//! libvirt makes no checkpoint on a domain that is off, so the point keeps its parent's token: the bitmaps go on recording
//! from there, and the next changes are those since the parent, some of which the point has already. That holds only while the
//! disk has the layers that it had at the checkpoint (see [`layers`]); else the point has no token.

use super::checkpoint::Covered;
use super::config::Places;
use super::discover::Found;
use super::domain::{Disk as DomainDisk, Domain, Layer, Place, cleaned};
use super::{Settings, checkpoint, layers};
use crate::error::{Error, Kind, Result};
use crate::model::{DiskRequest, FreezeRequest, FrozenDisk, FrozenFacts, ReadHints};
use crate::paths::Roots;
use crate::{Changes, Frozen};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use sendense_block::backend;
use sendense_block::{ByteLen, Cancel, ChangeMap, Disk, Extent, ExtentSet, ReadAt};
use sendense_qcow2::bitmap::State;
use sendense_qcow2::{BackingRef, Bitmap, Chain, Gate, Image, Opened};
use sendense_types::Consistency;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Opens the files of chains and remembers what they were.
struct Files<'a> {
    settings: &'a Settings,
    /// The layers that the domain's XML names, which counts for more than what headers say.
    declared: &'a [Layer],
    opened: Mutex<Vec<(PathBuf, Stamp)>>,
}

impl<'a> Files<'a> {
    fn new(settings: &'a Settings, disk: &'a DomainDisk) -> Self {
        let declared = &disk.layers[..disk.declared.min(disk.layers.len())];
        Self { settings, declared, opened: Mutex::default() }
    }

    /// The highest file. The domain names it, and whoever defines domains may read any file through one.
    fn top(&self) -> Result<Opened> {
        let layer = self.declared.first().expect("a disk is read with at least one layer");
        let path = self.settings.path_of(&layer.place)?;
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&path).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Failed,
            };
            Error::new(kind, format!("open {}", path.display())).caused_by(error)
        })?;
        self.take(path, file, layer.format.as_deref())
    }

    fn take(&self, path: PathBuf, file: File, format: Option<&str>) -> Result<Opened> {
        let meta = file
            .metadata()
            .map_err(|error| Error::new(Kind::Failed, format!("look at {}", path.display())).caused_by(error))?;
        if !meta.is_file() && !meta.file_type().is_block_device() {
            let message = format!("{} is neither a file nor a block device", path.display());
            return Err(Error::new(Kind::Unsafe, message));
        }
        let id = path.to_string_lossy().into_owned();
        let file = Arc::new(backend::File::from_std(file, id.clone(), false)?);
        self.opened.lock().push((path, Stamp::of(&meta)));
        match format {
            Some("qcow2") => Ok(Opened::Qcow2 { id, file }),
            Some("raw") => Ok(Opened::Raw { id, disk: file }),
            Some(other) => Err(Error::new(Kind::Unsupported, format!("{id} is a {other} image"))
                .hint("start the domain: a running one can be backed up in any format")),
            None => Err(Error::new(Kind::Unsupported, format!("the format of {id} is not declared anywhere"))),
        }
    }

    /// A file that an image names. An image may come from a stranger, so its word leads only into folders in which images
    /// are expected: those of the settings and that of the image itself.
    fn backing(&self, named_by: &str, backing: &BackingRef) -> Result<Opened> {
        let path = backing_path(named_by, &backing.name)?;
        let declared = self.declared.iter().find(|layer| layer.place == Place::File(path.clone()));
        let format = declared.and_then(|layer| layer.format.clone()).or_else(|| backing.format.clone());
        let mut folders = self.settings.image_dirs.clone();
        folders.extend(Path::new(named_by).parent().map(Path::to_owned));
        folders.extend(declared.and_then(|_| path.parent()).map(Path::to_owned));
        let file = Roots::new(folders).open_read(&path).map_err(|error| {
            let refused = error.kind == Kind::Unsafe;
            let error =
                Error::new(error.kind, format!("open {}, which {named_by} names as its backing file", path.display()))
                    .caused_by(error);
            if refused { error.hint("if it is meant, name its folder in the source's image_dirs") } else { error }
        })?;
        self.take(path, file, format.as_deref())
    }
}

impl Gate for Files<'_> {
    fn open_backing(&self, named_by: &str, backing: &BackingRef) -> sendense_block::Result<Opened> {
        self.backing(named_by, backing).map_err(|error| {
            let kind = match error.kind {
                Kind::NotFound => sendense_block::Kind::NotFound,
                Kind::Denied | Kind::Unsafe => sendense_block::Kind::Denied,
                _ => sendense_block::Kind::Unsupported,
            };
            sendense_block::Error::new(kind, error.to_string()).caused_by(error)
        })
    }
}

/// Where a backing file lies, seen from the image that names it.
fn backing_path(named_by: &str, name: &str) -> Result<PathBuf> {
    // QEMU takes `json:…` and `protocol:…` for other things than paths; a path with a colon is written `./a:b`.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        let message = format!("{named_by} names {name:?} as its backing file, which is no path");
        return Err(Error::new(Kind::Unsupported, message));
    }
    let name = name.strip_prefix("file:").unwrap_or(name);
    Ok(cleaned(&Path::new(named_by).parent().unwrap_or(Path::new("/")).join(name)))
}

/// Why a disk that could be backed up while its domain runs cannot be now, or none.
pub(super) fn unsupported(disk: &DomainDisk) -> Option<String> {
    match (&disk.top().place, disk.format()) {
        (Place::Network { protocol, .. }, _) => {
            Some(format!("a {protocol} disk can only be read while the domain runs"))
        }
        (_, "raw" | "qcow2") => None,
        (_, format) => Some(format!("a {format} disk can only be read while the domain runs")),
    }
}

/// Adds the layers that only the images' headers know. What cannot be read ends the search: then the disk is bound to what
/// is known, and reading it says what is wrong.
pub(super) fn complete_layers(settings: &Settings, domain: &mut Domain) {
    for disk in domain.disks.iter_mut().filter(|disk| !disk.layers_complete && disk.format() == "qcow2") {
        let found = layers_below(settings, disk);
        // A chain that cannot be followed that far says less than the XML.
        if found.len() + 1 >= disk.layers.len() {
            disk.layers.truncate(1);
            disk.layers.extend(found);
        }
    }
}

fn layers_below(settings: &Settings, disk: &DomainDisk) -> Vec<Layer> {
    let files = Files::new(settings, disk);
    let (mut layers, mut next) = (Vec::new(), files.top());
    while let Ok(Opened::Qcow2 { id, file }) = next {
        let Ok(image) = Image::open(file) else { break };
        let Some(backing) = image.backing() else { break };
        let Ok(path) = backing_path(&id, &backing.name) else { break };
        // The same bound as the reader's: a loop ends here and is refused there.
        if layers.len() >= sendense_qcow2::chain::DEPTH_MAX {
            break;
        }
        layers.push(Layer { place: Place::File(path), format: backing.format.clone() });
        next = files.backing(&id, backing);
    }
    layers
}

/// A disk's size by its image's own word, where libvirt cannot tell it (volumes of a domain that is off).
pub(super) fn capacity(settings: &Settings, disk: &DomainDisk) -> Option<ByteLen> {
    match Files::new(settings, disk).top().ok()? {
        Opened::Qcow2 { file, .. } => Some(Image::open(file).ok()?.size()),
        Opened::Raw { disk, .. } => Some(disk.size()),
    }
}

/// One disk of a domain that is off.
struct Held {
    frozen: FrozenDisk,
    chain: Arc<Chain>,
    changes: Result<Arc<LayeredBitmap>, String>,
}

/// A domain that is off, watched.
pub(super) struct Off {
    settings: Settings,
    domain: Domain,
    facts: FrozenFacts,
    disks: Vec<Held>,
    files: Vec<(PathBuf, Stamp)>,
}

/// Opens the images of a domain that is off.
pub(super) fn freeze(
    settings: &Settings,
    found: Found,
    request: &FreezeRequest,
    cancel: &Cancel,
) -> Result<Box<dyn Frozen>> {
    let Found { domain, document, .. } = found;
    let covered = checkpoint::covered_by_tokens(&settings.virsh, &domain.uuid, request, cancel)?;
    let (mut disks, mut files) = (Vec::new(), Vec::new());
    for asked in &request.disks {
        cancel.check()?;
        let (held, opened) = hold(settings, &domain, asked, request, &covered)?;
        disks.push(held);
        files.extend(opened);
    }
    let facts = FrozenFacts {
        disks: disks.iter().map(|held| held.frozen.clone()).collect(),
        // Nobody writes: the disks are as the guest left them. Whether it shut down or was cut off is not known.
        consistency: Consistency::Crash,
        consistency_note: request.quiesce.then(|| "the domain is off".to_owned()),
        config: super::config::documents(document, &Places::new(settings, &domain)),
        hints: ReadHints { lanes: 2, request_bytes: 1 << 20 },
    };
    let off = Off { settings: settings.clone(), domain, facts, disks, files };
    // The domain may have started between the first look and the opening.
    off.check()?;
    Ok(Box::new(off))
}

fn hold(
    settings: &Settings,
    domain: &Domain,
    asked: &DiskRequest,
    request: &FreezeRequest,
    covered: &BTreeMap<String, Covered>,
) -> Result<(Held, Vec<(PathBuf, Stamp)>)> {
    let disk = domain.disk(&asked.key).expect("the caller looked every disk up");
    if let Some(reason) = unsupported(disk) {
        return Err(Error::new(Kind::Unsupported, format!("{}: {reason}", asked.key)));
    }
    let files = Files::new(settings, disk);
    let chain = Arc::new(Chain::open(files.top()?, &files)?);
    let capacity = chain.size();
    let recorded = match disk.untracked() {
        Some(reason) => Err(reason),
        None => checkpoint::believed(covered, asked, disk, Some(capacity), &request.deployment_id),
    };
    let changes = recorded.clone().and_then(|_| bitmap(&chain, asked));
    let kept = || {
        changes.as_ref().map_err(String::clone)?;
        // What was written to a layer that came on top since is in this point; no bitmap would tell if the layer went away.
        if !recorded.is_ok_and(|then| then.is_same(disk)) {
            return Err("there are other layers than when the checkpoint began".to_owned());
        }
        let sizes: Vec<ByteLen> = chain.layers().iter().map(layer_size).collect();
        layers::check_sizes(&sizes)
    };
    let kept = kept();
    if let Err(reason) = &kept {
        tracing::info!(domain = domain.name, disk = asked.key, reason, "the next backup will read the whole disk");
    }
    let frozen = FrozenDisk {
        key: asked.key.clone(),
        binding: disk.binding(),
        label: super::discover::label(disk),
        capacity,
        token: asked.since.clone().filter(|_| kept.is_ok()),
    };
    Ok((Held { frozen, chain, changes }, files.opened.into_inner()))
}

fn layer_size(layer: &sendense_qcow2::Layer) -> ByteLen {
    match layer {
        sendense_qcow2::Layer::Qcow2(image) => image.size(),
        sendense_qcow2::Layer::Raw(disk) => disk.size(),
    }
}

/// The changes since the token, merged over all layers, or why they are not known.
fn bitmap(chain: &Chain, asked: &DiskRequest) -> Result<Arc<LayeredBitmap>, String> {
    let token = asked.since.as_ref().ok_or("no change tracking at the parent")?;
    LayeredBitmap::new(chain, &token.0).map(Arc::new)
}

/// A bitmap of one name in several layers: what any of them says was written.
///
/// The rule is libvirt's own: the highest layer has it, and from there down it lies in each layer until it lies in none. A
/// snapshot that was made behind libvirt's back has no bitmap on top, and what it recorded is not known.
struct LayeredBitmap(Vec<(Arc<Image>, Bitmap)>);

impl LayeredBitmap {
    fn new(chain: &Chain, name: &str) -> Result<Self, String> {
        let (mut found, mut ended) = (Vec::new(), false);
        for (depth, layer) in chain.layers().iter().enumerate() {
            let bitmaps = match layer {
                sendense_qcow2::Layer::Qcow2(image) => image.bitmaps().map_err(|error| error.to_string())?,
                sendense_qcow2::Layer::Raw(_) => Vec::new(),
            };
            let bitmap = bitmaps.into_iter().find(|bitmap| bitmap.name == name);
            match (layer, bitmap) {
                (_, None) if depth == 0 => return Err(format!("the checkpoint {name} has no bitmap in the image")),
                (_, None) => ended = true,
                _ if ended => return Err(format!("the bitmap {name} is missing in a layer of the image")),
                (sendense_qcow2::Layer::Qcow2(image), Some(bitmap)) => {
                    if bitmap.state != State::Consistent {
                        return Err(format!("the bitmap {name} was not stored completely (did QEMU crash?)"));
                    }
                    if !bitmap.auto {
                        return Err(format!("the bitmap {name} does not record"));
                    }
                    found.push((image.clone(), bitmap));
                }
                (sendense_qcow2::Layer::Raw(_), Some(_)) => {}
            }
        }
        Ok(Self(found))
    }
}

impl ChangeMap for LayeredBitmap {
    fn changed(&self, within: Extent) -> sendense_block::Result<ExtentSet> {
        let mut all = ExtentSet::new();
        for (image, bitmap) in &self.0 {
            // A lower layer may be smaller than the disk.
            let inside = within.intersect(Extent::whole(image.size()));
            if !inside.is_empty() {
                all = all.union(&image.dirty(bitmap, inside)?);
            }
        }
        Ok(all)
    }
}

impl Off {
    fn held(&self, key: &str) -> Result<&Held> {
        let held = self.disks.iter().find(|held| held.frozen.key == key);
        held.ok_or_else(|| Error::new(Kind::NotFound, format!("the disk {key} was not frozen")))
    }
}

impl Frozen for Off {
    fn facts(&self) -> &FrozenFacts {
        &self.facts
    }

    fn changes(&self, disk_key: &str) -> Result<Changes> {
        Ok(match &self.held(disk_key)?.changes {
            Ok(map) => Changes::Delta(map.clone()),
            Err(reason) => Changes::Unknown { reason: reason.clone() },
        })
    }

    fn open(&self, disk_key: &str, _cancel: &Cancel) -> Result<Arc<dyn Disk>> {
        Ok(self.held(disk_key)?.chain.clone())
    }

    fn check(&self) -> Result<()> {
        let name = &self.domain.name;
        let disturbed = |what: String| Err(Error::new(Kind::Disturbed, what));
        match self.settings.virsh.ask(&["dumpxml", &self.domain.uuid], &Cancel::new()) {
            Ok(document) if Domain::parse(&document)?.running => {
                return disturbed(format!("the domain {name} was started during the backup"));
            }
            Ok(_) => {}
            Err(error) if error.kind == Kind::NotFound => {
                return disturbed(format!("the domain {name} was removed during the backup"));
            }
            Err(error) => return Err(error),
        }
        for (path, stamp) in &self.files {
            if std::fs::metadata(path).ok().map(|meta| Stamp::of(&meta)).as_ref() != Some(stamp) {
                return disturbed(format!("{} changed during the backup", path.display()));
            }
        }
        Ok(())
    }

    fn release(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_names_are_paths_or_nothing() {
        let path = |name| backing_path("/images/vm/top.qcow2", name).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("base.qcow2").unwrap(), "/images/vm/base.qcow2");
        assert_eq!(path("../base.qcow2").unwrap(), "/images/base.qcow2");
        assert_eq!(path("/etc/shadow").unwrap(), "/etc/shadow");
        for name in ["json:{}", "nbd://host/x", "fat:/etc", "file:/etc/shadow"] {
            assert_eq!(path(name).unwrap_err().kind, Kind::Unsupported, "{name}");
        }
    }
}
