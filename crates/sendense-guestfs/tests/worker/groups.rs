//! Control groups of version 2, which few machines that build have: User Mode Linux, started with this machine's files as its root,
//! has nothing else. There a hub is put into a group as systemd puts it into a service's, with and without the rights of root.

use super::Test;
use super::images::{evil, folder, options, path, volume};
use sendense_guestfs::client::{Worker, prepare_groups};
use sendense_guestfs::sandbox::Level;
use sendense_guestfs::{Error, Session};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

pub const TESTS: &[Test] = &[
    ("groups_of_version_2_bound_what_is_started", groups_of_version_2_bound_what_is_started),
    ("the_packaged_service_gives_its_groups_away", the_packaged_service_gives_its_groups_away),
];

/// A user that owns nothing but its group.
const USER: u32 = 4242;
/// What a guest's program says at its end; it has no other way to tell how it went.
const DONE: &str = "has been shown";

/// What a service manager does for a service whose groups it gives away, and then the hub's part in each: as root; as a user; where
/// another process is in the group, as when a hub is started from a shell; where groups are for reading only, as in many a
/// container; and where only memory can be bounded.
const STORY: &str = r#"#!/bin/bash
trap '/bin/busybox poweroff -n -f' EXIT
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 -o nsdelegate groups /sys/fs/cgroup
cd /sys/fs/cgroup
echo '+memory +pids' > cgroup.subtree_control
mkdir root user shared
# What a hub that was killed left.
mkdir root/sendense-reader-4194305-7 user/sendense-reader-4194305-7
chown -R USER:USER user/sendense-reader-4194305-7
chown USER:USER user user/cgroup.procs user/cgroup.threads user/cgroup.subtree_control
as_user="setpriv --reuid=USER --regid=USER --clear-groups --inh-caps=-all --bounding-set=-all"
bash -c 'echo $$ > root/cgroup.procs; exec "$0" groups:bounded:root' DIR/worker
bash -c 'echo $$ > user/cgroup.procs; exec $1 "$0" groups:bounded:user' DIR/worker "$as_user"
bash -c 'echo $$ > shared/cgroup.procs; "$0" groups:none:shared; true' DIR/worker
mkdir little
rmdir root/sendense-hub root user/sendense-hub user
echo '-pids' > cgroup.subtree_control
bash -c 'echo $$ > little/cgroup.procs; exec "$0" groups:none:little/sendense-hub' DIR/worker
mount -o remount,ro /sys/fs/cgroup
bash -c 'exec "$0" groups:none:' DIR/worker
"#;

fn groups_of_version_2_bound_what_is_started() {
    let told = guest(STORY);
    assert_eq!(told.matches(DONE).count(), 5, "{told}");
}

/// The service as it is packaged, under systemd, with this program in the hub's place and what it does not bring left out: its user,
/// its folders, the services before it.
const SERVICE: &str = r#"#!/bin/bash
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs -o mode=755 run /run
units=/run/systemd/system
mkdir -p $units/sendense-hub.service.d
sed -E '/^(Wants|After|User|Group|SupplementaryGroups|StateDirectory|RuntimeDirectory|Type|Restart)=/d' DIR/unit > $units/sendense-hub.service
cat > $units/sendense-hub.service.d/place.conf <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
User=nobody
ExecStart=
ExecStart=DIR/worker groups:bounded:system.slice/sendense-hub.service
StandardOutput=file:/dev/console
StandardError=file:/dev/console
END
cat > $units/shown.service <<END
[Unit]
DefaultDependencies=no
Wants=sendense-hub.service
After=sendense-hub.service
[Service]
Type=oneshot
StandardOutput=file:/dev/console
ExecStart=systemctl show sendense-hub.service -p DelegateControllers -p OOMPolicy -p Result
ExecStopPost=systemctl poweroff --force --force
END
printf '[Unit]\nDefaultDependencies=no\nRequires=shown.service\n' > $units/story.target
exec /lib/systemd/systemd --unit=story.target --log-target=console
"#;

