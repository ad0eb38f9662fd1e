//! Taking replies apart: the envelope, the fault or the answer, references.

use crate::error::{Error, Fault, FaultKind, Result};
use crate::request::Ref;
use crate::xml::Element;

/// How much of the server's text goes into an error: a paragraph.
const TEXT_CHARS_MAX: usize = 500;
/// How many particulars of a fault are kept.
const DETAILS_MAX: usize = 8;

/// The answer's element (`<MethodResponse>`), or the fault.
pub(crate) fn answer(method: &str, document: &str) -> Result<Element> {
    let bad = |problem: String| Error::Reply { method: method.to_owned(), problem };
    let mut envelope = Element::parse(document).map_err(bad)?;
    if envelope.name != "Envelope" {
        return Err(bad(format!("it is a <{}>", short(&envelope.name))));
    }
    let body = envelope.children.iter_mut().find(|child| child.name == "Body");
    let content = body.and_then(|body| body.children.drain(..).next()).ok_or_else(|| bad("it is empty".into()))?;
    if content.name == "Fault" {
        return Err(Error::Fault { method: method.to_owned(), fault: Box::new(soap_fault(&content)) });
    }
    if content.name.strip_suffix("Response") != Some(method) {
        return Err(bad(format!("it is a <{}>", short(&content.name))));
    }
    Ok(content)
}

/// A SOAP fault: code, sentence, and VMware's own fault inside `detail`.
fn soap_fault(fault: &Element) -> Fault {
    let detail = fault.child("detail").and_then(|detail| detail.children.first());
    let mut found = detail.map(method_fault).unwrap_or_else(|| Fault {
        kind: FaultKind::Other,
        name: String::new(),
        message: String::new(),
        details: Vec::new(),
    });
    if let Some(text) = fault.text_at("faultstring") {
        found.message = short(text);
    }
    found
}

/// The fault of a task: `<error><fault xsi:type=…/><localizedMessage/></error>`.
pub(crate) fn localized_fault(error: &Element) -> Fault {
    let mut found = error.child("fault").map_or_else(|| method_fault(error), method_fault);
    if let Some(text) = error.text_at("localizedMessage") {
        found.message = short(text);
    }
    found
}

/// VMware's fault: its type, and its fields as particulars.
fn method_fault(fault: &Element) -> Fault {
    // Without a type the element's name tells: `InvalidLoginFault`, `RuntimeFaultFault`.
    let name = fault.xsi_type.as_deref().unwrap_or_else(|| fault.name.strip_suffix("Fault").unwrap_or(&fault.name));
    let details = fault.children.iter().filter(|child| child.children.is_empty() && !child.text.trim().is_empty());
    // `FileFault` and its like carry the reason again for machines; `faultMessage` has children and is left out.
    let details = details.map(|child| (short(&child.name), short(child.text.trim()))).take(DETAILS_MAX).collect();
    Fault { kind: FaultKind::named(name), name: short(name), message: String::new(), details }
}

/// An element that is a reference, as one.
pub(crate) fn reference(element: &Element) -> Option<Ref> {
    let id = element.text.trim();
    let kind = element.points_to.as_deref()?;
    (!id.is_empty()).then(|| Ref::new(kind, id))
}

/// The reference at a path.
pub(crate) fn reference_at(element: &Element, path: &str) -> Option<Ref> {
    reference(element.at(path)?)
}

/// The server's text, cut and without control characters.
pub(crate) fn short(text: &str) -> String {
    let printable = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    printable.take(TEXT_CHARS_MAX).collect()
}
