//! Which machines are being worked on in a way that bears no other work beside it.
//!
//! A backup of a machine whose disks are being written would be a backup of neither state, and a snapshot that is made
//! meanwhile would take the writes. Both take the machine first. The machines are this process's; what other programs do
//! is seen by their snapshots and by the machine's power.

use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::LazyLock;

/// By server and instance uuid. There are as many as there are running tasks.
static HELD: LazyLock<Mutex<HashSet<(String, String)>>> = LazyLock::new(Mutex::default);

/// A machine that is held. Dropping lets it go.
pub(super) struct Held((String, String));

impl Drop for Held {
    fn drop(&mut self) {
        HELD.lock().remove(&self.0);
    }
}

/// Takes a machine; [`Kind::Busy`] when another task has it.
pub(super) fn take(server: &str, instance_uuid: &str, name: &str) -> Result<Held> {
    let machine = (server.to_owned(), instance_uuid.to_owned());
    match HELD.lock().insert(machine.clone()) {
        true => Ok(Held(machine)),
        false => Err(Error::new(Kind::Busy, format!("another task backs {name} up or restores onto it"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_held_once() {
        let held = take("held-test", "u", "web").unwrap();
        assert_eq!(take("held-test", "u", "web").err().unwrap().kind, Kind::Busy);
        let other = (take("held-test", "v", "db").is_ok(), take("held-test-2", "u", "web").is_ok());
        assert_eq!(other, (true, true));
        drop(held);
        assert!(take("held-test", "u", "web").is_ok());
    }
}
