//! VDDK and nbdkit's vddk plugin: where they are, whether they may be loaded, whether they work.
//!
//! What lives here: the user's library (VMware's licence does not let us bring it), the plugin, their check. What does not:
//! the running nbdkit (`kit`).
//!
//! Invariant: what an API caller can name is not code that runs here unless the administrator of this host put it there: a
//! library or plugin that somebody other than root or our own user could change is refused.

use crate::child::{self, Spec};
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program that serves disks.
pub(super) const TOOL: &str = "nbdkit";
/// The package that has it.
pub(super) const TOOL_PACKAGE: &str = "nbdkit";
/// The name of VDDK's library that the plugin looks for, newest first; it is told nothing of 9 and later.
const KNOWN: [&str; 3] = ["libvixDiskLib.so.8", "libvixDiskLib.so.7", "libvixDiskLib.so.6"];
/// What VDDK 9 calls it. Its calls are those of 8 (as others have found who use it under that name).
const NEWER: &str = "libvixDiskLib.so.9";
/// nbdkit's filters that disks are served through.
pub(super) const FILTERS: [&str; 2] = ["exitlast", "cacheextents"];
/// How long the plugin may take to load the library and say what it is.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// The library and the plugin.
#[derive(Debug, Clone)]
pub(super) struct Library {
    libdir: Option<PathBuf>,
    plugin: Option<PathBuf>,
    transports: String,
}

impl Library {
    /// Looks at the words only; files are looked at when they are used.
    pub fn new(
        libdir: Option<PathBuf>,
        plugin: Option<PathBuf>,
        transports: Option<String>,
    ) -> std::result::Result<Self, String> {
        if let Some(path) = libdir.iter().chain(&plugin).find(|path| !path.is_absolute()) {
            return Err(format!("{} is not an absolute path", path.display()));
        }
        // Explicit, because VDDK has been seen to crash while it tries what it was not told to leave.
        let transports = transports.unwrap_or_else(|| "nbdssl".into());
        let known = |mode: &str| matches!(mode, "nbdssl" | "nbd" | "hotadd" | "san" | "file");
        if !transports.split(':').all(known) {
            return Err(format!("transports {transports:?}: nbdssl, nbd, hotadd and san are known, joined by colons"));
        }
        Ok(Self { libdir, plugin, transports })
    }

    /// What nbdkit is told of them: the plugin first, then its options.
    pub fn arguments(&self, run_dir: &Path) -> Result<Vec<String>> {
        let mut arguments = vec![self.plugin()?];
        if let Some(libdir) = &self.libdir {
            arguments.push(format!("libdir={}", text(&self.prepared(libdir, run_dir)?)?));
        }
        Ok(arguments)
    }

    /// The plugin as nbdkit is told it: its file, or its name where nbdkit finds it.
    pub fn plugin(&self) -> Result<String> {
        match &self.plugin {
            Some(path) => {
                trusted(path)?;
                text(path)
            }
            None => Ok("vddk".into()),
        }
    }

    /// The library's folder, where it was named.
    pub fn libdir(&self) -> Option<&Path> {
        self.libdir.as_deref()
    }

    /// The same with that folder.
    pub fn with_libdir(&self, libdir: &Path) -> Self {
        Self { libdir: Some(libdir.to_path_buf()), ..self.clone() }
    }

    /// The transport modes to use.
    pub fn transports(&self) -> &str {
        &self.transports
    }

