//! Checkpoints: which there are, which disks they cover, and deleting those of ours that no chain needs.
//!
//! Invariant: nothing here touches a checkpoint whose name does not bear our deployment's id.

use super::name::Checkpoint;
use super::virsh::{CHANGE, Virsh};
use super::xml;
use crate::error::{Error, Kind, Result};
use sendense_block::Cancel;
use sendense_types::{DeploymentId, TrackingToken};
use std::collections::BTreeSet;

/// The names of a domain's checkpoints, everybody's.
pub(super) fn names(virsh: &Virsh, domain: &str, cancel: &Cancel) -> Result<BTreeSet<String>> {
    let text = virsh.ask(&["checkpoint-list", domain, "--name"], cancel)?;
    Ok(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The targets of the disks that a checkpoint covers.
pub(super) fn targets(virsh: &Virsh, domain: &str, name: &str, cancel: &Cancel) -> Result<BTreeSet<String>> {
    parse(&virsh.ask(&["checkpoint-dumpxml", domain, name, "--no-domain"], cancel)?)
}

fn parse(document: &str) -> Result<BTreeSet<String>> {
    let root = xml::parse(document, "domaincheckpoint")?;
    let disks = root.child("disks").into_iter().flat_map(|disks| disks.children("disk"));
    let covered = disks.filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
    Ok(covered.filter_map(|disk| disk.attribute("name")).map(str::to_owned).collect())
}

/// Deletes ours except `keep`. One that cannot be deleted is left for the next time; the first such error is given only
/// if it is none that time heals.
pub(super) fn retire(
    virsh: &Virsh,
    domain: &str,
    deployment: &DeploymentId,
    keep: &[TrackingToken],
    cancel: &Cancel,
) -> Result<Vec<TrackingToken>> {
    let (mut retired, mut failed) = (Vec::new(), None);
    for name in names(virsh, domain, cancel)? {
        let ours = Checkpoint::parse(&name).is_some_and(|checkpoint| checkpoint.deployment_id == *deployment);
        if !ours || keep.iter().any(|token| token.0 == name) {
            continue;
        }
        match delete(virsh, domain, &name, cancel) {
            Ok(()) => retired.push(TrackingToken(name)),
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) => {
                tracing::warn!(domain, checkpoint = name, %error, "a checkpoint could not be deleted");
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) if retired.is_empty() && !error.kind.is_transient() => Err(error),
        _ => Ok(retired),
    }
}

/// Deletes one of ours, bitmaps and all. Where bitmaps are gone (QEMU was killed) or broken only the record is left.
fn delete(virsh: &Virsh, domain: &str, name: &str, cancel: &Cancel) -> Result<()> {
    let gone = |result: Result<String>| match result {
        Err(error) if error.kind == Kind::NotFound => Ok(()),
        other => other.map(drop),
    };
    match gone(virsh.call(&["checkpoint-delete", domain, name], CHANGE, cancel)) {
        Err(error) if error.message.contains("bitmap") => {
            gone(virsh.call(&["checkpoint-delete", domain, name, "--metadata"], CHANGE, cancel))
                .map_err(|second: Error| second.caused_by(error))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_with_a_bitmap_are_covered() {
        let text = "<domaincheckpoint><name>c1</name><disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/>
                    <disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>";
        assert_eq!(parse(text).unwrap(), BTreeSet::from(["vda".to_owned()]));
    }
}
