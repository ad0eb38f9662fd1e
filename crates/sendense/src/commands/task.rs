//! `sendense task`.

use crate::args::TaskCommand;
use crate::context::Context;
use crate::output::{json, line, moment, say, table as show};
use crate::{progress, tables};
use anyhow::Result;
use sendense_api::reply::{LogReply, TaskListReply, TaskReply};
use sendense_api::{ListQuery, LogEntry, Page, TaskFilter};

/// Runs the command.
pub async fn run(context: &Context, command: TaskCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        TaskCommand::List => {
            let page = client.list_tasks(&TaskFilter::default()).await?;
            if context.json {
                json(&TaskListReply::from(page))?;
            } else {
                show(tables::tasks(&page.items));
            }
        }
        TaskCommand::Show { task_id } => {
            let task = client.get_task(&task_id).await?;
            if context.json { json(&TaskReply::new(task))? } else { show(tables::tasks(&[task])) }
        }
        TaskCommand::Log { task_id } => {
            let page = client.task_log(&task_id, &ListQuery::default()).await?;
            print_log(context, page)?;
        }
        TaskCommand::Cancel { task_id } => {
            let task = client.cancel_task(&task_id).await?;
            if context.json { json(&TaskReply::new(task))? } else { say(format!("asked task {task_id} to stop")) }
        }
        TaskCommand::Wait { task_id } => {
            match progress::wait_completed(client, &task_id, &format!("task {task_id}")).await? {
                Err(code) => return Ok(code),
                Ok(task) if context.json => json(&TaskReply::new(*task))?,
                Ok(task) => show(tables::tasks(&[*task])),
            }
        }
    }
    Ok(0)
}

/// Prints a log, oldest line first.
pub fn print_log(context: &Context, page: Page<LogEntry>) -> Result<()> {
    if context.json {
        return json(&LogReply::from(page));
    }
    for entry in &page.items {
        line(format!("{} {:5} {}", moment(entry.at), entry.level.as_str(), entry.message));
    }
    Ok(())
}
