//! `sendense source`.

use super::path_text;
use crate::args::{NbdArgs, SourceAddCommand, SourceCommand, SourceUpdate};
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::secret::{account, certificates};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{DiscoveryReply, DoneReply, SourceListReply, SourceReply, TestReply};
use sendense_api::{CreateSource, Credentials, ListQuery, NbdOptions, Source, UpdateSource};
use sendense_types::SourceKind;
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: SourceCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        SourceCommand::Add(command) => {
            let source = client.create_source(&body(command)?).await?;
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

fn body(command: SourceAddCommand) -> Result<CreateSource> {
    let source = |name, kind, address| CreateSource {
        name,
        kind,
        address,
        credentials: None,
        thumbprint: None,
        scratch_path: None,
        scratch_floor_bytes: None,
        nbd: None,
        running_tasks_max: None,
    };
    Ok(match command {
        SourceAddCommand::Image { name, path } => source(name, SourceKind::Image, path_text(&path)?),
        SourceAddCommand::Nbd { name, uri, nbd, tls } => CreateSource {
            nbd: merged(None, nbd),
            credentials: certificates(&tls)?,
            ..source(name, SourceKind::Nbd, uri)
        },
        SourceAddCommand::Libvirt { name, uri, scratch, scratch_floor } => CreateSource {
            scratch_path: scratch.as_deref().map(path_text).transpose()?,
            scratch_floor_bytes: scratch_floor.map(|size| size.as_u64()),
            ..source(name, SourceKind::Libvirt, uri)
        },
    })
}

async fn update(context: &Context, change: SourceUpdate) -> Result<Source> {
    let SourceUpdate { source, new_name, address, nbd, tls, password, forget_credentials } = change;
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
    let change =
        UpdateSource { name: new_name, address, credentials, nbd: merged(before.nbd, nbd), ..UpdateSource::default() };
    Ok(context.client.update_source(&source, &change).await?)
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
