//! What the worker says. The worker has read a hostile disk and may have been taken over by it, so decoding checks
//! everything that can be checked without asking again: names, paths, texts, ranges, lengths.
//!
//! Invariant: a decoded reply holds only values that the rest of the hub may rely on (see [`crate::path`], [`crate::volume`]).

use super::codec::{Decoder, Encoder, Malformed, Result, malformed};
use super::frame::Frame;
use super::request::path;
use crate::error::{Error, Reason};
use crate::meta::{Consistency, Entry, FileType, GuestTime, Meta, State};
use crate::path::{GuestPath, NAME_BYTES_MAX, check_name};
use crate::sandbox::Level;
use crate::session::{Found, FoundEntry, PAGE_ENTRIES_MAX, PAGE_RANGES_MAX, RangePage};
use crate::volume::{ID_BYTES_MAX, TEXT_BYTES_MAX, VOLUMES_MAX, Volume, VolumeId};
use std::ops::Range;

/// The longest target of a link: Linux allows 4095 bytes, a reparse point of NTFS 16 KiB.
pub const TARGET_BYTES_MAX: usize = 16 * 1024;
/// The longest text of an error.
const MESSAGE_BYTES_MAX: usize = 1024;

const HELLO: u8 = 0x41;
const FATAL: u8 = 0x42;
const PART: u8 = 0x43;
const DONE: u8 = 0x44;
const FAILED: u8 = 0x45;

/// A frame from the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The worker is confined and serves.
    Hello {
        /// The protocol's version.
        version: u32,
        /// How well it is confined.
        level: Level,
    },
    /// The worker cannot go on; the last frame.
    Fatal {
        /// Whether it could not be confined, in which case nothing was opened.
        sandbox: bool,
        /// Why, for a person.
        text: String,
    },
    /// A part of an answer.
    Part {
        /// The request.
        id: u32,
        /// What.
        part: Part,
    },
    /// The answer is complete.
    Done {
        /// The request.
        id: u32,
    },
    /// The answer ends with an error.
    Failed {
        /// The request.
        id: u32,
        /// Which.
        error: Error,
    },
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// One volume; in the disk's order.
    Volume(Volume),
    /// A path without links.
    Path(GuestPath),
    /// One entry.
    Meta(Meta),
    /// Target of a link.
    Target(Vec<u8>),
    /// Some entries of a page.
    Entries(Vec<Entry>),
    /// Where the next page begins; the last part of a page.
    Next(Option<u64>),
    /// A file was opened: its size. The first part of a stream.
    Opened {
        /// Size of the whole file.
        file_size_bytes: u64,
    },
    /// Content of a file.
    Piece(Vec<u8>),
    /// Data ranges.
    Ranges(RangePage),
    /// What a walk came upon.
    Found(Vec<Found>),
    /// Nothing yet, but the worker is alive: a walk that finds nothing for a while says so.
    Working,
}

impl Message {
    /// The frame's tag and payload.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        let mut to = Encoder::new();
        let tag = match self {
            Message::Hello { version, level } => {
                to.u32(*version).u32(level.to_bits());
                HELLO
            }
            Message::Fatal { sandbox, text } => {
                to.u8((*sandbox).into()).bytes(cut(text));
                FATAL
            }
            Message::Part { id, part } => {
                to.u32(*id);
                put_part(&mut to, part);
                PART
            }
            Message::Done { id } => {
                to.u32(*id);
                DONE
            }
            Message::Failed { id, error } => {
                to.u32(*id);
                put_error(&mut to, error);
                FAILED
            }
        };
        (tag, to.finish())
    }

    /// Reads and checks a frame.
    ///
    /// # Errors
    /// [`Malformed`]: the worker broke the protocol and must be ended.
    pub fn decode(frame: &Frame) -> Result<Message> {
        let mut from = Decoder::new(&frame.payload);
        let message = match frame.tag {
            HELLO => Message::Hello { version: from.u32()?, level: Level::from_bits(from.u32()?) },
            FATAL => Message::Fatal { sandbox: from.bool()?, text: message_text(&mut from)? },
            PART => Message::Part { id: from.u32()?, part: get_part(&mut from)? },
            DONE => Message::Done { id: from.u32()? },
            FAILED => Message::Failed { id: from.u32()?, error: get_error(&mut from)? },
            other => return malformed(format!("tag {other} from the worker")),
        };
        from.end()?;
        Ok(message)
    }
}

