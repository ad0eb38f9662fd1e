//! QCOW2 version 3: an append-only writer for backups, a reader for everything QEMU makes, dirty bitmaps.
//!
//! What lives here: one image format, from the section names of QEMU's `docs/interop/qcow2.txt`. What does not: folders,
//! digests, virtual machines. Everything read is hostile until checked: numbers are bounded before they are used, a backing
//! file is opened only through a [`Gate`], and what cannot be read rightly is refused by name.
//!
//! Invariant: the reader and QEMU agree on every byte of every image that the reader accepts.

mod format;
mod header;
pub mod writer;

pub use header::{BackingRef, Compression};
pub use writer::{Backing, Held, Observer, Sealed, Spec, Storage, Writer};
