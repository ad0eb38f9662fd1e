//! Machines of a vCenter or a bare ESXi host: frozen by snapshots, compared by changed block tracking (CBT), read through
//! nbdkit's vddk plugin.
//!
//! What lives here: the settings and the door. Beside it: `session` (connections, errors), `discover` (machines as found),
//! `token` (when CBT may be believed; pure), `tracking` (CBT on, and anew), `snapshot` (making and removing), `kit` (nbdkit), `library` (VDDK), `doctor` (whether this host can), `limits`
//! (sessions at once), `held` (one task per machine), `frozen` (the held machine), `restore` (a new machine of a point), `onto` (a point onto a machine's disks), `leftover` (things of ours by their marks), `facts` (the configuration for the manifest). What does not: SOAP
//! (`sendense_vsphere`), NBD.
//!
//! ```text
//! inspect -> sessions free? -> CBT on (no snapshot there) -> journal -> snapshot -> disks and changeIds *of the snapshot*
//!         -> nbdkit per disk, read -> is the snapshot still there? -> nbdkit ends -> snapshot removed -> consolidated?
//! ```
//!
//! Invariant: a snapshot of ours bears, in its description, our deployment and the task. Only those of our deployment are
//! ever removed, and a failed removal stays in the journal.

mod discover;
mod doctor;
mod facts;
mod frozen;
mod held;
mod kit;
mod leftover;
mod library;
mod limits;
mod onto;
mod restore;
mod session;
mod snapshot;
mod token;
mod tracking;

use crate::error::{Error, Kind, Result};
use crate::journal::{Artefact, ArtefactKind, Journal};
use crate::model::{DiscoveredVm, FreezeRequest, TestReport, VmRef};
use crate::open::SourceContext;
use crate::remote::{NewRemoteVm, Overwriting, RemoteDisk, RemoteTarget, Restoring};
use crate::{Frozen, Source, TrackingReset};
use library::Library;
use sendense_block::Cancel;
use sendense_types::{DeploymentId, SourceId, SourceKind, TaskId, TrackingToken};
use sendense_vsphere::{Fingerprint, Login, Trust, privilege};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

pub use doctor::{Finding, examine};
pub(crate) use kit::reap as reap_child;
pub use session::certificate;

/// Sessions that a source's machines may hold at once unless told otherwise. A vCenter gives 52 in all (VDDK's guide), other
/// backups and an administrator's clones want some; a host's 48 MB of buffers carry some twenty.
const SESSIONS_MAX: usize = 20;

/// A source's settings as they are stored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    host: String,
    thumbprint: Option<String>,
    proxy: Option<String>,
    vddk_libdir: Option<PathBuf>,
    nbdkit_plugin: Option<PathBuf>,
    transports: Option<String>,
    sessions_max: Option<usize>,
    #[serde(default)]
    quiesce_or_fail: bool,
}

/// What is kept encrypted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    username: Option<String>,
    password: String,
    ca: Option<String>,
}

/// A source's settings, resolved.
#[derive(Debug, Clone)]
struct Settings {
    source_id: SourceId,
    deployment_id: DeploymentId,
    run_dir: PathBuf,
    host: String,
    server: String,
    trust: Trust,
    proxy: Option<String>,
    login: Login,
    library: Library,
    sessions_max: usize,
    quiesce_or_fail: bool,
}

impl Settings {
    /// The server, however its address was typed: what is counted for it is counted once.
    fn server(&self) -> &str {
        &self.server
    }

