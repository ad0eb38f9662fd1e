//! Secrets on their way from a person to the hub: files, the environment, a prompt. Never an argument, which everybody on
//! the machine can read in the list of processes, and never printed.

use crate::args::{PasswordArgs, TlsArgs};
use anyhow::{Context as _, Result, bail};
use sendense_api::{Credentials, Secret};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

/// Holds a source's password, for scripts.
const PASSWORD_VARIABLE: &str = "SENDENSE_SOURCE_PASSWORD";
/// The longest secret: a token or password is below 100 bytes, a chain of certificates some kilobytes.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// A secret from a file, without the line's end that editors add; `-` is stdin.
pub fn from_file(path: &Path) -> Result<Secret> {
    let shown = path.display();
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        let file = File::open(path).with_context(|| format!("open {shown}"))?;
        file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)
    };
    if read.with_context(|| format!("read {shown}"))? as u64 > SECRET_BYTES_MAX {
        bail!("{shown} holds no secret: it is longer than {SECRET_BYTES_MAX} bytes");
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        bail!("{shown} is empty");
    }
    Ok(Secret::new(secret))
}

/// The certificates, as credentials; none when no file is named.
pub fn certificates(tls: &TlsArgs) -> Result<Option<Credentials>> {
    let read = |path: &Option<std::path::PathBuf>| path.as_deref().map(from_file).transpose();
    let credentials = Credentials {
        tls_ca: read(&tls.tls_ca)?,
        tls_certificate: read(&tls.tls_cert)?,
        tls_key: read(&tls.tls_key)?,
        ..Credentials::default()
    };
    Ok(Some(credentials).filter(|credentials| *credentials != Credentials::default()))
}

/// The account with its password; none when neither is named.
pub fn account(password: PasswordArgs) -> Result<Option<Credentials>> {
    let PasswordArgs { username, password_file } = password;
    let from_environment = std::env::var(PASSWORD_VARIABLE).ok().filter(|text| !text.is_empty());
    let password = match (password_file, from_environment, &username) {
        (Some(path), _, _) => from_file(&path)?,
        // The variable alone changes nothing: it may lie about for another command.
        (None, _, None) => return Ok(None),
        (None, Some(text), Some(_)) => Secret::new(text),
        (None, None, Some(name)) if std::io::stdin().is_terminal() => {
            Secret::new(rpassword::prompt_password(format!("password of {}: ", crate::plain::plain(name)))?)
        }
        (None, None, Some(_)) => {
            bail!("stdin is no terminal to ask for the password on: use --password-file or {PASSWORD_VARIABLE}")
        }
    };
    Ok(Some(Credentials { username, password: Some(password), ..Credentials::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_lose_only_the_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            from_file(&dir.path().join(name))
        };
        assert_eq!(file("a", b" hunter2 \r\n").unwrap().expose(), " hunter2 ");
        assert!(file("b", b"\n").is_err() && file("c", b"\xff").is_err());
        assert!(file("d", &vec![b'x'; SECRET_BYTES_MAX as usize + 1]).is_err());
        let from_tty = PasswordArgs { username: Some("u".into()), password_file: Some(dir.path().join("a")) };
        let account = account(from_tty).unwrap().unwrap();
        assert!(!format!("{account:?}").contains("hunter2"));
    }
}
