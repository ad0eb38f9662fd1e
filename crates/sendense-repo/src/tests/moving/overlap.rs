//! Moves one after another, each of which may be cut off at any step, between repositories that are not always there.
//!
//! Invariant: whatever was begun and not ended, the caller's books name a repository in which every point reads as it was written.

use super::*;
use crate::testing::Dice;
use crate::testing::stage::{EIO, ENOSPC, Fault, Faults};

const PLACES: [&str; 3] = ["one", "two", "three"];

/// Three repositories, a machine that is moved about, and what a catalog would say.
struct Tour {
    folder: tempfile::TempDir,
    chain: Vec<Point>,
    /// Where the books say that the points lie.
    place: usize,
    made: u32,
}

/// Books that say where.
struct Place<'a> {
    to: usize,
    place: &'a Mutex<usize>,
}

impl Ledger for Place<'_> {
    fn now(&self) -> Timestamp {
        now()
    }

    fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        Ok(())
    }

    fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        *self.place.lock() = self.to;
        Ok(())
    }

    fn goes_on(&self) -> bool {
        false
    }
}

fn number_of(name: &str) -> usize {
    PLACES.iter().position(|place| *place == name).unwrap()
}

impl Tour {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let first = Point::full("vm-a", "bk-0", &[&world::pattern(1, 65536 + 700)]);
        let tour = Self { folder, chain: vec![first], place: 0, made: 0 };
        let all: Vec<Repository> = PLACES.iter().map(|name| tour.open(name)).collect();
        back_up(&all[0], &tour.chain[0], now()).unwrap();
        tour
    }

    fn open(&self, name: &str) -> Repository {
        world::open(&self.folder.path().join(name)).unwrap()
    }

    fn vm(&self) -> VmContextId {
        self.chain[0].vm.clone()
    }

    fn move_to(&mut self, to: usize, fault: Option<(Fault, u64)>) -> Result<Done> {
        let from = self.place;
        let stage = match fault {
            Some((fault, at)) => Stage::new(Faults::new(fault, at), Renames::AtOnce),
            None => Stage::calm(),
        };
        let open = |of: usize| {
            Repository::open_on(stage.clone(), &self.folder.path().join(PLACES[of]), world::options(), now())
        };
        let (source, target) = (open(from)?, open(to)?);
        let plan = source.plan_move(&self.vm(), &target)?;
        let options = Options { ends: ends(PLACES[from], PLACES[to]), ..options() };
        let place = Mutex::new(self.place);
        let ledger = Place { to, place: &place };
        let moved = source.execute_move(&target, &plan, &options, &Progress::default(), &Cancel::new(), &ledger);
        self.place = place.into_inner();
        moved
    }

    /// What a hub does at its start with the repositories that are there. True when nothing is left to be settled in them.
    fn settle(&mut self, there: &[usize]) -> bool {
        let place = Mutex::new(self.place);
        let mut is_settled = true;
        for of in there {
            let repository = self.open(PLACES[*of]);
            let report = repository.recover(&Amnesia, now()).unwrap();
            assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
            for (vm, _) in &report.arriving {
                assert!(repository.finish_arrival(vm, &Place { to: *of, place: &place }).unwrap());
            }
            let came = report.arriving.iter().chain(&report.arrived).map(|(vm, from)| (vm, number_of(from), *of));
            let left = report.leaving.iter().map(|(vm, to)| (vm, *of, number_of(to)));
            for (vm, from, to) in came.chain(left) {
                if !there.contains(&from) || !there.contains(&to) {
                    is_settled = false;
                    continue;
                }
                let (source, target) = (self.open(PLACES[from]), self.open(PLACES[to]));
                let ledger = Place { to, place: &place };
                source.finish_move(vm, &target, &ends(PLACES[from], PLACES[to]), &ledger).unwrap();
            }
        }
        self.place = place.into_inner();
        is_settled
    }

    fn check(&self, doing: &str) {
        let repository = self.open(PLACES[self.place]);
        for point in &self.chain {
            world::check_bytes(&repository, point).unwrap_or_else(|why| panic!("{why}; {doing}"));
        }
    }

    /// Everything is there and nothing is to be done: the points lie where the books say, and nowhere else.
    fn check_settled(&self, doing: &str) {
        self.check(doing);
        for (number, name) in PLACES.iter().enumerate() {
            let wanted = if number == self.place { tree_of(&self.chain) } else { tree_of([]) };
            assert_eq!(tree(&self.folder.path().join(name)), wanted, "{name}; {doing}");
        }
    }

    fn grow(&mut self) {
        let number = self.made + 1;
        let mut next = self.chain.last().unwrap().child(&format!("bk-{number}"));
        next.disk(0)[100 * number as usize..][..50].fill(number as u8);
        match back_up(&self.open(PLACES[self.place]), &next, now()) {
            Ok(_) => {
                self.chain.push(next);
                self.made = number;
            }
            Err(error) => assert!(matches!(error.kind, Kind::Conflict { .. }), "{error:?}"),
        }
    }

    fn shrink(&mut self) {
        if self.chain.len() < 2 {
            return;
        }
        match delete(&self.open(PLACES[self.place]), self.chain.last().unwrap(), Extent::Named) {
            Ok(()) => drop(self.chain.pop()),
            Err(error) => assert!(matches!(error.kind, Kind::Conflict { .. }), "{error:?}"),
        }
    }
}

