//! What a node reads for a restore: the disks of one point, as long as its order lives.
//!
//! Blocks travel as they lie in the images where they are frames, with the digests that the point has of them, and the node
//! decodes and compares. What lies there otherwise is compressed for the way.
//!
//! Invariants: a node reads only disks that its order names; nothing is read once [`Supply::close`] has returned, and the point
//! is free then for whoever wants to delete it; an answer is made only when there is room for it.

use super::run::over;
use crate::fault::{Result, invalid, of_block, of_repo};
use crate::jobs::damage::Passed;
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use sendense_block::codec::{Encoder, Level};
use sendense_block::copy::Snapshot;
use sendense_block::digest::is_zero;
use sendense_block::{
    AllocationMap, BLOCK_BYTES, Block, BlockIndex, ByteLen, ByteOffset, Content, Digest, DigestMap, Error, Extent,
    ExtentSet, Kind, Known, Payload, ReadAt, block_count,
};
use sendense_node::remote::batch;
use sendense_node::remote::digests::{WINDOW_BLOCKS, encode};
use sendense_node::remote::message::{Answer, Fault, HELD_BLOCKS_MAX, READ_BLOCKS_MAX, words};
use sendense_node::restore::DiskAssignment;
use sendense_repo::{ComparedDisk, OnDamage, Repository};
use sendense_types::{BackupId, DiskNumber, Problem, ProblemCode, VmContextId};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Lines of one report: a node tells tens in the life of a restore.
const LINES_MAX: usize = 256;
/// Reports that wait for the job's thread, which takes them within milliseconds.
const REPORTS_WAITING_MAX: usize = 16;
/// The most that an answer with blocks takes: none of them shrinks, and each has its head.
pub(crate) const ANSWER_BYTES_MAX: usize = READ_BLOCKS_MAX as usize * (BLOCK + 64);

/// A restore that a node carries out.
pub(super) struct Supply {
    /// None when it is over.
    disks: RwLock<Option<Vec<Supplied>>>,
    capacity_bytes: u64,
    events: Mutex<mpsc::Sender<Event>>,
    heard: Mutex<Instant>,
    has_begun: AtomicBool,
    is_over: AtomicBool,
    /// Reports that the job's thread has not taken yet.
    waiting: AtomicUsize,
    /// Why the point could not be read, which counts more than what the node makes of it.
    failed: Mutex<Option<Problem>>,
}

/// A disk that the node may read.
struct Supplied {
    number: DiskNumber,
    disk: ComparedDisk,
    on_damage: OnDamage,
}

/// What the job's thread is told.
pub(super) enum Event {
    Report { progress: Snapshot, notes: Vec<String>, lines: Vec<String> },
    HandOver(oneshot::Sender<Result<()>>),
    LettingGo(oneshot::Sender<bool>),
    Ended(Box<Result<Answer, Fault>>),
    Lost(String),
}

impl Supply {
    /// Opens the disks, so that what is wrong with them is told before anything is made. The point is held until the end.
    pub fn open(
        repository: &Repository,
        (vm, backup): (&VmContextId, &BackupId),
        disks: &[DiskAssignment],
        on_damage: OnDamage,
        who: &str,
        events: mpsc::Sender<Event>,
    ) -> Result<Self> {
        let open = |disk: &DiskAssignment| {
            let opened = repository.open_compared(vm, backup, disk.number, who, on_damage);
            Ok(Supplied { number: disk.number, disk: opened.map_err(|error| of_repo(&error))?, on_damage })
        };
        Ok(Self {
            disks: RwLock::new(Some(disks.iter().map(open).collect::<Result<_>>()?)),
            capacity_bytes: disks.iter().map(|disk| disk.capacity_bytes).fold(0, u64::saturating_add),
            events: Mutex::new(events),
            heard: Mutex::new(Instant::now()),
            has_begun: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            failed: Mutex::default(),
        })
    }

    /// The node said something about this restore, or that it works at it.
    pub fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// How long the node was not heard.
    pub fn silent_for(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// True when the node has begun: the order is not told to it again, or a machine would be made twice.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::SeqCst)
    }

    fn tell(&self, event: Event) {
        // Where nobody listens any more the restore is over, and the node is told so at its next call.
        let _ = self.events.lock().send(event);
    }