    /// The library's folder as the plugin wants it. For VDDK 9 that is a folder of ours that leads to the user's, in which the
    /// library has the name that the plugin knows.
    fn prepared(&self, libdir: &Path, run_dir: &Path) -> Result<PathBuf> {
        let name = file(libdir)?;
        if !is_newer(name) {
            return Ok(libdir.to_path_buf());
        }
        let lib64 = libdir.join("lib64");
        let newer = lib64.join(name);
        let name = blake3::hash(libdir.as_os_str().as_encoded_bytes()).to_hex();
        let shim = run_dir.join(format!("vddk-{}", &name[..16]));
        let failed = |error: std::io::Error| {
            Error::new(Kind::Failed, format!("make the folder {}", shim.display())).caused_by(error)
        };
        fs::create_dir_all(shim.join("lib64")).map_err(failed)?;
        let lead = |to: PathBuf, at: PathBuf| match symlink(to, at) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Ok(()),
        };
        for (from, below) in [(libdir, shim.clone()), (lib64.as_path(), shim.join("lib64"))] {
            for entry in fs::read_dir(from).map_err(failed)?.flatten().filter(|entry| entry.file_name() != "lib64") {
                lead(entry.path(), below.join(entry.file_name()))?;
            }
        }
        lead(newer, shim.join("lib64").join(KNOWN[0]))?;
        Ok(shim)
    }

    /// What is wrong with them, each with what to do; nothing where all is well. Loads the library for it.
    pub fn look(&self, run_dir: &Path, cancel: &Cancel) -> Result<Vec<String>> {
        let arguments = match self.arguments(run_dir) {
            Ok(arguments) => arguments,
            Err(error) => return Ok(vec![error.to_string()]),
        };
        let (plugin, options) = arguments.split_first().map_or(("vddk", &[][..]), |(plugin, rest)| (plugin, rest));
        let spec = Spec::new(TOOL, TOOL_PACKAGE).deadline(LOOK_TIMEOUT);
        let spec = spec.arg("--dump-plugin").arg(plugin).args(options);
        match child::run(&spec, cancel) {
            Ok(outcome) => {
                let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
                let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                let mut wrong = Vec::new();
                if value("vddk_library_version").is_none() {
                    wrong.push("nbdkit's vddk plugin does not say which VDDK it has loaded".to_owned());
                }
                let modes = value("vddk_transport_modes").unwrap_or_default();
                for mode in self.transports.split(':').filter(|mode| !modes.split(':').any(|one| one == *mode)) {
                    wrong.push(format!("VDDK does not offer the transport {mode}; it offers {modes:?}"));
                }
                Ok(wrong)
            }
            Err(error) if error.kind == Kind::Cancelled => Err(error),
            Err(error) => Ok(vec![explained(&error.to_string()).unwrap_or(error).to_string()]),
        }
    }
}

/// The name of the library's file in such a folder, which nobody else may have put there.
pub(super) fn file(libdir: &Path) -> Result<&'static str> {
    let lib64 = libdir.join("lib64");
    trusted(libdir)?;
    trusted(&lib64)?;
    let name = KNOWN.into_iter().chain([NEWER]).find(|name| lib64.join(name).exists()).ok_or_else(|| {
        Error::new(Kind::MissingTool, format!("{} holds no libvixDiskLib", lib64.display())).hint(
            "give the folder vmware-vix-disklib-distrib as VMware's archive unpacks it, and look which release it is",
        )
    })?;
    trusted(&lib64.join(name))?;
    Ok(name)
}

/// Whether the plugin does not know that name.
pub(super) fn is_newer(name: &str) -> bool {
    name == NEWER
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{} is not plain text", path.display())))
}

/// Refuses what somebody else could exchange.
fn trusted(path: &Path) -> Result<()> {
    let ours = rustix::process::geteuid().as_raw();
    let found = fs::metadata(path).map_err(|error| {
        Error::new(Kind::MissingTool, format!("find {}", path.display()))
            .caused_by(error)
            .hint("VDDK is VMware's and must be downloaded from them; see docs/vsphere.md")
    })?;
    let safe = |found: &Metadata| (found.uid() == 0 || found.uid() == ours) && found.mode() & 0o022 == 0;
    let parent = path.parent().map_or(Path::new("/"), |parent| parent);
    // A sticky folder (/tmp) lets nobody exchange what is another's.
    let above = fs::metadata(parent).is_ok_and(|found| safe(&found) || found.mode() & 0o1000 != 0);
    if safe(&found) && above {
        return Ok(());
    }
    let message = format!("{} could be changed by others than root and this service", path.display());
    Err(Error::new(Kind::Unsafe, message).hint("give it to root, writable by nobody else"))
}

