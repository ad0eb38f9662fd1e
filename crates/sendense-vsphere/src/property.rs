//! Reading objects' properties: some objects, or all of a type, page by page.
//!
//! What lives here: the property collector and its views. What does not: what the properties mean. A page that never ends
//! is told as a bad reply, not read for ever.

use crate::client::Vim;
use crate::error::{Error, FaultKind, Result};
use crate::reply;
use crate::request::{Body, Method, Ref};
use crate::xml::Element;
use sendense_block::Cancel;
use std::collections::BTreeMap;

/// Objects per page. A machine has 10 to 200 KB of properties, so a page stays in the single megabytes.
const PAGE_OBJECTS: u32 = 50;
/// Objects at the most: vCenter 8 manages 40,000 machines (VMware's configuration maximums), with as many templates.
const OBJECTS_MAX: usize = 100_000;

/// An object with the properties that it has among those asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub reference: Ref,
    properties: BTreeMap<String, Element>,
}

impl Object {
    /// A property's value.
    pub fn get(&self, name: &str) -> Option<&Element> {
        self.properties.get(name)
    }

    /// A property's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        Some(self.get(name)?.text.trim()).filter(|text| !text.is_empty())
    }

    /// A property's number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// A property's truth value.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.text(name)? {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// A property that is a reference.
    pub fn reference(&self, name: &str) -> Option<Ref> {
        reply::reference(self.get(name)?)
    }

    fn read(content: &Element) -> Option<Self> {
        let reference = reply::reference_at(content, "obj")?;
        let property = |set: &Element| Some((set.text_at("name")?.to_owned(), set.child("val")?.clone()));
        Some(Self { reference, properties: content.children("propSet").filter_map(property).collect() })
    }
}

impl Vim {
    /// The named properties of one object; `ManagedObjectNotFound` when it is gone.
    pub(crate) fn properties(&self, of: &Ref, names: &[&str], cancel: &Cancel) -> Result<Object> {
        let found = self.retrieve(&of.kind, names, cancel, |body| {
            body.object("objectSet", |body| {
                body.reference("obj", of).value("skip", false);
            });
        })?;
        let missing = || Error::Reply { method: "RetrievePropertiesEx".into(), problem: format!("{of} is not in it") };
        found.into_iter().find(|object| object.reference == *of).ok_or_else(missing)
    }

    /// The named properties of all objects of a type, in the server's order.
    pub(crate) fn all(&self, kind: &str, names: &[&str], cancel: &Cancel) -> Result<Vec<Object>> {
        let logins = self.logins();
        match self.all_once(kind, names, cancel) {
            // A view dies with its session: a new one is made, once.
            Err(error) if error.kind() == Some(FaultKind::ManagedObjectNotFound) && self.logins() != logins => {
                self.all_once(kind, names, cancel)
            }
            other => other,
        }
    }

    fn all_once(&self, kind: &str, names: &[&str], cancel: &Cancel) -> Result<Vec<Object>> {
        const METHOD: Method = Method::CreateContainerView;
        let parameters = |body: &mut Body| {
            body.reference("container", &self.service.root_folder).value("type", kind).value("recursive", true);
        };
        let answer = self.ask(METHOD, &self.service.view_manager, parameters, cancel)?;
        let view = reply::reference_at(&answer, "returnval")
            .ok_or_else(|| Error::Reply { method: METHOD.name().into(), problem: "it names no view".into() })?;
        let found = self.retrieve(kind, names, cancel, |body| {
            body.object("objectSet", |body| {
                body.reference("obj", &view).value("skip", true);
                body.typed("selectSet", "TraversalSpec", |body| {
                    body.value("name", "view")
                        .value("type", "ContainerView")
                        .value("path", "view")
                        .value("skip", false);
                });
            });
        });
        // One that cannot be destroyed goes with the session.
        let _ = self.call(Method::DestroyView, &view, |_| {}, &Cancel::new());
        found
    }

    fn retrieve(
        &self,
        kind: &str,
        names: &[&str],
        cancel: &Cancel,
        objects: impl Fn(&mut Body),
    ) -> Result<Vec<Object>> {
        const FIRST: Method = Method::RetrievePropertiesEx;
        const NEXT: Method = Method::ContinueRetrievePropertiesEx;
        let collector = &self.service.property_collector;
        let parameters = |body: &mut Body| {
            body.object("specSet", |body| {
                body.object("propSet", |body| {
                    body.value("type", kind).value("all", false);
                    for name in names {
                        body.value("pathSet", name);
                    }
                });
                objects(body);
            });
            body.object("options", |body| {
                body.value("maxObjects", PAGE_OBJECTS);
            });
        };
        let mut found = Vec::new();
        let mut method = FIRST;
        let mut answer = self.ask(FIRST, collector, parameters, cancel)?;
        loop {
            // No object at all is no `returnval` at all.
            let Some(page) = answer.child("returnval") else { return Ok(found) };
            let before = found.len();
            found.extend(page.children("objects").filter_map(Object::read));
            let Some(token) = page.text_at("token") else { return Ok(found) };
            if found.len() == before || found.len() > OBJECTS_MAX {
                let problem = "its pages do not come to an end".to_owned();
                return Err(Error::Reply { method: method.name().into(), problem });
            }
            method = NEXT;
            // Not asked twice: a token is good for one page.
            answer = self.call(NEXT, collector, |body| _ = body.value("token", token), cancel)?;
        }
    }
}
