//! The journey of a machine on a real vCenter or ESXi host: full, incremental, restored into a new machine, compared.
//!
//! It runs only where somebody names a server, and says so where nobody did: what it shows cannot be shown without one. The
//! machine must be switched off, so that every backup of it holds the same, small, because points are held in memory, and one that
//! may be lost. The new machine is removed at the end.
//!
//! `SENDENSE_VCENTER_URL` (host and port), `SENDENSE_VCENTER_THUMBPRINT` (SHA-256), `SENDENSE_VCENTER_USERNAME`,
//! `SENDENSE_VCENTER_PASSWORD`, `SENDENSE_VCENTER_VM` (name), `VDDK_LIBDIR`; `NBDKIT_VDDK_PLUGIN` where nbdkit does not find it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test without a harness, which speaks by itself")]

#[path = "common/journal.rs"]
mod journal;
#[path = "common/points.rs"]
mod points;
#[path = "common/vcenter.rs"]
mod vcenter;

use vcenter::{Server, journey};

const SERVER: &str = "SENDENSE_VCENTER_URL";

fn main() {
    // `cargo test NAME` and its listing ask each program; this one has no names.
    if std::env::args().skip(1).any(|word| word == "--list") {
        return;
    }
    if std::env::var_os(SERVER).is_none() {
        eprintln!(
            "\n*** NOT RUN: no real vCenter was tried. Set {SERVER} and what tests/vcenter.rs names to try one. ***\n"
        );
        return;
    }
    let product = journey(Server {
        address: variable(SERVER),
        thumbprint: variable("SENDENSE_VCENTER_THUMBPRINT"),
        username: variable("SENDENSE_VCENTER_USERNAME"),
        password: variable("SENDENSE_VCENTER_PASSWORD"),
        vddk_libdir: variable("VDDK_LIBDIR"),
        nbdkit_plugin: std::env::var("NBDKIT_VDDK_PLUGIN").ok(),
        machine: variable("SENDENSE_VCENTER_VM"),
    });
    let address = variable(SERVER);
    eprintln!("*** RUN against {address} ({product}): full, incremental and restored machine are equal. ***");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{SERVER} is set, so {name} must be"))
}
