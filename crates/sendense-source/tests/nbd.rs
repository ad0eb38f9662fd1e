//! The NBD source against other people's servers.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, Server, convert, discover, pattern, qemu_img, read_all, request, tool};
use sendense_block::{ByteOffset, Cancel, Extent};
use sendense_source::{Changes, DiscoveredVm, Frozen, Journal, Kind, Source};
use sendense_types::{SourceKind, TrackingToken};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MIB: usize = 1 << 20;

fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

fn open(lab: &Lab, config: &Value, secret: Option<&str>) -> sendense_source::Result<Arc<dyn Source>> {
    sendense_source::open(SourceKind::Nbd, config, secret, lab.context(std::slice::from_ref(&lab.outside)))
}

fn source(lab: &Lab, config: Value) -> Arc<dyn Source> {
    open(lab, &config, None).unwrap()
}

fn nbdkit(lab: &Lab, args: &[&str]) -> (Server, PathBuf) {
    let socket = lab.outside.join("kit.sock");
    let fixed = [OsStr::new("--foreground"), OsStr::new("--readonly"), OsStr::new("--unix"), socket.as_os_str()];
    let args: Vec<&OsStr> = fixed.into_iter().chain(args.iter().map(OsStr::new)).collect();
    (Server::start("nbdkit", "nbdkit", &args, || common::accepts(&socket)), socket)
}

/// One client at a time, as is qemu-nbd's default; persistent, since a test looks several times.
fn qemu_nbd(lab: &Lab, image: &Path, bitmaps: &[&str]) -> (Server, PathBuf) {
    let socket = lab.outside.join("qemu.sock");
    let _ = fs::remove_file(&socket);
    let mut args =
        ["--read-only", "--persistent", "--format=qcow2", "--export-name=web", "--socket"].map(OsStr::new).to_vec();
    args.push(socket.as_os_str());
    for bitmap in bitmaps {
        args.extend([OsStr::new("-B"), OsStr::new(bitmap)]);
    }
    args.push(image.as_os_str());
    (Server::start("qemu-nbd", "qemu-utils", &args, || common::accepts(&socket)), socket)
}

fn freeze(source: &dyn Source, vm: &DiscoveredVm, since: Option<TrackingToken>, lab: &Lab) -> Box<dyn Frozen> {
    let mut request = request(vm);
    request.disks[0].since = since;
    source.freeze(&request, &(lab.journal.clone() as Arc<dyn Journal>), &Cancel::new()).unwrap()
}

fn reason(frozen: &dyn Frozen) -> String {
    match frozen.changes("disk-0").unwrap() {
        Changes::Unknown { reason } => reason,
        Changes::Delta(_) => panic!("changes were believed"),
    }
}

