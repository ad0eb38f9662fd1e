//! XML as a small tree: what a server answers.
//!
//! What lives here: reading with bounds, finding elements. What does not: what the elements mean. Names lose their
//! prefixes: within one reply no two of VMware's namespaces use a name for different things. No entity but XML's own five
//! is known, so that a reply cannot grow by what it defines.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

/// How deep elements nest. Real replies stay below 20; a chain of 32 snapshots with backing chains of as many disks nests
/// once per snapshot.
const DEPTH_MAX: usize = 200;
/// How many elements: a page of 50 machines with 64 disks of 30 layers each has some 300,000.
const ELEMENTS_MAX: usize = 1_000_000;

/// An element with its text, its children, and the two attributes that mean something in this protocol.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its name without prefix.
    pub name: String,
    /// `xsi:type` without prefix: the element's actual type.
    pub xsi_type: Option<String>,
    /// `type`: what a reference points to.
    pub points_to: Option<String>,
    /// The text directly inside it.
    pub text: String,
    /// Its children in order.
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of that name.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The element at a path of names separated by dots.
    pub fn at(&self, path: &str) -> Option<&Element> {
        path.split('.').try_fold(self, |element, name| element.child(name))
    }

    /// The text at a path, trimmed; none when the element is missing or empty.
    pub fn text_at(&self, path: &str) -> Option<&str> {
        Some(self.at(path)?.text.trim()).filter(|text| !text.is_empty())
    }

    /// The number at a path; none when it is missing or no number.
    pub fn number_at<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text_at(path)?.parse().ok()
    }

    /// The truth value at a path; none when it is missing or none.
    pub fn flag_at(&self, path: &str) -> Option<bool> {
        match self.text_at(path)? {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// Reads a document.
    pub fn parse(document: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(document);
        // The open elements, outermost first. The first one is not an element but holds the document's.
        let mut open = vec![Self::default()];
        let mut elements = 0usize;
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            match event {
                Event::Start(_) | Event::Empty(_) if elements >= ELEMENTS_MAX => {
                    return Err("it has too many elements".into());
                }
                Event::Start(_) if open.len() > DEPTH_MAX => return Err("its elements nest too deep".into()),
                Event::Start(start) => {
                    elements += 1;
                    open.push(Self::begin(&start)?);
                }
                Event::Empty(start) => {
                    elements += 1;
                    let element = Self::begin(&start)?;
                    innermost(&mut open)?.children.push(element);
                }
                // The reader has checked that the names match.
                Event::End(_) => {
                    let element = open.pop().ok_or("an element ends that did not begin")?;
                    innermost(&mut open)?.children.push(element);
                }
                Event::Text(text) => {
                    let text = text.decode().map_err(|error| error.to_string())?;
                    innermost(&mut open)?.text.push_str(&text);
                }
                Event::CData(text) => {
                    let text = text.decode().map_err(|error| error.to_string())?;
                    innermost(&mut open)?.text.push_str(&text);
                }
                Event::GeneralRef(reference) => {
                    let named = reference.decode().map_err(|error| error.to_string())?;
                    let letter = reference.resolve_char_ref().map_err(|error| error.to_string())?;
                    match (letter, resolve_predefined_entity(&named)) {
                        (Some(letter), _) => innermost(&mut open)?.text.push(letter),
                        (None, Some(text)) => innermost(&mut open)?.text.push_str(text),
                        (None, None) => return Err("it has an entity of its own".into()),
                    }
                }
                Event::DocType(_) => return Err("it has a document type".into()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(document), true) => {
                let mut roots = document.children.into_iter();
                match (roots.next(), roots.next()) {
                    (Some(root), None) => Ok(root),
                    (None, _) => Err("it is empty".into()),
                    (Some(_), Some(_)) => Err("it has two outermost elements".into()),
                }
            }
            _ => Err("it ends in the middle".into()),
        }
    }

    fn begin(start: &BytesStart<'_>) -> Result<Self, String> {
        let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
        let mut element = Self { name, ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| error.to_string())?;
            let place = match attribute.key.as_ref() {
                b"type" => &mut element.points_to,
                key if key.ends_with(b":type") => &mut element.xsi_type,
                _ => continue,
            };
            let value = attribute.unescape_value().map_err(|error| error.to_string())?;
            let local = if attribute.key.as_ref() == b"type" { &value } else { without_prefix(&value) };
            *place = Some(local.to_owned());
        }
        Ok(element)
    }
}

fn without_prefix(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

fn innermost(open: &mut [Element]) -> Result<&mut Element, String> {
    open.last_mut().ok_or_else(|| "an element ends that did not begin".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_types_and_entities_are_read() {
        let text = "<?xml version='1.0'?><s:a xmlns:x='y'><obj type='VirtualMachine'>vm-1</obj>\
                    <val xsi:type='xsd:string'>one &amp; &#50;</val><n> 7 </n><f>true</f><!-- c --></s:a>";
        let found = Element::parse(text).unwrap();
        assert_eq!(found.name, "a");
        assert_eq!(found.child("obj").unwrap().points_to.as_deref(), Some("VirtualMachine"));
        assert_eq!(found.child("val").unwrap().xsi_type.as_deref(), Some("string"));
        assert_eq!(found.text_at("val"), Some("one & 2"));
        assert_eq!((found.number_at::<u8>("n"), found.flag_at("f")), (Some(7), Some(true)));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        let deep = "<a>".repeat(300) + &"</a>".repeat(300);
        let entity = "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>";
        for text in ["", "<a>", "</a>", "<a></b>", "<a/><b/>", "<a>&x;</a>", "<a type='&x;'/>", entity, &deep] {
            assert!(Element::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[<>/a!&;'=\\[\\] #x0-9?:-]{0,80}") {
            let _ = Element::parse(&text);
        }
    }
}
