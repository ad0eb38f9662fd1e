//! Sources: making them known, testing them, listing their machines.

use super::{App, Caller, vms};
use crate::core::{Core, blocking};
use crate::fault::{OrProblem, Result, internal, invalid};
use sendense_api::{
    CreateSource, Credentials, Discovery, ListQuery, NbdOptions, Page, Role, Secret, Source, TestReport, UpdateSource,
    VsphereOptions,
};
use sendense_block::Cancel;
use sendense_catalog as catalog;
use sendense_types::{Name, NameError, Problem, ProblemCode, SourceId, SourceKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a test or a discovery may take before its caller is told that the source does not answer. A vCenter of
/// 5,000 machines lists in a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What the catalog keeps of a source beside its name: everything but the credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_floor_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<NbdOptions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsphere: Option<VsphereOptions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_tasks_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Settings {
    /// Reads a row.
    pub fn read(config: &Value) -> Result<Self> {
        Self::deserialize(config).map_err(|error| internal("a source's settings cannot be read", error.to_string()))
    }

    fn write(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| internal("a source's settings cannot be written", error.to_string()))
    }

    /// The settings as the source's kind wants them.
    pub fn for_source(&self, kind: SourceKind) -> Result<Value> {
        let unused = |name: &str, set: bool| {
            if set { Err(invalid(format!("{name} means nothing for sources of kind {kind}"))) } else { Ok(()) }
        };
        if kind != SourceKind::Libvirt {
            unused("scratch_path", self.scratch_path.is_some())?;
            unused("scratch_floor_bytes", self.scratch_floor_bytes.is_some())?;
        }
        if kind != SourceKind::Nbd {
            unused("nbd", self.nbd.is_some())?;
        }
        if kind != SourceKind::Vsphere {
            unused("thumbprint", self.thumbprint.is_some())?;
            unused("vsphere", self.vsphere.is_some())?;
        }
        let mut config = match kind {
            SourceKind::Image => json!({ "path": self.address }),
            SourceKind::Nbd | SourceKind::Libvirt => json!({ "uri": self.address }),
            SourceKind::Vsphere => json!({ "host": self.address }),
        };
        let nbd = self.nbd.clone().unwrap_or_default();
        let vsphere = self.vsphere.clone().unwrap_or_default();
        for (name, value) in [
            ("dirty_bitmap", nbd.dirty_bitmap.map(Value::from)),
            ("trust_bitmap", nbd.trust_bitmap.then(|| json!(true))),
            ("bitmap_epoch", nbd.bitmap_epoch.map(Value::from)),
            ("connections", nbd.connections.map(Value::from)),
            ("tls_server_name", nbd.tls_server_name.map(Value::from)),
            ("vddk_libdir", vsphere.vddk_libdir.map(Value::from)),
            ("nbdkit_plugin", vsphere.nbdkit_plugin.map(Value::from)),
            ("transports", vsphere.transports.map(Value::from)),
            ("sessions_max", vsphere.sessions_max.map(Value::from)),
            ("proxy", vsphere.proxy.map(Value::from)),
            ("quiesce_or_fail", vsphere.quiesce_or_fail.then(|| json!(true))),
            ("thumbprint", self.thumbprint.as_ref().map(|text| json!(text))),
            ("scratch_dir", self.scratch_path.as_ref().map(|text| json!(text))),
            ("scratch_floor_bytes", self.scratch_floor_bytes.map(|bytes| json!(bytes))),
        ] {
            if let (Some(value), Some(config)) = (value, config.as_object_mut()) {
                config.insert(name.to_owned(), value);
            }
        }
        Ok(config)
    }
}

fn name_of(text: &str) -> Result<Name> {
    text.parse().map_err(|error: NameError| invalid(error.to_string()))
}

