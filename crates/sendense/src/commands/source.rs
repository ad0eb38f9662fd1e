//! `sendense source`.

use super::path_text;
use crate::args::{SourceAddCommand, SourceCommand};
use crate::context::Context;
use crate::output::{json, moment, or_dash, say};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{DiscoveryReply, DoneReply, SourceListReply, SourceReply, TestReply};
use sendense_api::{CreateSource, ListQuery};
use sendense_types::SourceKind;

/// Runs the command.
pub async fn run(context: &Context, command: SourceCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        SourceCommand::Add(command) => {
            let source = client.create_source(&body(command)?).await?;
            if context.json {
                json(&SourceReply::new(source))?;
            } else {
                println!("added source {} ({})", source.name, source.source_id);
                say(format!("look for its machines with 'sendense source discover {}'", source.name));
            }
        }
        SourceCommand::List => {
            let page = client.list_sources(&ListQuery::default()).await?;
            if context.json {
                json(&SourceListReply::from(page))?;
            } else {
                println!("{}", tables::sources(&page.items));
            }
        }
        SourceCommand::Show { source } => {
            let source = client.get_source(&source).await?;
            if context.json {
                json(&SourceReply::new(source))?;
            } else {
                println!(
                    "{}",
                    tables::facts(vec![
                        ("source", format!("{} ({})", source.name, source.source_id)),
                        ("kind", source.kind.to_string()),
                        ("address", source.address.clone()),
                        ("credentials", if source.has_credentials { "stored" } else { "none" }.into()),
                        ("scratch", source.scratch_path.clone().unwrap_or_default()),
                        ("vms", source.vm_count.to_string()),
                        ("discovered", or_dash(source.discovered_at.map(moment))),
                    ])
                );
            }
        }
        SourceCommand::Test { source } => {
            let report = client.test_source(&source).await?;
            if context.json {
                json(&TestReply::new(report))?;
            } else {
                println!("{}", report.product);
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
                println!("{}", tables::vms(&discovery.vms));
                say(format!("{} machines, {} new, {} missing", discovery.total, discovery.added, discovery.missing));
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
        running_tasks_max: None,
    };
    Ok(match command {
        SourceAddCommand::Image { name, path } => source(name, SourceKind::Image, path_text(&path)?),
        SourceAddCommand::Nbd { name, uri } => source(name, SourceKind::Nbd, uri),
        SourceAddCommand::Libvirt { name, uri, scratch, scratch_floor } => CreateSource {
            scratch_path: scratch.as_deref().map(path_text).transpose()?,
            scratch_floor_bytes: scratch_floor.map(|size| size.as_u64()),
            ..source(name, SourceKind::Libvirt, uri)
        },
    })
}
