//! A folder of a guest as one stream: walked once, packed as it comes, nothing on disk.
//!
//! What lives here: what goes in, under which name, and what is left out and said at the end. What does not: the formats'
//! bytes ([`tar`], [`zip`]). Links go in as links and are never followed; devices, pipes and sockets are left out; a file with
//! several names goes in under each.
//!
//! Invariant: no entry has an absolute name, `..`, or lies below a link that the same archive holds: whoever unpacks it stays
//! in the folder that he unpacks to.

mod tar;
#[cfg(test)]
mod tests;
mod zip;

use super::Reader;
use super::outlet::Outlet;
use sendense_api::ArchiveFormat;
use sendense_guestfs::meta::{FileType, Meta};
use sendense_guestfs::session::{Found, FoundEntry, WalkOptions};
use sendense_guestfs::{Error, GuestPath, VolumeId};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

/// The name of the entry that says what is not in the archive.
const MANIFEST: &str = "SENDENSE-LEFT-OUT.txt";
/// Its parts, for one with something between them.
const MANIFEST_START: &str = "SENDENSE-LEFT-OUT";
const MANIFEST_END: &str = ".txt";
/// The longest text of that entry; what is more is counted.
const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Holes of a file are told apart from its data when they are as large as a few clusters of any file system in all.
const HOLE_BYTES_MIN: u64 = 32 * 1024;
/// What is written of a hole at a time.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
/// The most symbolic links of one archive: 16 MiB of marks.
const LINKS_MAX: usize = 1_000_000;

/// How much goes into one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// A format. Names are relative, their parts apart by `/`.
trait Pack {
    fn folder(&mut self, name: &[u8], meta: &Meta) -> io::Result<()>;
    fn link(&mut self, name: &[u8], meta: &Meta, target: &[u8]) -> io::Result<()>;
    fn file(&mut self, name: &[u8], content: &mut Content<'_>) -> io::Result<()>;
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A file to be packed.
struct Content<'a> {
    meta: Meta,
    source: Source<'a>,
    /// How much content may still come.
    bytes_left: &'a mut u64,
}

enum Source<'a> {
    Guest { reader: &'a dyn Reader, volume: &'a VolumeId, path: &'a GuestPath },
    Text(&'a [u8]),
}

impl Content<'_> {
    /// The parts that hold something else than zeros, in order; one part when that is not known or not worth while.
    fn parts(&self) -> io::Result<Vec<Range<u64>>> {
        /// More parts than this are packed as one: their list would take more than a MiB.
        const PARTS_MAX: usize = 65_536;
        let whole = std::iter::once(0..self.meta.size_bytes).collect();
        let Source::Guest { reader, volume, path } = self.source else { return Ok(whole) };
        if self.meta.size_bytes < HOLE_BYTES_MIN {
            return Ok(whole);
        }
        let (mut parts, mut from, mut pages) = (Vec::new(), Some(0), 0);
        while let Some(at) = from {
            pages += 1;
            let page = match reader.data_ranges(volume, path, at) {
                Ok(page) if page.file_size_bytes == self.meta.size_bytes => page,
                Ok(_) | Err(Error::Unsupported(_)) => return Ok(whole),
                Err(error) => return Err(broken(&error)),
            };
            parts.extend(page.ranges);
            // A reader that was taken over could also go on with pages that hold nothing.
            if parts.len() > PARTS_MAX || pages > PARTS_MAX {
                return Ok(whole);
            }
            from = page.next;
        }
        let data: u64 = parts.iter().map(|part| part.end - part.start).sum();
        Ok(if self.meta.size_bytes.saturating_sub(data) >= HOLE_BYTES_MIN { parts } else { whole })
    }

    /// Writes all of it, with zeros where its holes are, which are not asked of the reader.
    fn copy_whole(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut at = 0;
        for part in self.parts()? {
            self.zeros(part.start.saturating_sub(at), out)?;
            at = part.end;
            self.copy(part, out)?;
        }
        self.zeros(self.meta.size_bytes.saturating_sub(at), out)
    }

    fn zeros(&mut self, bytes: u64, out: &mut dyn Write) -> io::Result<()> {
        *self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(too_large)?;
        let mut left = bytes;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            out.write_all(&ZEROS[..piece])?;
            left -= piece as u64;
        }
        Ok(())
    }

