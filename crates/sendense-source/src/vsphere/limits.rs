//! How many sessions a server is asked for at once.
//!
//! Every open disk is an NFC session on the host, and hosts have few: one too many fails a backup in its middle. A machine takes
//! the places of all its disks at once, before its snapshot is made, so that no snapshot grows while its machine waits and no
//! two machines wait for each other. The places are this process's; those of other programs are not known.

use crate::error::{Error, Kind, Result};
use parking_lot::{Condvar, Mutex};
use sendense_block::Cancel;
use sendense_vsphere::Ref;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// Sessions on one host at once, however many the server may give: its 48 MB of NFC buffers (VDDK's guide) carry some twenty.
const HOST_SESSIONS_MAX: usize = 20;
/// How long a machine waits for its places. Then it is told as busy, and the hub tries again by its own rules.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

#[derive(Default)]
struct Gate {
    used: Mutex<usize>,
    changed: Condvar,
}

/// By server. There are as many as there are sources.
static GATES: LazyLock<Mutex<HashMap<String, Arc<Gate>>>> = LazyLock::new(Mutex::default);

/// Places that are held. Dropping gives them back.
pub(super) struct Places {
    gate: Arc<Gate>,
    count: usize,
}

impl Drop for Places {
    fn drop(&mut self) {
        *self.gate.used.lock() -= self.count;
        self.gate.changed.notify_all();
    }
}

/// Takes places on a server for the disks of a machine, which are open together.
///
/// # Errors
/// [`Kind::Unsupported`] when the machine has more disks than there are places: its backup would fail with a snapshot made.
pub(super) fn take(server: &str, wanted: usize, all: usize, cancel: &Cancel) -> Result<Places> {
    if wanted > all {
        let message = format!("{wanted} disks are to be open at once, and the source may open {all}");
        return Err(Error::new(Kind::Unsupported, message)
            .hint("raise the source's --sessions-max, or leave disks out of the backup"));
    }
    take_within(server, wanted, all, WAIT_MAX, cancel)
}

/// Takes places on the host that a machine is on, after those of its server, so that nobody waits for each other. None where the
/// server does not say which host it is.
pub(super) fn take_on_host(server: &str, host: Option<&Ref>, wanted: usize, cancel: &Cancel) -> Result<Option<Places>> {
    // Whoever has allowed more sessions than this knows what the host bears; such a machine has the host for itself.
    let wanted = wanted.min(HOST_SESSIONS_MAX);
    host.map(|host| take(&format!("host {} of {server}", host.id), wanted, HOST_SESSIONS_MAX, cancel)).transpose()
}

fn take_within(server: &str, wanted: usize, all: usize, within: Duration, cancel: &Cancel) -> Result<Places> {
    let gate = GATES.lock().entry(server.to_owned()).or_default().clone();
    let count = wanted;
    let bell = gate.clone();
    let _hook = cancel.on_cancel(move || {
        // The lock makes sure that whoever is about to wait has looked at the token before or is woken.
        drop(bell.used.lock());
        bell.changed.notify_all();
    });
    let until = Instant::now() + within;
    let mut used = gate.used.lock();
    while *used + count > all {
        cancel.check()?;
        if gate.changed.wait_until(&mut used, until).timed_out() {
            let message = format!("the {all} sessions that {server} may give are in use");
            return Err(Error::new(Kind::Busy, message)
                .hint("back up fewer machines at once, or raise the source's number of sessions"));
        }
    }
    *used += count;
    drop(used);
    Ok(Places { gate, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_waited_for() {
        let (name, cancel) = ("limits-test", Cancel::new());
        let held = take(name, 2, 3, &cancel).unwrap();
        let now = Duration::ZERO;
        assert_eq!(take_within(name, 2, 3, now, &cancel).err().unwrap().kind, Kind::Busy);
        let one = take_within(name, 1, 3, now, &cancel).unwrap();
        assert_eq!(take(name, 4, 3, &cancel).err().unwrap().kind, Kind::Unsupported);
        let waiting = std::thread::spawn(move || take(name, 3, 3, &Cancel::new()).is_ok());
        drop((held, one));
        assert!(waiting.join().unwrap());
        let held = take(name, 3, 3, &cancel).unwrap();
        let stop = cancel.clone();
        let waiting = std::thread::spawn(move || take(name, 1, 3, &stop).err().map(|error| error.kind));
        cancel.cancel();
        assert_eq!(waiting.join().unwrap(), Some(Kind::Cancelled));
        drop(held);
    }

    #[test]
    fn each_host_has_its_own_places_and_no_more_than_it_bears() {
        let (server, stop) = ("limits-hosts", Cancel::new());
        let host = |id: &str| Ref::new("HostSystem", id);
        let full = take_on_host(server, Some(&host("a")), HOST_SESSIONS_MAX, &stop).unwrap();
        assert!(take_on_host(server, Some(&host("b")), 1, &stop).unwrap().is_some(), "another host is free");
        assert!(take_on_host(server, None, 1, &stop).unwrap().is_none());
        stop.cancel();
        let refused = take_on_host(server, Some(&host("a")), 1, &stop).err().map(|error| error.kind);
        assert_eq!(refused, Some(Kind::Cancelled), "it would have waited");
        drop(full);
        assert!(take_on_host(server, Some(&host("a")), 1, &Cancel::new()).unwrap().is_some());
    }
}
