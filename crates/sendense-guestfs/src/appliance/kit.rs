//! What an appliance is made of on this machine: the kernel, the storage daemon, and the first files of the guest.
//!
//! The first files are this very program as the guest's agent, its libraries, kernel modules, and LVM's tool where it is
//! installed. They are put together once per process and kept as a file; nothing of a disk is in them.
//!
//! Invariant: every path is one of this machine, found here and never taken from a request.

use super::cpio::Archive;
use super::elf;
use crate::error::{Error, Result};
use crate::wire::codec::{self, Decoder, Encoder};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Modules of the guest's kernel, each with a reason to be loaded; what they need comes with them, but for F2FS's checksum, which
/// no table names.
pub const MODULES: [(&str, &[&str]); 4] = [
    ("disk", &["virtio_blk"]),
    (
        "lvm",
        &[
            "dm-mod",
            "dm-snapshot",
            "dm-thin-pool",
            "dm-mirror",
            "raid1",
            "raid10",
            "dm-raid",
            "dm-cache-smq",
            "dm-cache",
        ],
    ),
    ("names", &["nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859-1"]),
    ("files", &["vfat", "isofs", "udf", "crc32_generic", "f2fs", "nilfs2", "hfsplus", "squashfs"]),
];
/// Where the guest finds its modules.
pub const MODULES_FOLDER: &str = "/modules";
/// Where this machine may have LVM's tool.
const LVM_PLACES: [&str; 2] = ["/usr/sbin/lvm", "/sbin/lvm"];
/// Where the guest finds it.
pub const LVM: &str = "/sbin/lvm";

/// File systems that the guest's kernel reads, as a volume's kind names them.
pub const FILE_SYSTEMS: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "iso9660", "udf", "f2fs", "nilfs2", "hfsplus", "squashfs", "jfs",
    "reiserfs",
];

/// The kit of a process: put together when it is first needed, and anew when one of its parts was replaced, as an upgrade does.
#[derive(Debug)]
pub struct Kits {
    folder: PathBuf,
    kept: Mutex<Option<(Kit, Seen)>>,
}

/// What was seen of the files that a kit was made of: length and time of change.
type Seen = Vec<Option<(u64, SystemTime)>>;

impl Kits {
    /// Kits whose first files lie in `folder`, under one name.
    pub fn new(folder: PathBuf) -> Kits {
        Kits { folder, kept: Mutex::default() }
    }

    /// A kit that fits this machine as it is.
    ///
    /// # Errors
    /// As [`Kit::prepare`]; it is tried again the next time.
    pub fn get(&self) -> Result<Kit> {
        // What is in it is set whole.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kit, seen)) = &*kept
            && kit.look() == *seen
        {
            return Ok(kit.clone());
        }
        let kit = Kit::prepare(&self.folder)?;
        let seen = kit.look();
        *kept = Some((kit.clone(), seen));
        Ok(kit)
    }
}

/// The parts, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kit {
    /// User Mode Linux.
    pub kernel: PathBuf,
    /// The program that serves the disk.
    pub daemon: PathBuf,
    /// The libraries of both.
    pub libraries: Vec<PathBuf>,
    /// The guest's first files.
    pub first_files: PathBuf,
}

impl Kit {
    /// Finds the parts and writes the first files into `folder`, whose earlier ones are replaced.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the Debian package that is missing; [`Error::Io`].
    pub fn prepare(folder: &Path) -> Result<Kit> {
        let kernel = find(&["/usr/bin/linux.uml"], "user-mode-linux")?;
        let daemon = find(&["/usr/bin/qemu-storage-daemon"], "qemu-system-common")?;
        let mut libraries = elf::libraries(&kernel)?;
        libraries.extend(elf::libraries(&daemon)?);
        libraries.sort();
        libraries.dedup();
        let first_files = folder.join("appliance-files.cpio");
        let keep = |error: io::Error| Error::Io(format!("write {}: {error}", first_files.display()));
        // An appliance may start from the old file meanwhile: a new one takes its place whole.
        let partial = folder.join("appliance-files.partial");
        let to = BufWriter::new(File::create(&partial).map_err(keep)?);
        archive(&modules_folder(&kernel)?, to)?;
        fs::rename(&partial, &first_files).map_err(keep)?;
        Ok(Kit { kernel, daemon, libraries, first_files })
    }

    fn look(&self) -> Seen {
        let tool = LVM_PLACES.iter().map(Path::new);
        let parts = [&self.kernel, &self.daemon, &self.first_files].into_iter().chain(&self.libraries);
        let parts = parts.map(PathBuf::as_path).chain(tool);
        parts.map(|part| fs::metadata(part).ok().and_then(|part| Some((part.len(), part.modified().ok()?)))).collect()
    }

    /// For the process that starts the appliance.
    pub fn encode(&self, to: &mut Encoder) {
        let path = |to: &mut Encoder, path: &Path| {
            to.bytes(path.as_os_str().as_encoded_bytes());
        };
        path(to, &self.kernel);
        path(to, &self.daemon);
        path(to, &self.first_files);
        to.u32(self.libraries.len() as u32);
        self.libraries.iter().for_each(|library| path(to, library));
    }

    /// What [`Kit::encode`] wrote.
    pub fn decode(from: &mut Decoder<'_>) -> codec::Result<Kit> {
        /// The longest path of the system.
        const PATH_MAX: usize = 4096;
        /// The two programs have 25 libraries.
        const LIBRARIES_MAX: usize = 512;
        let path = |from: &mut Decoder<'_>| from.text(PATH_MAX).map(PathBuf::from);
        let (kernel, daemon, first_files) = (path(from)?, path(from)?, path(from)?);
        Ok(Kit { kernel, daemon, first_files, libraries: from.list(LIBRARIES_MAX, path)? })
    }
}

