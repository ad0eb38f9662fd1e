//! A small client of vCenter and ESXi: the methods that a backup needs, over SOAP, with nothing behind them hidden.
//!
//! What lives here: sessions, inventory, snapshots, changed areas, reconfiguration and creation of machines, privileges,
//! tasks. What does not: what a backup is, which snapshot is whose, the reading of disks. SOAP is the one protocol that
//! vCenter and bare ESXi hosts of every supported version speak (VI/JSON is vCenter 8.0 U1 and later only).
//!
//! Layers, each knowing only the one below: operations ([`inventory`], [`snapshot`], [`change`], [`machine`] …) ->
//! [`Vim`] (session, one re-login) -> [`Exchange`] (HTTPS, pinned or verified) ; `xml` reads, `request` writes.
//!
//! Invariants: every reply is outside data: bounded in bytes, depth and number of elements, and whatever it holds nothing
//! here panics. The elements of a request are in the order of VMware's schema, as real servers demand (a table exported
//! from pyvmomi's types checks each request in the tests). A server whose certificate was not confirmed gets no password.

mod alive;
pub mod change;
mod client;
pub mod device;
mod error;
pub mod inventory;
pub mod machine;
pub mod place;
pub mod privilege;
mod property;
mod reply;
mod request;
pub mod snapshot;
mod task;
mod tls;
mod transport;
mod xml;

pub use alive::KeptAlive;
pub use client::{About, Login, Vim};
pub use error::{Error, Fault, FaultKind, Result};
pub use request::Ref;
pub use tls::{Certificate, Fingerprint, Trust};
pub use transport::{Exchange, Http, HttpOptions, Reply, probe, server_name};
pub use xml::Element;

#[cfg(test)]
mod tests;
