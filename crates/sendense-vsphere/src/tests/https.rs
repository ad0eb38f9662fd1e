//! HTTPS for real: certificates, the cookie, bounds, stopping, a proxy.

use super::{SERVICE, envelope};
use crate::{Error, Exchange, Http, HttpOptions, Login, Trust, Vim, probe};
use parking_lot::Mutex;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sendense_block::Cancel;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A server with a certificate of its own; each request is given to the script with its headers.
struct Server {
    address: String,
    pem: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// What the script makes of a request's text: the raw answer, or none to stay silent.
fn serve(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Server {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let (config, answer) = (Arc::new(config), Arc::new(answer));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = requests.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, answer, kept) = (config.clone(), answer.clone(), kept.clone());
            thread::spawn(move || {
                let connection = rustls::ServerConnection::new(config).unwrap();
                let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream.unwrap()));
                while let Some(request) = read_request(&mut stream) {
                    kept.lock().push(request.clone());
                    match answer(&request) {
                        Some(text) => {
                            if stream.get_mut().write_all(text.as_bytes()).is_err() {
                                break;
                            }
                        }
                        // Silence until the client goes.
                        None => _ = stream.read(&mut [0]),
                    }
                }
            });
        }
    });
    Server { address, pem: made.cert.pem(), requests }
}

fn read_request(stream: &mut impl BufRead) -> Option<String> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).ok()?)
}

fn ok(inside: &str) -> String {
    let body = envelope(inside);
    format!(
        "HTTP/1.1 200 OK\r\nSet-Cookie: vmware_soap_session=\"s1\"; Path=/; HttpOnly\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn vcenter(request: &str) -> Option<String> {
    let method = request.split_once("Body><").unwrap().1.split(' ').next().unwrap();
    let inside = if method == "RetrieveServiceContent" { SERVICE } else { "" };
    Some(ok(&format!("<{method}Response>{inside}</{method}Response>")))
}

fn http(server: &Server, trust: Trust) -> Arc<Http> {
    Arc::new(Http::new(&HttpOptions { address: server.address.clone(), trust, proxy: None }).unwrap())
}

fn login() -> Login {
    Login { username: "u".into(), password: "secret-word".into() }
}

#[test]
fn a_confirmed_certificate_is_believed_and_no_other() {
    let (server, other) = (serve(vcenter), serve(vcenter));
    let cancel = Cancel::new();
    let shown = probe(&server.address, None, &cancel).unwrap();
    assert!(server.requests.lock().is_empty(), "a probe sends nothing");

    let pinned = Trust::Pin(shown.fingerprint());
    let vim = Vim::connect(http(&server, pinned.clone()), login(), &cancel).unwrap();
    assert_eq!(vim.certificate(), Some(shown));
    vim.keep_alive(&cancel).unwrap();
    let sent = server.requests.lock().clone();
    assert!(sent.last().unwrap().to_lowercase().contains("cookie: vmware_soap_session=\"s1\"\r\n"), "{sent:?}");
    assert!(sent[0].to_lowercase().contains("soapaction: \"urn:vim25/6.5\"\r\n"), "{sent:?}");

    // Somebody else under the same name gets no word from us, least of all the password.
    for trust in [pinned, Trust::Public] {
        let error = Vim::connect(http(&other, trust), login(), &cancel).unwrap_err();
        let Error::Certificate { found, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*found, Some(probe(&other.address, None, &cancel).unwrap().fingerprint()));
    }
    assert!(other.requests.lock().is_empty());
    let own = Vim::connect(http(&other, Trust::CaPem(other.pem.clone())), login(), &cancel).unwrap();
    assert!(own.certificate().is_some());
}

#[test]
fn answers_are_bounded_and_silence_can_be_stopped() {
    let endless = serve(|_| {
        let body = "x".repeat(1 << 20);
        Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", 1u64 << 40, body.repeat(70)))
    });
    let exchange = http(&endless, Trust::CaPem(endless.pem.clone()));
    let ask = |exchange: &Http, within, cancel: &Cancel| exchange.exchange("M", String::new(), within, cancel);
    let error = ask(&exchange, Duration::from_secs(60), &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::Reply { .. }), "{error:?}");

    let silent = serve(|_| None);
    let exchange = http(&silent, Trust::CaPem(silent.pem.clone()));
    let error = ask(&exchange, Duration::from_millis(200), &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");

    let cancel = Cancel::new();
    let (stop, requests) = (cancel.clone(), silent.requests);
    let seen = requests.lock().len();
    let stopper = thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(30);
        while requests.lock().len() == seen && Instant::now() < until {
            thread::yield_now();
        }
        stop.cancel();
    });
    let error = ask(&exchange, Duration::from_secs(60), &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    stopper.join().unwrap();
}

#[test]
fn nobody_there_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = probe(&format!("127.0.0.1:{port}"), None, &Cancel::new()).unwrap_err();
    assert!(error.is_transient() && matches!(error, Error::Unreachable { .. }), "{error:?}");
}

/// A proxy that takes `CONNECT` and nothing else.
#[test]
fn a_proxy_carries_the_connection() {
    let server = serve(vcenter);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let target = server.address.clone();
    let through = thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let asked = read_request(&mut reader).unwrap();
        let mut upstream = TcpStream::connect(&target).unwrap();
        let mut client = client;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut back, mut to_client) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back, &mut to_client));
        let _ = std::io::copy(&mut client, &mut upstream);
        asked
    });
    let options = HttpOptions { address: server.address.clone(), trust: Trust::CaPem(server.pem), proxy: Some(proxy) };
    let vim = Vim::connect(Arc::new(Http::new(&options).unwrap()), login(), &Cancel::new()).unwrap();
    assert!(vim.about().is_vcenter);
    drop(vim);
    assert!(through.join().unwrap().starts_with(&format!("CONNECT {} ", server.address)));
}
