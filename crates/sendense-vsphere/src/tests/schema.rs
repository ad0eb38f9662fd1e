//! Each request against the order of elements in VMware's schema: real servers refuse what simulators take.

#[path = "../../../../lab/vsphere/schema.rs"]
mod table;

pub use table::schema;

use super::operations;
use crate::Element;
use crate::request::Method;
use std::collections::BTreeSet;

#[test]
fn every_request_is_in_the_schemas_order() {
    let schema = schema();
    let sent = operations::everything();
    let seen: BTreeSet<String> = sent.iter().map(|(_, document)| schema.check_request(document).unwrap()).collect();
    let known: BTreeSet<String> = schema.methods.keys().map(|name| (*name).to_owned()).collect();
    let ours: BTreeSet<String> = Method::ALL.iter().map(|method| method.name().to_owned()).collect();
    assert_eq!(ours, known, "what can be called and what the table holds differ");
    assert_eq!(seen, ours, "what can be called and what was called here differ");
}

#[test]
fn the_check_finds_what_it_is_for() {
    let schema = schema();
    let refused = |text: &str, method: &str| {
        let call = Element::parse(text).unwrap();
        schema.check(method, &call, &schema.methods[method]).is_err()
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
