//! An NBD server with certificates on both sides and a dirty bitmap, set up by the command line alone.

use crate::disk::{Disk, Random, assert_holds};
use crate::hub::{Hub, PATIENCE, cli, field, holders, path, text, tool, tree};
use crate::papers::papers;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SIZE: usize = 16 << 20;

/// A server of one image with the bitmap `b0`; ends with the test.
struct Server(Child);

impl Server {
    fn start(image: &Path, socket: &Path, papers: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", papers.display());
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--persistent", "--shared=8", "--format=qcow2", "--export-name=web", "-B", "b0"])
            .args(["--object", &credentials, "--tls-creds", "tls", "--socket"])
            .args([socket, image])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd: {error}; install the Debian package qemu-utils"));
        let patience = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < patience, "qemu-nbd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes the same into the image (which the bitmap records) and into the disk that it should be.
fn write(image: &Path, disk: &mut Disk, at: usize, len: usize, pattern: u8) {
    tool("qemu-utils", "qemu-io", &["-f", "qcow2", "-c", &format!("write -P {pattern} {at} {len}"), path(image)]);
    disk.bytes[at..at + len].fill(pattern);
}

#[test]
fn an_encrypted_server_with_a_bitmap_is_set_up_backed_up_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (socket, image, certificates) = (dir.join("nbd.sock"), dir.join("web.qcow2"), dir.join("papers"));
    papers(&certificates);
    let mut disk = Disk::create(&dir.join("content.raw"), SIZE, &mut Random::new(21));
    let convert = ["convert", "-f", "raw", "-O", "qcow2", path(&disk.path), path(&image)];
    tool("qemu-utils", "qemu-img", &convert);
    tool("qemu-utils", "qemu-img", &["bitmap", "--add", path(&image), "b0"]);
    let server = Server::start(&image, &socket, &certificates);

    let hub = Hub::start_talkative(dir);
    std::fs::create_dir(dir.join("repo")).unwrap();
    hub.ok(&["repo", "add", "local", "--name", "main", "--path", path(&dir.join("repo"))]);
    let uri = format!("nbds+unix:///web?socket={}", socket.display());
    let paper = |name: &str| -> PathBuf { certificates.join(name) };
    let (ca, cert, key) = (paper("ca-cert.pem"), paper("client-cert.pem"), paper("client-key.pem"));

    // A stranger of the server's, and a server of strangers.
    let add = ["source", "add", "nbd", "--uri", &uri, "--tls-server-name", "disk.example"];
    hub.ok(&[&add[..], &["--name", "no-papers", "--tls-ca", path(&ca)]].concat());
    hub.ok(&[&add[..], &["--name", "no-trust", "--tls-cert", path(&cert), "--tls-key", path(&key)]].concat());
    for name in ["no-papers", "no-trust"] {
        assert!(!hub.run(&["source", "test", name]).status.success(), "{name} was served");
    }

    // The key's file by the environment, as a service would have it.
    let added = cli(&hub.url, Some(&hub.data_dir.join("admin-token")))
        .args(add)
        .args(["--name", "nbd", "--tls-ca", path(&ca), "--tls-cert", path(&cert), "--connections", "2"])
        .args(["--dirty-bitmap", "b0", "--trust-bitmap", "--bitmap-epoch", "1", "--json"])
        .env("SENDENSE_SOURCE_TLS_KEY_FILE", &key)
        .output()
        .unwrap();
    assert!(added.status.success(), "{}", text(&added.stderr));
    let shown = hub.json(&["source", "show", "nbd"]);
    let options = &shown["source"]["nbd"];
    assert_eq!(options["dirty_bitmap"], "b0");
    assert_eq!((&options["trust_bitmap"], &options["connections"]), (&true.into(), &2.into()));
    assert_eq!(shown["source"]["has_credentials"], true);
    assert!(!shown.to_string().contains("PRIVATE KEY") && !text(&added.stdout).contains("PRIVATE KEY"));
    assert!(hub.ok(&["source", "show", "nbd"]).contains("b0 (trusted, epoch 1)"));

    hub.ok(&["source", "discover", "nbd"]);
    let full = hub.backup("web", &[]);
    assert_eq!(field(&full, "backup_type"), "full");
    // Two blocks are written; tracking finds them, and only they are read and sent.
    drop(server);
    write(&image, &mut disk, 3 << 20, 65536, 171);
    write(&image, &mut disk, 9 << 20, 65536, 172);
    let server = Server::start(&image, &socket, &certificates);
    let second = hub.backup("web", &[]);
    assert_eq!((field(&second, "backup_type"), &second["type_reason"]), ("incremental", &serde_json::Value::Null));
    assert_eq!(second["bytes_transferred"], 2 * 65536);
    let task = hub.json(&["task", "show", field(&second, "task_id")]);
    assert_eq!(task["task"]["bytes_total"], 2 * 65536, "only what changed was read");

    // The bitmap is cleared, somebody writes, and the epoch says so: everything is read, only what differs is sent.
    drop(server);
    tool("qemu-utils", "qemu-img", &["bitmap", "--clear", path(&image), "b0"]);
    write(&image, &mut disk, 5 << 20, 65536, 173);
    let _server = Server::start(&image, &socket, &certificates);
    hub.ok(&["source", "update", "nbd", "--bitmap-epoch", "2"]);
    assert_eq!(hub.json(&["source", "show", "nbd"])["source"]["nbd"]["connections"], 2, "the rest stays");
    let third = hub.backup("web", &[]);
    assert!(field(&third, "type_reason").contains("epoch"), "{third:#}");
    assert_eq!(third["bytes_transferred"], 65536);
    let task = hub.json(&["task", "show", field(&third, "task_id")]);
    assert!(task["task"]["bytes_total"].as_u64().unwrap() > 1 << 20, "all was read: {task:#}");

    let restored = dir.join("restored.raw");
    hub.ok(&["restore", "disk", field(&third, "backup_id"), "--to", path(&restored), "--wait"]);
    assert_holds(&restored, &disk.bytes);

    // What does not belong together is refused, and says what.
    let refused = hub.fails(2, &["source", "update", "nbd", "--address", "nbd://127.0.0.1:1/web"]);
    assert!(refused.contains("not encrypted") && refused.contains("code invalid_input"), "{refused}");
    let refused = hub.fails(2, &["source", "add", "nbd", "--name", "x", "--uri", "nbd://h/e", "--trust-bitmap"]);
    assert!(refused.contains("bitmap_epoch"), "{refused}");
    let refused = hub.fails(2, &["source", "update", "nbd", "--username", "u", "--password-file", path(&key)]);
    assert!(refused.contains("credentials.username means nothing") && !refused.contains("PRIVATE"), "{refused}");
    // However much is logged, no secret is: neither a token nor a line of the key.
    let log = hub.log();
    let token = std::fs::read_to_string(hub.data_dir.join("admin-token")).unwrap();
    let key_text = std::fs::read_to_string(&key).unwrap();
    assert!(log.contains(" TRACE ") || log.contains("TRACE"), "the hub does not log all");
    for secret in key_text.lines().filter(|line| !line.starts_with("-----")).chain([token.trim()]) {
        assert!(!log.contains(secret), "the log holds a secret");
    }
    // Nor does it lie anywhere in the hub's folder: not in the catalog, nor in what SQLite writes beside it.
    let files = tree(&hub.data_dir);
    assert!(
        files.iter().any(|name| name == "catalog.db") && files.iter().any(|name| name == "catalog.db-wal"),
        "{files:?}"
    );
    for secret in key_text.lines().filter(|line| !line.starts_with("-----")) {
        assert_eq!(holders(&hub.data_dir, secret), [""; 0], "a line of the private key is kept in clear");
    }
    hub.ok(&["source", "update", "nbd", "--forget-credentials"]);
    assert_eq!(hub.json(&["source", "show", "nbd"])["source"]["has_credentials"], false);
}
