//! What is on offer: names and the devices behind them.
//!
//! What lives here: adding, finding, removing, and counting who uses what. What does not: how names are made (the caller
//! puts a random part into them, for whoever knows a name may read the export). Invariant: once a guard is gone its name
//! is unknown, and the connections that used it are cut off.

use super::device::Device;
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::nbd::frame::{self, export_flags};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Exports at the same time: each is a restore point that somebody opened, and a hub opens some dozens.
const EXPORTS_MAX: usize = 4096;

/// What trimming a range does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trim {
    /// The range becomes zero, as a hole where the device can.
    #[default]
    Zero,
    /// Nothing; the range keeps its bytes.
    Ignore,
}

/// How a device is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Words for people who look at the export, and for the log, which never says the name.
    pub description: String,
    /// What trimming does, where writes are allowed.
    pub trim: Trim,
    /// The request size that suits the device, a power of two between 512 bytes and 32 MiB.
    pub preferred_bytes: u32,
}

impl Default for ExportOptions {
    fn default() -> Self {
        // One cluster: less makes a compressed chain decode it more than once.
        Self { description: String::new(), trim: Trim::default(), preferred_bytes: crate::units::BLOCK_BYTES as u32 }
    }
}

/// How an export is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// True when writes are refused.
    pub read_only: bool,
    /// Connections that are open.
    pub clients: usize,
    /// Bytes that clients read, holes included.
    pub bytes_read: u64,
    /// Bytes that clients wrote, zeros included.
    pub bytes_written: u64,
    /// How long no client was connected; zero while one is.
    pub unused_for: Duration,
}

/// The exports of one or several servers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Exports(Arc<Registry>);

#[derive(Default)]
struct Registry {
    /// A hash with a random key, so that how long a wrong name takes says nothing about the right ones.
    entries: RwLock<HashMap<String, Arc<Entry>>>,
}

/// An export, kept by its guard and by the connections that use it.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) device: Device,
    pub(super) options: ExportOptions,
    /// The size when it was added: it does not change for those who use it.
    pub(super) size: u64,
    pub(super) flags: u16,
    /// Asked when the export is removed.
    pub(super) removed: Cancel,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    users: Mutex<Users>,
    left: Condvar,
}

struct Users {
    clients: usize,
    since: Instant,
}

/// A connection that uses an export.
pub(super) struct User(Arc<Entry>);

impl Exports {
    /// Nothing on offer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a device until the guard is dropped. A name is 1 to 4096 bytes without NUL, and not taken.
    pub fn add(&self, name: &str, device: Device, options: ExportOptions) -> Result<ExportGuard> {
        let bad = |context: String| Err(Error::new(Kind::Invalid, context));
        if name.is_empty() || name.len() > frame::STRING_BYTES_MAX || name.contains('\0') {
            return bad(format!("export name of {} bytes; 1 to 4096 without NUL are possible", name.len()));
        }
        if options.description.len() > frame::STRING_BYTES_MAX || options.description.contains('\0') {
            return bad("description of more than 4096 bytes, or with a NUL".into());
        }
        let preferred = options.preferred_bytes;
        if !preferred.is_power_of_two() || !(512..=frame::PAYLOAD_BYTES_MAX).contains(&preferred) {
            return bad(format!(
                "preferred requests of {preferred} bytes; a power of two from 512 to 32 MiB is possible"
            ));
        }
        let size = device.size().0;
        if i64::try_from(size).is_err() {
            return bad(format!("export of {size} bytes; servers and clients count to 2^63 - 1"));
        }
        let entry = Arc::new(Entry {
            name: name.to_owned(),
            flags: flags(&device),
            device,
            options,
            size,
            removed: Cancel::new(),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            users: Mutex::new(Users { clients: 0, since: Instant::now() }),
            left: Condvar::new(),
        });
        let mut entries = self.0.entries.write();
        if entries.contains_key(name) {
            return Err(Error::new(Kind::Exists, "an export of that name is on offer"));
        }
        if entries.len() >= EXPORTS_MAX {
            return Err(Error::new(
                Kind::Unavailable,
                format!("{EXPORTS_MAX} exports are on offer; no more are possible"),
            ));
        }
        entries.insert(name.to_owned(), entry.clone());
        Ok(ExportGuard { exports: self.clone(), entry })
    }

