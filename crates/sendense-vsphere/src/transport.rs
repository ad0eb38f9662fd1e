//! HTTPS: one request, one bounded answer, the session's cookie.
//!
//! What lives here: where the server is, whose certificate counts, proxies, deadlines, stopping. What does not: what is
//! said. Calls block; underneath, one thread of a small runtime of our own drives the sockets, so that a call ends within
//! a moment when somebody asks to stop.

use crate::error::{Error, Result};
use crate::request::ACTION;
use crate::tls::{self, Certificate, Fingerprint, Seen, Trust};
use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use sendense_block::Cancel;
use std::sync::Arc;
use std::time::Duration;

/// The longest answer that is taken: a page of 50 machines with 64 disks of 30 layers each stays below it.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long a connection may take: three lost SYN packets (1 s + 2 s + 4 s, RFC 6298) and some.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where vCenter and ESXi both have the service.
const PATH: &str = "/sdk";
/// What vCenter and ESXi call their session's cookie.
const SESSION_COOKIE: &str = "vmware_soap_session=";

/// Where a server is and whom to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// `vcenter.example.org`, with a port where it is not 443, or `https://…/sdk`.
    pub address: String,
    /// Whose certificate counts.
    pub trust: Trust,
    /// An HTTP proxy to go through: `http://proxy:3128`. The environment's proxies are not looked at: they are meant for
    /// the way to the internet, and a vCenter is seldom there.
    pub proxy: Option<String>,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The document.
    pub body: String,
}

/// Sends a request and gives the answer; the session lives in it, if there is one.
pub trait Exchange: Send + Sync {
    /// One request. `method` is for messages.
    fn exchange(&self, method: &str, body: String, within: Duration, cancel: &Cancel) -> Result<Reply>;

    /// Forgets the session.
    fn forget_session(&self);

    /// The server's certificate, once a connection was made.
    fn certificate(&self) -> Option<Certificate>;

    /// Which server it is, for messages.
    fn address(&self) -> &str;
}

/// The exchange over HTTPS.
pub struct Http {
    client: reqwest::Client,
    /// Some until the drop.
    runtime: Option<tokio::runtime::Runtime>,
    url: reqwest::Url,
    address: String,
    seen: Seen,
    session: Mutex<Option<HeaderValue>>,
}

impl Http {
    /// Makes ready; nothing is sent yet.
    pub fn new(options: &HttpOptions) -> Result<Self> {
        let seen = Seen::default();
        let tls = tls::config(&options.trust, &seen)?;
        Self::with(options, tls, seen)
    }

    fn with(options: &HttpOptions, tls: rustls::ClientConfig, seen: Seen) -> Result<Self> {
        let url = endpoint(&options.address)?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // vCenter closes idle connections after some two minutes; ours are given up first.
            .pool_idle_timeout(Duration::from_secs(60))
            .user_agent(concat!("sendense/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &options.proxy {
            let proxy = reqwest::Proxy::https(proxy)
                .map_err(|_| Error::Options(format!("{proxy:?} is not the URL of a proxy")))?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|error| Error::Options(format!("HTTPS: {}", chain(&error))))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("vsphere")
            .enable_all()
            .build()
            .map_err(|error| Error::Options(format!("start a thread: {error}")))?;
        let address = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
            None => url.host_str().unwrap_or_default().to_owned(),
        };
        Ok(Self { client, runtime: Some(runtime), url, address, seen, session: Mutex::new(None) })
    }

