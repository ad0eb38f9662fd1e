//! What every command needs: the client, the way to print, a runtime.

use crate::args::Global;
use crate::secret::from_file;
use anyhow::{Context as _, Result};
use sendense_api::{Client, ClientOptions, Secret, Trust};

const TOKEN_FILE: &str = "SENDENSE_TOKEN_FILE";

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
    let file = global.token_file.as_deref();
    let is_typed = file.is_some_and(|file| std::env::var_os(TOKEN_FILE).is_none_or(|exported| file != exported));
    if let Some(token) = exported(std::env::var("SENDENSE_TOKEN").ok(), is_typed) {
        return Ok(Some(Secret::new(&token)));
    }
    let token = file.map(from_file).transpose().context("read the token file")?;
    Ok(token.map(|token| Secret::new(token.expose().trim())))
}

/// The token of the environment, if it counts: a file that was named on the command line counts before what was exported once,
/// and an empty variable says nothing.
fn exported(token: Option<String>, is_file_typed: bool) -> Option<String> {
    token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty() && !is_file_typed)
}

#[cfg(test)]
mod tests {
    use super::exported;

    #[test]
    fn what_is_typed_counts_before_what_was_exported() {
        let token = |text: &str| Some(text.to_owned());
        assert_eq!(exported(token(" abc\n"), false), token("abc"));
        assert_eq!(exported(token("abc"), true), None);
        assert_eq!(exported(token("  "), false), None);
        assert_eq!(exported(None, false), None);
    }
}