    /// The node has ended it.
    pub fn ended(&self, outcome: Result<Answer, Fault>) {
        self.tell(Event::Ended(Box::new(outcome)));
    }

    /// The node is not at it any more.
    pub fn lost(&self, why: &str) {
        self.tell(Event::Lost(why.to_owned()));
    }

    /// The node is at work, and somebody waits for it.
    fn check(&self) -> Result<()> {
        self.hear();
        self.has_begun.store(true, Ordering::SeqCst);
        if self.is_over.load(Ordering::SeqCst) { Err(over()) } else { Ok(()) }
    }

    /// Held by whatever reads: who closes waits for it.
    fn disks(&self) -> Result<MappedRwLockReadGuard<'_, Vec<Supplied>>> {
        self.check()?;
        RwLockReadGuard::try_map(self.disks.read(), Option::as_ref).map_err(|_| over())
    }

    /// Waits for what is being read; from then on nothing is. Tells what was read though it is damaged.
    pub fn close(&self) -> Vec<Passed> {
        self.is_over.store(true, Ordering::SeqCst);
        let disks = self.disks.write().take();
        disks.unwrap_or_default().iter().map(|disk| Passed::of(&disk.disk)).collect()
    }

    /// Why the point could not be read, where that was so.
    pub fn failure(&self) -> Option<Problem> {
        self.failed.lock().clone()
    }

    fn failed(&self, what: &str, error: &Error) -> Problem {
        let problem = of_block(what, error);
        // What is told as busy is asked again.
        if problem.code != ProblemCode::Busy {
            self.failed.lock().get_or_insert_with(|| problem.clone());
        }
        problem
    }

    /// Takes a report.
    pub fn report(&self, progress: [u64; 6], notes: &[String], lines: &[String]) -> Result<()> {
        self.check()?;
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= REPORTS_WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(Problem::new(ProblemCode::Busy, "more reports than are read", ""));
        }
        // No restore moves more than its disks hold.
        let most = self.capacity_bytes.saturating_add(BLOCK_BYTES);
        let [planned, done, stored, frames, zero, same] = progress.map(|bytes| ByteLen(bytes.min(most)));
        let cut = |lines: &[String]| lines.iter().take(LINES_MAX).map(|line| words(line)).collect();
        let progress = Snapshot { planned, done, stored, frames, zero, same };
        self.tell(Event::Report { progress, notes: cut(notes), lines: cut(lines) });
        Ok(())
    }

    /// The job's thread has taken a report.
    pub fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// All is written: whether that is still wanted. The answer comes from the job's thread.
    pub async fn hand_over(&self) -> Result<()> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        self.tell(Event::HandOver(reply));
        answer.await.unwrap_or_else(|_| Err(over()))
    }

    /// It has failed there, and what was made is taken away; whether the job waits for that.
    pub async fn letting_go(&self) -> Result<bool> {
        self.check()?;
        let (reply, is_awaited) = oneshot::channel();
        self.tell(Event::LettingGo(reply));
        Ok(is_awaited.await.unwrap_or(false))
    }

    /// What the point holds. Blocks.
    pub fn digests(&self, disk: DiskNumber, first: u64, count: u32) -> Result<Vec<u8>> {
        let disks = self.disks()?;
        let count = u64::from(count).min(WINDOW_BLOCKS) as usize;
        let mut known = vec![Known::Zero; count];
        let read = find(&disks, disk)?.disk.known(BlockIndex(first), &mut known);
        read.map_err(|error| self.failed("read the point's digests", &error))?;
        Ok(encode(&known))
    }

    /// Where the point holds data next. Blocks.
    pub fn next_data(&self, disk: DiskNumber, from: u64, end: u64) -> Result<Option<u64>> {
        let disks = self.disks()?;
        let found = find(&disks, disk)?.disk.next_data(BlockIndex(from), BlockIndex(end));
        Ok(found.map_err(|error| self.failed("read the point's digests", &error))?.map(|block| block.0))
    }

    /// Runs of blocks that may hold something. Blocks.
    pub fn held(&self, disk: DiskNumber, from: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        let disks = self.disks()?;
        let disk = find(&disks, disk)?;
        let is_on_disk = from < end && end <= disk.blocks();
        if !is_on_disk || end - from > HELD_BLOCKS_MAX {
            return Err(invalid(format!("blocks {from} to {end} are not on the disk, or too many")));
        }
        let last = ByteOffset((end * BLOCK_BYTES).min(disk.disk.size().0));
        let within = Extent::between(BlockIndex(from).offset(), last);
        let map = disk.disk.allocation(within);
        let map = map.map_err(|error| self.failed("look what the point holds", &error))?;
        let data: ExtentSet =
            map.iter().filter(|mapped| mapped.content == Content::Data).map(|mapped| mapped.extent).collect();
        let data = data.to_blocks(ByteOffset(end * BLOCK_BYTES));
        Ok(data.as_slice().iter().map(|run| (run.start().0 / BLOCK_BYTES, run.len().0 / BLOCK_BYTES)).collect())
    }

    /// Blocks of a disk, as a batch. Blocks.
    pub fn read(&self, disk: DiskNumber, first: u64, count: u32) -> Result<Vec<u8>> {
        let disks = self.disks()?;
        let disk = find(&disks, disk)?;
        let end = first.checked_add(count.into()).filter(|end| *end <= disk.blocks());
        if end.is_none() || count == 0 || count > READ_BLOCKS_MAX {
            return Err(invalid(format!("{count} blocks from {first} on are not on the disk, or too many")));
        }
        let batch = disk.batch(BlockIndex(first), count as usize);
        self.hear();
        batch.map_err(|error| self.failed("read the point", &error))
    }
}