fn put_part(to: &mut Encoder, part: &Part) {
    match part {
        Part::Volume(volume) => put_volume(to.u8(0), volume),
        Part::Path(path) => {
            to.u8(1).bytes(&path.to_bytes());
        }
        Part::Meta(meta) => put_meta(to.u8(2), meta),
        Part::Target(target) => {
            to.u8(3).bytes(target);
        }
        Part::Entries(entries) => {
            to.u8(4).u32(entries.len() as u32);
            entries.iter().for_each(|entry| put_entry(to, entry));
        }
        Part::Next(next) => {
            to.u8(5).option(*next, |to, next| {
                to.u64(next);
            });
        }
        Part::Opened { file_size_bytes } => {
            to.u8(6).u64(*file_size_bytes);
        }
        Part::Piece(piece) => {
            to.u8(7).raw(piece);
        }
        Part::Ranges(page) => {
            to.u8(8).u64(page.file_size_bytes).option(page.next, |to, next| {
                to.u64(next);
            });
            to.u32(page.ranges.len() as u32);
            for range in &page.ranges {
                to.u64(range.start).u64(range.end);
            }
        }
        Part::Found(found) => {
            to.u8(9).u32(found.len() as u32);
            found.iter().for_each(|found| put_found(to, found));
        }
        Part::Working => {
            to.u8(10);
        }
    }
}

fn get_part(from: &mut Decoder<'_>) -> Result<Part> {
    Ok(match from.u8()? {
        0 => Part::Volume(get_volume(from)?),
        1 => Part::Path(path(from)?),
        2 => Part::Meta(get_meta(from)?),
        3 => Part::Target(from.bytes(TARGET_BYTES_MAX)?.to_vec()),
        4 => Part::Entries(from.list(PAGE_ENTRIES_MAX, get_entry)?),
        5 => Part::Next(from.option(Decoder::u64)?),
        6 => Part::Opened { file_size_bytes: from.u64()? },
        7 => match from.rest() {
            b"" => return malformed("an empty piece"),
            piece => Part::Piece(piece.to_vec()),
        },
        8 => Part::Ranges(get_ranges(from)?),
        9 => Part::Found(from.list(PAGE_ENTRIES_MAX, get_found)?),
        10 => Part::Working,
        other => return malformed(format!("part {other}")),
    })
}

fn get_ranges(from: &mut Decoder<'_>) -> Result<RangePage> {
    let (file_size_bytes, next) = (from.u64()?, from.option(Decoder::u64)?);
    let mut end = 0;
    let ranges = from.list(PAGE_RANGES_MAX, |from| {
        let range: Range<u64> = from.u64()?..from.u64()?;
        if range.start < end || range.is_empty() || range.end > file_size_bytes {
            return malformed("ranges overlap, are empty or pass the file's end");
        }
        end = range.end;
        Ok(range)
    })?;
    match next {
        Some(next) if next < end || next > file_size_bytes => {
            malformed("the next page of ranges begins before this one ends")
        }
        _ => Ok(RangePage { ranges, next, file_size_bytes }),
    }
}

fn put_meta(to: &mut Encoder, meta: &Meta) {
    let file_type = match meta.file_type {
        FileType::File => 0,
        FileType::Directory => 1,
        FileType::Symlink => 2,
        FileType::Other => 3,
    };
    to.u64(meta.inode).u8(file_type).u64(meta.size_bytes).u32(meta.mode).u32(meta.uid).u32(meta.gid).u32(meta.links);
    to.option(meta.modified, |to, time| {
        to.i64(time.seconds).u32(time.nanoseconds);
    });
}

fn get_meta(from: &mut Decoder<'_>) -> Result<Meta> {
    Ok(Meta {
        inode: from.u64()?,
        file_type: match from.u8()? {
            0 => FileType::File,
            1 => FileType::Directory,
            2 => FileType::Symlink,
            3 => FileType::Other,
            other => return malformed(format!("file type {other}")),
        },
        size_bytes: from.u64()?,
        // What is beyond the permission bits has no meaning for anybody.
        mode: from.u32()? & 0o7777,
        uid: from.u32()?,
        gid: from.u32()?,
        links: from.u32()?,
        modified: from.option(|from| {
            let (seconds, nanoseconds) = (from.i64()?, from.u32()?);
            if nanoseconds >= 1_000_000_000 {
                return malformed("a second has a billion nanoseconds");
            }
            Ok(GuestTime { seconds, nanoseconds })
        })?,
    })
}

fn put_target(to: &mut Encoder, target: Option<&[u8]>) {
    to.option(target, |to, target| {
        to.bytes(target);
    });
}

fn get_target(from: &mut Decoder<'_>) -> Result<Option<Vec<u8>>> {
    from.option(|from| Ok(from.bytes(TARGET_BYTES_MAX)?.to_vec()))
}

fn put_entry(to: &mut Encoder, entry: &Entry) {
    to.bytes(&entry.name);
    put_meta(to, &entry.meta);
    put_target(to, entry.target.as_deref());
}

fn get_entry(from: &mut Decoder<'_>) -> Result<Entry> {
    let name = from.bytes(NAME_BYTES_MAX)?.to_vec();
    check_name(&name).or_else(|error| malformed(error.to_string()))?;
    Ok(Entry { name, meta: get_meta(from)?, target: get_target(from)? })
}

