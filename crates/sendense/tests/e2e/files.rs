//! Browsing restore points: the right file of the right point, over HTTP as any client asks, with names that try everything.

use crate::hub::{Hub, PATIENCE, field, path, text, tool, tree};
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

/// Makes the disk of `web` an ext4 of `mib` that holds what `script` makes in an empty folder.
pub fn ext4(dir: &Path, mib: u64, options: &str, script: &str) {
    let disk = dir.join("vms/web/disk0.raw");
    std::fs::create_dir_all(disk.parent().unwrap()).unwrap();
    let made = dir.join("made.img");
    let script = format!(
        "rm -rf tree made.img; mkdir tree; (cd tree; {script}); truncate -s {mib}M made.img
         mkfs.ext4 -q -F -U 6a1dbb3e-41c8-4d5b-9a6e-0f8a9d4f1c11 -E hash_seed=6a1dbb3e-41c8-4d5b-9a6e-0f8a9d4f1c12 {options} -d tree made.img"
    );
    sh(dir, &script);
    // Into the disk as it is, as a guest writes: the same file all the time.
    std::fs::copy(&made, &disk).unwrap();
    std::fs::remove_file(made).unwrap();
}

pub fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).output().unwrap();
    let hint = "the tools are in the Debian packages e2fsprogs, xfsprogs, ntfs-3g, fdisk, lvm2, cryptsetup-bin, qemu-utils, curl, unzip, tar";
    assert!(output.status.success(), "{script}\n{}{}\n{hint}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn point(hub: &Hub) -> String {
    field(&hub.backup("web", &[]), "backup_id").to_owned()
}

pub fn open(hub: &Hub, point: &str) -> String {
    field(&hub.json(&["mount", point]), "mount_id").to_owned()
}

pub fn sha256(file: &Path) -> String {
    tool("coreutils", "sha256sum", &[path(file)]).split(' ').next().unwrap().to_owned()
}

/// Curl with the admin's token on a path below `/api/v1`.
pub fn curl(hub: &Hub, args: &[&str], below: &str) -> Output {
    let token = std::fs::read_to_string(hub.data_dir.join("admin-token")).unwrap();
    Command::new("curl")
        .args(["-sS", "-H", &format!("Authorization: Bearer {}", token.trim())])
        .args(args)
        .arg(format!("{}/api/v1{below}", hub.url))
        .output()
        .unwrap_or_else(|error| panic!("curl: {error}; install the Debian package curl"))
}

/// The status, the headers in small letters, and the body.
pub fn ask(hub: &Hub, args: &[&str], below: &str) -> (u16, String, Vec<u8>) {
    let output = curl(hub, &[args, &["-D", "/dev/stderr"]].concat(), below);
    let headers = text(&output.stderr).to_lowercase();
    let status = headers.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{below}: {headers}")), headers, output.stdout)
}

pub fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", text(body)))
}

/// The processes that read disks for a hub.
pub fn workers(hub: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_ours = |id: &u32| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        text(&words).contains("__guestfs-worker") && status.contains(&format!("PPid:\t{hub}\n"))
    };
    all.filter(is_ours).collect()
}

