//! What this program does as a worker: read disks, misbehave inside the sandbox, or speak nonsense.

use seccompiler::{SeccompAction, SeccompFilter};
use sendense_block::{ByteLen, ByteOffset, ReadAt};
use sendense_guestfs::meta::{Consistency, Facts, FileType, Meta, Page};
use sendense_guestfs::native::{FileRead, FileSystem, Readers};
use sendense_guestfs::{Error, GuestPath, Result, sandbox, worker};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

pub fn run(mode: &str) -> ExitCode {
    match mode {
        "disk" => worker::run(Readers::default(), open_disk),
        "evil" => worker::run(EVIL, |_, _| Ok(Arc::new(Nothing))),
        "no-seccomp" => {
            forbid_seccomp();
            worker::run(EVIL, |_, _| panic!("the disk was opened outside the sandbox"))
        }
        "broken-disk" => worker::run(EVIL, |_, _| Err("disk-0.qcow2: not an image".into())),
        "stray" => worker::run(EVIL, |_, setup| stray(setup)),
        "mute" => loop {
            std::thread::park();
        },
        _ => super::hostile::child(mode),
    }
}

/// The first descriptor, as a raw image.
fn open_disk(descriptors: Vec<OwnedFd>, _: &[u8]) -> std::result::Result<Arc<dyn ReadAt>, String> {
    let file = File::from(descriptors.into_iter().next().ok_or("no descriptor")?);
    let disk = sendense_block::backend::File::from_std(file, "the image".into(), false);
    Ok(Arc::new(disk.map_err(|error| error.to_string())?))
}

/// Whether a descriptor that nobody passed is open: reading from it must fail as "bad descriptor".
fn stray(setup: &[u8]) -> std::result::Result<Arc<dyn ReadAt>, String> {
    let number: i32 = std::str::from_utf8(setup).unwrap().parse().unwrap();
    match nix::unistd::close(number) {
        Err(nix::errno::Errno::EBADF) => Ok(Arc::new(Nothing)),
        other => Err(format!("descriptor {number} was inherited: {other:?}")),
    }
}

/// As a kernel or a container without seccomp: setting a filter fails.
fn forbid_seccomp() {
    let rules = BTreeMap::from([(libc::SYS_seccomp, vec![]), (libc::SYS_prctl, vec![seccomp_of_prctl()])]);
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into().unwrap());
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn seccomp_of_prctl() -> seccompiler::SeccompRule {
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
    const PR_SET_SECCOMP: u64 = 22;
    let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, PR_SET_SECCOMP).unwrap();
    SeccompRule::new(vec![is]).unwrap()
}

/// A disk of zeros.
struct Nothing;

impl ReadAt for Nothing {
    fn size(&self) -> ByteLen {
        ByteLen(1 << 20)
    }

    fn read_at(&self, _: ByteOffset, buf: &mut [u8]) -> sendense_block::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// A file system whose names are what an attacker would try after he has taken over the reader.
const EVIL: Readers = Readers { detect: |_| Ok(Some("evil")), open: |_| Ok(Box::new(Evil(facts()))) };

fn facts() -> Facts {
    Facts { kind: "evil", label: None, uuid: None, size_bytes: 1, consistency: Consistency::Clean }
}

struct Evil(Facts);

/// What he tries. "Done" is what must never be heard.
pub const ATTEMPTS: [&str; 17] = [
    "open", "create", "list", "socket", "tcp", "unix", "pair", "mount", "kill", "exec", "fork", "thread", "become",
    "chroot", "unshare", "code", "flags",
];

fn attempt(what: &str) -> bool {
    let one = nix::unistd::Pid::from_raw(1);
    match what {
        "open" => File::open("/etc/passwd").is_ok(),
        "create" => File::create("/tmp/created-by-a-worker").is_ok(),
        "list" => std::fs::read_dir("/").is_ok(),
        "socket" => UdpSocket::bind("127.0.0.1:0").is_ok(),
        "tcp" => TcpStream::connect("127.0.0.1:22").is_ok(),
        "unix" => UnixStream::connect("/run/dbus/system_bus_socket").is_ok(),
        "pair" => UnixStream::pair().is_ok(),
        "mount" => {
            let none: Option<&str> = None;
            nix::mount::mount(none, "/", Some("tmpfs"), nix::mount::MsFlags::empty(), none).is_ok()
        }
        "kill" => nix::sys::signal::kill(one, None).is_ok(),
        "exec" => {
            let error = Command::new("/bin/true").exec();
            panic!("exec answered instead of being forbidden: {error}")
        }
        "fork" => Command::new("/bin/true").spawn().is_ok(),
        "thread" => std::thread::Builder::new().spawn(|| {}).is_ok(),
        "become" => nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok(),
        "chroot" => nix::unistd::chroot("/").is_ok(),
        "unshare" => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok(),
        "code" => rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::empty()).is_ok(),
        // Of this call only the harmless question is allowed, whether a descriptor is open.
        "flags" => nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_GETFL).is_ok(),
        other => panic!("no attempt named {other}"),
    }
}

impl FileSystem for Evil {
    fn facts(&self) -> &Facts {
        &self.0
    }

    fn stat(&mut self, path: &GuestPath) -> Result<Meta> {
        let name = String::from_utf8(path.name().unwrap_or(b"root").to_vec()).unwrap();
        match name.as_str() {
            "root" | "quiet" => {}
            "panic" => panic!("a reader lost its way"),
            "hang" => loop {
                std::hint::spin_loop();
            },
            "memory" => {
                let hoard: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 1 << 20]).collect();
                return Err(Error::Limit(format!("{} MiB were given", hoard.len())));
            }
            "key" => {
                let len = sandbox::memory_for_a_key(|| {
                    std::hint::black_box(vec![1u8; sandbox::ADDRESS_BYTES_MAX as usize]).len()
                });
                return Err(Error::Limit(len.to_string()));
            }
            "deep" => return Err(Error::Limit(deeper(u64::MAX).to_string())),
            what => return Err(Error::Limit(format!("{what}: {}", attempt(what)))),
        }
        Ok(Meta {
            inode: 1,
            file_type: FileType::File,
            size_bytes: 1,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
            modified: None,
        })
    }

    fn readlink(&mut self, _: &GuestPath) -> Result<Vec<u8>> {
        Err(Error::NotRegular)
    }

    fn list(&mut self, _: &GuestPath, _: Option<u64>, _: usize) -> Result<Page> {
        Err(Error::NotDirectory)
    }

    fn open(&mut self, _: &GuestPath) -> Result<Box<dyn FileRead>> {
        Err(Error::NotRegular)
    }
}

/// Uses up the stack.
fn deeper(left: u64) -> u64 {
    let room = std::hint::black_box([left; 1024]);
    if left == 0 { 0 } else { deeper(left - 1) + room[7] }
}
