//! The source `nbd`: exports of any NBD server, each one machine with one disk.
//!
//! What lives here: the settings, the list of exports, and when a dirty bitmap may be believed (`bitmap`). What does not:
//! the protocol (`sendense_block::nbd`).
//!
//! **The moment.** Nothing can be frozen through NBD: the server decides what moment an export shows, and whoever exports
//! a disk that is in use must export a snapshot of it. A connection that breaks ends the backup: a server that came back
//! may show another moment.
//!
//! **The bitmap.** A dirty bitmap says *what* changed but not *since when*. Whoever cleared it knows, and we cannot ask.
//! Believing it wrongly would leave a gap that nobody sees; so unless the settings vouch for it, everything is read and
//! compared by digests, and the bitmap is reported as not trusted. The settings vouch with
//!
//! ```json
//! {"dirty_bitmap": "NAME", "trust_bitmap": true, "bitmap_epoch": "1"}
//! ```
//!
//! which promises: *as long as `bitmap_epoch` stays the same, the bitmap has recorded every write and was never cleared,
//! removed or made anew*. Whoever clears it changes the epoch (any text). The token of a point then holds name, epoch and
//! size; the bitmap at a later point of the same epoch holds all changes since the epoch began, and so all changes since
//! the first point. Another name, epoch or size costs one comparison by digests, and a new token.

mod bitmap;
mod frozen;
mod tls;

use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, Journal};
use crate::model::{DiscoveredDisk, DiscoveredVm, FreezeRequest, TestReport, VmRef};
use crate::name;
use crate::open::SourceContext;
use crate::{Frozen, Source};
use bitmap::Policy;
use sendense_block::nbd::{Address, Client, ExportInfo, Options, Uri, list};
use sendense_block::{ByteLen, Cancel, ReadAt};
use sendense_types::{DiskBinding, PowerState, SourceKind, TrackingToken};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use tls::{Material, Secret};

/// The key of an export's only disk.
const DISK_KEY: &str = "disk-0";

/// Connections that one disk may open. Each carries 16 requests at once; 256 in flight are more than a copy asks for.
const CONNECTIONS_MAX: usize = 16;

/// The settings of an NBD source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `nbd://host/export`, `nbds://…`, `nbd+unix:///export?socket=/path`; without an export, all that the server lists.
    pub uri: String,
    /// The bitmap to use; the server's only one without it.
    pub dirty_bitmap: Option<String>,
    /// The settings vouch for the bitmap; see the module's words.
    #[serde(default)]
    pub trust_bitmap: bool,
    /// Changes whenever the bitmap was cleared or made anew.
    pub bitmap_epoch: Option<String>,
    /// Connections to open; 1 without it. More help with servers that say that they may be used so.
    pub connections: Option<usize>,
    /// The name to look for in the server's certificate, where it is not the host's.
    pub tls_server_name: Option<String>,
}

/// An NBD server.
pub struct NbdServer {
    uri: Uri,
    context: SourceContext,
    policy: Policy,
    connections: usize,
    tls: Option<Material>,
}

/// An export as found.
struct Export {
    name: String,
    description: String,
    size: Result<ByteLen, String>,
    bitmaps: Vec<String>,
}

