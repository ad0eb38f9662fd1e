//! Name patterns: `*` is any run of bytes, `?` is one byte, everything else is itself.
//!
//! Invariant: the time is at most the product of both lengths, whatever the pattern.

/// True when the whole name fits the pattern. `ignore_case` folds ASCII letters.
pub fn fits(pattern: &[u8], name: &[u8], ignore_case: bool) -> bool {
    let same = |a: u8, b: u8| a == b || (ignore_case && a.eq_ignore_ascii_case(&b));
    let (mut p, mut n) = (0, 0);
    // Where the last `*` stands and how much of the name it has taken; on a mismatch it takes one byte more. Earlier stars
    // need no second try: whatever they could take, the last one can.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || same(byte, name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fits_as_people_expect() {
        for (pattern, name, expected) in [
            ("*.conf", "nginx.conf", true),
            ("*.conf", "nginx.conf.bak", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "a", false),
            ("*a*b*", "xxaxxbxx", true),
            ("README", "readme", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes(), false), expected, "{pattern} {name}");
        }
        assert!(fits(b"READ*", b"readme", true));
        assert!(!fits(&b"*a".repeat(500), &b"a".repeat(499), false));
    }

    /// Tries everything; only for short inputs.
    fn stupid(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=name.len()).any(|taken| stupid(rest, &name[taken..])),
            (Some((p, ps)), Some((n, ns))) => (*p == b'?' || p == n) && stupid(ps, ns),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_trying_everything(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(fits(pattern.as_bytes(), name.as_bytes(), false), stupid(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
