//! Who may write to a repository: one deployment, and of its hubs the one with the lease.
//!
//! The record in the repository's root names deployment, hub, an epoch and until when the lease runs. Whoever takes the
//! repository adds 1 to the epoch, so that a hub which was away (suspended, cut off, an old process of the same hub) sees
//! at its next publish or delete that it is no longer the owner: it is *fenced*.
//!
//! ```text
//! no record           -> ours, epoch 1
//! our deployment, same hub                -> ours, epoch + 1      (the hub was restarted)
//! our deployment, other hub, lease out    -> ours, epoch + 1      (takeover)
//! our deployment, other hub, lease runs   -> refused: Owned
//! other deployment                        -> refused: Owned, unless told to adopt, and the lease is out
//! ```
//!
//! What changes what a repository holds happens in a [`Turn`]: the record was found to be ours, and it cannot change hands
//! before the turn ends. So a hub that is stopped between its look at the record and its rename is not taken from until it goes
//! on or dies; one that is stopped anywhere else finds itself fenced before it has changed anything.
//!
//! Invariant: the record is read and written under an flock, so of two hubs that take over at once one sees the other. (A file
//! system that gives a stopped client's locks to others, as NFS does after its grace, keeps that only for that long.)

use crate::crashsafe::{self, Fs};
use crate::error::{Error, Kind, Result};
use crate::layout;
use crate::spare;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags};
use sendense_types::{DeploymentId, HubId, Timestamp};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const FORMAT: &str = "sendense-repository";
const VERSION: u32 = 1;
/// A record is some 300 bytes; 64 KiB leaves room for later versions and is no burden to read.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// How long one waits for another process that has the record: half of what the hub gives the opening of a repository. A turn
/// is some renames and syncs.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile: a turn takes some milliseconds.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The content of the owner record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: String,
    version: u32,
    /// The catalog whose hubs may write.
    pub deployment_id: DeploymentId,
    /// The hub that holds the lease.
    pub hub_id: HubId,
    /// Counts the times the repository was taken.
    pub epoch: u64,
    /// Until when the hub may be thought at work.
    pub lease_until: Timestamp,
}

/// As whom a repository is opened for writing.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Our catalog.
    pub deployment_id: DeploymentId,
    /// Our hub.
    pub hub_id: HubId,
    /// How long the lease runs from each renewal. The hub renews at a third of it.
    pub lease_seconds: u32,
    /// Whether to take it from another deployment.
    pub adopt: Adopt,
}

/// Whether a repository of another deployment is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adopt {
    /// No: refused.
    #[default]
    Never,
    /// Yes, once its lease is out: the old catalog is lost and this one imports the repository.
    LeaseOut,
}

/// The right to write, as long as the record says so.
pub(crate) struct Ownership {
    root: PathBuf,
    fs: Arc<dyn Fs>,
    claim: Claim,
    epoch: u64,
    lease_until_micros: AtomicI64,
    /// The lock, while turns of this process share it.
    held: Mutex<Weak<OwnedFd>>,
    /// One of them writes the record at a time.
    writing: Mutex<()>,
}

/// While it lives the record is ours and stays so. Turns of one process share it: they are not in each other's way.
#[must_use = "the record may change hands as soon as it is dropped"]
pub(crate) struct Turn(#[expect(dead_code, reason = "held, not used")] Arc<OwnedFd>);

/// Reads the record of a repository; `None` when it has none.
pub fn read(root: &Path) -> Result<Option<Record>> {
    let bytes = match crashsafe::read_small(root, Path::new(layout::OWNER_FILE), RECORD_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error.within("read the owner record")),
    };
    parse(&bytes).map(Some)
}

