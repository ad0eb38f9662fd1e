//! The room's self-test: in place of the guest's kernel this program is started, and tries to get out.

use super::Test;
use super::images::{Served, folder, options, sh};
use sendense_guestfs::Error;
use sendense_guestfs::appliance;
use std::fs::{self, File, OpenOptions};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub const TESTS: &[Test] = &[
    ("nothing_tried_in_the_room_is_done", nothing_tried_in_the_room_is_done),
    (WITHOUT_RIGHTS, the_room_of_a_hub_without_rights),
];

/// Runs the other one again.
const WITHOUT_RIGHTS: &str = "the_room_of_a_hub_without_rights";

/// Becomes the prisoner when this program was started as a guest's kernel is. What it says on its console is what the hub is
/// told of a kernel that has ended.
pub fn run_if_kernel() -> Option<ExitCode> {
    std::env::args().nth(1)?.strip_prefix("mem=")?;
    let done: Vec<&str> = attempts().into_iter().filter(|(_, attempt)| attempt()).map(|(name, _)| name).collect();
    // What it may do, so that the rest is known to have been tried.
    let control = fs::write("/run/own", "own").is_ok() && UnixStream::pair().is_ok();
    println!("tried {}, control {control}, done {done:?}", attempts().len());
    Some(ExitCode::SUCCESS)
}

type Attempt = (&'static str, fn() -> bool);

fn attempts() -> Vec<Attempt> {
    vec![
        ("read the hub's users", || File::open("/etc/passwd").is_ok()),
        ("see the hub's files", || ["/etc", "/home", "/root", "/bin/sh", "/sys/kernel"].iter().any(|at| seen(at))),
        ("leave through another's root", || File::open("/proc/1/root/etc/passwd").is_ok()),
        ("write to a program", || writable("/usr/bin/qemu-storage-daemon")),
        ("write to the loader", || writable("/lib64/ld-linux-x86-64.so.2")),
        ("write to the kernel's settings", || writable("/proc/sys/kernel/core_pattern")),
        ("see other processes", || {
            let all = fs::read_dir("/proc").into_iter().flatten().flatten();
            // The room's first process, the storage daemon, this one, and nobody else.
            all.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count() > 3
        }),
        ("speak UDP", || UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("speak TCP", || TcpStream::connect("127.0.0.1:22").is_ok()),
        ("speak to the kernel's network", || {
            use rustix::net::{AddressFamily, SocketType, socket};
            socket(AddressFamily::NETLINK, SocketType::RAW, None).is_ok()
        }),
        ("speak to a service", || UnixStream::connect("/run/dbus/system_bus_socket").is_ok()),
        ("mount", || {
            let none: Option<&str> = None;
            nix::mount::mount(none, "/run", Some("tmpfs"), nix::mount::MsFlags::empty(), none).is_ok()
        }),
        ("unmount", || nix::mount::umount("/lib64/ld-linux-x86-64.so.2").is_ok()),
        ("change the root", || nix::unistd::chroot("/run").is_ok()),
        ("make a device", || {
            use nix::sys::stat::{Mode, SFlag, mknod};
            mknod("/run/device", SFlag::S_IFBLK, Mode::S_IRUSR, 0).is_ok()
        }),
        ("make namespaces", || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok()),
        ("become root", || nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok()),
        ("leave a core", || nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 1, 1).is_ok()),
        ("load a module", || rustix::system::init_module(b"none", c"").is_ok()),
        ("start a shell", || Command::new("/bin/sh").spawn().is_ok()),
    ]
}

fn seen(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn writable(path: &str) -> bool {
    OpenOptions::new().write(true).open(path).is_ok()
}

fn nothing_tried_in_the_room_is_done() {
    let dir = folder();
    sh(dir.path(), "truncate -s 1M disk.img");
    let served = Served::raw(&dir.path().join("disk.img"));
    let mut options = options();
    options.kit.kernel = std::env::current_exe().unwrap();
    options.kit.libraries.extend(libraries(&options.kit.kernel));
    options.kit.libraries.sort();
    options.kit.libraries.dedup();
    let ended = appliance::start(options, served.disk()).map(|_| ());
    let expected = format!("tried {}, control true, done []", attempts().len());
    let Err(Error::Io(words) | Error::WorkerDied(words)) = &ended else { panic!("{ended:?}") };
    assert!(words.contains(&expected), "{words}");
}

/// What a program loads, as the loader says.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("/lib64/ld-linux-x86-64.so.2").arg("--list").arg(program).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The same where user namespaces take the place of ids.
fn the_room_of_a_hub_without_rights() {
    if !nix::unistd::Uid::effective().is_root() {
        // Then it was so all the time.
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let program = folder.path().join("appliance");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&program)
        .arg("nothing_tried")
        .output()
        .unwrap_or_else(|error| panic!("setpriv: {error}: install the Debian package util-linux"));
    let told = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
}
