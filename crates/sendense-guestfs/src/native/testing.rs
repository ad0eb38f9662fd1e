//! A file system in memory, for the tests of what stands above readers.

use super::{FileRead, FileSystem};
use crate::error::{Error, Result};
use crate::meta::{Consistency, Entry, Facts, FileType, Meta, Page};
use crate::path::GuestPath;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Node {
    Folder,
    File(Vec<u8>),
    Link(Vec<u8>),
}

/// Paths and what they are.
pub struct Tree {
    facts: Facts,
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    pub fn new() -> Tree {
        let facts = Facts { kind: "tree", label: None, uuid: None, size_bytes: 0, consistency: Consistency::Clean };
        Tree { facts, nodes: BTreeMap::from([(b"/".to_vec(), Node::Folder)]) }
    }

    pub fn folder(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            self.nodes.entry(format!("/{}", &path[..at]).into_bytes()).or_insert(Node::Folder);
        }
    }

    pub fn file(&mut self, path: &str, content: &[u8]) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.nodes.insert(format!("/{path}").into_bytes(), Node::File(content.to_vec()));
    }

    pub fn link(&mut self, path: &str, target: &str) {
        self.nodes.insert(format!("/{path}").into_bytes(), Node::Link(target.as_bytes().to_vec()));
    }

    fn node(&self, path: &GuestPath) -> Result<&Node> {
        let mut above = path.parent();
        while above != GuestPath::root() {
            match self.nodes.get(&above.to_bytes()) {
                Some(Node::Folder) => {}
                Some(_) => return Err(Error::NotDirectory),
                None => return Err(Error::NotFound),
            }
            above = above.parent();
        }
        self.nodes.get(&path.to_bytes()).ok_or(Error::NotFound)
    }
}

fn meta(node: &Node) -> Meta {
    let (file_type, size_bytes) = match node {
        Node::Folder => (FileType::Directory, 0),
        Node::File(content) => (FileType::File, content.len() as u64),
        Node::Link(target) => (FileType::Symlink, target.len() as u64),
    };
    Meta { inode: 1, file_type, size_bytes, mode: 0o644, uid: 0, gid: 0, links: 1, modified: None }
}

impl FileSystem for Tree {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stat(&mut self, path: &GuestPath) -> Result<Meta> {
        self.node(path).map(meta)
    }

    fn readlink(&mut self, path: &GuestPath) -> Result<Vec<u8>> {
        match self.node(path)? {
            Node::Link(target) => Ok(target.clone()),
            _ => Err(Error::NotRegular),
        }
    }

    fn list(&mut self, path: &GuestPath, after: Option<u64>, limit: usize) -> Result<Page> {
        if !matches!(self.node(path)?, Node::Folder) {
            return Err(Error::NotDirectory);
        }
        let mut prefix = path.to_bytes();
        if prefix != b"/" {
            prefix.push(b'/');
        }
        let from = after.unwrap_or(0) as usize;
        let children = self.nodes.iter().filter_map(|(path, node)| {
            let name = path.strip_prefix(&prefix[..])?;
            (!name.is_empty() && !name.contains(&b'/')).then_some((name, node))
        });
        let mut entries: Vec<Entry> = children
            .skip(from)
            .take(limit + 1)
            .map(|(name, node)| {
                let target = if let Node::Link(target) = node { Some(target.clone()) } else { None };
                Entry { name: name.to_vec(), meta: meta(node), target }
            })
            .collect();
        let next = (entries.len() > limit).then_some((from + limit) as u64);
        entries.truncate(limit);
        Ok(Page { entries, next })
    }

    fn open(&mut self, path: &GuestPath) -> Result<Box<dyn FileRead>> {
        match self.node(path)? {
            Node::File(content) => Ok(Box::new(Content(content.clone()))),
            _ => Err(Error::NotRegular),
        }
    }
}

struct Content(Vec<u8>);

impl FileRead for Content {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
