//! A session with a server: what it is, logging in, calling methods, one new login when the session is gone.
//!
//! What lives here: the way of every call. What does not: which methods there are. A session ends after half an hour
//! without a call (the administrator's setting), and a copy lasts longer: so `NotAuthenticated` costs one new login and one
//! new try, which is safe for every method, since the server refused the first try before it did anything.

use crate::error::{Error, FaultKind, Result};
use crate::reply;
use crate::request::{Body, Method, Ref};
use crate::tls::Certificate;
use crate::transport::{Exchange, Reply};
use crate::xml::Element;
use parking_lot::Mutex;
use sendense_block::Cancel;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long one call may take. A vCenter under load answers a page of machines in seconds; changed areas of a large disk
/// take a minute on a slow host.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(180);

/// An account.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Its name: `backup@vsphere.local`.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// `VMware vCenter Server 8.0.3 build-24022515`.
    pub full_name: String,
    /// The version of its methods: `8.0.3.0`.
    pub api_version: String,
    /// True for a vCenter, false for a bare host.
    pub is_vcenter: bool,
    /// The vCenter's own uuid.
    pub instance_uuid: Option<String>,
}

/// The objects that every server has, as it names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub root_folder: Ref,
    pub property_collector: Ref,
    pub view_manager: Ref,
    pub session_manager: Ref,
    pub authorization_manager: Option<Ref>,
    pub search_index: Option<Ref>,
}

/// A session. Cheap to share; calls from several threads go side by side.
pub struct Vim {
    exchange: Arc<dyn Exchange>,
    login: Login,
    about: About,
    pub(crate) service: Service,
    /// How often was logged in; a second caller that finds the session gone sees that the first has renewed it already.
    logins: Mutex<u64>,
    /// The session's key, as the last login told it.
    session_key: Mutex<String>,
}

impl fmt::Debug for Vim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { login, about, .. } = self;
        f.debug_struct("Vim")
            .field("address", &self.exchange.address())
            .field("login", login)
            .field("about", about)
            .finish()
    }
}

impl Vim {
    /// Asks the server what it is and logs in.
    pub fn connect(exchange: Arc<dyn Exchange>, login: Login, cancel: &Cancel) -> Result<Self> {
        let (about, service) = service_content(&*exchange, cancel)?;
        let vim = Self { exchange, login, about, service, logins: Mutex::new(0), session_key: Mutex::default() };
        vim.renew(0, cancel)?;
        Ok(vim)
    }

    /// What the server is.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Which server it is, for messages.
    pub fn address(&self) -> &str {
        self.exchange.address()
    }

    /// The server's certificate.
    pub fn certificate(&self) -> Option<Certificate> {
        self.exchange.certificate()
    }

    /// A call that does nothing, so that the session does not end; renews it when it is gone already.
    pub fn keep_alive(&self, cancel: &Cancel) -> Result<()> {
        self.call(Method::CurrentTime, &Ref::new("ServiceInstance", "ServiceInstance"), |_| {}, cancel).map(drop)
    }

    /// Ends the session. What fails is forgotten: the server ends idle sessions by itself.
    pub fn log_out(&self, cancel: &Cancel) {
        let gone = send(&*self.exchange, Method::Logout, &self.service.session_manager, |_| {}, cancel);
        if let Err(error) = gone {
            tracing::debug!(address = self.address(), %error, "log out");
        }
        self.exchange.forget_session();
    }

    /// Calls a method; `parameters` writes what comes after the object, in the schema's order.
    pub(crate) fn call(
        &self,
        method: Method,
        this: &Ref,
        parameters: impl Fn(&mut Body),
        cancel: &Cancel,
    ) -> Result<Element> {
        let logins = *self.logins.lock();
        match send(&*self.exchange, method, this, &parameters, cancel) {
            Err(error) if error.kind() == Some(FaultKind::NotAuthenticated) => {
                self.renew(logins, cancel)?;
                send(&*self.exchange, method, this, &parameters, cancel)
            }
            other => other,
        }
    }