impl NbdServer {
    /// A server that is not connected to yet. `secret` is JSON with the PEM texts `ca`, `certificate` and `key`, each of
    /// which may be missing.
    pub fn new(config: Config, secret: Option<&str>, context: SourceContext) -> Result<Self> {
        let uri: Uri = config.uri.parse().map_err(|error: sendense_block::Error| {
            Error::new(Kind::Invalid, "settings of the nbd source: `uri` is not an NBD URI").caused_by(error)
        })?;
        let policy = Policy::new(config.dirty_bitmap, config.trust_bitmap, config.bitmap_epoch)?;
        let secret = secret.filter(|text| !text.is_empty()).map(Secret::parse).transpose()?;
        if !uri.tls() && (secret.is_some() || config.tls_server_name.is_some()) {
            let message = "settings of the nbd source: certificates are given, but `uri` is not encrypted";
            return Err(Error::new(Kind::Invalid, message).hint("write nbds:// or nbds+unix://"));
        }
        let connections = config.connections.unwrap_or(1);
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            let message = format!("settings of the nbd source: `connections` is not between 1 and {CONNECTIONS_MAX}");
            return Err(Error::new(Kind::Invalid, message));
        }
        let tls = uri.tls().then(|| Material::new(secret.unwrap_or_default(), config.tls_server_name)).transpose()?;
        Ok(Self { uri, context, policy, connections, tls })
    }

    fn options(&self, export: &str) -> Result<Options> {
        self.check_socket()?;
        let mut options = Options::new(self.uri.with_export(export)?);
        options.connections = self.connections;
        options.read_only = true;
        options.tls = self.tls.as_ref().map(Material::options);
        Ok(options)
    }

    /// A socket is a path on this host like any other: its folder must be allowed, and it must be a socket.
    fn check_socket(&self) -> Result<()> {
        let Address::Unix(path) = self.uri.address() else { return Ok(()) };
        let wrong = || Error::new(Kind::Unsafe, format!("{} is not a socket", path.display()));
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(wrong()) };
        let folder = self.context.roots.check_existing(folder)?;
        match folder.join(name).symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => Ok(()),
            Ok(_) => Err(wrong()),
            Err(error) => {
                Err(Error::new(Kind::Unavailable, format!("find the socket {}", path.display())).caused_by(error))
            }
        }
    }

    /// The exports that this source means.
    fn exports(&self, cancel: &Cancel) -> Result<Vec<Export>> {
        let wanted = self.uri.export();
        let listed = match list(&self.options(wanted)?, cancel) {
            Ok(listed) => listed,
            // A server may keep its list to itself.
            Err(error) if matches!(error.kind, sendense_block::Kind::Unsupported | sendense_block::Kind::Denied) => {
                tracing::debug!(uri = %self.uri, "server does not list its exports");
                Vec::new()
            }
            Err(error) => return Err(self.failed(error)),
        };
        let mut exports: Vec<Export> =
            listed.into_iter().filter(|info| wanted.is_empty() || info.name == wanted).map(Export::from).collect();
        if exports.is_empty() {
            // Not listed is not missing: connecting tells.
            let name = wanted.to_owned();
            let client = self.connect(wanted, None, cancel)?;
            let description = client.description().unwrap_or_default().to_owned();
            exports.push(Export { name, description, size: Ok(client.size()), bitmaps: Vec::new() });
        }
        Ok(exports)
    }

    fn connect(&self, export: &str, context: Option<String>, cancel: &Cancel) -> Result<Client> {
        let mut options = self.options(export)?;
        options.contexts.extend(context);
        Client::connect(&options, cancel).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: sendense_block::Error) -> Error {
        Error::of_device(format!("the NBD server at {} does not serve us", self.place()), error)
    }

    fn find(&self, vm: &VmRef, cancel: &Cancel) -> Result<Export> {
        let found =
            self.exports(cancel)?.into_iter().find(|export| self.vm_of(export).instance_uuid == vm.instance_uuid);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("{} has no export {}", self.place(), vm.name)))
    }

    /// Where the server is, without anything that may change without it becoming another server.
    fn place(&self) -> String {
        match self.uri.address() {
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(path) => format!("unix:{}", name::text(path.as_os_str())),
        }
    }

    fn vm_of(&self, export: &Export) -> VmRef {
        let address = match self.uri.address() {
            Address::Tcp { host, port } => format!("tcp {host} {port}").into_bytes(),
            Address::Unix(path) => [b"unix ", path.as_os_str().as_bytes()].concat(),
        };
        // No address and no export name holds a NUL.
        let place = [address.as_slice(), b"\0", export.name.as_bytes()].concat();
        let shown = match (export.name.as_str(), self.uri.address()) {
            ("", Address::Tcp { host, .. }) => host.clone(),
            ("", Address::Unix(path)) => name::text(Path::new(path).file_stem().unwrap_or(path.as_os_str())),
            (named, _) => name::text(named.as_ref()),
        };
        VmRef { instance_uuid: name::instance_uuid(name::NBD_EXPORT, &place), name: shown }
    }

    fn binding(&self, export: &Export) -> DiskBinding {
        DiskBinding(format!("nbd:{}/{}", self.place(), name::text(export.name.as_ref())))
    }

    fn describe(&self, export: &Export) -> DiscoveredVm {
        let vm = self.vm_of(export);
        let disk = DiscoveredDisk {
            key: DISK_KEY.into(),
            label: vm.name.clone(),
            binding: self.binding(export),
            capacity: export.size.as_ref().copied().unwrap_or_default(),
            format: "raw".into(),
            datastore: Some(self.place()),
            path: None,
            mode: None,
            unsupported: export.size.as_ref().err().cloned(),
        };
        DiscoveredVm {
            vm,
            path: Some(self.place()),
            folder: None,
            power_state: PowerState::Unknown,
            guest_os: None,
            cpu_count: None,
            memory_bytes: None,
            disks: vec![disk],
            networks: Vec::new(),
            hardware: None,
            snapshots: Vec::new(),
            change_tracking: self.policy.choose(&export.bitmaps).map(drop),
            unsupported: None,
        }
    }
}

