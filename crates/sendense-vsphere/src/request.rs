//! Writing requests: an envelope, a method, its parameters in the order they are written.
//!
//! What lives here: escaping and the ways in which values bear a type. What does not: the order, which is that of the
//! calls in the operations and is checked against VMware's schema by the tests.

use std::fmt;

/// The schema that we speak: vSphere 6.5, enough for every method here and understood by everything since. An empty
/// SOAPAction would select a baseline without `RetrievePropertiesEx`.
pub(crate) const ACTION: &str = "\"urn:vim25/6.5\"";

/// The methods that are called, by the names that the schema has for them. There is no other way to call one, so that the
/// check against VMware's schema knows them all.
macro_rules! methods {
    ($($method:ident = $name:literal,)*) => {
        /// A method of the server.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Method {
            $(#[doc = $name] $method,)*
        }

        impl Method {
            /// All that there are.
            #[cfg(test)]
            pub const ALL: &[Self] = &[$(Self::$method,)*];

            /// Its name on the wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$method => $name,)*
                }
            }
        }
    };
}

methods! {
    RetrieveServiceContent = "RetrieveServiceContent",
    CurrentTime = "CurrentTime",
    Login = "Login",
    Logout = "Logout",
    CreateContainerView = "CreateContainerView",
    DestroyView = "DestroyView",
    RetrievePropertiesEx = "RetrievePropertiesEx",
    ContinueRetrievePropertiesEx = "ContinueRetrievePropertiesEx",
    FindByUuid = "FindByUuid",
    HasPrivilegeOnEntities = "HasPrivilegeOnEntities",
    CancelTask = "CancelTask",
    CreateSnapshot = "CreateSnapshot_Task",
    ConsolidateVMDisks = "ConsolidateVMDisks_Task",
    QueryChangedDiskAreas = "QueryChangedDiskAreas",
    ReconfigVM = "ReconfigVM_Task",
    PowerOnVM = "PowerOnVM_Task",
    PowerOffVM = "PowerOffVM_Task",
    UnregisterVM = "UnregisterVM",
    Destroy = "Destroy_Task",
    RemoveSnapshot = "RemoveSnapshot_Task",
    CreateVM = "CreateVM_Task",
}

/// Names an object of the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref {
    /// Its type: `VirtualMachine`.
    pub kind: String,
    /// Its id: `vm-17`.
    pub id: String,
}

impl Ref {
    /// A reference of that type and id.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

/// A body in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Body(String);

impl Body {
    /// A call of a method on an object; the parameters follow in the schema's order.
    pub fn call(method: Method, this: &Ref, parameters: impl FnOnce(&mut Self)) -> String {
        let (mut body, method) = (Self(String::with_capacity(1024)), method.name());
        body.0.push_str(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>",
        );
        body.0.push_str(&format!("<{method} xmlns=\"urn:vim25\">"));
        body.reference("_this", this);
        parameters(&mut body);
        body.0.push_str(&format!("</{method}></soapenv:Body></soapenv:Envelope>"));
        body.0
    }

    /// A plain value.
    pub fn value(&mut self, name: &str, value: impl fmt::Display) -> &mut Self {
        let text = value.to_string();
        self.0.push_str(&format!("<{name}>{}</{name}>", quick_xml::escape::escape(text.as_str())));
        self
    }

    /// A plain value, when there is one.
    pub fn value_if(&mut self, name: &str, value: Option<impl fmt::Display>) -> &mut Self {
        if let Some(value) = value {
            self.value(name, value);
        }
        self
    }

    /// A reference to an object.
    pub fn reference(&mut self, name: &str, to: &Ref) -> &mut Self {
        let (kind, id) = (quick_xml::escape::escape(to.kind.as_str()), quick_xml::escape::escape(to.id.as_str()));
        self.0.push_str(&format!("<{name} type=\"{kind}\">{id}</{name}>"));
        self
    }

    /// A structure of the type that the schema names.
    pub fn object(&mut self, name: &str, fields: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push_str(&format!("<{name}>"));
        fields(self);
        self.0.push_str(&format!("</{name}>"));
        self
    }

    /// A structure of a type that extends the one which the schema names.
    pub fn typed(&mut self, name: &str, xsi_type: &str, fields: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push_str(&format!("<{name} xsi:type=\"{xsi_type}\">"));
        fields(self);
        self.0.push_str(&format!("</{name}>"));
        self
    }
}
