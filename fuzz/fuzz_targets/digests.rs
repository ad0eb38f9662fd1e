//! A digests file: header, index, groups.
#![no_main]
use libfuzzer_sys::fuzz_target;
use sendense_block::backend::Memory;
use sendense_repo::digests::{DigestFile, Group};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = DigestFile::open(Box::new(Memory::from_bytes(bytes.to_vec())), None) else { return };
    let mut group = Group::default();
    for number in 0..file.groups().min(64) {
        let _ = file.entry(number);
        let _ = file.group(number, &mut group);
    }
});
