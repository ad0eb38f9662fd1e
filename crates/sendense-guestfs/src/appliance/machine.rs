//! What a guest runs in: User Mode Linux, or a virtual machine of QEMU.
//!
//! The virtual machine is the same whatever runs its processor, so that the launcher can be shown to work where a processor's
//! own virtualisation is missing. It has a disk, a serial port that leads to the hub, a console that is read for last words,
//! and no network, no display, no monitor: whatever a guest's kernel is made to do, it meets nothing else.
//!
//! Invariant: QEMU opens nothing but the files that were put into its room, and starts no program.

use super::{GUEST_MIB, Setup};
use crate::sandbox::Level;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a guest runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// User Mode Linux: the guest's kernel is a process of this machine.
    UserMode,
    /// A virtual machine of QEMU.
    Virtual(Accelerator),
}

/// What runs the processor of a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own processor, through Linux's `/dev/kvm`. The hub uses no other.
    Kvm,
    /// QEMU's translation of each instruction. It needs nothing of the machine, but is slower than User Mode Linux, so that
    /// it only stands in for the other one in tests.
    Tcg,
}

/// Where KVM is found.
pub const KVM: &str = "/dev/kvm";

impl Machine {
    /// Devices of this machine that it needs beside those that every room has.
    pub fn devices(self) -> &'static [&'static str] {
        match self {
            Machine::Virtual(Accelerator::Kvm) => &[KVM],
            Machine::Virtual(Accelerator::Tcg) | Machine::UserMode => &[],
        }
    }

    /// Whether QEMU runs the guest.
    pub fn is_virtual(self) -> bool {
        matches!(self, Machine::Virtual(_))
    }

    /// What it adds to the walls around a guest.
    pub fn level(self) -> u32 {
        match self {
            Machine::UserMode => 0,
            Machine::Virtual(Accelerator::Kvm) => Level::VIRTUAL,
            Machine::Virtual(Accelerator::Tcg) => Level::EMULATED,
        }
    }

    /// For the process that starts it.
    pub fn to_number(self) -> u32 {
        match self {
            Machine::UserMode => 0,
            Machine::Virtual(Accelerator::Kvm) => 1,
            Machine::Virtual(Accelerator::Tcg) => 2,
        }
    }

    /// What [`Machine::to_number`] made.
    pub fn from_number(number: u32) -> Option<Machine> {
        [Machine::UserMode, Machine::Virtual(Accelerator::Kvm), Machine::Virtual(Accelerator::Tcg)]
            .into_iter()
            .find(|machine| machine.to_number() == number)
    }
}

impl Accelerator {
    /// Files that QEMU loads beside its libraries: what a processor runs first, and the translator, which is a part of its own.
    pub fn files(self) -> Vec<PathBuf> {
        let firmware =
            ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin"];
        let translator = "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";
        let files = firmware.into_iter().chain((self == Accelerator::Tcg).then_some(translator));
        // One that this release of QEMU does not have is one that it does not ask for, or it says so.
        files.map(PathBuf::from).filter(|file| Path::new(file).is_file()).collect()
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Translated code is thrown away beyond 64 MiB; a fourth of the guest's memory would be taken else.
            Accelerator::Tcg => ["-accel", "tcg,tb-size=64", "-cpu", "qemu64"],
        }
    }
}

/// A virtual machine whose serial line is standard input. `disk` and `console` are numbers of descriptors that it inherits;
/// `overlay` is the throw-away sheet over the disk.
pub(super) fn emulator(
    setup: &Setup,
    accelerator: Accelerator,
    overlay: &str,
    disk: i32,
    console: i32,
    level: u32,
) -> Command {
    // A comma ends a value, and a doubled one is a comma.
    let export = setup.export.replace(',', ",,");
    // Its kernel and its only program trust each other, so the guards between them only cost time.
    let words = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init rootfstype=ramfs sendense_line=virtio \
         sendense_level={level} -- {}",
        super::AGENT
    );
    let mut command = Command::new(&setup.kit.daemon);
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .args(["-machine", "pc,usb=off,smbus=off,vmport=off"])
        .args(accelerator.arguments())
        .args(["-smp", "1", "-m", &format!("{GUEST_MIB}M")])
        .arg("-kernel")
        .arg(&setup.kit.kernel)
        .arg("-initrd")
        .arg(&setup.kit.first_files)
        .args(["-append", &words])
        .args([
            "-blockdev",
            &format!("driver=nbd,node-name=chain,server.type=fd,server.str={disk},export={export},read-only=on"),
        ])
        .args(["-blockdev", &format!("driver=file,node-name=sheet,filename={overlay}")])
        .args(["-blockdev", "driver=qcow2,node-name=disk,file=sheet,backing=chain"])
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .args(["-chardev", "socket,id=line,fd=0", "-device", "virtio-serial-pci"])
        .args(["-device", "virtserialport,chardev=line"])
        .args(["-chardev", &format!("socket,id=console,fd={console}"), "-serial", "chardev:console"]);
    command
}
