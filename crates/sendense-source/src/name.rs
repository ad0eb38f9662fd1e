//! Names that others gave (files, exports) as keys, as text for people, in natural order, and as stable identities.
//!
//! A Linux file name is any bytes but `/` and NUL. What is shown is text; what identifies is made from the bytes.
//! Invariant: two different names never get the same text.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The longest key that is kept readable: it goes into lists and messages.
const KEY_CHARS_MAX: usize = 120;

/// What makes the uuids of machines in image folders; never to be changed.
pub const IMAGE_FOLDER: &str = "sendense 2026 image folder instance uuid";
/// What makes the uuids of machines that are NBD exports; never to be changed.
pub const NBD_EXPORT: &str = "sendense 2026 nbd export instance uuid";

/// The uuid of a machine that has none of its own, made from its place and nothing else, so that it survives restarts and
/// whatever happens to its neighbours. Version 8 (RFC 9562): made from a hash. `sort` keeps the sorts of places apart.
pub fn instance_uuid(sort: &str, place: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(sort);
    hasher.update(place);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// The name as text: itself when it is plain text of bearable length, else its readable part and a digest of its bytes.
pub fn text(name: &OsStr) -> String {
    match name.to_str() {
        Some(plain) if !plain.chars().any(char::is_control) && plain.chars().count() <= KEY_CHARS_MAX => {
            plain.to_owned()
        }
        _ => {
            let lossy = String::from_utf8_lossy(name.as_bytes());
            let shown =
                lossy.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter });
            let digest = blake3::hash(name.as_bytes()).to_hex();
            format!("{}~{}", shown.take(KEY_CHARS_MAX - 20).collect::<String>(), &digest[..16])
        }
    }
}

/// Order as people count: `disk2` before `disk10`. Total on different names.
pub fn natural(one: &OsStr, two: &OsStr) -> Ordering {
    let (mut a, mut b) = (one.as_bytes(), two.as_bytes());
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (n, m) = (take_number(&mut a), take_number(&mut b));
            // Without leading zeros the longer number is the larger.
            match n.len().cmp(&m.len()).then(n.cmp(m)) {
                Ordering::Equal => {}
                order => return order,
            }
        } else if x == y {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return x.cmp(y);
        }
    }
    a.len().cmp(&b.len()).then_with(|| one.cmp(two))
}

fn take_number<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(digits);
    *bytes = rest;
    let zeros = number.iter().take_while(|digit| **digit == b'0').count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_count() {
        let mut names = ["disk10", "disk2", "disk", "disk02", "a1b20", "a1b3", "disk1.raw"].map(OsStr::new);
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a1b3", "a1b20", "disk", "disk1.raw", "disk02", "disk2", "disk10"].map(OsStr::new));
    }

    #[test]
    fn identities_do_not_change_between_versions() {
        // Written down once: a change of the derivation would orphan every chain.
        assert_eq!(instance_uuid(IMAGE_FOLDER, b"web"), "3b86d8d5-8df5-81eb-8d0e-f368c3651fb0");
        assert_ne!(instance_uuid(IMAGE_FOLDER, b"\xff"), instance_uuid(IMAGE_FOLDER, b"\xfe"));
        assert_ne!(instance_uuid(IMAGE_FOLDER, b"web"), instance_uuid(NBD_EXPORT, b"web"));
    }

    proptest! {
        #[test]
        fn order_is_total_and_texts_differ(a in any::<Vec<u8>>(), b in any::<Vec<u8>>(), c in "[a0-2]{0,5}", d in "[a0-2]{0,5}") {
            for (a, b) in [(a.as_slice(), b.as_slice()), (c.as_bytes(), d.as_bytes())] {
                let (x, y) = (OsStr::from_bytes(a), OsStr::from_bytes(b));
                prop_assert_eq!(natural(x, y), natural(y, x).reverse());
                prop_assert_eq!(natural(x, y) == Ordering::Equal, a == b);
                prop_assert_eq!(text(x) == text(y), a == b);
                prop_assert!(!text(x).chars().any(char::is_control));
            }
        }

        #[test]
        fn order_is_transitive(mut names in proptest::collection::vec("[a0-2]{0,6}", 3)) {
            names.sort_by(|a, b| natural(OsStr::new(a), OsStr::new(b)));
            prop_assert_ne!(natural(OsStr::new(&names[0]), OsStr::new(&names[2])), Ordering::Greater);
        }
    }
}