    /// Writes a part.
    fn copy(&mut self, part: Range<u64>, out: &mut dyn Write) -> io::Result<()> {
        let bytes = part.end.saturating_sub(part.start);
        *self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(too_large)?;
        match &self.source {
            Source::Text(text) => out.write_all(text),
            Source::Guest { reader, volume, path } => {
                let mut stream = reader.read(volume, path, part).map_err(|error| broken(&error))?;
                let mut copied = 0;
                while let Some(piece) = stream.next_piece().map_err(|error| broken(&error))? {
                    copied += piece.len() as u64;
                    out.write_all(&piece)?;
                }
                if copied == bytes { Ok(()) } else { Err(io::Error::other("a file changed its size")) }
            }
        }
    }
}

/// Whether a name is that of our entry, also where it is unpacked on a file system that does not tell `a` from `A`.
fn is_manifest(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(MANIFEST.as_bytes())
}

fn broken(error: &Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn too_large() -> io::Error {
    io::Error::other("the folder holds more than an archive may; fetch its folders one by one")
}

/// Packs a folder.
pub(crate) fn pack(
    out: &mut Outlet,
    volume: &VolumeId,
    folder: &GuestPath,
    format: ArchiveFormat,
    bounds: Bounds,
) -> io::Result<()> {
    let reader = out.reader();
    pack_to(out, reader, volume, folder, format, bounds)
}

fn pack_to(
    out: &mut dyn Write,
    reader: Arc<dyn Reader>,
    volume: &VolumeId,
    folder: &GuestPath,
    format: ArchiveFormat,
    bounds: Bounds,
) -> io::Result<()> {
    let options = WalkOptions { entries_max: bounds.entries, ..WalkOptions::default() };
    let mut walk = reader.walk(volume, folder, &options).map_err(|error| broken(&error))?;
    let root = walk.root().clone();
    let pack: Box<dyn Pack + '_> = match format {
        ArchiveFormat::Zip => Box::new(zip::Zip::new(out)),
        ArchiveFormat::TarGz => Box::new(tar::TarGz::new(out)),
    };
    let mut packer = Packer {
        pack,
        reader,
        volume: volume.clone(),
        depth: root.components().len(),
        prefix: folder.name().map(<[u8]>::to_vec).unwrap_or_default(),
        bytes_left: bounds.bytes,
        links: HashSet::new(),
        hasher: RandomState::new(),
        left_out: LeftOut::default(),
        manifest_is_taken: false,
    };
    packer.begin(&root)?;
    while let Some(batch) = walk.next_batch().map_err(|error| broken(&error))? {
        for found in batch {
            packer.take(found)?;
        }
    }
    packer.end()
}

struct Packer<'a> {
    pack: Box<dyn Pack + 'a>,
    reader: Arc<dyn Reader>,
    volume: VolumeId,
    /// Components of the folder's own path, which names in the archive do not have.
    depth: usize,
    /// The folder's name, below which everything lies in the archive.
    prefix: Vec<u8>,
    bytes_left: u64,
    /// Marks of the links that went in. They hold no names, so a million of them is small.
    links: HashSet<u64>,
    hasher: RandomState,
    left_out: LeftOut,
    /// The guest has something under the name of the entry that says what was left out.
    manifest_is_taken: bool,
}

