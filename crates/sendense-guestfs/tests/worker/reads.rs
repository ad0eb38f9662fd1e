//! Files, folders and walks through a worker, beside the same calls in this process.

use super::Test;
use super::images::{ext4, folder, open, path, read, sh, volume};
use sendense_block::backend::{File, Options};
use sendense_guestfs::meta::Consistency;
use sendense_guestfs::native::{self, Readers};
use sendense_guestfs::session::WalkOptions;
use sendense_guestfs::wire::{PIECE_BYTES, REQUESTS_MAX};
use sendense_guestfs::{Error, Session};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub const TESTS: &[Test] = &[
    ("links_and_ranges_are_read_as_in_this_process", links_and_ranges_are_read_as_in_this_process),
    ("a_hundred_thousand_entries_come_in_pages", a_hundred_thousand_entries_come_in_pages),
    ("a_large_file_takes_little_memory", a_large_file_takes_little_memory),
    ("a_full_log_takes_little_memory", a_full_log_takes_little_memory),
    ("abandoned_streams_free_their_place", abandoned_streams_free_their_place),
    ("points_of_one_machine_do_not_disturb_each_other", points_of_one_machine_do_not_disturb_each_other),
];

fn native(image: &Path) -> native::Session {
    native::Session::open(Arc::new(File::open(image, Options::Read).unwrap()), Readers::default())
}

/// Everything a session says of a disk, as text.
fn everything(session: &dyn Session) -> String {
    let mut text = format!("{:#?}\n", session.volumes().unwrap());
    let mut walk = session.walk(&volume("disk"), &path("/"), &WalkOptions::default()).unwrap();
    while let Some(batch) = walk.next_batch().unwrap() {
        for found in batch {
            text += &format!("{:?} {:?}\n", found.path, found.outcome);
            if let Ok(target) = session.resolve(&volume("disk"), &found.path) {
                text += &format!("  is {target:?} {:?}\n", session.stat(&volume("disk"), &target));
                let ranges = session.data_ranges(&volume("disk"), &target, 0);
                text += &format!("  data {ranges:?}\n");
            }
            text += &format!("  link {:?}\n", session.readlink(&volume("disk"), &found.path));
        }
    }
    text
}

fn links_and_ranges_are_read_as_in_this_process() {
    let dir = folder();
    let script = r#"mkdir -p etc data/www; echo guest > etc/passwd; ln -s /etc/passwd evil; ln -s ../../../../etc/passwd up
        ln -s loop loop; ln -s data/www www; echo index > data/www/index; mkfifo fifo; touch "$(printf 'a\nb\xff')"
        truncate -s 20M sparse; printf x | dd of=sparse bs=1 seek=10M conv=notrunc status=none; seq 1 200000 > data/numbers"#;
    let image = ext4(dir.path(), "disk.img", 48, "", script);
    let (worker, here) = (open(&image), native(&image));
    assert_eq!(everything(&worker), everything(&here));
    for session in [&worker as &dyn Session, &here] {
        assert_eq!(read(session, "disk", "/evil"), Err(Error::NotRegular));
        let target = session.resolve(&volume("disk"), &path("/evil")).unwrap();
        assert_eq!(target, path("/etc/passwd"));
        assert_eq!(read(session, "disk", "/etc/passwd").unwrap(), b"guest\n");
        assert_eq!(read(session, "disk", "/www/index").unwrap(), b"index\n");
        assert_eq!(session.resolve(&volume("disk"), &path("/up")).unwrap(), path("/etc/passwd"));
        assert!(matches!(session.resolve(&volume("disk"), &path("/loop")), Err(Error::Limit(_))));
        assert_eq!(read(session, "disk", "/fifo"), Err(Error::NotRegular));
        assert_eq!(read(session, "disk", "/data"), Err(Error::NotRegular));
        assert_eq!(read(session, "disk", "/gone"), Err(Error::NotFound));
        assert_eq!(read(session, "p1", "/etc/passwd"), Err(Error::NoVolume));
        let numbers = sh(dir.path(), "seq 1 200000").into_bytes();
        let size = numbers.len() as u64;
        assert_eq!(read(session, "disk", "/data/numbers").unwrap(), numbers);
        for range in [
            0..0,
            0..1,
            size - 1..size,
            5..PIECE_BYTES as u64 * 2 + 7,
            size..size + 9,
            size + 5..u64::MAX,
            Range { start: 9, end: 3 },
        ] {
            let mut stream = session.read(&volume("disk"), &path("/data/numbers"), range.clone()).unwrap();
            assert_eq!(stream.file_size_bytes(), size);
            let mut got = Vec::new();
            while let Some(piece) = stream.next_piece().unwrap() {
                got.extend_from_slice(&piece);
            }
            let expected =
                numbers.get(range.start.min(size) as usize..range.end.min(size) as usize).unwrap_or_default();
            assert!(got == expected, "{range:?}: {} bytes", got.len());
        }
        let page = session.data_ranges(&volume("disk"), &path("/sparse"), 0).unwrap();
        let data: u64 = page.ranges.iter().map(|range| range.end - range.start).sum();
        assert!(
            page.next.is_none() && page.ranges.iter().any(|range| range.contains(&(10 << 20))) && data < 1 << 20,
            "{page:?}"
        );
    }
    Box::new(worker).close();
}