    /// Everything on offer, sorted by name.
    pub fn status(&self) -> Vec<ExportStatus> {
        let mut all: Vec<_> = self.0.entries.read().values().map(|entry| entry.status()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Names and descriptions, sorted by name.
    pub(super) fn names(&self) -> Vec<(String, String)> {
        let entries = self.0.entries.read();
        let mut names: Vec<_> =
            entries.values().map(|entry| (entry.name.clone(), entry.options.description.clone())).collect();
        names.sort();
        names
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.entries.read().get(name).cloned()
    }
}

fn flags(device: &Device) -> u16 {
    use export_flags as flag;
    let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_DF | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
    match device {
        Device::ReadOnly(_) => always | flag::READ_ONLY,
        Device::Writable(_) => always | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES,
    }
}

impl Entry {
    fn status(&self) -> ExportStatus {
        let users = self.users.lock();
        ExportStatus {
            name: self.name.clone(),
            read_only: self.device.is_read_only(),
            clients: users.clients,
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            unused_for: if users.clients == 0 { users.since.elapsed() } else { Duration::ZERO },
        }
    }

    /// Counts a connection in, unless the export is removed: whoever waits for the last one has seen all of them.
    pub(super) fn join(self: &Arc<Self>) -> Option<User> {
        let mut users = self.users.lock();
        if self.removed.is_cancelled() {
            return None;
        }
        users.clients += 1;
        Some(User(self.clone()))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut users = self.0.users.lock();
        users.clients -= 1;
        users.since = Instant::now();
        drop(users);
        self.0.left.notify_all();
    }
}

/// Keeps an export on offer. Dropping it takes the export back and cuts off its clients, without waiting for them.
#[must_use = "the export is taken back when the guard is dropped"]
pub struct ExportGuard {
    exports: Exports,
    entry: Arc<Entry>,
}

impl ExportGuard {
    /// The export's name.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// How it is used.
    pub fn status(&self) -> ExportStatus {
        self.entry.status()
    }

    /// Takes the export back and waits until no thread uses its device. Fails with [`Kind::Deadline`] when a request in
    /// the device takes longer; the export is gone all the same.
    pub fn close(self, timeout: Duration) -> Result<()> {
        self.take_back();
        // A day is for ever; the clock's numbers end somewhere.
        let deadline = Instant::now() + timeout.min(Duration::from_secs(86_400));
        let mut users = self.entry.users.lock();
        while users.clients > 0 {
            if self.entry.left.wait_until(&mut users, deadline).timed_out() && users.clients > 0 {
                let context = format!("{} connections still use the device of the export", users.clients);
                return Err(Error::new(Kind::Deadline, context));
            }
        }
        Ok(())
    }

    fn take_back(&self) {
        // The name first: nobody new may come while those who are there are sent away.
        self.exports.0.entries.write().remove(&self.entry.name);
        self.entry.removed.cancel();
    }
}

impl Drop for ExportGuard {
    fn drop(&mut self) {
        // After `close`, somebody else may have taken the name.
        if !self.entry.removed.is_cancelled() {
            self.take_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;
    use crate::units::ByteLen;

    fn device() -> Device {
        Device::writable(Memory::zeroed(ByteLen(1000)))
    }

    #[test]
    fn a_name_is_on_offer_as_long_as_its_guard() {
        let exports = Exports::new();
        let options = ExportOptions::default;
        let guard = exports.add("one", device(), options()).unwrap();
        assert_eq!(exports.add("one", device(), options()).map(|_| ()).unwrap_err().kind, Kind::Exists);
        let entry = exports.find("one").unwrap();
        let user = entry.join().unwrap();
        assert_eq!((guard.status().clients, guard.status().unused_for), (1, Duration::ZERO));
        assert_eq!(guard.close(Duration::from_millis(1)).unwrap_err().kind, Kind::Deadline);
        assert!(entry.removed.is_cancelled() && exports.find("one").is_none() && exports.status().is_empty());
        assert!(entry.join().is_none(), "nobody comes after the end");
        // The name is free although a connection still holds what was behind it.
        let guard = exports.add("one", device(), options()).unwrap();
        drop(user);
        assert!(exports.find("one").is_some());
        guard.close(Duration::ZERO).unwrap();
    }

    #[test]
    fn names_and_sizes_that_cannot_be_sent_are_refused() {
        let exports = Exports::new();
        let long = "x".repeat(4097);
        for name in ["", "a\0b", long.as_str()] {
            assert_eq!(
                exports.add(name, device(), ExportOptions::default()).map(|_| ()).unwrap_err().kind,
                Kind::Invalid
            );
        }
        for preferred_bytes in [0, 256, 4097, 64 << 20] {
            let options = ExportOptions { preferred_bytes, ..ExportOptions::default() };
            assert_eq!(exports.add("x", device(), options).map(|_| ()).unwrap_err().kind, Kind::Invalid);
        }
        let description = "d".repeat(5000);
        let options = ExportOptions { description, ..ExportOptions::default() };
        assert_eq!(exports.add("x", device(), options).map(|_| ()).unwrap_err().kind, Kind::Invalid);
    }
}