impl Packer<'_> {
    /// The folder itself.
    fn begin(&mut self, root: &GuestPath) -> io::Result<()> {
        if self.prefix.is_empty() {
            return Ok(());
        }
        self.manifest_is_taken |= is_manifest(&self.prefix);
        match self.reader.stat(&self.volume, root) {
            Ok(meta) => self.pack.folder(&self.prefix.clone(), &meta),
            Err(error) => Err(broken(&error)),
        }
    }

    fn name(&self, path: &GuestPath) -> Vec<u8> {
        let mut name = self.prefix.clone();
        for part in path.components().skip(self.depth) {
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(part);
        }
        name
    }

    fn take(&mut self, found: Found) -> io::Result<()> {
        let entry = match found.outcome {
            Ok(entry) => entry,
            Err(error) => {
                self.left_out.say(&found.path, &error.to_string());
                return Ok(());
            }
        };
        // Only a reader that lies gives something below a link; unpacked, it could land anywhere.
        let mut above = found.path.clone();
        while above.components().len() > self.depth {
            if self.links.contains(&self.hasher.hash_one(&above)) {
                return Err(io::Error::other("an entry below a link"));
            }
            above = above.parent();
        }
        let name = self.name(&found.path);
        self.manifest_is_taken |= is_manifest(&name);
        self.put(&found.path, &name, entry)
    }

    fn put(&mut self, path: &GuestPath, name: &[u8], entry: FoundEntry) -> io::Result<()> {
        match entry.meta.file_type {
            FileType::Directory => self.pack.folder(name, &entry.meta),
            FileType::Symlink => match entry.target {
                Some(target) if self.links.len() < LINKS_MAX => {
                    self.links.insert(self.hasher.hash_one(path));
                    self.pack.link(name, &entry.meta, &target)
                }
                Some(_) => Err(too_large()),
                None => {
                    self.left_out.say(path, "a link whose target cannot be read");
                    Ok(())
                }
            },
            FileType::Other => {
                self.left_out.say(path, "a device, pipe or socket");
                Ok(())
            }
            FileType::File => {
                // What cannot be opened is left out and said; what breaks later ends the archive, for its length stands in it.
                if let Err(error) = self.reader.read(&self.volume, path, 0..0) {
                    match error {
                        Error::WorkerDied(_) => return Err(broken(&error)),
                        other => self.left_out.say(path, &other.to_string()),
                    }
                    return Ok(());
                }
                let source = Source::Guest { reader: &*self.reader, volume: &self.volume, path };
                let mut content = Content { meta: entry.meta, source, bytes_left: &mut self.bytes_left };
                self.pack.file(name, &mut content)
            }
        }
    }

    fn end(mut self) -> io::Result<()> {
        if let Some(text) = self.left_out.text() {
            let meta = Meta {
                inode: 0,
                file_type: FileType::File,
                size_bytes: text.len() as u64,
                mode: 0o644,
                uid: 0,
                gid: 0,
                links: 1,
                modified: None,
            };
            let mut unbounded = u64::MAX;
            let mut content = Content { meta, source: Source::Text(text.as_bytes()), bytes_left: &mut unbounded };
            // A guest's link of that name would lead whoever unpacks our entry after it anywhere. Nobody foresees the other name.
            let name = match self.manifest_is_taken {
                true => format!("{MANIFEST_START}-{:016x}{MANIFEST_END}", self.hasher.hash_one(MANIFEST_START)),
                false => MANIFEST.to_owned(),
            };
            self.pack.file(name.as_bytes(), &mut content)?;
        }
        self.pack.finish()
    }
}

/// What is not in the archive, and why.
#[derive(Default)]
struct LeftOut {
    text: String,
    more: u64,
}

impl LeftOut {
    fn say(&mut self, path: &GuestPath, why: &str) {
        let line = format!("{}: {why}\n", path.to_bytes().escape_ascii());
        if self.text.len() + line.len() > MANIFEST_BYTES_MAX {
            self.more += 1;
        } else {
            self.text.push_str(&line);
        }
    }

    fn text(&self) -> Option<String> {
        if self.text.is_empty() {
            return None;
        }
        let mut text = format!("Not in this archive:\n{}", self.text);
        if self.more > 0 {
            text.push_str(&format!("and {} more\n", self.more));
        }
        Some(text)
    }
}
