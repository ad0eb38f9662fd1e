//! Checkpoints: which there are, which disks they cover, and deleting those of ours that no chain needs.
//!
//! Invariant: nothing here touches a checkpoint whose name does not bear our deployment's id.

use super::document::Document;
use super::domain::{Disk, Domain};
use super::layers::{self, Recorded};
use super::name::Checkpoint;
use super::virsh::{CHANGE, Virsh};
use super::xml::{self, Element};
use crate::error::{Kind, Result};
use crate::model::{DiskRequest, FreezeRequest};
use sendense_block::{ByteLen, Cancel};
use sendense_types::{DeploymentId, TrackingToken};
use std::collections::{BTreeMap, BTreeSet};

/// The names of a domain's checkpoints, everybody's.
pub(super) fn names(virsh: &Virsh, domain: &str, cancel: &Cancel) -> Result<BTreeSet<String>> {
    let text = virsh.ask(&["checkpoint-list", domain, "--name"], cancel)?;
    Ok(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The disks that a checkpoint covers, by target, with the layers that they had when it began.
pub(super) type Covered = BTreeMap<String, Recorded>;

/// What a checkpoint covers.
pub(super) fn covered(virsh: &Virsh, domain: &str, name: &str, cancel: &Cancel) -> Result<Covered> {
    parse_covered(&virsh.ask(&["checkpoint-dumpxml", domain, name], cancel)?)
}

fn parse_covered(document: &str) -> Result<Covered> {
    let root = xml::parse(document, "domaincheckpoint")?;
    let domain = root.child("domain").map(Domain::from_element).transpose()?;
    let stamps = root.child_text("description").and_then(layers::read).unwrap_or_default();
    let layers = |target: &str| {
        let disk = domain.as_ref().and_then(|domain| domain.disk(target));
        disk.map(|disk| disk.layers.clone()).unwrap_or_default()
    };
    let recorded = |target: String| {
        let recorded = Recorded { layers: layers(&target), stamps: stamps.clone() };
        (target, recorded)
    };
    Ok(targets(&root).into_iter().map(recorded).collect())
}

/// What is covered of the disks that a request asks changes of, by token: only ours, and only those that there are.
pub(super) fn covered_by_tokens(
    virsh: &Virsh,
    domain: &str,
    request: &FreezeRequest,
    cancel: &Cancel,
) -> Result<BTreeMap<String, Covered>> {
    let mut found = BTreeMap::new();
    for token in request.disks.iter().filter_map(|disk| disk.since.as_ref()) {
        let ours = Checkpoint::parse(&token.0).is_some_and(|found| found.deployment_id == request.deployment_id);
        if ours && !found.contains_key(&token.0) {
            match covered(virsh, domain, &token.0, cancel) {
                Ok(covered) => _ = found.insert(token.0.clone(), covered),
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// What a checkpoint knows of a disk whose changes since it are asked for, or why it cannot tell them.
pub(super) fn believed<'a>(
    covered: &'a BTreeMap<String, Covered>,
    asked: &DiskRequest,
    disk: &Disk,
    capacity: Option<ByteLen>,
    deployment: &DeploymentId,
) -> Result<&'a Recorded, String> {
    let token = asked.since.as_ref().ok_or("no change tracking at the parent")?;
    if Checkpoint::parse(&token.0).is_none_or(|found| found.deployment_id != *deployment) {
        return Err(format!("{:?} is no checkpoint of this deployment", token.0));
    }
    let covered = covered.get(&token.0).ok_or_else(|| format!("the checkpoint {token} is missing"))?;
    let recorded = covered.get(&asked.key).ok_or_else(|| format!("the checkpoint {token} does not cover the disk"))?;
    if asked.since_capacity != capacity.map(|size| size.0) {
        return Err("the disk's size has changed".to_owned());
    }
    recorded.check_kept(disk)?;
    Ok(recorded)
}

fn targets(root: &Element) -> BTreeSet<String> {
    let disks = root.child("disks").into_iter().flat_map(|disks| disks.children("disk"));
    let covered = disks.filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
    covered.filter_map(|disk| disk.attribute("name")).map(str::to_owned).collect()
}

fn parse(document: &str) -> Result<BTreeSet<String>> {
    Ok(targets(&xml::parse(document, "domaincheckpoint")?))
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

/// Deletes one of ours, bitmaps and all.
///
/// libvirt refuses it when one disk has lost its bitmap (QEMU was killed), and deleting the record only would leave the
/// other disks' bitmaps behind, which may be broken; QEMU resizes no disk with a broken bitmap. So the record is rewritten
/// without the disk that libvirt complains of, and the deletion is tried again: at most once per disk.
fn delete(virsh: &Virsh, domain: &str, name: &str, cancel: &Cancel) -> Result<()> {
    loop {
        let error = match virsh.call(&["checkpoint-delete", domain, name], CHANGE, cancel) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            Err(error) if error.message.contains("bitmap") => error,
            Err(error) => return Err(error),
        };
        let record = virsh.ask(&["checkpoint-dumpxml", domain, name], cancel)?;
        let Some(fewer) = without_lost_disk(&record, &error.message) else {
            // No disk that is left has a bitmap, or the complaint is another one: the record goes.
            virsh.call(&["checkpoint-delete", domain, name, "--metadata"], CHANGE, cancel)?;
            return Ok(());
        };
        let fewer = Document::new(&fewer)?;
        virsh.call(&["checkpoint-create", domain, "--redefine", &fewer.path()], CHANGE, cancel)?;
    }
}

/// The record without the disk in `bitmap 'C' not found in backing chain of 'vdb'`; none when no disk with a bitmap would
/// be left, or nothing changes.
fn without_lost_disk(record: &str, complaint: &str) -> Option<String> {
    let disk = complaint.rsplit_once("of '")?.1.split('\'').next()?;
    let begin = record.find(&format!("<disk name='{disk}' checkpoint='bitmap'"))?;
    let end = begin + record.get(begin..)?.find("/>")?;
    let fewer = format!("{}<disk name='{disk}' checkpoint='no'{}", record.get(..begin)?, record.get(end..)?);
    parse(&fewer).is_ok_and(|targets| !targets.is_empty()).then_some(fewer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_disk_is_taken_out_of_the_record() {
        let record = "<domaincheckpoint><disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/>\
                      <disk name='vdb' checkpoint='bitmap' bitmap='c1'/></disks></domaincheckpoint>";
        let complaint =
            "Failed to delete checkpoint c1; internal error: bitmap 'c1' not found in backing chain of 'vdb'";
        let fewer = without_lost_disk(record, complaint).unwrap();
        assert_eq!(parse(&fewer).unwrap(), BTreeSet::from(["vda".to_owned()]));
        assert_eq!(without_lost_disk(&fewer, complaint), None);
        assert_eq!(without_lost_disk(&fewer, &complaint.replace("vdb", "vda")), None);
        assert_eq!(without_lost_disk(record, "something about a bitmap"), None);
    }

    #[test]
    fn only_disks_with_a_bitmap_are_covered() {
        let text = "<domaincheckpoint><name>c1</name><disks><disk name='vda' checkpoint='bitmap' bitmap='c1'/>
                    <disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>";
        assert_eq!(parse(text).unwrap(), BTreeSet::from(["vda".to_owned()]));
    }
}
