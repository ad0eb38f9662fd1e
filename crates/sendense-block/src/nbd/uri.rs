//! NBD URIs (`doc/uri.md` of the NetworkBlockDevice project): text to address and back.
//!
//! What lives here: parsing, printing, checking. What does not: names to addresses, sockets. Invariant: a [`Uri`] printed
//! and parsed again is the same.

use crate::error::{Error, Kind, Result};
use crate::nbd::frame::STRING_BYTES_MAX;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port that IANA gave to NBD.
pub const PORT: u16 = 10809;

/// `sun_path` holds 108 bytes, the last one a NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// RFC 1035: a name has at most 253 characters.
const HOST_BYTES_MAX: usize = 253;
/// A URI holds an export name and a path, each byte as three: more is no URI of ours.
const URI_BYTES_MAX: usize = 3 * (STRING_BYTES_MAX + SOCKET_PATH_BYTES_MAX + 2 * HOST_BYTES_MAX);

/// Printed as they are: RFC 3986's unreserved characters, and the slash, which is common in names and paths.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Where an export is: `nbd://host:port/export`, `nbds://…`, `nbd+unix:///export?socket=/path`, `nbds+unix:///…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    tls: bool,
    address: Address,
    export: String,
    tls_hostname: Option<String>,
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host name or an IP address without brackets.
    Tcp {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Uri {
    /// An export behind a unix socket, without TLS.
    pub fn unix(path: impl AsRef<Path>, export: &str) -> Result<Self> {
        Self::new(false, Address::Unix(path.as_ref().to_owned()), export)
    }

    /// An export behind a TCP port, without TLS.
    pub fn tcp(host: &str, port: u16, export: &str) -> Result<Self> {
        Self::new(false, Address::Tcp { host: host.to_owned(), port }, export)
    }

    /// The same with TLS, which must then succeed.
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// The same server, another export.
    pub fn with_export(&self, export: &str) -> Result<Self> {
        let tls_hostname = self.tls_hostname.clone();
        Ok(Self { tls_hostname, ..Self::new(self.tls, self.address.clone(), export)? })
    }

    fn new(tls: bool, address: Address, export: &str) -> Result<Self> {
        match &address {
            Address::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.len() > SOCKET_PATH_BYTES_MAX || bytes.contains(&0) {
                    return Err(invalid(format!(
                        "socket path must have 1 to {SOCKET_PATH_BYTES_MAX} bytes and no NUL: {}",
                        path.display()
                    )));
                }
            }
            Address::Tcp { host, .. } => check_host(host)?,
        }
        if export.len() > STRING_BYTES_MAX || export.contains('\0') {
            return Err(invalid(format!("export name must have at most {STRING_BYTES_MAX} bytes and no NUL")));
        }
        Ok(Self { tls, address, export: export.to_owned(), tls_hostname: None })
    }

    /// True when the connection must be encrypted.
    pub const fn tls(&self) -> bool {
        self.tls
    }

    /// Where the server listens.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The export's name; may be empty, which means the server's default.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The name to look for in the server's certificate, where it is not the host's.
    pub fn tls_hostname(&self) -> Option<&str> {
        self.tls_hostname.as_deref()
    }
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, context)
}

fn check_host(host: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(plain) {
        return Err(invalid(format!("{host:?} is no host name or address")));
    }
    if host.contains(':') && host.split('%').next().is_none_or(|ip| ip.parse::<std::net::Ipv6Addr>().is_err()) {
        return Err(invalid(format!("{host:?} is no IPv6 address")));
    }
    Ok(())
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let digits = rest.as_bytes().get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(invalid(format!("{what} has a percent sign that two hexadecimal digits do not follow")));
        }
        rest = &rest[at + 3..];
    }
    Ok(percent_decode_str(text).collect())
}

fn decode_text(what: &str, text: &str) -> Result<String> {
    String::from_utf8(decode(what, text)?).map_err(|_| invalid(format!("{what} is not UTF-8")))
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|error| error.within("read NBD URI"))
    }
}

