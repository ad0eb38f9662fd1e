//! Going through everything below a folder, a small step at a time, so that one long walk does not hold up what else is asked.
//!
//! Order: the entries of a page, then what is in its folders; a folder always comes before what is in it. Links are not
//! followed.
//!
//! Invariant: a step reads at most one page; what is remembered (names of folders not entered yet) has a bound in bytes.

use super::FileSystem;
use crate::error::{Error, Result};
use crate::glob;
use crate::meta::{Entry, FileType};
use crate::path::{GuestPath, PATH_BYTES_MAX};
use crate::session::{Found, FoundEntry, WalkOptions};

/// Entries read in one step: about a block of a folder, and well under a millisecond.
const PAGE: usize = 128;
/// Names of folders that may wait to be entered: 512 levels of a page of 128 names of common length are 2 MiB. Only a tree
/// made to fill memory needs more.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// What a waiting name costs beside its bytes.
const NAME_COST_BYTES: usize = 32;

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These were found; not empty.
    Found(Vec<Found>),
    /// Nothing that fits, but the walk goes on.
    Working,
    /// Everything was seen.
    End,
}

/// A folder that is being gone through.
struct Level {
    path: GuestPath,
    path_bytes: usize,
    /// Names of folders of the last page; the next is at the end.
    waiting: Vec<Vec<u8>>,
    page: Next,
}

enum Next {
    First,
    After(u64),
    None,
}

/// A walk between two steps.
pub struct Walker {
    root: GuestPath,
    options: WalkOptions,
    levels: Vec<Level>,
    visited: u64,
    waiting_bytes: usize,
}

impl Walker {
    /// Begins below a folder whose path has no links.
    ///
    /// # Errors
    /// As [`WalkOptions::check`].
    pub fn new(folder: GuestPath, options: WalkOptions) -> Result<Walker> {
        options.check()?;
        let path_bytes = folder.to_bytes().len();
        let level = Level { path: folder.clone(), path_bytes, waiting: Vec::new(), page: Next::First };
        Ok(Walker { root: folder, options, levels: vec![level], visited: 0, waiting_bytes: 0 })
    }

