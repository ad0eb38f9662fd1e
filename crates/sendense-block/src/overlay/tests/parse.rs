//! The journal's reader against bytes that no overlay wrote, and against damage.

use super::sim::Sim;
use crate::backend::Memory;
use crate::device::{Flush, WriteAt};
use crate::error::Kind;
use crate::overlay::Overlay;
use crate::overlay::folder::{Blob, Folder};
use crate::overlay::journal::{NAME, PAGE, load};
use crate::units::{BLOCK_BYTES, ByteLen, ByteOffset};
use proptest::prelude::*;
use std::sync::Arc;

const FLUSHES: usize = 6;

/// A journal with a page per flush.
fn journal() -> Vec<u8> {
    let sim = Arc::new(Sim::new());
    let base = Arc::new(Memory::zeroed(ByteLen(FLUSHES as u64 * BLOCK_BYTES)));
    let overlay = Overlay::create_in(sim.clone(), base, b"id").unwrap();
    for block in 0..FLUSHES as u64 {
        overlay.write_at(ByteOffset(block * BLOCK_BYTES), &[1]).unwrap();
        overlay.flush().unwrap();
    }
    let blob = sim.open(NAME).unwrap().unwrap();
    let mut bytes = vec![0; blob.size().0 as usize];
    blob.read_at(ByteOffset(0), &mut bytes).unwrap();
    assert_eq!(bytes.len(), (1 + FLUSHES) * PAGE);
    bytes
}

fn held(bytes: &[u8]) -> crate::Result<u64> {
    let sim = Sim::new();
    let blob: Arc<dyn Blob> = sim.create("x").unwrap();
    blob.write_at(ByteOffset(0), bytes).unwrap();
    load(&*blob).map(|(_, states)| states.counts().0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE)) {
        prop_assert_eq!(held(&bytes).unwrap_err().kind, Kind::Corrupt);
    }

    #[test]
    fn arbitrary_pages_after_the_header_are_a_torn_end(bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE)) {
        let mut journal = journal();
        journal.truncate(PAGE);
        journal.extend(bytes);
        prop_assert_eq!(held(&journal).unwrap(), 0);
    }

    #[test]
    fn damage_is_found_unless_it_is_at_the_end(at in 0..(1 + FLUSHES) * PAGE, bit in 0..8u8) {
        let mut journal = journal();
        journal[at] ^= 1 << bit;
        match held(&journal) {
            // Only the last append can be taken for one that was cut off.
            Ok(held) => prop_assert!(at >= FLUSHES * PAGE && held == FLUSHES as u64 - 1, "byte {at}"),
            // A flipped version is one that we do not know.
            Err(error) => {
                let unknown = (8..12).contains(&at) && error.kind == Kind::Unsupported;
                prop_assert!(at < FLUSHES * PAGE && (error.kind == Kind::Corrupt || unknown));
            }
        }
    }

    #[test]
    fn a_shorter_journal_holds_what_is_whole(len in PAGE..(1 + FLUSHES) * PAGE) {
        prop_assert_eq!(held(&journal()[..len]).unwrap(), (len / PAGE - 1) as u64);
    }

    #[test]
    fn pages_that_changed_places_are_found(a in 1..=FLUSHES, b in 1..=FLUSHES) {
        let mut journal = journal();
        let page: Vec<u8> = journal[a * PAGE..(a + 1) * PAGE].to_vec();
        journal.copy_within(b * PAGE..(b + 1) * PAGE, a * PAGE);
        journal[b * PAGE..(b + 1) * PAGE].copy_from_slice(&page);
        match held(&journal) {
            Ok(held) => prop_assert!(held == FLUSHES as u64 && a == b || a.min(b) == FLUSHES - 1 && a != b && held == FLUSHES as u64 - 2),
            Err(error) => prop_assert!(a != b && error.kind == Kind::Corrupt),
        }
    }
}
