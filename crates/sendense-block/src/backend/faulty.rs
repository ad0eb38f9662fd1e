//! A device that fails on command and remembers what was asked of it: for tests of every error path.

use crate::device::{AllocationMap, Flush, MappedExtent, ReadAt, WriteAt, ZeroRange};
use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::units::{ByteLen, ByteOffset};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// One thing that was asked of the device, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A read of a range.
    Read(Extent),
    /// A write with its data.
    Write(ByteOffset, Vec<u8>),
    /// A range made zero.
    Zero(Extent),
    /// Everything before it made durable.
    Flush,
}

/// What to do to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fail it without doing it.
    Fail(Kind),
    /// Do the first bytes of a write, then fail.
    Torn(usize),
    /// Read it, but flip a bit of the first byte.
    Flip,
    /// Do it late.
    Delay(Duration),
}

type Rule = Box<dyn Fn(usize, &Operation) -> Option<Fault> + Send + Sync>;

/// Wraps a device; a rule decides, by the operation and its number from 0, which fault to play.
#[derive(Clone)]
pub struct Faulty<D> {
    inner: Arc<D>,
    state: Arc<State>,
}

struct State {
    rule: Rule,
    record: bool,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    count: usize,
    operations: Vec<Operation>,
}

impl<D> Faulty<D> {
    /// Plays the faults of `rule` on `inner`. With `record`, keeps every operation (writes with their data).
    pub fn new(
        inner: Arc<D>,
        record: bool,
        rule: impl Fn(usize, &Operation) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, state: Arc::new(State { rule: Box::new(rule), record, log: Mutex::default() }) }
    }

    /// Everything asked so far, when recording.
    pub fn operations(&self) -> Vec<Operation> {
        self.state.log.lock().operations.clone()
    }

    fn meet(&self, operation: Operation) -> Option<Fault> {
        let number = {
            let mut log = self.state.log.lock();
            log.count += 1;
            log.count - 1
        };
        let fault = (self.state.rule)(number, &operation);
        if self.state.record {
            self.state.log.lock().operations.push(operation);
        }
        match fault {
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                None
            }
            other => other,
        }
    }
}

fn injected(kind: Kind, at: ByteOffset) -> Error {
    Error::new(kind, "injected fault").at(at)
}

impl<D: ReadAt> ReadAt for Faulty<D> {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let extent = Extent::new(at, ByteLen(buf.len() as u64)).unwrap_or_default();
        match self.meet(Operation::Read(extent)) {
            Some(Fault::Fail(kind)) => return Err(injected(kind, at)),
            Some(Fault::Flip) => {
                self.inner.read_at(at, buf)?;
                if let Some(byte) = buf.first_mut() {
                    *byte ^= 1;
                }
                return Ok(());
            }
            _ => {}
        }
        self.inner.read_at(at, buf)
    }
}

impl<D: WriteAt> WriteAt for Faulty<D> {
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        match self.meet(Operation::Write(at, if self.state.record { data.to_vec() } else { Vec::new() })) {
            Some(Fault::Fail(kind)) => Err(injected(kind, at)),
            Some(Fault::Torn(len)) => {
                self.inner.write_at(at, &data[..len.min(data.len())])?;
                Err(injected(Kind::Io, at))
            }
            _ => self.inner.write_at(at, data),
        }
    }
}

impl<D: ZeroRange> ZeroRange for Faulty<D> {
    fn zero_range(&self, range: Extent) -> Result<()> {
        match self.meet(Operation::Zero(range)) {
            Some(Fault::Fail(kind)) => Err(injected(kind, range.start())),
            _ => self.inner.zero_range(range),
        }
    }
}

impl<D: Flush> Flush for Faulty<D> {
    fn flush(&self) -> Result<()> {
        match self.meet(Operation::Flush) {
            Some(Fault::Fail(kind)) => Err(Error::new(kind, "injected fault")),
            _ => self.inner.flush(),
        }
    }
}

impl<D: AllocationMap> AllocationMap for Faulty<D> {
    fn allocation(&self, within: Extent) -> Result<Vec<MappedExtent>> {
        self.inner.allocation(within)
    }
}