    /// Goes on.
    ///
    /// # Errors
    /// The first folder cannot be read, or [`Error::Limit`]. A walk that has failed is over.
    pub fn step(&mut self, files: &mut dyn FileSystem) -> Result<Step> {
        if self.visited >= self.options.entries_max && !self.is_over() {
            return Err(Error::Limit(format!("the walk has seen {} entries", self.visited)));
        }
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(Step::End) };
        if let Some(name) = level.waiting.pop() {
            self.waiting_bytes -= name.len() + NAME_COST_BYTES;
            let path = level.path.join(&name)?;
            if depth >= self.options.depth_max {
                // Asked for as a bound, it is the end of the tree; as the last resort, a fault worth telling.
                let told = self.options.depth_max == crate::session::WALK_DEPTH_MAX;
                let error = Error::Limit(format!("folders more than {depth} deep are not entered"));
                return Ok(if told { Step::Found(vec![Found { path, outcome: Err(error) }]) } else { Step::Working });
            }
            let path_bytes = level.path_bytes + 1 + name.len();
            self.levels.push(Level { path, path_bytes, waiting: Vec::new(), page: Next::First });
            return Ok(Step::Working);
        }
        let after = match level.page {
            Next::First => None,
            Next::After(after) => Some(after),
            Next::None => {
                self.levels.pop();
                return Ok(if self.levels.is_empty() { Step::End } else { Step::Working });
            }
        };
        // No more than may still be visited: the bound holds to the entry.
        let limit = usize::try_from(self.options.entries_max - self.visited).unwrap_or(PAGE).min(PAGE);
        let page = match files.list(&level.path, after, limit) {
            Ok(page) => page,
            Err(error) if depth == 1 => return Err(error),
            Err(error) => {
                let path = level.path.clone();
                self.levels.pop();
                return Ok(Step::Found(vec![Found { path, outcome: Err(error) }]));
            }
        };
        level.page = match page.next {
            // A reader whose next page does not lie ahead would never end.
            Some(next) if after.is_some_and(|after| next <= after) => {
                return Err(Error::corrupt("the pages of a folder go in a circle"));
            }
            Some(next) => Next::After(next),
            None => Next::None,
        };
        self.visited = self.visited.saturating_add(page.entries.len() as u64);
        self.take(page.entries)
    }

    /// The folder below which it goes.
    pub fn root(&self) -> &GuestPath {
        &self.root
    }

    fn is_over(&self) -> bool {
        self.levels.iter().all(|level| level.waiting.is_empty() && matches!(level.page, Next::None))
    }

    fn take(&mut self, entries: Vec<Entry>) -> Result<Step> {
        let Some(level) = self.levels.last_mut() else { return Ok(Step::End) };
        let mut found = Vec::new();
        for entry in entries {
            if level.path_bytes + 1 + entry.name.len() > PATH_BYTES_MAX {
                let error = Error::Limit(format!("paths of more than {PATH_BYTES_MAX} bytes are not followed"));
                found.push(Found { path: level.path.clone(), outcome: Err(error) });
                continue;
            }
            let path = match level.path.join(&entry.name) {
                Ok(path) => path,
                Err(error) => {
                    found.push(Found { path: level.path.clone(), outcome: Err(error) });
                    continue;
                }
            };
            let pattern = self.options.name.as_deref();
            if pattern.is_none_or(|pattern| glob::fits(pattern, &entry.name, self.options.ignore_case)) {
                let is_folder = entry.meta.file_type == FileType::Directory;
                found.push(Found { path, outcome: Ok(FoundEntry { meta: entry.meta, target: entry.target }) });
                if !is_folder {
                    continue;
                }
            } else if entry.meta.file_type != FileType::Directory {
                continue;
            }
            self.waiting_bytes += entry.name.len() + NAME_COST_BYTES;
            level.waiting.push(entry.name);
        }
        if self.waiting_bytes > WAITING_BYTES_MAX {
            return Err(Error::Limit("too many folders wait to be entered".into()));
        }
        level.waiting.reverse();
        Ok(if found.is_empty() { Step::Working } else { Step::Found(found) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::Tree;
    use super::*;

    fn walk(tree: &mut Tree, options: WalkOptions) -> (Vec<String>, Option<Error>) {
        let mut walker = Walker::new(GuestPath::root(), options).unwrap();
        let mut paths = Vec::new();
        loop {
            match walker.step(tree) {
                Ok(Step::Found(found)) => {
                    for found in found {
                        let path = String::from_utf8(found.path.to_bytes()).unwrap();
                        paths.push(if found.outcome.is_ok() { path } else { format!("!{path}") });
                    }
                }
                Ok(Step::Working) => {}
                Ok(Step::End) => return (paths, None),
                Err(error) => return (paths, Some(error)),
            }
        }
    }

    #[test]
    fn everything_comes_once_and_folders_first() {
        let mut tree = Tree::new();
        for n in 0..300 {
            tree.file(&format!("many/f{n:03}"), b"");
        }
        tree.file("a/b/c/d", b"");
        tree.link("a/loop", "/a");
        let (paths, end) = walk(&mut tree, WalkOptions::default());
        assert_eq!((paths.len(), end), (300 + 1 + 5, None));
        let unique: std::collections::BTreeSet<_> = paths.iter().collect();
        assert_eq!(unique.len(), paths.len());
        for (at, path) in paths.iter().enumerate() {
            let parent = &path[..path.rfind('/').unwrap()];
            assert!(parent.is_empty() || paths[..at].iter().any(|earlier| earlier == parent), "{path}");
        }
    }

    #[test]
    fn names_depth_and_number_bound_it() {
        let mut tree = Tree::new();
        tree.file("etc/a.conf", b"");
        tree.file("etc/sub/B.CONF", b"");
        tree.file("x.txt", b"");
        let named = WalkOptions { name: Some(b"*.conf".to_vec()), ignore_case: true, ..WalkOptions::default() };
        assert_eq!(walk(&mut tree, named).0, ["/etc/a.conf", "/etc/sub/B.CONF"]);
        let flat = WalkOptions { depth_max: 1, ..WalkOptions::default() };
        assert_eq!(walk(&mut tree, flat), (vec!["/etc".into(), "/x.txt".into()], None));
        let few = WalkOptions { entries_max: 3, ..WalkOptions::default() };
        let (paths, end) = walk(&mut tree, few);
        assert_eq!((paths.len(), end), (3, Some(Error::Limit("the walk has seen 3 entries".into()))));
        // Exactly enough is enough.
        let all = WalkOptions { entries_max: 5, ..WalkOptions::default() };
        let (paths, end) = walk(&mut tree, all);
        assert_eq!((paths.len(), end), (5, None));
        assert!(Walker::new(GuestPath::root(), WalkOptions { depth_max: 0, ..WalkOptions::default() }).is_err());
    }

    #[test]
    fn a_tree_deeper_than_the_bound_is_told_of() {
        let mut tree = Tree::new();
        tree.folder(&vec!["d"; crate::session::WALK_DEPTH_MAX + 5].join("/"));
        let (paths, end) = walk(&mut tree, WalkOptions::default());
        assert_eq!(end, None);
        assert_eq!(paths.len(), crate::session::WALK_DEPTH_MAX + 1);
        assert!(paths.last().unwrap().starts_with("!/d/d/"));
    }
}