#[test]
fn each_point_gives_the_files_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let keep = "mkdir etc; seq 1 200000 > etc/same; ";
    ext4(
        dir,
        64,
        "",
        &format!("{keep} echo one > etc/changes; echo gone > etc/goes; head -c 9000000 /dev/urandom > big"),
    );
    std::fs::copy(dir.join("tree/big"), dir.join("big")).unwrap();
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let first = point(&hub);
    ext4(dir, 64, "", &format!("{keep} echo two > etc/changes; cp ../big big; echo new > etc/new"));
    let second = point(&hub);
    ext4(dir, 64, "", &format!("{keep} echo three > etc/changes; cp ../big big"));
    let third = point(&hub);

    let stored = || {
        let files = tree(&dir.join("repo")).into_iter().filter(|file| file.ends_with(".qcow2"));
        files.map(|file| sha256(&dir.join("repo").join(file))).collect::<Vec<_>>()
    };
    let before = stored();
    // All at once: three file systems with one UUID.
    let mounts: Vec<String> = [&first, &second, &third].map(|point| open(&hub, point)).into();
    let got = dir.join("got");
    std::fs::create_dir(&got).unwrap();
    for (number, (mount, word)) in mounts.iter().zip(["one", "two", "three"]).enumerate() {
        let to = got.join(format!("changes{number}"));
        hub.ok(&["get", mount, "/etc/changes", "--to", path(&to)]);
        assert_eq!(std::fs::read_to_string(&to).unwrap(), format!("{word}\n"));
        let names: Vec<String> = hub.json(&["ls", mount, "/etc"])["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| field(file, "name").to_owned())
            .collect();
        let want: &[&str] =
            [&["changes", "goes", "same"][..], &["changes", "new", "same"], &["changes", "same"]][number];
        assert_eq!(names, want, "point {number}");
        let big = got.join(format!("big{number}"));
        hub.ok(&["get", mount, "/big", "--to", path(&big)]);
        assert_eq!(sha256(&big), sha256(&dir.join("big")));
        let found = hub.json(&["find", mount, "/", "--name", "chan*"]);
        assert_eq!(field(&found["files"][0], "path"), "/etc/changes");
    }
    hub.fails(3, &["get", &mounts[2], "/etc/goes", "--to", path(&got.join("goes"))]);
    hub.fails(3, &["ls", &mounts[0], "/nowhere"]);
    assert!(!got.join("goes").exists());
    // Nothing is replaced unasked, and what is asked is.
    let changes = got.join("changes0");
    hub.fails(1, &["get", &mounts[1], "/etc/changes", "--to", path(&changes)]);
    assert_eq!(std::fs::read_to_string(&changes).unwrap(), "one\n");
    hub.ok(&["get", &mounts[1], "/etc/changes", "--to", path(&changes), "--force"]);
    assert_eq!(std::fs::read_to_string(&changes).unwrap(), "two\n");
    assert!(hub.ok(&["stat", &mounts[0], "/etc/same"]).contains("0644"));
    assert_eq!(hub.json(&["mounts"])["total"], 3);

    // An open point cannot be deleted, and neither can what it stands on.
    let refusal = hub.fails(4, &["backup", "delete", &third, "--yes"]);
    assert!(refusal.contains(&mounts[2]), "{refusal}");
    for mount in &mounts {
        hub.ok(&["umount", mount]);
    }
    hub.fails(3, &["ls", &mounts[0], "/"]);
    assert_eq!(stored(), before, "a look at a chain has changed it");
    assert_eq!(before.len(), 3);
    hub.ok(&["backup", "delete", &third, "--yes"]);

    // Line by line, as a script does.
    let mut shell = Command::new(crate::hub::SENDENSE);
    let token = hub.data_dir.join("admin-token");
    shell.args(["shell", &second]).current_dir(&got).env("SENDENSE_URL", &hub.url).env("SENDENSE_TOKEN_FILE", token);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let script = "cd etc\npwd\nls\nget new\nfind same /\nls ../../..\nexit\n";
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("/etc\n") && said.contains("/etc/same") && said.contains("lost+found"), "{said}");
    assert_eq!(std::fs::read_to_string(got.join("new")).unwrap(), "new\n");
    assert_eq!(hub.json(&["mounts"])["total"], 0, "the shell closed its point");
    assert_eq!(hub.stop(), Some(0));
}

