//! The appliance as the hub sees it: real disks, the real User Mode Linux, and this program as its agent. The program becomes
//! any part of an appliance that it is started as, which must happen before a thread exists, so the tests have their own main.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod disks;
mod images;
mod lives;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test and its name.
pub type Test = (&'static str, fn());

fn main() -> ExitCode {
    if let Some(code) = sendense_guestfs::appliance::run_if_asked() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> = [disks::TESTS, lives::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // What a caller may give besides: a part of a name. Other options of the usual test program mean nothing here.
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let begun = std::time::Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, begun.elapsed().as_millis());
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
