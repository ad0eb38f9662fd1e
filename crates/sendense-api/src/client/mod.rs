//! The typed client of the REST API: one method per operation, on any thread of a tokio runtime.
//!
//! What lives here: how a call is made and its answer taken apart. What does not: retries of calls that change something
//! (whoever calls knows whether twice is once). Invariants: the token never travels over plain HTTP to another machine,
//! never through a proxy to this one, and never to where a redirect points.

mod error;
mod events;
mod files;
mod nodes;
mod operations;
mod probe;
mod schedules;
mod trust;
mod wait;

pub use error::ClientError;
pub use events::EventStream;
pub use files::Download;
pub use probe::fingerprint_of;
pub use trust::{Identity, Trust};

use crate::ProblemBody;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The longest answer that is taken: a page of 1000 backups with some tens of disks each is below it.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long a connection may take: three lost SYN packets (1 s + 2 s + 4 s, RFC 6298) and some.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach a hub.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The hub's URL, without a path: `http://127.0.0.1:8082`.
    pub url: String,
    /// The token; calls other than `health` need one.
    pub token: Option<crate::Secret>,
    /// Whose certificate is believed.
    pub trust: Trust,
    /// What the client shows of itself, where it is a node.
    pub identity: Option<Identity>,
    /// The HTTP proxy to go through (`http://proxy:3128`); absent: what the environment says, and none to this machine.
    pub proxy: Option<String>,
    /// How long one call may take, its answer included. Streams are not bound by it.
    pub timeout: Duration,
}

impl ClientOptions {
    /// Options for a hub at `url`, with public certificates believed and two minutes for a call: discovery of a large
    /// hypervisor is the slowest of them.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: None,
            trust: Trust::Public,
            identity: None,
            proxy: None,
            timeout: Duration::from_secs(120),
        }
    }

    /// The same with a token.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(crate::Secret::new(token));
        self
    }
}

/// A client of one hub. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<crate::Secret>,
    timeout: Duration,
}

impl Client {
    /// Makes a client; nothing is sent yet.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let ClientOptions { url, token, trust, identity, proxy, timeout } = options;
        let base = parse(&url)?;
        let loopback = is_loopback(&base);
        match base.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => {
                return Err(ClientError::Options(format!(
                    "url {url:?}: plain HTTP would show the token to the network; use https"
                )));
            }
            other => return Err(ClientError::Options(format!("url {url:?}: {other:?} is not http or https"))),
        }
        let http = http_client(trust.tls_config(identity.as_ref())?, loopback, proxy.as_deref())?;
        Ok(Self { http, base, token, timeout })
    }

    /// The hub's URL.
    pub fn url(&self) -> &Url {
        &self.base
    }

    /// A call to a path below `/api/v1`; each segment is percent-encoded.
    fn call(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.call_with(method, segments, None)
    }

    /// The same with a query that is encoded already.
    fn call_with(&self, method: Method, segments: &[&str], query: Option<&str>) -> RequestBuilder {
        let mut url = self.base.clone();
        // `http` and `https` URLs always have a path; for others `new` returned an error.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1"]).extend(segments);
        }
        url.set_query(query);
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        request
    }

    async fn get<Q: Serialize, R: DeserializeOwned>(&self, segments: &[&str], query: &Q) -> Result<R, ClientError> {
        self.finish(self.call(Method::GET, segments).query(query)).await
    }

    async fn send<B: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        segments: &[&str],
        body: &B,
    ) -> Result<R, ClientError> {
        self.finish(self.call(method, segments).json(body)).await
    }

    async fn post<R: DeserializeOwned>(&self, segments: &[&str]) -> Result<R, ClientError> {
        self.finish(self.call(Method::POST, segments)).await
    }

    async fn delete<Q: Serialize, R: DeserializeOwned>(&self, segments: &[&str], query: &Q) -> Result<R, ClientError> {
        self.finish(self.call(Method::DELETE, segments).query(query)).await
    }

    /// Sends a call and takes its JSON answer apart.
    async fn finish<R: DeserializeOwned>(&self, request: RequestBuilder) -> Result<R, ClientError> {
        let body = self.finish_bytes(request).await?;
        serde_json::from_slice(&body)
            .map_err(|error| ClientError::Protocol(format!("the answer is not what this version expects: {error}")))
    }

    /// Sends a call and gives the body of a success.
    async fn finish_bytes(&self, request: RequestBuilder) -> Result<Vec<u8>, ClientError> {
        let response = request.timeout(self.timeout).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let success = response.status().is_success();
        let retry_after_seconds = retry_after(&response);
        let body = read(response).await?;
        if success { Ok(body) } else { Err(refusal(status, retry_after_seconds, &body)) }
    }
}

fn parse(url: &str) -> Result<Url, ClientError> {
    url.parse().map_err(|error| ClientError::Options(format!("url {url:?}: {error}")))
}

fn http_client(tls: rustls::ClientConfig, loopback: bool, proxy: Option<&str>) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("sendense/", env!("CARGO_PKG_VERSION")));
    match proxy {
        Some(proxy) => {
            // The address may hold a password, so it is not repeated.
            let proxy = reqwest::Proxy::all(proxy).map_err(|error| {
                ClientError::Options(format!("the proxy's address cannot be used: {}", chain(&error)))
            })?;
            builder = builder.proxy(proxy);
        }
        None if loopback => builder = builder.no_proxy(),
        None => {}
    }
    builder.build().map_err(|error| ClientError::Options(chain(&error)))
}

/// True when the host part names this machine and nothing else.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn retry_after(response: &Response) -> Option<u64> {
    response.headers().get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()
}

async fn read(mut response: Response) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Protocol(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an answer that is not a success means.
fn refusal(status: u16, retry_after_seconds: Option<u64>, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => ClientError::Problem { status, retry_after_seconds, problem: Box::new(problem) },
        Err(_) => {
            ClientError::Protocol(format!("HTTP status {status} without a problem body: is this a Sendense hub?"))
        }
    }
}

fn unreachable(error: reqwest::Error) -> ClientError {
    ClientError::Unreachable(chain(&error))
}

/// The whole chain of causes in one line; the HTTP library's own text names only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<Client, ClientError> {
        Client::new(ClientOptions::new(url).with_token("secret"))
    }

    #[test]
    fn the_token_does_not_travel_in_the_clear() {
        for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://backup.example"] {
            assert!(client(url).is_ok(), "{url} was refused");
        }
        for url in ["http://backup.example", "http://10.0.0.1:8082", "http://127.0.0.1.example", "ftp://[::1]", "x"] {
            assert!(matches!(client(url), Err(ClientError::Options(_))), "{url} was taken");
        }
        assert!(!format!("{:?}", client("http://[::1]:1").unwrap()).contains("secret"));
    }

    #[test]
    fn names_become_one_path_segment() {
        let client = client("http://127.0.0.1:1/").unwrap();
        let request = client.call(Method::GET, &["vms", "a/../b c?#%ä"]).build().unwrap();
        assert_eq!(request.url().path(), "/api/v1/vms/a%2F..%2Fb%20c%3F%23%25%C3%A4");
        assert_eq!(request.headers()["authorization"], "Bearer secret");
    }

    #[test]
    fn refusals_are_told_apart() {
        let body = br#"{"success":false,"error":"VM not found","code":"vm_not_found","details":"","timestamp":"2026-01-01T00:00:00Z"}"#;
        let error = refusal(404, None, body);
        assert_eq!(error.code(), Some(sendense_types::ProblemCode::VmNotFound));
        assert!(matches!(refusal(502, None, b"<html>"), ClientError::Protocol(_)));
    }
}
