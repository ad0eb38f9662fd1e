//! Numbers, texts and lists in a frame.
//!
//! Invariant: [`Decoder`] never reads beyond its bytes and never reserves more memory than they could fill.

/// A frame that breaks the protocol; the text says how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(pub String);

/// A decoded value, or how the frame breaks the protocol.
pub type Result<T> = std::result::Result<T, Malformed>;

/// Refuses a frame.
pub fn malformed<T>(why: impl Into<String>) -> Result<T> {
    Err(Malformed(why.into()))
}

/// Puts values one after the other.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Begins a payload.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// The payload.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// How long the payload is so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing was put.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A length and as many bytes. What does not fit a frame is refused when the frame is sent.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.raw(value)
    }

    /// Bytes without their length: the last value of a frame.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// Present or not.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            put(self, value);
        }
        self
    }
}

/// Takes values one after the other.
#[derive(Debug)]
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Reads a payload.
    pub fn new(payload: &'a [u8]) -> Decoder<'a> {
        Decoder(payload)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        match self.0.split_at_checked(len) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => malformed("it ends too early"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A truth value: 0 or 1 and nothing else.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => malformed(format!("{other} is no truth value")),
        }
    }

    /// Bytes with their length, at most `max`.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > max {
            return malformed(format!("{len} bytes where at most {max} may stand"));
        }
        self.take(len)
    }

    /// Text with its length in bytes, at most `max`.
    pub fn text(&mut self, max: usize) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(max)?).or_else(|_| malformed("text is not UTF-8"))
    }

    /// Present or not.
    pub fn option<T>(&mut self, get: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        Ok(if self.bool()? { Some(get(self)?) } else { None })
    }

    /// A list with its length, at most `max` items.
    pub fn list<T>(&mut self, max: usize, mut get: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let len = self.u32()? as usize;
        if len > max {
            return malformed(format!("{len} items where at most {max} may stand"));
        }
        // Grows with what is really there: every item takes at least a byte of the frame.
        let mut list = Vec::with_capacity(len.min(self.0.len()));
        for _ in 0..len {
            list.push(get(self)?);
        }
        Ok(list)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Ends the frame; nothing may be left.
    pub fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { malformed(format!("{} bytes too many", self.0.len())) }
    }
}