impl App {
    /// Makes a source known. Nothing is connected (`test` does that), save to ask a vCenter for the certificate that a person
    /// has to confirm.
    pub async fn create_source(&self, caller: &Caller, new: CreateSource) -> Result<Source> {
        caller.require(Role::Admin)?;
        let name = name_of(&new.name)?;
        let settings = Settings {
            address: new.address,
            thumbprint: new.thumbprint,
            scratch_path: new.scratch_path,
            scratch_floor_bytes: new.scratch_floor_bytes,
            nbd: new.nbd,
            vsphere: new.vsphere,
            running_tasks_max: new.running_tasks_max,
            node: new.node,
        };
        if settings.address.is_empty() {
            return Err(invalid("address is required"));
        }
        if let Some(node) = &settings.node {
            self.check_node(node, new.kind, &settings, new.credentials.as_ref()).await?;
        }
        if new.kind == SourceKind::Vsphere {
            let vouched = new.credentials.as_ref().is_some_and(|credentials| credentials.tls_ca.is_some());
            if settings.thumbprint.is_none() && !vouched {
                return Err(unconfirmed(&name, &settings).await);
            }
        }
        let source_id = SourceId::generate();
        let secret = self.seal(&source_id, new.kind, new.credentials.as_ref())?;
        let new = catalog::NewSource { source_id, name, kind: new.kind, config: settings.write()?, secret };
        self.check_settings(&row_of(&new, self.core.now()))?;
        let row = self.core.catalog.sources().create(&new, self.core.now()).await.or_problem()?;
        tracing::info!(source_id = %row.source_id, kind = %row.kind, by = %caller.identity, "source made known");
        self.source_out(row).await
    }

