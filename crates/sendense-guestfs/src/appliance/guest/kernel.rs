//! The guest's kernel, as its agent uses it: own file systems, modules, its log, and mounting what lies on the disk.

use crate::appliance::first_files::MODULES_FOLDER;
use crate::error::{Error, Result};
use crate::sandbox::Level;
use nix::mount::{MsFlags, mount};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where everything of a running system belongs.
pub fn mount_own_files() -> Result<()> {
    let none: Option<&str> = None;
    // The devices may be there already: the kernel mounts them for some kinds of first files.
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        match mount(Some(kind), place, Some(kind), MsFlags::empty(), none) {
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(errno) => return Err(Error::Io(format!("mount {place} in the guest: {errno}"))),
        }
    }
    Ok(())
}

/// How the room is confined, as the process that made it says.
pub fn level() -> Level {
    Level::of_command_line(&command_line())
}

/// Whether the line to the hub is a port of a virtual machine.
pub fn has_port() -> bool {
    command_line().split_whitespace().any(|word| word == "sendense_line=virtio")
}

fn command_line() -> String {
    fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// A line on the console, which is the appliance's last words.
pub fn say(line: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = writeln!(console, "{line}");
    }
}

/// Loads the modules of one reason, in their order. One that does not load is missed where it is needed, and says so there.
pub fn load(reason: &str) {
    let list = fs::read_to_string(format!("{MODULES_FOLDER}/{reason}.list")).unwrap_or_default();
    for name in list.lines() {
        let path = format!("{MODULES_FOLDER}/{name}");
        let loaded = File::open(path).and_then(|module| Ok(rustix::system::finit_module(&module, c"", 0)?));
        // A module that another list has loaded already answers "exists".
        if let Err(error) = loaded
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            say(&format!("load {name}: {error}"));
        }
    }
}

/// The kernel's log from here on.
pub struct Log(Option<File>);

impl Log {
    /// Begins at the end.
    pub fn from_now() -> Log {
        let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        Log(log.ok().filter(|log| rustix::fs::seek(log, rustix::fs::SeekFrom::End(0)).is_ok()))
    }

    /// What it has said since then: a record is "level,number,time,flags;text".
    pub fn lines(&mut self) -> Vec<String> {
        /// More records than one mount makes; a disk that makes the kernel chatter does not keep us here.
        const RECORDS_MAX: usize = 500;
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        while let (Some(log), true) = (self.0.as_mut(), lines.len() < RECORDS_MAX) {
            let Ok(len @ 1..) = log.read(&mut record) else { break };
            let text = String::from_utf8_lossy(&record[..len]).into_owned();
            lines.extend(text.split_once(';').and_then(|(_, text)| text.lines().next().map(str::to_owned)));
        }
        lines
    }
}

/// Sectors written to a device since the guest has started.
fn sectors_written(device: &str) -> u64 {
    let statistics = fs::read_to_string(format!("/sys/class/block/{device}/stat")).unwrap_or_default();
    statistics.split_whitespace().nth(6).and_then(|sectors| sectors.parse().ok()).unwrap_or_default()
}

/// Mounts a device so that its log is replayed and its files can only be read. Answers whether there was something to replay.
pub fn mount_volume(device: &Path, name: &str, kind: &str, place: &Path) -> Result<bool> {
    // Where it is a module. What it says of itself belongs to no mount.
    load(kind);
    let mut log = Log::from_now();
    let before = sectors_written(name);
    let options = match kind {
        // Two restore points of a machine have the same one.
        "xfs" => "nouuid",
        // Names as bytes would be; the default drops what it cannot show.
        "vfat" => "iocharset=utf8",
        _ => "",
    };
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    let mounted = mount(Some(device), place, Some(kind), flags, Some(options));
    let lines = log.lines();
    match mounted {
        // These two write to a clean log too, but they say what they do.
        Ok(()) if kind == "xfs" => Ok(lines.iter().any(|line| line.contains("Starting recovery"))),
        Ok(()) if kind == "reiserfs" => Ok(lines.iter().any(|line| line.contains("replayed"))),
        // The others write at a read-only mount only what a log makes them write.
        Ok(()) => Ok(sectors_written(name) > before),
        Err(errno) => {
            let words = lines.last().cloned().unwrap_or_else(|| errno.desc().to_owned());
            match errno {
                // "Structure needs cleaning", and what a read of nonsense ends in.
                nix::errno::Errno::EUCLEAN | nix::errno::Errno::EIO | nix::errno::Errno::EBADMSG => {
                    Err(Error::corrupt(words))
                }
                _ => Err(Error::unsupported(format!("{kind} in the appliance: {words}"))),
            }
        }
    }
}
