//! Programs: what they need to run, and how much of the file that is.
//!
//! Only files of this machine are looked at, never anything of a disk.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The loader, which also tells what a program needs. User Mode Linux exists for this processor only.
pub const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The shared libraries of a program, the loader among them.
///
/// # Errors
/// [`Error::Unsupported`]: one is missing, or there is no loader.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new(LOADER).arg("--list").arg(program).env_clear().output();
    let listed = listed.map_err(|error| Error::unsupported(format!("run {LOADER}: {error}")))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let mut libraries = vec![PathBuf::from(LOADER)];
    // "name => /path (address)" or "/path (address)"; a program without libraries says so and fails.
    for line in text.lines() {
        let place = line.rsplit_once("=> ").map_or(line.trim(), |(_, place)| place);
        match place.split_once(" (0x") {
            Some((path, _)) if path.starts_with('/') => libraries.push(path.into()),
            None if line.contains("not found") => {
                let line = line.trim();
                return Err(Error::unsupported(format!("{}: {line}", program.display())));
            }
            _ => {}
        }
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

/// The program without what is only there for debuggers, everything behind its last loaded byte; and how many bytes that leaves.
///
/// # Errors
/// Those of reading.
pub fn loaded_part(program: File) -> io::Result<(impl Read, u64)> {
    /// The header and the table of parts, which follows it.
    const START_BYTES: u64 = 4096;
    let size = program.metadata()?.len();
    let mut start = Vec::new();
    (&program).take(START_BYTES).read_to_end(&mut start)?;
    let end = loaded_end(&start, size);
    if end.is_some() {
        // There are no sections any more: their table's place, number, and the index of their names.
        start[0x28..0x30].fill(0);
        start[0x3a..0x40].fill(0);
    }
    let end = end.unwrap_or(size);
    Ok((Cursor::new(start).chain(program).take(end), end))
}

fn loaded_end(start: &[u8], size: u64) -> Option<u64> {
    const LOAD: u32 = 1;
    const HEADER_BYTES: u64 = 0x40;
    let u64_at = |at: usize| Some(u64::from_le_bytes(start.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let u16_at = |at: usize| Some(u16::from_le_bytes(start.get(at..at.checked_add(2)?)?.try_into().ok()?));
    // 64 bits, little-endian.
    if !start.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, each, count) = (u64_at(0x20)? as usize, u16_at(0x36)? as usize, u16_at(0x38)? as usize);
    let mut end = HEADER_BYTES.max(table.checked_add(each.checked_mul(count)?)? as u64);
    for number in 0..count {
        let header = table.checked_add(number.checked_mul(each)?)?;
        let kind = u32::from_le_bytes(start.get(header..header.checked_add(4)?)?.try_into().ok()?);
        if kind == LOAD {
            end = end.max(u64_at(header.checked_add(8)?)?.checked_add(u64_at(header.checked_add(32)?)?)?);
        }
    }
    (end <= size).then_some(end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(path: &Path) -> (Vec<u8>, u64) {
        let (mut part, size) = loaded_part(File::open(path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes).unwrap();
        (bytes, size)
    }

    #[test]
    fn a_program_runs_without_its_symbols() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let before = program.metadata().unwrap().len();
        let (part, size) = read(&program);
        assert!(size < before && part.len() as u64 == size, "{} and {size} of {before} bytes", part.len());
        let path = dir.path().join("program");
        std::fs::write(&path, part).unwrap();
        // Through the loader: a process that another test starts may still hold the new file open for writing, and then the
        // kernel would not start it.
        let output = Command::new(LOADER).arg(&path).arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_program_runs_without_its_symbols"));
    }

    #[test]
    fn libraries_are_found_and_nonsense_is_left_as_it_is() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(found.iter().any(|path| path.to_string_lossy().contains("libc.so.6")), "{found:?}");
        assert!(found.iter().all(|path| path.exists()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for nonsense in [&b"#!/bin/sh"[..], b"\x7fELF\x02\x01", b""] {
            std::fs::write(&path, nonsense).unwrap();
            assert_eq!(read(&path), (nonsense.to_vec(), nonsense.len() as u64));
        }
    }
}
