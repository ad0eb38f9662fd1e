//! POSIX tar (pax interchange format), gzip-compressed, written front to back.
//!
//! What a classic header cannot hold (long or odd names, large numbers) stands in a pax header before it. Files with holes are
//! written in GNU's sparse form 1.0, which GNU tar, bsdtar and Python unpack with their holes.
//!
//! Invariant: every header's size is exactly what follows it.

use super::{Content, Pack};
use flate2::Compression;
use flate2::write::GzEncoder;
use sendense_guestfs::meta::Meta;
use std::io::{self, Write};
use std::ops::Range;

const RECORD: usize = 512;
/// The largest number in a field of twelve bytes.
const NUMBER_MAX: u64 = 0o77_777_777_777;
/// The largest number in a field of eight bytes.
const ID_MAX: u32 = 0o7_777_777;

/// An archive in the making. Fast compression: restores wait for it.
pub(super) struct TarGz<W: Write> {
    out: GzEncoder<W>,
}

impl<W: Write> TarGz<W> {
    pub fn new(out: W) -> Self {
        Self { out: GzEncoder::new(out, Compression::fast()) }
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let over = (bytes % RECORD as u64) as usize;
        if over > 0 { self.out.write_all(&[0; RECORD][over..]) } else { Ok(()) }
    }

    /// A header, and a pax header before it when it is needed. `extra` are pax records; `size` is what follows.
    fn header(
        &mut self,
        kind: u8,
        name: &[u8],
        target: &[u8],
        meta: &Meta,
        size: u64,
        mut extra: Vec<(&'static str, Vec<u8>)>,
    ) -> io::Result<()> {
        let sparse = !extra.is_empty();
        let plain = |text: &[u8]| text.len() <= 100 && text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        if !sparse && !plain(name) {
            extra.push(("path", name.to_vec()));
        }
        if !plain(target) {
            extra.push(("linkpath", target.to_vec()));
        }
        if size > NUMBER_MAX {
            extra.push(("size", size.to_string().into_bytes()));
        }
        for (field, id) in [("uid", meta.uid), ("gid", meta.gid)] {
            if id > ID_MAX {
                extra.push((field, id.to_string().into_bytes()));
            }
        }
        let seconds = meta.modified.map_or(0, |time| time.seconds);
        let short_time = u64::try_from(seconds).ok().filter(|seconds| *seconds <= NUMBER_MAX);
        if short_time.is_none() {
            extra.push(("mtime", seconds.to_string().into_bytes()));
        }
        if extra.iter().any(|(_, value)| std::str::from_utf8(value).is_err()) {
            extra.insert(0, ("hdrcharset", b"BINARY".to_vec()));
        }
        if !extra.is_empty() {
            let records: Vec<u8> = extra.iter().flat_map(|(key, value)| record(key, value)).collect();
            self.out.write_all(&block(b'x', b"pax", b"", 0o644, 0, 0, records.len() as u64, 0))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let id = |id: u32| if id > ID_MAX { 0 } else { id };
        let (name, target) =
            (if plain(name) { name } else { b"entry" }, if plain(target) { target } else { b"target" });
        let size = if size > NUMBER_MAX { 0 } else { size };
        let header = block(kind, name, target, meta.mode, id(meta.uid), id(meta.gid), size, short_time.unwrap_or(0));
        self.out.write_all(&header)
    }

    fn sparse(&mut self, name: &[u8], parts: &[Range<u64>], content: &mut Content<'_>) -> io::Result<()> {
        let size = content.meta.size_bytes;
        let data: u64 = parts.iter().map(|part| part.end - part.start).sum();
        // A file that ends in a hole has an empty part at its end.
        let end = (parts.last().is_none_or(|last| last.end < size)).then_some((size, 0));
        let listed: Vec<(u64, u64)> = parts.iter().map(|part| (part.start, part.end - part.start)).chain(end).collect();
        let mut map = format!("{}\n", listed.len());
        for (at, len) in listed {
            map.push_str(&format!("{at}\n{len}\n"));
        }
        let map_bytes = map.len().next_multiple_of(RECORD) as u64;
        let meta = content.meta.clone();
        let extra = vec![
            ("GNU.sparse.major", b"1".to_vec()),
            ("GNU.sparse.minor", b"0".to_vec()),
            ("GNU.sparse.name", name.to_vec()),
            ("GNU.sparse.realsize", size.to_string().into_bytes()),
        ];
        self.header(b'0', b"GNUSparseFile.0/file", b"", &meta, map_bytes + data, extra)?;
        self.out.write_all(map.as_bytes())?;
        self.pad(map.len() as u64)?;
        for part in parts {
            content.copy(part.clone(), &mut self.out)?;
        }
        self.pad(data)
    }
}

impl<W: Write> Pack for TarGz<W> {
    fn folder(&mut self, name: &[u8], meta: &Meta) -> io::Result<()> {
        self.header(b'5', &[name, b"/"].concat(), b"", meta, 0, Vec::new())
    }

    fn link(&mut self, name: &[u8], meta: &Meta, target: &[u8]) -> io::Result<()> {
        self.header(b'2', name, target, meta, 0, Vec::new())
    }

    fn file(&mut self, name: &[u8], content: &mut Content<'_>) -> io::Result<()> {
        let parts = content.parts()?;
        let size = content.meta.size_bytes;
        let data: u64 = parts.iter().map(|part| part.end - part.start).sum();
        if data < size {
            return self.sparse(name, &parts, content);
        }
        let meta = content.meta.clone();
        self.header(b'0', name, b"", &meta, size, Vec::new())?;
        content.copy(0..size, &mut self.out)?;
        self.pad(size)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.out.write_all(&[0; 2 * RECORD])?;
        self.out.finish()?.flush()
    }
}

/// A pax record: its length, which counts itself, the key and the value.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    // " " + key + "=" + value + "\n"
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A classic header. Every text fits its field and every number its digits.
#[allow(clippy::too_many_arguments, reason = "the fields of one fixed record, in its order")]
fn block(kind: u8, name: &[u8], target: &[u8], mode: u32, uid: u32, gid: u32, size: u64, mtime: u64) -> [u8; RECORD] {
    let mut block = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name);
    put(100, format!("{:07o}", mode & 0o7777).as_bytes());
    put(108, format!("{uid:07o}").as_bytes());
    put(116, format!("{gid:07o}").as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{mtime:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for len in [1, 5, 80, 90, 92, 93, 94, 95, 980, 990, 995, 9985] {
            let record = record("path", &vec![b'x'; len]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(record.len()), "{len}");
        }
    }
}