    /// Calls a method that only asks. A connection that broke meanwhile is tried once more: asking twice is asking once.
    pub(crate) fn ask(
        &self,
        method: Method,
        this: &Ref,
        parameters: impl Fn(&mut Body),
        cancel: &Cancel,
    ) -> Result<Element> {
        match self.call(method, this, &parameters, cancel) {
            Err(Error::Unreachable { .. }) => self.call(method, this, &parameters, cancel),
            other => other,
        }
    }

    /// The session's key, for questions about the session itself.
    pub(crate) fn session_key(&self) -> String {
        self.session_key.lock().clone()
    }

    /// How often was logged in until now: whoever holds something that lives in a session compares.
    pub(crate) fn logins(&self) -> u64 {
        *self.logins.lock()
    }

    /// Logs in, unless somebody has since `seen` was read. The lock is held over the login: the others wait for it.
    fn renew(&self, seen: u64, cancel: &Cancel) -> Result<()> {
        let mut logins = self.logins.lock();
        if *logins != seen {
            return Ok(());
        }
        self.exchange.forget_session();
        let Login { username, password } = &self.login;
        let account = |body: &mut Body| {
            body.value("userName", username).value("password", password).value("locale", "en_US");
        };
        let answer = send(&*self.exchange, Method::Login, &self.service.session_manager, account, cancel)?;
        *self.session_key.lock() = answer.text_at("returnval.key").unwrap_or_default().to_owned();
        *logins += 1;
        Ok(())
    }
}

/// One request and its answer taken apart.
fn send(
    exchange: &dyn Exchange,
    method: Method,
    this: &Ref,
    parameters: impl FnOnce(&mut Body),
    cancel: &Cancel,
) -> Result<Element> {
    let Reply { status, body } =
        exchange.exchange(method.name(), Body::call(method, this, parameters), CALL_TIMEOUT, cancel)?;
    match (status, reply::answer(method.name(), &body)) {
        (200, answer) => answer,
        // Faults come with status 500.
        (_, Err(error @ Error::Fault { .. })) => Err(error),
        (502..=504, _) => {
            let source = format!("the server, or a proxy before it, answered with HTTP status {status}").into();
            Err(Error::Unreachable { address: exchange.address().to_owned(), source })
        }
        (status, _) => {
            Err(Error::Reply { method: method.name().to_owned(), problem: format!("it has HTTP status {status}") })
        }
    }
}

fn service_content(exchange: &dyn Exchange, cancel: &Cancel) -> Result<(About, Service)> {
    const METHOD: Method = Method::RetrieveServiceContent;
    let this = Ref::new("ServiceInstance", "ServiceInstance");
    let answer = send(exchange, METHOD, &this, |_| {}, cancel)?;
    let missing =
        |what: &str| Error::Reply { method: METHOD.name().to_owned(), problem: format!("it names no {what}") };
    let content = answer.child("returnval").ok_or_else(|| missing("objects"))?;
    let object = |name: &str| reply::reference_at(content, name);
    let text = |path: &str| content.text_at(path).map(reply::short);
    let service = Service {
        root_folder: object("rootFolder").ok_or_else(|| missing("root folder"))?,
        property_collector: object("propertyCollector").ok_or_else(|| missing("property collector"))?,
        view_manager: object("viewManager").ok_or_else(|| missing("view manager"))?,
        session_manager: object("sessionManager").ok_or_else(|| missing("session manager"))?,
        authorization_manager: object("authorizationManager"),
        search_index: object("searchIndex"),
    };
    let about = About {
        full_name: text("about.fullName").ok_or_else(|| missing("product"))?,
        api_version: text("about.apiVersion").unwrap_or_default(),
        is_vcenter: content.text_at("about.apiType") == Some("VirtualCenter"),
        instance_uuid: text("about.instanceUuid"),
    };
    Ok((about, service))
}
