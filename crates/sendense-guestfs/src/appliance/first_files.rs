//! The first files of the guest: this very program as its agent, the libraries, kernel modules, and tools for partitions and,
//! where it is installed, for LVM.
//!
//! Invariant: every file is one of this machine; nothing of a disk is in them.

use super::cpio::Archive;
use super::elf;
use super::kit::Modules;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Modules of the guest's kernel, each with a reason to be loaded; what they need comes with them, but for the checksums of some
/// file systems, which no table names. Those that a kernel has built in are left out. A reason may be a file system's name.
const MODULES: [(&str, &[&str]); 10] = [
    // Of a virtual machine; User Mode Linux has built in what leads out of it.
    ("line", &["virtio_pci", "virtio_console"]),
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
    ("ext4", &["crc32c_generic", "ext4"]),
    ("xfs", &["crc32c_generic", "xfs"]),
    // It measures itself while it is loaded, so that nobody else waits for it.
    ("btrfs", &["crc32c_generic", "xxhash_generic", "blake2b_generic", "btrfs"]),
    ("jfs", &["jfs"]),
    ("reiserfs", &["reiserfs"]),
];
/// Where the guest finds its modules.
pub const MODULES_FOLDER: &str = "/modules";
/// Where this machine may have LVM's tool.
pub const LVM_PLACES: [&str; 2] = ["/usr/sbin/lvm", "/sbin/lvm"];
/// Where the guest finds it.
pub const LVM: &str = "/sbin/lvm";
/// Tools of Debian's package util-linux, which every system has, at the same place here and in the guest: one tells the kernel of
/// a partition, the other makes it forget one.
pub const ADD_PARTITION: &str = "/usr/bin/addpart";
/// The other one.
pub const FORGET_PARTITION: &str = "/usr/bin/delpart";

/// Writes the guest's first files. They are copied and never held: a hub's memory does not grow with its own program.
pub fn archive(modules: &Modules, to: impl Write) -> Result<()> {
    let fault = |what: &Path, error: io::Error| Error::Io(format!("pack {} for the guest: {error}", what.display()));
    let own = |error| fault(Path::new("folders"), error);
    let mut archive = Archive::new(to);
    for folder in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc/lvm"] {
        archive.folder(folder).map_err(own)?;
    }
    // The kernel opens it for the first process before anything is mounted.
    archive.device("/dev/console", 5, 1).map_err(own)?;
    let mut programs = vec![(PathBuf::from(format!("/proc/{}/exe", std::process::id())), "/init".to_owned())];
    let lvm = LVM_PLACES.iter().map(PathBuf::from).find(|place| place.is_file());
    programs.extend(lvm.map(|lvm| (lvm, LVM.to_owned())));
    let tools = [ADD_PARTITION, FORGET_PARTITION].into_iter().filter(|tool| Path::new(tool).is_file());
    programs.extend(tools.map(|tool| (PathBuf::from(tool), tool.to_owned())));
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
    let mut packed = BTreeSet::new();
    for (reason, names) in MODULES {
        let mut order = String::new();
        for file in names.iter().flat_map(|name| modules.with_dependencies(name)) {
            let name = file.rsplit('/').next().unwrap_or(&file).to_owned();
            if packed.insert(name.clone()) {
                let module = modules.folder.join(&file);
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
