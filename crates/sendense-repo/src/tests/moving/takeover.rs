//! A hub is stopped at any step of a move, another takes one of the repositories or both and works there, and the first goes on.
//!
//! Invariant: whatever the first still does, the points lie whole in one place when all is settled.

use super::*;
use crate::owner::{self, Claim};
use crate::testing::claim;
use crate::tests::faults::Copies;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the other hub takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Source,
    Target,
    Both,
}

fn lease_out() -> Timestamp {
    now().plus_seconds(i64::from(claim().lease_seconds))
}

/// The other hub's books: it comes when the first one's leases are out.
struct Later;

impl Ledger for Later {
    fn now(&self) -> Timestamp {
        lease_out()
    }

    fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        Ok(())
    }

    fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
        Ok(())
    }

    fn goes_on(&self) -> bool {
        false
    }
}

struct Stopped {
    at: u64,
    count: AtomicU64,
    folder: PathBuf,
    taken: Taken,
    vm: VmContextId,
    met: Mutex<Option<bool>>,
    /// The books of the hub that is stopped.
    book: Arc<Book>,
    /// What they said when another hub had been at work.
    switched: Mutex<Option<BTreeSet<BackupId>>>,
}

/// A repository, for the other hub, when the first one's leases are out.
fn open_later(folder: &Path, name: &str) -> Result<Repository> {
    let claim = Claim { hub_id: "hub-b".parse().unwrap(), ..claim() };
    let options = crate::Options { claim, ..world::options() };
    Repository::open_on(Stage::calm(), &folder.join(name), options, lease_out())
}

impl Stopped {
    fn other(&self, name: &str) -> Result<Repository> {
        open_later(&self.folder, name)
    }

    /// What the other hub does; false when it could take none of the repositories.
    fn reign(&self) -> bool {
        let names: &[&str] = match self.taken {
            Taken::Source => &[SOURCE],
            Taken::Target => &[TARGET],
            Taken::Both => &[TARGET, SOURCE],
        };
        let mut repositories = Vec::new();
        for name in names {
            match self.other(name) {
                Ok(repository) => repositories.push(repository),
                // In the middle of a change there; then nothing is done in the other one either.
                Err(error) if error.kind == Kind::Owned => return !repositories.is_empty(),
                Err(error) => panic!("{error:?}"),
            }
        }
        for repository in &repositories {
            let report = repository.recover(&Amnesia, lease_out()).unwrap();
            assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}");
            for (vm, _) in &report.arriving {
                assert!(repository.finish_arrival(vm, &Later).unwrap());
            }
        }
        if let [target, source] = &repositories[..] {
            source.finish_move(&self.vm, target, &ends("old", "new"), &Later).unwrap();
            // The same move once more, by the other hub, from nothing.
            if let Ok(plan) = source.plan_move(&self.vm, target) {
                let (progress, cancel) = (Progress::default(), Cancel::new());
                source.execute_move(target, &plan, &options(), &progress, &cancel, &Later).unwrap();
            }
        }
        true
    }
}

impl Script for Stopped {
    fn before(&self, _: &Act<'_>) -> io::Result<()> {
        if self.count.fetch_add(1, Ordering::SeqCst) == self.at {
            let could = owner::hurrying(|| self.reign());
            *self.switched.lock() = Some(self.book.switched.lock().clone());
            *self.met.lock() = Some(could);
        }
        Ok(())
    }

