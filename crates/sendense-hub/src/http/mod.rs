//! HTTP: the API's front door.
//!
//! What lives here: routes, who may pass, how requests are read and answers are written, the OpenAPI document, TLS, limits.
//! What does not: decisions (`app` makes them), SQL, files other than the certificate. Invariant: whatever goes wrong on
//! the way in or out, the answer is the API's problem body in JSON; and the OpenAPI document, the list of endpoints, the
//! roles and the query parameters that are taken all come from one table, the router's own.
//!
//! A request passes, from the outside in:
//!
//! ```text
//! capacity   connections beyond the limit are closed before a byte is read
//! finish     problem bodies, security headers, metrics
//! panic      a handler that panics answers 500
//! host       names other than this machine's are refused on plain HTTP (DNS rebinding)
//! gate       token -> caller -> role, or certificate -> node; unknown query parameters
//! limits     time and body size
//! handler    decodes, calls one method of `App`, encodes
//! ```

mod auth;
mod capacity;
mod docs;
mod extract;
mod finish;
mod handlers;
mod host;
mod openapi;
mod operations;
mod peer;
mod problem;
mod range;
mod router;
mod server;
mod stream;
mod tls;

#[cfg(test)]
mod tests;

pub use openapi::document as openapi_document;
pub(crate) use tls::certificate_time;

pub use server::{Error, Options, Server, Timeouts};