/// What nbdkit and VDDK complain of, as an error that a person can act on; none when it is nothing that is known.
pub(super) fn explained(complaint: &str) -> Option<Error> {
    let has = |text: &str| complaint.contains(text);
    let (kind, message, hint) = if has("cannot open plugin") {
        (
            Kind::MissingTool,
            "nbdkit's vddk plugin is not installed",
            "install the package nbdkit-plugin-vddk (Debian 13, contrib), or name its file",
        )
    } else if has("libvixDiskLib") && has("cannot open shared object file") || has("required VDDK symbol") {
        (
            Kind::MissingTool,
            "VMware's library VDDK cannot be loaded",
            "download VDDK 7 or 8 from VMware and name the folder vmware-vix-disklib-distrib; see docs/vsphere.md",
        )
    } else if has("unknown filter") || has("cannot open filter") {
        (Kind::MissingTool, "a filter of nbdkit is missing", "install the package nbdkit")
    } else if has("INSUFFICIENT_RESOURCES") || has("Too many") || has("HostBusy") {
        (
            Kind::Busy,
            "the host gives no more sessions for reading disks",
            "back up fewer disks at once, or lower the source's number of sessions",
        )
    } else if has("Insufficient permissions in the host operating system") || has("incorrect user name or password") {
        (
            Kind::Denied,
            "the account may not read disks",
            "grant `Virtual machine > Provisioning > Allow read-only disk access` and `Allow virtual machine download`",
        )
    } else if has("The server refused connection") || has("SSL") || has("thumbprint") {
        (
            Kind::Unavailable,
            "VDDK is refused by the server",
            "check that port 443 of the vCenter and port 902 of its hosts can be reached, and the certificate",
        )
    } else if has("A file was not found") || has("You do not have access rights to this file") {
        (
            Kind::Disturbed,
            "VDDK cannot open the snapshot's disk",
            "was the snapshot removed, or does another program hold the disk?",
        )
    } else {
        return None;
    };
    Some(Error::new(kind, format!("{message}: {complaint}")).hint(hint))
}

/// True when the text names a place that could be taken for an option of the plugin.
pub(super) fn is_plain(word: &str) -> bool {
    !word.is_empty() && !OsStr::new(word).as_encoded_bytes().iter().any(u8::is_ascii_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn library(dir: &Path) -> Library {
        Library::new(Some(dir.to_path_buf()), None, None).unwrap()
    }

    #[test]
    fn version_nine_gets_the_name_that_the_plugin_knows() {
        let dir = tempfile::tempdir().unwrap();
        let (libdir, run) = (dir.path().join("vddk"), dir.path().join("run"));
        fs::create_dir_all(libdir.join("lib64")).unwrap();
        let missing = library(&libdir).arguments(&run).unwrap_err();
        assert_eq!(missing.kind, Kind::MissingTool);
        for name in [NEWER, "libssl.so.3"] {
            fs::write(libdir.join("lib64").join(name), name).unwrap();
        }
        for _ in 0..2 {
            let arguments = library(&libdir).arguments(&run).unwrap();
            let shim = PathBuf::from(arguments[1].strip_prefix("libdir=").unwrap());
            assert_eq!(fs::read_to_string(shim.join("lib64").join(KNOWN[0])).unwrap(), NEWER);
            assert_eq!(fs::read_to_string(shim.join("lib64/libssl.so.3")).unwrap(), "libssl.so.3");
        }
        fs::write(libdir.join("lib64").join(KNOWN[0]), "").unwrap();
        assert_eq!(library(&libdir).arguments(&run).unwrap()[1], format!("libdir={}", libdir.display()));
    }

    #[test]
    fn what_others_could_change_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let libdir = dir.path().join("vddk");
        fs::create_dir_all(libdir.join("lib64")).unwrap();
        let file = libdir.join("lib64").join(KNOWN[0]);
        fs::write(&file, "").unwrap();
        assert!(library(&libdir).arguments(dir.path()).is_ok());
        for place in [&libdir, &libdir.join("lib64"), &file] {
            let before = fs::metadata(place).unwrap().permissions();
            fs::set_permissions(place, fs::Permissions::from_mode(0o777)).unwrap();
            assert_eq!(library(&libdir).arguments(dir.path()).unwrap_err().kind, Kind::Unsafe, "{}", place.display());
            fs::set_permissions(place, before).unwrap();
        }
    }

    #[test]
    fn complaints_are_explained() {
        for (complaint, kind) in [
            ("nbdkit: cannot open plugin 'vddk': x: cannot open shared object file", Kind::MissingTool),
            ("VixDiskLib_Open: [ds] a/b.vmdk: NBD_ERR_INSUFFICIENT_RESOURCES", Kind::Busy),
            ("VixDiskLib_ConnectEx: Insufficient permissions in the host operating system", Kind::Denied),
            ("VixDiskLib_Open: [ds] a.vmdk: A file was not found", Kind::Disturbed),
        ] {
            assert_eq!(explained(complaint).unwrap().kind, kind, "{complaint}");
        }
        assert!(explained("something else").is_none());
    }
}
