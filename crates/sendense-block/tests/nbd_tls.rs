//! The NBD client over TLS, with certificates made for the test.

// A helper that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod nbd_support;

use nbd_support::papers::Papers;
use nbd_support::{Server, noise, open, read_all};
use sendense_block::error::chain;
use sendense_block::nbd::{self, Client, Options, TlsIdentity, TlsOptions};
use sendense_block::{ByteOffset, Cancel, Error, Flush, Kind, ReadAt, WriteAt};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn encrypted(server: &Server, tls: TlsOptions) -> Options {
    Options { tls: Some(tls), ..Options::new(server.uri("").with_tls()) }
}

/// Some servers refuse a client only after its handshake: then the first request tells.
fn refused(options: &Options) -> Error {
    Client::connect(options, &Cancel::new())
        .and_then(|client| client.read_at(ByteOffset(0), &mut [0; 512]))
        .expect_err("this must be refused")
}

/// Many threads read and write at once, in sizes around those of TLS records.
fn exercise(options: &Options) {
    let client = open(options);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let client = client.clone();
            scope.spawn(move || {
                for (round, len) in [1, 100, 16_383, 16_384, 16_385, 70_000, 300_000].into_iter().enumerate() {
                    let at = ByteOffset(thread * MIB + 12_345);
                    let data = noise(len, thread * 10 + round as u64);
                    client.write_at(at, &data).unwrap();
                    let mut buf = vec![0; len];
                    client.read_at(at, &mut buf).unwrap();
                    assert!(buf == data, "thread {thread}, {len} bytes");
                }
            });
        }
    });
    client.flush().unwrap();
    assert_eq!(read_all(&client).len() as u64, 8 * MIB);
}

fn nbdkit(papers: &Papers, args: &[&str]) -> Server {
    let certificates = format!("--tls-certificates={}", papers.path());
    let mut all = vec!["--tls=require", certificates.as_str()];
    all.extend(args);
    all.extend(["memory", "8M"]);
    Server::nbdkit(&all)
}

#[test]
fn nbdkit_over_tls_also_with_both_sides_verified() {
    let papers = Papers::new();
    let server = nbdkit(&papers, &[]);
    exercise(&encrypted(&server, papers.trust()));
    exercise(&Options { connections: 3, ..encrypted(&server, papers.trust_and_show()) });
    let server = nbdkit(&papers, &["--tls-verify-peer"]);
    exercise(&encrypted(&server, papers.trust_and_show()));
    let error = refused(&encrypted(&server, papers.trust()));
    assert!(matches!(error.kind, Kind::Denied | Kind::Unavailable), "{}", chain(&error));
}

#[test]
fn qemu_nbd_over_tls() {
    let papers = Papers::new();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    std::fs::write(&image, vec![0; 8 * MIB as usize]).unwrap();
    let object = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", papers.path());
    let server = Server::qemu_nbd(&["-f", "raw", "-e", "4", "--object", &object, "--tls-creds", "tls"], &image);
    exercise(&encrypted(&server, papers.trust_and_show()));
    let error = refused(&encrypted(&server, papers.trust()));
    assert!(matches!(error.kind, Kind::Denied | Kind::Unavailable), "{}", chain(&error));
    let exports = nbd::list(&encrypted(&server, papers.trust_and_show()), &Cancel::new()).unwrap();
    assert_eq!(exports.len(), 1);
}

#[test]
fn strangers_are_not_trusted() {
    let (papers, others) = (Papers::new(), Papers::new());
    let server = nbdkit(&papers, &[]);
    let error = refused(&encrypted(&server, others.trust()));
    assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
    // The web's authorities vouch for none of it.
    let error = refused(&Options::new(server.uri("").with_tls()));
    assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
    let named = |name: &str| TlsOptions { server_name: Some(name.into()), ..papers.trust() };
    open(&encrypted(&server, named("disk.example")));
    let error = refused(&encrypted(&server, named("other.example")));
    assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
    // What the URI says goes before the options.
    let uri = format!("{}&tls-hostname=disk.example", server.uri("").with_tls());
    open(&Options { tls: Some(named("other.example")), ..Options::new(uri.parse().unwrap()) });
}