fn find(places: &[&str], package: &str) -> Result<PathBuf> {
    let found = places.iter().map(PathBuf::from).find(|place| place.is_file());
    found.ok_or_else(|| {
        Error::unsupported(format!("{} is missing: install the Debian package {package}", places.join(" or ")))
    })
}

/// The modules that were built with this kernel; any other would not load.
fn modules_folder(kernel: &Path) -> Result<PathBuf> {
    let run = Command::new(kernel).arg("--version").env_clear().output();
    let run = run.map_err(|error| Error::unsupported(format!("run {}: {error}", kernel.display())))?;
    let version = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    let folder = Path::new("/usr/lib/uml/modules").join(&version);
    if version.is_empty() || !folder.join("modules.dep").is_file() {
        return Err(Error::unsupported(format!(
            "{} has no modules in {}: reinstall the Debian package user-mode-linux",
            kernel.display(),
            folder.display()
        )));
    }
    Ok(folder)
}

/// Writes the guest's first files. They are copied and never held: a hub's memory does not grow with its own program.
fn archive(modules: &Path, to: impl Write) -> Result<()> {
    let fault = |what: &Path, error: io::Error| Error::Io(format!("pack {} for the guest: {error}", what.display()));
    let own = |error| fault(Path::new("folders"), error);
    let mut archive = Archive::new(to);
    for folder in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc/lvm"] {
        archive.folder(folder).map_err(own)?;
    }
    // The kernel opens it for the first process before anything is mounted.
    archive.device("/dev/console", 5, 1).map_err(own)?;
    let mut programs = vec![(PathBuf::from(format!("/proc/{}/exe", std::process::id())), "/init".to_owned())];
    programs.extend(find(&LVM_PLACES, "lvm2").ok().map(|lvm| (lvm, LVM.to_owned())));
    let mut libraries = BTreeSet::new();
    for (program, _) in &programs {
        libraries.extend(elf::libraries(program)?);
    }
    for library in libraries {
        let place = library.to_str().ok_or_else(|| Error::unsupported("a library's path is not text"))?.to_owned();
        programs.push((library, place));
    }
    for (program, place) in programs {
        let packed = File::open(&program).and_then(elf::loaded_part);
        packed.and_then(|(part, size)| archive.file(&place, part, size)).map_err(|error| fault(&program, error))?;
    }
    let table = modules.join("modules.dep");
    let table = fs::read(&table).map_err(|error| fault(&table, error))?;
    let table = String::from_utf8_lossy(&table);
    let mut packed = BTreeSet::new();
    for (reason, names) in MODULES {
        let mut order = String::new();
        for file in names.iter().flat_map(|name| with_dependencies(&table, name)) {
            let name = file.rsplit('/').next().unwrap_or(&file).to_owned();
            if packed.insert(name.clone()) {
                let module = modules.join(&file);
                let content = File::open(&module).and_then(|content| Ok((content.metadata()?.len(), content)));
                content
                    .and_then(|(size, content)| archive.file(&format!("{MODULES_FOLDER}/{name}"), content, size))
                    .map_err(|error| fault(&module, error))?;
            }
            order += &format!("{name}\n");
        }
        let size = order.len() as u64;
        archive.file(&format!("{MODULES_FOLDER}/{reason}.list"), order.as_bytes(), size).map_err(own)?;
    }
    archive.finish().map(|_| ()).map_err(own)
}

/// A module's file behind those it needs, as `modules.dep` lists them: the last in a line is needed by those before it. Empty
/// for what is built in, or was left out of this kernel.
fn with_dependencies(table: &str, name: &str) -> Vec<String> {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let by_name: BTreeMap<&str, (&str, &str)> = lines
        .filter_map(|(file, needs)| Some((file.rsplit('/').next()?.strip_suffix(".ko")?, (file, needs))))
        .collect();
    let Some((file, needs)) = by_name.get(name) else { return Vec::new() };
    let mut order: Vec<String> = needs.split_whitespace().rev().map(str::to_owned).collect();
    order.push((*file).to_owned());
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need() {
        let table = "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/fs/fat/fat.ko:\nkernel/a/dm-thin-pool.ko: b/one.ko c/two.ko\n";
        assert_eq!(with_dependencies(table, "vfat"), ["kernel/fs/fat/fat.ko", "kernel/fs/fat/vfat.ko"]);
        assert_eq!(with_dependencies(table, "dm-thin-pool"), ["c/two.ko", "b/one.ko", "kernel/a/dm-thin-pool.ko"]);
        assert!(with_dependencies(table, "ext4").is_empty());
    }

    #[test]
    fn a_kit_is_kept_until_a_part_of_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let kits = Kits::new(folder.path().to_owned());
        let kit = kits.get().unwrap_or_else(|error| panic!("{error}"));
        let made = fs::metadata(&kit.first_files).unwrap().modified().unwrap();
        assert_eq!(kits.get().unwrap(), kit);
        assert_eq!(fs::metadata(&kit.first_files).unwrap().modified().unwrap(), made);
        fs::remove_file(&kit.first_files).unwrap();
        assert!(kits.get().unwrap().first_files.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_kit_survives_the_way_to_its_process() {
        let kit = Kit {
            kernel: "/usr/bin/linux.uml".into(),
            daemon: "/usr/bin/d".into(),
            libraries: vec!["/lib/a".into(), "/lib/b".into()],
            first_files: "/var/x.cpio".into(),
        };
        let mut words = Encoder::new();
        kit.encode(&mut words);
        let words = words.finish();
        let mut from = Decoder::new(&words);
        assert_eq!(Kit::decode(&mut from).unwrap(), kit);
        from.end().unwrap();
    }
}