    /// Sources by name.
    pub async fn list_sources(&self, page: ListQuery) -> Result<Page<Source>> {
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (rows, total) = self.core.catalog.sources().list(page).await.or_problem()?;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            items.push(self.source_out(row).await?);
        }
        Ok(Page { items, total })
    }

    /// One source, by its id or name.
    pub async fn get_source(&self, id_or_name: &str) -> Result<Source> {
        self.source_out(self.source(id_or_name).await?).await
    }

    /// Changes a source; what is left out stays.
    pub async fn update_source(&self, caller: &Caller, id_or_name: &str, change: UpdateSource) -> Result<Source> {
        caller.require(Role::Admin)?;
        let row = self.source(id_or_name).await?;
        let before = Settings::read(&row.config)?;
        let settings = Settings {
            address: change.address.unwrap_or(before.address),
            thumbprint: change.thumbprint.or(before.thumbprint),
            scratch_path: change.scratch_path.or(before.scratch_path),
            scratch_floor_bytes: change.scratch_floor_bytes.or(before.scratch_floor_bytes),
            nbd: change.nbd.or(before.nbd),
            vsphere: change.vsphere.or(before.vsphere),
            running_tasks_max: change.running_tasks_max.or(before.running_tasks_max),
            node: before.node,
        };
        let secret = match &change.credentials {
            Some(credentials) => Some(self.seal(&row.source_id, row.kind, Some(credentials))?),
            None => None,
        };
        let name = change.name.as_deref().map(name_of).transpose()?;
        let changed = catalog::Source {
            config: settings.write()?,
            secret: secret.clone().unwrap_or_else(|| row.secret.clone()),
            ..row.clone()
        };
        self.check_settings(&changed)?;
        let change = catalog::SourceChange { name, config: Some(changed.config), secret };
        let row = self.core.catalog.sources().update(&row.source_id, &change).await.or_problem()?;
        tracing::info!(source_id = %row.source_id, by = %caller.identity, "source changed");
        self.source_out(row).await
    }

    /// Forgets a source. Its machines' backups stay.
    pub async fn delete_source(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Admin)?;
        let row = self.source(id_or_name).await?;
        if let Some(recovery_id) = self.core.recoveries.on_source(&row.source_id) {
            let details = format!("the machine of recovery {recovery_id} is on it; discard that first");
            return Err(Problem::new(ProblemCode::Conflict, "the source is in use", details));
        }
        let detached = self.core.catalog.sources().delete(&row.source_id).await.or_problem()?;
        tracing::info!(source_id = %row.source_id, detached, by = %caller.identity, "source removed");
        Ok(())
    }

    /// Connects to a source and tells what is there.
    pub async fn test_source(&self, caller: &Caller, id_or_name: &str) -> Result<TestReport> {
        caller.require(Role::Operator)?;
        let row = self.source(id_or_name).await?;
        let source = self.core.open_source(&row)?;
        let report = answer(&row.name, &Cancel::new(), move |cancel| source.test(cancel)).await?;
        Ok(TestReport { product: report.product, warnings: report.warnings })
    }

    /// Lists a source's machines and takes them into the catalog.
    pub async fn discover_source(&self, caller: &Caller, id_or_name: &str) -> Result<Discovery> {
        caller.require(Role::Operator)?;
        let (app, row) = (self.clone(), self.source(id_or_name).await?);
        self.to_the_end(async move { app.discover(row).await }).await
    }

    async fn discover(&self, row: catalog::Source) -> Result<Discovery> {
        let source = self.core.open_source(&row)?;
        let found = match answer(&row.name, &Cancel::new(), move |cancel| source.discover(cancel)).await {
            Ok(found) => found,
            Err(problem) => {
                // What was known stays known: a failed listing says nothing about machines.
                let noted = self.core.catalog.sources().note_failed_discovery(&row.source_id, &problem.message).await;
                if let Err(error) = noted {
                    tracing::debug!(source_id = %row.source_id, error = %error, "note a failed discovery");
                }
                return Err(problem);
            }
        };
        let told = found.iter().map(|vm| vms::discovered(row.kind, vm)).collect::<Result<Vec<_>>>()?;
        let now = self.core.now();
        let discovery = self.core.catalog.vms().upsert_discovered(&row.source_id, &told, now).await.or_problem()?;
        let mut rows = Vec::with_capacity(discovery.vm_context_ids.len());
        for id in &discovery.vm_context_ids {
            rows.push(self.core.catalog.vms().get(id).await.or_problem()?);
        }
        tracing::info!(source_id = %row.source_id, vms = rows.len(), added = discovery.added,
            bound = discovery.bound, vanished = discovery.vanished, "source discovered");
        Ok(Discovery {
            source_id: row.source_id,
            total: rows.len() as u64,
            added: discovery.added,
            missing: discovery.vanished,
            vms: self.vms_out(rows).await?,
        })
    }

    pub(super) async fn source(&self, id_or_name: &str) -> Result<catalog::Source> {
        self.core.catalog.sources().find(id_or_name).await.or_problem()
    }

    /// The credentials in the form that the source's kind wants, encrypted; none when there are none in them.
    fn seal(&self, id: &SourceId, kind: SourceKind, credentials: Option<&Credentials>) -> Result<Option<Vec<u8>>> {
        let Some(credentials) = credentials.filter(|credentials| **credentials != Credentials::default()) else {
            return Ok(None);
        };
        let sealed = self.core.sealer.seal(id.as_str(), &secret_text(kind, credentials)?);
        sealed
            .map(|envelope| Some(envelope.into_bytes()))
            .map_err(|error| internal("credentials cannot be sealed", error.to_string()))
    }

    /// The node that a source is to be bound to is a valid one, and has all it needs.
    async fn check_node(
        &self,
        node: &str,
        kind: SourceKind,
        settings: &Settings,
        credentials: Option<&Credentials>,
    ) -> Result<()> {
        if self.core.catalog.nodes().by_name(node).await.or_problem()?.is_none() {
            return Err(invalid(format!("node: no valid node is named {node:?}")));
        }
        let vouched = credentials.is_some_and(|credentials| credentials.tls_ca.is_some());
        if kind == SourceKind::Vsphere && settings.thumbprint.is_none() && !vouched {
            return Err(invalid("thumbprint is required: the hub cannot look at a certificate behind a node"));
        }
        Ok(())
    }

    /// Settings that the source's kind does not take are refused before they are kept. Paths are looked at, too.
    fn check_settings(&self, row: &catalog::Source) -> Result<()> {
        let settings = Settings::read(&row.config)?;
        // Paths behind a node are the node's to look at.
        if row.kind == SourceKind::Image && settings.node.is_none() {
            self.core.check_host_path(settings.address.as_ref(), false)?;
        }
        // Nothing is connected here, so what is found wrong is in the request: a kind that this build does not have, say.
        self.core.open_source(row).map(drop).map_err(|problem| match problem.code {
            ProblemCode::SourceFailed => Problem { code: ProblemCode::InvalidInput, ..problem },
            _ => problem,
        })
    }

    async fn source_out(&self, row: catalog::Source) -> Result<Source> {
        let settings = Settings::read(&row.config)?;
        let of_source =
            catalog::VmFilter { source_id: Some(row.source_id.clone()), present: Some(true), ..Default::default() };
        let one = catalog::Page { limit: 1, offset: 0 };
        let (_, vm_count) = self.core.catalog.vms().list(&of_source, one).await.or_problem()?;
        Ok(Source {
            source_id: row.source_id,
            name: row.name.into(),
            kind: row.kind,
            address: settings.address,
            has_credentials: row.secret.is_some(),
            thumbprint: settings.thumbprint,
            scratch_path: settings.scratch_path,
            scratch_floor_bytes: settings.scratch_floor_bytes,
            nbd: settings.nbd,
            vsphere: settings.vsphere,
            running_tasks_max: settings.running_tasks_max,
            node: settings.node,
            vm_count,
            discovered_at: row.last_discovered_at,
            created_at: row.created_at,
        })
    }
}

