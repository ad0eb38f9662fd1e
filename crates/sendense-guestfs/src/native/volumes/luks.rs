//! Encrypted volumes: what LUKS1 and LUKS2 headers say without a key, and the content with one.
//!
//! The cryptography is `luks-core`'s (AES-XTS; PBKDF2, Argon2). Its own bounds hold a derivation to 30 seconds and refuse
//! absurd stripes; what is checked here besides is what it would allocate or divide by.
//!
//! Invariant: the memory that a header can ask for is at most [`DERIVATION_BYTES_MAX`].

use super::bytes::{array, read};
use crate::error::{Error, Result};
use crate::volume::{Key, shown};
use luks::{DecryptedPayload, Luks1Header, Luks2Header, Luks2Kdf, LuksError, LuksVolume};
use sendense_block::device::check_range;
use sendense_block::{ByteLen, ByteOffset, Kind, ReadAt};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// The largest LUKS2 header; `cryptsetup` allows 4 MiB at most.
const HEADER_BYTES_MAX: u64 = 4 << 20;
/// What Argon2 may use: `cryptsetup` gives new slots at most 1 GiB.
pub const DERIVATION_BYTES_MAX: u64 = 1 << 30;
/// How much is read from the disk and decrypted at once when a reader asks for little.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// What a header says without a key.
pub struct Header {
    /// The container's UUID.
    pub uuid: Option<String>,
    /// LUKS2 only.
    pub label: Option<String>,
}

/// Finds a header.
///
/// # Errors
/// The device cannot be read.
pub fn find(device: &dyn ReadAt) -> Result<Option<Header>> {
    let Some(bytes) = read(device, 0, 512)? else { return Ok(None) };
    let version = array(&bytes, 6).map(u16::from_be_bytes);
    let (true, Some(version @ (1 | 2))) = (bytes.starts_with(MAGIC), version) else { return Ok(None) };
    let text = |at: usize, len: usize| shown(&String::from_utf8_lossy(bytes.get(at..at + len)?));
    let label = if version == 2 { text(24, 48) } else { None };
    Ok(Some(Header { uuid: text(168, 40), label }))
}

/// Opens the container with a key.
///
/// # Errors
/// [`Error::WrongKey`], [`Error::Unsupported`] for other ciphers, [`Error::Limit`] for a derivation beyond the bounds.
pub fn unlock(device: &Arc<dyn ReadAt>, key: &Key) -> Result<Arc<dyn ReadAt>> {
    check(device.as_ref())?;
    let reader = Cursor { device: device.clone(), at: 0, ahead: Vec::new(), ahead_at: 0 };
    let payload = LuksVolume::unlock_with_passphrase(reader, key.bytes()).map_err(translate)?;
    let size = payload.payload_size();
    let sector = payload.info().sector_size as u64;
    // A tail that is no whole sector was never encrypted.
    let size = size - size.checked_rem(sector).unwrap_or(size);
    Ok(Arc::new(Plain { payload: Mutex::new(payload), size }))
}

/// Refuses headers whose numbers would be allocated or divided by.
fn check(device: &dyn ReadAt) -> Result<()> {
    let Some(first) = read(device, 0, 512)? else { return Err(Error::corrupt("the LUKS header is cut off")) };
    if array(&first, 6).map(u16::from_be_bytes) != Some(2) {
        let header = read(device, 0, 592)?.ok_or_else(|| Error::corrupt("the LUKS header is cut off"))?;
        let header = Luks1Header::parse(&header).map_err(translate)?;
        return check_cipher(&format!("{}-{}", header.cipher_name, header.cipher_mode));
    }
    let len = array(&first, 8).map_or(0, u64::from_be_bytes);
    if !(16 * 1024..=HEADER_BYTES_MAX).contains(&len) {
        return Err(Error::corrupt("the LUKS header says a length that none has"));
    }
    let Some(bytes) = read(device, 0, len as usize)? else { return Err(Error::corrupt("the LUKS header is cut off")) };
    let header = Luks2Header::parse(&bytes).map_err(translate)?;
    let [segment] = &header.segments[..] else {
        return Err(Error::unsupported("a LUKS volume that is being encrypted anew"));
    };
    check_cipher(&segment.encryption)?;
    if !matches!(segment.sector_size, 512 | 1024 | 2048 | 4096) {
        return Err(Error::unsupported(format!("LUKS sectors of {} bytes", segment.sector_size)));
    }
    if segment.offset > device.size().0 {
        return Err(Error::corrupt("the encrypted data begins beyond the volume"));
    }
    for slot in &header.keyslots {
        if let Luks2Kdf::Argon2 { memory, .. } = &slot.kdf {
            let bytes = u64::from(*memory).saturating_mul(1024);
            if bytes > DERIVATION_BYTES_MAX {
                return Err(Error::Limit(format!("a key slot asks for {bytes} bytes of memory")));
            }
        }
    }
    Ok(())
}

/// The library reads AES-XTS only; of another cipher it would say that the key is wrong.
fn check_cipher(cipher: &str) -> Result<()> {
    match cipher {
        "aes-xts-plain64" => Ok(()),
        other => Err(Error::unsupported(format!("LUKS cipher {}", shown(other).unwrap_or_default()))),
    }
}

fn translate(error: LuksError) -> Error {
    match error {
        LuksError::AuthenticationFailed => Error::WrongKey,
        LuksError::Io(error) => Error::Io(error.to_string()),
        LuksError::MalformedHeader { .. } | LuksError::NoActiveKeyslot | LuksError::NotLuks { .. } => {
            Error::corrupt(error.to_string())
        }
        LuksError::Unsupported { .. } | LuksError::UnsupportedVersion { .. } => Error::unsupported(error.to_string()),
        other => Error::Limit(other.to_string()),
    }
}

/// The decrypted content.
struct Plain {
    payload: Mutex<DecryptedPayload<Cursor>>,
    size: u64,
}

impl ReadAt for Plain {
    fn size(&self) -> ByteLen {
        ByteLen(self.size)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        check_range("the encrypted volume", self.size(), at, buf.len())?;
        // A poisoned lock means that a read panicked; its state is a position and a buffer, which every read sets anew.
        let mut payload = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        payload.read_at(at.0, buf).map_err(|error| {
            sendense_block::Error::new(Kind::Io, "decrypt the volume").at(at).caused_by(error.to_string())
        })
    }
}

/// The container as a stream with a position, read in pieces larger than a sector.
struct Cursor {
    device: Arc<dyn ReadAt>,
    at: u64,
    ahead: Vec<u8>,
    ahead_at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.device.size().0.saturating_sub(self.at);
        if left == 0 {
            return Ok(0);
        }
        let inside = self.at.checked_sub(self.ahead_at).filter(|at| *at < self.ahead.len() as u64);
        let from = match inside {
            Some(at) => at as usize,
            None => {
                self.ahead.resize(READ_AHEAD_BYTES.min(usize::try_from(left).unwrap_or(READ_AHEAD_BYTES)), 0);
                self.ahead_at = self.at;
                if let Err(error) = self.device.read_at(ByteOffset(self.at), &mut self.ahead) {
                    self.ahead.clear();
                    return Err(io::Error::other(sendense_block::error::chain(&error)));
                }
                0
            }
        };
        let len = buf.len().min(self.ahead.len() - from);
        buf[..len].copy_from_slice(&self.ahead[from..from + len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.device.size().0.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
