//! The account of a vCenter: its password is asked for, or comes from a file or the environment, and is nowhere to be read.

use crate::hub::{Hub, PATIENCE, cli, holders, path, text};
use crate::terminal::Terminal;
use crate::vsphere::lab::{Lab, PASSWORD, USERNAME};
use sendense_block::Cancel;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// The command line of every process that names the address, and its terminal.
fn processes(address: &str) -> Vec<(String, Option<PathBuf>)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let line = |process: PathBuf| {
        let line = text(&std::fs::read(process.join("cmdline")).ok()?).replace('\0', " ");
        line.contains(address).then(|| (line, std::fs::read_link(process.join("fd/0")).ok()))
    };
    entries.filter_map(line).collect()
}

#[test]
fn a_password_is_asked_for_or_read_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let lab = Lab::new();
    let hub = Hub::start_talkative(dir);
    let address = lab.address();
    let fingerprint = sendense_vsphere::probe(&address, None, &Cancel::new()).unwrap().fingerprint().to_string();
    let names = |name: &str| format!("source add vsphere --name {name} --address {address} --username {USERNAME}");

    // A person is asked for it, and then whether the certificate is the right one.
    let mut terminal = Terminal::run(&hub, 200, &names("asked"));
    terminal.shows("the question", |screen| screen.contains(&format!("password of {USERNAME}: ")));
    // What is typed before the terminal is told to be silent would be seen.
    let patience = Instant::now() + PATIENCE;
    let is_silent = |tty: &PathBuf| {
        let told = Command::new("stty").arg("--file").arg(tty).arg("--all").output().unwrap();
        text(&told.stdout).contains(" -echo ")
    };
    let asks = |(line, tty): &(String, Option<PathBuf>)| {
        line.starts_with(crate::hub::SENDENSE) && tty.as_ref().is_some_and(is_silent)
    };
    while !processes(&address).iter().any(asks) {
        assert!(Instant::now() < patience, "the terminal shows what is typed: {:?}", processes(&address));
        std::thread::sleep(Duration::from_millis(5));
    }
    terminal.types(&format!("{PASSWORD}\n"));
    terminal
        .shows("the certificate", |screen| screen.contains(&fingerprint) && screen.contains("administrator names?"));
    assert!(processes(&address).iter().all(|(line, _)| !line.contains(PASSWORD)), "it is in the process list");
    terminal.types("y\n");
    assert_eq!(terminal.ended(), Some(0), "{}", terminal.screen());
    assert!(!terminal.screen().contains(PASSWORD), "{}", terminal.screen());

    // Scripts: from the environment, from a file, from stdin. There is no argument for it.
    let token = hub.data_dir.join("admin-token");
    let file = dir.join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let script = |name: &str, more: &[&str], environment: Option<&str>| {
        let mut command = cli(&hub.url, Some(&token));
        command.args(names(name).split(' ')).args(["--thumbprint", &fingerprint]).args(more);
        environment.map(|password| command.env("SENDENSE_SOURCE_PASSWORD", password));
        command.output().unwrap()
    };
    assert!(script("environment", &[], Some(PASSWORD)).status.success());
    assert!(script("file", &["--password-file", path(&file)], None).status.success());
    let argument = script("argument", &["--password", PASSWORD], None);
    assert_eq!((argument.status.code(), text(&argument.stderr).contains("unexpected argument")), (Some(2), true));
    let nobody = script("nobody", &[], None);
    assert!(!nobody.status.success() && text(&nobody.stderr).contains("--password-file"), "{}", text(&nobody.stderr));
    let logins = lab.proxy.count("Login");
    for name in ["asked", "environment", "file"] {
        hub.ok(&["source", "test", name]);
    }
    assert_eq!(lab.proxy.count("Login") - logins, 3);
    assert!(script("wrong", &[], Some("not the password")).status.success(), "nothing is asked of the server yet");
    assert!(hub.fails(1, &["source", "test", "wrong"]).contains("InvalidLogin"));
    assert_eq!(holders(&hub.data_dir, PASSWORD), [""; 0], "it is kept in clear");
    assert!(!hub.log().contains(PASSWORD), "it is in the log");
}
