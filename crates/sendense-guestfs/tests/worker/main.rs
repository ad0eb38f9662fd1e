//! The worker process as the hub sees it. This program is its own worker: started with a mode as its first argument, it
//! becomes one; that must happen before any thread exists, so the tests have their own main.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod child;
mod confined;
mod disks;
mod groups;
mod hostile;
mod images;
mod lives;
mod reads;
#[path = "../runner/mod.rs"]
mod runner;

pub use runner::Test;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(mode) = arguments.first().and_then(|first| first.strip_prefix("worker:")) {
        return child::run(mode);
    }
    if let Some(story) = arguments.first().and_then(|first| first.strip_prefix("groups:")) {
        return groups::inside(story);
    }
    runner::run(
        [confined::TESTS, lives::TESTS, groups::TESTS, hostile::TESTS, reads::TESTS, disks::TESTS].concat(),
        &arguments,
    )
}
