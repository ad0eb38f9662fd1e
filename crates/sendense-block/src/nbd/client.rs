//! An export as a device.
//!
//! What lives here: choosing a connection, cutting requests to the server's sizes, bouncing what is not aligned, replacing
//! dead connections. What does not: cookies and replies (`connection`, `reply`).
//!
//! Invariant: a [`Client`] is one export of one size. A connection to anything else under the same name is refused, on
//! opening and on reconnecting.

use super::connection::{Body, Call, Connection};
use super::frame::{Command, command_flags, export_flags, protocol};
use super::handshake::{self, Export};
use super::status::{BASE_ALLOCATION, DirtyBitmap};
use super::{BlockSizes, Options};
use crate::cancel::Cancel;
use crate::device::{Flush, ReadAt, WriteAt, ZeroRange, check_range};
use crate::error::{Error, Kind, Result, chain};
use crate::extent::Extent;
use crate::units::{ByteLen, ByteOffset};
use parking_lot::{Mutex, RwLock};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One request zeroes at most 64 MiB: a server that must write the zeros has done so well within the deadline.
const ZERO_BYTES_MAX: u64 = 64 << 20;
/// The longest pause between two tries to reconnect.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// How to write zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// The server may make a hole.
    Sparse,
    /// The range stays allocated (`NBD_CMD_FLAG_NO_HOLE`).
    Allocated,
    /// Fail with [`Kind::Unsupported`] rather than write zeros slowly (`NBD_CMD_FLAG_FAST_ZERO`).
    Fast,
}

/// An open export. Cheap to clone; the last clone says goodbye to the server when it is dropped.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) export: Export,
    contexts: Vec<String>,
    cancel: Cancel,
    lanes: Vec<Lane>,
    /// The URI, for messages.
    pub(super) name: String,
    /// Writes that must first read their block hold it alone, so that no other write to that block is undone.
    blocks: RwLock<()>,
    /// What was written may not be durable, and a new connection's flush would prove nothing about it.
    wrote: AtomicBool,
}

/// A connection and, should it die, its successors.
struct Lane {
    /// Never locked for longer than it takes to look.
    current: RwLock<Arc<Connection>>,
    /// Held by whoever replaces the connection.
    replacing: Mutex<()>,
}

impl Lane {
    fn new(connection: Connection) -> Self {
        Self { current: RwLock::new(Arc::new(connection)), replacing: Mutex::new(()) }
    }

    fn current(&self) -> Arc<Connection> {
        self.current.read().clone()
    }
}

impl Client {
    /// Connects. Cancelling ends this call and every later one within a second, for good.
    pub fn connect(options: &Options, cancel: &Cancel) -> Result<Self> {
        let doing = |error: Error| error.within(format!("open {}", options.uri));
        let mut contexts = vec![BASE_ALLOCATION.to_owned()];
        contexts.extend(options.contexts.iter().filter(|context| *context != BASE_ALLOCATION).cloned());
        contexts.sort();
        contexts.dedup();
        let first = open(options, &contexts, cancel).map_err(doing)?;
        let export = first.export().clone();
        let several = options.read_only || export.flags & export_flags::CAN_MULTI_CONN != 0;
        let mut lanes = vec![Lane::new(first)];
        for _ in 1..if several { options.connections } else { 1 } {
            let next = open(options, &contexts, cancel).map_err(doing)?;
            same(&export, next.export()).map_err(doing)?;
            lanes.push(Lane::new(next));
        }
        Ok(Self(Arc::new(Shared {
            options: options.clone(),
            name: options.uri.to_string(),
            export,
            contexts,
            cancel: cancel.clone(),
            lanes,
            blocks: RwLock::new(()),
            wrote: AtomicBool::new(false),
        })))
    }

    /// True when writes are refused, by the server or by [`Options::read_only`].
    pub fn read_only(&self) -> bool {
        self.0.options.read_only || self.0.has_flag(export_flags::READ_ONLY)
    }

    /// The longest read or write that travels as one request; longer ones are cut.
    pub fn max_request(&self) -> ByteLen {
        ByteLen(self.0.export.blocks.maximum.into())
    }

    /// The server's block sizes, or what a careful client assumes.
    pub fn block_sizes(&self) -> BlockSizes {
        self.0.export.blocks
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.0.lanes.len()
    }

    /// The server's words about the export.
    pub fn description(&self) -> Option<&str> {
        self.0.export.description.as_deref()
    }

    /// True when the server agreed to a metadata context.
    pub fn has_context(&self, context: &str) -> bool {
        self.0.export.contexts.contains_key(context)
    }

