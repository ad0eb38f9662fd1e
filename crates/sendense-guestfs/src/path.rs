//! A path inside a guest's volume: bytes, not text, and never a path of this machine.
//!
//! Invariant: a [`GuestPath`] has no empty component, no `.`, no `..`, no NUL and no `/` in a component.

use crate::error::{Error, Result};

/// The longest component. NTFS allows 255 UTF-16 units, which are at most 765 bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 1024;
/// The longest path, eight times what Linux takes in one call; guests build deeper trees by relative names.
pub const PATH_BYTES_MAX: usize = 32 * 1024;

/// An absolute path inside a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct GuestPath(Vec<Box<[u8]>>);

impl GuestPath {
    /// The volume's root folder.
    pub fn root() -> GuestPath {
        GuestPath::default()
    }

    /// Reads an absolute path. `//` and `/./` fold; a trailing `/` is allowed.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] for a relative path, `..`, NUL, or one that is too long.
    pub fn parse(path: &[u8]) -> Result<GuestPath> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Error::InvalidPath(format!("longer than {PATH_BYTES_MAX} bytes")));
        }
        let Some(rest) = path.strip_prefix(b"/") else {
            return Err(Error::InvalidPath("it must begin with /".into()));
        };
        let mut parsed = GuestPath::root();
        for name in rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            parsed.push(name)?;
        }
        Ok(parsed)
    }

    /// The path of `name` in this folder.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] when the name cannot be one component.
    pub fn join(&self, name: &[u8]) -> Result<GuestPath> {
        let mut joined = self.clone();
        joined.push(name)?;
        Ok(joined)
    }

    fn push(&mut self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.0.push(name.into());
        Ok(())
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator {
        self.0.iter().map(|name| &**name)
    }

    /// The last component; none for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.0.last().map(|name| &**name)
    }

    /// The folder that holds it; the root holds itself.
    pub fn parent(&self) -> GuestPath {
        GuestPath(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// Whether it lies in `folder`, at any depth. No path lies in itself.
    pub fn is_below(&self, folder: &GuestPath) -> bool {
        self.0.len() > folder.0.len() && self.0.starts_with(&folder.0)
    }

    /// The path as bytes, beginning with `/`.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return b"/".to_vec();
        }
        let mut bytes = Vec::new();
        for name in &self.0 {
            bytes.push(b'/');
            bytes.extend_from_slice(name);
        }
        bytes
    }
}

/// Checks that a name, a guest's or a client's, can be one component of a path.
///
/// # Errors
/// [`Error::InvalidPath`] with the reason.
pub fn check_name(name: &[u8]) -> Result<()> {
    let refuse = |why: &str| Err(Error::InvalidPath(why.into()));
    match name {
        b"" => refuse("a name is empty"),
        b"." | b".." => refuse("a name is . or .."),
        _ if name.len() > NAME_BYTES_MAX => refuse("a name is too long"),
        _ if name.contains(&b'/') || name.contains(&0) => refuse("a name holds / or NUL"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folds_what_means_nothing_and_refuses_what_leads_up() {
        let path = GuestPath::parse(b"//var/./www//a b\n/").unwrap();
        assert_eq!(path.to_bytes(), b"/var/www/a b\n");
        assert_eq!(path.name(), Some(&b"a b\n"[..]));
        assert_eq!(path.parent().to_bytes(), b"/var/www");
        assert_eq!(GuestPath::parse(b"/").unwrap(), GuestPath::root());
        assert!(path.is_below(&GuestPath::parse(b"/var").unwrap()) && path.is_below(&GuestPath::root()));
        assert!(!path.is_below(&path) && !path.is_below(&GuestPath::parse(b"/va").unwrap()));
        for bad in [&b""[..], b"etc", b"/a/../b", b"/..", b"/a\0b"] {
            assert!(GuestPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_stay() {
        let path = GuestPath::parse(b"/\xff\xfe/x").unwrap();
        assert_eq!(path.to_bytes(), b"/\xff\xfe/x");
    }
}
