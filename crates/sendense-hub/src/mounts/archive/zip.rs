//! ZIP with 64-bit sizes (APPNOTE 6.3), written front to back: sizes and checksums follow each file.
//!
//! Names are UTF-8, as every program of today expects. What is not, and what means something else to Windows (`\`, `:`,
//! control characters), is percent-encoded, so that each file has a name of its own everywhere.
//!
//! Invariant: the central directory is the only thing that grows, and [`DIRECTORY_BYTES_MAX`] bounds it.

use super::{Content, Pack, too_large};
use flate2::Compression;
use flate2::{Crc, write::DeflateEncoder};
use sendense_guestfs::meta::Meta;
use std::io::{self, Write};

/// The central directory of some 250,000 files, an eighth of what a hub may use.
const DIRECTORY_BYTES_MAX: usize = 32 << 20;
/// "Made by Unix", version 4.5, which knows 64-bit sizes.
const MADE_BY: u16 = 3 << 8 | 45;
const NEEDED: u16 = 45;
/// The name is UTF-8.
const UTF8: u16 = 1 << 11;
/// Sizes and checksum come behind the data.
const FOLLOWS: u16 = 1 << 3;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// An archive in the making.
pub(super) struct Zip<W: Write> {
    out: Counted<W>,
    directory: Vec<u8>,
    entries: u64,
}

/// Knows how much was written.
struct Counted<W: Write> {
    out: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Takes the checksum of what passes.
struct Checked<W: Write> {
    out: W,
    crc: Crc,
    taken: u64,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc.update(bytes.get(..written).unwrap_or_default());
        self.taken += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What the central directory says of an entry.
struct Entry<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    time: u32,
    crc: u32,
    packed: u64,
    size: u64,
    at: u64,
    /// The mode of Unix with its type.
    mode: u32,
}

impl<W: Write> Zip<W> {
    pub fn new(out: W) -> Self {
        Self { out: Counted { out, written: 0 }, directory: Vec::new(), entries: 0 }
    }

    /// An entry whose content is known.
    fn small(&mut self, name: &[u8], meta: &Meta, content: &[u8], kind: u32) -> io::Result<()> {
        let mut crc = Crc::new();
        crc.update(content);
        let size = content.len() as u64;
        let (at, time) = (self.out.written, dos_time(meta));
        let mut head = Vec::new();
        local(&mut head, UTF8, STORED, time, crc.sum(), size as u32, name, &[]);
        self.out.write_all(&head)?;
        self.out.write_all(content)?;
        let mode = kind | (meta.mode & 0o7777);
        self.list(&Entry { name, flags: UTF8, method: STORED, time, crc: crc.sum(), packed: size, size, at, mode })
    }

    fn list(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let directory = &mut self.directory;
        let mut wide = Vec::new();
        for number in [entry.size, entry.packed, entry.at] {
            if number >= u64::from(u32::MAX) {
                wide.extend(number.to_le_bytes());
            }
        }
        let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        directory.extend(b"PK\x01\x02");
        for field in [MADE_BY, NEEDED, entry.flags, entry.method] {
            directory.extend(field.to_le_bytes());
        }
        for field in [entry.time, entry.crc, short(entry.packed), short(entry.size)] {
            directory.extend(field.to_le_bytes());
        }
        directory.extend((entry.name.len() as u16).to_le_bytes());
        directory.extend((if wide.is_empty() { 0 } else { wide.len() as u16 + 4 }).to_le_bytes());
        // No comment, the first disk, no internal attributes.
        directory.extend([0; 6]);
        let folder = if entry.mode & 0o170_000 == 0o040_000 { 0x10 } else { 0 };
        directory.extend((entry.mode << 16 | folder).to_le_bytes());
        directory.extend(short(entry.at).to_le_bytes());
        directory.extend(entry.name);
        if !wide.is_empty() {
            directory.extend(1_u16.to_le_bytes());
            directory.extend((wide.len() as u16).to_le_bytes());
            directory.extend(wide);
        }
        self.entries += 1;
        if directory.len() > DIRECTORY_BYTES_MAX { Err(too_large()) } else { Ok(()) }
    }
}

impl<W: Write> Pack for Zip<W> {
    fn folder(&mut self, name: &[u8], meta: &Meta) -> io::Result<()> {
        self.small(&[&safe(name)?, b"/".as_slice()].concat(), meta, &[], 0o040_000)
    }

    fn link(&mut self, name: &[u8], meta: &Meta, target: &[u8]) -> io::Result<()> {
        self.small(&safe(name)?, meta, target, 0o120_000)
    }

