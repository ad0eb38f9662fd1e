//! Tasks: looking at them, stopping them.

use super::{App, Caller, tell, wire};
use crate::fault::{OrProblem, Result};
use crate::jobs::handle::Stop;
use crate::jobs::work::Work;
use crate::maintenance;
use futures::Stream;
use sendense_api::{Event, ListQuery, LogEntry, Page, Role, Task, TaskFilter};
use sendense_catalog as catalog;
use sendense_types::{Problem, ProblemCode, TaskId, TaskKind, TaskState};

impl App {
    /// Tasks, newest first.
    pub async fn list_tasks(&self, filter: TaskFilter) -> Result<Page<Task>> {
        let page = catalog::Page { limit: filter.limit.get().into(), offset: filter.offset };
        let filter = catalog::TaskFilter {
            kind: filter.kind,
            state: filter.state,
            subject_id: filter.backup_id.map(Into::into),
            vm_context_id: filter.vm_context_id,
        };
        let (rows, total) = self.core.catalog.tasks().list(&filter, page).await.or_problem()?;
        Ok(Page { items: rows.into_iter().map(|row| self.task_out(row)).collect(), total })
    }

    /// One task.
    pub async fn get_task(&self, task_id: &TaskId) -> Result<Task> {
        Ok(self.task_out(self.core.catalog.tasks().get(task_id).await.or_problem()?))
    }

    /// Asks a task to stop. One that waits is ended at once; one that runs stops within a second.
    pub async fn cancel_task(&self, caller: &Caller, task_id: &TaskId) -> Result<Task> {
        caller.require(Role::Operator)?;
        let row = match self.core.catalog.tasks().request_cancel(task_id).await {
            Ok(row) => row,
            Err(catalog::Error::Conflict(catalog::Conflict::WrongState { state, .. })) => {
                let details = format!("task {task_id} is {state}");
                return Err(Problem::new(ProblemCode::Conflict, "the task has ended already", details));
            }
            Err(error) => return Err(error).or_problem(),
        };
        tracing::info!(task_id = %task_id, by = %caller.identity, "cancellation asked for");
        if let Ok(Work::Merge(work)) = Work::read(&row.request) {
            self.core.merges_due.forget(&work.place());
        }
        let row = match self.core.running.get(task_id) {
            Some(handle) => {
                handle.stop(Stop::Person);
                row
            }
            // Another hub's running task learns of it with its next report.
            None if row.state == TaskState::Running => row,
            None => self.end_waiting(row).await?,
        };
        tell::task(&self.core, task_id).await;
        Ok(self.task_out(row))
    }

    /// Ends a task that waits, unless it was started in this moment: then its runner sees the request.
    async fn end_waiting(&self, row: catalog::Task) -> Result<catalog::Task> {
        let (core, tasks) = (&self.core, self.core.catalog.tasks());
        let ended = async {
            let task = crate::jobs::claim(core, &row).await?;
            match task.kind {
                TaskKind::Backup => core.catalog.backups().finish_cancelled(&task.claim(), core.now()).await.map(drop),
                _ => tasks.finish_cancelled(&task.claim(), core.now()).await.map(drop),
            }
        };
        match ended.await {
            Ok(()) | Err(catalog::Error::Conflict(_)) => tasks.get(&row.task_id).await.or_problem(),
            Err(error) => Err(error).or_problem(),
        }
    }

    /// The log of a task, oldest line first.
    pub async fn task_log(&self, task_id: &TaskId, page: ListQuery) -> Result<Page<LogEntry>> {
        let task = self.core.catalog.tasks().get(task_id).await.or_problem()?;
        let lines = self.core.catalog.tasks().log(task_id, page.offset, page.limit.get().into()).await.or_problem()?;
        Ok(Page { items: lines.into_iter().map(wire::log_entry).collect(), total: task.log_lines })
    }

    /// What happens from now on: every running task twice a second, and every change of state.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + use<> {
        self.core.events.listen()
    }

    /// Makes a task of work that needs no backup row, if there is room for one more.
    pub(super) async fn make_task(&self, caller: &Caller, work: Work, subject: catalog::TaskSubject) -> Result<Task> {
        for id in work.repositories() {
            maintenance::check(&self.core.catalog.repositories().get(id).await.or_problem()?, work.wants())?;
        }
        self.refuse_when_full().await?;
        let new = catalog::NewTask {
            task_id: TaskId::generate(),
            kind: work.kind(),
            subject,
            request: work.write()?,
            created_by: Some(caller.identity.clone()),
        };
        let row = self.core.catalog.tasks().create(&new, self.core.now()).await.or_problem()?;
        tracing::info!(task_id = %row.task_id, kind = %row.kind, by = %caller.identity, "task made");
        self.core.running.wake.notify_one();
        tell::task(&self.core, &row.task_id).await;
        Ok(self.task_out(row))
    }

    /// Fails with `busy` when as many tasks wait as may. Two callers at once may pass it together: the bound is there
    /// to keep the table and the night short, and one or two more do not hurt.
    pub(super) async fn refuse_when_full(&self) -> Result<()> {
        self.free_to_wait().await.map(drop)
    }

    /// How many more tasks may wait; fails as [`App::refuse_when_full`] when none may.
    pub(super) async fn free_to_wait(&self) -> Result<u64> {
        let waiting = catalog::TaskFilter { state: Some(TaskState::Pending), ..Default::default() };
        let one = catalog::Page { limit: 1, offset: 0 };
        let (_, total) = self.core.catalog.tasks().list(&waiting, one).await.or_problem()?;
        let free = (self.core.limits.pending_max as u64).saturating_sub(total);
        if free > 0 {
            return Ok(free);
        }
        let details = format!("{total} tasks wait for a free place; at most {} may", self.core.limits.pending_max);
        Err(Problem::new(ProblemCode::Busy, "too many tasks wait", details))
    }

    pub(super) fn task_out(&self, row: catalog::Task) -> Task {
        let live = self.core.running.view(&row.task_id);
        wire::task(row, live)
    }
}
