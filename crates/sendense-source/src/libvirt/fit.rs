//! Whether a host can run a definition, asked before hours of copying and not after.
//!
//! What lives here: its processor, its kind of machine, its networks. What does not: the definition's making. Invariant:
//! nothing is made; what the host does not know of is refused where libvirt would refuse it at the end.

use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use std::collections::BTreeSet;

/// The longest name of a network device that Linux takes.
const BRIDGE_BYTES_MAX: usize = 15;

/// Refuses a definition that this host cannot run. Its networks are those that the caller asked for: no others are in it.
pub(super) fn check(virsh: &Virsh, definition: &Element, cancel: &Cancel) -> Result<()> {
    let kind = definition.attribute("type").unwrap_or("qemu");
    let machine = definition.child("os").and_then(|os| os.child("type"));
    let mut question = vec!["domcapabilities", "--virttype", kind];
    for name in ["arch", "machine"] {
        // Words of the recorded document, which have no sign that begins a flag.
        if let Some(value) = machine.and_then(|machine| machine.attribute(name)) {
            question.extend([if name == "arch" { "--arch" } else { "--machine" }, value]);
        }
    }
    virsh.ask(&question, cancel).map_err(|error| match error.kind {
        Kind::Unsupported | Kind::Failed => Error::new(Kind::Unsupported, "the host cannot run this machine")
            .caused_by(error)
            .hint("restore its disks by themselves and define a machine around them, or restore it to another source"),
        _ => error,
    })?;
    for bridge in places(definition, "bridge") {
        let letters = bridge.chars().all(|letter| letter.is_ascii_graphic() && letter != '/');
        if bridge.is_empty() || bridge.len() > BRIDGE_BYTES_MAX || !letters || bridge.starts_with('.') {
            return Err(Error::new(Kind::Unsupported, format!("{bridge:?} is no name of a bridge")));
        }
    }
    let networks = places(definition, "network");
    if networks.is_empty() {
        return Ok(());
    }
    let text = virsh.ask(&["net-list", "--all", "--name"], cancel)?;
    let known: BTreeSet<_> = text.lines().map(str::trim).collect();
    match networks.into_iter().find(|network| !known.contains(network)) {
        Some(network) => Err(Error::new(Kind::Unsupported, format!("libvirt has no network {network}"))
            .hint("a bridge of the host is named bridge:NAME")),
        None => Ok(()),
    }
}

/// The networks, or bridges, that its cards are in.
fn places<'a>(definition: &'a Element, kind: &str) -> BTreeSet<&'a str> {
    let cards = definition.child("devices").map(|devices| devices.children("interface")).into_iter().flatten();
    cards.filter_map(|card| card.child("source")?.attribute(kind)).collect()
}
