//! Machines that are made of restore points: where their disks go, and what defines them.
//!
//! The story: `folder` says where the disks will lie, `plan` names every file and writes the definition, the caller records
//! [`Planned::artefact`] and fills the disks, `finish` makes the machine known, switched off. Whatever fails, or whoever
//! dies before that, [`crate::Source::reap`] of the artefact takes all of it away again.

use crate::error::Result;
use crate::journal::{Artefact, ArtefactKind};
use crate::model::{ConfigDocument, VmRef};
use sendense_block::Cancel;
use sendense_types::{SourceId, TaskId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The format of a new machine's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Plain bytes, sparse.
    Raw,
    /// QCOW2.
    Qcow2,
}

impl DiskFormat {
    /// The text form, also the end of a file's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct NewVm<'a> {
    /// Its name, which no other machine has.
    pub name: &'a str,
    /// The recorded configuration. It comes from a repository's folder and is believed in nothing.
    pub documents: &'a [ConfigDocument],
    /// The keys of the disks that there are; the others of the configuration are left out.
    pub disks: &'a [String],
    /// Where they will lie: resolved, and checked.
    pub folder: &'a Path,
    /// Their format.
    pub format: DiskFormat,
    /// By the name of the network or bridge that a card was in, or the card's MAC address: the new network, `bridge:` and the
    /// name of a bridge, or none. Cards that are not named are not plugged in.
    pub networks: &'a BTreeMap<String, Option<String>>,
    /// Take the recorded UUID and MAC addresses: for the only one of its kind, not for a copy.
    pub keep_identity: bool,
}

/// A machine that can be made.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What it will be.
    pub vm: VmRef,
    /// A new file for each disk, in the order of [`NewVm::disks`].
    pub disks: Vec<PathBuf>,
    /// The firmware's variables and the new file for them.
    pub nvram: Option<(PathBuf, Vec<u8>)>,
    /// What the hypervisor is told.
    pub definition: String,
    /// What is not as it was, for people.
    pub notes: Vec<String>,
}

impl Planned {
    /// The files that it will have.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.disks.iter().chain(self.nvram.iter().map(|(path, _)| path))
    }

    /// What the journal must know before the first file is made; `more` are files that are made on the way.
    pub fn artefact(&self, source_id: SourceId, task_id: TaskId, more: impl IntoIterator<Item = PathBuf>) -> Artefact {
        let files: Vec<PathBuf> = self.files().cloned().chain(more).collect();
        Artefact {
            source_id,
            task_id,
            kind: ArtefactKind::Machine,
            vm_key: self.vm.instance_uuid.clone(),
            details: serde_json::json!({ "name": self.vm.name, "files": files }),
        }
    }
}

/// A hypervisor that machines can be restored to.
pub trait Target: Send + Sync {
    /// The folder that a pool's name (or an absolute path) stands for.
    fn folder(&self, pool: &str, cancel: &Cancel) -> Result<PathBuf>;

    /// Decides everything without making anything. [`crate::Kind::Busy`] when the name, or a kept UUID, is taken.
    fn plan(&self, new: &NewVm<'_>, cancel: &Cancel) -> Result<Planned>;

    /// Makes the machine known, switched off. Its disks are whole. [`crate::Kind::Busy`] when another one of that name
    /// or identity came meanwhile; nothing is replaced.
    fn finish(&self, planned: &Planned, cancel: &Cancel) -> Result<()>;
}
