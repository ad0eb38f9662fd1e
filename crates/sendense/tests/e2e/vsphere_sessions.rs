//! Sessions of a vCenter's hosts are few: however many backups run, no more are open than the source may have, and what the
//! host refuses is told.

use crate::hub::{Hub, field, text};
use crate::vsphere::lab::{Lab, MIB};
use crate::vsphere::set_up;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What the lab's host gives, and what the source is told that it may take.
const SESSIONS_MAX: usize = 4;
/// So two machines at once would want six.
const DISKS: usize = 3;

#[test]
fn two_backups_of_many_disks_share_the_sessions_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::with(&[], &[&format!("handles={SESSIONS_MAX}")]);
    let vim = lab.vim();
    let names = ["web", "db"];
    for name in names {
        let guest = lab.machine(&vim, name, &[MIB; DISKS]);
        (0..DISKS).for_each(|disk| guest.write(&vim, disk, 0, &[7; 1 << 20]));
    }
    let hub = Hub::start(dir);
    set_up(&hub, dir, &lab);
    hub.ok(&["source", "update", "vc", "--sessions-max", &SESSIONS_MAX.to_string()]);

    // Slow enough that both are at work when the first reads.
    lab.control("read-delay-ms", "100");
    let (over, most) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let points = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most[0].fetch_max(lab.sessions(), Ordering::Relaxed);
                most[1].fetch_max(lab.nbdkits(), Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let started =
            names.map(|name| scope.spawn(|| hub.run(&["backup", "start", name, "--repo", "main", "--wait", "--json"])));
        let ended = started.map(|thread| thread.join());
        over.store(true, Ordering::Relaxed);
        ended.map(Result::unwrap)
    });
    let points = points.map(|output| {
        assert!(output.status.success(), "{}{}\n{}", text(&output.stdout), text(&output.stderr), hub.log());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["backup"].clone()
    });
    for (point, other) in [(&points[0], &points[1]), (&points[1], &points[0])] {
        assert!(field(point, "started_at") < field(other, "completed_at"), "they were not at once: {points:#?}");
    }
    let most = most.map(AtomicUsize::into_inner);
    assert!(most.iter().all(|most| (DISKS..=SESSIONS_MAX).contains(most)), "at once, sessions and processes: {most:?}");
    lab.uncontrol("read-delay-ms");

    // Somebody else has taken most of them: it is told as that, nothing stays, and later it goes.
    let marks: Vec<_> =
        (0..2).map(|n| lab.root.join(".handles").join(format!("{}-other-{n}", std::process::id()))).collect();
    marks.iter().for_each(|mark| std::fs::write(mark, "").unwrap());
    let refused = hub.run(&["backup", "start", "web", "--repo", "main", "--type", "full", "--wait"]);
    let said = text(&refused.stdout) + &text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("the host gives no more sessions"), "{said}");
    assert_eq!((lab.snapshots(), lab.nbdkits()), (Vec::new(), 0));
    marks.iter().for_each(|mark| std::fs::remove_file(mark).unwrap());
    assert_eq!(field(&hub.backup("web", &["--type", "full"]), "status"), "completed");
    assert_eq!((lab.snapshots(), lab.sessions()), (Vec::new(), 0));
}
