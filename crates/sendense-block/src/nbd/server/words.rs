//! What clients say while they haggle: payloads of options, from bytes to values.
//!
//! What lives here: parsing, without I/O and without state. What does not: answers (`haggle`). Invariant: no function here
//! panics or allocates more than a few times the bytes it was given.

use crate::error::Result;
use crate::nbd::frame::{self, Cursor, protocol};

/// The start of an option ("Fixed newstyle negotiation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) option: u32,
    pub(super) len: u32,
}

impl OptionHeader {
    pub(super) fn decode(bytes: &[u8; frame::OPTION_BYTES]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u64()? {
            frame::MAGIC_OPTION => Ok(Self { option: cursor.u32()?, len: cursor.u32()? }),
            other => Err(protocol(format!("option starts with {other:#018x} instead of its magic"))),
        }
    }
}

/// `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// Kinds of information that the client asks for.
    pub(super) infos: Vec<u16>,
}

impl Wanted {
    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(payload);
        let name = name(&mut cursor)?;
        let count = cursor.u16()?;
        let infos = (0..count).map(|_| cursor.u16()).collect::<Result<_>>()?;
        cursor.end()?;
        Ok(Self { name, infos })
    }
}

/// `NBD_OPT_SET_META_CONTEXT` and `NBD_OPT_LIST_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) name: String,
    pub(super) contexts: Vec<String>,
}

impl Query {
    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(payload);
        let export = name(&mut cursor)?;
        let count = cursor.u32()?;
        // Each query takes four bytes at least, so a count that the payload cannot hold ends at its end.
        let mut contexts = Vec::new();
        for _ in 0..count {
            contexts.push(name(&mut cursor)?);
        }
        cursor.end()?;
        Ok(Self { name: export, contexts })
    }
}

fn name(cursor: &mut Cursor<'_>) -> Result<String> {
    let len = cursor.u32()?;
    cursor.string(usize::try_from(len).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn payloads_are_read_to_their_last_byte() {
        let good = [text("disk"), vec![0, 2, 0, 1, 0, 3]].concat();
        assert_eq!(Wanted::parse(&good).unwrap(), Wanted { name: "disk".into(), infos: vec![1, 3] });
        for cut in 0..good.len() {
            assert!(Wanted::parse(&good[..cut]).is_err(), "{cut} bytes");
        }
        assert!(Wanted::parse(&[&good[..], &[0]].concat()).is_err());

        let good = [text("disk"), vec![0, 0, 0, 1], text("base:allocation")].concat();
        let query = Query::parse(&good).unwrap();
        assert_eq!((query.name.as_str(), query.contexts), ("disk", vec!["base:allocation".to_owned()]));
        for cut in 0..good.len() {
            assert!(Query::parse(&good[..cut]).is_err(), "{cut} bytes");
        }
        let many = [text("disk"), vec![0xff; 4], text("x")].concat();
        assert!(Query::parse(&many).is_err(), "four thousand million queries");
        assert!(Wanted::parse(&[text("a\0b"), vec![0, 0]].concat()).is_err());
        assert!(Wanted::parse(&[text(&"x".repeat(5000)), vec![0, 0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_values_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Wanted::parse(&bytes), Query::parse(&bytes));
            if let Some(header) = bytes.first_chunk() {
                let _ = OptionHeader::decode(header);
            }
        }
    }
}
