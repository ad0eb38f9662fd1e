//! What a repository folder may hold as text: manifest, owner record, intent.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sendense_repo::manifest::parse(bytes);
    let _ = sendense_repo::owner::parse(bytes);
    let _ = sendense_repo::draft::parse_intent(bytes);
});
