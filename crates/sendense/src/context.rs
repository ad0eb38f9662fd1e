//! What every command needs: the client, the way to print, a runtime.

use crate::args::Global;
use anyhow::{Context as _, Result, bail};
use sendense_api::{Client, ClientOptions, Secret, Trust};
use std::path::Path;

/// The longest token file that is read; a token is below 100 bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

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
    global.token_file.as_deref().map(read_token).transpose()
}

fn read_token(path: &Path) -> Result<Secret> {
    let length = std::fs::metadata(path).with_context(|| format!("read the token file {}", path.display()))?.len();
    if length > TOKEN_BYTES_MAX {
        bail!("{} is no token file: it has {length} bytes", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read the token file {}", path.display()))?;
    Ok(Secret::new(text.trim()))
}
