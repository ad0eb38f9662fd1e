//! The one door: from a source's kind and settings to a [`Source`].
//!
//! What lives here: the choice and what every source is given. What does not: the settings of each kind, which lie beside
//! it. Settings are JSON whose unknown fields are refused, so that a misspelt one is told and not ignored.

use crate::Source;
use crate::error::{Error, Kind, Result};
use crate::paths::Roots;
use sendense_types::{DeploymentId, SourceId, SourceKind};
use std::path::PathBuf;
use std::sync::Arc;

/// What every source is given.
#[derive(Debug, Clone)]
pub struct SourceContext {
    /// Which source it is; goes into the journal.
    pub source_id: SourceId,
    /// Whose things on the hypervisor are ours.
    pub deployment_id: DeploymentId,
    /// A folder of ours (mode 0700) for sockets and the like. Short: a socket's path has at most 107 bytes.
    pub run_dir: PathBuf,
    /// Below what paths on this host may lie.
    pub roots: Roots,
}

/// Opens a source. Nothing is connected yet: [`Source::test`] and the rest do that. `secret` is the text kept encrypted
/// beside the settings; what it means is the kind's business.
pub fn open(
    kind: SourceKind,
    _config: &serde_json::Value,
    _secret: Option<&str>,
    _context: SourceContext,
) -> Result<Arc<dyn Source>> {
    match kind {
        SourceKind::Image | SourceKind::Nbd | SourceKind::Libvirt | SourceKind::Vsphere => Err(not_here(kind)),
    }
}

fn not_here(kind: SourceKind) -> Error {
    Error::new(Kind::Unsupported, format!("sources of kind {kind} are not part of this build"))
}
