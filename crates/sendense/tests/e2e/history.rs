//! What became of a file: which points hold it, which hold the same, and what changed between two.

use crate::files::{ask, ext4, json, point, sh, sha256, workers};
use crate::hub::{Hub, PATIENCE, field, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// States and numbers of points of a history, newest first.
fn told(history: &Value) -> Vec<(&str, usize)> {
    let versions = history["versions"].as_array().unwrap().iter();
    versions.map(|version| (field(version, "state"), version["points"].as_array().unwrap().len())).collect()
}

fn digest(dir: &Path, content: &str) -> String {
    let file = dir.join("content");
    std::fs::write(&file, content).unwrap();
    sha256(&file)
}

#[test]
fn a_file_is_followed_over_the_points_of_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // One time for all: what tells versions apart is their content.
    let made = |content: &str| {
        let script = format!(
            "mkdir etc; printf '{content}' > etc/app.conf; printf 'odd\\0{content}' > $'etc/odd\\xff'; ln -s app.conf etc/link
             ln -s /nowhere etc/lost; find . -exec touch -h -d @1700000000 {{}} +"
        );
        ext4(dir, 16, "", &script);
    };
    ext4(dir, 16, "", "mkdir etc; find . -exec touch -h -d @1700000000 {} +");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mut points = vec![point(&hub)];
    made("same\\none\\n");
    points.push(point(&hub));
    // Of the same size and time.
    made("same\\ntwo\\n");
    points.push(point(&hub));
    points.push(point(&hub));
    // A disk that nobody can read.
    sh(dir, "dd if=/dev/zero of=vms/web/disk0.raw bs=1M count=16 conv=notrunc status=none");
    points.push(point(&hub));
    ext4(dir, 16, "", "mkdir etc; find . -exec touch -h -d @1700000000 {} +");
    points.push(point(&hub));

    let history = hub.json(&["history", "web", "/etc/app.conf"]);
    assert_eq!(
        told(&history),
        [("absent", 1), ("unreadable", 1), ("present", 2), ("present", 1), ("absent", 1)],
        "{history:#}"
    );
    let all: Vec<&str> = history["versions"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|version| version["points"].as_array().unwrap())
        .map(|point| field(point, "backup_id"))
        .collect();
    assert!(all.iter().rev().eq(points.iter()), "newest first: {all:?}");
    let (new, old) = (&history["versions"][2], &history["versions"][3]);
    assert_eq!(field(new, "sha256"), digest(dir, "same\ntwo\n"));
    assert_eq!(field(old, "sha256"), digest(dir, "same\none\n"));
    assert_eq!(
        (&new["file"]["size"], &new["file"]["modified_time"]),
        (&old["file"]["size"], &old["file"]["modified_time"])
    );
    assert_eq!(field(&new["file"], "modified_time"), "2023-11-14T22:13:20Z");
    assert!(field(&history["versions"][1], "reason").contains("no volume"), "{history:#}");
    assert_eq!(history["next_offset"], Value::Null);
    let shown = hub.ok(&["history", "web", "/etc/app.conf"]);
    assert!(shown.contains(&digest(dir, "same\ntwo\n")[..16]) && shown.contains("unreadable"), "{shown}");

    // Page by page.
    let below = |query: &str| ask(&hub, &[], &format!("/vms/web/files/history?{query}"));
    let page = |offset: u64| {
        let (status, _, body) = below(&format!("path=/etc/app.conf&limit=4&offset={offset}"));
        assert_eq!(status, 200, "{}", text(&body));
        json(&body)
    };
    assert_eq!(told(&page(0)), [("absent", 1), ("unreadable", 1), ("present", 2)]);
    assert_eq!((&page(0)["next_offset"], &page(0)["total"]), (&4.into(), &6.into()));
    assert_eq!(told(&page(4)), [("present", 1), ("absent", 1)]);
    assert_eq!((&page(4)["next_offset"], told(&page(99)).len()), (&Value::Null, 0));

    // A link is followed, one that leads nowhere is itself, and a name need not be text.
    let link = hub.json(&["history", "web", "/etc/link"]);
    let link = &link["versions"][2];
    assert_eq!((field(link, "sha256"), field(link, "resolved_path_encoded")), (field(new, "sha256"), "/etc/app.conf"));
    assert_eq!(field(&link["file"], "target"), "app.conf");
    let lost = hub.json(&["history", "web", "/etc/lost"]);
    assert_eq!(told(&lost)[2], ("present", 3));
    assert_eq!(
        (field(&lost["versions"][2]["file"], "type"), &lost["versions"][2]["sha256"]),
        ("symlink", &Value::Null)
    );
    let (status, _, body) = below("path=/etc/odd%ff");
    assert_eq!((status, told(&json(&body))[2]), (200, ("present", 2)), "{}", text(&body));
    assert_eq!(field(&json(&body), "path_encoded"), "/etc/odd%FF");
    let folder = hub.json(&["history", "web", "/etc"]);
    assert_eq!(field(&folder["versions"][0]["file"], "type"), "directory");
    assert!(hub.fails(3, &["history", "web", "/etc/none"]).contains("no restore point"));

    for (query, status, code) in [
        ("", 400, "invalid_input"),
        ("path=etc", 400, "invalid_input"),
        ("path=/a/../b", 400, "invalid_input"),
        ("path=/x&disk_id=7", 404, "disk_not_found"),
        ("path=/x&other=1", 400, "invalid_input"),
        ("path=/x&limit=0", 400, "invalid_input"),
    ] {
        let (got, _, body) = below(query);
        assert_eq!((got, json(&body)["code"].as_str()), (status, Some(code)), "{query}: {}", text(&body));
    }
    assert_eq!(ask(&hub, &[], "/vms/nobody/files/history?path=/x").0, 404);
    hub.fails(3, &["history", "web", "/etc/app.conf", "--volume", "p9"]);
    let other = json(&below("path=/etc/app.conf&volume=p9").2);
    let states = told(&other);
    assert!(states.iter().all(|(state, _)| *state == "unreadable"), "{other:#}");
    assert_eq!(states.iter().map(|(_, count)| count).sum::<usize>(), 6);

    // Whoever goes away in the middle frees the place; no point stays open, none is held.
    for _ in 0..6 {
        crate::files::curl(
            &hub,
            &["--max-time", "0.1", "-o", "/dev/null"],
            "/vms/web/files/history?path=/etc/app.conf",
        );
    }
    let patience = Instant::now() + PATIENCE;
    while below("path=/etc/app.conf").0 != 200 {
        assert!(Instant::now() < patience, "the places of those who left are taken for good");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    while !workers(hub.id()).is_empty() {
        assert!(Instant::now() < patience, "readers stay");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let resources = json(&ask(&hub, &[], "/restore/resources").2);
    assert_eq!((&resources["active_mounts"], &resources["available_slots"]), (&0.into(), &8.into()));

    // What changed.
    let diff = |from: usize, to: usize, file: &str| hub.ok(&["diff", "web", file, &points[from], &points[to]]);
    let changed = diff(1, 2, "/etc/app.conf");
    assert!(changed.ends_with("@@ -1,2 +1,2 @@\n same\n-one\n+two\n"), "{changed}");
    assert!(changed.starts_with(&format!("--- {}:/etc/app.conf\t2023-11-14 22:13:20Z\n+++ ", points[1])), "{changed}");
    let appeared = diff(0, 2, "/etc/link");
    assert!(appeared.starts_with("--- /dev/null\n") && appeared.ends_with("+same\n+two\n"), "{appeared}");
    assert_eq!(diff(2, 3, "/etc/app.conf"), "");
    let odd = std::ffi::OsStr::from_bytes(b"/etc/odd\xff");
    let mut command = crate::hub::cli(&hub.url, Some(&hub.data_dir.join("admin-token")));
    let output = command.args(["diff", "web"]).arg(odd).args([&points[1], &points[2]]).output().unwrap();
    assert!(text(&output.stdout).starts_with("binary files differ"), "{output:?}");
    hub.fails(3, &["diff", "web", "/etc/none", &points[1], &points[2]]);
    hub.fails(1, &["diff", "web", "/etc", &points[1], &points[2]]);
    hub.fails(4, &["diff", "web", "/etc/app.conf", &points[3], &points[4]]);
    assert_eq!(hub.json(&["mounts"])["total"], 0, "each point was closed again");
    hub.ok(&["backup", "delete", &points[5], "--yes"]);
    assert_eq!(told(&hub.json(&["history", "web", "/etc/app.conf"])).len(), 4);
}

/// A way to a hub that holds one answer back: that to the `nth` point that is opened through it.
struct Gate {
    url: String,
    /// Told when that point is asked for.
    asked: Receiver<()>,
    /// Lets the answer through.
    go: Sender<()>,
}

impl Gate {
    fn start(hub: &str, nth: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = hub.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let (tell, asked) = channel();
        let (go, wait) = channel();
        let state = Arc::new((AtomicUsize::new(0), Mutex::new(wait)));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, mut server) = (client.unwrap(), TcpStream::connect(&hub).unwrap());
                let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let held = Arc::new(AtomicBool::new(false));
                let (state, hold, tell) = (state.clone(), held.clone(), tell.clone());
                let seen = state.clone();
                std::thread::spawn(move || {
                    relay(&mut client, &mut server, |bytes| {
                        if bytes.starts_with(b"POST /api/v1/restore/mount ") && seen.0.fetch_add(1, SeqCst) + 1 == nth {
                            hold.store(true, SeqCst);
                            tell.send(()).unwrap();
                        }
                    });
                });
                std::thread::spawn(move || {
                    relay(&mut answers, &mut back, |_| {
                        if held.swap(false, SeqCst) {
                            state.1.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                        }
                    });
                });
            }
        });
        Self { url, asked, go }
    }
}

/// Passes bytes on, each piece after it was looked at, until one side is gone.
fn relay(from: &mut TcpStream, to: &mut TcpStream, mut look: impl FnMut(&[u8])) {
    let mut piece = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        look(&piece[..count]);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_comparison_that_is_interrupted_while_a_point_opens_leaves_none_open() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, 16, "", "echo one > file");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let points = [point(&hub), point(&hub)];
    for nth in [1, 2] {
        let gate = Gate::start(&hub.url, nth);
        let mut command = crate::hub::cli(&gate.url, Some(&hub.data_dir.join("admin-token")));
        command.args(["diff", "web", "/file", &points[0], &points[1]]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        gate.asked.recv_timeout(PATIENCE).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        // Only when it has taken notice does the point open.
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = said.next().unwrap().unwrap();
        assert!(told.contains("is closed as soon as it is open"), "{told}");
        gate.go.send(()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(130), String::new()));
        assert_eq!(hub.json(&["mounts"])["total"], 0, "opening number {nth}");
    }
}
