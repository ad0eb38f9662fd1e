//! The first process of the room: builds an own root folder, gives up every privilege, starts the storage daemon and the
//! guest's kernel, and ends with the first of them.
//!
//! It hands its standard input, the hub's socket, to the guest's machine as a serial line; the agent at its other end greets
//! the hub. User Mode Linux and the daemon meet at a socket that listens before either is started, so that nobody polls.
//!
//! Invariant: both programs are started after privileges are gone and the filter stands.

use super::machine::{self, Accelerator, Machine};
use super::{GUEST_MIB, OVERLAY_MIB, Setup, overlay, seccomp, tail::Tail};
use crate::error::{Error, Result};
use crate::sandbox::{Level, ids};
use crate::worker::{die_of_panics, last_words, standard_input, start, take};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::wait;
use nix::unistd::{Gid, Uid, chdir, chown, pivot_root, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, set_capabilities};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// Where the room is built: every system has this folder, and no program or image lies in it.
const SITE: &str = "/sys";
/// Address space of QEMU: the guest's memory, 64 threads for the disk with stacks of 8 MiB, translated code, libraries; and as
/// much again, because what is addressed is not used.
const ADDRESS_BYTES_MAX: u64 = 4 << 30;
/// Folder for the guest's memory, the overlay and the sockets.
const RUN: &str = "/run";

/// The whole life of the process.
pub fn run(level: u32) -> ExitCode {
    let Ok(socket) = standard_input() else { return ExitCode::FAILURE };
    match live(&socket, level) {
        Ok(never) => match never {},
        Err(error) => {
            last_words(&socket, &error);
            ExitCode::FAILURE
        }
    }
}

fn live(socket: &UnixStream, mut level: u32) -> Result<std::convert::Infallible> {
    die_of_panics(socket)?;
    let start = start(socket)?;
    let mut passed = take(socket, start.descriptors)?;
    let setup = Setup::decode(&start.setup).map_err(|error| Error::Io(error.to_string()))?;
    let disk = passed.pop().ok_or_else(|| Error::Io("the disk's socket is missing".into()))?;
    // With a user namespace of its own it is called root, and no other id exists there.
    let become_uid = (level & Level::USER == 0).then_some(start.uid);
    build(&setup, become_uid).map_err(|error| match error {
        Error::Io(text) => Error::Sandbox(text),
        other => other,
    })?;
    let machine = setup.kit.machine;
    level |= machine.level() | privileges(machine, become_uid)?;
    seccomp::apply(machine)?;
    let programs = match machine {
        Machine::UserMode => user_mode(&setup, disk, level)?,
        Machine::Virtual(accelerator) => virtual_machine(&setup, accelerator, disk, level)?,
    };
    Err(first_end(&programs))
}

/// A root folder with the two programs, what they load, three devices, and a folder to write in.
fn build(setup: &Setup, uid: Option<u32>) -> Result<()> {
    let none: Option<&str> = None;
    let step = |what: &str, done: nix::Result<()>| done.map_err(|errno| Error::Io(format!("{what}: {errno}")));
    step("make the mounts private", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
    // User Mode Linux keeps the guest's memory in a file, QEMU does not.
    let mib = if setup.kit.machine.is_virtual() { OVERLAY_MIB } else { GUEST_MIB + OVERLAY_MIB };
    let size = format!("size={mib}m,mode=755,nr_inodes=4096");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    step("mount a memory file system", mount(Some("tmpfs"), SITE, Some("tmpfs"), flags, Some(size.as_str())))?;
    let kit = &setup.kit;
    let files = [&kit.kernel, &kit.daemon, &kit.first_files].into_iter().chain(&kit.libraries);
    for file in files {
        bind(file, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    }
    for device in ["/dev/null", "/dev/zero", "/dev/urandom"] {
        bind(Path::new(device), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    for device in kit.machine.devices() {
        // A hub that is no root, or may make no devices, needs the right to use this one as it is.
        match uid.map(|uid| own_device(Path::new(device), uid)) {
            Some(Ok(())) => {}
            Some(Err(_)) | None => bind(Path::new(device), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?,
        }
    }
    let io = |error: std::io::Error| Error::Io(format!("furnish the room: {error}"));
    for folder in ["proc", "run", "old"] {
        fs::create_dir_all(Path::new(SITE).join(folder)).map_err(io)?;
    }
    // The kernel looks at its processor and its limits there. A container that hides parts of its own refuses another; then
    // the guest's kernel goes without.
    let proc = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), &at_site("/proc"), Some("proc"), proc, none);
    fs::write(at_site(RUN).join("overlay"), overlay::empty(setup.size_bytes)).map_err(io)?;
    if let Some(uid) = uid {
        let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)));
        for path in [at_site(RUN), at_site(RUN).join("overlay")] {
            step("give the room away", chown(&path, user, group))?;
        }
    }
    step("enter the room", pivot_root(SITE, &at_site("/old")).and_then(|()| chdir("/")))?;
    step("leave the host's files", umount2("/old", MntFlags::MNT_DETACH))?;
    fs::remove_dir("/old").map_err(io)
}

