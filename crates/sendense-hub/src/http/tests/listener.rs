//! The listening server: addresses, TLS, streams, the end.

use super::{Fixture, PATIENCE};
use crate::http::{Error, Options, Server, Timeouts};
use futures::StreamExt;
use sendense_api::{Client, ClientError, ClientOptions, ListQuery, Role, Trust};
use sendense_types::SystemClock;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

fn serve(fixture: &Fixture, listen: &str) -> Result<Server, Error> {
    serve_within(fixture, listen, Timeouts::default())
}

fn serve_within(fixture: &Fixture, listen: &str, timeouts: Timeouts) -> Result<Server, Error> {
    let options = Options {
        listen: listen.parse::<SocketAddr>().unwrap(),
        tls: None,
        tls_dir: fixture.folder.path().join("tls"),
        node_verifier: fixture.hub.app().core.nodes.authority.verifier().unwrap(),
        timeouts,
        clock: Arc::new(SystemClock),
    };
    Server::start(fixture.hub.app().clone(), options)
}

fn client(fixture: &Fixture, url: String, trust: Trust) -> Client {
    let mut options = ClientOptions::new(url).with_token(fixture.token(Role::Admin));
    options.trust = trust;
    Client::new(options).unwrap()
}

#[tokio::test]
async fn loopback_is_plain_and_tells_its_port() {
    let fixture = Fixture::new().await;
    let server = serve(&fixture, "127.0.0.1:0").unwrap();
    assert_ne!(server.local_addr().port(), 0);
    assert_eq!((server.url(), server.fingerprint()), (format!("http://{}", server.local_addr()), None));
    let client = client(&fixture, server.url(), Trust::Public);
    assert_eq!(client.health().await.unwrap().version, env!("CARGO_PKG_VERSION"));
    assert_eq!(client.list_repositories(&ListQuery::default()).await.unwrap().total, 0);
    let taken = serve(&fixture, &server.local_addr().to_string()).unwrap_err();
    assert!(matches!(taken, Error::Listen { .. }), "{taken:?}");
    let url = server.url();
    server.shutdown().await;
    let error = self::client(&fixture, url, Trust::Public).health().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn elsewhere_is_tls_with_a_certificate_that_lasts() {
    let fixture = Fixture::new().await;
    let server = serve(&fixture, "0.0.0.0:0").unwrap();
    let fingerprint = server.fingerprint().unwrap().to_owned();
    let url = server.url();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let pinned = client(&fixture, url.clone(), Trust::fingerprint(&fingerprint).unwrap());
    assert!(pinned.health().await.is_ok());
    let certificate = std::fs::read(fixture.folder.path().join("tls/certificate.pem")).unwrap();
    let by_certificate = client(&fixture, url.clone(), Trust::CaPem(certificate));
    assert!(by_certificate.health().await.is_ok(), "{:?}", by_certificate.health().await);
    for trust in [Trust::Public, Trust::Fingerprint([7; 32])] {
        let error = client(&fixture, url.clone(), trust).health().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
    }
    server.shutdown().await;

    let key = std::fs::metadata(fixture.folder.path().join("tls/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let again = serve(&fixture, "0.0.0.0:0").unwrap();
    assert_eq!(again.fingerprint(), Some(fingerprint.as_str()), "the second start made another certificate");
    again.shutdown().await;
}

#[tokio::test]
async fn streams_are_bounded_and_a_client_that_left_frees_its_place() {
    let fixture = Fixture::new().await;
    let server = serve(&fixture, "127.0.0.1:0").unwrap();
    let client = client(&fixture, server.url(), Trust::Public);
    let mut streams = Vec::new();
    let refused = loop {
        match client.events().await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() <= 1000, "there is no bound");
    };
    assert_eq!(refused.status(), Some(503), "{refused:?}");
    assert!(matches!(refused, ClientError::Problem { retry_after_seconds: Some(_), .. }), "{refused:?}");
    streams.truncate(1);
    let freed = tokio::time::timeout(PATIENCE, async {
        while client.events().await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    freed.await.expect("places of clients that left are free again");
    // The end of the hub ends streams, so that it need not wait for them.
    let mut last = streams.remove(0);
    tokio::time::timeout(PATIENCE, server.shutdown()).await.expect("the server ends although a stream is open");
    let end = tokio::time::timeout(PATIENCE, last.next()).await.expect("the stream has ended");
    assert!(matches!(end, Some(Err(ClientError::Unreachable(_)))), "{end:?}");
}

#[tokio::test]
async fn a_client_that_sends_nonsense_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let fixture = Fixture::new().await;
    let server = serve(&fixture, "127.0.0.1:0").unwrap();
    for nonsense in [&b"\x16\x03\x01\x00\x05hello"[..], b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(server.local_addr()).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the connection stays open after {nonsense:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_writes_all_before_it_reads_sees_the_413() {
    use std::io::{Read, Write};
    let fixture = Fixture::new().await;
    let server = serve(&fixture, "127.0.0.1:0").unwrap();
    let (address, token) = (server.local_addr(), fixture.token(Role::Operator).to_owned());
    let head = format!(
        "POST /api/v1/backups HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\n"
    );
    // Far more than socket buffers hold.
    const LENGTH: usize = 32 << 20;
    for (framing, end) in
        [(format!("content-length: {LENGTH}"), ""), ("transfer-encoding: chunked".to_owned(), "\r\n0\r\n\r\n")]
    {
        let is_chunked = !end.is_empty();
        let head = format!("{head}{framing}\r\n\r\n");
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(head.as_bytes())?;
            if is_chunked {
                stream.write_all(format!("{LENGTH:x}\r\n").as_bytes())?;
            }
            stream.write_all(&vec![b' '; LENGTH])?;
            stream.write_all(end.as_bytes())?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            std::io::Result::Ok(answer)
        });
        assert_eq!(&answer.await.unwrap().unwrap(), b"HTTP/1.1 413", "{framing}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_takes_its_time_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    let fixture = Fixture::new().await;
    // A call of ours takes milliseconds; the rest leaves room for a busy machine.
    let timeouts = Timeouts { head: Duration::from_secs(1), call: Duration::from_secs(5) };
    let server = serve_within(&fixture, "127.0.0.1:0", timeouts).unwrap();
    let (address, token) = (server.local_addr(), fixture.token(Role::Operator));
    // Reads to the end of the connection, which only the server brings about.
    let end = async |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // A reset is an end, too.
        let _ = read.expect("the connection stays open");
        String::from_utf8_lossy(&answer).into_owned()
    };
    let mut silent = TcpStream::connect(address).await.unwrap();
    end(&mut silent).await;

    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: 127.0.0.1\r\n").await.unwrap();
    assert!(!end(&mut half).await.contains(" 200 "));

    // One that sends a little all the time does not gain by it: the time is that of the whole head.
    let mut drip = TcpStream::connect(address).await.unwrap();
    drip.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-more: ").await.unwrap();
    let dripping = async {
        while drip.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dripping).await.expect("a client that drips is never cut off");

    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await.unwrap();
    assert!(end(&mut kept).await.starts_with("HTTP/1.1 200 "), "an idle connection was answered before it was closed");

    let mut slow = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/backups HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = end(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("took too long"), "{answer}");

    // Meanwhile and afterwards the others are served.
    assert!(client(&fixture, server.url(), Trust::Public).health().await.is_ok());
    server.shutdown().await;

    let server = serve_within(&fixture, "0.0.0.0:0", timeouts).unwrap();
    let mut silent = TcpStream::connect(("127.0.0.1", server.local_addr().port())).await.unwrap();
    end(&mut silent).await;
    server.shutdown().await;
}
