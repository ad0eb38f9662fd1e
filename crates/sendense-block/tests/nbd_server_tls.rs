//! Who gets into the NBD server with TLS, and how far the others get.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::house::House;
use nbd_support::papers::Papers;
use nbd_support::{noise, open, read_all, run};
use sendense_block::backend::Memory;
use sendense_block::error::chain;
use sendense_block::nbd::server::{Device, ExportGuard, ExportOptions, Listen, ServerTls};
use sendense_block::nbd::{self, Client, TlsIdentity, TlsOptions};
use sendense_block::{ByteOffset, Cancel, Kind, ReadAt};
use std::process::Command;

fn tls(papers: &Papers) -> ServerTls {
    let identity =
        TlsIdentity { certificate_file: papers.file("server-cert.pem"), key_file: papers.file("server-key.pem") };
    ServerTls { identity, client_ca_file: papers.file("ca-cert.pem") }
}

fn house(papers: &Papers, bytes: &[u8]) -> (House, ExportGuard) {
    let house = House::new(|options| options.tls = Some(tls(papers)));
    let device = Device::read_only(Memory::from_bytes(bytes.to_vec()));
    let guard = house.exports.add("disk", device, ExportOptions::default()).unwrap();
    (house, guard)
}

fn refused(options: &nbd::Options) -> Kind {
    let error =
        Client::connect(options, &Cancel::new()).and_then(|client| client.read_at(ByteOffset(0), &mut [0; 512]));
    let error = error.expect_err("this must be refused");
    assert!([Kind::Denied, Kind::Unavailable].contains(&error.kind), "{}", chain(&error));
    error.kind
}

#[test]
fn our_client_needs_papers_of_the_right_authority() {
    let (papers, strangers) = (Papers::new(), Papers::new());
    let bytes = noise(5 << 20, 8);
    let (house, _guard) = house(&papers, &bytes);
    let with = |tls: TlsOptions| nbd::Options { tls: Some(tls), ..house.options("disk") };
    let client = open(&nbd::Options { connections: 3, ..with(papers.trust_and_show()) });
    assert!(read_all(&client) == bytes);
    refused(&with(papers.trust()));
    refused(&with(TlsOptions { identity: strangers.trust_and_show().identity, ..papers.trust() }));
    // Without TLS, not even whether there is such an export is said.
    for name in ["disk", "other"] {
        let uri = nbd::Uri::unix(house.path("nbd.sock"), name).unwrap();
        let error = Client::connect(&nbd::Options::new(uri), &Cancel::new()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
    }
    assert!(read_all(&client) == bytes, "others' failures are not ours");
}

#[test]
fn a_port_for_everybody_with_papers() {
    let papers = Papers::new();
    let house = House::new(|options| {
        options.listen = Listen::Tcp("0.0.0.0:0".parse().unwrap());
        options.tls = Some(tls(&papers));
    });
    let device = Device::read_only(Memory::from_bytes(noise(100_001, 1)));
    let _guard = house.exports.add("disk", device, ExportOptions::default()).unwrap();
    let nbd::Address::Tcp { port, .. } = house.server.address() else { panic!("it listens on TCP") };
    let uri = nbd::Uri::tcp("127.0.0.1", *port, "disk").unwrap().with_tls();
    let trust = TlsOptions { server_name: Some("localhost".into()), ..papers.trust_and_show() };
    let client = open(&nbd::Options { tls: Some(trust), ..nbd::Options::new(uri) });
    assert!(read_all(&client) == noise(100_001, 1));
}

#[test]
fn certificates_that_cannot_be_used_are_named_at_the_start() {
    let papers = Papers::new();
    let mut broken = tls(&papers);
    broken.client_ca_file = papers.file("absent.pem");
    let options = nbd::server::Options {
        tls: Some(broken),
        ..nbd::server::Options::new(Listen::Tcp("127.0.0.1:0".parse().unwrap()))
    };
    let error = nbd::server::Server::start(options, nbd::server::Exports::new()).map(|_| ()).unwrap_err();
    assert!(error.kind == Kind::NotFound && chain(&error).contains("absent.pem"), "{}", chain(&error));
}

#[test]
fn libnbd_and_qemu_with_and_without_papers() {
    let papers = Papers::new();
    let bytes = noise(3 << 20, 5);
    let (house, _guard) = house(&papers, &bytes);
    let naked = tempfile::tempdir().unwrap();
    std::fs::copy(papers.file("ca-cert.pem"), naked.path().join("ca-cert.pem")).unwrap();
    let naked = naked.path().to_str().unwrap();

    let uri = |folder: &str| {
        format!("{}&tls-hostname=localhost&tls-certificates={folder}&tls-verify-peer=true", house.uri("disk"))
    };
    let info = String::from_utf8(run("nbdinfo", &["--size", &uri(papers.path())]).stdout).unwrap();
    assert_eq!(info.trim(), bytes.len().to_string());
    let out = Command::new("nbdinfo").args(["--size", &uri(naked)]).output().unwrap();
    assert!(!out.status.success(), "nbdinfo without a certificate: {}", String::from_utf8_lossy(&out.stdout));

    let raw = house.path("raw");
    std::fs::write(&raw, &bytes).unwrap();
    let socket = house.path("nbd.sock");
    let compare = |folder: &str| {
        let credentials = format!("tls-creds-x509,id=t,dir={folder},endpoint=client,verify-peer=on");
        let image = format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=disk,file.tls-creds=t,\
             file.tls-hostname=localhost",
            socket.display()
        );
        let raw = format!("driver=raw,file.driver=file,file.filename={}", raw.display());
        Command::new("qemu-img")
            .args(["compare", "--object", &credentials, "--image-opts", &image, &raw])
            .output()
            .unwrap()
    };
    let good = compare(papers.path());
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!compare(naked).status.success(), "qemu-img without a certificate");
}
