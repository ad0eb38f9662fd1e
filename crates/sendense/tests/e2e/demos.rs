//! What the README promises first: both demos, as a newcomer runs them, but with the binary under test.

use crate::hub::{SENDENSE, text};
use std::process::Command;

/// Runs a demo, and returns what it printed last.
fn compared(script: &str) -> Vec<String> {
    let script = format!("{}/../../scripts/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(&script).env("SENDENSE", SENDENSE).env_remove("KEEP").output().unwrap();
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{script}: {}\n{shown}{}", output.status, text(&output.stderr));
    let last = shown.rsplit("== ").next().unwrap();
    last.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_demo_ends_with_four_equal_checksums_and_a_clean_file_system() {
    assert_eq!(compared("demo.sh")[1..], ["equal", "equal", "equal", "equal", "clean"]);
}

#[test]
fn the_demo_on_libvirt_ends_with_two_moments_that_are_whole() {
    let words = compared("demo-libvirt.sh");
    let count = |word| words.iter().filter(|has| *has == word).count();
    assert_eq!([count("one"), count("clean"), count("equal"), count("sparse"), count("TORN")], [2, 2, 1, 2, 0]);
}
