//! What may be read: for each sector what it holds, and what it held or was told since the last flush.

use super::sim::{Crash, SECTOR, Sim, sectors};
use crate::backend::Memory;
use crate::device::{AllocationMap, ChangeMap, Content, Disk, Flush, ReadAt, WriteAt, ZeroRange};
use crate::error::Kind;
use crate::extent::Extent;
use crate::overlay::Overlay;
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Three blocks and a tail that ends inside a sector.
pub const SIZE: usize = 3 * BLOCK_BYTES as usize + 5 * SECTOR + 100;
const IDENTITY: &[u8] = b"point 7";

#[derive(Debug, Clone)]
pub enum Op {
    /// Offset, length, what to write.
    Write(usize, usize, u8),
    Zero(usize, usize),
    Flush,
    Reopen,
    /// The machine dies after so many changes of its files.
    Doom(usize, Crash),
    /// From the write on after so many others the disk is full, and does some bytes of that one.
    Full(usize, usize),
}

/// An overlay and the model of it.
pub struct Pair {
    pub sim: Sim,
    pub overlay: Option<Overlay>,
    base: Arc<dyn Disk>,
    base_bytes: Vec<u8>,
    now: Vec<u8>,
    /// What sectors held at the last flush and between then and now, where that differs from now.
    before: BTreeMap<usize, Vec<Vec<u8>>>,
    /// What the next crash does.
    crash: Crash,
    /// Where a write was going on when the machine died.
    in_flight: Range<usize>,
}

impl Pair {
    pub fn new() -> Self {
        let mut base_bytes: Vec<u8> = (0..SIZE).map(|at| (at / SECTOR * 31 + at % 7) as u8).collect();
        // A hole in the base.
        base_bytes[BLOCK_BYTES as usize..2 * BLOCK_BYTES as usize].fill(0);
        let base: Arc<dyn Disk> = Arc::new(Memory::from_bytes(base_bytes.clone()));
        let sim = Sim::new();
        let overlay = Overlay::create_in(Arc::new(sim.clone()), base.clone(), IDENTITY).unwrap();
        let now = base_bytes.clone();
        Self {
            sim,
            overlay: Some(overlay),
            base,
            base_bytes,
            now,
            before: BTreeMap::new(),
            crash: Crash::Keep,
            in_flight: 0..0,
        }
    }

    fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    pub fn run(&mut self, op: &Op) {
        match *op {
            Op::Write(at, len, byte) => {
                let bytes: Vec<u8> = (0..len).map(|n| byte ^ (n / SECTOR) as u8).collect();
                let done = self.overlay().write_at(ByteOffset(at as u64), &bytes);
                self.wrote(at, &bytes, done);
            }
            Op::Zero(at, len) => {
                let range = Extent::new(ByteOffset(at as u64), ByteLen(len as u64)).unwrap();
                let done = self.overlay().zero_range(range);
                self.wrote(at, &vec![0; len], done);
            }
            Op::Flush => match self.overlay().flush() {
                Ok(()) => self.before.clear(),
                Err(error) => assert!(self.sim.is_dead() || error.kind == Kind::NoSpace, "{error:?}"),
            },
            Op::Reopen => {
                self.overlay = None;
                self.open(true);
            }
            Op::Doom(changes, crash) => {
                self.crash = crash;
                self.sim.die_after(changes);
            }
            Op::Full(writes, bytes) => self.sim.fill_up_after(Some((writes, bytes))),
        }
        if self.sim.is_dead() {
            self.crash(self.crash);
        }
        self.check();
    }

    /// Crashes now, and opens what is left.
    pub fn crash(&mut self, crash: Crash) {
        self.overlay = None;
        self.sim = self.sim.crash(crash);
        self.open(matches!(crash, Crash::Keep));
    }

    /// What was told to be done survives a kill, flushed or not: only where a write was going on there may be older bytes.
    fn forget_the_past(&mut self) {
        let in_flight = self.in_flight.clone();
        self.before.retain(|number, _| *number >= in_flight.start / SECTOR && number * SECTOR < in_flight.end);
    }