/// Reads the text of a record.
pub fn parse(bytes: &[u8]) -> Result<Record> {
    let record: Record =
        serde_json::from_slice(bytes).map_err(|error| Error::invalid("read the owner record").caused_by(error))?;
    if record.format != FORMAT {
        return Err(Error::invalid(format!("the owner record's format is {:?}, not {FORMAT:?}", cut(&record.format))));
    }
    if record.version != VERSION {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the repository has version {}; this program knows {VERSION}", record.version),
        ));
    }
    Ok(record)
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Ownership {
    /// Takes the repository.
    pub(crate) fn take(root: &Path, fs: Arc<dyn Fs>, claim: Claim, now: Timestamp) -> Result<Self> {
        let _lock = lock(root)?;
        let epoch = match read(root)? {
            None => 1,
            Some(held) => {
                check_takeover(&held, &claim, now)?;
                // An epoch of u64::MAX is nobody's honest count; do not let it fence everyone for ever.
                held.epoch.checked_add(1).ok_or_else(|| Error::invalid("the owner record's epoch is at its end"))?
            }
        };
        let lease_until_micros = AtomicI64::new(now.as_micros());
        let (held, writing) = (Mutex::default(), Mutex::default());
        let ownership = Self { root: root.to_owned(), fs, claim, epoch, lease_until_micros, held, writing };
        ownership.write(now)?;
        tracing::info!(epoch, repository = %root.display(), "took the repository");
        Ok(ownership)
    }

    /// Fails with [`Kind::Fenced`] unless the record still is ours, and makes the lease last for the work that follows. The record
    /// may change hands a moment later: what changes what the repository holds needs a [`Turn`].
    pub(crate) fn check(&self, now: Timestamp) -> Result<()> {
        if self.is_fresh(now) {
            return self.check_record(&read(&self.root)?);
        }
        self.renew(now)
    }

    /// Keeps the record from changing hands, or fails with [`Kind::Fenced`]. Makes the lease last for the work that follows.
    pub(crate) fn turn(&self, now: Timestamp) -> Result<Turn> {
        let turn = self.hold()?;
        if !self.is_fresh(now) {
            self.write(now)?;
        }
        Ok(turn)
    }

    /// Extends the lease, or says that another has it.
    pub(crate) fn renew(&self, now: Timestamp) -> Result<()> {
        let _turn = self.hold()?;
        self.write(now)
    }

    /// Lets the lease end now.
    pub(crate) fn release(&self, now: Timestamp) -> Result<()> {
        let _turn = self.hold()?;
        self.write_until(now)
    }

    /// True while half of the lease or more is left.
    fn is_fresh(&self, now: Timestamp) -> bool {
        let lease_micros = i64::from(self.claim.lease_seconds) * 1_000_000;
        let left_micros = self.lease_until_micros.load(Ordering::SeqCst).saturating_sub(now.as_micros());
        left_micros >= lease_micros / 2
    }

    /// The same without a look at the lease, for a moment in the middle of work: locks the record, which must be ours.
    pub(crate) fn hold(&self) -> Result<Turn> {
        let turn = {
            let mut held = self.held.lock();
            match held.upgrade() {
                Some(lock) => Turn(lock),
                None => {
                    let lock = Arc::new(lock(&self.root)?);
                    *held = Arc::downgrade(&lock);
                    Turn(lock)
                }
            }
        };
        self.check_record(&read(&self.root)?)?;
        Ok(turn)
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn check_record(&self, record: &Option<Record>) -> Result<()> {
        let fenced = |why: String| Err(Error::new(Kind::Fenced, why));
        match record {
            None => fenced("the owner record is gone".into()),
            Some(record)
                if record.deployment_id != self.claim.deployment_id
                    || record.hub_id != self.claim.hub_id
                    || record.epoch != self.epoch =>
            {
                fenced(format!(
                    "the repository was taken by hub {} of {} (epoch {}, ours was {})",
                    record.hub_id, record.deployment_id, record.epoch, self.epoch
                ))
            }
            Some(_) => Ok(()),
        }
    }

    fn write(&self, now: Timestamp) -> Result<()> {
        self.write_until(now.plus_seconds(i64::from(self.claim.lease_seconds)))
    }

    fn write_until(&self, lease_until: Timestamp) -> Result<()> {
        let _one = self.writing.lock();
        let record = Record {
            format: FORMAT.into(),
            version: VERSION,
            deployment_id: self.claim.deployment_id.clone(),
            hub_id: self.claim.hub_id.clone(),
            epoch: self.epoch,
            lease_until,
        };
        let mut bytes = serde_json::to_vec_pretty(&record).expect("a record of plain values can be written");
        bytes.push(b'\n');
        let record = self.root.join(layout::OWNER_FILE);
        spare::with(&*self.fs, &self.root, || crashsafe::replace(&*self.fs, &record, &bytes))?;
        self.lease_until_micros.store(lease_until.as_micros(), Ordering::SeqCst);
        Ok(())
    }
}

fn check_takeover(held: &Record, claim: &Claim, now: Timestamp) -> Result<()> {
    let lease_is_out = held.lease_until <= now;
    let allowed = if held.deployment_id != claim.deployment_id {
        claim.adopt == Adopt::LeaseOut && lease_is_out
    } else {
        held.hub_id == claim.hub_id || lease_is_out
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(
        Kind::Owned,
        format!("the repository is owned by hub {} of {} until {}", held.hub_id, held.deployment_id, held.lease_until),
    ))
}

#[cfg(not(test))]
fn lock_wait() -> Duration {
    LOCK_WAIT
}

#[cfg(test)]
thread_local! {
    static HURRIES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Others wait as ever: a process that another test starts has every open file for a moment, and its locks with it.
#[cfg(test)]
fn lock_wait() -> Duration {
    if HURRIES.get() { Duration::from_millis(20) } else { LOCK_WAIT }
}

/// Does something on this thread that does not wait long for the record, where the test knows that nobody lets it go.
#[cfg(test)]
pub(crate) fn hurrying<T>(work: impl FnOnce() -> T) -> T {
    HURRIES.set(true);
    let done = work();
    HURRIES.set(false);
    done
}

/// Locks the record against other processes; unlocked when the result is dropped (or the process dies).
fn lock(root: &Path) -> Result<OwnedFd> {
    let path = root.join(layout::OWNER_LOCK_FILE);
    let failed = |errno: rustix::io::Errno| crashsafe::failed("lock", &path, errno.into());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o640)).map_err(failed)?;
    let patience = Instant::now() + lock_wait();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => std::thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let why = "another hub is changing this repository at this moment, or was stopped while it did";
                return Err(Error::new(Kind::Owned, why));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crashsafe::System;
    use expect_test::expect;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(0).plus_seconds(seconds)
    }

    fn claim(deployment: &str, hub: &str) -> Claim {
        Claim {
            deployment_id: deployment.parse().unwrap(),
            hub_id: hub.parse().unwrap(),
            lease_seconds: 60,
            adopt: Adopt::Never,
        }
    }

    fn take(root: &Path, claim: Claim, now: i64) -> Result<Ownership> {
        Ownership::take(root, Arc::new(System), claim, at(now))
    }

    #[test]
    fn another_deployment_is_refused_until_told_to_adopt() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), claim("dep-a", "hub-1"), 0).unwrap();
        for (now, adopt, taken) in
            [(30, Adopt::LeaseOut, false), (61, Adopt::Never, false), (61, Adopt::LeaseOut, true)]
        {
            let result = take(dir.path(), Claim { adopt, ..claim("dep-b", "hub-1") }, now);
            assert_eq!(result.is_ok(), taken, "at {now} with {adopt:?}");
            if let Err(error) = result {
                assert_eq!(error.kind, Kind::Owned);
            }
        }
        assert_eq!(first.check(at(31)).unwrap_err().kind, Kind::Fenced);
    }

    #[test]
    fn a_hub_of_the_deployment_takes_over_when_the_lease_is_out_and_fences_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let stale = take(dir.path(), claim("dep-a", "hub-1"), 0).unwrap();
        assert_eq!(take(dir.path(), claim("dep-a", "hub-2"), 59).err().unwrap().kind, Kind::Owned);
        let next = take(dir.path(), claim("dep-a", "hub-2"), 60).unwrap();
        assert_eq!((stale.epoch(), next.epoch()), (1, 2));
        for now in [1, 59, 1000] {
            let error = stale.check(at(now)).unwrap_err();
            assert_eq!(error.kind, Kind::Fenced);
            assert_eq!(
                error.to_string(),
                "the repository was taken by hub hub-2 of dep-a (epoch 2, ours was 1)",
                "the stale hub wrote the record"
            );
        }
        next.check(at(61)).unwrap();
    }

    #[test]
    fn a_restarted_hub_goes_on_at_once_and_fences_its_old_process() {
        let dir = tempfile::tempdir().unwrap();
        let old = take(dir.path(), claim("dep-a", "hub-1"), 0).unwrap();
        let new = take(dir.path(), claim("dep-a", "hub-1"), 1).unwrap();
        assert_eq!(old.renew(at(2)).unwrap_err().kind, Kind::Fenced);
        new.renew(at(2)).unwrap();
    }

    #[test]
    fn checking_extends_a_lease_that_runs_out() {
        let dir = tempfile::tempdir().unwrap();
        let owner = take(dir.path(), claim("dep-a", "hub-1"), 0).unwrap();
        owner.check(at(29)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().lease_until, at(60));
        owner.check(at(31)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().lease_until, at(91));
        owner.check(at(500)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().lease_until, at(560), "nobody took it, so it is still ours");
    }

    #[test]
    fn the_record_is_readable_text() {
        let dir = tempfile::tempdir().unwrap();
        take(dir.path(), claim("dep-a", "hub-1"), 0).unwrap();
        let text = std::fs::read_to_string(dir.path().join(layout::OWNER_FILE)).unwrap();
        expect![[r#"
            {
              "format": "sendense-repository",
              "version": 1,
              "deployment_id": "dep-a",
              "hub_id": "hub-1",
              "epoch": 1,
              "lease_until": "1970-01-01T00:01:00Z"
            }
        "#]]
        .assert_eq(&text);
        assert_eq!(parse(text.replace("\": 1,", "\": 2,").as_bytes()).unwrap_err().kind, Kind::Unsupported);
        assert_eq!(parse(b"{}").unwrap_err().kind, Kind::Invalid);
        assert_eq!(parse(text.replace("repository\"", "x\"").as_bytes()).unwrap_err().kind, Kind::Invalid);
    }
}