    /// A dirty bitmap (`qemu:dirty-bitmap:NAME`), if it was among [`Options::contexts`] and the server has it.
    pub fn change_map(&self, context: &str) -> Option<DirtyBitmap> {
        self.has_context(context).then(|| DirtyBitmap::new(self.0.clone(), context.to_owned()))
    }

    /// Writes, and returns when the bytes are on stable storage.
    pub fn write_durable_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        if self.0.has_flag(export_flags::SEND_FUA) {
            return self.0.write(at, data, command_flags::FUA);
        }
        self.0.write(at, data, 0)?;
        self.flush()
    }

    /// Makes a range zero in a given way. [`ZeroRange`] is this with [`ZeroMode::Sparse`].
    pub fn write_zeroes(&self, range: Extent, mode: ZeroMode) -> Result<()> {
        self.0.zero(range, mode)
    }

    /// Tells the server that a range is not needed any more; what it reads as afterwards is open.
    pub fn trim(&self, range: Extent) -> Result<()> {
        self.0.trim(range)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }
}

fn open(options: &Options, contexts: &[String], cancel: &Cancel) -> Result<Connection> {
    let ready = handshake::connect(options, contexts, cancel)?;
    Ok(Connection::new(options.uri.to_string(), ready, options.request_timeout))
}

/// Two connections must see the same export, or reads from both make up a disk that never was.
fn same(ours: &Export, other: &Export) -> Result<()> {
    if ours.size != other.size {
        return Err(protocol(format!("export changed its size from {} to {}", ours.size, other.size)));
    }
    let names = |export: &Export| export.contexts.keys().cloned().collect::<Vec<_>>();
    if ours.flags != other.flags || ours.blocks != other.blocks || names(ours) != names(other) {
        return Err(protocol("export changed its abilities"));
    }
    Ok(())
}

impl Shared {
    fn has_flag(&self, flag: u16) -> bool {
        self.export.flags & flag != 0
    }

    /// The least busy connection, a living one if there is any.
    fn lane(&self) -> (&Lane, Arc<Connection>) {
        let lanes = self.lanes.iter().map(|lane| (lane, lane.current()));
        lanes
            .min_by_key(|(_, connection)| (connection.is_lost(), connection.load()))
            .expect("a client has at least one connection")
    }

