//! Values at the border between rows and types.
//!
//! What lives here: the timestamp column, and the checked conversions of ids, words, sizes and JSON. What does not: any
//! noun. Invariant: a value that does not parse is an error that names its column, never a default.

use crate::error::{Error, Result};
use sea_orm::{ColumnTrait, ConnectionTrait, DeriveValueType, EntityTrait, QuerySelect, Select};
use sendense_types::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::str::FromStr;

/// A moment as it is stored: microseconds since 1970 in a BIGINT. It sorts and compares alike in every database, and no
/// session time zone can change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, DeriveValueType, Serialize, Deserialize)]
pub struct Ts(i64);

impl From<Timestamp> for Ts {
    fn from(at: Timestamp) -> Self {
        Self(at.as_micros())
    }
}

impl From<Ts> for Timestamp {
    fn from(at: Ts) -> Self {
        Timestamp::from_micros(at.0)
    }
}

/// Counts the rows that a selection has. (The ORM's own `count` counts a subquery of all columns, which visits every row in
/// the table where an index would do.)
pub async fn count<E: EntityTrait>(select: Select<E>, column: E::Column, db: &impl ConnectionTrait) -> Result<u64> {
    let counted: Option<i64> = select.select_only().column_as(column.count(), "counted").into_tuple().one(db).await?;
    read_u64("counted", counted.unwrap_or(0))
}

/// Reads an id, a name or a word back from its text.
pub fn read<T>(column: &'static str, text: &str) -> Result<T>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| Error::Unreadable { column, reason: error.to_string() })
}

/// Reads a value that may be absent.
pub fn read_opt<T>(column: &'static str, text: Option<&str>) -> Result<Option<T>>
where
    T: FromStr,
    T::Err: Display,
{
    text.map(|text| read(column, text)).transpose()
}

/// Reads a size or count back.
pub fn read_u64(column: &'static str, value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Error::Unreadable { column, reason: format!("{value} is negative") })
}

/// Reads a disk number or another small count back.
pub fn read_u32(column: &'static str, value: i32) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Unreadable { column, reason: format!("{value} is negative") })
}

/// A size as SQL stores it. 8 EiB and more do not exist.
pub fn store_u64(field: &'static str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::Invalid { field, reason: format!("{value} is too large") })
}

/// A disk number as SQL stores it.
pub fn store_u32(field: &'static str, value: u32) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Invalid { field, reason: format!("{value} is too large") })
}

/// Refuses a text that an indexed column of `chars_max` characters cannot hold; a database that cuts it would make two
/// things one.
pub fn fits(field: &'static str, text: &str, chars_max: usize) -> Result<()> {
    if text.is_empty() || text.chars().count() > chars_max {
        return Err(Error::Invalid { field, reason: format!("1 to {chars_max} characters are allowed") });
    }
    if text.contains('\0') {
        return Err(Error::Invalid { field, reason: "NUL cannot be stored".to_owned() });
    }
    Ok(())
}

/// Free text for people: NUL removed (PostgreSQL refuses it) and cut to `bytes_max` at a character's border.
pub fn trim_text(text: &str, bytes_max: usize) -> String {
    let mut text = text.replace('\0', "\u{fffd}");
    if text.len() > bytes_max {
        let cut = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
    }
    text
}
