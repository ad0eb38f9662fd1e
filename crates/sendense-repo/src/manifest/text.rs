//! The manifest as a file: one JSON document whose inner object is digested as the very bytes that stand there.
//!
//! ```text
//! {"format":"sendense-manifest","version":1,"digest":"<BLAKE3 of the object, 64 hex digits>","manifest":
//! { ... }
//! }
//! ```
//!
//! The digest covers the inner object from its `{` to its `}`, so no canonical form has to be agreed on, and
//! `sed '1d;$d' FILE | head -c -1 | b3sum` gives it.

use super::{Manifest, check};
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const FORMAT: &str = "sendense-manifest";
const VERSION: u32 = 1;

/// The largest manifest that is written or read. 36 bytes of text per segment digest and at most 16384 of them per image
/// give 0.6 MiB per disk; 64 MiB holds 60 such disks (vSphere and libvirt guests with more are full of smaller ones) and
/// the documents.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// The largest document in a manifest. A domain's XML has kilobytes, NVRAM up to 4 MiB.
pub const DOCUMENT_BYTES_MAX: usize = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    format: String,
    version: u32,
    digest: String,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// The text of a manifest. Refuses one that [`parse`] would refuse.
pub fn write(manifest: &Manifest) -> Result<Vec<u8>> {
    check::check(manifest)?;
    let body = serde_json::to_string_pretty(manifest)
        .map_err(|error| Error::invalid(format!("write the manifest of {}", manifest.backup_id)).caused_by(error))?;
    let digest = blake3::hash(body.as_bytes()).to_hex();
    let text =
        format!("{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"digest\":\"{digest}\",\"manifest\":\n{body}\n}}\n");
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        let context = format!("the manifest of {} would have {} bytes", manifest.backup_id, text.len());
        return Err(Error::invalid(context));
    }
    Ok(text.into_bytes())
}

/// Reads and checks the text of a manifest. Anything may be given. [`Kind::Unsupported`] when it is of a later version,
/// else [`Kind::Invalid`]; the caller who knows the file turns that into "corrupt".
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(Error::invalid(format!("a manifest has at most {MANIFEST_BYTES_MAX} bytes")));
    }
    let unreadable = |error| Error::invalid("read the manifest's text").caused_by(error);
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
    if envelope.format != FORMAT {
        return Err(Error::invalid(format!("the format is not {FORMAT:?}")));
    }
    if envelope.version != VERSION {
        let context = format!("the manifest has version {}; this program knows {VERSION}", envelope.version);
        return Err(Error::new(Kind::Unsupported, context));
    }
    let body = envelope.manifest.get();
    if blake3::hash(body.as_bytes()).to_hex().as_str() != envelope.digest {
        return Err(Error::invalid("the manifest's digest does not match its bytes"));
    }
    let manifest: Manifest = serde_json::from_str(body).map_err(unreadable)?;
    check::check(&manifest)?;
    Ok(manifest)
}
