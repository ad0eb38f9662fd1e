//! A server of ours for one test.

use sendense_block::nbd;
use sendense_block::nbd::server::{Exports, Listen, Options, Server};
use std::path::PathBuf;

pub struct House {
    pub server: Server,
    pub exports: Exports,
    pub dir: tempfile::TempDir,
}

impl House {
    pub fn new(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(Listen::Unix(dir.path().join("nbd.sock")));
        change(&mut options);
        let exports = Exports::new();
        let server = Server::start(options, exports.clone()).unwrap();
        Self { server, exports, dir }
    }

    pub fn uri(&self, export: &str) -> String {
        self.server.uri(export).unwrap().to_string()
    }

    pub fn options(&self, export: &str) -> nbd::Options {
        nbd::Options::new(self.server.uri(export).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
