//! The gate: who calls, and may they.
//!
//! Invariant: a handler that is not public runs only after a known token of a sufficient role, or the certificate of a valid
//! node, was shown, whatever the route.

use super::operations::Access;
use super::peer::Peer;
use super::problem::{Failure, Result};
use super::router::Shared;
use crate::app::{Caller, NodeCaller};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HeaderMap};
use parking_lot::Mutex;
use sendense_types::{ProblemCode, Timestamp};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Wrong tokens that one address may show per window, ten a second, before it is told to wait. A token has 256 random bits,
/// so this does not guard against guessing; it tells a script with an old token to slow down.
const FAILURES_MAX: u32 = 600;
/// The window.
const WINDOW_SECONDS: f64 = 60.0;
/// Addresses that are remembered, at some 40 bytes each. When there are more, all are forgotten: the limit is a courtesy
/// to ourselves and must not become a way to use up memory.
const ADDRESSES_MAX: usize = 4096;
/// The longest token that is looked up; ours have about 50 characters.
const TOKEN_BYTES_MAX: usize = 512;

/// Lets a request pass, or says why not.
pub(super) async fn gate(State(shared): State<Shared>, mut request: Request, next: Next) -> Result<Response> {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let operation = path.as_ref().and_then(|path| shared.operations.find(path.as_str(), request.method()));
    let shown = Shown::of(&request);
    match operation.map(|operation| operation.access) {
        Some(Access::Public) => {}
        Some(Access::Node) => {
            let node = node(&shared, request.extensions().get::<Peer>()).await?;
            request.extensions_mut().insert(node);
        }
        Some(Access::Role(least)) => {
            let caller = shown.identify(&shared).await?;
            if caller.role < least {
                let details = format!("{least} is needed, the token of {:?} has {}", caller.identity, caller.role);
                return Err(Failure::new(ProblemCode::Forbidden, "the token does not allow this", details));
            }
            request.extensions_mut().insert(caller);
        }
        // Pages that any browser may fetch; they hold no data. Their routes are not operations.
        None if super::docs::is_public(request.uri().path()) => {}
        // An unknown route or method: only who may call at all is told so.
        None => {
            shown.identify(&shared).await?;
        }
    }
    if let Some(operation) = operation {
        refuse_unknown_parameters(&request, &operation.query)?;
    }
    Ok(next.run(request).await)
}

/// The node that sends a request. Asked at every request, so that a node that was revoked is stopped at its next one.
async fn node(shared: &Shared, peer: Option<&Peer>) -> Result<NodeCaller> {
    let Some(certificate) = peer.and_then(|peer| peer.0.as_ref()) else {
        return Err(unauthorized("a node's certificate is needed", "this call is for nodes that have enrolled"));
    };
    let node = shared.app.authenticate_node(certificate).await?;
    node.ok_or_else(|| unauthorized("the node is not valid", "it was revoked, or its hub's catalog is another one"))
}

/// The answer to a pairing code that is not known. Counted like wrong tokens.
pub(super) fn unknown_code(shared: &Shared, peer: Option<IpAddr>) -> Failure {
    if peer.is_some_and(|peer| !shared.failures.note(peer, shared.clock.now())) {
        return Failure::new(ProblemCode::Busy, "too many wrong codes", "wait a minute, then use a valid one");
    }
    unauthorized("the pairing code is not valid", "it is not known, was used, or is older than a quarter of an hour")
}

/// What a request shows of who sends it.
struct Shown {
    token: Option<String>,
    peer: Option<IpAddr>,
}

impl Shown {
    fn of(request: &Request) -> Self {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        Self { token: bearer(request.headers()).map(str::to_owned), peer: peer.map(|ConnectInfo(peer)| peer.ip()) }
    }

    async fn identify(self, shared: &Shared) -> Result<Caller> {
        let Some(token) = self.token else {
            return Err(unauthorized("a token is needed", "send the header Authorization: Bearer <token>"));
        };
        if token.len() <= TOKEN_BYTES_MAX
            && let Some(caller) = shared.app.authenticate(&token).await?
        {
            return Ok(caller);
        }
        if let Some(peer) = self.peer
            && !shared.failures.note(peer, shared.clock.now())
        {
            return Err(Failure::new(
                ProblemCode::Busy,
                "too many wrong tokens",
                "wait a minute, then use a valid one",
            ));
        }
        Err(unauthorized("the token is not valid", "it is not known, or it was revoked"))
    }
}

fn unauthorized(message: &str, details: &str) -> Failure {
    Failure::new(ProblemCode::Unauthorized, message, details)
}

/// The token of the `Authorization` header (RFC 6750, section 2.1); the scheme's case does not matter.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn refuse_unknown_parameters(request: &Request, known: &BTreeSet<String>) -> Result<()> {
    let query = request.uri().query().unwrap_or_default();
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
        .map_err(|error| Failure::invalid("the query cannot be read", error.to_string()))?;
    for (name, _) in pairs {
        if !known.contains(&name) {
            let name: String = name.chars().take(80).collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let details = match known.as_slice() {
                [] => "this call takes no query parameters".to_owned(),
                known => format!("known are {}", known.join(", ")),
            };
            return Err(Failure::invalid(format!("unknown parameter {name}"), details));
        }
    }
    Ok(())
}

/// Wrong tokens by address.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, (Timestamp, u32)>>);

impl Failures {
    /// Counts one; false when the address has shown too many.
    fn note(&self, peer: IpAddr, now: Timestamp) -> bool {
        let mut addresses = self.0.lock();
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&peer) {
            addresses.clear();
        }
        let (since, count) = addresses.entry(peer).or_insert((now, 0));
        let age_seconds = now.seconds_since(*since);
        // A clock that was set back begins a new window too.
        if !(0.0..WINDOW_SECONDS).contains(&age_seconds) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_are_counted_per_address_and_window() {
        let failures = Failures::default();
        let (one, two) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let now = Timestamp::from_micros(0);
        for _ in 0..FAILURES_MAX {
            assert!(failures.note(one, now));
        }
        assert!(!failures.note(one, now));
        assert!(failures.note(two, now));
        assert!(failures.note(one, now.plus_seconds(61)));
    }

    #[test]
    fn memory_of_addresses_is_bounded() {
        let failures = Failures::default();
        for number in 0..3 * ADDRESSES_MAX as u32 {
            failures.note(IpAddr::from(number.to_be_bytes()), Timestamp::from_micros(0));
        }
        assert!(failures.0.lock().len() <= ADDRESSES_MAX);
    }

    #[test]
    fn tokens_are_read_from_the_header() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bearer  abc ").as_deref(), Some("abc"));
        for value in ["", "abc", "Basic abc", "Bearer", "Bearer  "] {
            assert_eq!(read(value), None, "{value:?}");
        }
    }
}
