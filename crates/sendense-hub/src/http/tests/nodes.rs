//! Nodes at the front door: what a certificate opens, and what it does not.

use super::{Fixture, PATIENCE};
use crate::http::{Options, Server, Timeouts, router};
use crate::{Caller, HubConfig};
use rcgen::{CertificateParams, KeyPair};
use sendense_api::{
    Client, ClientError, ClientOptions, CreatePairing, Day, EnrolNode, Identity, LimitWindow, ListQuery, NodeHello,
    NodeLimit, Role, Secret, Trust,
};
use sendense_types::SystemClock;
use std::sync::Arc;

pub(super) struct Site {
    pub fixture: Fixture,
    pub server: Server,
}

impl Site {
    /// A hub that serves TLS.
    pub async fn new() -> Self {
        Self::configured(|_| ()).await
    }

    /// With settings of the test's own.
    pub async fn configured(configure: impl FnOnce(&mut HubConfig)) -> Self {
        let fixture = Fixture::configured(router::documented(), configure).await;
        let core = &fixture.hub.app().core;
        let options = Options {
            listen: "0.0.0.0:0".parse().unwrap(),
            tls: None,
            tls_dir: fixture.folder.path().join("tls"),
            node_verifier: core.nodes.authority.verifier().unwrap(),
            timeouts: Timeouts::default(),
            clock: Arc::new(SystemClock),
        };
        let server = Server::start(fixture.hub.app().clone(), options).unwrap();
        core.nodes.served_with(server.fingerprint().unwrap());
        Self { fixture, server }
    }

    pub fn client(&self, identity: Option<Identity>, token: Option<Role>) -> Client {
        let trust = Trust::fingerprint(self.server.fingerprint().unwrap()).unwrap();
        let token = token.map(|role| Secret::new(self.fixture.token(role)));
        let options = ClientOptions::new(self.server.url());
        Client::new(ClientOptions { trust, identity, token, timeout: PATIENCE, ..options }).unwrap()
    }

    pub async fn enrol(&self, name: &str) -> Identity {
        let admin = self.client(None, Some(Role::Admin));
        let code = admin.create_pairing(&CreatePairing { name: name.to_owned() }).await.unwrap().code;
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let enrolment = self.client(None, None).enrol_node(&EnrolNode { code, request }).await.unwrap();
        Identity { certificate: enrolment.certificate.into_bytes(), key: Secret::new(key.serialize_pem()) }
    }
}

fn hello() -> NodeHello {
    NodeHello { version: "1.2.3".to_owned(), host: "esx\u{1b}[31m-proxy".to_owned() }
}

#[tokio::test]
async fn a_certificate_opens_what_is_for_nodes_and_nothing_else() {
    let site = Site::new().await;
    let identity = site.enrol("SITE-A").await;
    let node = site.client(Some(identity.clone()), None);
    assert_eq!(node.node_hello(&hello()).await.unwrap().name, "SITE-A");
    let listed = site.client(None, Some(Role::Viewer)).list_nodes(&ListQuery::default()).await.unwrap();
    assert_eq!(listed.items[0].host.as_deref(), Some("esx[31m-proxy"), "control characters come through");
    // Not a token's calls, and a token is no certificate.
    assert_eq!(node.list_nodes(&ListQuery::default()).await.unwrap_err().status(), Some(401));
    let admin = site.client(None, Some(Role::Admin));
    assert_eq!(admin.node_hello(&hello()).await.unwrap_err().status(), Some(401));
    // Revoked on the connection that it has.
    admin.revoke_node("SITE-A").await.unwrap();
    assert_eq!(node.node_hello(&hello()).await.unwrap_err().status(), Some(401));
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_certificate_of_somebody_else_ends_in_the_handshake() {
    let (site, other) = (Site::new().await, Site::new().await);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::default().self_signed(&key).unwrap().pem();
    let own = Identity { certificate: own.into_bytes(), key: Secret::new(key.serialize_pem()) };
    for identity in [own, other.enrol("SITE-A").await] {
        let error = site.client(Some(identity), Some(Role::Admin)).node_hello(&hello()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "{error:?}");
    }
    // A certificate without its key is no certificate.
    let (one, two) = (site.enrol("SITE-B").await, site.enrol("SITE-C").await);
    let mixed = Identity { key: two.key, ..one };
    let trust = Trust::fingerprint(site.server.fingerprint().unwrap()).unwrap();
    let options = ClientOptions { trust, identity: Some(mixed), ..ClientOptions::new(site.server.url()) };
    let refused = match Client::new(options) {
        Ok(client) => client.node_hello(&hello()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, ClientError::Unreachable(_) | ClientError::Options(_)), "{refused:?}");
    site.server.shutdown().await;
    other.server.shutdown().await;
}

#[tokio::test]
async fn a_limit_is_kept_with_the_node_and_what_makes_no_sense_is_refused() {
    let site = Site::new().await;
    site.enrol("SITE-A").await;
    let limit = NodeLimit {
        bytes_per_second: Some(1_000_000),
        time_zone: Some("Europe/Berlin".to_owned()),
        windows: vec![LimitWindow {
            from: "08:00".to_owned(),
            until: "18:00".to_owned(),
            days: vec![Day::Monday],
            bytes_per_second: None,
        }],
    };
    let operator = site.client(None, Some(Role::Operator));
    assert_eq!(operator.limit_node("SITE-A", &limit).await.unwrap_err().status(), Some(403));
    let admin = site.client(None, Some(Role::Admin));
    assert_eq!(admin.limit_node("SITE-B", &limit).await.unwrap_err().status(), Some(404));
    let nonsense = NodeLimit { time_zone: Some("Nowhere/At-all".to_owned()), ..limit.clone() };
    let error = admin.limit_node("SITE-A", &nonsense).await.unwrap_err();
    assert_eq!(error.status(), Some(400));
    assert!(error.to_string().contains("Nowhere/At-all"), "{error}");

    let listed = async || admin.list_nodes(&ListQuery::default()).await.unwrap().items.remove(0);
    admin.limit_node("SITE-A", &limit).await.unwrap();
    assert_eq!(listed().await.limit, Some(limit));
    admin.limit_node("SITE-A", &NodeLimit::default()).await.unwrap();
    assert_eq!((listed().await.limit, listed().await.limit_now), (None, None));
    site.server.shutdown().await;
}

#[tokio::test]
async fn only_an_admin_makes_codes_and_wrong_ones_slow_down() {
    let site = Site::new().await;
    let asked = CreatePairing { name: "SITE-A".to_owned() };
    for role in [Role::Viewer, Role::Operator] {
        let error = site.client(None, Some(role)).create_pairing(&asked).await.unwrap_err();
        assert_eq!(error.status(), Some(403));
        let app = site.fixture.hub.app();
        let caller = Caller { identity: "x".to_owned(), role };
        assert!(app.create_pairing(&caller, asked.clone()).await.is_err());
    }
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let client = site.client(None, None);
    let nonsense = client.enrol_node(&EnrolNode { code: "X".to_owned(), request: "x".to_owned() }).await.unwrap_err();
    assert_eq!(nonsense.status(), Some(400));
    let wrong = EnrolNode { code: "AAAA-AAAA-AAAA".to_owned(), request };
    let slowed = loop {
        let error = client.enrol_node(&wrong).await.unwrap_err();
        if error.status() != Some(401) {
            break error;
        }
    };
    assert_eq!(slowed.status(), Some(503), "{slowed:?}");
    site.server.shutdown().await;
}
