//! Waiting for a task: by events, and by asking again when events fail.

use super::{Client, ClientError};
use crate::{Event, Task};
use futures::StreamExt;
use sendense_types::TaskId;
use std::time::Duration;

/// The first pause between questions. Questions go on while events come: an event may be lost in the hub's bounded queue, and
/// there is none of a task that another hub of the same catalog runs.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// The longest pause: what a person at a progress bar still takes for "now".
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How many questions in a row may fail before waiting ends: with the pauses above about two minutes, in which a hub
/// that was restarted is back.
const FAILURES_MAX: u32 = 30;

/// The pause that follows a pause.
fn after(pause: Duration) -> Duration {
    (pause * 3 / 2).min(PAUSE_MAX)
}

impl Client {
    /// Waits until a task has ended, well or not, and gives it. `watch` sees it at every change. Dropping the future
    /// ends the wait, not the task.
    pub async fn wait_for_task(&self, task_id: &TaskId, mut watch: impl FnMut(&Task)) -> Result<Task, ClientError> {
        if let Some(task) = self.wait_by_events(task_id, &mut watch).await? {
            return Ok(task);
        }
        let (mut pause, mut failures) = (PAUSE_FIRST, 0);
        loop {
            match self.get_task(task_id).await {
                Ok(task) => {
                    failures = 0;
                    watch(&task);
                    if task.state.is_final() {
                        return Ok(task);
                    }
                }
                Err(error) if error.is_transient() && failures < FAILURES_MAX => failures += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = after(pause);
        }
    }

    /// Waits by events; none when the stream failed in a way that asking again may outlast.
    async fn wait_by_events(
        &self,
        task_id: &TaskId,
        watch: &mut impl FnMut(&Task),
    ) -> Result<Option<Task>, ClientError> {
        let mut events = match self.events().await {
            Ok(events) => events,
            Err(error) if error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut pause = PAUSE_FIRST;
        loop {
            // The first question comes after the stream was opened, so that nothing falls between the two.
            match self.get_task(task_id).await {
                Ok(task) => {
                    watch(&task);
                    if task.state.is_final() {
                        return Ok(Some(task));
                    }
                }
                Err(error) if error.is_transient() => return Ok(None),
                Err(error) => return Err(error),
            }
            let ask_again_at = tokio::time::Instant::now() + pause;
            pause = after(pause);
            loop {
                match tokio::time::timeout_at(ask_again_at, events.next()).await {
                    Ok(Some(Ok(Event::Task { task }))) if task.task_id == *task_id => {
                        watch(&task);
                        if task.state.is_final() {
                            return Ok(Some(*task));
                        }
                    }
                    Ok(Some(Ok(Event::Lagged { .. }))) | Err(_) => break,
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(_)) | None) => return Ok(None),
                }
            }
        }
    }
}
