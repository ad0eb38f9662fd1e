//! `sendense diff`: what changed in a text file between two restore points of a machine.
//!
//! Both points are opened, one after the other, each for as long as its file is fetched; the comparison happens here. A
//! terminal gets every byte that it would act upon written out; a file or a pipe gets the bytes, so that `patch` takes them.

use super::files::{Browser, open, path_of, shown};
use crate::args::{DiffArgs, MountArgs};
use crate::context::Context;
use crate::exit;
use crate::output::{bytes, line, moment, raw, say};
use crate::plain::plain;
use anyhow::{Context as _, Result, bail};
use sendense_api::{ClientError, FileKind, GuestFile};
use sendense_types::{BackupId, ProblemCode, VmContextId};
use similar::udiff::UnifiedHunkHeader;
use similar::{Algorithm, ChangeTag, DiffOp, capture_diff_slices_deadline, group_diff_ops};
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The largest file that is compared: a person reads the outcome, and both are held in memory.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// After this time the shortest difference is no longer looked for; what is told stays true.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs the command.
pub async fn run(context: &Context, args: DiffArgs) -> Result<u8> {
    let mut interrupt = Interrupt::new()?;
    let Some((path, old, new)) = both(context, &args, &mut interrupt).await? else { return Ok(exit::INTERRUPTED) };
    let name = |point: &BackupId, version: &Version| match version {
        Version::Text(file, _) | Version::Binary(file, _) => {
            let time = file.modified_time.map(|time| format!("\t{}", moment(time))).unwrap_or_default();
            format!("{point}:{}{time}", shown(&path))
        }
        _ => "/dev/null".to_owned(),
    };
    let (old_name, new_name) = (name(&args.from, &old), name(&args.to, &new));
    match (&old, &new) {
        (Version::Missing, Version::Missing) => {
            say(format!("neither point holds {}", shown(&path)));
            return Ok(exit::NOT_FOUND);
        }
        _ if old.content() == new.content() && old.is_missing() == new.is_missing() => say("both hold the same"),
        (Version::Binary(..), _) | (_, Version::Binary(..)) => {
            let size = |version: &Version| match version.is_missing() {
                true => "missing".to_owned(),
                false => bytes(version.content().len() as u64),
            };
            line(format!("binary files differ: {} in {}, {} in {}", size(&old), args.from, size(&new), args.to));
        }
        _ => {
            let text = unified(old.content(), new.content(), [&old_name, &new_name], args.unified);
            raw(&if std::io::stdout().is_terminal() { harmless(&text) } else { text });
        }
    }
    Ok(0)
}

/// What a point holds under the path.
enum Version {
    Missing,
    Text(Box<GuestFile>, Vec<u8>),
    Binary(Box<GuestFile>, Vec<u8>),
}

/// Ctrl-C, asked for before a point is opened, so that none stays open whenever it comes. Pressed once more it ends the program
/// at once: a hub that does not answer holds nobody.
struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    fn new() -> Result<Self> {
        let mut pressed = signal(SignalKind::interrupt()).context("ask for Ctrl-C")?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            pressed.recv().await;
            // Nobody listens any more when the command has ended.
            let _ = sender.send(true);
            pressed.recv().await;
            std::process::exit(exit::INTERRUPTED.into());
        });
        Ok(Self(receiver))
    }

    /// What comes of the work, or none when it was interrupted before or meanwhile.
    async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _ = self.0.wait_for(|pressed| *pressed) => None,
            done = work => Some(done),
        }
    }
}