impl From<ExportInfo> for Export {
    fn from(info: ExportInfo) -> Self {
        Self {
            size: info.size.ok_or_else(|| "the server lists this export but does not open it for us".to_owned()),
            bitmaps: info.contexts.iter().filter_map(|context| bitmap::name_of(context)).map(str::to_owned).collect(),
            name: info.name,
            description: info.description,
        }
    }
}

impl Source for NbdServer {
    fn kind(&self) -> SourceKind {
        SourceKind::Nbd
    }

    fn test(&self, cancel: &Cancel) -> Result<TestReport> {
        let exports = self.exports(cancel)?;
        let mut warnings = Vec::new();
        if let Address::Tcp { host, .. } = self.uri.address()
            && !self.uri.tls()
            && !matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1")
        {
            warnings.push("the connection is not encrypted: everybody on the way can read the disk".into());
        }
        let mut reasons: Vec<String> =
            exports.iter().filter_map(|export| self.policy.choose(&export.bitmaps).err()).collect();
        reasons.dedup();
        warnings.extend(reasons.into_iter().filter(|reason| reason != bitmap::NOT_OFFERED).take(5));
        Ok(TestReport { product: format!("NBD server, {} exports", exports.len()), warnings })
    }

    fn discover(&self, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
        Ok(self.exports(cancel)?.iter().map(|export| self.describe(export)).collect())
    }

    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> Result<DiscoveredVm> {
        Ok(self.describe(&self.find(vm, cancel)?))
    }

    fn freeze(&self, request: &FreezeRequest, _: &Arc<dyn Journal>, cancel: &Cancel) -> Result<Box<dyn Frozen>> {
        if request.quiesce_or_fail {
            return Err(crate::error::cannot_quiesce(&request.vm.name, frozen::NO_GUEST));
        }
        let export = self.find(&request.vm, cancel)?;
        let [wanted] = request.disks.as_slice() else {
            return Err(Error::new(Kind::NotFound, "an NBD export has exactly one disk"));
        };
        if wanted.key != DISK_KEY {
            return Err(Error::new(Kind::NotFound, format!("an NBD export has no disk {}", wanted.key)));
        }
        if wanted.binding != self.binding(&export) {
            return Err(Error::new(Kind::Disturbed, format!("{} is another disk by now", request.vm.name)));
        }
        let chosen = self.policy.choose(&export.bitmaps);
        let context = chosen.as_ref().ok().map(|trusted| trusted.context());
        // The only connection: many servers serve one client at a time.
        let client = self.connect(&export.name, context, cancel)?;
        Ok(Box::new(frozen::FrozenExport::new(self.describe(&export), export.description, client, chosen, request)))
    }

    fn retire(&self, _: &VmRef, _: &[TrackingToken], _: &Arc<dyn Journal>, _: &Cancel) -> Result<Vec<TrackingToken>> {
        // The bitmap is the administrator's: we never made it and never clear it.
        Ok(Vec::new())
    }

    fn reap(&self, artefact: &Artefact, _: &Cancel) -> Result<bool> {
        Err(Error::new(Kind::Invalid, format!("nbd sources make nothing of kind {:?}", artefact.kind)))
    }
}
