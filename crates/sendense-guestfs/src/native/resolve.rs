//! Symbolic links, followed inside a volume as a process confined to it would: an absolute target begins at the volume's
//! root, and `..` at the root stays there. No component ever names anything of this machine.
//!
//! Invariant: the answer has no link in it, save the last component when that is to be kept.

use super::FileSystem;
use crate::error::{Error, Result};
use crate::meta::FileType;
use crate::path::{GuestPath, PATH_BYTES_MAX, check_name};

/// How many links one path may lead through; Linux's own bound.
pub const LINKS_MAX: usize = 40;
/// How many components are looked up for one path: the longest path, and as many again behind links.
const STEPS_MAX: usize = PATH_BYTES_MAX;

/// What happens to a link at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is followed.
    Follow,
    /// It is the answer.
    Keep,
}

/// One name that is still to be gone through.
struct Step {
    name: Vec<u8>,
    keep: bool,
}

/// The path with its links followed. With [`Last::Keep`] the last component is not looked up, so it need not exist.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::Limit`] for a loop, and what the reader answers.
pub fn resolve(files: &mut dyn FileSystem, path: &GuestPath, last: Last) -> Result<GuestPath> {
    // The next name is at the end.
    let mut ahead: Vec<Step> = path.components().rev().map(|name| Step { name: name.to_vec(), keep: false }).collect();
    if let (Last::Keep, Some(step)) = (last, ahead.first_mut()) {
        step.keep = true;
    }
    let mut behind = GuestPath::root();
    let (mut links, mut steps) = (0, 0);
    while let Some(step) = ahead.pop() {
        steps += 1;
        if steps > STEPS_MAX {
            return Err(Error::Limit(format!("a path with its links has at most {STEPS_MAX} components")));
        }
        if step.name == b".." {
            behind = behind.parent();
            continue;
        }
        let here = behind.join(&step.name)?;
        if step.keep {
            return Ok(here);
        }
        match files.stat(&here)?.file_type {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::Limit(format!("a path leads through at most {LINKS_MAX} links")));
                }
                let target = files.readlink(&here)?;
                if target.is_empty() || target.len() > PATH_BYTES_MAX {
                    return Err(Error::NotFound);
                }
                if target.first() == Some(&b'/') {
                    behind = GuestPath::root();
                }
                for name in target.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
                    if name != b".." && check_name(name).is_err() {
                        return Err(Error::NotFound);
                    }
                    ahead.push(Step { name: name.to_vec(), keep: false });
                }
            }
            FileType::Directory => behind = here,
            FileType::File | FileType::Other if ahead.is_empty() => behind = here,
            FileType::File | FileType::Other => return Err(Error::NotDirectory),
        }
    }
    Ok(behind)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::Tree;
    use super::*;

    fn check(path: &str, last: Last, expected: Result<&str>) {
        let mut tree = Tree::new();
        tree.file("etc/passwd", b"guest");
        tree.file("data/www/index", b"");
        tree.link("www", "data/www");
        tree.link("abs", "/etc");
        tree.link("evil", "/etc/passwd");
        tree.link("up", "../../../../../etc/passwd");
        tree.link("data/out", "../../..//./etc");
        tree.link("loop", "loop");
        tree.link("ping", "pong");
        tree.link("pong", "ping");
        tree.link("gone", "nowhere");
        tree.link("empty", "");
        tree.link("through", "etc/passwd/x");
        tree.link("chain0", "etc");
        for n in 1..=41 {
            tree.link(&format!("chain{n}"), &format!("chain{}", n - 1));
        }
        let path = GuestPath::parse(path.as_bytes()).unwrap();
        let got = resolve(&mut tree, &path, last);
        assert_eq!(
            got.map(|path| String::from_utf8(path.to_bytes()).unwrap()),
            expected.map(str::to_owned),
            "{path:?}"
        );
    }

    #[test]
    fn links_stay_inside_the_volume() {
        check("/", Last::Follow, Ok("/"));
        check("/www/index", Last::Follow, Ok("/data/www/index"));
        check("/www", Last::Keep, Ok("/www"));
        check("/www", Last::Follow, Ok("/data/www"));
        check("/abs/passwd", Last::Keep, Ok("/etc/passwd"));
        check("/evil", Last::Follow, Ok("/etc/passwd"));
        check("/up", Last::Follow, Ok("/etc/passwd"));
        check("/data/out/passwd", Last::Follow, Ok("/etc/passwd"));
        check("/chain39/passwd", Last::Follow, Ok("/etc/passwd"));
    }

    #[test]
    fn what_leads_nowhere_is_an_error() {
        check("/gone", Last::Keep, Ok("/gone"));
        check("/gone", Last::Follow, Err(Error::NotFound));
        check("/empty", Last::Follow, Err(Error::NotFound));
        check("/through", Last::Follow, Err(Error::NotDirectory));
        check("/etc/passwd/x", Last::Keep, Err(Error::NotDirectory));
        let limit = Error::Limit("a path leads through at most 40 links".into());
        for path in ["/loop", "/ping", "/loop/x", "/chain40"] {
            check(path, Last::Follow, Err(limit.clone()));
        }
    }
}
