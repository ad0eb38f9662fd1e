//! When a dirty bitmap may be believed. Pure: names, epochs and sizes in, a verdict with its reason out.

use crate::error::{Error, Kind, Result};
use sendense_block::ByteLen;
use sendense_types::TrackingToken;
use serde::{Deserialize, Serialize};

/// QEMU's name space for bitmaps among NBD's metadata contexts.
const PREFIX: &str = "qemu:dirty-bitmap:";

/// The reason when the server has none.
pub const NOT_OFFERED: &str = "the NBD server offers no dirty bitmap";

/// The bitmap that a metadata context is.
pub fn name_of(context: &str) -> Option<&str> {
    context.strip_prefix(PREFIX)
}

/// What the settings say about bitmaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    named: Option<String>,
    epoch: Option<String>,
}

/// A bitmap that the settings vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    name: String,
    epoch: String,
}

/// What a token says: the point was made while this bitmap recorded, in this epoch, on a disk of this size.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    bitmap: String,
    epoch: String,
    bytes: u64,
}

impl Policy {
    /// Checks that the settings mean something together.
    pub fn new(named: Option<String>, trust: bool, epoch: Option<String>) -> Result<Self> {
        let wrong = |why: &str| Err(Error::new(Kind::Invalid, format!("settings of the nbd source: {why}")));
        let epoch = epoch.filter(|epoch| !epoch.is_empty());
        if trust && (named.is_none() || epoch.is_none()) {
            return wrong(
                "`trust_bitmap` needs `dirty_bitmap` and a `bitmap_epoch` that changes when the bitmap is cleared",
            );
        }
        if !trust && epoch.is_some() {
            return wrong("`bitmap_epoch` has no effect without `trust_bitmap`");
        }
        if named.as_ref().is_some_and(|name| name.is_empty() || name.len() > 1023) {
            return wrong("`dirty_bitmap` is not a bitmap's name");
        }
        Ok(Self { named, epoch })
    }

    /// The bitmap to use among those that an export offers, or why none.
    pub fn choose(&self, offered: &[String]) -> Result<Trusted, String> {
        let name = match (&self.named, offered) {
            (Some(name), offered) if offered.contains(name) => name,
            (Some(name), _) => return Err(format!("the NBD server does not offer the dirty bitmap {name:?}")),
            (None, []) => return Err(NOT_OFFERED.into()),
            (None, [only]) => only,
            (None, many) => {
                let names = many.iter().take(5).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "the NBD server offers several dirty bitmaps ({names}) and none is named in the settings"
                ));
            }
        };
        let epoch = self.epoch.clone().ok_or_else(|| {
            format!(
                "the dirty bitmap {name:?} is not trusted: it does not say since when it records (see `trust_bitmap`)"
            )
        })?;
        Ok(Trusted { name: name.clone(), epoch })
    }
}

impl Trusted {
    /// The metadata context to ask for.
    pub fn context(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The token for a point that is made now.
    pub fn token(&self, size: ByteLen) -> TrackingToken {
        let mark = Mark { bitmap: self.name.clone(), epoch: self.epoch.clone(), bytes: size.0 };
        TrackingToken(serde_json::to_string(&mark).expect("three plain fields have a JSON form"))
    }

    /// Whether the bitmap holds all changes since the point with this token, or why not.
    pub fn covers(&self, since: Option<&TrackingToken>, size: ByteLen) -> Result<(), String> {
        let since = since.ok_or("the parent was made without a trusted bitmap")?;
        let then: Mark =
            serde_json::from_str(&since.0).map_err(|_| "the parent's token is not one of a dirty bitmap")?;
        if then.bitmap != self.name {
            return Err(format!("the parent was made with the dirty bitmap {:?}, not {:?}", then.bitmap, self.name));
        }
        if then.epoch != self.epoch {
            return Err(format!("the bitmap's epoch is {:?} and was {:?} at the parent", self.epoch, then.epoch));
        }
        if then.bytes != size.0 {
            return Err(format!("the disk has {size} and had {} bytes at the parent", then.bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(named: Option<&str>, epoch: Option<&str>) -> Policy {
        Policy::new(named.map(Into::into), epoch.is_some(), epoch.map(Into::into)).unwrap()
    }

    #[test]
    fn only_what_the_settings_vouch_for_is_trusted() {
        let offered = ["b0".to_owned(), "b1".to_owned()];
        assert!(policy(Some("b0"), Some("1")).choose(&offered).is_ok());
        assert!(policy(Some("b0"), None).choose(&offered).unwrap_err().contains("not trusted"));
        assert!(policy(None, None).choose(&offered[..1]).unwrap_err().contains("not trusted"));
        assert!(policy(None, None).choose(&offered).unwrap_err().contains("several"));
        assert_eq!(policy(None, None).choose(&[]).unwrap_err(), NOT_OFFERED);
        assert!(policy(Some("b2"), Some("1")).choose(&offered).unwrap_err().contains("does not offer"));
        for (named, trust, epoch) in [
            (None, true, Some("1")),
            (Some("b"), true, None),
            (Some("b"), true, Some("")),
            (Some("b"), false, Some("1")),
        ] {
            assert!(Policy::new(named.map(Into::into), trust, epoch.map(Into::into)).is_err());
        }
    }

    #[test]
    fn a_token_covers_its_own_name_epoch_and_size_only() {
        let trusted = Trusted { name: "b0".into(), epoch: "1".into() };
        let token = trusted.token(ByteLen(100));
        trusted.covers(Some(&token), ByteLen(100)).unwrap();
        assert!(trusted.covers(Some(&token), ByteLen(200)).unwrap_err().contains("200"));
        assert!(trusted.covers(None, ByteLen(100)).is_err());
        let other = Trusted { epoch: "2".into(), ..trusted.clone() };
        assert!(other.covers(Some(&token), ByteLen(100)).unwrap_err().contains("epoch"));
        let other = Trusted { name: "b1".into(), ..trusted };
        assert!(other.covers(Some(&token), ByteLen(100)).unwrap_err().contains("b1"));
    }

    proptest! {
        #[test]
        fn different_marks_never_cover_each_other(a in ".{0,4}", b in ".{0,4}", c in ".{0,4}", d in ".{0,4}", text in ".{0,40}") {
            let (one, two) = (Trusted { name: a, epoch: b }, Trusted { name: c, epoch: d });
            let token = one.token(ByteLen(7));
            prop_assert_eq!(two.covers(Some(&token), ByteLen(7)).is_ok(), one == two);
            let _ = one.covers(Some(&TrackingToken(text)), ByteLen(7));
        }
    }
}