    /// Opens it; `same_boot` when no machine has died since.
    fn open(&mut self, same_boot: bool) {
        self.sim.fill_up_after(None);
        let opened = Overlay::open_in(Arc::new(self.sim.clone()), self.base.clone(), IDENTITY);
        if self.sim.is_dead() {
            self.sim = self.sim.crash(self.crash);
            return self.open(same_boot && matches!(self.crash, Crash::Keep));
        }
        if same_boot {
            self.forget_the_past();
        }
        self.overlay = Some(opened.unwrap());
        self.resync();
    }

    fn wrote(&mut self, at: usize, bytes: &[u8], done: crate::Result<()>) {
        let end = at + bytes.len();
        self.in_flight = if self.sim.is_dead() { at..end } else { 0..0 };
        for part in sectors(at, bytes.len()) {
            let number = part.start / SECTOR;
            let whole = number * SECTOR..((number + 1) * SECTOR).min(SIZE);
            let held = self.before.entry(number).or_default();
            held.push(self.now[whole.clone()].to_vec());
            if done.is_err() {
                // Any part of the write may be done, in a sector any bytes of it up to some place.
                let mut torn = self.now[whole.clone()].to_vec();
                for at in part {
                    torn[at - whole.start] = bytes[at - (end - bytes.len())];
                    held.push(torn.clone());
                }
            }
        }
        match done {
            Ok(()) => self.now[at..end].copy_from_slice(bytes),
            // It may die while it tidies up after a write that found no room.
            Err(error) if self.sim.is_dead() => assert!(matches!(error.kind, Kind::Io | Kind::NoSpace), "{error:?}"),
            Err(error) => {
                assert_eq!(error.kind, Kind::NoSpace);
                self.accept(at..end);
            }
        }
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![1; SIZE];
        self.overlay().read_at(ByteOffset(0), &mut bytes).unwrap();
        bytes
    }

    /// Takes what is read for what is held, if it may be.
    fn accept(&mut self, range: Range<usize>) {
        let read = self.read();
        for part in sectors(range.start, range.len()) {
            let number = part.start / SECTOR;
            let whole = number * SECTOR..((number + 1) * SECTOR).min(SIZE);
            let got = &read[whole.clone()];
            let before = self.before.get(&number);
            let known =
                got == &self.now[whole.clone()] || before.is_some_and(|held| held.iter().any(|held| held == got));
            assert!(known, "sector {number} holds what was never in it, or what a flush had replaced");
            self.now[whole].copy_from_slice(got);
        }
    }

    /// After opening, what is read is durable.
    fn resync(&mut self) {
        self.accept(0..SIZE);
        self.before.clear();
    }

    /// Compares everything that the overlay says with the model.
    pub fn check(&self) {
        assert!(self.read() == self.now, "what was read is not what was written");
        let whole = Extent::whole(ByteLen(SIZE as u64));
        let changed = self.overlay().changed(whole).unwrap();
        for part in sectors(0, SIZE) {
            let extent = Extent::between(ByteOffset(part.start as u64), ByteOffset(part.end as u64));
            assert!(
                changed.contains(extent) || self.now[part.clone()] == self.base_bytes[part],
                "a change is not told"
            );
        }
        let mut at = 0;
        for part in self.overlay().allocation(whole).unwrap() {
            assert_eq!(part.extent.start().0, at);
            let bytes = &self.now[at as usize..part.extent.end().0 as usize];
            assert!(part.content == Content::Data || bytes.iter().all(|byte| *byte == 0), "{part:?} is not zero");
            at = part.extent.end().0;
        }
        assert_eq!(at, SIZE as u64);
        let held = self.overlay().held();
        assert_eq!((held.data.0 + held.zero.0).div_ceil(BLOCK_BYTES), changed.byte_len().0.div_ceil(BLOCK_BYTES));
    }
}
