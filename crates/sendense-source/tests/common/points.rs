//! Restore points in memory, made as a mover makes them.

// Each test program uses its part of it.
#![allow(dead_code)]

use sendense_block::{Cancel, Content, Extent};
use sendense_source::{Changes, FreezeRequest, Frozen, Result};
use sendense_types::TrackingToken;
use std::collections::BTreeMap;

/// A restore point of one disk.
#[derive(Clone, Default)]
pub struct Point {
    pub bytes: Vec<u8>,
    pub token: Option<TrackingToken>,
    /// Bytes that were read for it.
    pub read: u64,
    /// Those of them that the disk's map does not call zero.
    pub data: u64,
    /// Why it is not a delta.
    pub reason: Option<String>,
}

impl std::fmt::Debug for Point {
    /// Without the bytes, which fill the screen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes, {} read, {} data, {:?}, {:?}",
            self.bytes.len(),
            self.read,
            self.data,
            self.token,
            self.reason
        )
    }
}

/// The newest point of each disk, by key.
pub type Points = BTreeMap<String, Point>;

/// Reads every disk as a mover would: only what changed onto the parent, or all of it.
pub fn copy(frozen: &dyn Frozen, request: &FreezeRequest, parents: &Points) -> Result<Points> {
    let mut points = Points::new();
    for (asked, facts) in request.disks.iter().zip(&frozen.facts().disks) {
        let disk = frozen.open(&asked.key, &Cancel::new())?;
        assert_eq!(disk.size(), facts.capacity);
        let whole = Extent::whole(facts.capacity);
        let mut point = Point { token: facts.token.clone(), ..Point::default() };
        let wanted = match frozen.changes(&asked.key)? {
            Changes::Delta(map) => {
                point.bytes = parents[&asked.key].bytes.clone();
                assert_eq!(point.bytes.len() as u64, facts.capacity.0, "a delta over a resize");
                map.changed(whole)?.to_blocks(whole.end())
            }
            Changes::Unknown { reason } => {
                point.bytes = vec![0; facts.capacity.0 as usize];
                point.reason = Some(reason);
                [whole].into_iter().collect()
            }
        };
        for extent in wanted.as_slice() {
            for mapped in disk.allocation(*extent)? {
                let range = mapped.extent.start().0 as usize..mapped.extent.end().0 as usize;
                let mut bytes = vec![0xee; range.len()];
                disk.read_at(mapped.extent.start(), &mut bytes)?;
                if mapped.content == Content::Zero {
                    assert!(sendense_block::digest::is_zero(&bytes), "the map says zero at {:?}", mapped.extent);
                } else {
                    point.data += bytes.len() as u64;
                }
                point.read += bytes.len() as u64;
                point.bytes[range].copy_from_slice(&bytes);
            }
        }
        points.insert(asked.key.clone(), point);
    }
    Ok(points)
}
