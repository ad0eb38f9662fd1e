//! The folder of hooks: which programs a policy may name.
//!
//! A hook runs with all rights of the hub, so who may write one may do all that the hub may. Invariant: a program is run only
//! when nobody but root and the hub's own user could have put it there: it, its folder and all folders above belong to one of
//! these, and no one else may write to them (above, a sticky folder such as `/tmp` will do).

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Group and others may write.
const OTHERS_WRITE: u32 = 0o022;
/// Only the owner of an entry may replace it.
const STICKY: u32 = 0o1000;
const ANYBODY_RUNS: u32 = 0o111;

/// Why hooks, or one of them, are not trusted. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no folder.
    #[error("this hub was started without --hooks-dir")]
    NoFolder,
    /// A name that no hook can have.
    #[error(
        "{0:?} is not the name of a hook: 1 to 64 characters of a-z A-Z 0-9 . _ - are allowed, the first a letter or digit"
    )]
    Name(String),
    /// Something cannot be looked at.
    #[error("{} cannot be looked at", path.display())]
    Look {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{} is {what}", path.display())]
    Kind {
        /// What.
        path: PathBuf,
        /// Why it is none.
        what: &'static str,
    },
    /// A link is on the way.
    #[error("{} leads to {} by a link or \"..\", which may come to lead elsewhere; name that folder itself", path.display(), leads_to.display())]
    Link {
        /// What was named.
        path: PathBuf,
        /// What it is.
        leads_to: PathBuf,
    },
    /// Others than root and the hub's user own it.
    #[error("{} belongs to user {uid}; only root and the hub's own user may own hooks and the folders above them", path.display())]
    Owner {
        /// What.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Others may change it.
    #[error("{} may be written by others than its owner (mode {mode:o}); take that away: chmod go-w", path.display())]
    Writable {
        /// What.
        path: PathBuf,
        /// Who may do what.
        mode: u32,
    },
}

/// The folder of hooks, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place(Option<PathBuf>);

impl Place {
    /// Looks whether the folder may be trusted.
    pub fn open(folder: Option<&Path>) -> Result<Self, Refused> {
        let Some(folder) = folder else { return Ok(Self(None)) };
        let look = |source| Refused::Look { path: folder.to_owned(), source };
        let leads_to = folder.canonicalize().map_err(look)?;
        // Who may write where a link lies could have it lead to a folder such as /usr/bin, which passes all that follows.
        if leads_to != folder {
            return Err(Refused::Link { path: folder.to_owned(), leads_to });
        }
        check_folder(folder)?;
        Ok(Self(Some(folder.to_owned())))
    }

    /// The folder, without links.
    pub fn folder(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// The program of a hook, when it may be run now. All is looked at anew: folders change while a hub runs.
    pub fn find(&self, name: &str) -> Result<PathBuf, Refused> {
        let folder = self.0.as_deref().ok_or(Refused::NoFolder)?;
        if !is_name(name) {
            return Err(Refused::Name(name.chars().take(80).collect()));
        }
        check_folder(folder)?;
        let path = folder.join(name);
        let found = look(&path)?;
        if !found.is_file() {
            return Err(Refused::Kind { path, what: "no regular file" });
        }
        check(&path, &found, 0)?;
        if found.mode() & ANYBODY_RUNS == 0 {
            return Err(Refused::Kind { path, what: "not executable" });
        }
        // Of another owner, or on a file system that is mounted without programs.
        if !may_run(&path) {
            return Err(Refused::Kind { path, what: "not executable by the hub's user, or where it lies" });
        }
        if interpreter(&path).is_some_and(|interpreter| !may_run(&interpreter)) {
            return Err(Refused::Kind { path, what: "a script whose interpreter, in its first line, cannot be run" });
        }
        Ok(path)
    }
}

fn may_run(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What a script says that it is run by: the first word after `#!`. None of a program, or of what cannot be read.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    // The kernel reads no more of it.
    fs::File::open(path).ok()?.take(256).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    Some(PathBuf::from(OsStr::from_bytes(words.next()?)))
}

/// One component of a path, and never an option of a tool.
fn is_name(name: &str) -> bool {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= 64 && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && name.bytes().all(may)
}

fn check_folder(folder: &Path) -> Result<(), Refused> {
    let found = look(folder)?;
    if !found.is_dir() {
        return Err(Refused::Kind { path: folder.to_owned(), what: "no folder" });
    }
    check(folder, &found, 0)?;
    for above in folder.ancestors().skip(1) {
        check(above, &look(above)?, STICKY)?;
    }
    Ok(())
}

/// Links are not followed: what one leads to may change without a word in here.
fn look(path: &Path) -> Result<Metadata, Refused> {
    fs::symlink_metadata(path).map_err(|source| Refused::Look { path: path.to_owned(), source })
}

/// Refuses what others own, or may write to unless one of the bits of `unless` is set.
fn check(path: &Path, found: &Metadata, unless: u32) -> Result<(), Refused> {
    let (uid, mode) = (found.uid(), found.mode() & 0o7777);
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(Refused::Owner { path: path.to_owned(), uid });
    }
    if mode & OTHERS_WRITE != 0 && mode & unless == 0 {
        return Err(Refused::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_what_nobody_else_could_have_put_there_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hooks");
        fs::create_dir(&folder).unwrap();
        set_mode(&folder, 0o755);
        let hook = folder.join("stop-db");
        fs::write(&hook, "#!/bin/sh\n").unwrap();
        set_mode(&hook, 0o750);
        let place = Place::open(Some(&folder)).unwrap();
        assert_eq!(place.find("stop-db").unwrap(), hook);

        for mode in [0o770, 0o757, 0o702] {
            set_mode(&hook, mode);
            assert_matches!(place.find("stop-db"), Err(Refused::Writable { .. }));
        }
        set_mode(&hook, 0o640);
        assert_matches!(place.find("stop-db"), Err(Refused::Kind { what: "not executable", .. }));
        set_mode(&hook, 0o700);
        for mode in [0o775, 0o777, 0o1777] {
            set_mode(&folder, mode);
            assert_matches!(place.find("stop-db"), Err(Refused::Writable { .. }));
            assert_matches!(Place::open(Some(&folder)), Err(Refused::Writable { .. }));
        }
        set_mode(&folder, 0o700);
        // Where others may write above it, the folder itself could be exchanged.
        set_mode(dir.path(), 0o777);
        assert_matches!(place.find("stop-db"), Err(Refused::Writable { .. }));
        set_mode(dir.path(), 0o1777);
        assert!(place.find("stop-db").is_ok(), "in a sticky one it could not");

        symlink("/bin/true", folder.join("link")).unwrap();
        fs::create_dir(folder.join("sub")).unwrap();
        for name in ["link", "sub"] {
            assert_matches!(place.find(name), Err(Refused::Kind { what: "no regular file", .. }));
        }
        assert_matches!(place.find("none"), Err(Refused::Look { .. }));
        for name in ["", ".", "..", "../stop-db", "/bin/true", "sub/x", "-x", "a b", "a\0b", &"x".repeat(65)] {
            assert_matches!(place.find(name), Err(Refused::Name(_)));
        }
        symlink(&folder, dir.path().join("by-link")).unwrap();
        for way in ["by-link", "hooks/../hooks"] {
            let named = Place::open(Some(&dir.path().join(way)));
            assert_matches!(named, Err(Refused::Link { leads_to, .. }) if leads_to == folder);
        }
        assert_matches!(Place::open(Some(&hook)), Err(Refused::Kind { what: "no folder", .. }));
        assert_matches!(Place::default().find("stop-db"), Err(Refused::NoFolder));
    }

    #[test]
    fn a_script_needs_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(Some(dir.path())).unwrap();
        let hook = dir.path().join("stop-db");
        for (text, runs) in [
            ("#!/bin/sh -e\n", true),
            ("#! /bin/sh", true),
            ("\x7fELF", true),
            ("", true),
            ("#!\n", true),
            ("#!/no/such/shell\necho x\n", false),
            ("#!/etc/passwd\n", false),
        ] {
            fs::write(&hook, text).unwrap();
            set_mode(&hook, 0o755);
            assert_eq!(place.find("stop-db").is_ok(), runs, "{text:?}");
        }
    }

    #[test]
    fn a_hook_of_somebody_else_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let other = rustix::process::geteuid().as_raw() + 1;
        let found = look(dir.path()).unwrap();
        assert!(check(dir.path(), &found, 0).is_ok());
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(other), None).unwrap();
            assert_matches!(Place::open(Some(dir.path())), Err(Refused::Owner { uid, .. }) if uid == other);
        }
    }
}
