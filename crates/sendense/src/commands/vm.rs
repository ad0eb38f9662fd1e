//! `sendense vm`.

use crate::args::VmCommand;
use crate::context::Context;
use crate::output::{json, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::VmFilter;
use sendense_api::reply::{VmListReply, VmReply};

/// Runs the command.
pub async fn run(context: &Context, command: VmCommand) -> Result<u8> {
    match command {
        VmCommand::List { source } => {
            let page = context.client.list_vms(&VmFilter { source_id: source, ..VmFilter::default() }).await?;
            if context.json {
                json(&VmListReply::from(page))?;
            } else {
                show(tables::vms(&page.items));
                if page.items.len() as u64 != page.total {
                    say(format!("{} of {} machines", page.items.len(), page.total));
                }
            }
        }
        VmCommand::Show { vm } => {
            let vm = context.client.get_vm(&vm).await?;
            if context.json {
                json(&VmReply::new(vm))?;
            } else {
                for table in tables::vm(&vm) {
                    show(table);
                }
            }
        }
    }
    Ok(0)
}
