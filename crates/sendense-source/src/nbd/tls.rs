//! Certificates and keys from the source's secret.
//!
//! The NBD client takes PEM *files*. A key that is encrypted at rest must not lie on a disk in the clear, so each text
//! becomes a file in memory (`memfd_create`), which has no name and is gone with us.

use crate::error::{Error, Kind, Result};
use rustix::fs::MemfdFlags;
use sendense_block::nbd::{TlsIdentity, TlsOptions};
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// A chain of certificates is far smaller.
const PEM_BYTES_MAX: usize = 1 << 20;

/// The secret of an NBD source.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Reads the secret; the error never quotes it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Invalid, format!("secret of the nbd source: {why}"));
        let secret: Self = serde_json::from_str(text)
            .map_err(|_| wrong("it must be JSON with the PEM texts `ca`, `certificate` and `key`, and nothing else"))?;
        if secret.certificate.is_some() != secret.key.is_some() {
            return Err(wrong("`certificate` and `key` belong together"));
        }
        for (what, pem) in [("ca", &secret.ca), ("certificate", &secret.certificate), ("key", &secret.key)] {
            if pem.as_ref().is_some_and(|pem| pem.len() > PEM_BYTES_MAX || !pem.contains("-----BEGIN ")) {
                return Err(wrong(&format!("`{what}` is not a PEM text")));
            }
        }
        Ok(secret)
    }
}

/// The secret as files in memory.
pub struct Material {
    options: TlsOptions,
    /// The paths in `options` lead to these.
    _files: Vec<fs::File>,
}

impl Material {
    /// Puts what the secret has into memory files.
    pub fn new(secret: Secret, server_name: Option<String>) -> Result<Self> {
        let mut files = Vec::new();
        let mut place = |pem: Option<String>| pem.map(|pem| in_memory(&pem, &mut files)).transpose();
        let ca_file = place(secret.ca)?;
        let identity = match (place(secret.certificate)?, place(secret.key)?) {
            (Some(certificate_file), Some(key_file)) => Some(TlsIdentity { certificate_file, key_file }),
            _ => None,
        };
        Ok(Self { options: TlsOptions { ca_file, identity, server_name }, _files: files })
    }

    /// For the client. Valid as long as this is.
    pub fn options(&self) -> TlsOptions {
        self.options.clone()
    }
}

fn in_memory(pem: &str, files: &mut Vec<fs::File>) -> Result<PathBuf> {
    let failed = |error: std::io::Error| Error::new(Kind::Failed, "keep a certificate in memory").caused_by(error);
    let handle = rustix::fs::memfd_create("pem", MemfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let mut file = fs::File::from(handle);
    file.write_all(pem.as_bytes()).map_err(failed)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    files.push(file);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_checked_and_not_quoted() {
        let pem = "-----BEGIN PRIVATE KEY-----\\nhunter2\\n";
        for text in [
            format!("{{\"key\": \"{pem}\"}}"),
            format!("{{\"ca\": \"{pem}\", \"extra\": 1}}"),
            "{\"ca\": \"hunter2\"}".into(),
            "hunter2".into(),
            "{\"password\": \"hunter2\"}".into(),
        ] {
            let error = Secret::parse(&text).unwrap_err();
            assert!(error.kind == Kind::Invalid && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let material = Material::new(Secret::parse(&format!("{{\"ca\": \"{pem}\"}}")).unwrap(), None).unwrap();
        let text = fs::read_to_string(material.options().ca_file.unwrap()).unwrap();
        assert!(text.contains("hunter2"));
    }
}
