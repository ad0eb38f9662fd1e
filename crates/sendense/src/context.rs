//! What every command needs: the client, the way to print, a runtime.

use crate::args::Global;
use crate::secret::from_file;
use anyhow::{Context as _, Result};
use sendense_api::{Client, ClientOptions, Secret, Trust};

/// A command's surroundings.
pub struct Context {
    /// The hub.
    pub client: Client,
    /// Print JSON.
    pub json: bool,
}

impl Context {
    /// Reads the token and sets up the client; nothing is sent yet.
    pub fn new(global: &Global) -> Result<Self> {
        let trust = match (&global.ca_file, &global.fingerprint) {
            (Some(path), _) => Trust::CaPem(std::fs::read(path).with_context(|| format!("read {}", path.display()))?),
            (None, Some(fingerprint)) => Trust::fingerprint(fingerprint)?,
            (None, None) => Trust::Public,
        };
        let options = ClientOptions { token: token(global)?, trust, ..ClientOptions::new(&global.url) };
        Ok(Self { client: Client::new(options)?, json: global.json })
    }
}

fn token(global: &Global) -> Result<Option<Secret>> {
    if let Ok(token) = std::env::var("SENDENSE_TOKEN") {
        return Ok(Some(Secret::new(token.trim())));
    }
    let token = global.token_file.as_deref().map(from_file).transpose().context("read the token file")?;
    Ok(token.map(|token| Secret::new(token.expose().trim())))
}