#[test]
fn encryption_is_all_or_nothing() {
    let papers = Papers::new();
    let server = nbdkit(&papers, &[]);
    let error = refused(&server.options());
    assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
    assert!(chain(&error).contains("nbds://"), "{}", chain(&error));
    let plain = Server::nbdkit(&["memory", "1M"]);
    let error = refused(&encrypted(&plain, papers.trust()));
    assert_eq!(error.kind, Kind::Unsupported, "{}", chain(&error));
    let error = refused(&Options { tls: Some(papers.trust()), ..plain.options() });
    assert_eq!(error.kind, Kind::Invalid, "{}", chain(&error));
}

#[test]
fn papers_that_cannot_be_read_are_named() {
    let papers = Papers::new();
    let server = nbdkit(&papers, &[]);
    let with_ca = |file: &Path| encrypted(&server, TlsOptions { ca_file: Some(file.into()), ..TlsOptions::default() });
    let error = refused(&with_ca(&papers.file("absent.pem")));
    assert_eq!(error.kind, Kind::NotFound);
    assert!(chain(&error).contains("absent.pem"), "{}", chain(&error));
    std::fs::write(papers.file("empty.pem"), "no certificate here").unwrap();
    assert_eq!(refused(&with_ca(&papers.file("empty.pem"))).kind, Kind::Invalid);
    let mut tls = papers.trust_and_show();
    tls.identity = tls.identity.map(|identity| TlsIdentity { key_file: papers.file("server-key.pem"), ..identity });
    let error = refused(&encrypted(&server, tls));
    assert_eq!(error.kind, Kind::Invalid, "{}", chain(&error));
}

/// A TCP port in front of a socket, for servers that cannot say which free port they took.
fn tcp_port(socket: &Path, connections: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (tcp, _) = listener.accept().unwrap();
            let unix = UnixStream::connect(&socket).unwrap();
            tcp.set_nodelay(true).unwrap();
            let (tcp_back, unix_back) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
            std::thread::spawn(move || relay(tcp, unix));
            std::thread::spawn(move || relay_back(unix_back, tcp_back));
        }
    });
    port
}

fn relay(mut from: TcpStream, mut to: UnixStream) {
    copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn relay_back(mut from: UnixStream, mut to: TcpStream) {
    copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    // Either end may go away at any time; that is its test's business.
    let _ = std::io::copy(from, to);
}

#[test]
fn over_tcp_with_and_without_tls() {
    let papers = Papers::new();
    let server = Server::nbdkit(&["memory", "8M"]);
    let port = tcp_port(&server.socket, 3);
    let uri = |text: String| text.parse::<nbd::Uri>().unwrap();
    exercise(&Options { connections: 2, ..Options::new(uri(format!("nbd://127.0.0.1:{port}/"))) });
    exercise(&Options::new(uri(format!("nbd://localhost:{port}/"))));
    let server = nbdkit(&papers, &[]);
    let port = tcp_port(&server.socket, 2);
    let tls = Some(papers.trust());
    exercise(&Options { tls: tls.clone(), ..Options::new(uri(format!("nbds://localhost:{port}/"))) });
    // The certificate is for names, not for this address.
    let error = refused(&Options { tls, ..Options::new(uri(format!("nbds://127.0.0.1:{port}/"))) });
    assert_eq!(error.kind, Kind::Denied, "{}", chain(&error));
}

#[test]
fn a_port_without_a_server_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let uri = format!("nbd://127.0.0.1:{port}/").parse().unwrap();
    let error = refused(&Options::new(uri));
    assert_eq!(error.kind, Kind::Unavailable, "{}", chain(&error));
    // A name that no resolver asks anybody about.
    let error = refused(&Options::new("nbd://no..host/".parse().unwrap()));
    assert_eq!(error.kind, Kind::Unavailable, "{}", chain(&error));
}
