//! What a file, a folder and a volume are, as every backend tells it.

use crate::error::Reason;

/// What an entry is. Devices, pipes and sockets are [`FileType::Other`]: listed, never opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link; its target is bytes.
    Symlink,
    /// Anything else.
    Other,
}

/// A point in time as a guest wrote it; any value can occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestTime {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// Nanoseconds in that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What a file system says of one entry. Links are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The inode (NTFS: the file record) number; the same number is the same file.
    pub inode: u64,
    /// What it is.
    pub file_type: FileType,
    /// Length of the file or of the link's target.
    pub size_bytes: u64,
    /// Permission bits, `0o7777`. File systems without any answer what Linux shows by default.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; 1 where the file system does not count.
    pub links: u32,
    /// Last change of the content; none where it is not recorded.
    pub modified: Option<GuestTime>,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, as bytes: no `/`, no NUL, not empty, not `.` or `..`.
    pub name: Vec<u8>,
    /// What it names.
    pub meta: Meta,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// A page of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The entries, each name once over all pages.
    pub entries: Vec<Entry>,
    /// Give it as `after` for the next page; none at the end.
    pub next: Option<u64>,
}

/// Whether what a volume shows is what its guest had written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Cleanly unmounted, or no log.
    Clean,
    /// The log was replayed, in memory or on a throw-away overlay.
    Replayed,
    /// The log could not be replayed: the last changes may be missing or torn. Always shown to the user.
    LogNotReplayed,
}

/// A file system and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `ext4`, `xfs`, `btrfs`, `ntfs`, `vfat`, `iso9660`.
    pub kind: &'static str,
    /// Label as text, lossy; none when empty.
    pub label: Option<String>,
    /// UUID or serial number as the file system's own tools print it.
    pub uuid: Option<String>,
    /// Size of the file system.
    pub size_bytes: u64,
    /// Whether its log was clean.
    pub consistency: Consistency,
}

/// Where a volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Files can be read.
    Readable,
    /// Encrypted; a key opens it.
    Locked,
    /// No file system: swap, an empty partition.
    Empty,
    /// Not readable by this backend, with the reason.
    Unsupported(Reason),
    /// Not readable by anyone, with the reason.
    Corrupt(String),
}
