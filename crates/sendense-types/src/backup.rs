//! Words about a backup: its type, state, phase, consistency and settings.

use serde::{Deserialize, Serialize};

/// Declares an enum whose text form (wire, SQL, manifest) is fixed here once.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The text form.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            /// The error names the words that are allowed.
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    other => Err(format!("{other:?} is not one of {}", [$($text),*].join(", "))),
                }
            }
        }
    };
}
pub(crate) use words;

words! {
    /// What a point (or one disk of it) holds.
    BackupType {
        /// Every block that is not zero.
        Full = "full",
        /// What differs from the parent.
        Incremental = "incremental",
    }
}

words! {
    /// The life of a backup: `pending -> running -> completed | failed | cancelled`.
    BackupStatus {
        /// Accepted, waits for its turn.
        Pending = "pending",
        /// At work.
        Running = "running",
        /// Published: can be restored.
        Completed = "completed",
        /// Ended without a point; `error_message` says why.
        Failed = "failed",
        /// Stopped by a person; no point.
        Cancelled = "cancelled",
    }
}

impl BackupStatus {
    /// True when nothing more will happen to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// True when the state machine allows this step.
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Pending, Self::Running | Self::Failed | Self::Cancelled)
                | (Self::Running, Self::Completed | Self::Failed | Self::Cancelled)
        )
    }
}

words! {
    /// Where a running backup is.
    Phase {
        /// Freezing the source: snapshot, checkpoint, guest agent.
        Snapshot = "snapshot",
        /// Reading and storing blocks.
        Transferring = "transferring",
        /// Sealing and publishing.
        Finalizing = "finalizing",
    }
}

words! {
    /// What the guest was told before the freeze.
    Consistency {
        /// Nothing: as after a power cut.
        Crash = "crash",
        /// File systems were frozen.
        Filesystem = "filesystem",
        /// Applications were quiesced too.
        Application = "application",
    }
}

words! {
    /// How hard blocks are compressed. Each block is a zstd frame of its own, or raw when it would not shrink.
    Compression {
        /// Not at all.
        Off = "off",
        /// Least work.
        Fast = "fast",
        /// The balance that the benchmarks are run with.
        Default = "default",
        /// Least space.
        High = "high",
    }
}

words! {
    /// What to do when change tracking cannot be trusted although an incremental was asked for.
    OnTrackingLoss {
        /// Read everything, store what differs from the parent.
        Compare = "compare",
        /// Make a new full.
        Full = "full",
        /// Fail the backup.
        Fail = "fail",
    }
}

/// What an audit of change tracking found: blocks that tracking calls unchanged, read again and compared with the parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrackingAudit {
    /// Blocks that were looked at.
    pub blocks_checked: u64,
    /// Those of them that are not what the parent holds. One is enough to believe nothing of it.
    pub blocks_different: u64,
}

impl std::ops::AddAssign for TrackingAudit {
    fn add_assign(&mut self, other: Self) {
        self.blocks_checked = self.blocks_checked.saturating_add(other.blocks_checked);
        self.blocks_different = self.blocks_different.saturating_add(other.blocks_different);
    }
}

words! {
    /// What verifications say of a point.
    VerifyState {
        /// Its own files are as they were written, and nothing is known against those that it builds on.
        Sound = "sound",
        /// Some of its own bytes are not as they were written.
        Corrupt = "corrupt",
        /// It builds on a point that is corrupt, and needs what is lost there.
        Affected = "affected",
    }
}

words! {
    /// How much a verification looks at.
    VerifyDepth {
        /// The files, against the manifest.
        AtRest = "at_rest",
        /// Also every block, decoded, against its digest.
        Deep = "deep",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        for word in BackupStatus::ALL {
            assert_eq!(word.as_str().parse(), Ok(*word));
            assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
        }
        let error = "medium".parse::<Compression>().unwrap_err();
        assert_eq!(error, "\"medium\" is not one of off, fast, default, high");
    }

    #[test]
    fn final_states_stay() {
        for from in BackupStatus::ALL {
            for to in BackupStatus::ALL {
                assert!(!(from.is_final() && from.may_become(*to)), "{from} may become {to}");
            }
        }
    }
}