fn a_hundred_thousand_entries_come_in_pages() {
    let dir = folder();
    // Through the kernel, because `mkfs -d` looks through the whole folder for each new name.
    sh(
        dir.path(),
        "truncate -s 96M disk.img; mkfs.ext4 -q -F -N 110000 disk.img; mkdir mnt; mount -o loop disk.img mnt; trap 'umount mnt' EXIT
         mkdir mnt/many; cd mnt/many; seq -f 'entry-%06g' 1 100000 | xargs touch; cd ../..",
    );
    let image = dir.path().join("disk.img");
    let worker = open(&image);
    let mut names = BTreeSet::new();
    let (mut after, mut pages) = (None, 0);
    loop {
        let page = worker.list(&volume("disk"), &path("/many"), after, 1000).unwrap();
        pages += 1;
        for entry in page.entries {
            assert!(names.insert(entry.name));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!((names.len(), pages), (100_000, 100));
    // A search that finds one in all of them, and one that is cut off.
    let named = WalkOptions { name: Some(b"*-0999?9".to_vec()), ..WalkOptions::default() };
    let mut walk = worker.walk(&volume("disk"), &path("/many"), &named).unwrap();
    let mut found = Vec::new();
    while let Some(batch) = walk.next_batch().unwrap() {
        found.extend(batch.into_iter().map(|found| found.path));
    }
    assert_eq!(found.len(), 10, "{found:?}");
    let few = WalkOptions { entries_max: 1234, ..WalkOptions::default() };
    let mut walk = worker.walk(&volume("disk"), &path("/many"), &few).unwrap();
    let mut seen = 0;
    let end = loop {
        match walk.next_batch() {
            Ok(Some(batch)) => seen += batch.len(),
            other => break other,
        }
    };
    assert!(matches!(end, Err(Error::Limit(_))), "{end:?}");
    assert_eq!(seen, 1234);
    memory_of(&worker);
}

/// The most a worker has held, which must be below the bound of 64 MiB.
fn memory_of(worker: &sendense_guestfs::client::Worker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.process_id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib <= 64 * 1024, "{kib} KiB");
    kib
}

fn a_large_file_takes_little_memory() {
    let dir = folder();
    let script = "head -c 524288000 <(seq 1 80000000) > large; echo small > small";
    let image = ext4(dir.path(), "disk.img", 560, "-m 0", script);
    let worker = open(&image);
    let mut stream = worker.read(&volume("disk"), &path("/large"), 0..u64::MAX).unwrap();
    let mut hasher = blake3::Hasher::new();
    let mut pieces = 0;
    while let Some(piece) = stream.next_piece().unwrap() {
        hasher.update(&piece);
        pieces += 1;
        // A slow reader beside quick calls: what is asked in between is answered while the stream waits.
        if pieces % 500 == 0 {
            assert_eq!(read(&worker, "disk", "/small").unwrap(), b"small\n");
        }
    }
    let mut again = blake3::Hasher::new();
    let mut debugfs = std::process::Command::new("debugfs")
        .args(["-R", "cat /large", "disk.img"])
        .current_dir(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("debugfs: {error}: install the Debian package e2fsprogs"));
    again.update_reader(debugfs.stdout.take().unwrap()).unwrap();
    debugfs.wait().unwrap();
    assert_eq!(hasher.finalize(), again.finalize());
    let kib = memory_of(&worker);
    assert!(kib > 1024, "{kib} KiB");
}

/// An XFS log of the usual size, 64 MiB, as full as it gets: shut down with everything in it and nothing behind it.
fn a_full_log_takes_little_memory() {
    let dir = folder();
    sh(
        dir.path(),
        "truncate -s 3G disk.img; mkfs.xfs -q disk.img; mkdir mnt; mount -o loop disk.img mnt; trap 'umount mnt' EXIT
         cd mnt; for folder in {1..40}; do mkdir $folder; (cd $folder; seq 1500 | xargs touch); done
         xfs_io -x -c 'shutdown -f' .; cd ..",
    );
    let worker = open(&dir.path().join("disk.img"));
    let volumes = worker.volumes().unwrap();
    assert_eq!(volumes[0].consistency, Some(Consistency::Replayed), "{volumes:?}");
    let replayed = memory_of(&worker);
    // Every inode is looked at again, so that the cache is full too.
    let mut seen = 0;
    let mut walk = worker.walk(&volume("disk"), &path("/"), &WalkOptions::default()).unwrap();
    while let Some(batch) = walk.next_batch().unwrap() {
        seen += batch.into_iter().filter(|found| found.outcome.is_ok()).count();
    }
    assert!(seen >= 40 * 1500, "{seen}");
    let kib = memory_of(&worker);
    println!("  {seen} entries; {replayed} KiB after the replay, {kib} KiB after a walk");
    assert!(kib <= 48 * 1024, "{kib} KiB");
}

fn abandoned_streams_free_their_place() {
    let dir = folder();
    let image = ext4(dir.path(), "disk.img", 48, "", "seq 1 3000000 > large; mkdir -p a/b/c");
    let worker = open(&image);
    let stream = || worker.read(&volume("disk"), &path("/large"), 0..u64::MAX);
    // Far more than there are places, each left after its first piece.
    for _ in 0..REQUESTS_MAX * 5 {
        let mut stream = loop {
            match stream() {
                Ok(stream) => break stream,
                // The end of an earlier one is on its way.
                Err(Error::Limit(_)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        assert!(stream.next_piece().unwrap().is_some());
    }
    // All places taken by streams that nobody reads: the next call is told so, and works when one has gone.
    let mut held = Vec::new();
    while held.len() < REQUESTS_MAX {
        match stream() {
            Ok(stream) => held.push(stream),
            Err(Error::Limit(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(matches!(worker.stat(&volume("disk"), &path("/a")), Err(Error::Limit(_))));
    held.pop();
    while matches!(worker.stat(&volume("disk"), &path("/a")), Err(Error::Limit(_))) {
        std::thread::yield_now();
    }
    for stream in &mut held {
        let mut bytes = 0;
        while let Some(piece) = stream.next_piece().unwrap() {
            bytes += piece.len() as u64;
        }
        assert_eq!(bytes, stream.file_size_bytes());
    }
    memory_of(&worker);
}

fn points_of_one_machine_do_not_disturb_each_other() {
    let dir = folder();
    let old = ext4(dir.path(), "old.img", 16, "-L root -U 11111111-2222-3333-4444-555555555555", "echo old > state");
    sh(
        dir.path(),
        "cp old.img new.img; echo new > state; debugfs -w -R 'rm state' new.img; debugfs -w -R 'write state state' new.img",
    );
    let sessions = [open(&old), open(&dir.path().join("new.img"))];
    let volumes: Vec<_> = sessions.iter().map(|session| session.volumes().unwrap()).collect();
    assert_eq!(volumes[0], volumes[1]);
    assert_eq!(volumes[0][0].uuid.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
    for _ in 0..3 {
        assert_eq!(read(&sessions[0], "disk", "/state").unwrap(), b"old\n");
        assert_eq!(read(&sessions[1], "disk", "/state").unwrap(), b"new\n");
    }
}
