//! The log of a task: bounded, in order.

use super::Tasks;
use crate::error::{Error, Noun, Result};
use crate::{Page, entity, value};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use sendense_types::{TaskId, Timestamp};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// Lines kept per task; older ones go first. A backup tells some ten lines per disk, so a thousand lines are 64 disks with
/// many retries, and 100,000 tasks stay below what any of the databases minds.
pub const LINES_MAX: i64 = 1000;

/// Longest message kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 4000;

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// A state changed.
    Info,
    /// Something was not as it should be, and the work goes on.
    Warning,
    /// A person must look.
    Error,
}

impl LogLevel {
    /// The text form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Info, Self::Warning, Self::Error]
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of info, warning, error"))
    }
}

/// A line to add.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLogLine {
    /// When it happened.
    pub at: Timestamp,
    /// How grave it is.
    pub level: LogLevel,
    /// A constant sentence.
    pub message: String,
    /// The values that belong to it; `{}` when there are none.
    pub fields: Value,
}

/// A line of a task's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Its number within the task, from 0, without gaps except where old lines went.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// How grave it is.
    pub level: LogLevel,
    /// A constant sentence.
    pub message: String,
    /// The values that belong to it.
    pub fields: Value,
}

impl Tasks<'_> {
    /// Adds lines; of those and the older ones the last [`LINES_MAX`] stay. Needs no claim: a reaper may speak too.
    pub async fn append_log(&self, task_id: &TaskId, lines: &[NewLogLine]) -> Result<()> {
        use entity::task_log::{Column, Entity, Model};
        // What would be dropped at once is not written at all, but is counted.
        let count = i64::try_from(lines.len()).unwrap_or(i64::MAX);
        let skipped = count.saturating_sub(LINES_MAX).max(0);
        self.0
            .write(|tx| async move {
                let task = entity::tasks::Entity::find_by_id(task_id.as_str()).lock_exclusive().one(&*tx).await?;
                let first = task.ok_or_else(|| Error::not_found(Noun::Task, task_id))?.log_next;
                let next = first.saturating_add(count);
                let kept = lines.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
                let rows = kept.zip(first.saturating_add(skipped)..).map(|(line, seq)| {
                    Model {
                        task_id: task_id.as_str().to_owned(),
                        seq,
                        at: line.at.into(),
                        level: line.level.as_str().to_owned(),
                        message: value::trim_text(&line.message, MESSAGE_BYTES_MAX),
                        fields: line.fields.clone(),
                    }
                    .into_active_model()
                });
                let rows: Vec<_> = rows.collect();
                if rows.is_empty() {
                    return Ok(());
                }
                Entity::insert_many(rows).exec_without_returning(&*tx).await?;
                Entity::delete_many()
                    .filter(Column::TaskId.eq(task_id.as_str()))
                    .filter(Column::Seq.lt(next.saturating_sub(LINES_MAX)))
                    .exec(&*tx)
                    .await?;
                let set = entity::tasks::ActiveModel { log_next: Set(next), ..Default::default() };
                entity::tasks::Entity::update_many()
                    .set(set)
                    .filter(entity::tasks::Column::TaskId.eq(task_id.as_str()))
                    .exec(&*tx)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Lines from number `from_seq` on, oldest first.
    pub async fn log(&self, task_id: &TaskId, from_seq: u64, limit: u64) -> Result<Vec<LogLine>> {
        use entity::task_log::{Column, Entity};
        let rows = Entity::find()
            .filter(Column::TaskId.eq(task_id.as_str()))
            .filter(Column::Seq.gte(i64::try_from(from_seq).unwrap_or(i64::MAX)))
            .order_by_asc(Column::Seq)
            .limit(limit.min(Page::LIMIT_MAX))
            .all(self.0.pool())
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(LogLine {
                    seq: value::read_u64("seq", row.seq)?,
                    at: row.at.into(),
                    level: value::read("level", &row.level)?,
                    message: row.message,
                    fields: row.fields,
                })
            })
            .collect()
    }
}