#[test]
fn a_download_is_what_any_client_expects() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(
        dir,
        32,
        "",
        "printf 0123456789 > ten; : > none; head -c 5000000 /dev/urandom > big; ln -s ten link; mkdir folder",
    );
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = point(&hub);
    let mount = open(&hub, &id);
    let ten = format!("/restore/{mount}/download?path=/ten");
    let (status, headers, body) = ask(&hub, &[], &ten);
    assert_eq!((status, &body[..]), (200, &b"0123456789"[..]));
    for header in [
        "content-length: 10",
        "accept-ranges: bytes",
        "content-type: application/octet-stream",
        "x-content-type-options: nosniff",
        "content-disposition: attachment; filename=\"ten\"; filename*=utf-8''ten",
    ] {
        assert!(headers.contains(header), "{header}: {headers}");
    }
    let etag = headers.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().trim().to_owned();
    for (range, status, want) in [
        ("0-0", 206, "0"),
        ("2-4", 206, "234"),
        ("7-", 206, "789"),
        ("-3", 206, "789"),
        ("-100", 206, "0123456789"),
        ("5-999", 206, "56789"),
        ("0-1,4-5", 200, "0123456789"),
        ("5-2", 200, "0123456789"),
    ] {
        let (got, headers, body) = ask(&hub, &["-H", &format!("Range: bytes={range}")], &ten);
        assert_eq!((got, text(&body).as_str()), (status, want), "{range}: {headers}");
        assert_eq!(headers.contains("content-range: bytes "), status == 206);
    }
    for range in ["10-", "10-20", "-0"] {
        let (status, headers, body) = ask(&hub, &["-H", &format!("Range: bytes={range}")], &ten);
        assert_eq!(status, 416, "{range}: {headers}");
        assert!(headers.contains("content-range: bytes */10"), "{headers}");
        assert_eq!(json(&body)["code"], "range_not_satisfiable");
    }
    assert_eq!(ask(&hub, &["-H", &format!("If-None-Match: {etag}")], &ten).0, 304);
    let part =
        |condition: &str| ask(&hub, &["-H", "Range: bytes=1-2", "-H", &format!("If-Range: {condition}")], &ten).0;
    assert_eq!((part(&etag), part("\"other\"")), (206, 200));
    let (status, headers, body) = ask(&hub, &["-I"], &ten);
    assert!(status == 200 && headers.contains("content-length: 10"), "{headers}");
    assert!(text(&body).to_lowercase().starts_with("http/1.1 200") || body.is_empty());
    let (status, headers, body) = ask(&hub, &[], &format!("/restore/{mount}/download?path=/none"));
    assert_eq!((status, body.len()), (200, 0), "{headers}");
    assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/download?path=/link")).2, b"0123456789");
    for (below, status, code) in [
        (format!("/restore/{mount}/download?path=/folder"), 400, "invalid_input"),
        (format!("/restore/{mount}/download?path=/missing"), 404, "file_not_found"),
        (format!("/restore/{mount}/download?path=/../etc/passwd"), 400, "invalid_input"),
        (format!("/restore/{mount}/download?path=/%2e%2e/x"), 400, "invalid_input"),
        (format!("/restore/{mount}/download?path=/a%00b"), 400, "invalid_input"),
        (format!("/restore/{mount}/download?path=ten"), 400, "invalid_input"),
        (format!("/restore/{mount}/download"), 400, "invalid_input"),
        (format!("/restore/{mount}/files?path=/&volume=p9"), 404, "volume_not_found"),
        ("/restore/mnt-none/files".to_owned(), 404, "mount_not_found"),
    ] {
        let (got, _, body) = ask(&hub, &[], &below);
        assert_eq!((got, json(&body)["code"].as_str()), (status, Some(code)), "{below}: {}", text(&body));
    }

    // What broke off goes on where it ended, in another mount of the same point.
    let (partial, whole) = (dir.join("partial"), dir.join("tree/big"));
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&partial, &bytes[..1_234_567]).unwrap();
    let other = open(&hub, &id);
    let resumed = curl(&hub, &["-C", "-", "-o", path(&partial)], &format!("/restore/{other}/download?path=/big"));
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(sha256(&partial), sha256(&whole));
    // The command line does the same by itself.
    let info = hub.json(&["stat", &other, "/big"]);
    let tag: String = field(&info["file"], "etag").chars().filter(char::is_ascii_alphanumeric).collect();
    std::fs::write(dir.join(format!(".sendense-{tag}.part")), &bytes[..4_000_000]).unwrap();
    hub.ok(&["get", &other, "/big", "--to", path(&dir.join("resumed"))]);
    assert_eq!(sha256(&dir.join("resumed")), sha256(&whole));
    assert!(!dir.join(format!(".sendense-{tag}.part")).exists());

    // A client that goes away in the middle costs nothing for long, and the point is as usable as before.
    for _ in 0..20 {
        curl(
            &hub,
            &["--max-time", "0.3", "--limit-rate", "100k", "-o", "/dev/null"],
            &format!("/restore/{mount}/download?path=/big"),
        );
    }
    let patience = Instant::now() + PATIENCE;
    while hub.json(&["mounts"])["mounts"].as_array().unwrap().iter().any(|mount| mount["active_streams"] != 0) {
        assert!(Instant::now() < patience, "aborted downloads are still under way");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(ask(&hub, &[], &ten).0, 200);
}

#[test]
fn a_guests_link_cannot_lead_our_own_entry_of_an_archive_away() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, 16, "", "mkfifo pipe; ln -s stolen SENDENSE-LEFT-OUT.txt; ln -s stolen sendense-left-out.TXT");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mount = open(&hub, &point(&hub));
    for (format, unpack) in [("tar.gz", "tar -C out -xzf all.tar.gz"), ("zip", "unzip -qo all.zip -d out")] {
        let archive = dir.join(format!("all.{format}"));
        let from = format!("/restore/{mount}/download-directory?path=/&format={format}");
        assert!(curl(&hub, &["-o", path(&archive)], &from).status.success());
        let told =
            sh(dir, &format!("rm -rf out; mkdir out; {unpack}; test ! -e out/stolen; cat out/SENDENSE-LEFT-OUT-*.txt"));
        assert!(told.contains("/pipe: a device, pipe or socket"), "{told}");
    }
}

