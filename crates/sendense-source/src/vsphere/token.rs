//! When changed block tracking may be believed. Pure: what the parent says and what the snapshot says in, a verdict with its
//! reason out.
//!
//! A changeId is `<epoch>/<number>`. The epoch changes when tracking begins anew (switched on, a power loss, a copied disk);
//! a server asked across epochs may fail, or answer with too little. So the two are compared here, and the server's own
//! objection is only the second line.

use sendense_types::TrackingToken;
use sendense_vsphere::device::Disk;
use serde::{Deserialize, Serialize};

/// What a token says: the point is the disk with this uuid and size at this changeId.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    change_id: String,
    uuid: String,
    bytes: u64,
}

/// The token of a point made from a snapshot's disk; none where nothing is tracked.
pub(super) fn of(disk: &Disk) -> Option<TrackingToken> {
    let mark = Mark {
        change_id: disk.backing.change_id.clone()?,
        uuid: disk.backing.uuid.clone()?,
        bytes: disk.capacity_bytes,
    };
    split(&mark.change_id)?;
    Some(TrackingToken(serde_json::to_string(&mark).expect("three plain fields have a JSON form")))
}

/// The changeId to ask changes against, or why none may be asked.
pub(super) fn since(parent: Option<&TrackingToken>, now: &Disk) -> Result<String, String> {
    let parent = parent.ok_or("the parent was made without change tracking")?;
    let then: Mark =
        serde_json::from_str(&parent.0).map_err(|_| "the parent's token is not one of vSphere's".to_owned())?;
    let current = now.backing.change_id.as_deref().ok_or("the disk's changes are not tracked")?;
    if now.backing.uuid.as_deref() != Some(then.uuid.as_str()) {
        return Err("the disk was exchanged since the parent".into());
    }
    if now.capacity_bytes != then.bytes {
        return Err(format!("the disk has {} bytes and had {} at the parent", now.capacity_bytes, then.bytes));
    }
    let unreadable = || "a changeId is not of the known form".to_owned();
    let (old_epoch, old_number) = split(&then.change_id).ok_or_else(unreadable)?;
    let (new_epoch, new_number) = split(current).ok_or_else(unreadable)?;
    if old_epoch != new_epoch {
        return Err("change tracking began anew since the parent".into());
    }
    // It only ever grows within an epoch; less means that the machine went back to an older state.
    if new_number < old_number {
        return Err("the machine was set back to a state before the parent".into());
    }
    Ok(then.change_id)
}

fn split(change_id: &str) -> Option<(&str, u64)> {
    let (epoch, number) = change_id.rsplit_once('/')?;
    Some((epoch, number.parse().ok()?)).filter(|(epoch, _)| !epoch.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendense_vsphere::device::Backing;

    fn disk(change_id: Option<&str>, uuid: &str, bytes: u64) -> Disk {
        Disk {
            key: 2000,
            label: String::new(),
            capacity_bytes: bytes,
            controller_key: None,
            unit_number: None,
            backing: Backing { change_id: change_id.map(Into::into), uuid: Some(uuid.into()), ..Backing::default() },
        }
    }

    #[test]
    fn only_the_same_disk_in_the_same_epoch_is_believed() {
        let then = of(&disk(Some("52 de/3"), "u", 512)).unwrap();
        let ask = |now: Disk| since(Some(&then), &now);
        assert_eq!(ask(disk(Some("52 de/3"), "u", 512)).unwrap(), "52 de/3");
        assert_eq!(ask(disk(Some("52 de/9"), "u", 512)).unwrap(), "52 de/3");
        for (now, reason) in [
            (disk(Some("52 df/9"), "u", 512), "began anew"),
            (disk(Some("52 de/2"), "u", 512), "set back"),
            (disk(Some("52 de/4"), "v", 512), "exchanged"),
            (disk(Some("52 de/4"), "u", 1024), "1024 bytes"),
            (disk(None, "u", 512), "not tracked"),
            (disk(Some("*"), "u", 512), "known form"),
        ] {
            let told = ask(now).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        assert!(since(None, &disk(Some("52 de/4"), "u", 512)).is_err());
        assert!(since(Some(&TrackingToken("52 de/3".into())), &disk(Some("52 de/4"), "u", 512)).is_err());
        assert_eq!(of(&disk(Some("*"), "u", 512)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_judged(then in ".{0,40}", change_id in ".{0,20}") {
            let now = disk(Some(&change_id), "u", 512);
            prop_assert!(since(Some(&TrackingToken(then)), &now).is_err());
            if let Some(token) = of(&now) {
                prop_assert_eq!(since(Some(&token), &now), Ok(change_id));
            }
        }
    }
}
