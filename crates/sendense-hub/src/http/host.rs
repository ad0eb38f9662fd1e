//! Names under which the hub may be asked, against DNS rebinding: a web page that points its own name at 127.0.0.1 makes a
//! browser on this machine talk to us, but cannot make it send another name.

use super::problem::{Failure, Result};
use super::router::Shared;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{HOST, ORIGIN};
use sendense_types::ProblemCode;
use std::net::IpAddr;

/// Refuses names that are not this machine's on plain HTTP, and pages of other origins everywhere.
pub(super) async fn check(State(shared): State<Shared>, request: Request, next: Next) -> Result<Response> {
    allowed(&request, shared.is_tls)?;
    Ok(next.run(request).await)
}

fn allowed(request: &Request, is_tls: bool) -> Result<()> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| header(HOST));
    let Some(host) = host else {
        return Err(Failure::invalid("the Host header is missing", ""));
    };
    if !is_tls && !is_this_machine(host) {
        let details = "plain HTTP is served under 127.0.0.1, [::1] and localhost only";
        return Err(Failure::new(ProblemCode::Forbidden, "the hub is not served under this name", details));
    }
    if let Some(origin) = header(ORIGIN) {
        let scheme = if is_tls { "https://" } else { "http://" };
        if origin.strip_prefix(scheme).is_none_or(|origin| !origin.eq_ignore_ascii_case(host)) {
            return Err(Failure::new(ProblemCode::Forbidden, "pages of other origins may not call the hub", ""));
        }
    }
    Ok(())
}

/// True for `localhost` and loopback addresses, with a port or without.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if port.is_empty() || is_port(port) => address,
        Some(_) => return false,
        None => match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_this_machine;

    #[test]
    fn only_this_machine_is_this_machine() {
        for host in ["localhost", "LocalHost:8082", "127.0.0.1", "127.0.0.1:1", "127.9.9.9:80", "[::1]", "[::1]:8082"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org:8082",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "[::2]:1",
            "[::1]x",
            "localhost:x",
            "127.0.0.1@example.org:80",
            "::1",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
