//! XML as a small tree: what libvirt says of a domain, a checkpoint or a job, and the escaping of what we say.
//!
//! What lives here: reading with bounds, finding elements, escaping. What does not: what the elements mean. Documents come
//! from a daemon that repeats what users wrote (titles, metadata, paths), so they are bounded in size, depth and number
//! of elements; there are no external entities and none of the document's own.

use crate::error::{Error, Kind, Result};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use std::path::Path;

/// The longest document. A domain with 60 disks of 20 layers each has 600 KB.
pub(super) const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// How deep elements nest. A backing chain nests once per layer and QEMU gives up at 200 layers (libvirt's limit).
const DEPTH_MAX: usize = 256;
/// How many elements: what fits into the longest document at 40 bytes each.
const ELEMENTS_MAX: usize = 100_000;

/// An element with its attributes, text and children.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// An empty one.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// With an attribute, in the place of one of that name.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.attributes.retain(|(held, _)| held != name);
        self.attributes.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this text.
    pub fn with_text(mut self, text: &str) -> Self {
        text.clone_into(&mut self.text);
        self
    }

    /// With a child that has these attributes.
    pub fn child_of(mut self, name: &str, attributes: &[(&str, &str)]) -> Self {
        let child = attributes.iter().fold(Self::new(name), |child, (name, value)| child.with(name, value));
        self.children.push(child);
        self
    }

    /// It and all below it as a document.
    pub fn document(&self) -> String {
        let mut text = format!("<{}", self.name);
        for (name, value) in &self.attributes {
            text.push_str(&format!(" {name}=\"{}\"", escaped(value)));
        }
        if self.children.is_empty() && self.text.is_empty() {
            text.push_str("/>");
            return text;
        }
        text.push('>');
        text.push_str(&escaped(&self.text));
        for child in &self.children {
            text.push_str(&child.document());
        }
        text.push_str(&format!("</{}>", self.name));
        text
    }

    /// An attribute's value.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    /// The first child of that name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of that name.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text directly inside it, trimmed; none when there is none.
    pub fn text(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }

    /// The text of the first child of that name.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name)?.text()
    }
}

/// Reads a document whose outermost element must have that name.
pub(super) fn parse(document: &str, root: &str) -> Result<Element> {
    let bad = |why: String| Error::new(Kind::Failed, format!("libvirt's <{root}> cannot be read: {why}"));
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(bad(format!("it is longer than {DOCUMENT_BYTES_MAX} bytes")));
    }
    let mut reader = Reader::from_str(document);
    // The open elements, outermost first. The first one is not an element but holds the document's.
    let mut open = vec![Element::default()];
    let mut elements = 0usize;
    loop {
        let event = reader.read_event().map_err(|error| bad(error.to_string()))?;
        match event {
            Event::Start(start) => {
                elements += 1;
                if open.len() > DEPTH_MAX || elements > ELEMENTS_MAX {
                    return Err(bad("it has too many elements".into()));
                }
                open.push(begin(&start).map_err(bad)?);
            }
            Event::Empty(start) => {
                elements += 1;
                if elements > ELEMENTS_MAX {
                    return Err(bad("it has too many elements".into()));
                }
                let element = begin(&start).map_err(bad)?;
                innermost(&mut open).children.push(element);
            }
            // The reader has checked that the names match.
            Event::End(_) => {
                if let (Some(element), true) = (open.pop(), !open.is_empty()) {
                    innermost(&mut open).children.push(element);
                }
            }
            Event::Text(text) => {
                let text = text.decode().map_err(|error| bad(error.to_string()))?;
                innermost(&mut open).text.push_str(&text);
            }
            Event::CData(text) => {
                let text = text.decode().map_err(|error| bad(error.to_string()))?;
                innermost(&mut open).text.push_str(&text);
            }
            Event::GeneralRef(reference) => {
                let named = reference.decode().map_err(|error| bad(error.to_string()))?;
                let letter = reference.resolve_char_ref().map_err(|error| bad(error.to_string()))?;
                match (letter, resolve_predefined_entity(&named)) {
                    (Some(letter), _) => innermost(&mut open).text.push(letter),
                    (None, Some(text)) => innermost(&mut open).text.push_str(text),
                    (None, None) => return Err(bad("it has an entity of its own".into())),
                }
            }
            Event::DocType(_) => return Err(bad("it has a document type".into())),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
        if open.is_empty() {
            return Err(bad("an element ends that did not begin".into()));
        }
    }
    if open.len() != 1 {
        return Err(bad("it ends in the middle".into()));
    }
    let found = open.pop().and_then(|document| document.children.into_iter().next());
    found.filter(|element| element.name == root).ok_or_else(|| bad("it is something else".into()))
}

