//! From a chain (or any disk) onto a target, sparsely.

use super::feed::{Chunk, Feed, Windows};
use super::{Mode, Options, Progress, Stop, add, run_lanes};
use crate::cancel::Cancel;
use crate::device::{Content, Disk, Target};
use crate::digest::is_zero;
use crate::error::Result;
use crate::extent::{Extent, ExtentSet};
use crate::plan;
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use parking_lot::Mutex;

const BLOCK: usize = BLOCK_BYTES as usize;

/// One disk's restore.
pub struct Restore<'a> {
    /// The disk's name, for messages.
    pub name: &'a str,
    /// What to restore.
    pub disk: &'a dyn Disk,
    /// Onto what; at least as large as the disk. What lies beyond the disk's end is not touched.
    pub target: &'a dyn Target,
    /// True when every byte of the target is known to be zero (a new file): zeros are then not written at all.
    pub target_is_zero: bool,
    /// How.
    pub options: Options,
    /// Told of the work as it is done.
    pub progress: &'a Progress,
    /// Asked between chunks.
    pub cancel: &'a Cancel,
}

/// Copies the disk onto the target and flushes it. Zeros are made, not written: a restored file is as sparse as it can be.
///
/// On an error or a cancellation the target holds a part of the disk.
pub fn restore(job: &Restore<'_>) -> Result<()> {
    let size = job.disk.size();
    let context = |error: crate::Error| error.within(format!("restore {}", job.name));
    let work = data_len(job, size).map_err(context)?;
    job.progress.plan(work);
    let request = job.options.request_bytes();
    let feed = Mutex::new(Feed::new(Windows::new(job.disk, size, Mode::Full), request));
    run_lanes(job.options.lanes(work), job.cancel, |stop| lane(job, size, request, &feed, stop)).map_err(context)?;
    if !job.target_is_zero {
        zero_holes(job, size).map_err(context)?;
    }
    job.target.flush().map_err(context)
}

fn data_len(job: &Restore<'_>, size: ByteLen) -> Result<ByteLen> {
    let (mut windows, mut len) = (Windows::new(job.disk, size, Mode::Full), 0);
    while let Some((plan, _)) = windows.next()? {
        job.cancel.check()?;
        len += plan.read_len(size).0;
    }
    Ok(ByteLen(len))
}

fn lane(job: &Restore<'_>, size: ByteLen, request: usize, feed: &Mutex<Feed<'_>>, stop: &Stop<'_>) -> Result<()> {
    let mut buffer = vec![0; request];
    while !stop.asked() {
        let Some(Chunk { extent, .. }) = feed.lock().next()? else { break };
        let extent = extent.intersect(Extent::whole(size));
        let data = &mut buffer[..extent.len().0 as usize];
        job.disk.read_at(extent.start(), data)?;
        write_sparse(job, extent, data)?;
        add(&job.progress.done, extent.len().0);
    }
    Ok(())
}

/// Writes runs of blocks that are not zero; makes the others zero where the target may hold something.
fn write_sparse(job: &Restore<'_>, extent: Extent, data: &[u8]) -> Result<()> {
    let mut start = 0;
    while start < data.len() {
        let zero = is_zero(block_at(data, start));
        let mut end = start;
        while end < data.len() && is_zero(block_at(data, end)) == zero {
            end = (end + BLOCK).min(data.len());
        }
        let at = ByteOffset(extent.start().0 + start as u64);
        let run = &data[start..end];
        if !zero {
            job.target.write_at(at, run)?;
            add(&job.progress.stored, run.len() as u64);
        } else {
            add(&job.progress.zero, run.len() as u64);
            if !job.target_is_zero {
                job.target.zero_range(Extent::between(at, ByteOffset(at.0 + run.len() as u64)))?;
            }
        }
        start = end;
    }
    Ok(())
}

fn block_at(data: &[u8], at: usize) -> &[u8] {
    &data[at..(at + BLOCK).min(data.len())]
}

/// Makes zero what the disk does not hold. The lanes have dealt with every block that holds a byte of data.
fn zero_holes(job: &Restore<'_>, size: ByteLen) -> Result<()> {
    for window in plan::windows(size) {
        job.cancel.check()?;
        let range = plan::on_disk(window, size);
        let map = job.disk.allocation(range)?;
        let data: ExtentSet = map.iter().filter(|m| m.content == Content::Data).map(|m| m.extent).collect();
        for hole in data.to_blocks(range.end()).gaps(range).as_slice() {
            job.target.zero_range(*hole)?;
        }
    }
    Ok(())
}