#[test]
fn hostile_names_stay_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = "n".repeat(255);
    let script = format!(
        "mkdir odd; cd odd; printf n > $'new\\nline'; printf b > $'bytes-\\xff\\xfe'; printf e > $'esc\\x1b[2J'; printf l > {long}
         printf p > 'per%41cent+plus'; ln -s /etc/passwd abs; ln -s ../../../../../../etc/shadow rel; ln -s loop loop; ln -s / root
         mkfifo pipe; mknod node b 8 0; truncate -s 10G sparse; printf end >> sparse; printf x | dd of=sparse bs=1 seek=5000000000 conv=notrunc status=none
         mkdir -p ../etc; printf inside > ../etc/passwd; mkdir deep; cd deep; for i in $(seq 200); do mkdir d; cd d; done; printf bottom > file"
    );
    ext4(dir, 64, "", &script);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mount = open(&hub, &point(&hub));
    let listing = hub.json(&["ls", &mount, "/odd"]);
    let files = listing["files"].as_array().unwrap();
    let mut names: Vec<Vec<u8>> = std::fs::read_dir(dir.join("tree/odd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    let listed: Vec<Vec<u8>> = files
        .iter()
        .map(|file| {
            let path = field(file, "path_encoded").strip_prefix("/odd/").unwrap();
            // Percent-decoded by hand, so that the product's own code is not its judge.
            let mut bytes = Vec::new();
            let mut rest = path.as_bytes();
            while let Some((first, after)) = rest.split_first() {
                if *first == b'%' {
                    bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
                    rest = &after[2..];
                } else {
                    bytes.push(*first);
                    rest = after;
                }
            }
            bytes
        })
        .collect();
    assert_eq!(listed, names);
    for file in files.iter().filter(|file| file["type"] == "file" && file["size"].as_u64() < Some(1000)) {
        let encoded = field(file, "path_encoded");
        let (status, headers, body) = ask(&hub, &[], &format!("/restore/{mount}/download?path={encoded}"));
        assert_eq!((status, body.len()), (200, 1), "{encoded}: {headers}");
    }
    // Links lead inside the volume or nowhere; nothing of this machine is reachable.
    let download = |path: &str| ask(&hub, &[], &format!("/restore/{mount}/download?path={path}"));
    assert_eq!(download("/odd/abs").2, b"inside");
    assert_eq!(download("/odd/rel").0, 404);
    assert!(download("/odd/loop").0 >= 400);
    assert_eq!(download("/odd/root/etc/passwd").2, b"inside");
    for special in ["/odd/pipe", "/odd/node"] {
        assert_eq!(download(special).0, 400, "{special}");
    }
    let deep = format!("/odd/deep{}/file", "/d".repeat(200));
    assert_eq!(download(&deep).2, b"bottom");
    let printed = hub.ok(&["ls", &mount, "/odd"]);
    assert!(
        !printed.contains('\u{1b}') && printed.contains("\\x1b") && printed.contains("bytes-\\xff\\xfe"),
        "{printed}"
    );
    // The middle of ten gigabytes of nothing.
    let (status, _, body) =
        ask(&hub, &["-r", "4999999999-5000000001"], &format!("/restore/{mount}/download?path=/odd/sparse"));
    assert_eq!((status, &body[..]), (206, &b"\0x\0"[..]));

    // Archives, as other people's programs see them.
    let archive = dir.join("odd.tar.gz");
    let came =
        curl(&hub, &["-o", path(&archive)], &format!("/restore/{mount}/download-directory?path=/odd&format=tar.gz"));
    assert!(came.status.success(), "{}", text(&came.stderr));
    assert!(archive.metadata().unwrap().len() < 10 << 20, "holes are not packed as zeros");
    sh(
        dir,
        "mkdir out; tar -C out -xzf odd.tar.gz; cmp tree/odd/sparse out/odd/sparse; test $(du -k out/odd/sparse | cut -f1) -lt 2000",
    );
    let told = sh(dir, "cat out/SENDENSE-LEFT-OUT.txt; rm out/SENDENSE-LEFT-OUT.txt");
    for special in ["/odd/pipe", "/odd/node"] {
        assert!(told.contains(&format!("{special}: a device, pipe or socket")), "{told}");
    }
    // Links as links, names as bytes, nothing but pipe and device missing.
    sh(dir, "rm tree/odd/pipe tree/odd/node tree/odd/sparse out/odd/sparse; diff -r --no-dereference tree/odd out/odd");
    let listed = sh(dir, "tar tzvf odd.tar.gz --quoting-style=escape");
    assert!(listed.contains("odd/abs -> /etc/passwd") && listed.contains("bytes-\\377\\376"), "{listed}");

    hub.ok(&["get", &mount, "/odd/deep", "--archive", "zip", "--to", path(&dir.join("deep.zip"))]);
    sh(dir, "unzip -tq deep.zip; unzip -p deep.zip 'deep/*/file' | grep -q bottom");
    hub.ok(&["get", &mount, "/etc", "--to", path(&dir.join("etc.tgz"))]);
    assert_eq!(sh(dir, "tar xzOf etc.tgz etc/passwd"), "inside");
}

#[test]
fn a_file_larger_than_4_gib_goes_into_a_zip() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Data before, at and behind what 32 bits count; what lies between are holes.
    let script = "mkdir folder; cd folder; truncate -s 4400M large; for at in 0 1000000000 4294967290 4500000000; do
        printf 'here at %s' $at | dd of=large bs=1 seek=$at conv=notrunc status=none; done; printf after > zz";
    ext4(dir, 64, "", script);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mount = open(&hub, &point(&hub));
    let archive = dir.join("folder.zip");
    let from = format!("/restore/{mount}/download-directory?path=/folder&format=zip");
    let came = curl(&hub, &["-o", path(&archive)], &from);
    assert!(came.status.success(), "{}", text(&came.stderr));
    // Unzip reads its checksum, and cmp every byte.
    sh(
        dir,
        "unzip -p folder.zip folder/large | cmp - tree/folder/large; test \"$(unzip -p folder.zip folder/zz)\" = after",
    );
    let listed =
        "import zipfile; print(*[(e.filename, e.file_size) for e in zipfile.ZipFile('folder.zip').infolist()])";
    let listed = sh(dir, &format!("python3 -c \"{listed}\""));
    assert_eq!(listed, "('folder/', 0) ('folder/large', 4613734400) ('folder/zz', 5)\n");
}

