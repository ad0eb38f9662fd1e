//! Connections to the server, and its errors in the words of sources.
//!
//! What lives here: connecting, logging out, whose fault is whose. What does not: the methods.

use super::Settings;
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use sendense_vsphere::{Certificate, FaultKind, Http, HttpOptions, KeptAlive, Vim, probe};
use std::sync::Arc;

/// The certificate that a server shows, believed by nobody yet: a person compares its fingerprint and confirms it.
pub fn certificate(address: &str, proxy: Option<&str>, cancel: &Cancel) -> Result<Certificate> {
    Ok(probe(address, proxy, cancel)?)
}

/// A session of its own.
pub(super) fn connect(settings: &Settings, cancel: &Cancel) -> Result<Vim> {
    let options =
        HttpOptions { address: settings.host.clone(), trust: settings.trust.clone(), proxy: settings.proxy.clone() };
    let exchange = Arc::new(Http::new(&options)?);
    Ok(Vim::connect(exchange, settings.login.clone(), cancel)?)
}

/// The same for work that leaves it alone for hours.
pub(super) fn hold(settings: &Settings, cancel: &Cancel) -> Result<KeptAlive> {
    connect(settings, cancel).map(KeptAlive::new)
}

/// Does something in a session of its own, and ends it: a vCenter has room for some hundreds.
pub(super) fn with<T>(settings: &Settings, cancel: &Cancel, what: impl FnOnce(&Vim) -> Result<T>) -> Result<T> {
    let vim = connect(settings, cancel)?;
    let done = what(&vim);
    vim.log_out(&Cancel::new());
    done
}

impl From<sendense_vsphere::Error> for Error {
    fn from(error: sendense_vsphere::Error) -> Self {
        use sendense_vsphere::Error as Vsphere;
        let kind = match &error {
            Vsphere::Options(_) => Kind::Invalid,
            Vsphere::Unreachable { .. } | Vsphere::Timeout { .. } | Vsphere::TaskTimeout { .. } => Kind::Unavailable,
            Vsphere::Certificate { .. } => Kind::Denied,
            Vsphere::Reply { .. } => Kind::Failed,
            Vsphere::Cancelled => Kind::Cancelled,
            Vsphere::Fault { fault, .. } => match fault.kind {
                FaultKind::NotAuthenticated | FaultKind::InvalidLogin | FaultKind::NoPermission => Kind::Denied,
                FaultKind::ManagedObjectNotFound => Kind::NotFound,
                FaultKind::TaskInProgress | FaultKind::ConcurrentAccess | FaultKind::FileLocked => Kind::Busy,
                FaultKind::HostNotConnected | FaultKind::HostCommunication => Kind::Unavailable,
                FaultKind::NotSupported | FaultKind::MethodNotFound | FaultKind::RestrictedVersion => Kind::Unsupported,
                _ => Kind::Failed,
            },
        };
        let hint = match (&error, error.kind()) {
            (Vsphere::Certificate { found: Some(found), .. }, _) => Some(format!(
                "if the certificate was renewed, compare its SHA-256 with the server's and set it anew: {found}"
            )),
            (_, Some(FaultKind::InvalidLogin)) => Some("check the account and its password".into()),
            (_, Some(FaultKind::NoPermission)) => {
                Some("`sendense source test` names the privileges that the account lacks".into())
            }
            (_, Some(FaultKind::NoDiskSpace)) => Some("make room on the datastore: a snapshot needs some".into()),
            _ => None,
        };
        let told = Self::new(kind, error.to_string());
        let told = match hint {
            Some(hint) => told.hint(hint),
            None => told,
        };
        // Only the causes below: what is said of this layer is the message.
        match error {
            Vsphere::Unreachable { source, .. } => told.caused_by(source),
            _ => told,
        }
    }
}
