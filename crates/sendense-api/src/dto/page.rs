//! Lists in pages.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::IntoParams;

/// How many things a list gives when nothing is said.
pub const LIMIT_DEFAULT: u32 = 100;
/// How many things a list gives at most: 1000 backups of a few disks each are about 2 MB of JSON.
pub const LIMIT_MAX: u32 = 1000;

/// The largest offset: more rows than any catalog has, and less than what databases and JavaScript count to.
const OFFSET_MAX: u64 = i32::MAX as u64;

/// Reads an offset, which must not be larger than [`OFFSET_MAX`].
pub(super) fn offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let offset = u64::deserialize(deserializer)?;
    if offset > OFFSET_MAX {
        return Err(D::Error::custom(format!("{offset} is out of range: 0 to {OFFSET_MAX} is allowed")));
    }
    Ok(offset)
}

/// How many things a list gives: 1 to [`LIMIT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Limit(u32);

impl Limit {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(LIMIT_DEFAULT)
    }
}

impl From<Limit> for u32 {
    fn from(limit: Limit) -> u32 {
        limit.0
    }
}

impl TryFrom<u32> for Limit {
    type Error = String;
    fn try_from(limit: u32) -> Result<Self, String> {
        if (1..=LIMIT_MAX).contains(&limit) {
            Ok(Self(limit))
        } else {
            Err(format!("{limit} is out of range: 1 to {LIMIT_MAX} is allowed"))
        }
    }
}

/// A part of a list, and how long the whole is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The things, in the list's order.
    pub items: Vec<T>,
    /// How many there are without `limit` and `offset`.
    pub total: u64,
}

impl<T> Page<T> {
    /// The same page of other things.
    pub fn map<U>(self, each: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(each).collect(), total: self.total }
    }
}

/// Parameters of a list that has no filters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// How many at most.
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    pub limit: Limit,
    /// How many to leave out at the start.
    #[serde(deserialize_with = "offset")]
    #[param(required = false, maximum = 2147483647)]
    pub offset: u64,
}
