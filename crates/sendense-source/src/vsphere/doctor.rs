//! Whether this host can read and write vSphere's disks, looked at without a server, a source or a hub.
//!
//! What lives here: the checks, in the order in which one needs the other, each with what to do. What does not: the account
//! and its privileges, which only the server knows (`Source::test`).

use super::library::{self, FILTERS, Library, TOOL, TOOL_PACKAGE};
use crate::child::{self, Spec};
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long nbdkit may take to say what it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// What a plugin or a library is asked for, and who has it.
const PLUGIN_ADVICE: &str = "install the package nbdkit-plugin-vddk (Debian 13 and later, contrib), or name its file";

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What: `nbdkit`, `vddk plugin` …
    pub what: &'static str,
    /// What was found, or what is wrong.
    pub told: String,
    /// What to do, where something is wrong.
    pub advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, told: impl Into<String>) -> Self {
        Self { what, told: told.into(), advice: None }
    }

    fn bad(what: &'static str, told: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, told: told.into(), advice: Some(advice.into()) }
    }

    fn failed(what: &'static str, error: &Error, advice: &str) -> Self {
        Self::bad(what, sendense_block::error::chain(error), error.hint.clone().unwrap_or_else(|| advice.to_owned()))
    }
}

/// Looks at everything; fails only where the question itself makes no sense. `libdir`: the folder
/// `vmware-vix-disklib-distrib`, none for where nbdkit's plugin looks by itself.
pub fn examine(
    libdir: Option<PathBuf>,
    plugin: Option<PathBuf>,
    transports: Option<String>,
    cancel: &Cancel,
) -> Result<Vec<Finding>> {
    let library = Library::new(libdir, plugin, transports).map_err(|why| Error::new(Kind::Invalid, why))?;
    let mut findings = Vec::new();
    let config = match ask(&["--dump-config"], cancel) {
        Ok(config) => config,
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) => {
            findings.push(Finding::failed("nbdkit", &error, "install the package nbdkit"));
            // Nothing else can be asked.
            return Ok(findings);
        }
    };
    findings.push(Finding::good("nbdkit", config.value("version").unwrap_or("of a version that it does not tell")));
    findings.push(filters(&config));
    let plugin = match library.plugin() {
        Ok(plugin) => plugin,
        Err(error) => {
            findings.push(Finding::failed("vddk plugin", &error, PLUGIN_ADVICE));
            return Ok(findings);
        }
    };
    let said = match ask(&["--dump-plugin", &plugin], cancel) {
        Ok(said) if said.value("name") == Some("vddk") => said,
        Ok(_) => {
            findings.push(Finding::bad("vddk plugin", format!("{plugin} is another plugin"), PLUGIN_ADVICE));
            return Ok(findings);
        }
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) => {
            findings.push(Finding::failed(
                "vddk plugin",
                &library::explained(&error.message).unwrap_or(error),
                PLUGIN_ADVICE,
            ));
            return Ok(findings);
        }
    };
    let (version, path) = (said.value("version").unwrap_or("?"), said.value("path").unwrap_or(&plugin));
    findings.push(Finding::good("vddk plugin", format!("{version}, {path}")));
    let scratch = Scratch::make()?;
    vddk(&library, &said, &scratch.0, &mut findings, cancel)?;
    Ok(findings)
}

/// The library: its file, whether it can be loaded, what it offers.
fn vddk(library: &Library, plugin: &Said, scratch: &Path, findings: &mut Vec<Finding>, cancel: &Cancel) -> Result<()> {
    const ADVICE: &str =
        "download VDDK 7, 8 or 9 from VMware (Broadcom) and name its folder with --vddk-libdir; see docs/vsphere.md";
    let libdir = match library.libdir().or(plugin.value("vddk_default_libdir").map(Path::new)) {
        Some(libdir) => libdir.to_path_buf(),
        None => {
            findings.push(Finding::bad("VDDK", "no folder is named, and the plugin knows none", ADVICE));
            return Ok(());
        }
    };
    // By its folder also where the plugin would find it: a library of 9 needs the name that the plugin knows.
    let asked = library.with_libdir(&libdir);
    let name = match library::file(&libdir) {
        Ok(name) => name,
        Err(error) => {
            findings.push(Finding::failed("VDDK", &error, ADVICE));
            return Ok(());
        }
    };
    let newer = if library::is_newer(name) { "; the plugin gets it under the name that it knows" } else { "" };
    findings.push(Finding::good("VDDK", format!("{}{newer}", libdir.join("lib64").join(name).display())));
    let arguments = match asked.arguments(scratch) {
        Ok(arguments) => arguments,
        Err(error) => {
            findings.push(Finding::failed("VDDK", &error, ADVICE));
            return Ok(());
        }
    };
    let words: Vec<&str> = ["--dump-plugin"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let said = match ask(&words, cancel) {
        Ok(said) => said,
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) => {
            findings.push(Finding::failed("VDDK loads", &library::explained(&error.message).unwrap_or(error), ADVICE));
            return Ok(());
        }
    };
    let Some(version) = said.value("vddk_library_version") else {
        let advice = "is it of this processor, and is its folder complete? `ldd` of the file says what it lacks";
        findings.push(Finding::bad("VDDK loads", "nbdkit's plugin cannot load it", advice));
        return Ok(());
    };
    findings.push(Finding::good("VDDK loads", format!("release {version}")));
    let offered = said.value("vddk_transport_modes").unwrap_or_default();
    let lacking: Vec<&str> =
        library.transports().split(':').filter(|mode| !offered.split(':').any(|one| one == *mode)).collect();
    findings.push(match lacking.as_slice() {
        [] => Finding::good("transports", format!("{} of {offered}", library.transports())),
        lacking => {
            let told = format!("{} not among what VDDK offers: {offered:?}", lacking.join(", "));
            Finding::bad("transports", told, "name others with --transports; nbdssl works everywhere")
        }
    });
    Ok(())
}

/// The filters that disks are served through.
fn filters(config: &Said) -> Finding {
    let Some(folder) = config.value("filterdir") else {
        return Finding::bad("filters", "nbdkit does not say where its filters are", "install the package nbdkit");
    };
    let is_missing = |name: &&&str| !Path::new(folder).join(format!("nbdkit-{name}-filter.so")).exists();
    let missing: Vec<&str> = FILTERS.iter().filter(is_missing).copied().collect();
    match missing.as_slice() {
        [] => Finding::good("filters", FILTERS.join(", ")),
        missing => {
            let told = format!("{folder} lacks {}", missing.join(", "));
            Finding::bad("filters", told, "install the package nbdkit")
        }
    }
}

/// Lines of `name=value`.
struct Said(String);

impl Said {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

fn ask(arguments: &[&str], cancel: &Cancel) -> Result<Said> {
    let outcome = child::run(&Spec::new(TOOL, TOOL_PACKAGE).deadline(ASK_TIMEOUT).args(arguments), cancel)?;
    Ok(Said(String::from_utf8_lossy(&outcome.stdout).into_owned()))
}

/// A folder for the links that VDDK 9 needs, for as long as it is looked at.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("sendense-doctor-{}", uuid::Uuid::new_v4()));
        // Made by nobody else before: the name is random, and one that exists is an error.
        DirBuilder::new().mode(0o700).create(&folder).map_err(|error| {
            Error::new(Kind::Failed, format!("make the folder {}", folder.display())).caused_by(error)
        })?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
