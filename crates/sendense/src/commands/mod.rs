//! One file per noun; each turns words into calls and prints what comes back.

mod backup;
mod chain;
mod diff;
mod export;
mod fetch;
mod files;
mod history;
mod hub;
mod hub_recover;
mod node;
mod offline;
mod offline_export;
mod policy;
mod policy_apply;
mod prune;
mod recover;
mod repo;
mod restore;
mod retention;
mod schedule;
mod shell;
mod source;
mod task;
mod token;
mod vm;

use crate::args::{Args, Command};
use crate::context::Context;
use anyhow::{Context as _, Result};
use std::future::Future;
use std::path::{Path, PathBuf};

/// Runs the command; the result is the exit code.
pub fn run(args: Args) -> Result<u8> {
    match args.command {
        Command::Hub(hub) => hub::run(*hub, args.global.json),
        Command::Offline(command) => offline::run(command, args.global.json),
        Command::Retention(command) => retention::run(command, args.global.json),
        Command::Node(command) => node::run(&args.global, *command),
        command => {
            let context = Context::new(&args.global)?;
            block_on(async move {
                match command {
                    Command::Repo(command) => repo::run(&context, command).await,
                    Command::Chain(command) => chain::run(&context, command).await,
                    Command::Source(command) => source::run(&context, command).await,
                    Command::Vm(command) => vm::run(&context, command).await,
                    Command::Backup(command) => backup::run(&context, command).await,
                    Command::Policy(command) => policy::run(&context, command).await,
                    Command::Schedule(command) => schedule::run(&context, command).await,
                    Command::Prune(args) => prune::run(&context, args).await,
                    Command::Restore(command) => restore::run(&context, command).await,
                    Command::Shell(args) => shell::run(&context, args).await,
                    Command::History(args) => history::run(&context, args).await,
                    Command::Diff(args) => diff::run(&context, args).await,
                    command @ (Command::Mount(_)
                    | Command::Mounts
                    | Command::Umount { .. }
                    | Command::Volumes { .. }
                    | Command::Unlock(_)
                    | Command::Ls(_)
                    | Command::Stat(_)
                    | Command::Get(_)
                    | Command::Find(_)) => files::run(&context, command).await,
                    Command::Export { backup_id, disk } => export::create(&context, backup_id, disk).await,
                    Command::Exports => export::list(&context).await,
                    Command::Unexport { export_id } => export::delete(&context, &export_id).await,
                    Command::Recover(command) => recover::run(&context, command).await,
                    Command::Task(command) => task::run(&context, command).await,
                    Command::Token(command) => token::run(&context, command).await,
                    Command::Hub(_) | Command::Offline(_) | Command::Retention(_) | Command::Node(_) => {
                        unreachable!("handled above")
                    }
                }
            })
        }
    }
}

/// A client needs one thread.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(work)
}

/// Hub paths are absolute; a person's are relative to where they stand.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("make {} absolute", path.display()))
}

/// A path as the API takes it.
fn path_text(path: &Path) -> Result<String> {
    let path = absolute(path)?;
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => anyhow::bail!("{} is not UTF-8, which the API cannot carry", path.display()),
    }
}
