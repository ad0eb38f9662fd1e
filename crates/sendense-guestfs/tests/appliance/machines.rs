//! The appliance in a virtual machine of QEMU. Its processor is translated here, so that the test runs anywhere; the hub uses the
//! same launcher with KVM, and only where that has been proven.

use super::Test;
use super::images::{Served, confined, descendants, digest, digests, digests_of, folder, path, sh, volume};
use super::lives::{dies, gone};
use sendense_block::backend::{File, Options as FileOptions};
use sendense_guestfs::appliance::{Accelerator, Fallback, Kit, Options, proof};
use sendense_guestfs::meta::{Consistency, State};
use sendense_guestfs::native::{self, Readers};
use sendense_guestfs::sandbox::Level;
use sendense_guestfs::{Error, Session};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("a_virtual_machine_reads_what_the_native_reader_refuses", a_virtual_machine_reads_what_the_native_reader_refuses),
    ("a_processor_that_does_not_run_is_found_out", a_processor_that_does_not_run_is_found_out),
];

/// Where `scripts/deps.sh test` unpacks a kernel: installing one would change how the machine that runs the tests starts.
const KERNELS: &str = "/var/cache/sendense-test/kernel";

fn options(folder: &Path, accelerator: Accelerator) -> Options {
    let kit = Kit::virtual_machine(folder, accelerator, Path::new(KERNELS), &["btrfs"]).unwrap_or_else(|error| {
        panic!("{error}; the tests need the Debian package linux-image-cloud-amd64 unpacked: run scripts/deps.sh test")
    });
    Options { program: std::env::current_exe().unwrap(), ..Options::new(kit) }
}

fn a_virtual_machine_reads_what_the_native_reader_refuses() {
    let (dir, kits) = (folder(), folder());
    // A btrfs of a running machine: what was synced last is in a log that the native reader refuses. A first file makes room,
    // for what would make room while it is synced is committed whole in place of being logged.
    let script = r#"mkdir -p tree/etc tree/data; echo guest > tree/etc/passwd; ln -s /etc/passwd tree/link; : > tree/empty
        echo odd > "tree/$(printf 'a\nb\xff')"; seq 1 200000 > tree/data/numbers
        truncate -s 256M disk.img; mkfs.btrfs -q -L named -r tree disk.img; mkdir at
        mount -o loop,commit=300 disk.img at; trap 'umount at' EXIT
        seq 1 5000 > at/first; sync -f at
        seq 1 5000 > at/etc/synced; sync at/etc/synced
        rm -rf expected; cp -a at expected; cp --sparse=always disk.img dirty.img"#;
    sh(dir.path(), script);
    let image = dir.path().join("dirty.img");
    let before = digest(&image);
    let served = Served::raw(&image);
    let begun = Instant::now();
    let disk = Arc::new(File::open(&image, FileOptions::Read).unwrap());
    let native = native::Session::open(disk, Readers::default());
    let kits = kits.path().to_owned();
    let session = Fallback::new(native, Box::new(move || Ok((options(&kits, Accelerator::Tcg), served.disk()))));
    let volumes = session.volumes().unwrap();
    println!("  volumes after {} ms", begun.elapsed().as_millis());
    let told = (volumes.len(), &volumes[0].state, volumes[0].kind.as_str(), volumes[0].label.as_deref());
    assert_eq!(told, (1, &State::Readable, "btrfs", Some("named")), "{volumes:?}");
    assert_eq!(volumes[0].consistency, Some(Consistency::Replayed));
    assert!(session.is_taken(&volume("disk")));
    assert_eq!(digests(&session, "disk"), digests_of(&dir.path().join("expected")));
    let names = session.list(&volume("disk"), &path("/"), None, 100).unwrap().entries;
    assert_eq!(names.len(), 6, "{names:?}");
    println!("  everything read after {} ms", begun.elapsed().as_millis());

    // What the system says of the processes that see the disk.
    let appliance = session.appliance().unwrap();
    let level = appliance.level().unwrap();
    assert!(level.has(Level::EMULATED | Level::PID | Level::NET | Level::MOUNT | Level::NO_CAPABILITIES), "{level}");
    assert!(!level.has(Level::VIRTUAL), "{level}");
    let family = descendants(appliance.process_id());
    // Outside, the room's first process, and QEMU, which serves the disk too.
    assert_eq!(family.len(), 3, "{family:?}");
    let words = std::fs::read_to_string(format!("/proc/{}/cmdline", family[2])).unwrap();
    assert!(words.starts_with("/usr/bin/qemu-system-x86_64\0") && words.contains("\0tcg,"), "{words}");
    for pid in &family[1..] {
        confined(*pid, family[0], level);
    }
    // QEMU's own filter stands behind the room's.
    let status = std::fs::read_to_string(format!("/proc/{}/status", family[2])).unwrap();
    let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).map(str::trim);
    assert_eq!(filters, Some("2"), "{status}");
    let memory = status.lines().find(|line| line.starts_with("VmHWM:")).map(str::to_owned);
    println!("  {level}; {memory:?}");

    // Killed, nothing is left of it, and the image is as it was.
    let outside = nix::unistd::Pid::from_raw(family[0] as i32);
    nix::sys::signal::kill(outside, nix::sys::signal::Signal::SIGKILL).unwrap();
    dies(&*appliance);
    gone(&family);
    assert_eq!(digest(&image), before);
}

/// Where KVM is there and runs nothing, as in many a nested machine, or is not there, the proof fails soon and leaves nothing. On a
/// machine where it runs, it is proven.
fn a_processor_that_does_not_run_is_found_out() {
    let kits = folder();
    let mut options = options(kits.path(), Accelerator::Kvm);
    options.patience.start = Duration::from_secs(15);
    let before = descendants(std::process::id());
    let begun = Instant::now();
    let proven = proof::prove(options);
    println!("  {proven:?} after {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    match &proven {
        Ok(()) => {}
        Err(Error::WorkerDied(why) | Error::Io(why)) => assert!(!why.is_empty()),
        Err(Error::Unsupported(why)) => assert!(why.0.contains("confined") && why.0.contains("/dev/kvm"), "{why:?}"),
        Err(other) => panic!("{other}"),
    }
    let left: Vec<u32> = descendants(std::process::id()).into_iter().filter(|pid| !before.contains(pid)).collect();
    gone(&left);
}
