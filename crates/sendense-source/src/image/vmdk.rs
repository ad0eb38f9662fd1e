//! VMDK descriptors and sparse headers: what a VMDK would make a tool open.
//!
//! What lives here: bounded parsers of hostile bytes. What does not: opening (`layers`), reading disks (qemu-nbd).
//!
//! A descriptor is a text, or lies as text inside a sparse file. Ten lines of it (`RW 4 FLAT "/etc/passwd" 0`) make any
//! VMDK reader read a file of the host; so the parser takes less than readers do: what looks like an extent and is not
//! understood to the last character is refused, never skipped.
//!
//! Invariant: every file that QEMU 7.2's reader would open for these bytes is among [`Descriptor::extents`] or is
//! [`Descriptor::parent`], or the bytes were refused.

use crate::error::{Error, Kind, Result};

/// QEMU reads one byte less of a text descriptor.
pub const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;
/// Where a sparse file's descriptor is looked for by QEMU, whatever the header says, and how much of it.
pub const EMBEDDED_AT: u64 = 512;
/// Where QEMU looks for the parent's name.
pub const PARENT_HINT_WINDOW: usize = 20 * 512;
/// 1 TiB in pieces of 2 GiB; each extent costs an open file here and in the tool.
const EXTENTS_MAX: usize = 512;
/// QEMU cuts names at 511 bytes.
const NAME_BYTES_MAX: usize = 500;
const SECTOR_BYTES: u64 = 512;
/// The text's end and what may lie behind it. QEMU writes the content id anew without its leading zeros (`vmdk_write_cid`, "%x"): the
/// text gets shorter by up to seven digits, and as much of its old end stays. No extent fits into that.
const REMNANT_BYTES: usize = 8;

/// How an extent's file holds its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// As they are.
    Flat,
    /// With a header and tables.
    Sparse,
}

/// One extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// How it holds its bytes.
    pub kind: ExtentKind,
    /// Its length on the disk.
    pub bytes: u64,
    /// Its file, as named.
    pub file: String,
    /// Where a flat extent begins in its file.
    pub offset_bytes: u64,
}

/// A parsed descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The pieces of the disk in order.
    pub extents: Vec<Extent>,
    /// The name of the image below, if this one holds differences only.
    pub parent: Option<String>,
    /// The disk's size as the sum of the extents.
    pub capacity_bytes: u64,
}

/// A parsed sparse header (`KDMV`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseHeader {
    /// The disk's or the extent's size.
    pub capacity_bytes: u64,
    /// Where the descriptor lies, and how long it is; none in extents of a text descriptor.
    pub descriptor: Option<(u64, usize)>,
}

/// Parses a descriptor's text: all of the file, or the part of a sparse file that holds it.
pub fn parse_descriptor(bytes: &[u8]) -> Result<Descriptor> {
    if bytes.len() >= DESCRIPTOR_BYTES_MAX {
        return Err(Error::new(
            Kind::Unsupported,
            format!("a VMDK descriptor of more than {DESCRIPTOR_BYTES_MAX} bytes"),
        ));
    }
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (text, rest) = bytes.split_at(end);
    if rest.iter().skip(REMNANT_BYTES).any(|byte| *byte != 0) {
        return Err(unsafe_text("bytes follow its end"));
    }
    let mut descriptor = Descriptor { extents: Vec::new(), parent: parent_hint(text)?, capacity_bytes: 0 };
    let mut parent_cid = None;
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if let Some(extent) = extent_line(line)? {
            if descriptor.extents.len() == EXTENTS_MAX {
                return Err(Error::new(Kind::Unsupported, format!("a VMDK of more than {EXTENTS_MAX} extents")));
            }
            descriptor.capacity_bytes = descriptor
                .capacity_bytes
                .checked_add(extent.bytes)
                .ok_or_else(|| unsafe_text("its extents are longer than any disk"))?;
            descriptor.extents.push(extent);
        } else if let Some(value) = line.strip_prefix(b"parentCID=") {
            parent_cid = Some(value.to_ascii_lowercase());
        }
    }
    let alone = parent_cid.is_none_or(|cid| cid == b"ffffffff");
    if !alone && descriptor.parent.is_none() {
        return Err(Error::new(Kind::Unsupported, "the VMDK holds differences to a parent that it does not name"));
    }
    Ok(descriptor)
}

/// The parent's name where QEMU looks for it: the first occurrence of the key in the text, wherever it stands.
pub fn parent_hint(text: &[u8]) -> Result<Option<String>> {
    const KEY: &[u8] = b"parentFileNameHint";
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let Some(at) = text.windows(KEY.len()).position(|window| window == KEY) else { return Ok(None) };
    let wrong = || unsafe_text("its parentFileNameHint is not one quoted name");
    let quoted = text.get(at + KEY.len()..).and_then(|rest| rest.strip_prefix(b"=\"")).ok_or_else(wrong)?;
    let end = quoted.iter().position(|byte| *byte == b'"').ok_or_else(wrong)?;
    if quoted.get(end + 1..).is_some_and(|rest| rest.windows(KEY.len()).any(|window| window == KEY)) {
        return Err(unsafe_text("it names more than one parent"));
    }
    name(quoted.get(..end).ok_or_else(wrong)?).map(Some)
}