    async fn send(&self, body: String) -> Result<Reply, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
        headers.insert("soapaction", HeaderValue::from_static(ACTION));
        if let Some(cookie) = self.session.lock().clone() {
            headers.insert(COOKIE, cookie);
        }
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        let mut response = request.send().await.map_err(Failure::Http)?;
        if let Some(cookie) = session_cookie(response.headers()) {
            *self.session.lock() = Some(cookie);
        }
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::Http)? {
            if bytes.len().saturating_add(chunk.len()) > ANSWER_BYTES_MAX {
                return Err(Failure::Answer(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        let body = String::from_utf8(bytes).map_err(|_| Failure::Answer("it is not UTF-8".into()))?;
        Ok(Reply { status, body })
    }
}

enum Failure {
    Http(reqwest::Error),
    Answer(String),
}

impl Exchange for Http {
    fn exchange(&self, method: &str, body: String, within: Duration, cancel: &Cancel) -> Result<Reply> {
        cancel.check().map_err(|_| Error::Cancelled)?;
        let stop = Arc::new(tokio::sync::Notify::new());
        let told = stop.clone();
        let _hook = cancel.on_cancel(move || told.notify_one());
        let runtime = self.runtime.as_ref().ok_or(Error::Cancelled)?;
        let sent = runtime.block_on(async {
            tokio::select! {
                () = stop.notified() => Err(Error::Cancelled),
                sent = tokio::time::timeout(within, self.send(body)) => Ok(sent),
            }
        })?;
        let address = self.address.clone();
        match sent {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Failure::Answer(problem))) => Err(Error::Reply { method: method.to_owned(), problem }),
            Ok(Err(Failure::Http(error))) => match refused_certificate(&error) {
                Some(reason) => {
                    let found = self.seen.lock().last.as_ref().map(Certificate::fingerprint);
                    Err(Error::Certificate { address, reason, found })
                }
                None => Err(Error::Unreachable { address, source: error.without_url().into() }),
            },
            Err(_) => Err(Error::Timeout { address, method: method.to_owned(), seconds: within.as_secs() }),
        }
    }

    fn forget_session(&self) {
        *self.session.lock() = None;
    }

    fn certificate(&self) -> Option<Certificate> {
        self.seen.lock().believed.clone()
    }

    fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // A runtime that is dropped waits for its threads, which asynchronous code may not; this one does not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The certificate that a server shows, believed by nobody yet; a person confirms its fingerprint.
pub fn probe(address: &str, proxy: Option<&str>, cancel: &Cancel) -> Result<Certificate> {
    let seen = Seen::default();
    // Whom to believe means nothing here: the probe's own verifier refuses everybody.
    let options = HttpOptions {
        address: address.to_owned(),
        trust: Trust::Pin(Fingerprint([0; 32])),
        proxy: proxy.map(str::to_owned),
    };
    let http = Http::with(&options, tls::probing(&seen)?, seen.clone())?;
    let failed = http.exchange("the TLS handshake", String::new(), CONNECT_TIMEOUT.saturating_mul(2), cancel);
    let shown = seen.lock().last.take();
    match (shown, failed) {
        (Some(certificate), _) => Ok(certificate),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(Error::Options(format!("{} shows no certificate", http.address))),
    }
}

/// The name of the server at an address, however that was typed: its host in lower case, with the port where that is not HTTPS' own.
///
/// # Errors
/// [`Error::Options`] for what [`Http::new`] would not take.
pub fn server_name(address: &str) -> Result<String> {
    let url = endpoint(address.trim())?;
    let host = url.host_str().unwrap_or_default().trim_end_matches('.').to_lowercase();
    Ok(url.port().map_or(host.clone(), |port| format!("{host}:{port}")))
}

/// The URL of the service at an address.
fn endpoint(address: &str) -> Result<reqwest::Url> {
    let bad = |why: &str| Error::Options(format!("address {address:?}: {why}"));
    let text = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let mut url: reqwest::Url = text.parse().map_err(|_| bad("it is not a host, host:port or https URL"))?;
    if url.scheme() != "https" {
        return Err(bad("the password would go over the network unencrypted; use https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("account and password do not belong into the address"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it is not a host, host:port or https URL"));
    }
    match url.path() {
        "" | "/" | PATH | "/sdk/" | "/ui" | "/ui/" => url.set_path(PATH),
        _ => return Err(bad("it has a path that is not that of the service")),
    }
    Ok(url)
}

/// The session's cookie among what the server sets, without its attributes.
fn session_cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut set = headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookie = set.rfind(|text| text.starts_with(SESSION_COOKIE))?;
    let mut value = HeaderValue::from_str(cookie.split(';').next()?.trim()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The reason, when the handshake failed because of the certificate.
fn refused_certificate(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    match error.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::General(reason)) => return Some(reason.clone()),
        Some(error @ rustls::Error::InvalidCertificate(_)) => return Some(error.to_string()),
        _ => {}
    }
    // The TLS library's error travels inside I/O errors, which give their content's source and not their content.
    let inside = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    let inside = inside.and_then(|inside| refused_certificate(inside));
    inside.or_else(|| error.source().and_then(refused_certificate))
}

fn chain(error: &dyn std::error::Error) -> String {
    sendense_block::error::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        for (address, url) in [
            ("vc.example.org", "https://vc.example.org/sdk"),
            ("vc.example.org:8443", "https://vc.example.org:8443/sdk"),
            ("https://[::1]:8443/sdk", "https://[::1]:8443/sdk"),
            ("https://vc/ui/", "https://vc/sdk"),
        ] {
            assert_eq!(endpoint(address).unwrap().as_str(), url);
        }
        for address in ["", "http://vc", "https://a:b@vc", "https://vc/other", "vc?x=y", "https://", "ftp://vc", "a b"]
        {
            assert!(matches!(endpoint(address), Err(Error::Options(_))), "{address:?} was taken");
        }
    }

    #[test]
    fn only_the_sessions_cookie_is_kept() {
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_static("other=1; Path=/"));
        assert_eq!(session_cookie(&headers), None);
        headers.append(SET_COOKIE, HeaderValue::from_static("vmware_soap_session=\"ab\"; Path=/; HttpOnly"));
        assert_eq!(session_cookie(&headers).unwrap(), "vmware_soap_session=\"ab\"");
    }
}