impl Version {
    fn content(&self) -> &[u8] {
        match self {
            Self::Text(_, content) | Self::Binary(_, content) => content,
            Self::Missing => &[],
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }
}

/// The path and what both points hold there, unless interrupted.
async fn both(
    context: &Context,
    args: &DiffArgs,
    interrupt: &mut Interrupt,
) -> Result<Option<(String, Version, Version)>> {
    let Some(vm) = interrupt.unless(context.client.get_vm(&args.vm)).await.transpose()? else { return Ok(None) };
    let (vm, path) = (vm.vm_context_id, path_of(&args.path));
    let Some(old) = version(context, &vm, &args.from, args, &path, interrupt).await? else { return Ok(None) };
    let Some(new) = version(context, &vm, &args.to, args, &path, interrupt).await? else { return Ok(None) };
    Ok(Some((path, old, new)))
}

/// Opens a point, fetches the file, closes it, also when something fails or the person has seen enough; none then.
async fn version(
    context: &Context,
    vm: &VmContextId,
    point: &BackupId,
    args: &DiffArgs,
    path: &str,
    interrupt: &mut Interrupt,
) -> Result<Option<Version>> {
    let client = &context.client;
    let Some(backup) = interrupt.unless(client.get_backup(point)).await.transpose()? else { return Ok(None) };
    if backup.vm_context_id != *vm {
        bail!("{point} is a backup of {}, not of {}", backup.vm_name, args.vm);
    }
    let opening = open(client, MountArgs { point: point.clone(), disk: args.disk, volume: args.volume.clone() });
    let mut opening = std::pin::pin!(opening);
    let mount = match interrupt.unless(&mut opening).await {
        Some(mount) => mount?,
        // The hub opens it whether or not somebody waits, and only its answer says what to close.
        None => {
            say(format!("{point} is closed as soon as it is open; Ctrl-C once more does not wait for that"));
            opening.await?
        }
    };
    let browser = Browser::new(client, mount.mount_id.clone(), args.volume.clone());
    let fetched = interrupt.unless(fetch(&browser, path)).await;
    let closed = client.delete_mount(&mount.mount_id).await;
    let fetched = fetched.transpose()?;
    closed?;
    Ok(fetched)
}

async fn fetch(browser: &Browser<'_>, path: &str) -> Result<Version> {
    let mut info = match browser.info(path).await {
        Ok(info) => info,
        Err(error) if is_not_found(&error) => return Ok(Version::Missing),
        Err(error) => return Err(error),
    };
    if let Some(target) = info.resolved_path_encoded.take() {
        info = browser.info(&target).await?;
    }
    let file = info.file;
    match file.kind {
        FileKind::File => {}
        FileKind::Symlink => bail!("{} is a link that leads nowhere in the volume", shown(path)),
        FileKind::Directory => bail!("{} is a folder", shown(path)),
        FileKind::Other => bail!("{} is no file", shown(path)),
    }
    let too_large = || {
        let (size, most) = (bytes(file.size), bytes(TEXT_BYTES_MAX));
        anyhow::anyhow!("{} has {size}; files of up to {most} are compared line by line", shown(path))
    };
    if file.size > TEXT_BYTES_MAX {
        return Err(too_large());
    }
    let mut download =
        browser.client().download_file(browser.mount(), &file.path_encoded, browser.volume(), None).await?;
    let mut content = Vec::new();
    while let Some(piece) = download.next_piece().await? {
        content.extend_from_slice(piece.as_ref());
        if content.len() as u64 > TEXT_BYTES_MAX {
            return Err(too_large());
        }
    }
    // No text has a NUL, and hardly anything else is without one.
    let file = Box::new(file);
    Ok(if content.contains(&0) { Version::Binary(file, content) } else { Version::Text(file, content) })
}

fn is_not_found(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<ClientError>();
    problem.is_some_and(|error| error.code() == Some(ProblemCode::FileNotFound))
}

/// The differences as `diff -u` writes them.
fn unified(old: &[u8], new: &[u8], names: [&str; 2], context: usize) -> Vec<u8> {
    let (old, new) = (lines_of(old), lines_of(new));
    // More lines than there are change nothing, and the library doubles the number.
    let context = context.min(old.len().max(new.len()));
    let deadline = Some(Instant::now() + SEARCH_TIME_MAX);
    let ops = capture_diff_slices_deadline(Algorithm::Myers, &old, &new, deadline);
    let mut text = format!("--- {}\n+++ {}\n", names[0], names[1]).into_bytes();
    for hunk in group_diff_ops(ops, context) {
        let mut header = String::new();
        // A String takes all that is written to it.
        writeln!(header, "{}", UnifiedHunkHeader::new(&hunk)).unwrap_or_default();
        text.extend(header.into_bytes());
        for (tag, lines) in hunk.iter().flat_map(|op: &DiffOp| op.iter_slices(&old[..], &new[..])) {
            let sign = match tag {
                ChangeTag::Equal => b' ',
                ChangeTag::Delete => b'-',
                ChangeTag::Insert => b'+',
            };
            for line in lines {
                text.push(sign);
                text.extend_from_slice(line);
                if !line.ends_with(b"\n") {
                    text.extend_from_slice(b"\n\\ No newline at end of file\n");
                }
            }
        }
    }
    text
}

/// Only a line feed ends a line: `patch` knows no other.
fn lines_of(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// The same for a terminal: tabs and line feeds stay, everything else that it would act upon is written out.
fn harmless(text: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        for (number, part) in line.split(|byte| *byte == b'\t').enumerate() {
            if number > 0 {
                shown.push(b'\t');
            }
            shown.extend(plain(&String::from_utf8_lossy(part)).bytes());
        }
        shown.push(b'\n');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn differences_are_told_as_diff_tells_them() {
        let text = unified(b"a\nb\nc\n", b"a\nB\r\x1b[2J\nc", ["x", "y"], 1);
        let want = "--- x\n+++ y\n@@ -1,3 +1,3 @@\n a\n-b\n-c\n+B\r\x1b[2J\n+c\n\\ No newline at end of file\n";
        assert_eq!(String::from_utf8(text.clone()).unwrap(), want);
        let shown = String::from_utf8(harmless(&text)).unwrap();
        assert_eq!(shown, want.replace("\r\x1b", "\\r\\u{1b}"));
        assert_eq!(harmless(b"\ta\xff\n"), "\ta\u{fffd}\n".as_bytes());
    }

    #[test]
    fn however_many_lines_are_asked_for_all_are_shown_at_most() {
        let (old, new) = (b"a\nb\nc\n", b"a\nb\nC\n");
        let all = unified(old, new, ["x", "y"], 3);
        assert!(all.ends_with(b"@@ -1,3 +1,3 @@\n a\n b\n-c\n+C\n"));
        for context in [usize::MAX, usize::MAX / 2 + 1] {
            assert_eq!(unified(old, new, ["x", "y"], context), all);
        }
    }

    proptest! {
        /// What patch would do with the outcome gives the new file.
        #[test]
        fn the_new_file_comes_of_the_old_one_and_the_differences(
            old in "([ab]{0,2}\n){0,12}[ab]{0,1}", new in "([ab]{0,2}\n){0,12}[ab]{0,1}", context in 0usize..4,
        ) {
            let text = unified(old.as_bytes(), new.as_bytes(), ["x", "y"], context);
            prop_assert_eq!(patched(&old, &String::from_utf8(text).unwrap()), new);
        }
    }

    /// A small `patch`.
    fn patched(old: &str, differences: &str) -> String {
        let old: Vec<&str> = old.split_inclusive('\n').collect();
        let (mut at, mut new, mut before) = (0, String::new(), "");
        for line in differences.split_inclusive('\n').skip(2) {
            let (sign, rest) = line.split_at(1);
            match sign {
                "@" => {
                    let range = rest.split_whitespace().nth(1).unwrap().trim_start_matches('-');
                    let mut numbers = range.split(',').map(|number| number.parse::<usize>().unwrap());
                    let (first, count) = (numbers.next().unwrap(), numbers.next().unwrap_or(1));
                    let from = if count == 0 { first } else { first - 1 };
                    new.extend(old[at..from].iter().copied());
                    at = from;
                }
                " " => {
                    new.push_str(rest);
                    at += 1;
                }
                "-" => at += 1,
                "+" => new.push_str(rest),
                // The line before has no end.
                _ if before != "-" => drop(new.pop()),
                _ => {}
            }
            before = sign;
        }
        new.extend(old[at..].iter().copied());
        new
    }
}
