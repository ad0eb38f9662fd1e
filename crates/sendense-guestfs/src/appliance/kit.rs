//! What an appliance is made of on this machine: the guest's kernel, the program that serves its disk or runs it, and its first
//! files.
//!
//! The first files are put together once per process and kept as a file.
//!
//! Invariant: every path is one of this machine, found here and never taken from a request.

use super::elf;
use super::first_files::{LVM_PLACES, archive};
use super::machine::{Accelerator, Machine};
use crate::error::{Error, Result};
use crate::wire::codec::{self, Decoder, Encoder};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// File systems that the guest's kernel reads, as a volume's kind names them.
pub const FILE_SYSTEMS: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "iso9660", "udf", "f2fs", "nilfs2", "hfsplus", "squashfs", "jfs",
    "reiserfs",
];

/// What was seen of the files that a kit was made of: length and time of change.
pub type Seen = Vec<Option<(u64, SystemTime)>>;

/// The parts, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kit {
    /// What the guest runs in.
    pub machine: Machine,
    /// User Mode Linux, or a kernel for a virtual machine.
    pub kernel: PathBuf,
    /// The program that serves the disk to User Mode Linux; QEMU, which does so itself.
    pub daemon: PathBuf,
    /// What the programs load.
    pub libraries: Vec<PathBuf>,
    /// The guest's first files.
    pub first_files: PathBuf,
}

impl Kit {
    /// Finds the parts of User Mode Linux and writes the first files into `folder`, whose earlier ones are replaced.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the Debian package that is missing; [`Error::Io`].
    pub fn prepare(folder: &Path) -> Result<Kit> {
        let kernel = find(&["/usr/bin/linux.uml"], "user-mode-linux")?;
        let daemon = find(&["/usr/bin/qemu-storage-daemon"], "qemu-system-common")?;
        let mut libraries = elf::libraries(&kernel)?;
        libraries.extend(elf::libraries(&daemon)?);
        let modules = modules_of(&kernel)?;
        let first_files = folder.join("appliance-files.cpio");
        Kit { machine: Machine::UserMode, kernel, daemon, libraries, first_files }.packed(&modules)
    }

    /// The same for a virtual machine, whose kernel is looked for below `root`, as Debian's packages lay it: one that knows the
    /// file systems that are `wanted`; of several the newest.
    ///
    /// # Errors
    /// As [`Kit::prepare`].
    pub fn virtual_machine(folder: &Path, accelerator: Accelerator, root: &Path, wanted: &[&str]) -> Result<Kit> {
        let daemon = find(&["/usr/bin/qemu-system-x86_64"], "qemu-system-x86")?;
        let fitting = kernels(root).filter(|(_, modules)| wanted.iter().all(|name| modules.knows(name)));
        let newest = fitting.max_by_key(|(kernel, _)| fs::metadata(kernel).and_then(|kernel| kernel.modified()).ok());
        let (kernel, modules) = newest.ok_or_else(|| {
            let place = root.join("boot");
            let missing = "no kernel for a virtual machine that knows all file systems";
            Error::unsupported(format!(
                "{missing} in {}: install the Debian package linux-image-amd64",
                place.display()
            ))
        })?;
        let mut libraries = elf::libraries(&daemon)?;
        for file in accelerator.files() {
            // A part of QEMU itself has libraries too; what a processor runs first has not.
            if file.extension().is_some_and(|end| end == "so") {
                libraries.extend(elf::libraries(&file)?);
            }
            libraries.push(file);
        }
        let machine = Machine::Virtual(accelerator);
        let first_files = folder.join("machine-files.cpio");
        Kit { machine, kernel, daemon, libraries, first_files }.packed(&modules)
    }

    fn packed(mut self, modules: &Modules) -> Result<Kit> {
        self.libraries.sort();
        self.libraries.dedup();
        let keep = |error: io::Error| Error::Io(format!("write {}: {error}", self.first_files.display()));
        // An appliance may start from the old file meanwhile: a new one takes its place whole.
        let partial = self.first_files.with_extension("partial");
        let to = BufWriter::new(File::create(&partial).map_err(keep)?);
        archive(modules, to)?;
        fs::rename(&partial, &self.first_files).map_err(keep)?;
        Ok(self)
    }

    /// What is seen of its files now.
    pub fn look(&self) -> Seen {
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
        to.u32(self.machine.to_number());
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
        /// QEMU has 51 libraries.
        const LIBRARIES_MAX: usize = 512;
        let path = |from: &mut Decoder<'_>| from.text(PATH_MAX).map(PathBuf::from);
        let machine = Machine::from_number(from.u32()?).ok_or(codec::Malformed("no such machine".into()))?;
        let (kernel, daemon, first_files) = (path(from)?, path(from)?, path(from)?);
        let libraries = from.list(LIBRARIES_MAX, path)?;
        Ok(Kit { machine, kernel, daemon, libraries, first_files })
    }
}

fn find(places: &[&str], package: &str) -> Result<PathBuf> {
    let found = places.iter().map(PathBuf::from).find(|place| place.is_file());
    found.ok_or_else(|| {
        Error::unsupported(format!("{} is missing: install the Debian package {package}", places.join(" or ")))
    })
}

/// The modules of one kernel.
pub struct Modules {
    /// Where they are.
    pub folder: PathBuf,
    /// `modules.dep`.
    table: String,
    /// `modules.builtin`: what needs no module.
    built_in: String,
}

