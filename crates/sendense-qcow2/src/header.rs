//! The header and its extensions: parsed from hostile bytes, written for images of ours.
//!
//! What lives here: fields and what they may be (Header; Header extensions; Feature name table). What does not: tables.
//! Invariant: a parsed header's numbers are within QEMU's own limits, so that later arithmetic on them cannot overflow.

use crate::format::{
    CLUSTER_BITS, CLUSTER_BYTES, L1_BYTES_MAX, MAGIC, NAME_BYTES_MAX, be32, be64, extension, incompatible,
};
use crate::writer::Backing;
use sendense_block::{ByteLen, ByteOffset, Error, Kind, Result};

/// Length of a version 2 header, and of version 3 with the compression type.
const LENGTH_V2: usize = 72;
const LENGTH_V3_MIN: usize = 104;
const LENGTH: usize = 112;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// The image below, as the header names it. Data from a file: opening it is a gate's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingRef {
    /// Its name, as written.
    pub name: String,
    /// Its format, if the header declares one.
    pub format: Option<String>,
}

/// Where the bitmap directory lies (Bitmaps extension).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitmapDirectory {
    pub(crate) count: u32,
    pub(crate) bytes: u64,
    pub(crate) at: ByteOffset,
    /// The autoclear bit is set: nobody who does not know bitmaps has written since.
    pub(crate) valid: bool,
}

/// Where the refcount table lies (Host cluster management).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refcounts {
    pub(crate) table: ByteOffset,
    pub(crate) table_clusters: u32,
    /// A refcount has `1 << order` bits.
    pub(crate) order: u32,
}

/// A parsed header.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: ByteLen,
    pub(crate) l1_table_offset: ByteOffset,
    /// Entries the L1 table claims to have; at least as many as the disk needs.
    pub(crate) l1_entries: u32,
    pub(crate) refcounts: Refcounts,
    /// Internal snapshots, each with tables of its own.
    pub(crate) snapshots: u32,
    pub(crate) compression: Compression,
    pub(crate) backing: Option<BackingRef>,
    pub(crate) bitmaps: Option<BitmapDirectory>,
}

impl Header {
    /// Parses the first bytes of a file: a whole cluster, or all of a shorter file.
    pub(crate) fn parse(bytes: &[u8], file_size: ByteLen) -> Result<Self> {
        let short = || corrupt("the header is cut short");
        let u32_at = |at| be32(bytes, at).ok_or_else(short);
        let u64_at = |at| be64(bytes, at).ok_or_else(short);
        if u32_at(0)? != MAGIC {
            return Err(Error::new(Kind::Corrupt, "not a QCOW2 image: the magic number is missing"));
        }
        let version = u32_at(4)?;
        if !(2..=3).contains(&version) {
            return Err(Error::new(Kind::Unsupported, format!("QCOW2 version {version}")));
        }
        let cluster_bits = u32_at(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let cluster_bytes = 1u64 << cluster_bits;
        let v3 = version >= 3;
        let header_length = if v3 { u32_at(100)? as usize } else { LENGTH_V2 };
        if v3 && (header_length < LENGTH_V3_MIN || header_length as u64 > cluster_bytes) {
            return Err(corrupt(format!("a header of {header_length} bytes")));
        }
        let order = if v3 { u32_at(96)? } else { 4 };
        if order > 6 {
            return Err(corrupt(format!("refcounts of 2^{order} bits")));
        }

        let backing_at = u64_at(8)?;
        // Extensions end where the backing file name begins, or with the cluster.
        let extensions_end = if backing_at == 0 { cluster_bytes } else { backing_at.min(cluster_bytes) };
        let extensions_end = extensions_end.min(bytes.len() as u64) as usize;
        let extensions = Extensions::parse(bytes.get(header_length..extensions_end).unwrap_or_default())?;
        refuse_features(if v3 { u64_at(72)? } else { 0 }, extensions.feature_names)?;
        match u32_at(32)? {
            0 => {}
            1 => return Err(Error::new(Kind::Unsupported, "an image encrypted with QEMU's legacy AES")),
            2 => return Err(Error::new(Kind::Unsupported, "an image encrypted with LUKS")),
            other => return Err(Error::new(Kind::Unsupported, format!("an image encrypted by method {other}"))),
        }
        let compression =
            compression(bytes, header_length, v3 && u64_at(72)? & 1 << incompatible::COMPRESSION_TYPE != 0)?;

        // QEMU counts a disk in sectors and drops what is left of the last one; so must whoever wants to read the same.
        let size = ByteLen(u64_at(24)? / 512 * 512);
        let (l1_entries, l1_table_offset) = (u32_at(36)?, ByteOffset(u64_at(40)?));
        check_l1(size, cluster_bits, l1_entries, l1_table_offset, file_size)?;
        let backing = backing(bytes, backing_at, u32_at(16)?, cluster_bytes, extensions.backing_format)?;
        let autoclear = if v3 { u64_at(88)? } else { 0 };
        let bitmaps = extensions.bitmaps.map(|directory| BitmapDirectory { valid: autoclear & 1 != 0, ..directory });
        let refcounts = Refcounts { table: ByteOffset(u64_at(48)?), table_clusters: u32_at(56)?, order };
        let snapshots = u32_at(60)?;
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1_table_offset,
            l1_entries,
            refcounts,
            snapshots,
            compression,
            backing,
            bitmaps,
        })
    }

    pub(crate) const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// How many bytes of the file to give to [`Header::parse`], told from its first 24.
