//! Deep: every block that an image holds is decoded and compared with its digest. What does not agree is lost.

use super::{Check, Finding, work};
use crate::digests::{GROUP_BLOCKS, Group, Layer, State, says_damaged};
use crate::error::{Kind, Result, says_wrong_bytes};
use crate::manifest::Disk;
use crate::repository::Repository;
use sendense_block::{self as block, BLOCK_BYTES, BlockIndex, ByteLen, Digest, Extent};
use sendense_qcow2::{Held, Image, Mapping};
use std::path::Path;

/// Of which bytes of the file the blocks are decoded; of all others it is only looked whether the image holds them.
pub(crate) type Asked<'a> = &'a (dyn Fn(Extent) -> bool + Sync);

/// What one thread works with.
struct Desk {
    group: Group,
    block: Vec<u8>,
    held: Vec<Held>,
}

/// Checks the blocks of an image against its digests.
pub(super) fn image(
    repository: &Repository,
    check: &Check<'_>,
    path: &Path,
    disk: &Disk,
    digests: &Layer,
    asked: Option<Asked<'_>>,
    threads: usize,
) -> Result<()> {
    let opened = match repository.open_image_at(path, disk) {
        Ok(image) => image,
        Err(error) => {
            let what = block::error::chain(&error);
            let finding = Finding { file: path.to_owned(), segment: None, range: None, what };
            if matches!(error.kind, Kind::Corrupt { .. }) {
                check.damaged(finding);
                check.lost(whole(disk));
            } else {
                check.unreadable(finding)
            }
            return Ok(());
        }
    };
    let desk = || Desk {
        group: Group::default(),
        block: vec![0; BLOCK_BYTES as usize],
        held: vec![Held::Absent; GROUP_BLOCKS as usize],
    };
    work::each(check.cancel, threads, digests.digests.groups(), desk, |desk, number| {
        check_group(check, path, &opened, digests, asked, number, desk)
    })
}

/// All blocks of a disk.
pub(super) fn whole(disk: &Disk) -> Extent {
    Extent::whole(disk.capacity()).to_blocks()
}

fn check_group(
    check: &Check<'_>,
    path: &Path,
    image: &Image,
    digests: &Layer,
    asked: Option<Asked<'_>>,
    number: u64,
    desk: &mut Desk,
) -> Result<()> {
    let first = number * GROUP_BLOCKS;
    let count = (digests.digests.blocks() - first).min(GROUP_BLOCKS) as usize;
    let of_group = Extent::between(BlockIndex(first).offset(), BlockIndex(first + count as u64).offset());
    let about = |index: u64, what: &str| Finding {
        file: path.to_owned(),
        segment: None,
        range: Some(Extent::block(BlockIndex(index))),
        what: format!("block {index} of the disk: {what}"),
    };
    if let Err(error) = work::read(|| image.held(BlockIndex(first), &mut desk.held[..count])) {
        tell(check, &error, about(first, &block::error::chain(&error)), of_group);
        return Ok(());
    }
    let listed = match digests.digests.group(number, &mut desk.group) {
        Ok(listed) => listed,
        Err(error) => {
            let what = block::error::chain(&error);
            let finding = Finding { file: digests.path.clone(), segment: None, range: None, what };
            if says_damaged(&error) {
                // Nothing proves what the image holds there.
                check.damaged(finding);
                check.lost(of_group);
            } else {
                check.unreadable(finding);
            }
            return Ok(());
        }
    };
    let states = desk.group.states().take(if listed { count } else { 0 }).chain(std::iter::repeat(State::Absent));
    let lost = |index: u64, what: &str| {
        check.damaged(about(index, what));
        check.lost(Extent::block(BlockIndex(index)));
    };
    for ((index, held), state) in (first..).zip(&desk.held[..count]).zip(states) {
        match (held, state) {
            (Held::Absent, State::Absent) | (Held::Zero, State::Zero) => {}
            (Held::Data, State::Data(digest)) => {
                check.cancel.check()?;
                if let Some(asked) = asked
                    && work::read(|| lies_in(image, index)).is_ok_and(|bytes| !asked(bytes))
                {
                    continue;
                }
                match work::read(|| read_block(image, index, &mut desk.block)) {
                    Ok(()) if Digest::of(&desk.block) == digest => {}
                    Ok(()) => lost(index, "it does not decode to what was backed up"),
                    Err(error) => {
                        let block = Extent::block(BlockIndex(index));
                        tell(check, &error, about(index, &block::error::chain(&error)), block);
                    }
                }
                check.decoded(BLOCK_BYTES);
            }
            _ => lost(index, "the image and the digests file disagree on whether it is held"),
        }
    }
    Ok(())
}

/// A block as it was digested: the last one padded with zeros.
fn read_block(image: &Image, index: u64, block: &mut [u8]) -> block::Result<()> {
    let at = BlockIndex(index).offset();
    let len = image.size().0.saturating_sub(at.0).min(BLOCK_BYTES);
    let (data, padding) = block.split_at_mut(len as usize);
    padding.fill(0);
    let mapping = image.locate(at, ByteLen(len))?;
    image.read(&mapping, data)
}

/// The bytes of the file that a block of data lies in.
fn lies_in(image: &Image, index: u64) -> block::Result<Extent> {
    let at = BlockIndex(index).offset();
    let len = image.size().0.saturating_sub(at.0).min(BLOCK_BYTES);
    let extent = match image.locate(at, ByteLen(len))? {
        Mapping::Raw { host, .. } => Extent::new(host, ByteLen(BLOCK_BYTES)),
        Mapping::Compressed { host, bytes, .. } => Extent::new(host, bytes),
        Mapping::Unallocated { .. } | Mapping::Zero { .. } => None,
    };
    extent.ok_or_else(|| block::Error::new(block::Kind::Corrupt, "a block of data lies nowhere"))
}

fn tell(check: &Check<'_>, error: &block::Error, finding: Finding, of: Extent) {
    if says_wrong_bytes(error.kind) {
        check.damaged(finding);
        check.lost(of);
    } else {
        check.unreadable(finding);
    }
}
