//! Restore points over NBD, from a hub and without one, read by other people's programs.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, SENDENSE, cli, field, path, text, tool};
use crate::papers::papers;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

const SIZE: usize = 24 << 20;

/// A chain of three points and what the disk held at each.
fn chain(hub: &Hub, disk: &mut Disk, random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let mut points = Vec::new();
    for round in 0..3 {
        disk.write_somewhere(2 << 20, random);
        if round == 2 {
            // Odd on purpose: neither a multiple of a block nor of a sector.
            disk.resize(SIZE + 70_001);
        }
        let backup = hub.backup("web", &[]);
        points.push((field(&backup, "backup_id").to_owned(), disk.bytes.clone()));
    }
    points
}

/// What `nbdcopy` makes of an export.
fn assert_copies(uri: &str, dir: &Path, want: &[u8]) {
    for connections in ["--connections=1", "--connections=4"] {
        let copy = dir.join("copy");
        tool("libnbd-bin", "nbdcopy", &[connections, uri, path(&copy)]);
        assert_holds(&copy, want);
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[test]
fn every_point_is_readable_by_whoever_knows_its_uri_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(31);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE, &mut random);
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let points = chain(&hub, &mut disk, &mut random);
    hub.fails(3, &["export", "bk-none"]);
    hub.fails(3, &["export", &points[0].0, "--disk", "7"]);

    let mut uris = Vec::new();
    for (id, bytes) in &points {
        let uri = hub.ok(&["export", id]).trim().to_owned();
        assert_copies(&uri, dir, bytes);
        uris.push(uri);
    }
    let mode = std::fs::metadata(hub.data_dir.join("nbd.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The same point twice: another name, the same disk.
    let again = hub.json(&["export", &points[1].0, "--disk", "0"])["export"].clone();
    assert!(field(&again, "uri") != uris[1] && again["read_only"] == true && again["size_bytes"] == points[1].1.len());

    // Without the name there is nothing, and no list.
    let socket = hub.data_dir.join("nbd.sock");
    let nameless = format!("nbd+unix:///?socket={}", path(&socket));
    assert!(!text(&run("nbdinfo", &["--list", &nameless]).stdout).contains(&points[0].0), "strangers see nothing");
    let guess = format!("nbd+unix:///{}-disk0?socket={}", points[0].0, path(&socket));
    assert!(!run("nbdinfo", &["--size", &guess]).status.success(), "the point's id is no key");
    // Viewers see what is open, and not how to read it.
    let token = dir.join("viewer");
    std::fs::write(&token, hub.ok(&["token", "create", "--name", "v", "--role", "viewer"])).unwrap();
    let viewed = text(&cli(&hub.url, Some(&token)).args(["exports", "--json"]).output().unwrap().stdout);
    assert!(viewed.contains(field(&again, "export_id")) && !viewed.contains("nbd+unix"), "{viewed}");

    // Others' programs: map, comparison with a restored disk, a write that is refused.
    let (restored, uri) = (dir.join("restored"), uris[1].as_str());
    hub.ok(&["restore", "disk", &points[1].0, "--to", path(&restored), "--wait"]);
    tool("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", uri, path(&restored)]);
    let copy = dir.join("copy.qcow2");
    tool("qemu-utils", "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, path(&copy)]);
    tool("qemu-utils", "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", path(&copy), path(&restored)]);
    let map = tool("libnbd-bin", "nbdinfo", &["--map", "--totals", uri]);
    assert!(map.contains("data"), "{map}");
    assert!(!run("qemu-io", &["-f", "raw", "-c", "write 0 512", uri]).status.success(), "it is read-only");

    // A point on offer cannot be deleted, and the reason has a name.
    let said = hub.fails(4, &["backup", "delete", &points[0].0, "--cascade", "--yes"]);
    assert!(said.contains("export exp-"), "{said}");
    let listed = hub.json(&["exports"]);
    assert_eq!(listed["total"], 4);
    let exports = listed["exports"].as_array().unwrap();
    assert!(exports.iter().any(|export| export["bytes_read"].as_u64() > Some(1 << 20)), "{listed:#}");
    for export in exports {
        hub.ok(&["unexport", field(export, "export_id")]);
    }
    hub.fails(3, &["unexport", field(&again, "export_id")]);
    assert!(!run("nbdinfo", &["--size", uri]).status.success(), "it was taken back");

    // Nothing of an export outlives the hub, however it ends; the next one is not disturbed by what is left.
    let uri = hub.ok(&["export", &points[2].0]).trim().to_owned();
    hub.kill_9();
    let hub = Hub::start(dir);
    assert_eq!(hub.json(&["exports"])["total"], 0);
    let next = hub.ok(&["export", &points[2].0]).trim().to_owned();
    assert!(!run("nbdinfo", &["--size", &uri]).status.success(), "a name of an earlier life");
    assert_copies(&next, dir, &points[2].1);
    let id = field(&hub.json(&["exports"])["exports"][0], "export_id").to_owned();
    hub.ok(&["unexport", &id]);
    hub.ok(&["backup", "delete", &points[0].0, "--cascade", "--yes"]);
    assert_eq!(hub.stop(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_port_serves_exports_where_the_operator_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut Random::new(33));
    let log = Hub::launch(dir, "open", &["--nbd-listen", "0.0.0.0:0"]).map(|_| ()).unwrap_err();
    assert!(log.contains("certificates"), "{log}");
    let hub = Hub::launch(dir, "hub", &["--nbd-listen", "127.0.0.1:0", "--exports-max", "1"]).unwrap();
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    let uri = hub.ok(&["export", field(&backup, "backup_id")]).trim().to_owned();
    assert!(uri.starts_with("nbd://127.0.0.1:"), "{uri}");
    assert_copies(&uri, dir, &disk.bytes);
    let said = hub.fails(5, &["export", field(&backup, "backup_id")]);
    assert!(said.contains("1 exports"), "{said}");
}

#[test]
fn beyond_this_machine_clients_show_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ours, theirs, nobodys) = (dir.join("ours"), dir.join("theirs"), dir.join("nobodys"));
    papers(&ours);
    papers(&theirs);
    // Strangers who trust the hub: one with a certificate of another authority, one with none.
    std::fs::create_dir(&nobodys).unwrap();
    for folder in [&theirs, &nobodys] {
        std::fs::copy(ours.join("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
    }
    let disk = Disk::create(&dir.join("vms/web/disk0.raw"), 4 << 20, &mut Random::new(34));
    let file = |name: &str| path(&ours.join(name)).to_owned();
    let (cert, key, ca) = (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    let open =
        ["--nbd-listen", "0.0.0.0:0", "--nbd-tls-cert", &cert, "--nbd-tls-key", &key, "--nbd-tls-client-ca", &ca];
    let log = Hub::launch(dir, "nameless", &open).map(|_| ()).unwrap_err();
    assert!(log.contains("--nbd-host"), "a URI must lead somewhere: {log}");
    let hub = Hub::launch(dir, "hub", &[&open[..], &["--nbd-host", "localhost"]].concat()).unwrap();
    hub.set_up_images(dir);
    let backup = hub.backup("web", &[]);
    let uri = hub.ok(&["export", field(&backup, "backup_id")]).trim().to_owned();
    let (port, name) = uri.strip_prefix("nbds://localhost:").unwrap().split_once('/').unwrap();

    let with = |papers: &Path| format!("{uri}?tls-certificates={}", papers.display());
    assert_copies(&with(&ours), dir, &disk.bytes);
    let image = format!("driver=nbd,host=localhost,port={port},export={name},tls-creds=tls");
    let compare = |papers: &Path| {
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", papers.display());
        let raw = format!("driver=file,filename={}", disk.path.display());
        run("qemu-img", &["compare", "--object", &credentials, "--image-opts", &image, &raw])
    };
    let same = compare(&ours);
    assert!(same.status.success(), "{}{}", text(&same.stdout), text(&same.stderr));
    for stranger in [&theirs, &nobodys] {
        assert!(!run("nbdinfo", &["--size", &with(stranger)]).status.success(), "{}", stranger.display());
        assert_eq!(compare(stranger).status.code(), Some(2), "an error, not a difference: {}", stranger.display());
    }
    // Without TLS nothing is said, not even to somebody who knows the name.
    for plain in [format!("nbd://localhost:{port}/{name}"), format!("nbd://localhost:{port}/")] {
        assert!(!run("nbdinfo", &[&plain]).status.success(), "{plain}");
        assert!(!run("nbdinfo", &["--list", &plain]).status.success(), "{plain}");
    }
    let secret = name.rsplit_once("-disk0-").unwrap().1;
    assert!(!hub.log().contains(secret), "the log may be read by others");
}

/// `sendense offline export`, until it is dropped.
struct Rescue(Child);

impl Rescue {
    fn start(repo: &Path, socket: &Path) -> Self {
        let mut command = Command::new(SENDENSE);
        command.args(["offline", "export", "--repo-path", path(repo), "--socket", path(socket)]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn lines(&mut self) -> impl Iterator<Item = std::io::Result<String>> + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines()
    }

    /// Ends it with Ctrl-C; gives its exit code and what it said.
    fn interrupted(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let patience = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < patience, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        (status.code(), std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap())
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_repository_folder_is_served_with_no_hub() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut random = Random::new(32);
    let mut disk = Disk::create(&dir.join("vms/web/disk0.raw"), SIZE, &mut random);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let points = chain(&hub, &mut disk, &mut random);
    let vm = field(&hub.json(&["backup", "show", &points[0].0])["backup"], "vm_context_id").to_owned();
    assert_eq!(hub.stop(), Some(0));

    let socket = dir.join("rescue.sock");
    let mut rescue = Rescue::start(&dir.join("repo"), &socket);
    let mut lines = rescue.lines();
    let uris: Vec<String> = lines.by_ref().take(3).map(Result::unwrap).collect();
    let list = tool("libnbd-bin", "nbdinfo", &["--list", &format!("nbd+unix:///?socket={}", path(&socket))]);
    for (id, bytes) in &points {
        let name = format!("{vm}/{id}/disk-0");
        assert!(list.contains(&name), "{name}: {list}");
        let uri = uris.iter().find(|uri| uri.contains(id.as_str())).unwrap();
        assert_copies(uri, dir, bytes);
    }
    assert_eq!(rescue.interrupted().0, Some(0));
    assert!(!socket.exists());

    // Of a chain of three the middle image is gone and the last manifest is torn.
    let repo = dir.join("repo");
    std::fs::remove_file(repo.join(&vm).join("disk-0").join(format!("{}.qcow2", points[1].0))).unwrap();
    let manifest = repo.join(&vm).join(format!("{}.json", points[2].0));
    let text = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    let mut rescue = Rescue::start(&repo, &socket);
    let mut lines = rescue.lines();
    let uri = lines.next().unwrap().unwrap();
    assert!(uri.contains(points[0].0.as_str()), "{uri}");
    assert_copies(&uri, dir, &points[0].1);
    let (code, said) = rescue.interrupted();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("warning: {vm}/{}/disk-0 is left out", points[1].0)), "{said}");
    assert!(said.contains(points[2].0.as_str()) && said.contains("1 disks are on offer"), "{said}");
}
