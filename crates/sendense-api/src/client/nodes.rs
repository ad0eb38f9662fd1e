//! Calls about nodes, by people and by nodes themselves.

use super::{Client, ClientError};
use crate::reply::{DoneReply, EnrolmentReply, NodeListReply, NodeWelcomeReply, PairingReply};
use crate::{CreatePairing, EnrolNode, Enrolment, ListQuery, Node, NodeHello, NodeLimit, NodeWelcome, Page, Pairing};
use reqwest::Method;

type Result<T> = std::result::Result<T, ClientError>;

/// Nodes.
impl Client {
    /// Makes a code that lets a node of this name in.
    pub async fn create_pairing(&self, request: &CreatePairing) -> Result<Pairing> {
        Ok(self.send::<_, PairingReply>(Method::POST, &["nodes", "pairings"], request).await?.payload)
    }

    /// Lets a node in by its code; needs no token.
    pub async fn enrol_node(&self, request: &EnrolNode) -> Result<Enrolment> {
        Ok(self.send::<_, EnrolmentReply>(Method::POST, &["nodes", "enrol"], request).await?.payload)
    }

    /// Lists nodes by name.
    pub async fn list_nodes(&self, page: &ListQuery) -> Result<Page<Node>> {
        Ok(self.get::<_, NodeListReply>(&["nodes"], page).await?.into())
    }

    /// Says what a node's blocks may take of its line; nothing at all lifts the limit.
    pub async fn limit_node(&self, node: &str, limit: &NodeLimit) -> Result<()> {
        self.send::<_, DoneReply>(Method::PUT, &["nodes", node, "limit"], limit).await.map(drop)
    }

    /// Revokes a node, by its id or name.
    pub async fn revoke_node(&self, node: &str) -> Result<()> {
        self.delete::<_, DoneReply>(&["nodes", node], &()).await.map(drop)
    }

    /// Says something as a node, in the words of nodes; the answer is in them too.
    pub async fn node_call(&self, body: Vec<u8>) -> Result<Vec<u8>> {
        let call = self.call(Method::POST, &["node", "call"]).header("content-type", "application/octet-stream");
        self.finish_bytes(call.body(body)).await
    }

    /// Says who one is, as a node; needs the node's certificate and no token.
    pub async fn node_hello(&self, hello: &NodeHello) -> Result<NodeWelcome> {
        Ok(self.send::<_, NodeWelcomeReply>(Method::POST, &["node", "hello"], hello).await?.payload)
    }
}
