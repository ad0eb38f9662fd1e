//! VMware's schema, as far as our requests use it: real servers refuse what simulators take.
//!
//! What lives here: the table that `schema.py` exports from pyvmomi's types, and the check of a request against it. Used by the
//! client's own tests, and by the proxy of the lab for whatever a test sends through it. Who includes this file says what an
//! `Element` is.

use super::Element;
use std::collections::BTreeMap;

const TABLE: &str = include_str!("../../crates/sendense-vsphere/tests/data/schema.txt");

/// A parameter or field.
#[derive(Debug)]
pub struct Field {
    name: &'static str,
    kind: &'static str,
    many: bool,
    must: bool,
}

/// Methods with their parameters, and types with what they extend and their fields.
#[derive(Debug, Default)]
pub struct Schema {
    pub methods: BTreeMap<&'static str, Vec<Field>>,
    types: BTreeMap<&'static str, (&'static str, Vec<Field>)>,
}

/// The table, taken apart.
pub fn schema() -> Schema {
    let field = |word: &'static str| {
        let (name, kind) = word.split_once(':').expect("a field has a type");
        let (kind, must) = kind.strip_suffix('!').map_or((kind, false), |kind| (kind, true));
        let (kind, many) = kind.strip_suffix("[]").map_or((kind, false), |kind| (kind, true));
        Field { name, kind, many, must }
    };
    let mut schema = Schema::default();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("method"), Some(name)) => _ = schema.methods.insert(name, words.map(field).collect()),
            (Some("type"), Some(name)) => {
                let extends = words.next().expect("a type extends something");
                schema.types.insert(name, (extends, words.map(field).collect()));
            }
            _ => panic!("{line}"),
        }
    }
    schema
}

impl Schema {
    fn is_a(&self, kind: &str, base: &str) -> bool {
        let mut at = Some(kind);
        while let Some(kind) = at {
            if kind == base {
                return true;
            }
            at = self.types.get(kind).map(|(extends, _)| *extends);
        }
        false
    }

    /// Whether a request is one that a real server reads; gives its method.
    pub fn check_request(&self, document: &str) -> Result<String, String> {
        let envelope = Element::parse(document).map_err(|error| format!("it is no document: {error}"))?;
        let mut call = envelope.at("Body").and_then(|body| body.children.first()).ok_or("it calls nothing")?.clone();
        let method = call.name.to_string();
        let parameters = self.methods.get(method.as_str()).ok_or_else(|| format!("{method} is not in the table"))?;
        if !call.children.first().is_some_and(|this| this.name == "_this" && this.points_to.is_some()) {
            return Err(format!("{method} does not begin with its object"));
        }
        call.children.remove(0);
        self.check(&method, &call, parameters).map(|()| method)
    }

    /// Whether an element has these fields, in their order.
    pub fn check(&self, place: &str, element: &Element, fields: &[Field]) -> Result<(), String> {
        let mut next = 0;
        for child in &element.children {
            let at = fields.iter().position(|field| field.name == child.name);
            let at = at.ok_or_else(|| format!("{place} has no {}", child.name))?;
            if at < next {
                return Err(format!("{place}: {} stands behind {}", child.name, fields[next - 1].name));
            }
            next = if fields[at].many { at } else { at + 1 };
            self.check_value(&format!("{place}.{}", child.name), child, &fields[at])?;
        }
        match fields.iter().find(|field| field.must && element.child(field.name).is_none()) {
            Some(field) => Err(format!("{place} lacks {}", field.name)),
            None => Ok(()),
        }
    }

    fn check_value(&self, place: &str, value: &Element, field: &Field) -> Result<(), String> {
        let kind = value.xsi_type.as_deref().unwrap_or(field.kind);
        if let Some((_, fields)) = self.types.get(kind) {
            return match self.is_a(kind, field.kind) {
                true => self.check(place, value, fields),
                false => Err(format!("{place}: a {kind} is no {}", field.kind)),
            };
        }
        if !value.children.is_empty() {
            return Err(format!("{place} is a {kind}, which the table does not know"));
        }
        let text = value.text.as_str();
        let fits = match kind {
            "boolean" => matches!(text, "true" | "false"),
            "int" => text.parse::<i32>().is_ok(),
            "long" => text.parse::<i64>().is_ok(),
            "ManagedObjectReference" => value.points_to.is_some() && !text.is_empty(),
            "string" | "TypeName" | "PropertyPath" => true,
            // An enumeration: a word.
            _ => text.chars().all(char::is_alphanumeric) && !text.is_empty(),
        };
        if fits { Ok(()) } else { Err(format!("{place}: {text:?} is no {kind}")) }
    }
}
