//! What keeps a point from being deleted: that a person protected it, or that it is held until a date.
//!
//! What lives here: the file `<backup_id>.hold` beside a point's manifest, and how it is read and changed. What does not: the
//! deletion, which looks here before it removes anything. The manifest itself never changes once it is published, so this is
//! a file of its own; it travels with the repository, and a new catalog that imports the repository knows of it.
//!
//! Invariant: a file that cannot be read holds its point. Only a change by a person, which replaces it, lets the point go.

use crate::crashsafe;
use crate::error::{Error, Kind, Result};
use crate::layout::{self, VmEntry};
use crate::lock::Operation;
use crate::repository::Repository;
use sendense_types::{BackupId, Timestamp, VmContextId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const FORMAT: &str = "sendense-hold";
const VERSION: u32 = 1;
/// A file is some 110 bytes; 64 KiB leaves room for later versions and is no burden to read.
pub(crate) const HOLD_BYTES_MAX: u64 = 64 * 1024;

/// What keeps a point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    /// A person said that it stays until a person says otherwise.
    pub protected: bool,
    /// It stays until then.
    pub until: Option<Timestamp>,
}

/// The content of the file. Unknown fields are refused: one that a later program writes may be a further reason to keep the
/// point, which this one must not lose.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    protected: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold_until: Option<Timestamp>,
}

impl Hold {
    /// True while the point must stay.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.protected || self.until.is_some_and(|until| until > now)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protected, self.until) {
            (true, Some(until)) => write!(f, "protected, and held until {until}"),
            (true, None) => write!(f, "protected"),
            (false, Some(until)) => write!(f, "held until {until}"),
            (false, None) => write!(f, "not held"),
        }
    }
}

/// Reads the text of a hold.
pub fn parse(bytes: &[u8]) -> Result<Hold> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| Error::invalid("read a hold").caused_by(error))?;
    if file.format != FORMAT {
        let cut: String = file.format.chars().take(80).collect();
        return Err(Error::invalid(format!("the hold's format is {cut:?}, not {FORMAT:?}")));
    }
    if file.version != VERSION {
        let context = format!("the hold has version {}; this program knows {VERSION}", file.version);
        return Err(Error::new(Kind::Unsupported, context));
    }
    Ok(Hold { protected: file.protected, until: file.hold_until })
}

fn text(hold: Hold) -> Vec<u8> {
    let file = File { format: FORMAT.to_owned(), version: VERSION, protected: hold.protected, hold_until: hold.until };
    let mut bytes = serde_json::to_vec(&file).expect("strings, numbers and a moment always make JSON");
    bytes.push(b'\n');
    bytes
}

impl Repository {
    /// What keeps a point; nothing when it has no such file.
    ///
    /// # Errors
    /// Whatever keeps the file from being read: then nobody knows, and the point must stay.
    pub fn hold(&self, vm: &VmContextId, backup: &BackupId) -> Result<Hold> {
        let path = layout::hold(vm, backup);
        match crashsafe::read_small(self.root(), &path, HOLD_BYTES_MAX).and_then(|bytes| parse(&bytes)) {
            Ok(hold) => Ok(hold),
            Err(error) if error.kind == Kind::NotFound => Ok(Hold::default()),
            Err(error) if error.kind == Kind::Invalid => {
                Err(Error::corrupt(&path, None, format!("read {}", path.display())).caused_by(error))
            }
            Err(error) => Err(error.within(format!("read {}", path.display()))),
        }
    }

    /// What keeps the points of a VM; points that nothing keeps are left out.
    ///
    /// # Errors
    /// As of [`Repository::hold`].
    pub fn holds(&self, vm: &VmContextId) -> Result<BTreeMap<BackupId, Hold>> {
        let mut holds = BTreeMap::new();
        for (_, entry, _) in self.vm_entries(vm)? {
            if let VmEntry::Hold(backup) = entry {
                let hold = self.hold(vm, &backup)?;
                holds.insert(backup, hold);
            }
        }
        Ok(holds)
    }

