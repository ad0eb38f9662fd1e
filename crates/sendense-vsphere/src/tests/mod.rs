//! The client against a server made of a script: what it sends, and what it makes of what comes back.

mod https;
mod operations;
mod recordings;
mod schema;
mod session;

use crate::{Error, Exchange, Login, Reply, Result, Vim};
use parking_lot::Mutex;
use sendense_block::Cancel;
use std::sync::Arc;
use std::time::Duration;

/// What a server that does everything names as its objects.
pub const SERVICE: &str = "<returnval><rootFolder type=\"Folder\">group-d1</rootFolder>\
    <propertyCollector type=\"PropertyCollector\">pc</propertyCollector><viewManager type=\"ViewManager\">vm</viewManager>\
    <about><fullName>Scripted 8.0</fullName><apiType>VirtualCenter</apiType><apiVersion>8.0</apiVersion></about>\
    <sessionManager type=\"SessionManager\">sm</sessionManager>\
    <authorizationManager type=\"AuthorizationManager\">am</authorizationManager>\
    <searchIndex type=\"SearchIndex\">si</searchIndex></returnval>";

/// What the script says to a method's n-th call: the inside of the response, or `Err` with a fault's type.
type Answer = Box<dyn Fn(&str, usize) -> Result<String, String> + Send + Sync>;

/// A server made of a script. `RetrieveServiceContent` and `Login` are answered by themselves unless the script does.
pub struct Script {
    answer: Answer,
    /// What was sent, method by method.
    pub sent: Mutex<Vec<(String, String)>>,
}

impl Script {
    pub fn new(answer: impl Fn(&str, usize) -> Result<String, String> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { answer: Box::new(answer), sent: Mutex::default() })
    }

    pub fn connect(self: &Arc<Self>) -> Vim {
        let login = Login { username: "a&b".into(), password: "p<w".into() };
        Vim::connect(self.clone(), login, &Cancel::new()).unwrap()
    }

    pub fn count(&self, method: &str) -> usize {
        self.sent.lock().iter().filter(|(sent, _)| sent == method).count()
    }
}

impl Exchange for Script {
    fn exchange(&self, method: &str, body: String, _: Duration, cancel: &Cancel) -> Result<Reply> {
        cancel.check().map_err(|_| Error::Cancelled)?;
        let nth = {
            let mut sent = self.sent.lock();
            sent.push((method.to_owned(), body));
            sent.iter().filter(|(held, _)| held == method).count()
        };
        let (status, inside) = match (method, (self.answer)(method, nth)) {
            ("RetrieveServiceContent", _) => {
                (200, envelope(&format!("<{method}Response>{SERVICE}</{method}Response>")))
            }
            ("Login", Ok(_)) => {
                (200, envelope("<LoginResponse><returnval><key>session-1</key></returnval></LoginResponse>"))
            }
            (_, Ok(raw)) if raw.starts_with("<?xml") => (200, raw),
            (_, Ok(inside)) => (200, envelope(&format!("<{method}Response>{inside}</{method}Response>"))),
            (_, Err(fault)) => (500, envelope(&soap_fault(&fault))),
        };
        Ok(Reply { status, body: inside })
    }

    fn forget_session(&self) {}

    fn certificate(&self) -> Option<crate::Certificate> {
        None
    }

    fn address(&self) -> &str {
        "script"
    }
}

pub fn soap_fault(fault: &str) -> String {
    format!(
        "<s:Fault><faultcode>ServerFaultCode</faultcode><faultstring>it said {fault}</faultstring>\
         <detail><{fault}Fault xsi:type=\"{fault}\"><privilegeId>VM.X</privilegeId></{fault}Fault></detail></s:Fault>"
    )
}

pub fn envelope(inside: &str) -> String {
    format!("<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"x\" xmlns:xsi=\"y\"><s:Body>{inside}</s:Body></s:Envelope>")
}

/// A page of the property collector with one object.
pub fn object(kind: &str, id: &str, properties: &[(&str, &str)]) -> String {
    let sets: String = properties
        .iter()
        .map(|(name, value)| format!("<propSet><name>{name}</name><val>{value}</val></propSet>"))
        .collect();
    format!("<objects><obj type=\"{kind}\">{id}</obj>{sets}</objects>")
}