    /// Does something that changes nothing, on a new connection if the old one dies and the options say so.
    pub(super) fn attempt<T>(&self, mut work: impl FnMut(&Connection) -> Result<T>) -> Result<T> {
        let mut pause = Duration::ZERO;
        let mut tries = 0;
        loop {
            let (lane, connection) = self.lane();
            let error = match work(&connection) {
                Err(error) if connection.is_lost() => error,
                result => return result,
            };
            let Some(reconnect) = self.options.reconnect.filter(|_| error.kind.is_transient()) else {
                return Err(error);
            };
            if self.wrote.load(Ordering::SeqCst) {
                return Err(error);
            }
            // Whoever comes first replaces it; the others find it replaced.
            let _turn = lane.replacing.lock();
            let mut last = error;
            while Arc::ptr_eq(&lane.current(), &connection) {
                if tries >= reconnect.retries {
                    return Err(last);
                }
                self.pause(pause)?;
                pause = (pause * 2).clamp(reconnect.back_off, BACK_OFF_MAX.max(reconnect.back_off));
                tries += 1;
                match open(&self.options, &self.contexts, &self.cancel) {
                    Ok(new) => {
                        same(&self.export, new.export())?;
                        tracing::info!(uri = self.name, tries, "NBD connection replaced");
                        *lane.current.write() = Arc::new(new);
                    }
                    // A server that comes back may listen before it exports.
                    Err(error) if error.kind.is_transient() || error.kind == Kind::NotFound => {
                        tracing::debug!(uri = self.name, tries, reason = chain(&error), "NBD reconnect failed");
                        last = error;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Waits, unless somebody cancels.
    fn pause(&self, pause: Duration) -> Result<()> {
        let end = Instant::now() + pause;
        loop {
            self.cancel.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    fn check(&self, at: ByteOffset, len: usize) -> Result<()> {
        check_range(&self.name, self.export.size, at, len)
    }

    fn check_writable(&self) -> Result<()> {
        if self.options.read_only || self.has_flag(export_flags::READ_ONLY) {
            return Err(Error::new(Kind::Denied, format!("{} is open for reading only", self.name)));
        }
        self.wrote.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn unsupported(&self, what: &str) -> Error {
        Error::new(Kind::Unsupported, format!("server of {} cannot {what}", self.name))
    }

    /// The length of requests with a payload: what the options like, within what the server takes.
    fn piece_bytes(&self) -> ByteLen {
        let BlockSizes { minimum, maximum, .. } = self.export.blocks;
        let piece = self.options.request_bytes.min(maximum);
        ByteLen((piece / minimum * minimum).max(minimum).into())
    }

    /// Cuts a range into what is aligned to the server's blocks and the blocks at its ends that it covers in part.
    fn align(&self, range: Extent) -> Aligned {
        let step = u64::from(self.export.blocks.minimum);
        let block = |at: u64| {
            let start = at / step * step;
            Extent::between(ByteOffset(start), ByteOffset((start.saturating_add(step)).min(self.export.size.0)))
        };
        let (mut start, mut end) = (range.start().0, range.end().0);
        let head = (start % step != 0).then(|| block(start));
        if let Some(head) = head {
            start = head.end().0.min(end);
        }
        let tail = (end % step != 0 && end != self.export.size.0 && end > start).then(|| block(end));
        if let Some(tail) = tail {
            end = tail.start().0;
        }
        Aligned { head, middle: Extent::between(ByteOffset(start), ByteOffset(end)), tail }
    }

    fn read(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.check(at, buf.len())?;
        let Some(range) = not_empty(at, buf.len()) else { return Ok(()) };
        let aligned = self.align(range);
        for edge in aligned.edges() {
            let mut block = vec![0; edge.len().0 as usize];
            self.read_aligned(edge, &mut block)?;
            let shared = edge.intersect(range);
            part_mut(buf, range, shared).copy_from_slice(part(&block, edge, shared));
        }
        self.read_aligned(aligned.middle, part_mut(buf, range, aligned.middle))
    }

    fn read_aligned(&self, range: Extent, buf: &mut [u8]) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.attempt(|connection| {
            let mut rest = &mut *buf;
            let calls = range.pieces(self.piece_bytes()).map(|piece| {
                let (here, later) = std::mem::take(&mut rest).split_at_mut(piece.len().0 as usize);
                rest = later;
                call(Command::Read, 0, piece, Body::Take(here))
            });
            connection.run(&mut calls.collect::<Vec<_>>())
        })
    }

    fn write(&self, at: ByteOffset, data: &[u8], flags: u16) -> Result<()> {
        self.check_writable()?;
        self.check(at, data.len())?;
        let Some(range) = not_empty(at, data.len()) else { return Ok(()) };
        let aligned = self.align(range);
        let _shared;
        let _alone;
        if aligned.is_whole() {
            _shared = self.blocks.read();
        } else {
            _alone = self.blocks.write();
        }
        for edge in aligned.edges() {
            let shared = edge.intersect(range);
            self.patch(edge, |block| part_mut(block, edge, shared).copy_from_slice(part(data, range, shared)), flags)?;
        }
        self.write_aligned(aligned.middle, part(data, range, aligned.middle), flags)
    }

    /// Reads a block, changes it, writes it back. The caller holds `blocks` alone.
    fn patch(&self, block: Extent, change: impl FnOnce(&mut [u8]), flags: u16) -> Result<()> {
        let mut bytes = vec![0; block.len().0 as usize];
        self.read_aligned(block, &mut bytes)?;
        change(&mut bytes);
        self.write_aligned(block, &bytes, flags)
    }

    fn write_aligned(&self, range: Extent, data: &[u8], flags: u16) -> Result<()> {
        let pieces = range.pieces(self.piece_bytes());
        let calls = pieces.map(|piece| call(Command::Write, flags, piece, Body::Give(part(data, range, piece))));
        self.lane().1.run(&mut calls.collect::<Vec<_>>())
    }

    fn zero(&self, range: Extent, mode: ZeroMode) -> Result<()> {
        self.check_writable()?;
        self.check(range.start(), usize::try_from(range.len().0).unwrap_or(usize::MAX))?;
        let flags = match mode {
            ZeroMode::Sparse => 0,
            ZeroMode::Allocated => command_flags::NO_HOLE,
            ZeroMode::Fast if self.has_flag(export_flags::SEND_FAST_ZERO) => command_flags::FAST_ZERO,
            ZeroMode::Fast => return Err(self.unsupported("zero fast")),
        };
        if range.is_empty() {
            return Ok(());
        }
        let aligned = self.align(range);
        let _shared;
        let _alone;
        if aligned.is_whole() {
            _shared = self.blocks.read();
        } else {
            _alone = self.blocks.write();
        }
        for edge in aligned.edges() {
            self.patch(edge, |block| part_mut(block, edge, edge.intersect(range)).fill(0), 0)?;
        }
        if self.has_flag(export_flags::SEND_WRITE_ZEROES) {
            return self.plain(Command::WriteZeroes, flags, aligned.middle);
        }
        // The same zeros for every piece; a piece is at most 32 MiB, mostly 256 KiB.
        let zeros = vec![0; self.piece_bytes().0.min(aligned.middle.len().0) as usize];
        let calls = aligned.middle.pieces(self.piece_bytes());
        let calls = calls.map(|piece| call(Command::Write, 0, piece, Body::Give(&zeros[..piece.len().0 as usize])));
        run_in_groups(&self.lane().1, calls)
    }

    fn trim(&self, range: Extent) -> Result<()> {
        self.check_writable()?;
        self.check(range.start(), usize::try_from(range.len().0).unwrap_or(usize::MAX))?;
        if !self.has_flag(export_flags::SEND_TRIM) {
            return Err(self.unsupported("trim"));
        }
        // A block that is needed in part is needed.
        self.plain(Command::Trim, 0, self.align(range).middle)
    }

    /// Commands without a payload over a range.
    fn plain(&self, command: Command, flags: u16, range: Extent) -> Result<()> {
        let calls = range.pieces(ByteLen(ZERO_BYTES_MAX)).map(|piece| call(command, flags, piece, Body::Nothing));
        run_in_groups(&self.lane().1, calls)
    }

    fn flush(&self) -> Result<()> {
        if !self.wrote.load(Ordering::SeqCst) {
            return Ok(());
        }
        if !self.has_flag(export_flags::SEND_FLUSH) {
            return Err(self.unsupported("flush"));
        }
        // One is enough: several connections are open only where each flushes for all (CAN_MULTI_CONN), or for reading.
        let call = Call { command: Command::Flush, flags: 0, offset: 0, len: 0, body: Body::Nothing };
        self.lane().1.run(&mut [call])
    }
}

fn not_empty(at: ByteOffset, len: usize) -> Option<Extent> {
    Extent::new(at, ByteLen(len as u64)).filter(|range| !range.is_empty())
}

/// A range of 2^64 bytes has 2^38 pieces, which must not all exist at once.
fn run_in_groups<'a>(connection: &Connection, mut calls: impl Iterator<Item = Call<'a>>) -> Result<()> {
    loop {
        let mut group: Vec<_> = calls.by_ref().take(64).collect();
        if group.is_empty() {
            return Ok(());
        }
        connection.run(&mut group)?;
    }
}

fn call(command: Command, flags: u16, range: Extent, body: Body<'_>) -> Call<'_> {
    let len = u32::try_from(range.len().0).expect("pieces are at most 64 MiB");
    Call { command, flags, offset: range.start().0, len, body }
}

/// A range in terms of the server's blocks.
struct Aligned {
    head: Option<Extent>,
    middle: Extent,
    tail: Option<Extent>,
}

impl Aligned {
    fn edges(&self) -> impl Iterator<Item = Extent> {
        self.head.into_iter().chain(self.tail)
    }

    const fn is_whole(&self) -> bool {
        self.head.is_none() && self.tail.is_none()
    }
}

/// The bytes of `piece` in a buffer that holds `whole`, which contains it.
fn part(buf: &[u8], whole: Extent, piece: Extent) -> &[u8] {
    let start = (piece.start().0 - whole.start().0) as usize;
    &buf[start..start + piece.len().0 as usize]
}

fn part_mut(buf: &mut [u8], whole: Extent, piece: Extent) -> &mut [u8] {
    let start = (piece.start().0 - whole.start().0) as usize;
    &mut buf[start..start + piece.len().0 as usize]
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { name, export, lanes, .. } = self.shared();
        f.debug_struct("Client").field("uri", name).field("export", export).field("connections", &lanes.len()).finish()
    }
}

impl ReadAt for Client {
    fn size(&self) -> ByteLen {
        self.0.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf)
    }
}

impl WriteAt for Client {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.0.write(at, data, 0)
    }
}

impl ZeroRange for Client {
    fn zero_range(&self, range: Extent) -> Result<()> {
        self.0.zero(range, ZeroMode::Sparse)
    }
}

impl Flush for Client {
    /// Fails with [`Kind::Unsupported`] where the server has no flush: then nothing can be promised.
    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
}
