//! Fetching a file or a folder of an open point into a file here.
//!
//! What comes is written under a name of its own beside the target, which tells by the file's ETag what it is, so that what
//! broke off goes on where it ended, and only if it is still the same file. Invariants: the target appears when it is whole
//! and on stable storage; nothing that exists is replaced unasked; nothing is unpacked.

use super::files::{Browser, shown};
use crate::args::Archive;
use crate::output::say;
use anyhow::{Context as _, Result, bail};
use sendense_api::{ArchiveFormat, Download, FileKind, GuestFileInfo, decode_path};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How often a broken download is taken up again before it is given up: a hub that restarts needs one.
const TRIES: u32 = 3;

/// Fetches what lies at a path. `to` is a file, a folder, or `-`.
pub async fn fetch(browser: &Browser<'_>, path: &str, to: Option<&Path>, archive: Archive, force: bool) -> Result<()> {
    let mut info = browser.info(path).await?;
    let name = name_of(&info);
    if info.file.kind == FileKind::Symlink {
        let Some(target) = info.resolved_path_encoded else {
            bail!("{} is a link that leads nowhere in the volume", shown(path));
        };
        info = browser.info(&target).await?;
    }
    match info.file.kind {
        FileKind::File => file(browser, &info, &name, to, force).await,
        FileKind::Directory => folder(browser, path, &name, to, archive, force).await,
        FileKind::Symlink | FileKind::Other => bail!("{} is neither a file nor a folder", shown(path)),
    }
}

/// The last name of a path, which is one component: no guest's name holds a slash.
fn name_of(info: &GuestFileInfo) -> OsString {
    let path = decode_path(&info.file.path_encoded);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    OsStr::from_bytes(if name.is_empty() || name == b"." || name == b".." { b"root" } else { name }).to_owned()
}

async fn file(browser: &Browser<'_>, info: &GuestFileInfo, name: &OsStr, to: Option<&Path>, force: bool) -> Result<()> {
    let (path, etag) = (&info.file.path_encoded, info.etag.as_deref().unwrap_or_default());
    let ask = |resume: Option<u64>| {
        let resume = resume.map(|from| (from, etag));
        browser.client().download_file(browser.mount(), path, browser.volume(), resume)
    };
    if to == Some(Path::new("-")) {
        return to_stdout(ask(None).await?).await;
    }
    let target = target(name, to);
    refuse_existing(&target, force)?;
    let tag: String = etag.chars().filter(char::is_ascii_alphanumeric).collect();
    let part = beside(&target, &format!(".sendense-{tag}.part"));
    let mut out = open_part(&part)?;
    let size = info.file.size;
    for tried in 1.. {
        let have = out.seek(SeekFrom::End(0)).context("measure what came before")?;
        if have == size {
            break;
        }
        let have = if have > size { 0 } else { have };
        let came = async {
            let mut download = ask((have > 0).then_some(have)).await?;
            // The hub goes on only if the file is the same; else it begins anew.
            out.set_len(download.start).context("cut what came before")?;
            out.seek(SeekFrom::Start(download.start))?;
            copy(&mut download, &mut out).await
        };
        match came.await {
            Ok(()) if out.stream_position()? == size => break,
            Ok(()) => bail!("{} came with another length than it should have", shown(path)),
            Err(error) if tried < TRIES && is_worth_a_try(&error) => say(format!("{error:#}; going on")),
            Err(error) => {
                let shown = part.display();
                return Err(error.context(format!("what came lies in {shown}; run the same again to go on")));
            }
        }
    }
    finish(out, &part, &target, force)?;
    say(format!("{} -> {} ({size} bytes)", shown(path), target.display()));
    Ok(())
}

async fn folder(
    browser: &Browser<'_>,
    path: &str,
    name: &OsStr,
    to: Option<&Path>,
    archive: Archive,
    force: bool,
) -> Result<()> {
    let format = match archive {
        Archive::TarGz => ArchiveFormat::TarGz,
        Archive::Zip => ArchiveFormat::Zip,
    };
    let mut file_name = name.to_owned();
    file_name.push(".");
    file_name.push(format.as_str());
    let ask = browser.client().download_directory(browser.mount(), path, browser.volume(), format);
    if to == Some(Path::new("-")) {
        return to_stdout(ask.await?).await;
    }
    let target = target(&file_name, to);
    refuse_existing(&target, force)?;
    let part = beside(&target, &format!(".sendense-{}.part", std::process::id()));
    let mut out = open_part(&part)?;
    out.set_len(0)?;
    let came = async { copy(&mut ask.await?, &mut out).await };
    if let Err(error) = came.await {
        // An archive cannot go on where it broke off.
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    finish(out, &part, &target, force)?;
    say(format!("{} -> {}", shown(path), target.display()));
    Ok(())
}

fn target(name: &OsStr, to: Option<&Path>) -> PathBuf {
    match to {
        None => PathBuf::from(name),
        Some(folder) if folder.is_dir() => folder.join(name),
        Some(file) => file.to_owned(),
    }
}

fn beside(target: &Path, name: &str) -> PathBuf {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).join(name)
}

/// Opens what is to become the target. A link that somebody put there is not followed.
fn open_part(part: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    const O_NOFOLLOW: i32 = 0o400_000;
    let mut options = OpenOptions::new();
    // Guests' files may be secret; the one who fetches decides who else reads them.
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW);
    options.open(part).with_context(|| format!("open {}", part.display()))
}

/// The target exists.
fn existing(target: &Path) -> anyhow::Error {
    anyhow::anyhow!("{} exists; --force replaces it", target.display())
}

fn refuse_existing(target: &Path, force: bool) -> Result<()> {
    if !force && target.symlink_metadata().is_ok() { Err(existing(target)) } else { Ok(()) }
}

fn finish(out: File, part: &Path, target: &Path, force: bool) -> Result<()> {
    out.sync_all().with_context(|| format!("write {} to stable storage", part.display()))?;
    let named = if force {
        std::fs::rename(part, target)
    } else {
        // A second name fails where there is one already; a rename would replace it.
        std::fs::hard_link(part, target).and_then(|()| std::fs::remove_file(part))
    };
    match named {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(existing(target)),
        named => named.with_context(|| format!("give {} its name", target.display())),
    }
}

async fn to_stdout(mut download: Download) -> Result<()> {
    copy(&mut download, &mut std::io::stdout().lock()).await
}

async fn copy(download: &mut Download, out: &mut dyn Write) -> Result<()> {
    while let Some(piece) = download.next_piece().await? {
        out.write_all(piece.as_ref()).context("write what came")?;
    }
    out.flush().context("write what came")
}

fn is_worth_a_try(error: &anyhow::Error) -> bool {
    error.downcast_ref::<sendense_api::ClientError>().is_some_and(|error| error.status().is_none())
}