/// What is encrypted and later given to the source: for `nbd` the PEM texts, for others account and password. Fields that
/// mean nothing to the kind are refused rather than kept in vain.
fn secret_text(kind: SourceKind, credentials: &Credentials) -> Result<String> {
    let Credentials { username, password, tls_ca, tls_certificate, tls_key } = credentials;
    let unused = |fields: &[(&str, bool)]| match fields.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(invalid(format!("credentials.{name} means nothing for sources of kind {kind}"))),
        None => Ok(()),
    };
    if kind == SourceKind::Nbd {
        unused(&[("username", username.is_some()), ("password", password.is_some())])?;
        let pem = |text: &Option<Secret>| text.as_ref().map(|secret| secret.expose().to_owned());
        return Ok(json!({ "ca": pem(tls_ca), "certificate": pem(tls_certificate), "key": pem(tls_key) }).to_string());
    }
    unused(&[
        ("tls_ca", tls_ca.is_some() && kind != SourceKind::Vsphere),
        ("tls_certificate", tls_certificate.is_some()),
        ("tls_key", tls_key.is_some()),
    ])?;
    let Some(password) = password else { return Err(invalid("credentials.password is required")) };
    if let Some(ca) = tls_ca {
        let secret = json!({ "username": username, "password": password.expose(), "ca": ca.expose() });
        return Ok(secret.to_string());
    }
    Ok(json!({ "username": username, "password": password.expose() }).to_string())
}

/// What a vCenter shows that nobody has confirmed yet, for a person to compare with what its administrator says.
async fn unconfirmed(name: &Name, settings: &Settings) -> Problem {
    let address = settings.address.clone();
    let proxy = settings.vsphere.as_ref().and_then(|options| options.proxy.clone());
    let ask = move |cancel: &Cancel| sendense_source::vsphere::certificate(&address, proxy.as_deref(), cancel);
    match answer(name, &Cancel::new(), ask).await {
        Ok(shown) => Problem::new(
            ProblemCode::CertificateUnconfirmed,
            format!("the certificate of {} must be confirmed", settings.address),
            shown.fingerprint().to_string(),
        ),
        Err(problem) => problem,
    }
}

fn row_of(new: &catalog::NewSource, now: sendense_types::Timestamp) -> catalog::Source {
    catalog::Source {
        source_id: new.source_id.clone(),
        name: new.name.clone(),
        kind: new.kind,
        config: new.config.clone(),
        secret: new.secret.clone(),
        created_at: now,
        last_discovered_at: None,
        last_error: None,
    }
}

/// Asks a source something and waits for its answer, but not for ever.
pub(crate) async fn answer<T: Send + 'static>(
    name: &Name,
    cancel: &Cancel,
    ask: impl FnOnce(&Cancel) -> sendense_source::Result<T> + Send + 'static,
) -> Result<T> {
    let asked = cancel.clone();
    let answer = blocking(move || ask(&asked));
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer?.or_problem(),
        Err(_) => {
            // Ends the thread that waits, too. Whoever passed the cancellation has failed by now.
            cancel.cancel();
            let details = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(Problem::new(ProblemCode::SourceUnavailable, format!("source {name} does not answer"), details))
        }
    }
}

/// One machine as it is at its source now, taken into the catalog.
pub(crate) async fn refresh(
    core: &Core,
    row: &catalog::Source,
    vm: &catalog::VmContext,
    cancel: &Cancel,
) -> Result<(sendense_source::DiscoveredVm, catalog::VmContext)> {
    let source = core.open_source(row)?;
    let reference = sendense_source::VmRef { instance_uuid: vm.instance_uuid.clone(), name: vm.vm_name.to_string() };
    let found = answer(&row.name, cancel, move |cancel| source.inspect(&reference, cancel)).await?;
    let told = vms::discovered(row.kind, &found)?;
    let id = core.catalog.vms().upsert_one(&row.source_id, &told, core.now()).await.or_problem()?;
    if id != vm.vm_context_id {
        let details = format!("{} was asked for, {id} was found", vm.vm_context_id);
        return Err(Problem::new(ProblemCode::Conflict, "the machine is known under another id now", details));
    }
    Ok((found, core.catalog.vms().get(&id).await.or_problem()?))
}