fn put_found(to: &mut Encoder, found: &Found) {
    to.bytes(&found.path.to_bytes());
    match &found.outcome {
        Ok(entry) => {
            put_meta(to.u8(0), &entry.meta);
            put_target(to, entry.target.as_deref());
        }
        Err(error) => put_error(to.u8(1), error),
    }
}

fn get_found(from: &mut Decoder<'_>) -> Result<Found> {
    let path = path(from)?;
    let outcome = if from.bool()? {
        Err(get_error(from)?)
    } else {
        Ok(FoundEntry { meta: get_meta(from)?, target: get_target(from)? })
    };
    Ok(Found { path, outcome })
}

fn put_volume(to: &mut Encoder, volume: &Volume) {
    to.bytes(volume.id.as_str().as_bytes()).bytes(volume.kind.as_bytes());
    for text in [&volume.label, &volume.uuid] {
        to.option(text.as_deref(), |to, text| {
            to.bytes(text.as_bytes());
        });
    }
    to.u64(volume.size_bytes);
    match &volume.state {
        State::Readable => to.u8(0),
        State::Locked => to.u8(1),
        State::Empty => to.u8(2),
        State::Unsupported(reason) => to.u8(3).bytes(cut(&reason.0)),
        State::Corrupt(text) => to.u8(4).bytes(cut(text)),
    };
    to.u8(match volume.consistency {
        None => 0,
        Some(Consistency::Clean) => 1,
        Some(Consistency::Replayed) => 2,
        Some(Consistency::LogNotReplayed) => 3,
    });
}

fn get_volume(from: &mut Decoder<'_>) -> Result<Volume> {
    Ok(Volume {
        id: VolumeId::parse(from.text(ID_BYTES_MAX)?).or_else(|error| malformed(error.to_string()))?,
        kind: plain_text(from, TEXT_BYTES_MAX)?,
        label: from.option(|from| plain_text(from, TEXT_BYTES_MAX))?,
        uuid: from.option(|from| plain_text(from, TEXT_BYTES_MAX))?,
        size_bytes: from.u64()?,
        state: match from.u8()? {
            0 => State::Readable,
            1 => State::Locked,
            2 => State::Empty,
            3 => State::Unsupported(Reason(message_text(from)?)),
            4 => State::Corrupt(message_text(from)?),
            other => return malformed(format!("volume state {other}")),
        },
        consistency: match from.u8()? {
            0 => None,
            1 => Some(Consistency::Clean),
            2 => Some(Consistency::Replayed),
            3 => Some(Consistency::LogNotReplayed),
            other => return malformed(format!("consistency {other}")),
        },
    })
}

/// Collects the answer to "which volumes": a hostile worker could send them for ever, or one name twice.
pub fn add_volume(volumes: &mut Vec<Volume>, volume: Volume) -> Result<()> {
    if volumes.len() >= VOLUMES_MAX {
        return malformed(format!("more than {VOLUMES_MAX} volumes"));
    }
    if volumes.iter().any(|known| known.id == volume.id) {
        return malformed(format!("two volumes named {}", volume.id));
    }
    volumes.push(volume);
    Ok(())
}

/// Text that is shown to people and written to logs: no control characters.
fn plain_text(from: &mut Decoder<'_>, max: usize) -> Result<String> {
    let text = from.text(max)?;
    if text.chars().any(char::is_control) { malformed("a text holds control characters") } else { Ok(text.to_owned()) }
}

fn message_text(from: &mut Decoder<'_>) -> Result<String> {
    let text = from.text(MESSAGE_BYTES_MAX)?;
    Ok(text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect())
}

fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

fn put_error(to: &mut Encoder, error: &Error) {
    let text = match error {
        Error::Unsupported(reason) => to.u8(0).bytes(cut(&reason.0)),
        Error::Corrupt(text) => to.u8(1).bytes(cut(text)),
        Error::NotFound => to.u8(2),
        Error::NotDirectory => to.u8(3),
        Error::NotRegular => to.u8(4),
        Error::InvalidPath(text) => to.u8(5).bytes(cut(text)),
        Error::Locked => to.u8(6),
        Error::Limit(text) => to.u8(7).bytes(cut(text)),
        Error::Io(text) => to.u8(8).bytes(cut(text)),
        Error::NoVolume => to.u8(9),
        Error::WrongKey => to.u8(10),
        // The worker is not asked whether it is dead or confined.
        Error::Sandbox(text) | Error::WorkerDied(text) => to.u8(8).bytes(cut(text)),
    };
    debug_assert!(!text.is_empty());
}

