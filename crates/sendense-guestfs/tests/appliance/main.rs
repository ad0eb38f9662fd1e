//! The appliance as the hub sees it: real disks, the real User Mode Linux, and this program as its agent. The program becomes
//! any part of an appliance that it is started as, which must happen before a thread exists, so the tests have their own main.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod attempts;
mod disks;
mod images;
mod kernels;
mod lives;
mod machines;
mod phantoms;
#[path = "../runner/mod.rs"]
mod runner;

pub use runner::Test;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = sendense_guestfs::appliance::run_if_asked() {
        return code;
    }
    if let Some(code) = attempts::run_if_kernel() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    runner::run(
        [attempts::TESTS, disks::TESTS, kernels::TESTS, lives::TESTS, machines::TESTS, phantoms::TESTS].concat(),
        &arguments,
    )
}
