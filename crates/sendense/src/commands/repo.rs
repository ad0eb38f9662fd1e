//! `sendense repo`.

use super::backup::confirmed;
use super::path_text;
use crate::args::{RepoAddCommand, RepoCommand};
use crate::context::Context;
use crate::output::{bytes, json, line, moment, say, table as show};
use crate::{progress, shelves, tables};
use anyhow::Result;
use sendense_api::reply::{
    CatalogCopiesReply, CatalogCopyReply, DoneReply, ReportListReply, ReportReply, RepositoryListReply,
    RepositoryReply, SpaceListReply, TaskReply,
};
use sendense_api::{
    CreateRepository, DeleteRepository, LIMIT_MAX, Limit, ListQuery, ReconcileQuery, RepositoryConfig, UpdateRepository,
};
use sendense_types::RepositoryKind;

/// Runs the command.
pub async fn run(context: &Context, command: RepoCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        RepoCommand::Add(RepoAddCommand::Local { name, path, compression, running_tasks_max }) => {
            let body = CreateRepository {
                name,
                kind: RepositoryKind::Local,
                config: RepositoryConfig { path: path_text(&path)? },
                compression,
                running_tasks_max,
            };
            let repository = client.create_repository(&body).await?;
            if context.json {
                json(&RepositoryReply::new(repository))?;
            } else {
                line(format!("added repository {} ({})", repository.name, repository.repository_id));
            }
        }
        RepoCommand::List => {
            let page = client.list_repositories(&ListQuery::default()).await?;
            if context.json {
                json(&RepositoryListReply::from(page))?;
            } else {
                show(shelves::repositories(&page.items));
            }
        }
        RepoCommand::Show { repo } => {
            let repository = client.get_repository(&repo).await?;
            if context.json {
                json(&RepositoryReply::new(repository))?;
            } else {
                let storage = repository.storage.as_ref();
                let free = storage.map(|s| format!("{} of {}", bytes(s.available_bytes), bytes(s.total_bytes)));
                show(tables::facts(vec![
                    ("repository", format!("{} ({})", repository.name, repository.repository_id)),
                    ("type", repository.kind.to_string()),
                    ("path", repository.config.path.clone()),
                    ("on", storage.map(|storage| storage.mount_point.clone()).unwrap_or_default()),
                    ("mode", shelves::mode_in_full(&repository)),
                    ("backups", repository.backup_count.to_string()),
                    ("used", storage.map(|storage| bytes(storage.used_bytes)).unwrap_or_default()),
                    ("free", free.unwrap_or_default()),
                    ("room", repository.space.as_ref().map(shelves::room).unwrap_or_default()),
                    ("limit", repository.limit_bytes.map(bytes).unwrap_or_default()),
                    ("kept free", repository.floor_bytes.map(bytes).unwrap_or_default()),
                    ("compression", repository.compression.to_string()),
                    ("tasks at once", repository.running_tasks_max.map(|count| count.to_string()).unwrap_or_default()),
                    ("created", moment(repository.created_at)),
                    ("problem", repository.problem.clone().unwrap_or_default()),
                ]));
            }
        }
        RepoCommand::Update { repo, limit, keep_free, low_percent, critical_percent } => {
            let change = UpdateRepository {
                limit_bytes: limit.map(|size| size.0),
                floor_bytes: keep_free.map(|size| size.0),
                low_percent,
                critical_percent,
                ..UpdateRepository::default()
            };
            let repository = client.update_repository(&repo, &change).await?;
            if context.json {
                json(&RepositoryReply::new(repository))?;
            } else {
                line(format!("repository {} was changed", repository.name));
            }
        }
        RepoCommand::Check { repo, dry_run, forget_moves } => {
            let report = client.reconcile_repository(&repo, &ReconcileQuery { dry_run, forget_moves }).await?;
            if context.json {
                json(&ReportReply::new(report))?;
            } else if report.findings_total == 0 {
                line(format!("{} points lie there; nothing is out of order", report.backup_count));
            } else {
                show(shelves::findings(std::slice::from_ref(&report)));
            }
        }
        RepoCommand::Reports { repo } => {
            let page = client.repository_reports(&repo, &ListQuery::default()).await?;
            if context.json {
                json(&ReportListReply::from(page))?;
            } else {
                show(shelves::findings(&page.items));
            }
        }
        RepoCommand::Space { repo } => {
            let page = ListQuery { limit: Limit::try_from(LIMIT_MAX).unwrap_or_default(), offset: 0 };
            let page = client.repository_space(&repo, &page).await?;
            if context.json {
                json(&SpaceListReply::from(page))?;
            } else {
                show(shelves::space(&page.items));
            }
        }
        RepoCommand::Mode { repo, mode, reason } => {
            let change = UpdateRepository { mode: Some(mode), mode_reason: reason, ..Default::default() };
            let repository = client.update_repository(&repo, &change).await?;
            if context.json {
                json(&RepositoryReply::new(repository))?;
            } else {
                line(format!("repository {} is {}", repository.name, shelves::mode(repository.mode)));
            }
        }
        RepoCommand::Import { repo } => {
            let task = client.import_repository(&repo).await?;
            match progress::wait_completed(client, &task.task_id, &format!("import of {repo}")).await? {
                Err(code) => return Ok(code),
                Ok(task) if context.json => json(&TaskReply::new(*task))?,
                Ok(task) => line(task.summary.unwrap_or_else(|| format!("imported {repo}"))),
            }
        }
        RepoCommand::CopyCatalog { repo } => {
            let copy = client.copy_catalog(&repo).await?;
            if context.json {
                json(&CatalogCopyReply::new(copy))?;
            } else {
                line(format!("copied the catalog into {repo} as {} ({})", copy.name, bytes(copy.bytes)));
            }
        }
        RepoCommand::CatalogCopies { repo } => {
            let copies = client.list_catalog_copies(&repo).await?;
            if context.json {
                json(&CatalogCopiesReply::new(copies))?;
            } else {
                show(tables::catalog_copies(&copies));
            }
        }
        RepoCommand::Delete { repo, lost, yes } => {
            if lost && !yes && !confirmed(&format!("forget {repo} and all its points?"), "say --yes")? {
                say("nothing was changed");
                return Ok(0);
            }
            client.delete_repository(&repo, &DeleteRepository { lost }).await?;
            if context.json {
                json(&DoneReply::new(format!("repository {repo} forgotten")))?;
            } else {
                say(format!("repository {repo} is forgotten; its folder is left as it is"));
            }
        }
    }
    Ok(0)
}