    fn resolve(config: Config, secret: Option<&str>, context: SourceContext) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Invalid, format!("settings of the vsphere source: {why}"));
        let secret = secret.filter(|text| !text.is_empty()).ok_or_else(|| wrong("an account is needed".into()))?;
        // The text itself stays out of the error: it holds the password.
        let secret: Secret = serde_json::from_str(secret).map_err(|_| wrong("the account cannot be read".into()))?;
        let username = secret.username.filter(|name| !name.is_empty());
        let username = username.ok_or_else(|| wrong("the account has no name".into()))?;
        let trust = match (&config.thumbprint, secret.ca) {
            (Some(text), _) => Trust::Pin(text.parse::<Fingerprint>().map_err(wrong)?),
            (None, Some(ca)) => Trust::CaPem(ca),
            (None, None) => Trust::Public,
        };
        let sessions_max = config.sessions_max.unwrap_or(SESSIONS_MAX);
        if !(1..=52).contains(&sessions_max) {
            return Err(wrong("`sessions_max` is not between 1 and 52, which is all that a vCenter gives".into()));
        }
        let library = Library::new(config.vddk_libdir, config.nbdkit_plugin, config.transports).map_err(wrong)?;
        let server = sendense_vsphere::server_name(&config.host).map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            source_id: context.source_id,
            deployment_id: context.deployment_id,
            run_dir: context.run_dir,
            host: config.host,
            server,
            trust,
            proxy: config.proxy,
            login: Login { username, password: secret.password },
            library,
            sessions_max,
            quiesce_or_fail: config.quiesce_or_fail,
        })
    }
}

/// A vCenter or a bare host.
pub struct VsphereSource {
    settings: Settings,
}

/// Opens a vSphere source; see [`crate::open`](fn@crate::open). Nothing is connected yet. `secret` is the JSON text
/// `{"username": …, "password": …, "ca": …}`, the last of which may be missing.
pub fn open(config: &serde_json::Value, secret: Option<&str>, context: SourceContext) -> Result<Arc<dyn Source>> {
    let config: Config = crate::open::settings(SourceKind::Vsphere, config)?;
    Ok(Arc::new(VsphereSource { settings: Settings::resolve(config, secret, context)? }))
}

impl Source for VsphereSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Vsphere
    }

    fn test(&self, cancel: &Cancel) -> Result<TestReport> {
        let settings = &self.settings;
        let mut warnings = Vec::new();
        let product = session::with(settings, cancel, |vim| {
            for (work, list) in [("backups", &privilege::BACKUP[..]), ("restores", &privilege::RESTORE[..])] {
                let wanted: Vec<&str> = list.iter().map(|(id, _)| *id).collect();
                let missing = vim.missing_privileges(vim.root_folder(), &wanted, cancel)?;
                for (id, name) in list.iter().filter(|(id, _)| missing.iter().any(|missing| missing == id)) {
                    warnings.push(format!("the account lacks a privilege that {work} need: {name} ({id})"));
                }
            }
            Ok(vim.about().full_name.clone())
        })?;
        warnings.extend(settings.library.look(&settings.run_dir, cancel)?);
        Ok(TestReport { product, warnings })
    }

    fn discover(&self, cancel: &Cancel) -> Result<Vec<DiscoveredVm>> {
        session::with(&self.settings, cancel, |vim| discover::all(vim, cancel))
    }

    fn inspect(&self, vm: &VmRef, cancel: &Cancel) -> Result<DiscoveredVm> {
        session::with(&self.settings, cancel, |vim| {
            discover::one(vim, &discover::look(vim, &vm.instance_uuid, cancel)?, cancel)
        })
    }

    fn freeze(&self, request: &FreezeRequest, journal: &Arc<dyn Journal>, cancel: &Cancel) -> Result<Box<dyn Frozen>> {
        frozen::freeze(&self.settings, request, journal, cancel)
    }

    fn retire(
        &self,
        _vm: &VmRef,
        _keep: &[TrackingToken],
        _journal: &Arc<dyn Journal>,
        _cancel: &Cancel,
    ) -> Result<Vec<TrackingToken>> {
        // A changeId is a number that the host remembers by itself: nothing of ours is there that could be deleted.
        Ok(Vec::new())
    }

    fn reset_tracking(
        &self,
        request: &FreezeRequest,
        _fresh: &[TrackingToken],
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<TrackingReset> {
        tracking::reset(&self.settings, request, journal, cancel)
    }

    fn reap(&self, artefact: &Artefact, cancel: &Cancel) -> Result<bool> {
        match artefact.kind {
            ArtefactKind::ChildProcess => kit::reap(artefact),
            ArtefactKind::Snapshot => done(snapshot::reap(&self.settings, artefact, cancel)),
            ArtefactKind::Machine => done(restore::reap(&self.settings, artefact, cancel)),
            ArtefactKind::BackupJob | ArtefactKind::Checkpoint | ArtefactKind::FrozenGuest | ArtefactKind::File => {
                Ok(true)
            }
        }
    }

    fn leftovers(&self, cancel: &Cancel) -> Result<Vec<Artefact>> {
        leftover::find(&self.settings, cancel)
    }

    fn remote_target(&self) -> Option<&dyn RemoteTarget> {
        Some(self)
    }
}

