//! The hub as a service of systemd's: what it tells, and when.

use crate::disk::{Disk, Random};
use crate::hub::{Hub, PATIENCE, SENDENSE, field, path, text};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

/// The next message of the service; nothing when none came for as long as the socket waits.
fn told(socket: &UnixDatagram) -> Option<String> {
    let mut message = [0; 4096];
    let len = socket.recv(&mut message).ok()?;
    Some(text(&message[..len]).trim().to_owned())
}

fn notified(socket: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg(format!("NOTIFY_SOCKET={}", path(socket)));
    command
}

#[test]
fn systemd_is_told_when_the_hub_serves_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("notify.sock");
    let socket = UnixDatagram::bind(&at).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();

    // A hub that cannot listen is never ready, though all else of it starts.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failed = notified(&at)
        .args([SENDENSE, "hub", "--listen", &address, "--data-dir", path(&dir.path().join("hub"))])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    // It has ended, so that whatever it said is there.
    socket.set_nonblocking(true).unwrap();
    assert_eq!(told(&socket), None, "a hub that did not start told something");
    socket.set_nonblocking(false).unwrap();

    let hub = Hub::start_below(dir.path(), notified(&at));
    assert_eq!(told(&socket).as_deref(), Some("READY=1"));
    TcpStream::connect(hub.url.strip_prefix("http://").unwrap()).unwrap();
    assert_eq!(hub.stop(), Some(0));
    assert_eq!(told(&socket).as_deref(), Some("STOPPING=1"));
    socket.set_nonblocking(true).unwrap();
    assert_eq!(told(&socket), None);
}

#[test]
fn without_libvirt_the_hub_serves_its_other_sources_and_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Disk::create(&dir.join("vms/web.raw"), 1 << 20, &mut Random::new(91));
    // Where virsh is installed its file is covered, for the hub alone, by something that is no program.
    let hide = r#"for folder in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin; do
        if [ -e $folder/virsh ]; then mount --bind /dev/null $folder/virsh; fi; done; PATH=/nowhere exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", hide, "sh"]);
    let hub = Hub::start_below(dir, command);
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    hub.ok(&["backup", "verify", field(&backup, "backup_id"), "--deep"]);

    hub.ok(&["source", "add", "libvirt", "--name", "kvm", "--running-tasks-max", "2"]);
    assert_eq!(hub.json(&["source", "show", "kvm"])["source"]["running_tasks_max"], 2);
    for verb in ["test", "discover"] {
        let output = hub.run(&["source", verb, "kvm"]);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("virsh"), "{said}");
        assert!(said.contains("install the package libvirt-clients"), "{said}");
    }
    // It was no more than that source's trouble.
    hub.ok(&["source", "update", "kvm", "--running-tasks-max", "3"]);
    let shown = hub.ok(&["source", "show", "kvm"]);
    let limit = shown.lines().find_map(|line| line.trim_start().strip_prefix("tasks at once:")).map(str::trim);
    assert_eq!(limit, Some("3"), "{shown}");
    hub.backup("web", &[]);
}
