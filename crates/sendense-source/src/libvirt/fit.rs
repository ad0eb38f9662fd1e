//! Whether a host can run a definition, asked before hours of copying and not after.
//!
//! What lives here: its processor, its kind of machine, its networks. What does not: the definition's making. Invariant:
//! nothing is made; what the host does not know of is refused where libvirt would refuse it at the end.

use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use std::collections::{BTreeMap, BTreeSet};

/// Refuses a definition that this host cannot run, and tells of what must be mended before it starts. `networks` are those
/// that the caller asked for.
pub(super) fn check(
    virsh: &Virsh,
    definition: &Element,
    networks: &BTreeMap<String, Option<String>>,
    cancel: &Cancel,
) -> Result<Vec<String>> {
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
    let used = used_networks(definition);
    if used.is_empty() {
        return Ok(Vec::new());
    }
    let text = virsh.ask(&["net-list", "--all", "--name"], cancel)?;
    let known: BTreeSet<_> = text.lines().map(str::trim).collect();
    let mut notes = Vec::new();
    for network in used.into_iter().filter(|network| !known.contains(network)) {
        if networks.values().flatten().any(|asked| asked == network) {
            return Err(Error::new(Kind::Unsupported, format!("libvirt has no network {network}")));
        }
        notes.push(format!("libvirt has no network {network} here: define it before the machine is started"));
    }
    Ok(notes)
}

/// The networks that its cards are in.
fn used_networks(definition: &Element) -> BTreeSet<&str> {
    let cards = definition.child("devices").map(|devices| devices.children("interface")).into_iter().flatten();
    cards.filter_map(|card| card.child("source")?.attribute("network")).collect()
}