fn parse(text: &str) -> Result<Uri> {
    if text.len() > URI_BYTES_MAX {
        return Err(invalid(format!("it has {} bytes, more than {URI_BYTES_MAX}", text.len())));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid("spaces, control and other characters than ASCII must be percent-encoded"));
    }
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| invalid("it must start with nbd://, nbds://, nbd+unix:// or nbds+unix://"))?;
    let (tls, unix) = match scheme.to_ascii_lowercase().as_str() {
        "nbd" => (false, false),
        "nbds" => (true, false),
        "nbd+unix" => (false, true),
        "nbds+unix" => (true, true),
        other => return Err(invalid(format!("scheme {other:?} is not nbd, nbds, nbd+unix or nbds+unix"))),
    };
    if rest.contains('#') {
        return Err(invalid("it must have no fragment (#)"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let query = Query::parse(query)?;
    let address = if unix {
        if !authority.is_empty() {
            return Err(invalid(format!(
                "a unix URI has no host, but this one names {authority:?} (write three slashes)"
            )));
        }
        let socket = query.socket.ok_or_else(|| invalid("a unix URI needs ?socket=/path"))?;
        Address::Unix(PathBuf::from(OsString::from_vec(socket)))
    } else {
        if query.socket.is_some() {
            return Err(invalid("socket= belongs to nbd+unix:// and nbds+unix:// only"));
        }
        parse_authority(authority)?
    };
    if query.tls_hostname.is_some() && !tls {
        return Err(invalid("tls-hostname= belongs to nbds:// and nbds+unix:// only"));
    }
    let uri = Uri::new(tls, address, &decode_text("export name", path)?)?;
    Ok(Uri { tls_hostname: query.tls_hostname, ..uri })
}

fn parse_authority(authority: &str) -> Result<Address> {
    if authority.contains('@') {
        return Err(invalid("user names in URIs are not supported"));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| invalid("IPv6 address without its closing ]"))?;
            if !host.contains(':') {
                return Err(invalid("only an IPv6 address stands in brackets"));
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(invalid("after the ] of an IPv6 address comes :port or nothing")),
            }
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(invalid("an IPv6 address must stand in brackets")),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => number,
            _ => return Err(invalid(format!("{port:?} is no port"))),
        },
    };
    let host = decode_text("host", host)?;
    if host.is_empty() {
        return Err(invalid("it names no host"));
    }
    Ok(Address::Tcp { host, port })
}

