//! Replies of real servers, as pyvmomi's tests recorded them; see `tests/data/README.md`.

use crate::device::Devices;
use crate::{Element, FaultKind, reply};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Number, fixture, method and status in one name; the document.
static RECORDED: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let packed = include_bytes!("../../tests/data/recorded-replies.txt.zst");
    let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    let replies = text.strip_prefix("=== ").unwrap().split("\n=== ");
    replies.map(|reply| reply.split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()).collect()
});

#[test]
fn every_recorded_reply_is_read() {
    assert_eq!(RECORDED.len(), 128);
    let mut faults = 0;
    for (name, document) in RECORDED.iter() {
        let envelope = Element::parse(document).unwrap_or_else(|error| panic!("{name}: {error}"));
        let content = &envelope.child("Body").unwrap_or_else(|| panic!("{name} has no body")).children[0];
        let method = content.name.strip_suffix("Response").unwrap_or("Login");
        match reply::answer(method, document) {
            Ok(_) => assert!(name.ends_with("-200"), "{name}"),
            Err(error) => {
                assert_eq!(error.kind(), Some(FaultKind::InvalidLogin), "{name}");
                assert!(error.to_string().contains("incorrect user name or password"), "{error}");
                faults += 1;
            }
        }
    }
    assert_eq!(faults, 1);
}

/// The first element of that type anywhere below.
fn find<'a>(element: &'a Element, is: &dyn Fn(&Element) -> bool) -> Option<&'a Element> {
    is(element).then_some(element).or_else(|| element.children.iter().find_map(|child| find(child, is)))
}

#[test]
fn devices_of_real_machines_are_read() {
    let mut disks = Vec::new();
    for (name, document) in RECORDED.iter() {
        let envelope = Element::parse(document).unwrap();
        let hardware = |element: &Element| {
            element.name == "hardware" && element.xsi_type.as_deref().is_none_or(|kind| kind == "VirtualHardware")
        };
        let Some(hardware) = find(&envelope, &hardware).filter(|hardware| hardware.child("device").is_some()) else {
            continue;
        };
        let devices = Devices::read(hardware);
        for disk in &devices.disks {
            let controller = devices.controller_of(disk).unwrap_or_else(|| panic!("{name}: no controller"));
            disks.push((disk.clone(), controller.kind.clone()));
        }
    }
    let (disk, controller) = disks.first().expect("a recorded machine has a disk");
    assert_eq!((disk.key, disk.label.as_str(), disk.capacity_bytes), (2000, "Hard disk 1", 2_147_483_648));
    assert_eq!((disk.backing.mode.as_deref(), controller.as_str()), (Some("persistent"), "ParaVirtualSCSIController"));
    assert_eq!(disk.backing.kind, "VirtualDiskFlatVer2BackingInfo");
    assert_eq!(disk.backing.datastore(), Some("vsanDatastore"));
    assert!(disk.backing.uuid.as_deref().is_some_and(|uuid| uuid.len() == 36), "{disk:?}");
}

proptest! {
    /// Real replies, damaged: read or refused, never a panic.
    #[test]
    fn damaged_replies_are_read_or_refused(which in 0usize..1000, cut in any::<u16>(), at in any::<u16>(), byte in any::<u8>()) {
        let small: Vec<_> = RECORDED.iter().filter(|(_, document)| document.len() < 60_000).collect();
        let (_, document) = small[which % small.len()];
        let mut bytes = document.as_bytes().to_vec();
        let at = at as usize % bytes.len();
        bytes[at] = byte;
        let cut = cut as usize % bytes.len();
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let torn = String::from_utf8_lossy(&bytes[..cut]).into_owned();
        for text in [whole, torn] {
            if let Ok(answer) = reply::answer("RetrievePropertiesEx", &text) {
                let _ = Devices::read(&answer);
            }
        }
    }
}