#[test]
fn a_hundred_thousand_names_come_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // By the kernel: mke2fs looks through all of a folder before it adds a name to it.
    let script = "mkdir -p vms/web at; truncate -s 128M vms/web/disk0.raw; mkfs.ext4 -q -F -N 110000 vms/web/disk0.raw
        mount -o loop vms/web/disk0.raw at; trap 'umount at' EXIT; mkdir at/many; cd at/many; seq -f 'file-%06.0f' 100000 | xargs touch; cd ../..";
    sh(dir, script);
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let mount = open(&hub, &point(&hub));
    let begun = Instant::now();
    let (mut expected, mut offset) = (1, 0);
    while offset < 100_000 {
        let below = format!("/restore/{mount}/files?path=/many&limit=1000&offset={offset}");
        let page = json(&ask(&hub, &[], &below).2);
        assert_eq!(page["total"], 100_000);
        for file in page["files"].as_array().unwrap() {
            assert_eq!(field(file, "name"), format!("file-{expected:06}"));
            expected += 1;
        }
        offset += 1000;
    }
    assert_eq!(expected, 100_001);
    println!("100 pages of 1000 names in {:?}", begun.elapsed());
}

#[test]
fn eight_are_open_and_none_outlives_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, 16, "", "echo hello > hello");
    let mut hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = point(&hub);
    let mounts: Vec<String> = (0..8).map(|_| open(&hub, &id)).collect();
    let (status, headers, body) = ask(
        &hub,
        &["-H", "Content-Type: application/json", "-d", &format!("{{\"backup_id\": \"{id}\"}}")],
        "/restore/mount",
    );
    assert_eq!((status, json(&body)["code"].as_str()), (503, Some("busy")), "{}", text(&body));
    assert!(headers.contains("retry-after:"), "{headers}");
    hub.fails(5, &["mount", &id]);
    let resources = json(&ask(&hub, &[], "/restore/resources").2);
    assert_eq!((&resources["active_mounts"], &resources["available_slots"]), (&8.into(), &0.into()));
    let before = workers(hub.id());
    assert_eq!(before.len(), 8);

    // A process that dies costs its own session and nothing else.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(before[0] as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let mut failed = 0;
    for mount in &mounts {
        let (status, _, body) = ask(&hub, &[], &format!("/restore/{mount}/files?path=/"));
        match status {
            200 => {}
            502 => {
                failed += 1;
                assert_eq!(json(&body)["code"], "reader_failed");
            }
            other => panic!("{other}: {}", text(&body)),
        }
    }
    assert_eq!(failed, 1);
    let all = hub.json(&["mounts"]);
    let states: Vec<&str> = all["mounts"].as_array().unwrap().iter().map(|mount| field(mount, "status")).collect();
    assert_eq!(states.iter().filter(|state| **state == "failed").count(), 1, "{states:?}");
    hub.ok(&["umount", &mounts[1]]);
    open(&hub, &id);

    let left: Vec<PathBuf> = workers(hub.id()).iter().map(|id| PathBuf::from(format!("/proc/{id}"))).collect();
    assert!(left.len() >= 7);
    let groups = |hub: u32| {
        let script = format!("find /sys/fs/cgroup -type d -name 'sendense-reader-{hub}-*' 2>/dev/null || true");
        sh(dir, &script).lines().count()
    };
    let killed = hub.id();
    // Where this machine has control groups to give, each reader is in one of each sort.
    let bounded = field(&hub.json(&["mounts"])["mounts"][1], "confinement").contains("control group");
    assert!(if bounded { groups(killed) >= left.len() } else { groups(killed) == 0 }, "{}", groups(killed));
    hub.kill_9();
    let patience = Instant::now() + PATIENCE;
    while left.iter().any(|process| process.exists()) {
        assert!(Instant::now() < patience, "readers outlive their hub: {left:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // The next hub has nothing open, clears what is left, and opens anew.
    let hub = Hub::start(dir);
    assert_eq!(groups(killed), 0);
    assert_eq!(hub.json(&["mounts"])["total"], 0);
    let mount = open(&hub, &id);
    assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/download?path=/hello")).2, b"hello\n");
    assert_eq!(hub.stop(), Some(0));
}

/// A number of a process that the system keeps under this name, in KiB.
fn kib(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn slow_clients_cost_no_memory_and_closed_points_leave_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ext4(dir, 16, "", "truncate -s 10G endless; echo hello > hello");
    let hub = Hub::start(dir);
    hub.set_up_images(dir);
    let id = point(&hub);
    let mount = open(&hub, &id);
    let before = kib(hub.id(), "VmRSS");
    let endless = format!("/restore/{mount}/download?path=/endless");
    let slow = ["--limit-rate", "500k", "--max-time", "4", "-o", "/dev/null"];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| curl(&hub, &slow, &endless));
        }
        let patience = Instant::now() + PATIENCE;
        while hub.json(&["mounts"])["mounts"][0]["active_streams"] != 8 {
            assert!(Instant::now() < patience, "the downloads do not begin");
        }
        // Somebody who looks around meanwhile does not wait behind them.
        assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/download?path=/hello")).2, b"hello\n");
    });
    // Eight times what waits for a client: 2 MiB ahead of the reader, half of one on the way, and the connection's own.
    let grown = kib(hub.id(), "VmHWM").saturating_sub(before);
    assert!(grown < 8 * 4 * 1024, "the hub grew by {grown} KiB");
    let reader = kib(workers(hub.id())[0], "VmHWM");
    assert!(reader < 64 * 1024, "the reader took {reader} KiB");
    hub.ok(&["umount", &mount]);

    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", hub.id())).unwrap().count();
    let before = open_files();
    let asked = format!("{{\"backup_id\": \"{id}\"}}");
    for _ in 0..100 {
        let opened = ask(&hub, &["-H", "Content-Type: application/json", "-d", &asked], "/restore/mount");
        let mount = field(&json(&opened.2), "mount_id").to_owned();
        assert_eq!(ask(&hub, &[], &format!("/restore/{mount}/download?path=/hello")).0, 200);
        assert_eq!(ask(&hub, &["-X", "DELETE"], &format!("/restore/{mount}")).0, 200);
    }
    assert_eq!(std::fs::read_dir(hub.data_dir.join("run")).map_or(0, Iterator::count), 0);
    let patience = Instant::now() + PATIENCE;
    while open_files() > before + 4 || !workers(hub.id()).is_empty() {
        assert!(Instant::now() < patience, "{} files were open, now {}: {:?}", before, open_files(), workers(hub.id()));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