fn at_site(path: &str) -> PathBuf {
    Path::new(SITE).join(path.trim_start_matches('/'))
}

/// Makes a device of the room's own, for the room's user alone: the host's one belongs to root, or to a group that the room has
/// left. In a memory file system of its own, because no other place in the room may have devices.
fn own_device(device: &Path, uid: u32) -> std::io::Result<()> {
    let number = fs::metadata(device)?.rdev();
    let place = at_site(&device.to_string_lossy());
    let (folder, made) = (at_site("/devices"), at_site("/devices").join("own"));
    fs::create_dir_all(&folder)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, Some("size=64k,mode=755"))?;
    mknod(&made, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    chown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
    fs::write(&place, [])?;
    let none: Option<&str> = None;
    Ok(mount(Some(&made), &place, none, MsFlags::MS_BIND, none)?)
}

/// Shows one file of the host in the room, for reading.
fn bind(file: &Path, flags: MsFlags) -> Result<()> {
    let fault = |what: &str, error: &dyn std::fmt::Display| {
        Error::Io(format!("{what} {} in the room: {error}", file.display()))
    };
    let place = at_site(&file.to_string_lossy());
    let parent = place.parent().ok_or_else(|| fault("place", &"it has no folder"))?;
    fs::create_dir_all(parent).and_then(|()| fs::write(&place, [])).map_err(|error| fault("place", &error))?;
    let none: Option<&str> = None;
    mount(Some(file), &place, none, MsFlags::MS_BIND, none).map_err(|errno| fault("bind", &errno))?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    match mount(none, &place, none, flags, none) {
        Ok(()) => Ok(()),
        // A user namespace may not loosen what the host's mount has locked (here: noatime and its kin); those stay then.
        Err(nix::errno::Errno::EPERM) => mount(none, &place, none, flags | MsFlags::MS_RELATIME, none)
            .or_else(|_| mount(none, &place, none, flags | MsFlags::MS_NOATIME, none))
            .map_err(|errno| fault("write-protect", &errno)),
        Err(errno) => Err(fault("write-protect", &errno)),
    }
}

/// Gives up everything but what any process of a user without rights may do.
fn privileges(machine: Machine, uid: Option<u32>) -> Result<u32> {
    let fault = |what: &str, errno: &dyn std::fmt::Display| Error::Sandbox(format!("{what}: {errno}"));
    let mut level = 0;
    // Root by name only: no program it starts gets capabilities for it, and none can change that.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits).map_err(|errno| fault("lock root's powers away", &errno))?;
    if let Some(uid) = uid {
        if uid == 0 {
            return Err(Error::Sandbox("the unprivileged user must not be root".into()));
        }
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        setgroups(&[]).map_err(|errno| fault("leave all groups", &errno))?;
        setresgid(group, group, group).map_err(|errno| fault("change the group", &errno))?;
        setresuid(user, user, user).map_err(|errno| fault("change the user", &errno))?;
        level |= Level::UNPRIVILEGED;
        if ids::is_own(uid) {
            level |= Level::OWN_ID;
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(|errno| fault("give up capabilities", &errno))?;
    level |= Level::NO_CAPABILITIES;
    prctl::set_no_new_privs().map_err(|errno| fault("give up new privileges", &errno))?;
    // No core of a guest's memory; files for the disk's and the memory's descriptors and no thousands.
    let limits = [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, 256), (Resource::RLIMIT_MEMLOCK, 0)];
    let limits = limits.into_iter().chain(machine.is_virtual().then_some((Resource::RLIMIT_AS, ADDRESS_BYTES_MAX)));
    if limits.into_iter().all(|(resource, bound)| setrlimit(resource, bound, bound).is_ok()) {
        level |= Level::LIMITS;
    }
    // Ids have changed, which makes the kernel forget this.
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(|errno| fault("be killed with the hub", &errno))?;
    Ok(level)
}

/// QEMU, which is the guest's machine and serves its disk.
fn virtual_machine(setup: &Setup, accelerator: Accelerator, disk: OwnedFd, level: u32) -> Result<Vec<Program>> {
    let fault = |error: &dyn std::fmt::Display| Error::Io(format!("start the virtual machine: {error}"));
    // What QEMU says and what the guest's kernel says come the same way: together they tell why it ended.
    let (console, says) = UnixStream::pair().map_err(|error| fault(&error))?;
    let says = OwnedFd::from(says);
    let errors = says.try_clone().map_err(|error| fault(&error))?;
    for descriptor in [&disk, &says] {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| fault(&errno))?;
    }
    let overlay = format!("{RUN}/overlay");
    let process = machine::emulator(setup, accelerator, &overlay, disk.as_raw_fd(), says.as_raw_fd(), level)
        .env_clear()
        .current_dir(RUN)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|error| fault(&error))?;
    Ok(vec![Program { name: "the virtual machine", process, says: Tail::of(console) }])
}

