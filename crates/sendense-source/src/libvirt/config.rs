//! A domain's configuration as it goes into the manifest: its XML, its firmware's variables, what could not be had.
//!
//! What lives here: reading it. What does not: what a restore makes of it.

use super::xml::{self, Element};
use crate::model::ConfigDocument;
use base64::Engine;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

/// The most that is kept of the firmware's variables: OVMF's largest store has 528 KiB.
const NVRAM_BYTES_MAX: u64 = 4 << 20;

/// The XML and what it points to.
pub(super) fn documents(document: String) -> Vec<ConfigDocument> {
    let mut documents = Vec::new();
    if let Ok(root) = xml::parse(&document, "domain") {
        documents.extend(root.child("os").and_then(|os| os.child("nvram")).map(nvram));
        let tpm = root.child("devices").and_then(|devices| devices.child("tpm"));
        documents.extend(tpm.map(|_| ConfigDocument {
            kind: "vtpm-state".into(),
            content: None,
            missing: Some("the state of a virtual TPM is not read: what it has sealed is lost with the machine".into()),
        }));
    }
    documents.insert(0, ConfigDocument { kind: "libvirt-domain-xml".into(), content: Some(document), missing: None });
    documents
}

/// The variables of the firmware. They change only when the guest writes a boot entry; a copy made meanwhile may mix both
/// states, which the firmware's own format is made for (it writes a record and then marks it valid).
fn nvram(element: &Element) -> ConfigDocument {
    let read = |path: &str| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A FIFO is opened without waiting for its writer, and then refused.
        let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        file.take(NVRAM_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > NVRAM_BYTES_MAX {
            return Err(io::Error::other(format!("it has more than {NVRAM_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    // Newer libvirt names it in <source file=…>.
    let path = element.text().or_else(|| element.child("source")?.attribute("file"));
    let (content, missing) = match path.map(|path| (path, read(path))) {
        Some((_, Ok(bytes))) => (Some(base64::engine::general_purpose::STANDARD.encode(bytes)), None),
        Some((path, Err(error))) => (None, Some(format!("read {path}: {error}"))),
        None => (None, Some("the domain does not say where they are".to_owned())),
    };
    ConfigDocument { kind: "nvram".into(), content, missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept_and_what_is_not_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "variables").unwrap();
        let path = file.path().display();
        let found = documents(format!("<domain><os><nvram>{path}</nvram></os><devices><tpm/></devices></domain>"));
        let kinds: Vec<_> = found.iter().map(|document| document.kind.as_str()).collect();
        assert_eq!(kinds, ["libvirt-domain-xml", "nvram", "vtpm-state"]);
        assert_eq!(found[1].content.as_deref(), Some("dmFyaWFibGVz"));
        let gone = documents("<domain><os><nvram><source file='/no/such/file'/></nvram></os></domain>".into());
        assert!(gone[1].missing.as_deref().unwrap().contains("/no/such/file"));
        assert_eq!(documents("<domain/>".into()).len(), 1);
    }
}
