//! `sendense vm`.

use crate::args::{TagChange, VmCommand};
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::tables;
use anyhow::Result;
use sendense_api::reply::{VmListReply, VmReply};
use sendense_api::{ChangeTags, VmFilter};

/// Runs the command.
pub async fn run(context: &Context, command: VmCommand) -> Result<u8> {
    match command {
        VmCommand::List { source, tag, overdue, unprotected } => {
            let filter = VmFilter { source_id: source, tag, overdue, unprotected, ..VmFilter::default() };
            let page = context.client.list_vms(&filter).await?;
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
        VmCommand::Tag { vm, changes } => {
            let mut change = ChangeTags::default();
            for one in changes {
                match one {
                    TagChange::Add(tag) => change.add.insert(tag),
                    TagChange::Remove(tag) => change.remove.insert(tag),
                };
            }
            let vm = context.client.change_tags(&vm, &change).await?;
            if context.json {
                json(&VmReply::new(vm))?;
            } else {
                line(tables::words(&vm.tags));
            }
        }
    }
    Ok(0)
}
