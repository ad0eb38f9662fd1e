//! What changed on a disk since a changeId: `QueryChangedDiskAreas`, asked until the disk's end.
//!
//! What lives here: the loop and its guards. What does not: when a changeId may be believed. A server may cover only part of
//! the disk in one answer, so the loop goes on from where the answer ended; an answer that does not advance, or names bytes
//! outside of what it covers, is refused: an area lost here is a block lost in a backup.

use crate::client::Vim;
use crate::error::{Error, Result};
use crate::request::{Method, Ref};
use crate::xml::Element;
use sendense_block::{ByteLen, ByteOffset, Cancel, Extent, ExtentSet};

const METHOD: Method = Method::QueryChangedDiskAreas;

/// The changeId that stands for "since ever": every area that is allocated. Only right where tracking was switched on
/// while the machine had no snapshot.
pub const SINCE_EVER: &str = "*";

/// Answers to one question at the most. ESXi gives some 2,000 areas at a time; 62 TiB whose every second block of 64 KiB
/// changed would need 250,000 answers, and such a disk is better read whole.
const ANSWERS_MAX: usize = 50_000;
/// Areas that are kept as they came: 16 bytes each. Beyond it neighbours are joined, which makes more to read and loses none.
const AREAS_MAX: usize = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The machine.
    pub machine: &'a Ref,
    /// The snapshot that ends the time asked about.
    pub snapshot: &'a Ref,
    /// The disk.
    pub disk_key: i32,
    /// The disk's size in that snapshot.
    pub capacity: ByteLen,
    /// What begins the time: the changeId of an earlier snapshot.
    pub since: &'a str,
}

impl Vim {
    /// Every byte that may have changed. Bytes not in the set have not, if the server tells the truth.
    pub fn changed_areas(&self, question: &Question<'_>, cancel: &Cancel) -> Result<ExtentSet> {
        let mut found = Areas::default();
        let mut offset = 0;
        for _ in 0..ANSWERS_MAX {
            if offset >= question.capacity.0 {
                return Ok(found.set);
            }
            let answer = self.ask(
                METHOD,
                question.machine,
                |body| {
                    body.reference("snapshot", question.snapshot).value("deviceKey", question.disk_key);
                    body.value("startOffset", offset).value("changeId", question.since);
                },
                cancel,
            )?;
            let (areas, next) = read(&answer, offset, question.capacity)
                .map_err(|problem| Error::Reply { method: METHOD.name().into(), problem })?;
            areas.into_iter().for_each(|area| found.insert(area));
            offset = next;
        }
        Err(Error::Reply {
            method: METHOD.name().into(),
            problem: format!("there are more than {ANSWERS_MAX} of them"),
        })
    }
}

/// One answer's areas, and where the next question begins.
fn read(answer: &Element, asked: u64, capacity: ByteLen) -> Result<(Vec<Extent>, u64), String> {
    let info = answer.child("returnval").ok_or("it is empty")?;
    let number = |element: &Element, name: &str| {
        element.number_at::<u64>(name).ok_or_else(|| format!("{name} is missing or no offset"))
    };
    let start = number(info, "startOffset")?;
    let end = start.checked_add(number(info, "length")?).ok_or("it ends beyond the number space")?;
    // What lies between would be in no answer.
    if start > asked {
        return Err(format!("it begins at {start} although {asked} was asked for"));
    }
    if end <= asked {
        return Err(format!("it ends at {end}, where it was asked to begin"));
    }
    // Granularity may carry the last answer beyond the end; the bytes there do not exist.
    let covered = Extent::between(ByteOffset(start), ByteOffset(end));
    let disk = Extent::whole(capacity);
    let mut areas = Vec::new();
    for area in info.children("changedArea") {
        let (at, len) = (number(area, "start")?, number(area, "length")?);
        let area = Extent::new(ByteOffset(at), ByteLen(len)).ok_or("an area ends beyond the number space")?;
        if !covered.contains(area) {
            return Err(format!("the area {area} is outside of {covered}, which the answer covers"));
        }
        areas.push(area.intersect(disk));
    }
    Ok((areas, end))
}

/// A set that stays small.
#[derive(Debug, Default)]
struct Areas {
    set: ExtentSet,
    /// Gaps up to this are closed; 0 until the set has grown too large once.
    gap: u64,
}

impl Areas {
    fn insert(&mut self, area: Extent) {
        if area.is_empty() {
            return;
        }
        // Areas come in order, so closing the gap to the last one is enough.
        let last = self.set.as_slice().last().map(|last| last.end());
        let begin = match last {
            Some(last) if area.start() > last && area.start().0 - last.0 <= self.gap => last,
            _ => area.start(),
        };
        self.set.insert(Extent::between(begin, area.end()));
        if self.set.as_slice().len() > AREAS_MAX {
            self.gap = (self.gap * 2).max(64 << 10);
            let held = std::mem::take(&mut self.set);
            held.as_slice().iter().for_each(|area| self.insert(*area));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(start: u64, length: u64, areas: &[(u64, u64)]) -> Element {
        let areas: String = areas
            .iter()
            .map(|(at, len)| format!("<changedArea><start>{at}</start><length>{len}</length></changedArea>"))
            .collect();
        let text =
            format!("<r><returnval><startOffset>{start}</startOffset><length>{length}</length>{areas}</returnval></r>");
        Element::parse(&text).unwrap()
    }

    #[test]
    fn answers_advance_and_stay_inside() {
        let disk = ByteLen(1 << 20);
        assert_eq!(read(&answer(0, 1 << 20, &[(0, 512)]), 0, disk).unwrap().1, 1 << 20);
        assert_eq!(read(&answer(0, 2 << 20, &[(1 << 19, 1 << 20)]), 0, disk).unwrap().0[0].end().0, 1 << 20);
        for (start, length, areas) in [
            (0, 0, &[][..]),
            (512, 1024, &[]),
            (0, u64::MAX, &[(0, 1)][..]),
            (0, 1024, &[(512, 1024)]),
            (0, 1024, &[(u64::MAX, 2)]),
        ] {
            let found = read(&answer(start, length, areas), 0, disk);
            assert!(found.is_err() || length == u64::MAX, "{start} {length} {areas:?} gave {found:?}");
        }
        assert!(read(&answer(1, u64::MAX, &[]), 1, disk).is_err());
        assert!(read(&answer(0, 512, &[]), 512, disk).is_err(), "an answer that does not advance");
    }

    #[test]
    fn too_many_areas_are_joined_and_none_is_lost() {
        let mut areas = Areas::default();
        let at = |n: u64| Extent::between(ByteOffset(n << 17), ByteOffset((n << 17) + (64 << 10)));
        let count = AREAS_MAX as u64 + 10;
        (0..count).for_each(|n| areas.insert(at(n)));
        assert!(areas.set.as_slice().len() < AREAS_MAX);
        assert!((0..count).step_by(997).all(|n| areas.set.contains(at(n))));
    }

    proptest! {
        #[test]
        fn any_numbers_are_read_or_refused(
            start in any::<u64>(), length in any::<u64>(), asked in any::<u64>(), capacity in any::<u64>(),
            areas in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..4),
        ) {
            if let Ok((found, next)) = read(&answer(start, length, &areas), asked, ByteLen(capacity)) {
                prop_assert!(next > asked && start <= asked);
                prop_assert!(found.iter().all(|area| area.is_empty() || area.end().0 <= capacity));
            }
        }
    }
}
