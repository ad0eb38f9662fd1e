//! Offsets, lengths and block numbers as types, so that they cannot be mixed up.

use std::fmt;

/// Bytes in a block: 64 KiB.
pub const BLOCK_BYTES: u64 = 64 * 1024;

macro_rules! unit {
    ($($(#[$doc:meta])* $name:ident, $suffix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}", $suffix), self.0)
            }
        }
    )*};
}

unit! {
    /// A position on a device, in bytes from its start.
    ByteOffset, "";
    /// A number of bytes.
    ByteLen, " bytes";
    /// The number of a block: its byte offset divided by [`BLOCK_BYTES`].
    BlockIndex, "";
}

impl BlockIndex {
    /// Where the block starts. Block numbers come from offsets, so this cannot overflow for a number that does.
    pub const fn offset(self) -> ByteOffset {
        ByteOffset(self.0.saturating_mul(BLOCK_BYTES))
    }

    /// The block that holds the byte at `at`.
    pub const fn holding(at: ByteOffset) -> Self {
        Self(at.0 / BLOCK_BYTES)
    }
}

/// How many blocks a device of this size has; the last one may be partly beyond its end.
pub const fn block_count(size: ByteLen) -> u64 {
    size.0.div_ceil(BLOCK_BYTES)
}