    fn file(&mut self, name: &[u8], content: &mut Content<'_>) -> io::Result<()> {
        let name = safe(name)?;
        let (at, time) = (self.out.written, dos_time(&content.meta));
        // 64-bit sizes are promised before the sizes are known; they follow the data.
        let mut wide = Vec::from([1, 0, 16, 0]);
        wide.extend([0; 16]);
        let mut head = Vec::new();
        local(&mut head, UTF8 | FOLLOWS, DEFLATED, time, 0, u32::MAX, &name, &wide);
        self.out.write_all(&head)?;
        let from = self.out.written;
        let (crc, size) = deflated(&mut self.out, content)?;
        let packed = self.out.written - from;
        let mut tail = Vec::from(*b"PK\x07\x08");
        tail.extend(crc.to_le_bytes());
        tail.extend(packed.to_le_bytes());
        tail.extend(size.to_le_bytes());
        self.out.write_all(&tail)?;
        let mode = 0o100_000 | (content.meta.mode & 0o7777);
        let (flags, method) = (UTF8 | FOLLOWS, DEFLATED);
        self.list(&Entry { name: &name, flags, method, time, crc, packed, size, at, mode })
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let (at, bytes) = (self.out.written, self.directory.len() as u64);
        let directory = std::mem::take(&mut self.directory);
        self.out.write_all(&directory)?;
        let mut end = Vec::new();
        if self.entries >= u64::from(u16::MAX) || at >= u64::from(u32::MAX) {
            let wide_at = self.out.written;
            end.extend(b"PK\x06\x06");
            end.extend(44_u64.to_le_bytes());
            end.extend(MADE_BY.to_le_bytes());
            end.extend(NEEDED.to_le_bytes());
            end.extend([0; 8]);
            for number in [self.entries, self.entries, bytes, at] {
                end.extend(number.to_le_bytes());
            }
            end.extend(b"PK\x06\x07");
            end.extend([0; 4]);
            end.extend(wide_at.to_le_bytes());
            end.extend(1_u32.to_le_bytes());
        }
        let entries = u16::try_from(self.entries).unwrap_or(u16::MAX);
        end.extend(b"PK\x05\x06\0\0\0\0");
        end.extend(entries.to_le_bytes());
        end.extend(entries.to_le_bytes());
        end.extend((bytes as u32).to_le_bytes());
        end.extend(u32::try_from(at).unwrap_or(u32::MAX).to_le_bytes());
        end.extend([0; 2]);
        self.out.write_all(&end)?;
        self.out.flush()
    }
}

/// Packs a file; its checksum and its size.
fn deflated(out: &mut impl Write, content: &mut Content<'_>) -> io::Result<(u32, u64)> {
    let deflate = DeflateEncoder::new(out, Compression::fast());
    let mut checked = Checked { out: deflate, crc: Crc::new(), taken: 0 };
    content.copy_whole(&mut checked)?;
    checked.out.finish()?;
    Ok((checked.crc.sum(), checked.taken))
}

/// A local header; `size` stands for both sizes.
#[allow(clippy::too_many_arguments, reason = "the fields of one fixed record, in its order")]
fn local(out: &mut Vec<u8>, flags: u16, method: u16, time: u32, crc: u32, size: u32, name: &[u8], extra: &[u8]) {
    out.extend(b"PK\x03\x04");
    for field in [NEEDED, flags, method] {
        out.extend(field.to_le_bytes());
    }
    for field in [time, crc, size, size] {
        out.extend(field.to_le_bytes());
    }
    // `safe` has refused longer names.
    out.extend((name.len() as u16).to_le_bytes());
    out.extend((extra.len() as u16).to_le_bytes());
    out.extend(name);
    out.extend(extra);
}

/// A name that means the same to every program that unpacks.
fn safe(name: &[u8]) -> io::Result<Vec<u8>> {
    let mut safe = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' | ':' | '%' => safe.extend(format!("%{:02X}", letter as u32).bytes()),
                control if control.is_control() => {
                    let mut bytes = [0; 4];
                    control
                        .encode_utf8(&mut bytes)
                        .bytes()
                        .for_each(|byte| safe.extend(format!("%{byte:02X}").bytes()));
                }
                other => safe.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        chunk.invalid().iter().for_each(|byte| safe.extend(format!("%{byte:02X}").bytes()));
    }
    // One byte is for the slash of a folder.
    if safe.len() >= usize::from(u16::MAX) { Err(io::Error::other("a name too long for a ZIP")) } else { Ok(safe) }
}