/// An extent, or none when the line is something else. What begins like an extent must be one.
fn extent_line(line: &[u8]) -> Result<Option<Extent>> {
    let (access, rest) = word(line);
    if !matches!(access.to_ascii_uppercase().as_slice(), b"RW" | b"RDONLY" | b"NOACCESS") {
        return Ok(None);
    }
    let wrong = || unsafe_text(&format!("the extent {:?} is not understood", shown(line)));
    if access != b"RW" {
        return Err(Error::new(Kind::Unsupported, format!("a VMDK extent with the access {}", shown(access))));
    }
    let (sectors, rest) = word(rest);
    let (kind, rest) = word(rest);
    let quoted = rest.trim_ascii_start().strip_prefix(b"\"").ok_or_else(|| match kind {
        b"ZERO" => Error::new(Kind::Unsupported, "a VMDK extent of the type ZERO"),
        _ => wrong(),
    })?;
    let end = quoted.iter().position(|byte| *byte == b'"').ok_or_else(wrong)?;
    let (file, rest) = quoted.split_at(end);
    let (offset, rest) = word(rest.strip_prefix(b"\"").ok_or_else(wrong)?);
    if !rest.trim_ascii().is_empty() {
        return Err(wrong());
    }
    let kind = match kind {
        b"FLAT" | b"VMFS" => ExtentKind::Flat,
        b"SPARSE" | b"VMFSSPARSE" | b"SESPARSE" => ExtentKind::Sparse,
        other => return Err(Error::new(Kind::Unsupported, format!("a VMDK extent of the type {}", shown(other)))),
    };
    // FLAT says where it begins; the others, and VMFS, may leave it out.
    let offset = if offset.is_empty() { Some(0) } else { bytes_of_sectors(offset) };
    Ok(Some(Extent {
        kind,
        bytes: bytes_of_sectors(sectors).filter(|bytes| *bytes > 0).ok_or_else(wrong)?,
        file: name(file)?,
        offset_bytes: offset.ok_or_else(wrong)?,
    }))
}

/// Parses a sparse file's first 512 bytes (`SparseExtentHeader` of VMware's "Virtual Disk Format 5.0").
pub fn parse_sparse_header(head: &[u8]) -> Result<SparseHeader> {
    let wrong = |why: &str| Error::new(Kind::Failed, format!("the VMDK header is damaged: {why}"));
    let u64_at = |at: usize| {
        let bytes = head.get(at..).and_then(|rest| rest.first_chunk::<8>());
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or_else(|| wrong("it is cut short"))
    };
    if !head.starts_with(b"KDMV") {
        return Err(wrong("its magic number is missing"));
    }
    let (capacity, at, sectors) = (u64_at(12)?, u64_at(28)?, u64_at(36)?);
    if capacity == 0 {
        // QEMU then takes the embedded text for a descriptor of other files.
        return Err(Error::new(Kind::Unsafe, "a sparse VMDK of no capacity, whose text may name any file"));
    }
    let capacity_bytes = capacity.checked_mul(SECTOR_BYTES).ok_or_else(|| wrong("its capacity is too large"))?;
    if at == 0 || sectors == 0 {
        return Ok(SparseHeader { capacity_bytes, descriptor: None });
    }
    let at = at.checked_mul(SECTOR_BYTES).ok_or_else(|| wrong("its descriptor is beyond its end"))?;
    let len = sectors.checked_mul(SECTOR_BYTES).and_then(|len| usize::try_from(len).ok());
    let len = len.filter(|len| *len < DESCRIPTOR_BYTES_MAX).ok_or_else(|| wrong("its descriptor is too long"))?;
    Ok(SparseHeader { capacity_bytes, descriptor: Some((at, len)) })
}

/// The next word and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    text.split_at(text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len()))
}

/// Plain digits only: no sign, no base.
fn bytes_of_sectors(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let sectors: u64 = plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()?;
    // Beyond 2^63 QEMU's numbers turn negative.
    sectors.checked_mul(SECTOR_BYTES).filter(|bytes| *bytes <= i64::MAX as u64)
}

fn name(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| unsafe_text("a file name in it is not UTF-8"))?;
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(unsafe_text(&format!("{:?} in it is no file name", shown(bytes))));
    }
    Ok(text.to_owned())
}

