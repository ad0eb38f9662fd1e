//! `sendense source`.

use super::backup::confirmed;
use super::path_text;
use crate::args::{LimitArgs, NbdArgs, SourceAddArgs, SourceAddCommand, SourceCommand, SourceUpdate, VsphereArgs};
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::secret::{account, certificates, from_file};
use crate::tables;
use anyhow::{Result, bail};
use sendense_api::reply::{DiscoveryReply, DoneReply, SourceListReply, SourceReply, TestReply};
use sendense_api::{
    ClientError, CreateSource, Credentials, ListQuery, NbdOptions, Source, UpdateSource, VsphereOptions,
};
use sendense_types::{ProblemCode, SourceKind};
use std::io::IsTerminal;
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: SourceCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        SourceCommand::Add(command) => {
            let source = add(context, body(*command)?).await?;
            if context.json {
                json(&SourceReply::new(source))?;
            } else {
                line(format!("added source {} ({})", source.name, source.source_id));
                say(format!("look for its machines with 'sendense source discover {}'", source.name));
            }
        }
        SourceCommand::List => {
            let page = client.list_sources(&ListQuery::default()).await?;
            if context.json {
                json(&SourceListReply::from(page))?;
            } else {
                show(tables::sources(&page.items));
            }
        }
        SourceCommand::Show { source } => {
            let source = client.get_source(&source).await?;
            if context.json {
                json(&SourceReply::new(source))?;
            } else {
                show(tables::source(&source));
            }
        }
        SourceCommand::Test { source } => {
            let report = client.test_source(&source).await?;
            if context.json {
                json(&TestReply::new(report))?;
            } else {
                line(report.product);
                for warning in &report.warnings {
                    say(format!("warning: {warning}"));
                }
            }
        }
        SourceCommand::Discover { source } => {
            let discovery = client.discover_source(&source).await?;
            if context.json {
                json(&DiscoveryReply::from(discovery))?;
            } else {
                show(tables::vms(&discovery.vms));
                say(format!("{} machines, {} new, {} missing", discovery.total, discovery.added, discovery.missing));
            }
        }
        SourceCommand::Update(change) => {
            let source = update(context, *change).await?;
            if context.json {
                json(&SourceReply::new(source))?;
            } else {
                show(tables::source(&source));
            }
        }
        SourceCommand::Delete { source } => {
            client.delete_source(&source).await?;
            if context.json {
                json(&DoneReply::new(format!("source {source} forgotten")))?;
            } else {
                say(format!("source {source} is forgotten; its machines' backups stay"));
            }
        }
    }
    Ok(0)
}

/// Makes it known; where nobody has confirmed its certificate yet, the person is asked.
async fn add(context: &Context, mut new: CreateSource) -> Result<Source> {
    let unconfirmed = match context.client.create_source(&new).await {
        Err(ClientError::Problem { problem, .. })
            if problem.known_code() == Some(ProblemCode::CertificateUnconfirmed) =>
        {
            problem
        }
        answer => return Ok(answer?),
    };
    let shown = unconfirmed.details;
    if context.json || !std::io::stdin().is_terminal() {
        bail!(
            "nobody has confirmed the certificate of {}; compare its SHA-256 with what its administrator says, and give it \
             with --thumbprint: {shown}",
            new.address
        );
    }
    say(format!("{} shows a certificate with this SHA-256:", new.address));
    say(format!("  {shown}"));
    if !confirmed("Is it the one that its administrator names?", "say it with --thumbprint")? {
        bail!("the certificate was not confirmed; nothing was added");
    }
    new.thumbprint = Some(shown);
    Ok(context.client.create_source(&new).await?)
}

