//! `sendense`: the hub, and the command line that talks to one.
//!
//! Parse, wire, run, report. Data goes to stdout, talk to stderr; exit codes are in [`exit`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line is for")]

mod args;
mod commands;
mod context;
mod exit;
mod output;
mod plain;
mod progress;
mod secret;
mod shelves;
mod tables;
mod timetables;
mod worker;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: what reads guests' disks has one thread and opens nothing.
    if std::env::args_os().nth(1).is_some_and(|word| word == sendense_hub::WORKER_ARGUMENT) {
        return worker::run();
    }
    // The hub starts this program again as the parts of an appliance, which must be before any thread exists.
    if let Some(code) = sendense_guestfs::appliance::run_if_asked() {
        return code;
    }
    // The process needs one TLS crypto provider, chosen before anything opens a connection.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        output::error(&["a TLS provider is installed already".to_owned()]);
        return ExitCode::from(exit::FAILED);
    }
    let args = args::Args::parse();
    let as_json = args.global.json;
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&exit::told(&error));
            if as_json && let Err(error) = output::json(&exit::body(&error)) {
                output::error(&[error.to_string()]);
            }
            ExitCode::from(exit::code(&error))
        }
    }
}