impl Modules {
    /// Those in `folder`; none when there is no table of them.
    fn open(folder: PathBuf) -> Option<Modules> {
        let read = |name: &str| fs::read(folder.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let (table, built_in) = (read("modules.dep").ok()?, read("modules.builtin").unwrap_or_default());
        Some(Modules { folder, table, built_in })
    }

    /// Whether the kernel knows a file system, as [`FILE_SYSTEMS`] names it.
    fn knows(&self, file_system: &str) -> bool {
        // Some are known by other names to those who build kernels.
        self.has(match file_system {
            "ext2" | "ext3" => "ext4",
            "iso9660" => "isofs",
            name => name,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.table.lines().filter_map(|line| line.split_once(':')).any(|(file, _)| is_named(file, name))
            || self.built_in.lines().any(|file| is_named(file, name))
    }

    /// A module's file behind those it needs, as the table lists them: the last in a line is needed by those before it. Empty
    /// for what is built in, or was left out of this kernel.
    pub fn with_dependencies(&self, name: &str) -> Vec<String> {
        let lines = self.table.lines().filter_map(|line| line.split_once(':'));
        let by_name: BTreeMap<&str, (&str, &str)> = lines
            .filter_map(|(file, needs)| Some((file.rsplit('/').next()?.strip_suffix(".ko")?, (file, needs))))
            .collect();
        let Some((file, needs)) = by_name.get(name) else { return Vec::new() };
        let mut order: Vec<String> = needs.split_whitespace().rev().map(str::to_owned).collect();
        order.push((*file).to_owned());
        order
    }
}

fn is_named(file: &str, name: &str) -> bool {
    file.rsplit('/').next().and_then(|file| file.strip_suffix(".ko")) == Some(name)
}

/// The kernels below a root folder that a virtual machine of ours can be started with: they know its disk and its serial line.
fn kernels(root: &Path) -> impl Iterator<Item = (PathBuf, Modules)> {
    let boot = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
    boot.filter_map(move |entry| {
        let kernel = entry.path();
        let version = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = Modules::open(root.join("lib/modules").join(version))?;
        ["virtio_pci", "virtio_blk", "virtio_console"].iter().all(|name| modules.has(name)).then_some((kernel, modules))
    })
}

/// The modules that were built with this kernel; any other would not load.
fn modules_of(kernel: &Path) -> Result<Modules> {
    let run = Command::new(kernel).arg("--version").env_clear().output();
    let run = run.map_err(|error| Error::unsupported(format!("run {}: {error}", kernel.display())))?;
    let version = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    let folder = Path::new("/usr/lib/uml/modules").join(&version);
    let modules = (!version.is_empty()).then(|| Modules::open(folder.clone())).flatten();
    modules.ok_or_else(|| {
        Error::unsupported(format!(
            "{} has no modules in {}: reinstall the Debian package user-mode-linux",
            kernel.display(),
            folder.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need() {
        let table = "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/fs/fat/fat.ko:\nkernel/a/dm-thin-pool.ko: b/one.ko c/two.ko\n";
        let modules =
            Modules { folder: PathBuf::new(), table: table.into(), built_in: "kernel/fs/ext4/ext4.ko\n".into() };
        assert_eq!(modules.with_dependencies("vfat"), ["kernel/fs/fat/fat.ko", "kernel/fs/fat/vfat.ko"]);
        assert_eq!(modules.with_dependencies("dm-thin-pool"), ["c/two.ko", "b/one.ko", "kernel/a/dm-thin-pool.ko"]);
        assert!(modules.with_dependencies("ext4").is_empty());
        let known: Vec<&str> = FILE_SYSTEMS.into_iter().filter(|name| modules.knows(name)).collect();
        assert_eq!(known, ["ext2", "ext3", "ext4", "vfat"]);
    }

    #[test]
    fn a_kit_survives_the_way_to_its_process() {
        let kit = Kit {
            machine: Machine::Virtual(Accelerator::Kvm),
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

    #[test]
    fn without_a_kernel_its_package_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let kit = |wanted: &[&str]| Kit::virtual_machine(folder.path(), Accelerator::Tcg, folder.path(), wanted);
        let is_named = |wanted: &[&str]| match kit(wanted) {
            Err(Error::Unsupported(why)) => why.0.contains("linux-image-amd64"),
            _ => false,
        };
        assert!(is_named(&[]));
        // Nor is one that lacks the drivers of the machine's devices, or a file system.
        let modules = folder.path().join("lib/modules/6.1");
        fs::create_dir_all(folder.path().join("boot")).unwrap();
        fs::create_dir_all(&modules).unwrap();
        fs::write(folder.path().join("boot/vmlinuz-6.1"), "a kernel").unwrap();
        fs::write(modules.join("modules.dep"), "a/virtio_blk.ko:\na/virtio_pci.ko:\n").unwrap();
        assert!(is_named(&[]));
        for name in ["virtio_blk", "virtio_pci", "virtio_console"] {
            fs::write(modules.join(format!("{name}.ko")), name).unwrap();
        }
        fs::write(modules.join("modules.dep"), "virtio_blk.ko:\nvirtio_pci.ko:\nvirtio_console.ko:\n").unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        assert!(is_named(&["ext4", "xfs"]));
        assert_eq!(kit(&["ext3"]).unwrap().kernel, folder.path().join("boot/vmlinuz-6.1"));
    }
}
