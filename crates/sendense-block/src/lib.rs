//! Bytes: extents, devices, NBD, block digests, the frame codec, and the copy pipeline between a source and a sink.
//!
//! What lives here: everything that can be said about blocks without knowing what a virtual machine, a repository or an
//! image format is. What does not: async, QCOW2, SQL, HTTP. This crate could be published alone.
//!
//! The unit is the **block**: [`BLOCK_BYTES`] (64 KiB) = one QCOW2 cluster = the default granularity of CBT and of QEMU's
//! dirty bitmaps. I/O is blocking and done by threads; all devices are shared (`&self`, `Send + Sync`) so that several
//! threads keep several requests in flight.

pub mod backend;
pub mod cancel;
pub mod codec;
pub mod copy;
pub mod device;
pub mod digest;
pub mod error;
pub mod extent;
pub mod nbd;
pub mod overlay;
pub mod plan;
pub mod sink;
pub mod units;

pub use cancel::{Cancel, HookGuard};
pub use device::{AllocationMap, ChangeMap, Content, Disk, Flush, MappedExtent, ReadAt, Target, WriteAt, ZeroRange};
pub use digest::{Digest, DigestMap, Known};
pub use error::{Error, Kind, Result};
pub use extent::{Extent, ExtentSet};
pub use overlay::Overlay;
pub use sink::{Block, BlockSink, Payload};
pub use units::{BLOCK_BYTES, BlockIndex, ByteLen, ByteOffset, block_count};
