//! QCOW2 version 3: an append-only writer for backups, a reader for everything QEMU makes, dirty bitmaps, and a
//! check of the bookkeeping.
//!
//! What lives here: one image format, after QEMU's `docs/interop/qcow2.txt` (its section names are in the comments). What
//! does not: folders, digests, virtual machines. Everything read is hostile until checked: numbers are bounded before they
//! are used, a backing file is opened only through a [`Gate`], and what cannot be read rightly is refused by name.
//!
//! Invariant: the reader and QEMU agree on every byte of every image that the reader accepts.

pub mod bitmap;
pub mod chain;
pub mod check;
mod decode;
mod format;
pub mod fuzz;
pub mod gate;
mod header;
pub mod image;
mod tables;
pub mod writer;

pub use bitmap::Bitmap;
pub use chain::{Chain, Holder, Layer};
pub use gate::{Gate, Opened};
pub use header::{BackingRef, Compression};
pub use image::{Image, Mapping};
pub use writer::{Backing, Held, Kept, Mark, Observer, Part, Patch, Sealed, Spec, Storage, Writer};