fn body(args: SourceAddArgs) -> Result<CreateSource> {
    let SourceAddArgs { node, command } = args;
    let source = |name, kind, address, limits: LimitArgs| CreateSource {
        name,
        kind,
        address,
        credentials: None,
        thumbprint: None,
        scratch_path: None,
        scratch_floor_bytes: None,
        nbd: None,
        vsphere: None,
        running_tasks_max: limits.running_tasks_max,
        node: node.clone(),
    };
    Ok(match command {
        SourceAddCommand::Image { name, path, limits } => source(name, SourceKind::Image, path_text(&path)?, limits),
        SourceAddCommand::Nbd { name, uri, nbd, tls, limits } => CreateSource {
            nbd: merged(None, nbd),
            credentials: certificates(&tls)?,
            ..source(name, SourceKind::Nbd, uri, limits)
        },
        SourceAddCommand::Vsphere { name, address, thumbprint, tls_ca, vsphere, password, limits } => {
            let account = account(password)?;
            let Some(mut credentials) = account else { bail!("an account is needed: --username") };
            credentials.tls_ca = tls_ca.as_deref().map(from_file).transpose()?;
            CreateSource {
                credentials: Some(credentials),
                thumbprint,
                vsphere: merged_vsphere(None, vsphere),
                ..source(name, SourceKind::Vsphere, address, limits)
            }
        }
        SourceAddCommand::Libvirt { name, uri, scratch, scratch_floor, limits } => CreateSource {
            scratch_path: scratch.as_deref().map(path_text).transpose()?,
            scratch_floor_bytes: scratch_floor.map(|size| size.as_u64()),
            ..source(name, SourceKind::Libvirt, uri, limits)
        },
    })
}

async fn update(context: &Context, change: SourceUpdate) -> Result<Source> {
    let SourceUpdate { source, new_name, address, thumbprint, vsphere, nbd, tls, password, limits, forget_credentials } =
        change;
    let before = context.client.get_source(&source).await?;
    let credentials = if forget_credentials {
        Some(Credentials::default())
    } else {
        match account(password)? {
            Some(account) => Some(account),
            None => certificates(&tls)?,
        }
    };
    // A person gives a folder as they see it; the hub wants it absolute.
    let address = match (before.kind, address) {
        (SourceKind::Image, Some(path)) => Some(path_text(Path::new(&path))?),
        (_, address) => address,
    };
    let change = UpdateSource {
        name: new_name,
        address,
        credentials,
        thumbprint,
        nbd: merged(before.nbd, nbd),
        vsphere: merged_vsphere(before.vsphere, vsphere),
        running_tasks_max: limits.running_tasks_max,
        ..UpdateSource::default()
    };
    Ok(context.client.update_source(&source, &change).await?)
}

/// The options of a vCenter with what was said put over what was there; none when nothing was said.
fn merged_vsphere(before: Option<VsphereOptions>, said: VsphereArgs) -> Option<VsphereOptions> {
    let VsphereArgs { vddk_libdir, nbdkit_plugin, transports, sessions_max, proxy, quiesce_or_fail } = said;
    let before = before.unwrap_or_default();
    let after = VsphereOptions {
        vddk_libdir: vddk_libdir.or(before.vddk_libdir.clone()),
        nbdkit_plugin: nbdkit_plugin.or(before.nbdkit_plugin.clone()),
        transports: transports.or(before.transports.clone()),
        sessions_max: sessions_max.or(before.sessions_max),
        proxy: proxy.or(before.proxy.clone()),
        quiesce_or_fail: quiesce_or_fail.unwrap_or(before.quiesce_or_fail),
    };
    (after != before).then_some(after)
}

/// The options with what was said put over what was there; none when nothing was said.
fn merged(before: Option<NbdOptions>, said: NbdArgs) -> Option<NbdOptions> {
    let NbdArgs { dirty_bitmap, trust_bitmap, bitmap_epoch, connections, tls_server_name } = said;
    let before = before.unwrap_or_default();
    let after = NbdOptions {
        dirty_bitmap: dirty_bitmap.or(before.dirty_bitmap.clone()),
        trust_bitmap: trust_bitmap.unwrap_or(before.trust_bitmap),
        // An epoch means nothing without trust, and the hub would refuse it.
        bitmap_epoch: bitmap_epoch.or(before.bitmap_epoch.clone()).filter(|_| trust_bitmap != Some(false)),
        connections: connections.or(before.connections),
        tls_server_name: tls_server_name.or(before.tls_server_name.clone()),
    };
    (after != before).then_some(after)
}
