//! What a repository folder may hold as text: manifest, owner record, intents; and the mark of a draft.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_fuzz::manifest::{sealed, seeds};
use sendense_repo::{draft, manifest, merge, moving, owner};

fuzz_target!(init: sendense_fuzz::write_seeds(seeds), |bytes: &[u8]| {
    let _ = manifest::parse(bytes);
    let _ = owner::parse(bytes);
    let _ = draft::parse_intent(bytes);
    let _ = merge::parse_intent(bytes);
    let _ = moving::parse_record(bytes);
    let _ = draft::parse_mark(bytes);
    let _ = draft::parse_mark(&draft::sealed_mark(bytes));
    if let Some(bytes) = sealed(bytes)
        && let Ok(read) = manifest::parse(&bytes)
    {
        let written = manifest::write(&read).expect("what was read can be written");
        assert_eq!(manifest::parse(&written).expect("what was written can be read"), read);
    }
});
