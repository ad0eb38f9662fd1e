//! A domain's configuration as it goes into the manifest: its XML, its firmware's variables, what could not be had.
//!
//! What lives here: reading it, and taking the variables out of it again. What does not: what a restore makes of the XML.
//! Invariant: only files that lie where a firmware's variables may lie are read.

use super::Settings;
use super::domain::{Domain, Place};
use super::xml::{self, Element};
use crate::error::{Error, Kind};
use crate::model::ConfigDocument;
use crate::paths::Roots;
use base64::Engine;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most that is kept of the firmware's variables: OVMF's largest store has 528 KiB.
const NVRAM_BYTES_MAX: u64 = 4 << 20;
/// QEMU's flash on PC machines.
const FLASH_SECTOR_BYTES: usize = 4096;

/// The XML and what it points to. `places` are where the firmware's variables may lie.
pub(super) fn documents(document: String, places: &Places) -> Vec<ConfigDocument> {
    let mut documents = Vec::new();
    if let Ok(root) = xml::parse(&document, "domain") {
        documents.extend(nvram(&root, places));
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

/// Where the variables of a firmware may lie. Their file belongs to QEMU's user, who may put a link to anything in its place.
pub(super) struct Places {
    /// Libvirt's own folder for them.
    own: Option<PathBuf>,
    roots: Roots,
}

impl Places {
    /// Those of a daemon on this host: its own folder, those that the source's images may lie in, and those of the domain's
    /// own disks.
    pub fn new(settings: &Settings, domain: &Domain) -> Self {
        let own = match settings.system {
            true => Some(PathBuf::from("/var/lib/libvirt")),
            false => std::env::var_os("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
                .map(|config| config.join("libvirt")),
        };
        let own = own.filter(|folder| folder.is_absolute()).map(|folder| folder.join("qemu/nvram"));
        let layers = domain.disks.iter().filter_map(|disk| disk.layers.first());
        let beside = layers.filter_map(|layer| match &layer.place {
            Place::File(path) => path.parent().map(Path::to_owned),
            _ => None,
        });
        let roots = settings.image_dirs.iter().cloned().chain(own.clone()).chain(beside).collect();
        Self { own, roots: Roots::new(roots) }
    }
}

/// The variables of the firmware. They change only when the guest writes a boot entry; a copy made meanwhile may mix both
/// states, which the firmware's own format is made for (it writes a record and then marks it valid).
fn nvram(root: &Element, places: &Places) -> Option<ConfigDocument> {
    let os = root.child("os")?;
    let element = os.child("nvram");
    if element.is_none() && os.attribute("firmware") != Some("efi") {
        return None;
    }
    let told = |content, missing| Some(ConfigDocument { kind: "nvram".into(), content, missing });
    // What is kept are bytes that QEMU reads as they are; a format that names other files would not stay harmless.
    if let Some(format) = element.and_then(|element| element.attribute("format")).filter(|format| *format != "raw") {
        return told(None, Some(format!("they are an image of the format {format}")));
    }
    // Newer libvirt names it in <source file=…>.
    let named = element.and_then(|element| element.text().or_else(|| element.child("source")?.attribute("file")));
    // A domain that is off and whose firmware libvirt chooses names none: they are where libvirt puts them.
    let usual = || match element.and_then(|element| element.child("source")) {
        Some(_) => None,
        None => Some(places.own.as_ref()?.join(format!("{}_VARS.fd", root.child_text("name")?))),
    };
    let Some(path) = named.map(PathBuf::from).or_else(usual) else {
        return told(None, Some("the domain does not say where they are".to_owned()));
    };
    match read(&path, &places.roots) {
        Ok(bytes) => told(Some(base64::engine::general_purpose::STANDARD.encode(bytes)), None),
        Err(error) => {
            let error = sendense_block::error::chain(&error);
            told(None, Some(format!("read {}, which is allowed in the source's image_dirs: {error}", path.display())))
        }
    }
}

fn read(path: &Path, roots: &Roots) -> crate::Result<Vec<u8>> {
    let file = roots.open_read(path)?;
    let read = || -> io::Result<Vec<u8>> {
        let found = file.metadata()?;
        if !found.is_file() || found.nlink() != 1 {
            return Err(io::Error::other("it is no file, or has another name"));
        }
        let mut bytes = Vec::new();
        file.take(NVRAM_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > NVRAM_BYTES_MAX {
            return Err(io::Error::other(format!("it has more than {NVRAM_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|error| Error::new(Kind::Failed, "read it").caused_by(error))
}

/// The variables that a point holds, or a sentence that they cannot be used.
pub(super) fn variables(documents: &[ConfigDocument]) -> Option<Result<Vec<u8>, String>> {
    let text = documents.iter().find(|document| document.kind == "nvram")?.content.as_deref()?;
    // The recorded ones come from a repository's folder. QEMU takes whole sectors of flash only.
    let usable = |bytes: &Vec<u8>| {
        !bytes.is_empty() && bytes.len() as u64 <= NVRAM_BYTES_MAX && bytes.len().is_multiple_of(FLASH_SECTOR_BYTES)
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(text).ok().filter(usable);
    Some(decoded.ok_or_else(|| "the recorded variables of the firmware cannot be read; it starts with its own".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(own: &Path) -> Places {
        Places { own: Some(own.to_owned()), roots: Roots::new(vec![own.to_owned()]) }
    }

    fn domain(os: &str) -> String {
        format!("<domain><name>web</name>{os}<devices><tpm/></devices></domain>")
    }

    #[test]
    fn what_is_there_is_kept_and_what_is_not_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let file = dir.join("web_VARS.fd");
        std::fs::write(&file, "variables").unwrap();
        let named = format!("<os><nvram>{}</nvram></os>", file.display());
        let sourced = format!("<os><nvram type='file'><source file='{}'/></nvram></os>", file.display());
        for os in [&named, &sourced, "<os firmware='efi'/>"] {
            let found = documents(domain(os), &places(&dir));
            let kinds: Vec<_> = found.iter().map(|document| document.kind.as_str()).collect();
            assert_eq!(kinds, ["libvirt-domain-xml", "nvram", "vtpm-state"]);
            assert_eq!(found[1].content.as_deref(), Some("dmFyaWFibGVz"), "{os}");
        }
        let missing = |os: &str| documents(domain(os), &places(&dir)).remove(1).missing.unwrap();
        let gone = dir.join("gone").display().to_string();
        assert!(missing(&format!("<os><nvram>{gone}</nvram></os>")).contains(&gone));
        assert!(missing("<os><nvram type='block'><source dev='/dev/sda'/></nvram></os>").contains("does not say"));
        let image = named.replace("<nvram>", "<nvram format='qcow2'>");
        assert!(missing(&image).contains("qcow2"));
        assert_eq!(documents("<domain/>".into(), &places(&dir)).len(), 1);
        assert_eq!(documents(domain("<os/>"), &places(&dir)).len(), 2, "a BIOS has no variables");
    }

    #[test]
    fn what_qemus_user_could_put_in_their_place_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (own, secret) = (dir.join("nvram"), dir.join("secret"));
        std::fs::create_dir(&own).unwrap();
        std::fs::write(&secret, "of the host").unwrap();
        let file = own.join("web_VARS.fd");
        let missing = |path: &Path| {
            let os = format!("<os><nvram>{}</nvram></os>", path.display());
            let found = documents(domain(&os), &places(&own)).remove(1);
            assert_eq!(found.content, None, "{}", path.display());
            found.missing.unwrap()
        };
        std::os::unix::fs::symlink(&secret, &file).unwrap();
        missing(&file);
        std::fs::remove_file(&file).unwrap();
        std::fs::hard_link(&secret, &file).unwrap();
        missing(&file);
        std::fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        missing(&file);
        missing(&own);
        missing(&own.join("../secret"));
        assert!(missing(&secret).contains("image_dirs"));
        std::fs::remove_file(&file).unwrap();
        std::fs::File::create(&file).unwrap().set_len(NVRAM_BYTES_MAX + 1).unwrap();
        assert!(missing(&file).contains("more than"));
    }

    #[test]
    fn recorded_variables_are_whole_sectors_or_nothing() {
        let recorded = |bytes: &[u8]| {
            let content = base64::engine::general_purpose::STANDARD.encode(bytes);
            variables(&[ConfigDocument { kind: "nvram".into(), content: Some(content), missing: None }]).unwrap()
        };
        assert_eq!(recorded(&[7; 8192]).unwrap(), [7; 8192]);
        for bytes in [&[][..], &[1; 4095], &vec![0; NVRAM_BYTES_MAX as usize + FLASH_SECTOR_BYTES]] {
            assert!(recorded(bytes).unwrap_err().contains("cannot be read"));
        }
        let torn = ConfigDocument { kind: "nvram".into(), content: Some("?".into()), missing: None };
        assert!(variables(&[torn]).unwrap().is_err());
        let noted = ConfigDocument { kind: "nvram".into(), content: None, missing: Some("away".into()) };
        assert!(variables(&[noted]).is_none() && variables(&[]).is_none());
    }
}