pub(crate) fn first_cluster_bytes(start: &[u8]) -> u64 {
    // Whatever stands there: 2 MiB is the largest cluster there is.
    1 << be32(start, 20).unwrap_or(CLUSTER_BITS).clamp(9, 21)
}

#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    feature_names: &'a [u8],
    bitmaps: Option<BitmapDirectory>,
}

impl<'a> Extensions<'a> {
    fn parse(mut bytes: &'a [u8]) -> Result<Self> {
        let mut found = Self::default();
        // Each turn takes at least the 8 bytes of type and length, so this ends with the cluster.
        while let (Some(kind), Some(length)) = (be32(bytes, 0), be32(bytes, 4)) {
            if kind == extension::END {
                break;
            }
            let length = length as usize;
            let data = bytes.get(8..).and_then(|rest| rest.get(..length));
            let data = data.ok_or_else(|| corrupt(format!("header extension {kind:#010x} passes the header's end")))?;
            match kind {
                extension::BACKING_FORMAT => found.backing_format = Some(data),
                extension::FEATURE_NAMES => found.feature_names = data,
                extension::BITMAPS => {
                    let fields = (be32(data, 0), be64(data, 8), be64(data, 16));
                    let (Some(count), Some(bytes), Some(at)) = fields else {
                        return Err(corrupt("the bitmaps extension is cut short"));
                    };
                    found.bitmaps = Some(BitmapDirectory { count, bytes, at: ByteOffset(at), valid: false });
                }
                // Unknown extensions may be ignored (Header extensions).
                _ => {}
            }
            bytes = bytes.get(8 + length.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(found)
    }
}

/// Refuses every incompatible feature that would make our reading wrong, by its name.
fn refuse_features(features: u64, names: &[u8]) -> Result<()> {
    let unknown = features & !(1 << incompatible::COMPRESSION_TYPE);
    if unknown == 0 {
        return Ok(());
    }
    let bit = unknown.trailing_zeros();
    let what = match bit {
        incompatible::DIRTY => {
            // Lazy refcounts: the mapping is valid, but whoever had it open may have it open still.
            "an image marked dirty: it is in use or was not closed; close it, or repair it with `qemu-img check -r all`"
                .to_owned()
        }
        incompatible::CORRUPT => {
            return Err(Error::new(
                Kind::Corrupt,
                "the image is marked corrupt: see what `qemu-img check` says, and repair a copy",
            ));
        }
        incompatible::DATA_FILE => "an image whose data lies in an external data file".to_owned(),
        incompatible::EXTENDED_L2 => {
            "an image with extended L2 entries (subclusters); convert it with `qemu-img convert`".to_owned()
        }
        _ => match feature_name(names, bit) {
            Some(name) => format!("an image with the incompatible feature {name:?} (bit {bit})"),
            None => format!("an image with the unknown incompatible feature bit {bit}"),
        },
    };
    Err(Error::new(Kind::Unsupported, what))
}

/// Looks an incompatible feature up in the feature name table: entries of type, bit number, 46 bytes of name.
fn feature_name(names: &[u8], bit: u32) -> Option<String> {
    let entry = names.as_chunks::<48>().0.iter().find(|entry| entry[0] == 0 && u32::from(entry[1]) == bit)?;
    let name = entry[2..].split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn compression(bytes: &[u8], header_length: usize, flagged: bool) -> Result<Compression> {
    let byte = if header_length > LENGTH_V3_MIN { bytes.get(LENGTH_V3_MIN).copied().unwrap_or(0) } else { 0 };
    match (byte, flagged) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => Err(corrupt("compression type and its feature bit contradict each other")),
        (other, _) => Err(Error::new(Kind::Unsupported, format!("compression type {other}"))),
    }
}

/// The L1 table must cover the disk and lie in the file, so that every lookup has its entry.
fn check_l1(size: ByteLen, cluster_bits: u32, entries: u32, at: ByteOffset, file_size: ByteLen) -> Result<()> {
    let entry_bits = 2 * cluster_bits - 3;
    let needed = size.0.div_ceil(1 << entry_bits);
    if needed > L1_BYTES_MAX / 8 || u64::from(entries) > L1_BYTES_MAX / 8 {
        return Err(Error::new(Kind::Unsupported, format!("an L1 table of {needed} entries, beyond QEMU's limit")));
    }
    if u64::from(entries) < needed {
        return Err(corrupt(format!("an L1 table of {entries} entries for a disk that needs {needed}")));
    }
    if needed > 0 && !at.0.is_multiple_of(1 << cluster_bits) {
        return Err(corrupt("the L1 table is not aligned to a cluster").at(at));
    }
    match at.0.checked_add(needed * 8) {
        Some(end) if needed == 0 || end <= file_size.0 => Ok(()),
        _ => Err(corrupt("the L1 table passes the end of the file").at(at)),
    }
}

fn backing(
    bytes: &[u8],
    at: u64,
    length: u32,
    cluster_bytes: u64,
    format: Option<&[u8]>,
) -> Result<Option<BackingRef>> {
    if at == 0 || length == 0 {
        return Ok(None);
    }
    let wrong = || corrupt("the backing file name is too long, passes the first cluster, or is not UTF-8");
    let length = length as usize;
    if length > NAME_BYTES_MAX || at.checked_add(length as u64).is_none_or(|end| end > cluster_bytes) {
        return Err(wrong());
    }
    let name = bytes.get(at as usize..).and_then(|rest| rest.get(..length)).ok_or_else(wrong)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| wrong());
    Ok(Some(BackingRef { name: text(name)?, format: format.map(text).transpose()? }))
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, format!("read the QCOW2 header: {}", what.into()))
}