fn unsafe_text(why: &str) -> Error {
    Error::new(Kind::Unsafe, format!("the VMDK descriptor is refused: {why}"))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind(text: &str) -> Option<Kind> {
        parse_descriptor(text.as_bytes()).err().map(|error| error.kind)
    }

    #[test]
    fn an_honest_descriptor_is_understood() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n\
                    # Extent description\r\nRW 4192256 FLAT \"a-f001.vmdk\" 0\r\n  RW 2048 SPARSE \"b b.vmdk\"\nRW 1 VMFS \"c.vmdk\"\n\
                    ddb.adapterType = \"ide\"\n\0\0\0";
        let descriptor = parse_descriptor(text.as_bytes()).unwrap();
        assert_eq!(
            descriptor.extents.iter().map(|extent| extent.file.as_str()).collect::<Vec<_>>(),
            ["a-f001.vmdk", "b b.vmdk", "c.vmdk"]
        );
        assert_eq!((descriptor.capacity_bytes, descriptor.parent), ((4192256 + 2048 + 1) * 512, None));
        let child = "parentCID=12345678\nparentFileNameHint=\"../base/base.vmdk\"\nRW 8 SPARSE \"x.vmdk\"\n";
        assert_eq!(parse_descriptor(child.as_bytes()).unwrap().parent.as_deref(), Some("../base/base.vmdk"));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "RW\n4 FLAT \"/etc/passwd\" 0",
            "RW 4 FLAT /etc/passwd 0",
            "RW 4 FLAT \"/etc/passwd 0",
            "RW -4 FLAT \"a\" 0",
            "RW 0x4 FLAT \"a\" 0",
            "RW 0 FLAT \"a\" 0",
            "RW 4 FLAT \"a\" 0 and more",
            "RW 4 FLAT \"\" 0",
            "RW 4 FLAT \"a\u{7}\" 0",
            "RW 99999999999999999999 FLAT \"a\" 0",
            "RW 36028797018963967 FLAT \"a\" 0",
            "RW 4 FLAT \"a\" 0\n\0RW 4 FLAT \"/etc/passwd\" 0",
            "# parentFileNameHint=\"a\"\nparentFileNameHint=\"b\"",
            "parentFileNameHint = \"a\"",
            "parentFileNameHint=\"a",
        ] {
            assert_eq!(kind(text), Some(Kind::Unsafe), "{text:?}");
        }
        for text in ["RDONLY 4 FLAT \"a\" 0", "RW 4 ZERO", "RW 4 VMFSRDM \"a\"", "parentCID=1\nRW 4 FLAT \"a\" 0"] {
            assert_eq!(kind(text), Some(Kind::Unsupported), "{text:?}");
        }
        assert_eq!(kind(&"RW 4 FLAT \"a\" 0\n".repeat(513)), Some(Kind::Unsupported));
        assert_eq!(kind(&"#".repeat(10 << 20)), Some(Kind::Unsupported));
        // QEMU finds the hint in a comment, and so do we.
        assert_eq!(parse_descriptor(b"# parentFileNameHint=\"x\"").unwrap().parent.as_deref(), Some("x"));
    }

    #[test]
    fn what_a_shorter_content_id_leaves_behind_the_text_is_passed_over() {
        let text = "version=1\nCID=1\nparentCID=ffffffff\nRW 4 SPARSE \"a\"\n";
        let parsed = |rest: &str| parse_descriptor(format!("{text}\0{rest}\0\0\0").as_bytes());
        let whole = parse_descriptor(text.as_bytes()).unwrap();
        for rest in ["", "\n", "= \"3\"\n"] {
            assert_eq!(parsed(rest).unwrap(), whole, "{rest:?}");
        }
        for rest in ["n = \"3\"\n", "\n\0\0\0\0\0\0x", "\nRW 4 FLAT \"/etc/passwd\" 0\n"] {
            assert_eq!(parsed(rest).unwrap_err().kind, Kind::Unsafe, "{rest:?}");
        }
    }

    #[test]
    fn a_sparse_header_without_capacity_is_refused() {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"KDMV");
        head[28] = 1;
        head[36] = 20;
        assert_eq!(parse_sparse_header(&head).unwrap_err().kind, Kind::Unsafe);
        head[12] = 8;
        let header = parse_sparse_header(&head).unwrap();
        assert_eq!(header, SparseHeader { capacity_bytes: 4096, descriptor: Some((512, 10240)) });
        head[36..44].fill(0xff);
        assert_eq!(parse_sparse_header(&head).unwrap_err().kind, Kind::Failed);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>(), text in "[ RWFLAT\"0-9\n=a/.]{0,60}") {
            let _ = parse_descriptor(&bytes);
            let _ = parse_descriptor(text.as_bytes());
            let _ = parent_hint(&bytes);
            let _ = parse_sparse_header(&bytes);
            let _ = parse_sparse_header(&[b"KDMV".as_slice(), &bytes].concat());
        }

        #[test]
        fn what_is_accepted_names_each_extent(sectors in 1u64..1 << 40, file in "[a-z./ -]{1,20}", offset in 0u64..1 << 40) {
            let text = format!("RW {sectors} FLAT \"{file}\" {offset}\n");
            let parsed = parse_descriptor(text.as_bytes()).unwrap();
            let extent = Extent { kind: ExtentKind::Flat, bytes: sectors * 512, file, offset_bytes: offset * 512 };
            prop_assert_eq!(parsed.extents, vec![extent]);
        }
    }
}
