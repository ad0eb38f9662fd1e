//! Nodes: data movers that run beside hypervisors and dial in.
//!
//! What lives here: what the hub knows of nodes beyond their rows. [`authority`] signs and checks their certificates,
//! [`sessions`] knows who is connected and has what to do, [`run`] lands what a node's backup brings, [`resume`] takes it up again after a
//! restart, [`restore`] has a node restore what [`supply`] lends it, [`source`] is a source
//! behind a node, and [`calls`] takes apart what nodes say. What does not: who may do what with them (`app`), HTTP. Invariant: whoever bears a certificate of the authority is still looked
//! up in the catalog at every call, so that a node that was revoked can do nothing from that moment on.

pub(crate) mod authority;
pub(crate) mod bodies;
pub(crate) mod calls;
pub(crate) mod kept;
mod landed;
pub(crate) mod limit;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod sessions;
pub(crate) mod source;
mod supply;
#[cfg(test)]
pub(crate) use supply::ANSWER_BYTES_MAX;

use authority::Authority;
use bodies::Bodies;
use resume::Transfers;
use sessions::Sessions;
use std::sync::OnceLock;

/// What the hub knows of nodes.
pub(crate) struct Nodes {
    /// Signs their certificates.
    pub authority: Authority,
    /// Who is connected.
    pub sessions: Sessions,
    /// Backups that outlive the hub.
    pub transfers: Transfers,
    /// Room for the bodies of their calls.
    pub bodies: Bodies,
    /// SHA-256 of the certificate that the hub itself shows; none on plain HTTP, where no node can come.
    fingerprint: OnceLock<String>,
}

impl Nodes {
    pub fn new(authority: Authority, transfers: Transfers) -> Self {
        let (sessions, bodies) = (Sessions::default(), Bodies::default());
        Self { authority, sessions, transfers, bodies, fingerprint: OnceLock::new() }
    }

    /// The hub is served with this certificate.
    pub fn served_with(&self, fingerprint: &str) {
        // A hub has one server; the first word stays.
        let _ = self.fingerprint.set(fingerprint.to_owned());
    }

    /// The certificate by which nodes know the hub.
    pub fn hub_fingerprint(&self) -> Option<&str> {
        self.fingerprint.get().map(String::as_str)
    }
}

impl Nodes {
    /// A node was revoked: what it does is lost, and it is told nothing more.
    pub fn forget(&self, node: &sendense_types::NodeId) {
        self.sessions.forget(node);
    }
}