fn get_error(from: &mut Decoder<'_>) -> Result<Error> {
    Ok(match from.u8()? {
        0 => Error::Unsupported(Reason(message_text(from)?)),
        1 => Error::Corrupt(message_text(from)?),
        2 => Error::NotFound,
        3 => Error::NotDirectory,
        4 => Error::NotRegular,
        5 => Error::InvalidPath(message_text(from)?),
        6 => Error::Locked,
        7 => Error::Limit(message_text(from)?),
        8 => Error::Io(message_text(from)?),
        9 => Error::NoVolume,
        10 => Error::WrongKey,
        other => return Err(Malformed(format!("error {other}"))),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn meta() -> Meta {
        let modified = Some(GuestTime { seconds: -5, nanoseconds: 999_999_999 });
        Meta {
            inode: 12,
            file_type: FileType::Symlink,
            size_bytes: 5,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            links: 3,
            modified,
        }
    }

    fn messages() -> Vec<Message> {
        let volume = Volume {
            id: VolumeId::parse("p1").unwrap(),
            kind: "ext4".into(),
            label: Some("wurzel \u{e9}".into()),
            uuid: None,
            size_bytes: 1 << 40,
            state: State::Unsupported(Reason("inline_data".into())),
            consistency: Some(Consistency::Replayed),
        };
        let entry = Entry { name: b"a\xff\n".to_vec(), meta: meta(), target: Some(b"../b".to_vec()) };
        let path = GuestPath::parse(b"/a/\xff").unwrap();
        let found = vec![
            Found { path: path.clone(), outcome: Ok(FoundEntry { meta: meta(), target: None }) },
            Found { path: path.clone(), outcome: Err(Error::corrupt("a folder")) },
        ];
        let parts = vec![
            Part::Volume(volume),
            Part::Path(path),
            Part::Meta(meta()),
            Part::Target(b"/x".to_vec()),
            Part::Entries(vec![entry]),
            Part::Next(Some(3)),
            Part::Opened { file_size_bytes: 9 },
            Part::Piece(vec![1, 2, 3]),
            Part::Ranges(RangePage { ranges: vec![1..2, 2..9], next: Some(9), file_size_bytes: 10 }),
            Part::Found(found),
            Part::Working,
        ];
        let mut messages: Vec<_> = parts.into_iter().map(|part| Message::Part { id: 7, part }).collect();
        messages.push(Message::Hello { version: 1, level: Level::from_bits(5) });
        messages.push(Message::Fatal { sandbox: true, text: "no seccomp".into() });
        messages.push(Message::Done { id: 7 });
        messages.push(Message::Failed { id: 7, error: Error::WrongKey });
        messages
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        for message in messages() {
            let (tag, payload) = message.encode();
            assert_eq!(Message::decode(&Frame { tag, payload }).unwrap(), message);
        }
    }

    #[test]
    fn what_no_honest_worker_says_is_refused() {
        let entry = |name: &[u8]| Part::Entries(vec![Entry { name: name.to_vec(), meta: meta(), target: None }]);
        let mut late = meta();
        late.modified = Some(GuestTime { seconds: 0, nanoseconds: 1_000_000_000 });
        let page = |ranges: Vec<Range<u64>>, next| Part::Ranges(RangePage { ranges, next, file_size_bytes: 10 });
        let reversed = Range { start: 5, end: 4 };
        for part in [
            entry(b".."),
            entry(b"a/b"),
            entry(b""),
            entry(b"a\0"),
            entry(&[b'a'; NAME_BYTES_MAX + 1]),
            Part::Meta(late),
            Part::Target(vec![b'a'; TARGET_BYTES_MAX + 1]),
            Part::Piece(Vec::new()),
            page(vec![0..1, 2..11], None),
            page(vec![5..6, 0..1], None),
            page(vec![reversed], None),
            page(vec![0..1, 2..9], Some(3)),
        ] {
            let (tag, payload) = Message::Part { id: 1, part: part.clone() }.encode();
            assert!(Message::decode(&Frame { tag, payload }).is_err(), "{part:?}");
        }
    }

    #[test]
    fn a_volume_cannot_come_twice() {
        let Some(Message::Part { part: Part::Volume(volume), .. }) = messages().into_iter().next() else { panic!() };
        let mut volumes = Vec::new();
        add_volume(&mut volumes, volume.clone()).unwrap();
        assert!(add_volume(&mut volumes, volume).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(tag in 0x40u8..0x47, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&Frame { tag, payload });
        }

        #[test]
        fn what_is_heard_of_a_mutated_frame_can_be_said(which in 0usize..15, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let (tag, mut payload) = messages()[which].encode();
            for (at, byte) in flips {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            if let Ok(message) = Message::decode(&Frame { tag, payload }) {
                let (tag, payload) = message.encode();
                prop_assert_eq!(Message::decode(&Frame { tag, payload }).unwrap(), message);
            }
        }
    }
}