    fn after(&self, _: &Act<'_>) {}
}

#[test]
fn a_hub_that_was_stopped_in_a_move_harms_nothing_that_another_did_since() {
    stopped(Taken::Both);
}

#[test]
fn a_hub_that_was_stopped_and_lost_one_of_the_two_harms_nothing() {
    stopped(Taken::Source);
    stopped(Taken::Target);
}

fn stopped(taken: Taken) {
    let world = World::small();
    let mut copies = Copies::of(&world.folder());
    let (mut could, mut could_not) = (0, 0);
    for at in 0.. {
        assert!(at < 2000, "the work does not end");
        let folder = copies.next();
        let (count, met, vm) = (AtomicU64::new(0), Mutex::new(None), world.vm().clone());
        let (book, switched) = (Arc::new(Book::default()), Mutex::default());
        let script = Arc::new(Stopped { at, count, folder: folder.clone(), taken, vm, met, book, switched });
        let stage = Stage::new(script.clone(), Renames::AtOnce);
        let moved = super::faults::open_on(&stage, &folder)
            .and_then(|(source, target)| go(&source, &target, world.vm(), &script.book).map(drop));
        let Some(met) = *script.met.lock() else {
            moved.unwrap();
            break;
        };
        if !met {
            could_not += 1;
            moved.unwrap();
            continue;
        }
        could += 1;
        if taken != Taken::Source {
            let said = script.switched.lock().clone().unwrap();
            assert_eq!(*script.book.switched.lock(), said, "its word came late: {taken:?} at {at}");
        }
        // A hub that has both in the end.
        let (source, target) = (script.other(SOURCE), script.other(TARGET));
        let told = format!("{taken:?} at {at}: {moved:?}");
        let (source, target) = match (source, target) {
            (Ok(source), Ok(target)) => (source, target),
            (source, target) => panic!("{told}: {:?} {:?}", source.err(), target.err()),
        };
        for repository in [&target, &source] {
            let report = repository.recover(&Amnesia, lease_out()).unwrap();
            assert!(report.problems.is_empty() && report.strangers.is_empty(), "{report:?}; {told}");
            for (vm, _) in &report.arriving {
                repository.finish_arrival(vm, &Later).unwrap();
            }
        }
        source.finish_move(world.vm(), &target, &ends("old", "new"), &Later).unwrap();
        let is_target = target.list(world.vm()).unwrap().points.len() == 3;
        let (here, there) = if is_target { (&target, &source) } else { (&source, &target) };
        assert!(there.list(world.vm()).unwrap().points.is_empty(), "{told}");
        for point in world.chain() {
            world::check_bytes(here, point).unwrap_or_else(|why| panic!("{why}; {told}"));
            world::check_sound(here, point, Depth::AtRest).unwrap_or_else(|why| panic!("{why}; {told}"));
        }
        let other = &world.before.other;
        let mut wanted = [tree_of([other]), tree_of(world.chain())];
        if !is_target {
            wanted = [tree_of(world.chain().into_iter().chain([other])), tree_of([])];
        }
        assert_eq!([tree(source.root()), tree(target.root())], wanted, "{told}");
    }
    assert!(could > 20 && could_not > 20, "{taken:?}: {could} taken, {could_not} not");
}

/// The other hub wants the target in the very moment in which the first one says where the points lie. It could move them on, and that
/// word would come after its own: so it has to wait.
#[test]
fn nobody_takes_the_target_while_it_is_written_down_where_the_points_lie() {
    struct Word {
        folder: PathBuf,
        met: Mutex<Vec<Option<Kind>>>,
    }
    impl Ledger for Word {
        fn now(&self) -> Timestamp {
            now()
        }

        fn refuse(&self, _: &BTreeSet<BackupId>) -> Result<()> {
            Ok(())
        }

        fn switch(&self, _: &BTreeSet<BackupId>) -> Result<()> {
            let taken = owner::hurrying(|| open_later(&self.folder, TARGET));
            self.met.lock().push(taken.err().map(|error| error.kind));
            Ok(())
        }

        fn goes_on(&self) -> bool {
            false
        }
    }
    for cut_off in [false, true] {
        let world = World::small();
        let (source, target) = world.open();
        let word = Word { folder: world.folder(), met: Mutex::default() };
        if cut_off {
            go(&source, &target, world.vm(), &Book { is_away: true, ..Book::default() }).unwrap_err();
            assert!(target.finish_arrival(world.vm(), &word).unwrap());
        } else {
            let plan = source.plan_move(world.vm(), &target).unwrap();
            let (progress, cancel) = (Progress::default(), Cancel::new());
            source.execute_move(&target, &plan, &options(), &progress, &cancel, &word).unwrap();
        }
        assert_eq!(*word.met.lock(), [Some(Kind::Owned)], "cut off: {cut_off}");
    }
}
