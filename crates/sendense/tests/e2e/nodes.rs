//! Nodes: letting one in, what it may do, and putting it out again.

use crate::hub::{Hub, PATIENCE, cli, field, path, text, tool};
use crate::proxy::Proxy;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

/// A hub that serves TLS with a certificate of its own making, as nodes need it.
pub struct TlsHub {
    pub hub: Hub,
    certificate: PathBuf,
    pub fingerprint: String,
}

impl TlsHub {
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// The same with more arguments.
    pub fn start_with(dir: &Path, more: &[&str]) -> Self {
        let hub = Hub::launch(dir, "hub", &[&["--listen", "0.0.0.0:0"], more].concat());
        let hub = hub.unwrap_or_else(|log| panic!("{log}"));
        let certificate = hub.data_dir.join("tls/certificate.pem");
        let shown =
            tool("openssl", "openssl", &["x509", "-noout", "-fingerprint", "-sha256", "-in", path(&certificate)]);
        let fingerprint = shown.trim().rsplit('=').next().unwrap().to_owned();
        Self { hub, certificate, fingerprint }
    }

    /// Starts it once more, where its nodes know it.
    pub fn start_again(&mut self, dir: &Path, more: &[&str]) {
        let listen = format!("0.0.0.0:{}", self.hub.url.rsplit(':').next().unwrap());
        let patience = Instant::now() + PATIENCE;
        self.hub = loop {
            match Hub::launch(dir, "hub", &[&["--listen", &listen], more].concat()) {
                Ok(hub) => break hub,
                // Nothing holds the port meanwhile: somebody's connection may have got it for its own end.
                Err(log) if log.contains("Address already in use") && Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(log) => panic!("{log}"),
            }
        };
    }

    /// The command line as the administrator.
    pub fn admin(&self, args: &[&str]) -> Output {
        let token = self.hub.data_dir.join("admin-token");
        cli(&self.hub.url, Some(&token)).env("SENDENSE_CA_FILE", &self.certificate).args(args).output().unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.admin(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stderr), self.hub.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the command line as the administrator and expects success.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.admin(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output.stderr), self.hub.log());
        text(&output.stdout)
    }

    /// Backs a machine up and waits; gives the backup object.
    pub fn backup(&self, vm: &str) -> Value {
        self.json(&["backup", "start", vm, "--repo", "main", "--wait"])["backup"].clone()
    }

    /// A pairing code.
    pub fn pair(&self, name: &str) -> String {
        let pairing = self.json(&["node", "pair", "--name", name]);
        let plain: String = self.fingerprint.chars().filter(|c| *c != ':').collect();
        assert_eq!(field(&pairing, "fingerprint"), plain.to_lowercase());
        field(&pairing, "code").to_owned()
    }

    /// Enrols a node in `folder`.
    pub fn enrol(&self, folder: &Path, code: &str, more: &[&str]) -> Output {
        let args = [&["enrol", "--hub", &self.hub.url, "--code", code, "--data-dir", path(folder)], more].concat();
        node(&args)
    }
}

/// `sendense node`, without a token.
fn node(args: &[&str]) -> Output {
    cli("http://127.0.0.1:1", None).arg("node").args(args).output().unwrap()
}

fn check(folder: &Path) -> Output {
    node(&["check", "--data-dir", path(folder)])
}

#[track_caller]
pub fn ended(output: &Output, code: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}{stderr}", text(&output.stdout));
    stderr
}

#[test]
fn a_node_comes_in_by_a_code_once_and_goes_at_once_when_it_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let hub = TlsHub::start(folder.path());
    let (site, other) = (folder.path().join("site-a"), folder.path().join("other"));
    let pinned = ["--fingerprint", &hub.fingerprint];

    let code = hub.pair("SITE-A");
    ended(&hub.enrol(&site, "2222-2222-2222", &pinned), 7);
    ended(&hub.enrol(&site, &code.to_lowercase(), &pinned), 0);
    let key = std::fs::metadata(site.join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert!(ended(&hub.enrol(&other, &code, &pinned), 7).contains("pairing code"), "a code worked twice");
    assert!(ended(&hub.enrol(&site, &code, &pinned), 1).contains("SITE-A"), "an identity was overwritten");
    ended(&check(&site), 0);
    assert!(ended(&check(&other), 1).contains("enrol"));

    let nodes = hub.json(&["node", "list"]);
    assert_eq!(nodes["total"], 1, "{nodes:#}");
    let listed = &nodes["nodes"][0];
    assert_eq!((field(listed, "name"), field(listed, "version")), ("SITE-A", env!("CARGO_PKG_VERSION")));
    assert!(listed["last_seen_at"].is_string(), "{listed:#}");
    let taken = hub.admin(&["node", "pair", "--name", "SITE-A"]);
    assert!(ended(&taken, 4).contains("SITE-A"));

    ended(&hub.admin(&["node", "revoke", "SITE-A"]), 0);
    assert!(ended(&check(&site), 7).contains("revoked"));
    assert_eq!(hub.json(&["node", "list"])["total"], 0);
    // The name is free, and the machine that was put out does not come back by it.
    let code = hub.pair("SITE-A");
    ended(&hub.enrol(&other, &code, &pinned), 0);
    ended(&check(&other), 0);
    ended(&check(&site), 7);
    ended(&hub.admin(&["node", "revoke", "NO-SUCH"]), 3);
}

#[test]
fn a_hub_that_nobody_confirmed_is_sent_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let hub = TlsHub::start(folder.path());
    let site = folder.path().join("site-a");
    let code = hub.pair("SITE-A");
    let asked = ended(&hub.enrol(&site, &code, &[]), 1);
    let plain: String = hub.fingerprint.chars().filter(|c| *c != ':').collect();
    assert!(asked.contains(&plain.to_lowercase()) && asked.contains("--fingerprint"), "{asked}");
    let wrong = ended(&hub.enrol(&site, &code, &["--fingerprint", &"ab".repeat(32)]), 5);
    assert!(wrong.contains(&plain.to_lowercase()), "it does not say which one was found: {wrong}");
    // The code was not spent on either.
    ended(&hub.enrol(&site, &code, &["--ca-file", path(&hub.certificate)]), 0);
    ended(&check(&site), 0);

    // Another certificate of the hub's is taken only when it is confirmed, too.
    let trusted = node(&["trust", "--data-dir", path(&site)]);
    assert!(ended(&trusted, 1).contains(&plain.to_lowercase()));
    ended(&node(&["trust", "--data-dir", path(&site), "--fingerprint", &hub.fingerprint]), 0);
    ended(&check(&site), 0);

    let elsewhere = tempfile::tempdir().unwrap();
    let plain = Hub::start(elsewhere.path());
    assert!(plain.fails(4, &["node", "pair", "--name", "SITE-B"]).contains("plain HTTP"));
}

#[test]
fn a_node_reaches_its_hub_through_a_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let hub = TlsHub::start(folder.path());
    let site = folder.path().join("site-a");
    let proxy = Proxy::start();
    let code = hub.pair("SITE-A");
    let through = format!("http://{}", proxy.address);
    ended(&hub.enrol(&site, &code, &["--fingerprint", &hub.fingerprint, "--proxy", &through]), 0);
    let enrolled = proxy.tunnels();
    assert!(enrolled > 0, "the hub was reached beside the proxy");
    ended(&check(&site), 0);
    assert!(proxy.tunnels() > enrolled, "the proxy was forgotten");
}