/// Text made fit for an attribute in quotes or for the inside of an element. What no document may hold, not even escaped, is
/// replaced: one such letter in a title would make libvirt refuse the whole document.
pub(super) fn escaped(text: &str) -> String {
    let text: String = text.chars().map(|letter| if is_letter(letter) { letter } else { '\u{fffd}' }).collect();
    quick_xml::escape::escape(&text).into_owned()
}

/// A path that a document can hold as it is. Readers of documents make spaces of tabs and lines' ends in attributes.
pub(super) fn check_path(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(text) if text.chars().all(|letter| is_letter(letter) && !letter.is_control()) => Ok(()),
        _ => Err(Error::new(Kind::Invalid, format!("{path:?} holds letters that libvirt's documents cannot hold"))),
    }
}

/// What XML 1.0 calls a character.
pub(super) fn is_letter(letter: char) -> bool {
    matches!(letter, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

fn begin(start: &BytesStart<'_>) -> Result<Element, String> {
    let name = String::from_utf8_lossy(start.name().as_ref()).into_owned();
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.unescape_value().map_err(|error| error.to_string())?;
        attributes.push((String::from_utf8_lossy(attribute.key.as_ref()).into_owned(), value.into_owned()));
    }
    Ok(Element { name, attributes, ..Element::default() })
}

fn innermost(open: &mut [Element]) -> &mut Element {
    open.last_mut().expect("the loop ends before the last one is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_attributes_and_entities_are_read() {
        let found =
            parse("<?xml version='1.0'?><a x='1 &lt; 2'><b>one &amp; &#50;</b><b/><!-- c --></a>", "a").unwrap();
        assert_eq!(found.attribute("x"), Some("1 < 2"));
        assert_eq!(found.child_text("b"), Some("one & 2"));
        assert_eq!(found.children("b").count(), 2);
    }

    #[test]
    fn what_is_not_the_document_is_refused() {
        let deep = "<a>".repeat(300) + &"</a>".repeat(300);
        let entity = "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>";
        for text in ["", "<b/>", "<a>", "</a>", "<a></b>", "<a>&x;</a>", "<a x='&x;'/>", entity, &deep] {
            assert!(parse(text, "a").is_err(), "{text}");
        }
    }

    #[test]
    fn paths_that_a_document_would_change_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        for path in ["/pool", "/a b/\u{e9}&<'\"\u{1F600}"] {
            check_path(Path::new(path)).unwrap();
            let found = Element::new("a").with("x", path).document();
            assert_eq!(parse(&found, "a").unwrap().attribute("x"), Some(path));
        }
        for path in [&b"/a\tb"[..], b"/a\nb", b"/a\x01b", b"/a\xffb", "/a\u{fffe}b".as_bytes()] {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            assert_eq!(check_path(path).unwrap_err().kind, Kind::Invalid, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[<>/a!&;'=\\[\\] #x0-9?-]{0,60}") {
            let _ = parse(&text, "a");
        }

        #[test]
        fn what_is_escaped_comes_back(text in "[^\u{0}-\u{1f}\u{fffe}\u{ffff}]{0,40}") {
            let found = parse(&format!("<a x='{0}'>{0}</a>", escaped(&text)), "a").unwrap();
            prop_assert_eq!(found.attribute("x"), Some(text.as_str()));
            prop_assert_eq!(found.text().unwrap_or_default(), text.trim());
        }
    }
}