/// Date and time as DOS wrote them; ZIP knows no others in its headers.
fn dos_time(meta: &Meta) -> u32 {
    const FIRST: u32 = 1 << 21 | 1 << 16;
    let seconds = meta.modified.map_or(0, |time| time.seconds);
    let Ok(at) = jiff::Timestamp::from_second(seconds) else { return FIRST };
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    let Ok(year) = u32::try_from(i32::from(at.year()) - 1980) else { return FIRST };
    if year > 127 {
        return FIRST;
    }
    // A calendar's numbers are small and not negative.
    let part = |number: i8| number as u32;
    (year << 25)
        | (part(at.month()) << 21)
        | (part(at.day()) << 16)
        | (part(at.hour()) << 11)
        | (part(at.minute()) << 5)
        | (part(at.second()) / 2)
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use sendense_guestfs::meta::FileType;
    use std::fs::File;
    use std::io::{Seek, SeekFrom};
    use std::path::Path;
    use std::process::Command;

    fn meta(file_type: FileType, size_bytes: u64) -> Meta {
        Meta { inode: 1, file_type, size_bytes, mode: 0o755, uid: 0, gid: 0, links: 1, modified: None }
    }

    /// An archive that begins where a small number cannot point any more, as one behind 5 GiB of other files does.
    fn begun_far_behind(file: &File) -> Box<Zip<impl Write>> {
        const AT: u64 = 5 << 30;
        let mut file = file;
        file.seek(SeekFrom::Start(AT)).unwrap();
        let out = Counted { out: std::io::BufWriter::new(file), written: AT };
        Box::new(Zip { out, directory: Vec::new(), entries: 0 })
    }

    /// What Python says of an archive.
    fn python(archive: &Path, script: &str) -> String {
        let script = format!("import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\n{script}");
        let output = Command::new("python3").args(["-c", &script]).arg(archive).output();
        let output = output.unwrap_or_else(|error| panic!("python3: {error}; install the Debian package python3"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn more_entries_than_16_bits_count_lie_further_than_32_bits_reach() {
        const LINKS: usize = 66_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("far.zip");
        let file = File::create(&path).unwrap();
        let mut zip = begun_far_behind(&file);
        zip.folder(b"folder", &meta(FileType::Directory, 0)).unwrap();
        for number in 0..LINKS {
            let name = format!("folder/{number}");
            zip.link(name.as_bytes(), &meta(FileType::Symlink, 0), b"target").unwrap();
        }
        let mut bytes_left = 100;
        let source = Source::Text(b"the last of them");
        let mut content = Content { meta: meta(FileType::File, 16), source, bytes_left: &mut bytes_left };
        zip.file(b"folder/last", &mut content).unwrap();
        zip.finish().unwrap();
        drop(file);
        assert_eq!(
            python(
                &path,
                "i = z.infolist()\nassert all(e.header_offset >= 5 << 30 for e in i) and len(set(z.namelist())) == len(i)\n\
                 print(len(i), z.testzip(), z.read('folder/65999').decode(), z.read('folder/last').decode())"
            ),
            format!("{} None target the last of them\n", LINKS + 2)
        );
        let tested = Command::new("unzip").arg("-tqq").arg(&path).output();
        let tested = tested.unwrap_or_else(|error| panic!("unzip: {error}; install the Debian package unzip"));
        assert!(tested.status.success(), "{tested:?}");
    }

    #[test]
    fn numbers_that_32_bits_do_not_hold_stand_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.zip");
        let edge = u64::from(u32::MAX);
        for (size, packed, at) in [
            (7 << 40, 6 << 40, 5 << 40),
            (edge, edge, edge),
            (edge - 1, edge - 1, edge - 1),
            (1, edge, 2),
            (edge + 1, 1, 2),
            (1, 2, edge + 1),
        ] {
            let mut zip = Box::new(Zip::new(File::create(&path).unwrap()));
            let (name, crc, mode) = (&b"large"[..], 0, 0o100_644);
            let entry =
                Entry { name, flags: UTF8, method: STORED, time: 1 << 21 | 1 << 16, crc, packed, size, at, mode };
            zip.list(&entry).unwrap();
            zip.finish().unwrap();
            let told = python(&path, "e, = z.infolist()\nprint(e.file_size, e.compress_size, e.header_offset)");
            assert_eq!(told, format!("{size} {packed} {at}\n"));
        }
    }

    #[test]
    fn names_are_made_safe_and_stay_apart() {
        for (name, want) in [
            (&b"a/b.txt"[..], "a/b.txt"),
            (b"\xc3\xa4\xff", "\u{e4}%FF"),
            (b"c:\\x", "c%3A%5Cx"),
            (b"a\nb", "a%0Ab"),
            (b"%FF", "%25FF"),
        ] {
            assert_eq!(safe(name).unwrap(), want.as_bytes());
        }
        assert!(safe(&vec![b'x'; 70_000]).is_err());
    }
}
