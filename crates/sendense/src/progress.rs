//! Waiting for a task: a live bar on a terminal, silence elsewhere.

use crate::exit::{INTERRUPTED, WorkFailed};
use crate::output::{bytes, duration, say};
use crate::plain::plain;
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
            let (message, details, code) = match task.error {
                Some(error) => (error.message, error.details, error.code.to_string()),
                None => (format!("ended as {}", task.state), String::new(), task.state.to_string()),
            };
            Err(WorkFailed { what: what.to_owned(), message, details, code }.into())
        }
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    style(&bar, "{spinner} {prefix} {elapsed}");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A template that does not parse is a mistake in this file, and the default style still shows progress.
fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

fn show(bar: &ProgressBar, task: &Task) {
    bar.set_prefix(plain(task.phase.as_deref().unwrap_or(task.state.as_str())).into_owned());
    let Some(total) = task.bytes_total else { return };
    if bar.length() != Some(total) {
        bar.set_length(total);
        // The bar takes what the words leave of the terminal's width, and nothing when they leave nothing.
        style(bar, "{prefix} [{wide_bar}] {percent}% {binary_bytes}/{binary_total_bytes} {msg}");
    }
    bar.set_position(task.bytes_done);
    bar.set_message(match (task.transfer_speed_bps, task.eta_seconds) {
        (0, _) => String::new(),
        (speed, None) => format!("{}/s", bytes(speed)),
        (speed, Some(eta)) => format!("{}/s, {} left", bytes(speed), eta_text(eta)),
    });
}

/// An estimate is never good to a tenth of a second.
fn eta_text(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { duration(seconds as f64) }
}
