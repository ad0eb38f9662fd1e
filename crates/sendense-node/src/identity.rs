//! Who a node is: its key, its certificate, and by what it knows its hub.
//!
//! ```text
//! <data-dir>/          0700
//!     key.pem          0600, made here and never sent anywhere
//!     certificate.pem  from the hub
//!     node.json        written last: with it, the node has enrolled
//! ```
//!
//! Invariant: a folder with `node.json` holds a whole identity, whatever moment a crash came at.

use rcgen::{CertificateParams, KeyPair};
use sendense_api::{
    Client, ClientError, ClientOptions, EnrolNode, Identity as Shown, NodeHello, NodeWelcome, Secret, Trust,
};
use sendense_types::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The version of `node.json` that this program writes and reads.
const VERSION: u32 = 1;
/// No file of ours is larger: a chain of certificate authorities has some kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a node has no identity, or cannot use it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be accessed. The operator of the node acts.
    #[error("access {}", path.display())]
    Access {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder holds an identity already.
    #[error("{} holds node {name}: revoke that one and take another folder, or remove this one", path.display())]
    Enrolled {
        /// The folder.
        path: PathBuf,
        /// The node in it.
        name: String,
    },
    /// The folder holds no identity.
    #[error("{} holds no node: enrol it with `sendense node enrol`", .0.display())]
    NotEnrolled(PathBuf),
    /// `node.json` is not what this program writes.
    #[error("{} cannot be read: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No key could be made.
    #[error("make a key")]
    Key(#[source] rcgen::Error),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] ClientError),
}

/// By what a node knows its hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HubTrust {
    /// The public authorities.
    Public,
    /// These authorities, PEM.
    Ca(String),
    /// The certificate with this SHA-256, in hex.
    Fingerprint(String),
}

impl HubTrust {
    fn trust(&self) -> Result<Trust, ClientError> {
        match self {
            Self::Public => Ok(Trust::Public),
            Self::Ca(pem) => Ok(Trust::CaPem(pem.clone().into_bytes())),
            Self::Fingerprint(hex) => Trust::fingerprint(hex),
        }
    }
}

/// The hub, as a node reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubAddress {
    /// Its URL.
    pub url: String,
    /// By what it is known.
    pub trust: HubTrust,
    /// The HTTP proxy on the way; none: what the environment says.
    pub proxy: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    node_id: NodeId,
    name: String,
    hub: HubAddress,
}

/// A node that has enrolled.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id.
    pub node_id: NodeId,
    /// What it is called.
    pub name: String,
    /// Its hub.
    pub hub: HubAddress,
    shown: Shown,
}

impl Identity {
    /// Makes a key and has the hub certify it.
    pub async fn enrol(folder: &Path, hub: HubAddress, code: String) -> Result<Self, Error> {
        match Self::open(folder) {
            Ok(known) => return Err(Error::Enrolled { path: folder.to_owned(), name: known.name }),
            Err(Error::NotEnrolled(_)) => {}
            Err(error) => return Err(error),
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(access(folder))?;
        let key = KeyPair::generate().map_err(Error::Key)?;
        let request = CertificateParams::default().serialize_request(&key).and_then(|request| request.pem());
        let request = request.map_err(Error::Key)?;
        let key = key.serialize_pem();
        // Before the code is used up: a folder that cannot be written must not cost it.
        write(&folder.join("key.pem"), key.as_bytes(), 0o600)?;
        let client = Client::new(options(&hub, None)?)?;
        let enrolment = client.enrol_node(&EnrolNode { code, request }).await?;
        write(&folder.join("certificate.pem"), enrolment.certificate.as_bytes(), 0o644)?;
        let stored = Stored { version: VERSION, node_id: enrolment.node_id, name: enrolment.name, hub };
        store(folder, &stored)?;
        Self::open(folder)
    }

    /// The identity in a folder.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("node.json");
        let text = match read(&path) {
            Ok(text) => text,
            Err(Error::Access { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotEnrolled(folder.to_owned()));
            }
            Err(error) => return Err(error),
        };
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let stored: Stored = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if stored.version != VERSION {
            return Err(damaged(format!("version {} was written by another release", stored.version)));
        }
        let certificate = read(&folder.join("certificate.pem"))?.into_bytes();
        let shown = Shown { certificate, key: Secret::new(read(&folder.join("key.pem"))?) };
        Ok(Self { node_id: stored.node_id, name: stored.name, hub: stored.hub, shown })
    }

    /// Takes another way to the same hub: another address, or another certificate of it.
    pub fn change_hub(&mut self, folder: &Path, hub: HubAddress) -> Result<(), Error> {
        let stored = Stored { version: VERSION, node_id: self.node_id.clone(), name: self.name.clone(), hub };
        store(folder, &stored)?;
        self.hub = stored.hub;
        Ok(())
    }

    /// A client that shows the node's certificate.
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::new(options(&self.hub, Some(self.shown.clone()))?)
    }
}

/// Says hello; an answer means that hub and node know each other.
pub async fn hello(client: &Client) -> Result<NodeWelcome, ClientError> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    client.node_hello(&NodeHello { version: env!("CARGO_PKG_VERSION").to_owned(), host }).await
}

fn options(hub: &HubAddress, identity: Option<Shown>) -> Result<ClientOptions, ClientError> {
    let (trust, proxy) = (hub.trust.trust()?, hub.proxy.clone());
    Ok(ClientOptions { trust, proxy, identity, ..ClientOptions::new(&hub.url) })
}

fn store(folder: &Path, stored: &Stored) -> Result<(), Error> {
    let path = folder.join("node.json");
    let text = serde_json::to_vec_pretty(stored)
        .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
    // It may hold a proxy's password.
    write(&path, &text, 0o600)
}

/// Writes a file whole or not at all, with its mode from the first moment on.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(access(&new)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(access(&new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(access(&new))?;
    fs::rename(&new, path).map_err(access(path))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(access(folder))
}

fn read(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let file = File::open(path).map_err(access(path))?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(access(path))?;
    Ok(text)
}

fn access(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Access { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn hub() -> HubAddress {
        let trust = HubTrust::Fingerprint("ab".repeat(32));
        HubAddress { url: "https://hub.example:8082".to_owned(), trust, proxy: Some("http://proxy:3128".to_owned()) }
    }

    #[test]
    fn an_identity_comes_back_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(matches!(Identity::open(folder), Err(Error::NotEnrolled(_))));
        write(&folder.join("key.pem"), b"key", 0o600).unwrap();
        write(&folder.join("certificate.pem"), b"certificate", 0o644).unwrap();
        assert!(matches!(Identity::open(folder), Err(Error::NotEnrolled(_))), "the last file is not there yet");
        let stored =
            Stored { version: VERSION, node_id: "node-1".parse().unwrap(), name: "SITE-A".to_owned(), hub: hub() };
        store(folder, &stored).unwrap();
        let mut identity = Identity::open(folder).unwrap();
        assert_eq!((identity.name.as_str(), &identity.hub), ("SITE-A", &hub()));
        assert!(!format!("{identity:?}").contains("\"key\""), "the key can be printed: {identity:?}");
        let mode = fs::metadata(folder.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let other = HubAddress { trust: HubTrust::Public, ..hub() };
        identity.change_hub(folder, other.clone()).unwrap();
        assert_eq!(Identity::open(folder).unwrap().hub, other);
        for text in ["", "{}", "{\"version\":9}"] {
            fs::write(folder.join("node.json"), text).unwrap();
            assert!(matches!(Identity::open(folder), Err(Error::Damaged { .. })), "{text:?}");
        }
    }
}
