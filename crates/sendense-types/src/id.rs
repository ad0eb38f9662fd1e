//! Typed ids: one newtype per noun, so that a backup's id cannot be passed where a VM's is meant.
//!
//! An id is 1 to 64 characters of `a-z A-Z 0-9 . _ -` and starts with a letter or a digit. It is therefore safe as
//! one path component: never empty, never `.` or `..`, no separator, no leading dash that a tool could take as a flag.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest id in bytes. With a suffix such as `.digests` it stays far below the 255 bytes of a file name.
pub const ID_BYTES_MAX: usize = 64;

/// Why a text is not an id. The caller must send another one; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {text:?} is not valid: 1 to 64 characters of a-z A-Z 0-9 . _ - are allowed, the first a letter or digit"
)]
pub struct IdError {
    /// Which kind of id was expected.
    pub what: &'static str,
    /// The text that was given, cut to 80 characters.
    pub text: String,
}

fn check(what: &'static str, text: &str) -> Result<(), IdError> {
    let valid = !text.is_empty()
        && text.len() <= ID_BYTES_MAX
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if valid { Ok(()) } else { Err(IdError { what, text: text.chars().take(80).collect() }) }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes a new unique id. Ids sort roughly by the time they were made (UUID version 7, RFC 9562);
            /// nothing may rely on that order: the order of points comes from parent links.
            pub fn generate() -> Self {
                Self(format!(concat!($prefix, "-{}"), uuid::Uuid::now_v7().simple()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check($what, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// One restore point of one VM.
    BackupId, "bk", "backup id";
    /// One VM as the hub knows it; survives renames of the VM.
    VmContextId, "vm", "VM context id";
    /// One repository.
    RepositoryId, "repo", "repository id";
    /// One hypervisor, image folder or NBD server.
    SourceId, "src", "source id";
    /// One piece of work.
    TaskId, "task", "task id";
    /// One restore point that is open for browsing.
    MountId, "mnt", "mount id";
    /// One disk of a restore point on offer over NBD.
    ExportId, "exp", "export id";
    /// One machine that was recovered in an instant.
    RecoveryId, "rcv", "recovery id";
    /// One policy.
    PolicyId, "pol", "policy id";
    /// One schedule.
    ScheduleId, "sch", "schedule id";
    /// One execution of a schedule.
    ExecutionId, "exec", "execution id";
    /// One data mover.
    NodeId, "node", "node id";
    /// One catalog with all hubs that work on it. Names of everything we make on a hypervisor carry it.
    DeploymentId, "dep", "deployment id";
    /// One hub process' identity, kept over restarts in its data folder.
    HubId, "hub", "hub id";
}

/// The number of a disk within its VM (`disk_id` on the wire): 0, 1, 2 … Bound to what the disk *is*
/// ([`crate::DiskBinding`]) and never given to another disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskNumber(pub u32);

impl fmt::Display for DiskNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generated_ids_are_valid_and_differ() {
        let (one, two) = (BackupId::generate(), BackupId::generate());
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<BackupId>(), Ok(one));
    }

    #[test]
    fn what_could_leave_a_folder_is_refused() {
        for text in ["", ".", "..", "a/b", "../x", "-rf", ".draft-x", "a\0b", "ä", "a b", &"x".repeat(65)] {
            assert!(text.parse::<BackupId>().is_err(), "{text:?} was taken");
            assert!(serde_json::from_value::<VmContextId>(text.into()).is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn a_valid_id_is_one_path_component(text in any::<String>()) {
            if let Ok(id) = text.parse::<TaskId>() {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }
}
