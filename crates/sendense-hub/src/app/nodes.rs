//! Letting nodes in, and out again.
//!
//! A pairing code has 60 random bits, is good for a quarter of an hour and for one node. The catalog keeps its SHA-256: what
//! could be guessed from that within the quarter of an hour is nothing.

use super::{App, Caller};
use crate::fault::{OrProblem, Result, internal, invalid};
use crate::nodes::limit::Limit;
use crate::nodes::sessions;
use sendense_api::{
    CreatePairing, EnrolNode, Enrolment, ListQuery, Node, NodeHello, NodeLimit, NodeStatus, NodeWelcome, Page, Pairing,
    Role,
};
use sendense_catalog as catalog;
use sendense_types::{Name, NodeId, Problem, ProblemCode};
use sha2::{Digest, Sha256};

/// How long a code is good: long enough to walk to the other machine.
const CODE_SECONDS: i64 = 15 * 60;
/// Letters of a code, five bits each, without those that look like others (0 and O, 1 and I).
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
/// Letters per code, told in groups of four.
const CODE_CHARS: usize = 12;
/// The longest signing request that is read; ours have some 400 bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// What a node says of itself is cut to this.
const WORD_CHARS_MAX: usize = 255;

/// A node that calls.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeCaller {
    /// Which.
    pub node_id: NodeId,
    /// What it is called.
    pub name: Name,
}

impl App {
    /// Makes a code that lets a node in. It is told this once.
    pub async fn create_pairing(&self, caller: &Caller, asked: CreatePairing) -> Result<Pairing> {
        caller.require(Role::Admin)?;
        let fingerprint = self.hub_fingerprint()?.to_owned();
        let name: Name = asked.name.parse().map_err(|error: sendense_types::NameError| invalid(error.to_string()))?;
        let code = generate()?;
        let now = self.core.now();
        let expires_at = now.plus_seconds(CODE_SECONDS);
        let new = catalog::NewNodeCode {
            hash: hash(&code),
            name: name.clone(),
            created_by: caller.identity.clone(),
            expires_at,
        };
        self.core.catalog.nodes().add_code(&new, now).await.or_problem()?;
        tracing::info!(node = %name, by = %caller.identity, "pairing code made");
        Ok(Pairing { code, name: name.to_string(), expires_at, fingerprint })
    }

    /// Lets a node in by its code. `None` when the code is not known: the front door counts those.
    pub async fn enrol_node(&self, asked: EnrolNode) -> Result<Option<Enrolment>> {
        self.hub_fingerprint()?;
        if asked.request.len() > REQUEST_BYTES_MAX {
            return Err(invalid(format!("request: at most {REQUEST_BYTES_MAX} bytes are taken")));
        }
        let (node_id, now) = (NodeId::generate(), self.core.now());
        let signed = self.core.nodes.authority.sign(&asked.request, &node_id, now);
        let signed = signed.map_err(|error| invalid(error.to_string()))?;
        let new = catalog::NewNode { code_hash: hash(&asked.code), node_id, certificate: signed.fingerprint };
        match self.core.catalog.nodes().enrol(&new, now).await {
            Ok(node) => {
                tracing::info!(node_id = %node.node_id, node = %node.name, "node enrolled");
                let name = node.name.to_string();
                Ok(Some(Enrolment { node_id: node.node_id, name, certificate: signed.pem }))
            }
            Err(error) if error.kind() == catalog::Kind::NotFound => Ok(None),
            Err(error) => Err(error).or_problem(),
        }
    }

    /// The node that bears this certificate; none when it is not known or was revoked.
    pub async fn authenticate_node(&self, certificate: &[u8]) -> Result<Option<NodeCaller>> {
        let fingerprint = Sha256::digest(certificate).into();
        let node = self.core.catalog.nodes().by_certificate(&fingerprint).await.or_problem()?;
        Ok(node.map(|node| NodeCaller { node_id: node.node_id, name: node.name }))
    }

    /// A node begins.
    pub async fn node_hello(&self, node: &NodeCaller, hello: NodeHello) -> Result<NodeWelcome> {
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(WORD_CHARS_MAX).collect::<String>();
        let state = serde_json::json!({ "version": cut(&hello.version), "host": cut(&hello.host) });
        self.core.catalog.nodes().note_seen(&node.node_id, &state, self.core.now()).await.or_problem()?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(NodeWelcome { node_id: node.node_id.clone(), name: node.name.to_string(), version })
    }

    /// Nodes that are valid, by name.
    pub async fn list_nodes(&self, page: ListQuery) -> Result<Page<Node>> {
        let page = catalog::Page { limit: page.limit.get().into(), offset: page.offset };
        let (nodes, total) = self.core.catalog.nodes().list(page).await.or_problem()?;
        let every = catalog::Page { limit: catalog::Page::LIMIT_MAX, offset: 0 };
        let (sources, _) = self.core.catalog.sources().list(every).await.or_problem()?;
        let mut bound = Vec::with_capacity(sources.len());
        for source in sources {
            if let Some(node) = super::sources::Settings::read(&source.config)?.node {
                bound.push((node, source.name.to_string()));
            }
        }
        Ok(Page { items: nodes.into_iter().map(|node| self.node_out(node, &bound)).collect(), total })
    }

