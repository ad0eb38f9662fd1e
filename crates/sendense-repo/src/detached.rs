//! A disk of a restore point as open files and a few words, for a process that reads it without any path.
//!
//! What lives here: taking a chain apart into descriptors, and putting it together from them elsewhere. What does not: how
//! descriptors travel. No image is looked into here: formats, sizes and order are the manifests', never probed.
//!
//! Invariant: what is put together reads exactly as [`Repository::open_disk`] does, or is refused.

use crate::chain::{ChainReader, image_of};
use crate::error::{Error, Result};
use crate::layout;
use crate::lock::{ChainGuard, Operation};
use crate::repository::Repository;
use sendense_block::ByteLen;
use sendense_block::backend::File;
use sendense_qcow2::{Chain, Layer};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// A chain as open files, the newest first, and what they are.
#[derive(Debug)]
pub struct Detached {
    /// The files, open for reading.
    pub files: Vec<OwnedFd>,
    /// What they are.
    pub words: Words,
    /// Keeps the points while it is held.
    pub guard: ChainGuard,
}

/// What the files of a chain are. Plain data that can be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// The disk's true size.
    pub capacity_bytes: u64,
    /// One for each file, in the files' order.
    pub images: Vec<ImageWords>,
}

/// What one file of a chain is: a QCOW2 image of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageWords {
    /// Its name, for messages.
    pub name: String,
    /// The size that it must say it has.
    pub capacity_bytes: u64,
    /// The backing file that it must name.
    pub parent: Option<String>,
}

impl Repository {
    /// Opens the files of a disk of a point. `who` is told to those who want to delete meanwhile.
    pub fn detach_disk(&self, vm: &VmContextId, backup: &BackupId, disk: DiskNumber, who: &str) -> Result<Detached> {
        let (links, guard) = self.claim_chain(Operation::Read, vm, backup, disk, who)?;
        let capacity = links.first().map(|link| link.disk.capacity()).unwrap_or_default();
        let (mut files, mut images) = (Vec::with_capacity(links.len()), Vec::with_capacity(links.len()));
        for link in &links {
            let path = layout::image(vm, link.disk.disk_id, &link.backup_id);
            let file = self.open_file(&path, link.disk.image.file_bytes)?;
            let file = file.as_std().try_clone();
            files.push(file.map_err(|error| crate::crashsafe::failed("open", &path, error))?.into());
            images.push(ImageWords {
                name: layout::image_name(&link.backup_id),
                capacity_bytes: link.disk.image_capacity().0,
                parent: link.disk.parent_backup_id.as_ref().map(layout::image_name),
            });
        }
        Ok(Detached { files, words: Words { capacity_bytes: capacity.0, images }, guard })
    }
}

impl ChainReader {
    /// The disk of these files.
    ///
    /// # Errors
    /// [`crate::Kind::Corrupt`] when a file is not the image that the words tell of.
    pub fn attach(files: Vec<OwnedFd>, words: &Words) -> Result<Self> {
        if files.len() != words.images.len() {
            return Err(Error::invalid(format!("{} files for {} images", files.len(), words.images.len())));
        }
        let mut layers = Vec::with_capacity(files.len());
        for (file, image) in files.into_iter().zip(&words.images) {
            let file = File::from_std(file.into(), image.name.clone(), false)?;
            let capacity = ByteLen(image.capacity_bytes);
            layers.push(Layer::Qcow2(Arc::new(image_of(
                file,
                Path::new(&image.name),
                capacity,
                image.parent.as_deref(),
            )?)));
        }
        Ok(Self {
            chain: Chain::new(layers)?,
            capacity: ByteLen(words.capacity_bytes),
            links: Vec::new(),
            _guard: None,
        })
    }
}
