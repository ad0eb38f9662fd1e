//! Two hubs on one database, one of which dies or is stopped in the middle of a move: the other brings it to its end, once, and the
//! first one, continued, publishes, switches and deletes nothing.

use crate::disk::Random;
use crate::fenced::{Pair, id_of, is_idle, owner_of, pause_between_changes, restores, until};
use crate::hub::{Hub, field, tree};
use crate::moves::{check, machines_in, set_up};
use crate::moves_no_room::stop_in_the_middle;
use crate::servers;
use std::path::Path;

/// What lies in both repositories, byte lengths and all, but for the owner records, which hubs renew.
fn files(repositories: [&Path; 2]) -> Vec<(String, u64)> {
    let of = |repository: &Path| {
        let length = |file: String| (file.clone(), repository.join(file).metadata().unwrap().len());
        let files = machines_in(repository).into_iter().filter(|file| repository.join(file).is_file());
        files.map(length).collect::<Vec<_>>()
    };
    repositories.into_iter().flat_map(of).collect()
}

fn is_settled(repositories: [&Path; 2]) -> bool {
    !repositories.into_iter().flat_map(tree).any(|file| file.contains(".move-"))
}

/// All points are in one place and in the books, and each gives back what it should.
fn check_moved(hub: &Hub, dir: &Path, from: &Path, to: &Path, known: &[(String, Vec<u8>)]) {
    assert!(machines_in(from).is_empty(), "{:?}\n{}", machines_in(from), hub.log());
    check(to, known);
    let images = machines_in(to).into_iter().filter(|file| file.ends_with(".qcow2")).count();
    assert_eq!(images, known.len(), "one copy of each");
    for name in ["main", "second"] {
        assert_eq!(hub.json(&["repo", "check", name])["report"]["findings_total"], 0, "{}", hub.log());
    }
    for (id, bytes) in known {
        restores(hub, dir, id, bytes);
    }
    assert_eq!(hub.json(&["backup", "list", "--status", "completed"])["total"], known.len());
}

#[test]
fn a_move_whose_hub_is_killed_is_ended_by_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    let mut pair = Pair::start(dir, &url);
    let (from, to) = (dir.join("repo"), dir.join("target"));
    let (_, known) = set_up(&pair.hubs[0], dir, &to, 24 << 20, &mut Random::new(77));
    // Only the one that has the repositories can look into them.
    let said = pair.hubs[1].fails(4, &["chain", "move", "web", "--to", "second", "--yes"]);
    assert!(said.contains(&format!("owned by hub {}", id_of(&pair.hubs[0]))), "{said}");
    let task_id = stop_in_the_middle(&pair.hubs[0], &to);
    pair.hubs[0].kill_9();
    let [dead, other] = &pair.hubs;
    // It is still the dead one's, and nobody touches what it had copied.
    check(&from, &known);
    let task = || other.json(&["task", "show", &task_id])["task"].clone();
    until([dead, other], "the move ends", || field(&task(), "state") != "running");
    assert_eq!(field(&task(), "state"), "completed", "{:#}\n{}", task(), other.log());
    until([dead, other], "it is settled", || is_settled([&from, &to]));
    check_moved(other, dir, &from, &to, &known);
    assert_eq!([&from, &to].map(|repository| owner_of(repository)), [id_of(other), id_of(other)]);
    // When it comes back it has nothing to do.
    let there = files([&from, &to]);
    let first = Hub::launch(dir, "first", &["--database-url", &url]).unwrap_or_else(|log| panic!("{log}"));
    let tasks = first.json(&["task", "list"])["tasks"].clone();
    let moves = tasks.as_array().unwrap().iter().filter(|task| task["kind"] == "move");
    assert_eq!(moves.map(|task| field(task, "state")).collect::<Vec<_>>(), ["completed"]);
    assert_eq!(first.json(&["backup", "show", &known[0].0])["backup"]["status"], "completed");
    assert_eq!(first.stop(), Some(0));
    assert_eq!(files([&from, &to]), there);
}

#[test]
fn a_hub_that_was_stopped_in_a_move_changes_nothing_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, url) = servers::mariadb(dir);
    let pair = Pair::start(dir, &url);
    let (from, to) = (dir.join("repo"), dir.join("target"));
    let both = [from.as_path(), to.as_path()];
    let (_, known) = set_up(&pair.hubs[0], dir, &to, 24 << 20, &mut Random::new(78));
    let [away, other] = &pair.hubs;
    let hubs = [away, other];
    assert_eq!(both.map(owner_of), [id_of(away), id_of(away)]);
    let task_id = stop_in_the_middle(away, &to);
    away.resume();
    pause_between_changes(away, &both);
    until(hubs, "the other hub takes both", || both.map(owner_of) == [id_of(other), id_of(other)]);
    let task = || other.json(&["task", "show", &task_id])["task"].clone();
    until(hubs, "the move ends", || field(&task(), "state") != "running");
    assert_eq!(field(&task(), "state"), "completed", "{:#}\n{}", task(), other.log());
    until(hubs, "it is settled", || is_settled(both));
    let there = files(both);
    away.resume();
    // By its task or by the repository, whichever it asks first.
    let noticed = ["task was taken over by another hub", "another hub took the repository"];
    until(hubs, "it notices", || noticed.iter().any(|words| away.log().contains(words)));
    until(hubs, "it has nothing to do any more", || is_idle(away) && is_settled(both));
    assert_eq!(files(both), there, "it changed a repository\n{}", away.log());
    assert_eq!(both.map(owner_of), [id_of(other), id_of(other)]);
    assert_eq!(field(&task(), "state"), "completed");
    check_moved(other, dir, &from, &to, &known);
    for hub in pair.hubs {
        assert_eq!(hub.stop(), Some(0));
    }
}