/// A reader that takes more than its group may is ended by the kernel, and the service goes on.
fn the_packaged_service_gives_its_groups_away() {
    let told = guest(SERVICE);
    for word in [DONE, "DelegateControllers=memory pids", "OOMPolicy=continue", "Result=success"] {
        assert!(told.contains(word), "{word} (it needs the Debian package systemd, too)\n{told}");
    }
}

/// Runs a script as the first program of a guest that sees this machine's files, and gives what it says.
fn guest(script: &str) -> String {
    let dir = folder();
    let at = dir.path().to_str().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where this program lies a user may not come.
    fs::copy(std::env::current_exe().unwrap(), dir.path().join("worker")).unwrap();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/sendense-hub.service");
    fs::copy(unit, dir.path().join("unit")).unwrap();
    let init = dir.path().join("init");
    fs::write(&init, script.replace("DIR", at).replace("USER", &USER.to_string())).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let run = Command::new("linux.uml")
        .args(["mem=384M", "rootfstype=hostfs", "rootflags=/", "ro", &format!("init={}", init.display())])
        .args(["quiet", "con=null", "con0=null,fd:1", "ssl=null", "noreboot", &format!("uml_dir={at}")])
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("linux.uml: {error}: install the Debian package user-mode-linux"));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

/// The hub's part, in the guest: what it must find, and in which group it was put.
pub fn inside(story: &str) -> ExitCode {
    let own = |process: u32| fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    let me = std::process::id();
    match story.split_once(':').unwrap() {
        ("bounded", group) => {
            assert_eq!(own(me), format!("0::/{group}\n"));
            prepare_groups();
            assert_eq!(own(me), format!("0::/{group}/sendense-hub\n"), "it has left the group that it divides");
            let place = Path::new("/sys/fs/cgroup").join(group);
            assert!(!place.join("sendense-reader-4194305-7").exists(), "what a dead hub left stays");
            for number in 0..2 {
                let mut options = options("evil");
                options.bounds.memory_bytes = 48 << 20;
                let worker = Worker::start(options).unwrap();
                let level = worker.level().unwrap();
                let root = nix::unistd::Uid::effective().is_root();
                assert!(level.has(Level::CONTROL_GROUP) && level.has(Level::OWN_ID) == root, "{level}");
                assert_eq!(root, group == "root");
                let name = format!("sendense-reader-{me}-{number}");
                assert_eq!(own(worker.process_id()), format!("0::/{group}/{name}\n"));
                let folder = place.join(name);
                let holds = |file: &str| fs::read_to_string(folder.join(file)).unwrap().trim().to_owned();
                assert_eq!(holds("memory.max"), (48 << 20).to_string());
                assert_eq!((holds("pids.max"), holds("cgroup.procs")), ("1".into(), worker.process_id().to_string()));
                assert_eq!(worker.stat(&volume("disk"), &path("/quiet")).unwrap().size_bytes, 1);
                // Its own limit is ten times that; who ends it is the kernel.
                let answer = worker.stat(&volume("disk"), &path("/memory"));
                assert_eq!(answer, Err(Error::WorkerDied("it was killed".into())));
                Box::new(worker).close();
                assert!(!folder.exists(), "a group outlives its process");
            }
        }
        ("none", group) => {
            prepare_groups();
            assert_eq!(own(me), format!("0::/{group}\n"), "it is where it is left");
            let worker = evil();
            assert!(!worker.level().unwrap().has(Level::CONTROL_GROUP), "{}", worker.level().unwrap());
            assert_eq!(worker.stat(&volume("disk"), &path("/quiet")).unwrap().size_bytes, 1);
            assert_eq!(own(worker.process_id()), format!("0::/{group}\n"));
        }
        _ => panic!("no story {story}"),
    }
    println!("{story} {DONE}");
    ExitCode::SUCCESS
}