    /// Says what a node's blocks may take of its line. A node that this hub serves keeps to it at once, one of another hub at its next poll.
    pub async fn limit_node(&self, caller: &Caller, id_or_name: &str, said: NodeLimit) -> Result<()> {
        caller.require(Role::Admin)?;
        let node = self.core.catalog.nodes().find(id_or_name).await.or_problem()?;
        Limit::read(&said).map_err(|error| invalid(error.to_string()))?;
        let value = (said != NodeLimit::default()).then(|| serde_json::to_value(&said)).transpose();
        let value = value.map_err(|error| internal("a limit cannot be written", error.to_string()))?;
        self.core.catalog.nodes().limit(&node.node_id, value.as_ref()).await.or_problem()?;
        self.core.nodes.sessions.limit_changed(&node.node_id);
        tracing::info!(node_id = %node.node_id, node = %node.name, by = %caller.identity, ?said, "node limited");
        Ok(())
    }

    /// What a node's blocks may take of its line at this moment.
    pub(crate) fn node_limit_now(&self, node: &catalog::Node) -> Option<u64> {
        let said = node_limit(node)?;
        match Limit::read(&said) {
            Ok(limit) => limit.at(self.core.now()),
            // Another hub has taken it in, with time zones that this one lacks: what holds outside of windows holds always.
            Err(error) => {
                tracing::warn!(node_id = %node.node_id, error = %error, "a node's limit is kept to without its windows");
                said.bytes_per_second
            }
        }
    }

    /// Makes a node void, by its id or name. Whatever it does is refused from now on.
    pub async fn revoke_node(&self, caller: &Caller, id_or_name: &str) -> Result<()> {
        caller.require(Role::Admin)?;
        let node = self.core.catalog.nodes().find(id_or_name).await.or_problem()?;
        self.core.catalog.nodes().revoke(&node.node_id, self.core.now()).await.or_problem()?;
        self.core.nodes.forget(&node.node_id);
        tracing::info!(node_id = %node.node_id, node = %node.name, by = %caller.identity, "node revoked");
        Ok(())
    }

    fn node_out(&self, node: catalog::Node, bound: &[(String, String)]) -> Node {
        let word = |name: &str| Some(node.state.as_ref()?.get(name)?.as_str()?.to_owned());
        let activity = self.core.nodes.sessions.activity(&node.node_id);
        let is_recent = node.last_seen_at.is_some_and(|seen| sessions::is_recent(seen, self.core.now()));
        let status = if activity.is_some() || is_recent { NodeStatus::Online } else { NodeStatus::Offline };
        let sources = bound.iter().filter(|(to, _)| to == node.name.as_str()).map(|(_, source)| source.clone());
        Node {
            status,
            sources: sources.collect(),
            running_backups: activity.map_or(0, |activity| activity.backups),
            bytes_per_second: activity.map_or(0, |activity| activity.bytes_per_second),
            limit: node_limit(&node),
            limit_now: self.node_limit_now(&node),
            version: word("version"),
            host: word("host"),
            node_id: node.node_id,
            name: node.name.to_string(),
            enrolled_by: node.enrolled_by,
            created_at: node.created_at,
            last_seen_at: node.last_seen_at,
        }
    }

    /// Nodes come over TLS only.
    fn hub_fingerprint(&self) -> Result<&str> {
        self.core.nodes.hub_fingerprint().ok_or_else(|| {
            Problem::new(
                ProblemCode::Conflict,
                "this hub serves plain HTTP, on which no node can come",
                "start it with --listen beyond loopback, or with --tls-cert and --tls-key",
            )
        })
    }
}

/// What was said of a node's line. What cannot be read was written by a later release; it is told, and limits nothing.
fn node_limit(node: &catalog::Node) -> Option<NodeLimit> {
    let read = serde_json::from_value(node.bandwidth.clone()?);
    read.inspect_err(|error| tracing::warn!(node_id = %node.node_id, error = %error, "a node's limit cannot be read"))
        .ok()
}

fn generate() -> Result<String> {
    let mut bytes = [0; CODE_CHARS];
    getrandom::fill(&mut bytes).map_err(|error| internal("no random bytes", error.to_string()))?;
    let letters: Vec<char> = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    Ok(letters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}

/// What the catalog keeps of a code, however a person typed it.
fn hash(code: &str) -> [u8; 32] {
    let typed = code.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_uppercase());
    Sha256::digest(typed.collect::<String>()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_random_and_read_as_people_type_them() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), CODE_CHARS + 2, "{one}");
        assert_eq!(hash(&one), hash(&format!(" {} ", one.to_lowercase().replace('-', ""))));
        assert_ne!(hash(&one), hash(&two));
    }
}
