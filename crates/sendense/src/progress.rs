//! Waiting for a task: a live bar on a terminal, silence elsewhere.

use crate::exit::{INTERRUPTED, WorkFailed};
use crate::output::say;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use sendense_api::{Client, Task};
use sendense_types::{TaskId, TaskState};
use std::io::IsTerminal;
use std::time::Duration;

/// How waiting ended.
pub enum Waited {
    /// The task has ended, well or not.
    Ended(Box<Task>),
    /// The person stopped waiting; the task goes on.
    Stopped,
}

/// Waits for a task's end. Ctrl-C stops the waiting, not the task.
pub async fn wait(client: &Client, task_id: &TaskId) -> Result<Waited> {
    let bar = bar();
    let waited = tokio::select! {
        task = client.wait_for_task(task_id, |task| show(&bar, task)) => Waited::Ended(Box::new(task?)),
        _ = tokio::signal::ctrl_c() => Waited::Stopped,
    };
    bar.finish_and_clear();
    Ok(waited)
}

/// Waits and turns a task that did not complete into an error; `what` names it.
pub async fn wait_completed(client: &Client, task_id: &TaskId, what: &str) -> Result<Result<Box<Task>, u8>> {
    match wait(client, task_id).await? {
        Waited::Stopped => {
            say(format!(
                "{what} goes on; look with 'sendense task show {task_id}', stop it with 'sendense task cancel {task_id}'"
            ));
            Ok(Err(INTERRUPTED))
        }
        Waited::Ended(task) if task.state == TaskState::Completed => Ok(Ok(task)),
        Waited::Ended(task) => {
            let (message, code) = match task.error {
                Some(error) if error.details.is_empty() => (error.message, error.code.to_string()),
                Some(error) => (format!("{}: {}", error.message, error.details), error.code.to_string()),
                None => (format!("ended as {}", task.state), task.state.to_string()),
            };
            Err(WorkFailed { what: what.to_owned(), message, code }.into())
        }
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(100);
    // A template that does not parse is a mistake in this line, and the default style still shows progress.
    if let Ok(style) = ProgressStyle::with_template("{msg:24} [{bar:32}] {bytes}/{total_bytes} {elapsed_precise}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, task: &Task) {
    if let Some(total) = task.bytes_total {
        bar.set_length(total);
        bar.set_position(task.bytes_done);
    }
    let speed = match task.transfer_speed_bps {
        0 => String::new(),
        speed => format!(" {}/s", crate::output::bytes(speed)),
    };
    bar.set_message(format!("{}{speed}", task.phase.as_deref().unwrap_or(task.state.as_str())));
}