    /// Changes what keeps a point, durably, and says what it is now. A file that cannot be read is replaced: `change` is given
    /// what nothing keeps.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such point, [`Kind::Conflict`] while it is being deleted or its move to another repository
    /// is unsettled, [`Kind::Fenced`].
    pub fn change_hold(
        &self,
        vm: &VmContextId,
        backup: &BackupId,
        change: impl FnOnce(&mut Hold),
        who: &str,
        now: Timestamp,
    ) -> Result<Hold> {
        // As a reader: nothing that leaves the point alone is in the way, a deletion is.
        let _guard = self.lock(Operation::Read, vm, BTreeSet::from([backup.clone()]), who)?;
        let _turn = self.holds_turn().lock();
        let _ours = self.ownership()?.turn(now)?;
        // What the other repository has of it was laid down before.
        self.refuse_moving(vm)?;
        if !self.at(layout::manifest(vm, backup)).is_file() {
            return Err(Error::new(Kind::NotFound, format!("no point {backup} of {vm}")));
        }
        let mut hold = match self.hold(vm, backup) {
            Ok(hold) => hold,
            Err(error) if matches!(error.kind, Kind::Corrupt { .. }) => Hold::default(),
            Err(error) => return Err(error),
        };
        change(&mut hold);
        let path = self.at(layout::hold(vm, backup));
        if hold == Hold::default() {
            crashsafe::remove_file_if_there(self.fs(), &path)?;
            crashsafe::sync_dir(self.fs(), &self.at(layout::vm_dir(vm)))?;
        } else {
            crashsafe::replace(self.fs(), &path, &text(hold))?;
        }
        tracing::info!(backup_id = %backup, vm_context_id = %vm, hold = %hold, by = %who, "hold changed");
        Ok(hold)
    }

    /// Fails with [`Kind::Held`] when one of the points must stay.
    ///
    /// # Errors
    /// That, and as of [`Repository::hold`].
    pub fn refuse_held<'a>(
        &self,
        vm: &VmContextId,
        points: impl IntoIterator<Item = &'a BackupId>,
        now: Timestamp,
    ) -> Result<()> {
        for backup in points {
            let hold = self.hold(vm, backup)?;
            if hold.holds(now) {
                let kind = Kind::Held { backup_id: backup.clone(), hold };
                return Err(Error::new(kind, format!("{backup} is {hold}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_is_read_back_and_stays_as_it_is() {
        let until = Timestamp::from_micros(1_800_000_000_000_000);
        let hold = Hold { protected: true, until: Some(until) };
        let bytes = text(hold);
        expect_test::expect![[r#"
            {"format":"sendense-hold","version":1,"protected":true,"hold_until":"2027-01-15T08:00:00Z"}
        "#]]
        .assert_eq(std::str::from_utf8(&bytes).unwrap());
        assert_eq!(parse(&bytes).unwrap(), hold);
        let hold = Hold { protected: false, until: None };
        assert_eq!(parse(&text(hold)).unwrap(), hold);
        assert!(Hold { protected: false, until: Some(until) }.holds(until.plus_seconds(-1)));
        assert!(!Hold { protected: false, until: Some(until) }.holds(until), "the moment itself is free");
    }

    #[test]
    fn what_a_later_program_wrote_is_not_taken_for_less() {
        for (text, kind) in [
            (r#"{"format":"sendense-hold","version":2,"protected":false}"#, Kind::Unsupported),
            (r#"{"format":"sendense-hold","version":1,"protected":false,"legal":true}"#, Kind::Invalid),
            (r#"{"format":"other","version":1,"protected":false}"#, Kind::Invalid),
            (r#"{"format":"sendense-hold","version":1}"#, Kind::Invalid),
            ("", Kind::Invalid),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().kind, kind, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
