//! Each request against the order of elements in VMware's schema: real servers refuse what simulators take.

use super::operations;
use crate::Element;
use std::collections::{BTreeMap, BTreeSet};

const TABLE: &str = include_str!("../../tests/data/schema.txt");

#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    many: bool,
    must: bool,
}

#[derive(Debug, Default)]
struct Schema {
    methods: BTreeMap<&'static str, Vec<Field>>,
    types: BTreeMap<&'static str, (&'static str, Vec<Field>)>,
}

fn schema() -> Schema {
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

    fn check(&self, place: &str, element: &Element, fields: &[Field]) {
        let mut next = 0;
        for child in &element.children {
            let at = fields.iter().position(|field| field.name == child.name);
            let at = at.unwrap_or_else(|| panic!("{place} has no {}", child.name));
            assert!(at >= next, "{place}: {} stands behind {}", child.name, fields[next - 1].name);
            next = if fields[at].many { at } else { at + 1 };
            self.check_value(&format!("{place}.{}", child.name), child, &fields[at]);
        }
        for field in fields.iter().filter(|field| field.must) {
            assert!(element.child(field.name).is_some(), "{place} lacks {}", field.name);
        }
    }

    fn check_value(&self, place: &str, value: &Element, field: &Field) {
        let kind = value.xsi_type.as_deref().unwrap_or(field.kind);
        match self.types.get(kind) {
            Some((_, fields)) => {
                assert!(self.is_a(kind, field.kind), "{place}: a {kind} is no {}", field.kind);
                self.check(place, value, fields);
            }
            None => {
                assert!(value.children.is_empty(), "{place} is a {kind}, which the table does not know");
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
                assert!(fits, "{place}: {text:?} is no {kind}");
            }
        }
    }
}

#[test]
fn every_request_is_in_the_schemas_order() {
    let (schema, mut seen) = (schema(), BTreeSet::new());
    for (method, document) in operations::everything() {
        let envelope = Element::parse(&document).unwrap();
        let mut call = envelope.at("Body").unwrap().children[0].clone();
        assert_eq!(call.name, method);
        let this = call.children.remove(0);
        assert!(this.name == "_this" && this.points_to.is_some(), "{method} does not begin with its object");
        schema.check(&method, &call, schema.methods.get(method.as_str()).unwrap_or_else(|| panic!("{method}?")));
        seen.insert(method);
    }
    // Cancelling is not among what an agreeable server sees; the session's tests look at it.
    let wanted = schema.methods.keys().map(|name| (*name).to_owned()).filter(|name| name != "CancelTask");
    assert_eq!(seen, wanted.collect(), "what is called and what the table holds differ");
}

#[test]
fn the_check_finds_what_it_is_for() {
    let schema = schema();
    let refused = |text: &str, method: &str| {
        let call = Element::parse(text).unwrap();
        std::panic::catch_unwind(|| schema.check(method, &call, &schema.methods[method])).is_err()
    };
    let spec = "<m><spec><changeTrackingEnabled>true</changeTrackingEnabled></spec></m>";
    assert!(!refused(spec, "ReconfigVM_Task"));
    for (text, method) in [
        ("<m><consolidate>true</consolidate><removeChildren>false</removeChildren></m>", "RemoveSnapshot_Task"),
        ("<m><removeChildren>maybe</removeChildren></m>", "RemoveSnapshot_Task"),
        ("<m><consolidate>true</consolidate></m>", "RemoveSnapshot_Task"),
        ("<m><removeChildren>true</removeChildren><unknown/></m>", "RemoveSnapshot_Task"),
        ("<m><spec><firmware>efi</firmware><name>x</name></spec></m>", "ReconfigVM_Task"),
        ("<m><spec><name><x/></name></spec></m>", "ReconfigVM_Task"),
        (
            "<m><spec><deviceChange><device xsi:type='VirtualDeviceConnectInfo'/></deviceChange></spec></m>",
            "ReconfigVM_Task",
        ),
    ] {
        assert!(refused(text, method), "{text}");
    }
}
