//! Where copied blocks go.

use crate::digest::Digest;
use crate::error::Result;
use crate::units::BlockIndex;

/// A block as it will lie in the file.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// 64 KiB of zeros, to be flagged, not stored.
    Zero,
    /// The 64 KiB themselves (the tail block padded with zeros).
    Raw(&'a [u8]),
    /// One zstd frame (RFC 8878) that decodes to the 64 KiB and is smaller than they.
    Zstd(&'a [u8]),
}

/// A block with its number and the digest of its 64 KiB.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// Its number on the disk.
    pub index: BlockIndex,
    /// The digest of its bytes; of a zero block when the payload is [`Payload::Zero`].
    pub digest: Digest,
    /// Its bytes.
    pub payload: Payload<'a>,
}

/// Stores blocks: a draft's image, or a stream to the hub.
pub trait BlockSink: Send + Sync {
    /// Stores a batch: blocks of rising number, each stored at most once in the sink's life. Called from several threads
    /// at once. Raw payloads that follow each other in memory and number may be written with one call. Blocks when the
    /// sink is behind (that is the backpressure). Durable only when the draft is sealed.
    fn put(&self, batch: &[Block<'_>]) -> Result<()>;
}