/// What is known of an image when its tables are written.
pub(crate) struct Fields {
    pub(crate) capacity: ByteLen,
    pub(crate) l1_table_offset: ByteOffset,
    pub(crate) l1_size: u32,
    pub(crate) refcount_table_offset: ByteOffset,
    pub(crate) refcount_table_clusters: u32,
}

/// The first cluster of an image of ours: version 3, 64 KiB clusters, 16-bit refcounts, zstd.
pub(crate) fn encode(fields: &Fields, backing: Option<&Backing>) -> Vec<u8> {
    let mut out = Vec::with_capacity(CLUSTER_BYTES as usize);
    let name = backing.map(|backing| backing.name.as_bytes()).unwrap_or_default();
    out.extend(MAGIC.to_be_bytes());
    out.extend(3u32.to_be_bytes());
    out.extend(0u64.to_be_bytes()); // backing_file_offset, filled in below
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(CLUSTER_BITS.to_be_bytes());
    out.extend(fields.capacity.0.to_be_bytes());
    out.extend(0u32.to_be_bytes()); // crypt_method: none
    out.extend(fields.l1_size.to_be_bytes());
    out.extend(fields.l1_table_offset.0.to_be_bytes());
    out.extend(fields.refcount_table_offset.0.to_be_bytes());
    out.extend(fields.refcount_table_clusters.to_be_bytes());
    out.extend([0; 12]); // nb_snapshots, snapshots_offset
    out.extend((1u64 << incompatible::COMPRESSION_TYPE).to_be_bytes());
    out.extend([0; 16]); // compatible, autoclear
    out.extend(4u32.to_be_bytes()); // refcount_order: 16 bits
    out.extend((LENGTH as u32).to_be_bytes());
    out.extend([1, 0, 0, 0, 0, 0, 0, 0]); // compression_type: zstd, padding
    debug_assert_eq!(out.len(), LENGTH);

    if let Some(backing) = backing {
        extend(&mut out, extension::BACKING_FORMAT, backing.format.as_bytes());
    }
    // A QEMU too old for zstd clusters can then say what it misses.
    let mut feature = [0; 48];
    feature[1] = incompatible::COMPRESSION_TYPE as u8;
    feature[2..18].copy_from_slice(b"compression type");
    extend(&mut out, extension::FEATURE_NAMES, &feature);
    extend(&mut out, extension::END, &[]);
    if !name.is_empty() {
        let at = out.len() as u64;
        out[8..16].copy_from_slice(&at.to_be_bytes());
        out.extend(name);
    }
    out.resize(CLUSTER_BYTES as usize, 0);
    out
}

fn extend(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}