fn find(disks: &[Supplied], number: DiskNumber) -> Result<&Supplied> {
    let refuse = || Problem::new(ProblemCode::Forbidden, "the order does not name the disk", format!("disk {number}"));
    disks.iter().find(|disk| disk.number == number).ok_or_else(refuse)
}

impl Supplied {
    fn blocks(&self) -> u64 {
        block_count(self.disk.size())
    }

    fn batch(&self, first: BlockIndex, count: usize) -> sendense_block::Result<Vec<u8>> {
        let mut known = vec![Known::Zero; count];
        self.disk.known(first, &mut known)?;
        // The node compares, which must not believe what came over the line either. Of damaged blocks that are wanted all the same
        // it is told the digests of what they are now.
        let compares = self.on_damage == OnDamage::Pass;
        let (mut batch, mut frame, mut block) = (Vec::new(), Vec::new(), vec![0; BLOCK]);
        let mut encoder = None;
        for (index, known) in (first.0..).map(BlockIndex).zip(known) {
            let Known::Data(digest) = known else {
                self.read_block(index, &mut block)?;
                if !is_zero(&block) {
                    let context = "the chain holds data where its digests know of none";
                    return Err(Error::new(Kind::Corrupt, context).at(index.offset()));
                }
                let digest = Digest::of_zero_block();
                batch::append(&mut batch, &Block { index, digest, payload: Payload::Zero });
                continue;
            };
            if !compares && self.disk.chain().read_frame(index, &mut frame)? && frame.len() <= Encoder::FRAME_BYTES_MAX
            {
                batch::append(&mut batch, &Block { index, digest, payload: Payload::Zstd(&frame) });
                continue;
            }
            self.read_block(index, &mut block)?;
            let encoder = match &mut encoder {
                Some(encoder) => encoder,
                None => encoder.insert(Encoder::new(Level::Fast)?),
            };
            frame.resize(Encoder::FRAME_BYTES_MAX, 0);
            let payload = match encoder.encode(&block, &mut frame) {
                Some(len) => Payload::Zstd(&frame[..len]),
                None => Payload::Raw(&block),
            };
            batch::append(&mut batch, &Block { index, digest, payload });
        }
        Ok(batch)
    }

    /// A block, what lies beyond the disk's end as zeros.
    fn read_block(&self, index: BlockIndex, block: &mut [u8]) -> sendense_block::Result<()> {
        let there = self.disk.size().0.saturating_sub(index.offset().0).min(BLOCK_BYTES) as usize;
        let (data, beyond) = block.split_at_mut(there);
        beyond.fill(0);
        match self.on_damage {
            OnDamage::Fail => self.disk.chain().read_at(index.offset(), data),
            OnDamage::Pass => self.disk.read_at(index.offset(), data),
        }
    }
}
