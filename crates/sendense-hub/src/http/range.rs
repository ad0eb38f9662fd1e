//! Which part of a file a request wants (RFC 9110, sections 13 and 14). Pure.
//!
//! Of a list of ranges none is honoured: the whole file is sent, which section 14.2 allows, so that no request makes the hub
//! send the same bytes many times over.

use http::HeaderMap;
use http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use std::ops::Range;

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// 200.
    Whole,
    /// 206.
    Part(Range<u64>),
    /// 304: the client has it already.
    Nothing,
    /// 416.
    Unsatisfiable,
}

/// What the headers ask for of a file of this size and ETag.
pub(super) fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(known) = text(IF_NONE_MATCH)
        && known.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == etag)
    {
        return Wanted::Nothing;
    }
    let Some(range) = text(RANGE) else { return Wanted::Whole };
    // A date never matches: only the ETag tells that the file is the same byte for byte. Two headers are no request of ours.
    if headers.contains_key(IF_RANGE) && text(IF_RANGE) != Some(etag) || headers.get_all(RANGE).iter().count() > 1 {
        return Wanted::Whole;
    }
    part(range, size).unwrap_or(Wanted::Whole)
}

/// The part that one range means; none when it is not one range of bytes.
fn part(range: &str, size: u64) -> Option<Wanted> {
    let (unit, spec) = range.split_once('=')?;
    let (first, last) = spec.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond 64 bits is beyond every file.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (from, until) = match (first, last) {
        ("", suffix) => (size.saturating_sub(number(suffix)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    Some(if from < until { Wanted::Part(from..until) } else { Wanted::Unsatisfiable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ask(headers: &[(&'static str, &str)]) -> Wanted {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        wanted(&map, "\"e\"", 10)
    }

    #[test]
    fn ranges_mean_what_the_rfc_says() {
        for (range, want) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=2-5", Wanted::Part(2..6)),
            ("Bytes= 2-", Wanted::Part(2..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=9-99999999999999999999999", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=10-20", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=--1", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
        ] {
            assert_eq!(ask(&[("range", range)]), want, "{range}");
        }
        assert_eq!(ask(&[]), Wanted::Whole);
        assert_eq!(ask(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]), Wanted::Whole);
    }

    #[test]
    fn conditions_come_first() {
        assert_eq!(ask(&[("range", "bytes=1-"), ("if-range", "\"e\"")]), Wanted::Part(1..10));
        for other in ["\"f\"", "W/\"e\"", "Sat, 29 Oct 1994 19:43:31 GMT"] {
            assert_eq!(ask(&[("range", "bytes=1-"), ("if-range", other)]), Wanted::Whole, "{other}");
        }
        for known in ["\"e\"", "*", "\"a\", W/\"e\""] {
            assert_eq!(ask(&[("if-none-match", known), ("range", "bytes=1-")]), Wanted::Nothing, "{known}");
        }
        assert_eq!(ask(&[("if-none-match", "\"f\"")]), Wanted::Whole);
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_file(range in "[ -~]{0,40}", size in 0..100_u64) {
            if let Some(Wanted::Part(part)) = part(&range, size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }
    }
}