#[test]
fn every_listed_export_is_a_machine() {
    let lab = Lab::new();
    let files = lab.outside.join("files");
    fs::create_dir(&files).unwrap();
    let (one, two) = (pattern(MIB, 1), pattern(2 * MIB, 2));
    fs::write(files.join("one"), &one).unwrap();
    fs::write(files.join("two"), &two).unwrap();
    let (_server, socket) = nbdkit(&lab, &["file", &format!("dir={}", files.display())]);
    let all = source(&lab, json!({ "uri": uri(&socket, "") }));
    let mut vms = discover(&*all);
    vms.sort_by(|a, b| a.vm.name.cmp(&b.vm.name));
    assert_eq!(vms.iter().map(|vm| vm.vm.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    for (vm, bytes) in vms.iter().zip([&one, &two]) {
        assert_eq!(vm.disks[0].capacity.0, bytes.len() as u64);
        assert!(vm.change_tracking.as_ref().unwrap_err().contains("no dirty bitmap"));
        let frozen = freeze(&*all, vm, None, &lab);
        assert_eq!(&read_all(&*frozen.open("disk-0", &Cancel::new()).unwrap()), bytes);
        assert!(frozen.facts().disks[0].token.is_none());
        frozen.check().unwrap();
        frozen.release().unwrap();
    }
    // The same export named in the URI is the same machine with the same disk.
    let single = source(&lab, json!({ "uri": uri(&socket, "two") }));
    let [vm] = discover(&*single).try_into().unwrap();
    assert_eq!((&vm.vm, &vm.disks[0].binding), (&vms[1].vm, &vms[1].disks[0].binding));
    assert_eq!(all.test(&Cancel::new()).unwrap().product, "NBD server, 2 exports");
    // An export that is not there.
    let missing = source(&lab, json!({ "uri": uri(&socket, "three") }));
    assert!(missing.discover(&Cancel::new()).is_err());
}

#[test]
fn a_bitmap_is_believed_only_within_its_epoch() {
    let lab = Lab::new();
    let image = lab.outside.join("web.qcow2");
    convert(&pattern(4 * MIB, 5), &image, "qcow2", &[]);
    let path = image.to_str().unwrap();
    qemu_img(["bitmap", "--add", path, "b0"]);
    let write =
        |at: &str| tool("qemu-io", "qemu-utils", ["-f", "qcow2", "-c", &format!("write -P 171 {at} 64k"), path]);
    let config = |epoch: &str| json!({ "uri": uri(&lab.outside.join("qemu.sock"), "web"), "dirty_bitmap": "b0", "trust_bitmap": true, "bitmap_epoch": epoch });
    let changed = |frozen: &dyn Frozen| match frozen.changes("disk-0").unwrap() {
        Changes::Delta(map) => map.changed(Extent::whole(frozen.facts().disks[0].capacity)).unwrap(),
        Changes::Unknown { reason } => panic!("{reason}"),
    };

    // Not vouched for: reported, not believed, no token.
    let (server, socket) = qemu_nbd(&lab, &image, &["b0"]);
    let doubting = source(&lab, json!({ "uri": uri(&socket, "") }));
    let [vm] = discover(&*doubting).try_into().unwrap();
    assert!(vm.change_tracking.as_ref().unwrap_err().contains("not trusted"));
    assert!(doubting.test(&Cancel::new()).unwrap().warnings[0].contains("b0"));
    let frozen = freeze(&*doubting, &vm, None, &lab);
    assert!(reason(&*frozen).contains("not trusted") && frozen.facts().disks[0].token.is_none());
    drop(frozen);

    // The first point under an epoch: nothing to go by yet, but a token for the next.
    let trusting = source(&lab, config("1"));
    let [vm] = discover(&*trusting).try_into().unwrap();
    assert_eq!(vm.change_tracking, Ok(()));
    let frozen = freeze(&*trusting, &vm, None, &lab);
    assert!(reason(&*frozen).contains("without a trusted bitmap"));
    let first = frozen.facts().disks[0].token.clone().unwrap();
    drop((frozen, server));

    // Changes since then, and still those after the second point.
    write("1M");
    let (server, _) = qemu_nbd(&lab, &image, &["b0"]);
    let frozen = freeze(&*trusting, &vm, Some(first), &lab);
    let set = changed(&*frozen);
    assert!(set.contains(Extent::between(ByteOffset(1 << 20), ByteOffset((1 << 20) + 65536))));
    assert_eq!(set.byte_len().0, 65536);
    let mut byte = [0];
    frozen.open("disk-0", &Cancel::new()).unwrap().read_at(ByteOffset(1 << 20), &mut byte).unwrap();
    assert_eq!(byte, [171]);
    let second = frozen.facts().disks[0].token.clone().unwrap();
    drop((frozen, server));

    // The bitmap is cleared and somebody writes before the next point: the epoch must change, and then nothing is believed.
    qemu_img(["bitmap", "--clear", path, "b0"]);
    write("2M");
    let (_server, _) = qemu_nbd(&lab, &image, &["b0"]);
    let next_epoch = source(&lab, config("2"));
    let frozen = freeze(&*next_epoch, &vm, Some(second), &lab);
    assert!(reason(&*frozen).contains("epoch is \"2\" and was \"1\""));
    assert!(frozen.facts().disks[0].token.is_some());
    drop(frozen);
    // A token of another sort is no token.
    let frozen = freeze(&*next_epoch, &vm, Some(TrackingToken("checkpoint-7".into())), &lab);
    assert!(reason(&*frozen).contains("not one of a dirty bitmap"));
}

#[test]
fn a_bitmap_that_is_gone_is_told() {
    let lab = Lab::new();
    let image = lab.outside.join("web.qcow2");
    convert(&pattern(MIB, 5), &image, "qcow2", &[]);
    let (_server, socket) = qemu_nbd(&lab, &image, &[]);
    let config = json!({ "uri": uri(&socket, "web"), "dirty_bitmap": "b0", "trust_bitmap": true, "bitmap_epoch": "1" });
    let source = source(&lab, config);
    let [vm] = discover(&*source).try_into().unwrap();
    let frozen = freeze(&*source, &vm, None, &lab);
    assert!(reason(&*frozen).contains("does not offer the dirty bitmap \"b0\""));
}

#[test]
fn settings_sockets_and_absent_servers() {
    let lab = Lab::new();
    let kind = |config: Value, secret: Option<&str>| open(&lab, &config, secret).err().map(|error| error.kind);
    assert_eq!(kind(json!({ "uri": "http://x" }), None), Some(Kind::Invalid));
    assert_eq!(kind(json!({ "uri": "nbd://x/y", "epoch": 1 }), None), Some(Kind::Invalid));
    assert_eq!(kind(json!({ "uri": "nbd://x/y", "trust_bitmap": true }), None), Some(Kind::Invalid));
    assert_eq!(kind(json!({ "uri": "nbd://x/y" }), Some("{\"ca\": \"-----BEGIN X\"}")), Some(Kind::Invalid));
    assert_eq!(kind(json!({ "uri": "nbds://x/y" }), Some("{\"ca\": \"-----BEGIN X\"}")), None);

    let discover_kind =
        |path: &Path| source(&lab, json!({ "uri": uri(path, "") })).discover(&Cancel::new()).unwrap_err().kind;
    assert_eq!(discover_kind(Path::new("/run/dbus/system_bus_socket")), Kind::Unsafe);
    assert_eq!(discover_kind(&lab.outside.join("absent.sock")), Kind::Unavailable);
    fs::write(lab.outside.join("file"), "x").unwrap();
    assert_eq!(discover_kind(&lab.outside.join("file")), Kind::Unsafe);
    std::os::unix::fs::symlink("/run/dbus/system_bus_socket", lab.outside.join("link.sock")).unwrap();
    assert_eq!(discover_kind(&lab.outside.join("link.sock")), Kind::Unsafe);
}

struct Pki {
    ca: String,
    server: (String, String),
    client: (String, String),
}

/// An authority, a server `localhost` and a client, made for one test.
fn pki() -> Pki {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let issue = |name: &str, usage: rcgen::ExtendedKeyUsagePurpose| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let server = issue("localhost", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    Pki { ca, server, client: issue("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth) }
}

#[test]
fn certificates_come_from_the_secret() {
    let lab = Lab::new();
    let (ours, theirs) = (pki(), pki());
    for (name, pem) in
        [("ca-cert.pem", &ours.ca), ("server-cert.pem", &ours.server.0), ("server-key.pem", &ours.server.1)]
    {
        fs::write(lab.outside.join(name), pem).unwrap();
    }
    let bytes = pattern(MIB, 8);
    let file = lab.outside.join("disk");
    fs::write(&file, &bytes).unwrap();
    let certificates = format!("--tls-certificates={}", lab.outside.display());
    let (_server, socket) =
        nbdkit(&lab, &["--tls=require", "--tls-verify-peer", &certificates, "file", file.to_str().unwrap()]);
    let config = json!({ "uri": format!("nbds+unix:///?socket={}", socket.display()), "tls_server_name": "localhost" });
    let secret = |ca: &str, client: Option<&(String, String)>| match client {
        Some((certificate, key)) => json!({ "ca": ca, "certificate": certificate, "key": key }).to_string(),
        None => json!({ "ca": ca }).to_string(),
    };
    let good = open(&lab, &config, Some(&secret(&ours.ca, Some(&ours.client)))).unwrap();
    let [vm] = discover(&*good).try_into().unwrap();
    let frozen = freeze(&*good, &vm, None, &lab);
    assert!(read_all(&*frozen.open("disk-0", &Cancel::new()).unwrap()) == bytes);
    for (what, secret) in [
        ("no certificate of ours", Some(secret(&ours.ca, None))),
        ("another authority's client", Some(secret(&ours.ca, Some(&theirs.client)))),
        ("another authority's server", Some(secret(&theirs.ca, Some(&ours.client)))),
        ("the web's authorities", None),
    ] {
        let refused = open(&lab, &config, secret.as_deref()).unwrap().discover(&Cancel::new());
        assert!(refused.is_err(), "{what} was accepted");
    }
}

#[test]
fn a_broken_connection_ends_the_backup() {
    let lab = Lab::new();
    let image = lab.outside.join("web.qcow2");
    convert(&pattern(MIB, 5), &image, "qcow2", &[]);
    let (server, socket) = qemu_nbd(&lab, &image, &[]);
    let source = source(&lab, json!({ "uri": uri(&socket, "web") }));
    let [vm] = discover(&*source).try_into().unwrap();
    let frozen = freeze(&*source, &vm, None, &lab);
    let disk = frozen.open("disk-0", &Cancel::new()).unwrap();
    drop(server);
    // The same image served again is another moment for all we know.
    let (_server, _) = qemu_nbd(&lab, &image, &[]);
    assert!(disk.read_at(ByteOffset(0), &mut [0; 512]).is_err());
}
