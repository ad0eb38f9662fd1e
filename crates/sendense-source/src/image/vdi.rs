//! VDI headers: the disk's size, and the refusal of images that hold differences to another.
//!
//! Offsets are those of VirtualBox' `VDICore.h` for header version 1.1, which QEMU writes and reads.

use crate::error::{Error, Kind, Result};

/// The header's end.
pub const HEADER_BYTES: usize = 0x1c8;

/// The disk's size in bytes, as QEMU serves it.
pub fn parse(head: &[u8]) -> Result<u64> {
    let wrong = |why: String| Error::new(Kind::Failed, format!("the VDI header is damaged: {why}"));
    let u32_at =
        |at: usize| head.get(at..).and_then(|rest| rest.first_chunk::<4>()).map(|bytes| u32::from_le_bytes(*bytes));
    let short = || wrong("it is cut short".into());
    if head.len() < HEADER_BYTES {
        return Err(short());
    }
    match u32_at(0x44).ok_or_else(short)? {
        0x0001_0001 => {}
        other => return Err(Error::new(Kind::Unsupported, format!("VDI version {}.{}", other >> 16, other & 0xffff))),
    }
    match u32_at(0x4c).ok_or_else(short)? {
        1 | 2 => {}
        4 => {
            return Err(Error::new(
                Kind::Unsupported,
                "the VDI holds differences to a parent; clone it in VirtualBox first",
            ));
        }
        other => return Err(Error::new(Kind::Unsupported, format!("a VDI of type {other}"))),
    }
    // The uuids of the image below, as VirtualBox writes them twice.
    let named = |at: usize| head.get(at..at + 16).is_none_or(|uuid| uuid.iter().any(|byte| *byte != 0));
    if named(0x1a8) || named(0x1b8) {
        return Err(Error::new(Kind::Unsupported, "the VDI names a parent; clone it in VirtualBox first"));
    }
    let size = head.get(0x170..).and_then(|rest| rest.first_chunk::<8>()).map(|bytes| u64::from_le_bytes(*bytes));
    let size = size.ok_or_else(short)?;
    // QEMU cannot serve more, and serves whole sectors.
    size.checked_next_multiple_of(512)
        .filter(|size| *size <= i64::MAX as u64)
        .ok_or_else(|| wrong(format!("a disk of {size} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        let mut head = vec![0; HEADER_BYTES];
        head[0x44..0x48].copy_from_slice(&0x0001_0001_u32.to_le_bytes());
        head[0x4c] = 1;
        head[0x170..0x178].copy_from_slice(&1000_u64.to_le_bytes());
        head
    }

    #[test]
    fn differencing_images_are_refused() {
        assert_eq!(parse(&header()).unwrap(), 1024);
        for (at, value) in [(0x4c, 4), (0x4c, 3), (0x1a8, 1), (0x1c7, 1), (0x44, 0)] {
            let mut head = header();
            head[at] = value;
            assert_eq!(parse(&head).unwrap_err().kind, Kind::Unsupported, "{at:#x}");
        }
        let mut head = header();
        head[0x170..0x178].fill(0xff);
        assert_eq!(parse(&head).unwrap_err().kind, Kind::Failed);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>(), at in 0..HEADER_BYTES, value in any::<u8>()) {
            let _ = parse(&bytes);
            let mut head = header();
            head[at] = value;
            let _ = parse(&head);
        }
    }
}
