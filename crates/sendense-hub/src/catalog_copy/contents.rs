//! What is in a copy: the essentials of the catalog, and the small files of the data directory without which they are of no use.
//!
//! Invariant: a file comes back only under a name of the list below, so that a copy can never write anywhere else.

use super::Error;
use crate::data_dir::{DataDir, private_file};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sendense_catalog::Essentials;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

const VERSION: u32 = 1;

/// What 64 MiB of compressed JSON can become without being a trap; the copy of the largest deployment takes some 60 MiB.
const PLAIN_BYTES_MAX: u64 = 1 << 30;

/// Files of the data directory: the key of the credentials, the plain copy of the first token, and the certificate that clients
/// and nodes know the hub by. The embedded database, the journal and sockets are the machine's. So is `hub.json`: with an id of
/// its own a recovered hub takes no repository from the old one while that one's lease runs. (Copies of earlier releases hold that
/// file; it is left in them.)
const FILES: [&str; 4] = ["key", "admin-token", "tls/certificate.pem", "tls/key.pem"];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    version: u32,
    /// The release that wrote it, for people.
    product_version: String,
    pub catalog: Essentials,
    files: BTreeMap<String, String>,
}

impl Contents {
    /// Takes everything together.
    pub fn gather(catalog: Essentials, data_dir: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = data_dir.join(name);
            let read = private_file::read(&path).map_err(|source| Error::File { path, source })?;
            if let Some(file) = read {
                files.insert(name.to_owned(), STANDARD.encode(file.bytes));
            }
        }
        Ok(Self { version: VERSION, product_version: env!("CARGO_PKG_VERSION").to_owned(), catalog, files })
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::default());
        serde_json::to_writer(&mut packed, self).map_err(|error| Error::Contents(error.to_string()))?;
        packed.flush().and_then(|()| packed.finish()).map_err(|error| Error::Contents(error.to_string()))
    }

    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut plain = Vec::new();
        let read = GzDecoder::new(bytes).take(PLAIN_BYTES_MAX + 1).read_to_end(&mut plain);
        read.map_err(|error| Error::Contents(error.to_string()))?;
        if plain.len() as u64 > PLAIN_BYTES_MAX {
            return Err(Error::Contents(format!("it holds more than {PLAIN_BYTES_MAX} bytes")));
        }
        // The version alone first: a later one may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
            product_version: String,
        }
        let unreadable = |error: serde_json::Error| Error::Contents(error.to_string());
        let Versioned { version, product_version } = serde_json::from_slice(&plain).map_err(unreadable)?;
        if version != VERSION {
            let why = format!("release {product_version} wrote it with version {version}; this one knows {VERSION}");
            return Err(Error::Contents(why));
        }
        serde_json::from_slice(&plain).map_err(unreadable)
    }

    /// Writes the files into a data directory that has none of them.
    pub fn put_files(&self, data_dir: &DataDir) -> Result<(), Error> {
        for name in FILES {
            let Some(text) = self.files.get(name) else { continue };
            let bytes = STANDARD.decode(text).map_err(|error| Error::Contents(format!("file {name}: {error}")))?;
            let path = data_dir.path().join(name);
            private_file::create(&path, &bytes).map_err(|source| Error::File { path, source })?;
        }
        Ok(())
    }
}
