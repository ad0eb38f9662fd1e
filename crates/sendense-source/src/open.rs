//! The one door: from a source's kind and settings to a [`Source`].
//!
//! What lives here: the choice and what every source is given. What does not: the settings of each kind, which lie beside
//! it. Settings are JSON whose unknown fields are refused, so that a misspelt one is told and not ignored.

use crate::error::{Error, Kind, Result};
use crate::paths::Roots;
use crate::{Source, image, libvirt, nbd, vsphere};
use sendense_types::{DeploymentId, SourceId, SourceKind};
use serde::de::DeserializeOwned;
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
    config: &serde_json::Value,
    secret: Option<&str>,
    context: SourceContext,
) -> Result<Arc<dyn Source>> {
    match kind {
        SourceKind::Image => {
            no_secret(kind, secret)?;
            Ok(Arc::new(image::ImageFolder::new(settings(kind, config)?, context)?))
        }
        SourceKind::Nbd => Ok(Arc::new(nbd::NbdServer::new(settings(kind, config)?, secret, context)?)),
        SourceKind::Libvirt => {
            no_secret(kind, secret)?;
            libvirt::open(config, context)
        }
        SourceKind::Vsphere => vsphere::open(config, secret, context),
    }
}

/// Reads the settings of a kind; the error says which field is wrong.
pub(crate) fn settings<T: DeserializeOwned>(kind: SourceKind, config: &serde_json::Value) -> Result<T> {
    T::deserialize(config).map_err(|error| Error::new(Kind::Invalid, format!("settings of the {kind} source: {error}")))
}

fn no_secret(kind: SourceKind, secret: Option<&str>) -> Result<()> {
    match secret {
        None | Some("") => Ok(()),
        Some(_) => Err(Error::new(Kind::Invalid, format!("sources of kind {kind} take no secret"))),
    }
}