/// Any order of moves that are cut off, of starts with some of the repositories, of points that come and go.
#[test]
fn no_order_of_moves_that_are_cut_off_loses_a_point() {
    let (mut moved, mut refused, mut cut_off) = (0, 0, 0);
    for seed in 0..40 {
        let (mut tour, mut dice) = (Tour::new(), Dice(seed));
        let mut doing = format!("seed {seed}:");
        for _ in 0..12 {
            match dice.below(6) {
                0..=2 => {
                    let to = (tour.place + 1 + dice.below(2)) % PLACES.len();
                    // As many steps as a move of a point or two has; those beyond are whole moves.
                    let fault = match dice.below(4) {
                        0 => None,
                        1 => Some((Fault::Once(EIO), dice.below(120) as u64)),
                        2 => Some((Fault::Once(ENOSPC), dice.below(120) as u64)),
                        _ => Some((Fault::Gone, dice.below(120) as u64)),
                    };
                    doing += &format!(" move {} to {to} with {fault:?};", tour.place);
                    match tour.move_to(to, fault) {
                        Ok(_) => moved += 1,
                        Err(error) if matches!(error.kind, Kind::Conflict { .. } | Kind::Exists) => refused += 1,
                        Err(_) => cut_off += 1,
                    }
                }
                3 => tour.grow(),
                4 => tour.shrink(),
                _ => {
                    let there: Vec<usize> = (0..PLACES.len()).filter(|_| dice.below(3) > 0).collect();
                    doing += &format!(" start with {there:?};");
                    tour.settle(&there);
                }
            }
            tour.check(&doing);
        }
        tour.settle(&[0, 1, 2]);
        assert!(tour.settle(&[2, 1, 0]), "{doing}");
        tour.check_settled(&doing);
        // And nothing is in the way of the next one.
        let to = (tour.place + 1) % PLACES.len();
        tour.move_to(to, None).unwrap();
        tour.check_settled(&doing);
    }
    assert!(moved > 30 && refused > 10 && cut_off > 30, "{moved} moved, {refused} refused, {cut_off} cut off");
}

/// The points have arrived, and the repository that they came from has not let go of them: nothing moves on before that is settled, and
/// nothing that was pruned meanwhile comes back.
#[test]
fn a_move_that_is_not_settled_lets_no_other_begin() {
    let mut tour = Tour::new();
    tour.grow();
    tour.grow();
    // The first step at which the points are the target's and the source was not touched yet.
    for at in 0.. {
        let mut tour_of = Tour::new();
        tour_of.grow();
        tour_of.grow();
        let moved = tour_of.move_to(1, Some((Fault::Gone, at)));
        let has_arrived = crate::moving::has_arrived(&tour_of.open("two"), &tour_of.vm()).unwrap();
        if has_arrived {
            tour = tour_of;
            break;
        }
        assert!(moved.is_err(), "it never was so");
    }
    assert_eq!(tour.place, 1);
    assert_eq!(tour.open("one").list(&tour.vm()).unwrap().points.len(), 3, "nothing went there yet");
    for (from, to) in [("two", "three"), ("one", "three"), ("three", "one"), ("two", "one"), ("one", "two")] {
        let refused = tour.open(from).plan_move(&tour.vm(), &tour.open(to)).unwrap_err();
        assert!(matches!(refused.kind, Kind::Conflict { .. } | Kind::NotFound), "{from} to {to}: {refused}");
    }
    // In the new place the chain goes on, and is pruned; in the old one nothing is done to it.
    tour.grow();
    assert_eq!(tour.chain.len(), 4);
    let one = tour.open("one");
    let grown = back_up(&one, &tour.chain[2].child("bk-x"), now()).map(drop);
    for refused in [grown, delete(&one, &tour.chain[2], Extent::Named)].map(Result::unwrap_err) {
        assert!(matches!(refused.kind, Kind::Conflict { .. }), "{refused:?}");
    }
    while tour.chain.len() > 1 {
        tour.shrink();
    }
    delete(&tour.open("two"), &tour.chain[0], Extent::Named).unwrap();
    assert!(tour.settle(&[1, 2]) || !tour.settle(&[1]), "the old one is not there");
    assert!(tour.settle(&[0, 1]));
    for name in PLACES {
        assert_eq!(tree(&tour.folder.path().join(name)), tree_of([]), "{name}");
    }
}

/// The repository that the points came from is gone for good: they are the other's, and the caller says so.
#[test]
fn points_whose_source_is_gone_move_on() {
    let mut tour = Tour::new();
    for at in 0.. {
        tour = Tour::new();
        _ = tour.move_to(1, Some((Fault::Gone, at)));
        if crate::moving::has_arrived(&tour.open("two"), &tour.vm()).unwrap() {
            break;
        }
    }
    std::fs::remove_dir_all(tour.folder.path().join("one")).unwrap();
    tour.open("one");
    let refused = tour.move_to(2, None).unwrap_err();
    assert!(matches!(refused.kind, Kind::Conflict { .. }), "{refused:?}");
    assert!(tour.open("two").forget_arrival(&tour.vm(), now()).unwrap());
    assert!(!tour.open("two").forget_arrival(&tour.vm(), now()).unwrap());
    tour.move_to(2, None).unwrap();
    tour.check_settled("moved on");
}

/// A look at a repository takes nothing from a move that begins in that moment: between the two stands the claim.
#[test]
fn whoever_settles_claims_the_machine_also_where_no_point_is_named() {
    let world = World::new();
    let (source, target) = world.open();
    let _here = target.lock(Operation::Move, world.vm(), [world.third.id.clone()].into(), "a move").unwrap();
    let turn = target.ownership().unwrap().turn(now()).unwrap();
    assert!(!target.recover_move_in(world.vm(), &turn).unwrap());
    drop((turn, source));
}