#[derive(Default)]
struct Query {
    socket: Option<Vec<u8>>,
    tls_hostname: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Self> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let doubled = match key {
                "socket" => query.socket.replace(decode("socket path", value)?).is_some(),
                "tls-hostname" => {
                    let host = decode_text("tls-hostname", value)?;
                    check_host(&host)?;
                    query.tls_hostname.replace(host).is_some()
                }
                // What we do anyway may be said.
                "tls-type" if value == "x509" => false,
                "tls-verify-peer" if value == "1" => false,
                "tls-type" => return Err(Error::new(Kind::Unsupported, format!("TLS of type {value:?}; x509 works"))),
                "tls-verify-peer" => {
                    return Err(Error::new(
                        Kind::Unsupported,
                        "TLS without verification proves nothing; name a CA file",
                    ));
                }
                _ => return Err(invalid(format!("parameter {key:?} is not known"))),
            };
            if doubled {
                return Err(invalid(format!("parameter {key:?} comes twice")));
            }
        }
        Ok(query)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(self.export.as_bytes(), ENCODED);
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        let mut separator = '?';
        match &self.address {
            Address::Tcp { host, port } => {
                let name = percent_encode(host.as_bytes(), const { &ENCODED.remove(b':') });
                match host.contains(':') {
                    true => write!(f, "://[{name}]")?,
                    false => write!(f, "://{name}")?,
                }
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")?;
            }
            Address::Unix(path) => {
                write!(f, "+unix:///{export}?socket={}", percent_encode(path.as_os_str().as_bytes(), ENCODED))?;
                separator = '&';
            }
        }
        if let Some(host) = &self.tls_hostname {
            write!(f, "{separator}tls-hostname={}", percent_encode(host.as_bytes(), ENCODED))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use proptest::prelude::*;

    fn good(text: &str) -> Uri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {}", chain(&error)))
    }

    #[test]
    fn the_forms_of_the_specification() {
        let uri = good("nbd://example.com:10809/export");
        assert_eq!(uri.address(), &Address::Tcp { host: "example.com".into(), port: 10809 });
        for (text, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd+unix:///disk?socket=sock", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
        ] {
            assert_eq!(good(text).export(), export, "{text}");
        }
        let uri = good("nbds://[fe80::1%25eth0]:99/");
        assert_eq!(uri.address(), &Address::Tcp { host: "fe80::1%eth0".into(), port: 99 });
        assert!(uri.tls());
        let uri = good("nbds+unix:///?socket=/run/a%20b&tls-hostname=hub.example");
        assert_eq!(uri.address(), &Address::Unix("/run/a b".into()));
        assert_eq!(uri.tls_hostname(), Some("hub.example"));
        assert_eq!(Uri::unix("/s", "e").unwrap().to_string(), "nbd+unix:///e?socket=/s");
    }

    #[test]
    fn everything_else_is_named() {
        for (text, words) in [
            ("", "must start with"),
            ("http://host/", "scheme \"http\""),
            ("nbd+vsock://1/", "scheme"),
            ("nbd:///disk", "no host"),
            ("nbd://host:0/", "no port"),
            ("nbd://host:70000/", "no port"),
            ("nbd://host:+1/x", "no port"),
            ("nbd://::1/", "brackets"),
            ("nbd://[::1/", "closing ]"),
            ("nbd://[::1]x/", "after the ]"),
            ("nbd://[host]/", "brackets"),
            ("nbd://[::zz]/", "no IPv6"),
            ("nbd://me@host/", "user names"),
            ("nbd://host/%4", "percent sign"),
            ("nbd://host/%ff", "not UTF-8"),
            ("nbd://host/%00", "no NUL"),
            ("nbd://host/a b", "percent-encoded"),
            ("nbd://host/#x", "fragment"),
            ("nbd://host/?socket=/x", "socket= belongs"),
            ("nbd://host/?color=red", "parameter \"color\""),
            ("nbd://host/?tls-hostname=x", "tls-hostname="),
            ("nbds://host/?tls-verify-peer=0", "proves nothing"),
            ("nbds://host/?tls-type=psk", "TLS of type"),
            ("nbd+unix:///x", "?socket="),
            ("nbd+unix://host/x?socket=/s", "three slashes"),
            ("nbd+unix:///x?socket=/s&socket=/t", "twice"),
            ("nbd+unix:///x?socket=", "1 to 107"),
        ] {
            let error = text.parse::<Uri>().expect_err(text);
            assert!(chain(&error).contains(words), "{text}: {}", chain(&error));
        }
        let long = format!("nbd+unix:///x?socket=/{}", "s".repeat(107));
        assert_eq!(long.parse::<Uri>().unwrap_err().kind, Kind::Invalid);
    }

    proptest! {
        #[test]
        fn printed_and_parsed_again_it_is_the_same(
            tls in any::<bool>(),
            host in prop_oneof!["[a-z][a-z0-9.-]{0,20}", Just("::1".to_owned()), Just("fe80::1%eth0".to_owned())],
            port in 1u16..,
            export in "[^\0]{0,40}",
            path in prop::option::of("/[^\0]{1,20}"),
        ) {
            let uri = match path {
                Some(path) => Uri::unix(path, &export).unwrap(),
                None => Uri::tcp(&host, port, &export).unwrap(),
            };
            let uri = if tls { uri.with_tls() } else { uri };
            prop_assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
        }

        #[test]
        fn any_text_is_an_error_or_a_uri(text in "(nbds?(\\+unix)?://)?[\\x00-\\x7f]{0,60}") {
            if let Ok(uri) = text.parse::<Uri>() {
                prop_assert_eq!(uri.to_string().parse::<Uri>().unwrap(), uri);
            }
        }
    }
}
