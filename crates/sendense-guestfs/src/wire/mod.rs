//! The words between the hub and the process that reads a guest's disk.
//!
//! One socket pair carries everything: `[u32 length][u8 tag][payload]`, little-endian, at most 1 MiB. The hub sends requests
//! with a number of its choice; the worker answers each with frames that carry the number, the last of which is `Done` or
//! `Failed`. Answers of several requests interleave.
//!
//! ```text
//!     hub                                   worker
//!     Start(limits, setup) + descriptors -->
//!                                       <-- Hello(version, level)   or Fatal(text) and the end
//!     Request{id, call}                 -->
//!                                       <-- Part{id, ..}*           each takes its length from the request's credit
//!     Credit{id, bytes}                 -->                         what the hub has consumed
//!     Cancel{id}                        -->
//!                                       <-- Done{id} | Failed{id}   also after Cancel; then the number is free again
//! ```
//!
//! One multiplexed pair and credits, instead of a control and a data channel: a download whose client is slow costs only its
//! own credit, never the listing beside it, and any number of downloads needs no further descriptors.
//!
//! Invariant: decoding is total. Any bytes give a frame or [`Malformed`], without panic and without memory beyond their length.

pub mod codec;
pub mod frame;
pub mod reply;
pub mod request;

pub use codec::Malformed;

/// The version of the protocol; both ends are the same program, so only equality is accepted.
pub const VERSION: u32 = 1;
/// The longest frame behind its length field: tag and payload.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// What the worker may send for one request before the hub has consumed anything. Two frames of file content in flight and
/// two in the consumer's hands keep both sides busy; a frame of any kind fits.
pub const CREDIT_BYTES: u64 = 2 * FRAME_BYTES_MAX as u64;
/// File content in one frame: large enough that the system calls do not show (1 GB/s is 4000 of them), small enough that a
/// listing waits less than a millisecond behind it.
pub const PIECE_BYTES: usize = 256 * 1024;
/// How many requests one session may have open. Eight people with two downloads each.
pub const REQUESTS_MAX: usize = 16;
