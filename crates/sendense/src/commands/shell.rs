//! `sendense shell`: browse in a restore point as `sftp` does. Commands come from the terminal, or line by line from stdin.

use super::fetch;
use super::files::{Browser, file, files, open, shown, tell_volumes};
use crate::args::{Archive, MountArgs};
use crate::context::Context;
use crate::exit;
use crate::output::{error as tell, line, say, table as show};
use anyhow::{Result, bail};
use sendense_api::{FileKind, encode_path};
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

const HELP: &str = "\
ls [PATH]            list a folder
cd [PATH]            go to a folder
pwd                  where this is
stat PATH            show one file, folder or link
get PATH [FILE]      fetch a file, or a folder as tar.gz; nothing is replaced
find PATTERN [PATH]  search for names; * is any run of letters, ? is one
volume [NAME]        use another volume
help                 this
exit                 close the point and leave
Quote names with spaces; \\xNN is the byte NN.";

/// Opens the point, browses until the end of the input, closes it.
pub async fn run(context: &Context, args: MountArgs) -> Result<u8> {
    let mount = open(&context.client, args).await?;
    tell_volumes(&mount);
    let mut shell = Shell {
        browser: Browser::new(&context.client, mount.mount_id.clone(), mount.volume.clone()),
        context,
        folder: Vec::new(),
    };
    let browsed = shell.browse().await;
    // Whatever happened, the place is given back.
    let closed = context.client.delete_mount(&mount.mount_id).await;
    let code = browsed?;
    closed?;
    Ok(code)
}

struct Shell<'a> {
    browser: Browser<'a>,
    context: &'a Context,
    /// The parts of the path of the folder that this is in.
    folder: Vec<Vec<u8>>,
}

impl Shell<'_> {
    async fn browse(&mut self) -> Result<u8> {
        let is_person = std::io::stdin().is_terminal();
        let (mut input, mut code) = (std::io::stdin().lock(), 0);
        loop {
            if is_person {
                eprint!("{} > ", shown(&self.path(&[])));
                std::io::stderr().flush()?;
            }
            let mut text = Vec::new();
            if input.read_until(b'\n', &mut text)? == 0 {
                return Ok(code);
            }
            let done = match words(text.trim_ascii()) {
                Ok(words) if words.first().is_some_and(|word| word == b"exit" || word == b"quit") => return Ok(code),
                Ok(words) => self.command(&words).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tell(&exit::told(&error));
                // A script learns that something failed; a person has seen it.
                code = if is_person { 0 } else { exit::code(&error) };
            }
        }
    }

    async fn command(&mut self, words: &[Vec<u8>]) -> Result<()> {
        let Some((command, arguments)) = words.split_first() else { return Ok(()) };
        let argument = |at: usize| arguments.get(at).map(Vec::as_slice);
        match (&command[..], arguments.len()) {
            (b"help", _) => HELP.lines().for_each(line),
            (b"pwd", 0) => line(shown(&self.path(&[]))),
            (b"ls", 0 | 1) => {
                let page = self.browser.list(&self.path(argument(0).unwrap_or_default())).await?;
                show(files(&page.items, false));
            }
            (b"cd", 0) => self.folder.clear(),
            (b"cd", 1) => {
                let parts = self.parts(argument(0).unwrap_or_default());
                let path = joined(&parts);
                let info = self.browser.info(&path).await?;
                match (info.file.kind, info.resolved_path_encoded) {
                    (FileKind::Directory, _) => {}
                    // Links are followed by the hub, inside the volume; this fails where one leads to no folder.
                    (FileKind::Symlink, Some(target)) => {
                        if self.browser.info(&target).await?.file.kind != FileKind::Directory {
                            bail!("{} leads to no folder", shown(&path));
                        }
                    }
                    _ => bail!("{} is no folder", shown(&path)),
                }
                self.folder = parts;
            }
            (b"stat", 1) => show(file(&self.browser.info(&self.path(argument(0).unwrap_or_default())).await?)),
            (b"get", 1 | 2) => {
                let path = self.path(argument(0).unwrap_or_default());
                let to = argument(1).map(|to| PathBuf::from(OsString::from_vec(to.to_vec())));
                fetch::fetch(&self.browser, &path, to.as_deref(), Archive::TarGz, false).await?;
            }
            (b"find", 1 | 2) => {
                let below = self.path(argument(1).unwrap_or_default());
                show(files(&self.browser.find(&below, argument(0).unwrap_or_default()).await?, true));
            }
            (b"volume", 0) => line(self.browser.volume().unwrap_or("none")),
            (b"volume", 1) => {
                let name = String::from_utf8_lossy(argument(0).unwrap_or_default()).into_owned();
                let browser = Browser::new(&self.context.client, self.browser.mount().clone(), Some(name));
                browser.info("/").await?;
                self.folder.clear();
                self.browser = browser;
            }
            (other, _) => {
                say("help tells what can be done");
                bail!("{} is not understood", String::from_utf8_lossy(other).escape_debug());
            }
        }
        Ok(())
    }

    /// A path as typed, from where this is: `..` goes up, and stays at the root.
    fn parts(&self, typed: &[u8]) -> Vec<Vec<u8>> {
        let mut parts = if typed.starts_with(b"/") { Vec::new() } else { self.folder.clone() };
        for part in typed.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                name => parts.push(name.to_vec()),
            }
        }
        parts
    }

    fn path(&self, typed: &[u8]) -> String {
        joined(&self.parts(typed))
    }
}

fn joined(parts: &[Vec<u8>]) -> String {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| [b"/", part.as_slice()].concat()).collect();
    if bytes.is_empty() { "/".to_owned() } else { encode_path(&bytes) }
}

/// The words of a line: quotes keep spaces, a backslash takes the next letter as it is, `\xNN` is a byte.
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<Vec<u8>>, None);
    let mut rest = line;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (*byte, quote) {
            (b'\\', _) => {
                let hex = after.strip_prefix(b"x").and_then(|after| after.get(..2));
                let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
                let (byte, taken) = match (hex, after.first()) {
                    (Some(byte), _) => (byte, 3),
                    (None, Some(byte)) => (*byte, 1),
                    (None, None) => bail!("the line ends in a backslash"),
                };
                word.get_or_insert_default().push(byte);
                rest = &after[taken..];
            }
            (byte, Some(open)) if byte == open => quote = None,
            (byte @ (b'"' | b'\''), None) => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (byte, None) if byte.is_ascii_whitespace() => words.extend(word.take()),
            (byte, _) => word.get_or_insert_default().push(byte),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let split = |line: &str| -> Vec<String> {
            words(line.as_bytes()).unwrap().into_iter().map(|word| word.escape_ascii().to_string()).collect()
        };
        assert_eq!(split("get  'a b' \"c'd\" e\\ f"), ["get", "a b", "c\\'d", "e f"]);
        assert_eq!(split("ls \\xff\\x0a ''"), ["ls", "\\xff\\n", ""]);
        assert!(split("").is_empty());
        assert!(words(b"a 'b").is_err() && words(b"a\\").is_err());
    }
}