/// The storage daemon and the guest's kernel.
fn user_mode(setup: &Setup, disk: OwnedFd, level: u32) -> Result<Vec<Program>> {
    let fault = |what: &str, error: &dyn std::fmt::Display| Error::Io(format!("{what}: {error}"));
    let socket = format!("{RUN}/disk");
    let meeting = UnixListener::bind(&socket).map_err(|error| fault("listen for the guest's kernel", &error))?;
    // A comma ends a value, and a doubled one is a comma.
    let export = setup.export.replace(',', ",,");
    let daemon = Command::new(&setup.kit.daemon)
        .args([
            "--blockdev",
            &format!("driver=nbd,node-name=chain,server.type=fd,server.str=0,export={export},read-only=on"),
        ])
        .args(["--blockdev", &format!("driver=file,node-name=sheet,filename={RUN}/overlay")])
        .args(["--blockdev", "driver=qcow2,node-name=disk,file=sheet,backing=chain"])
        .args(["--export", "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=fd,addr.str=1"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(disk))
        .stdout(Stdio::from(OwnedFd::from(meeting)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| fault("start the storage daemon", &error))?;
    let kernel = Command::new(&setup.kit.kernel)
        .arg(format!("mem={GUEST_MIB}M"))
        .arg(format!("initrd={}", setup.kit.first_files.display()))
        // The first files may take more than the half of the memory that the other kind of root folder is bounded by.
        .args(["rdinit=/init", "rootfstype=ramfs"])
        // The serial line is standard input; nothing else of the guest leads out but its console, which is read for last words.
        .args(["ssl0=fd:0", "ssl=null", "con=null", "con0=null,fd:1", "console=tty0", "quiet", "noreboot"])
        .arg(format!("uml_dir={RUN}"))
        .arg(format!("virtio_uml.device={socket}:2"))
        .arg(format!("sendense_level={level}"))
        .args(["--", super::AGENT])
        .env_clear()
        .env("TMPDIR", RUN)
        .env("HOME", RUN)
        .current_dir(RUN)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| fault("start the guest's kernel", &error))?;
    Ok(vec![Program::new("the storage daemon", daemon), Program::new("the guest's kernel", kernel)])
}

/// A running program and what it says.
struct Program {
    name: &'static str,
    process: Child,
    says: Tail,
}

impl Program {
    fn new(name: &'static str, mut process: Child) -> Program {
        let says = match (process.stdout.take(), process.stderr.take()) {
            (Some(out), _) => Tail::of(out),
            (_, Some(err)) => Tail::of(err),
            (None, None) => Tail::default(),
        };
        Program { name, process, says }
    }
}

/// Waits for the first of them to end. As the first process of its namespace it also buries what others leave behind.
fn first_end(programs: &[Program]) -> Error {
    loop {
        let ended = match wait() {
            Ok(status) => status.pid().map(|pid| pid.as_raw() as u32),
            Err(nix::errno::Errno::EINTR) => None,
            Err(errno) => return Error::Io(format!("wait for the room's programs: {errno}")),
        };
        for program in programs {
            if ended == Some(program.process.id()) {
                return Error::Io(format!("{} has ended: {}", program.name, program.says.words()));
            }
        }
    }
}