/// What undoing came to. Somebody else works on the machine, or it goes on without us: then the next look will tell.
fn done(undone: Result<()>) -> Result<bool> {
    match undone {
        Ok(()) => Ok(true),
        Err(error) if error.kind.is_transient() || error.kind == Kind::Cancelled => Ok(false),
        Err(error) => Err(error),
    }
}

impl RemoteTarget for VsphereSource {
    fn create(
        &self,
        new: &NewRemoteVm<'_>,
        task_id: &TaskId,
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Box<dyn Restoring>> {
        restore::create(&self.settings, new, task_id, journal, cancel)
    }

    fn onto(
        &self,
        vm: &VmRef,
        disks: &[RemoteDisk],
        task_id: &TaskId,
        journal: &Arc<dyn Journal>,
        cancel: &Cancel,
    ) -> Result<Box<dyn Overwriting>> {
        onto::onto(&self.settings, vm, disks, task_id, journal, cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Roots;
    use serde_json::json;

    fn settings(config: serde_json::Value, secret: &str) -> Result<Settings> {
        let context = SourceContext {
            source_id: "src-1".parse().unwrap(),
            deployment_id: "dep-1".parse().unwrap(),
            run_dir: "/run/x".into(),
            roots: Roots::default(),
        };
        Settings::resolve(crate::open::settings(SourceKind::Vsphere, &config)?, Some(secret), context)
    }

    #[test]
    fn settings_are_resolved_or_refused() {
        let secret = r#"{"username": "u", "password": "secret-word"}"#;
        let found = settings(json!({"host": "vc", "thumbprint": "ab".repeat(32)}), secret).unwrap();
        assert!(matches!(found.trust, Trust::Pin(_)));
        assert!(!format!("{found:?}").contains("secret-word"));
        assert_eq!(settings(json!({"host": "vc"}), secret).unwrap().trust, Trust::Public);
        for one in [
            "vc.example",
            " VC.Example",
            "vc.example:443",
            "vc.example.",
            "https://vc.example",
            "vc.example/sdk",
            "https://VC.example:443/ui/",
        ] {
            assert_eq!(settings(json!({"host": one}), secret).unwrap().server(), "vc.example");
        }
        assert_eq!(settings(json!({"host": "vc:8443"}), secret).unwrap().server(), "vc:8443");
        for (bad, secret) in [
            (json!({}), secret),
            (json!({"host": "vc", "hsot": "vc"}), secret),
            (json!({"host": "http://vc"}), secret),
            (json!({"host": "vc", "thumbprint": "ab".repeat(20)}), secret),
            (json!({"host": "vc", "sessions_max": 0}), secret),
            (json!({"host": "vc", "vddk_libdir": "relative"}), secret),
            (json!({"host": "vc", "transports": "nbd;x"}), secret),
            (json!({"host": "vc"}), r#"{"password": "secret-word"}"#),
            (json!({"host": "vc"}), ""),
            (json!({"host": "vc"}), r#"{"password": "secret-word", "x"#),
        ] {
            let error = settings(bad.clone(), secret).unwrap_err();
            assert!(error.kind == Kind::Invalid && !error.to_string().contains("secret-word"), "{bad}: {error}");
        }
    }
}
