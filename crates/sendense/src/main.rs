//! `sendense`: the hub, and the command line that talks to one.
//!
//! Parse, wire, run, report. Data goes to stdout, talk to stderr; exit codes are in [`exit`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line is for")]

mod args;
mod commands;
mod context;
mod exit;
mod output;
mod progress;
mod tables;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The process needs one TLS crypto provider, chosen before anything opens a connection.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider is installed already");
        return ExitCode::from(exit::FAILED);
    }
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = exit::code(&error);
            output::error(&error);
            ExitCode::from(code)
        }
    }
}
