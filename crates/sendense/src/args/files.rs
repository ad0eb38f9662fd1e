//! Words for browsing restore points.

use clap::{Args as ClapArgs, ValueEnum};
use sendense_types::{BackupId, MountId};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, ClapArgs)]
pub struct MountArgs {
    /// The restore point (a backup's id).
    pub point: BackupId,
    /// The disk's number; may be left out when the point has one disk.
    #[arg(long)]
    pub disk: Option<u32>,
    /// The volume that is meant where later commands name none.
    #[arg(long)]
    pub volume: Option<String>,
}

/// An open point and one of its volumes.
#[derive(Debug, Clone, ClapArgs)]
pub struct Place {
    /// The open point, as `sendense mount` printed it.
    pub mount: MountId,
    /// The volume; may be left out when the disk has one that can be read.
    #[arg(long)]
    pub volume: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct LsArgs {
    #[command(flatten)]
    pub place: Place,
    /// The folder.
    #[arg(default_value = "/")]
    pub path: OsString,
}

#[derive(Debug, ClapArgs)]
pub struct StatArgs {
    #[command(flatten)]
    pub place: Place,
    /// The file, folder or link.
    pub path: OsString,
}

#[derive(Debug, ClapArgs)]
pub struct GetArgs {
    #[command(flatten)]
    pub place: Place,
    /// The file, or a folder, which comes as an archive.
    pub path: OsString,
    /// Where to: a file, a folder that exists, or `-` for stdout. Default: the name here.
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// The form of a folder's archive.
    #[arg(long, value_enum, default_value_t = Archive::TarGz)]
    pub archive: Archive,
    /// Replace what has the name already.
    #[arg(long)]
    pub force: bool,
}

/// Forms of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Archive {
    /// Keeps owners, links and holes.
    #[value(name = "tar.gz")]
    TarGz,
    /// For machines without tar.
    Zip,
}

#[derive(Debug, ClapArgs)]
pub struct FindArgs {
    #[command(flatten)]
    pub place: Place,
    /// The folder below which to look.
    #[arg(default_value = "/")]
    pub path: OsString,
    /// The name; `*` is any run of letters, `?` is one.
    #[arg(long)]
    pub name: OsString,
}

#[derive(Debug, ClapArgs)]
pub struct UnlockArgs {
    /// The open point.
    pub mount: MountId,
    /// The encrypted volume.
    pub volume: String,
    /// File that holds the passphrase; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct HistoryArgs {
    /// The VM's name or id.
    pub vm: String,
    /// The file; links are followed inside the volume.
    pub path: OsString,
    /// The disk's number; may be left out when the VM has one disk.
    #[arg(long)]
    pub disk: Option<u32>,
    /// The volume; may be left out when the disk has one that can be read.
    #[arg(long)]
    pub volume: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct DiffArgs {
    /// The VM's name or id.
    pub vm: String,
    /// The file; links are followed inside the volume.
    pub path: OsString,
    /// The restore point that holds the old version (a backup's id).
    pub from: BackupId,
    /// The one that holds the new version.
    pub to: BackupId,
    /// Lines that are shown around each difference.
    #[arg(long, short = 'U', value_name = "LINES", default_value_t = 3)]
    pub unified: usize,
    /// The disk's number; may be left out when the points have one disk.
    #[arg(long)]
    pub disk: Option<u32>,
    /// The volume; may be left out when the disk has one that can be read.
    #[arg(long)]
    pub volume: Option<String>,
}
