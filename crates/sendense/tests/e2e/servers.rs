//! Servers of other people that a test starts for itself: databases and NBD servers. Each ends with the value that stands for
//! it, and with the test's thread if that dies first.

use crate::hub::{PATIENCE, path, text};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server, and the folder that is its own.
pub struct Server {
    child: Child,
    home: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts a program and waits until `is_ready`. `setpriv` lets the kernel end it when the test dies without a word, and
    /// makes it somebody else where the program wants that.
    fn start(
        (program, package): (&str, &str),
        as_whom: &[&str],
        args: &[&str],
        log: &Path,
        is_ready: impl Fn() -> bool,
    ) -> Self {
        let program = find(program, package);
        let output = std::fs::File::create(log).unwrap();
        let child = Command::new("setpriv")
            .args(as_whom)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv: {error}; install the Debian package util-linux"));
        let mut server = Self { child, home: None };
        let patience = Instant::now() + PATIENCE;
        while !is_ready() {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < patience, "{} does not serve:\n{}", program.display(), log());
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The password of the databases' user: one that must be encoded in a URL.
pub const PASSWORD: &str = "s3cret/p@ss";

/// Several servers at once on a small machine ask the kernel for more asynchronous I/O than it grants.
const PLAIN_IO: &str = "--innodb-use-native-aio=0";

/// A MariaDB in `dir`, empty at first and kept from then on, and the URL of its database, as an operator would write it.
pub fn mariadb(dir: &Path) -> (Server, String) {
    let (data, socket, init) = (dir.join("mariadb"), dir.join("mariadb.sock"), dir.join("mariadb.sql"));
    let statements = format!(
        "CREATE DATABASE IF NOT EXISTS sendense;\nCREATE USER IF NOT EXISTS 'sendense'@'localhost' IDENTIFIED BY '{PASSWORD}';\n\
         GRANT ALL ON sendense.* TO 'sendense'@'localhost';\n"
    );
    std::fs::write(&init, statements).unwrap();
    let datadir = format!("--datadir={}", path(&data));
    // A folder of its own for temporary tables: a server that starts removes all that it finds in the common one, those of another
    // server's installation among them.
    let scratch = dir.join("mariadb.tmp");
    std::fs::create_dir_all(&scratch).unwrap();
    let tmpdir = format!("--tmpdir={}", path(&scratch));
    if !data.exists() {
        let install = find("mariadb-install-db", "mariadb-server");
        let installed = Command::new(install)
            .args([
                "--no-defaults",
                "--user=root",
                "--auth-root-authentication-method=normal",
                PLAIN_IO,
                &datadir,
                &tmpdir,
            ])
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}{}", text(&installed.stdout), text(&installed.stderr));
    }
    let (at, from) = (format!("--socket={}", path(&socket)), format!("--init-file={}", path(&init)));
    let args = [
        "--no-defaults",
        "--user=root",
        &datadir,
        &tmpdir,
        &at,
        &from,
        "--skip-networking",
        "--innodb-buffer-pool-size=32M",
        PLAIN_IO,
    ];
    let ping = find("mariadb-admin", "mariadb-client");
    let is_ready = || {
        let status = Command::new(&ping).args(["--no-defaults", &at, "ping"]).output().unwrap().status;
        status.success()
    };
    let server = Server::start(("mariadbd", "mariadb-server"), &[], &args, &dir.join("mariadb.log"), is_ready);
    (server, format!("mysql://sendense:{}@localhost/sendense?socket={}", encoded(PASSWORD), path(&socket)))
}

/// An empty PostgreSQL and the URL of its database.
pub fn postgres(dir: &Path) -> (Server, String) {
    // It refuses to run as root, and whom it runs as must be able to enter its folder.
    const NOBODY: [&str; 2] = ["--reuid=nobody", "--clear-groups"];
    let home = tempfile::Builder::new().prefix("pg-").tempdir_in("/tmp").unwrap();
    let (data, at) = (home.path().join("data"), path(home.path()).to_owned());
    let chown = Command::new("chown").args(["nobody", &at]).status().unwrap();
    assert!(chown.success(), "this test starts PostgreSQL as nobody and must run as root");
    let made = Command::new("setpriv")
        .args(NOBODY)
        .arg("--")
        .arg(find("initdb", "postgresql"))
        .args(["-D", path(&data), "-U", "postgres", "-A", "trust", "-E", "UTF8"])
        .output()
        .unwrap_or_else(|error| panic!("setpriv: {error}; install the Debian package util-linux"));
    assert!(made.status.success(), "{}{}", text(&made.stdout), text(&made.stderr));
    let args = ["-D", path(&data), "-k", &at, "-c", "listen_addresses=", "-c", "shared_buffers=32MB"];
    let ready = find("pg_isready", "postgresql-client");
    let is_ready = || Command::new(&ready).args(["-q", "-h", &at]).status().unwrap().success();
    let log = dir.join("postgres.log");
    let mut server = Server::start(("postgres", "postgresql"), &NOBODY, &args, &log, is_ready);
    server.home = Some(home);
    (server, format!("postgres://postgres@localhost/postgres?host={at}&sslmode=disable"))
}

/// An NBD server of 64 MiB that answers no request within the life of a test; gives its URI. One thread serves a client: with
/// several, nbdkit 1.32 may abort when a client goes away with requests in flight (`raw_send_socket` asserts that its socket is open).
pub fn stuck_nbd(dir: &Path, name: &str, requests: &str) -> (Server, String) {
    delayed_nbd(dir, name, &format!("{requests}=3600"))
}

/// The same that takes this long (`50ms`) for each read.
pub fn slow_nbd(dir: &Path, name: &str, each: &str) -> (Server, String) {
    delayed_nbd(dir, name, &format!("rdelay={each}"))
}

fn delayed_nbd(dir: &Path, name: &str, delay: &str) -> (Server, String) {
    let socket = dir.join(format!("{name}.sock"));
    let plugin: &[&str] = if delay.starts_with("rdelay") { &["pattern", "64M"] } else { &["memory", "64M"] };
    let args = [&["-f", "-t", "1", "-U", path(&socket), "--filter=delay"], plugin, &[delay]].concat();
    let server = Server::start(("nbdkit", "nbdkit"), &[], &args, &dir.join(format!("{name}.log")), || listens(&socket));
    (server, format!("nbd+unix:///?socket={}", path(&socket)))
}

/// Whether somebody listens at a socket, without connecting. It is there before that: whoever connects between is refused.
pub fn listens(socket: &Path) -> bool {
    const ACCEPTS: &str = "00010000"; // __SO_ACCEPTCON in proc_net_unix(5)'s flags
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(3) == Some(&ACCEPTS) && words.last() == Some(&path(socket))
    })
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Finds a program, also where Debian keeps servers out of the path.
fn find(name: &str, package: &str) -> PathBuf {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: install the Debian package {package}"))
}
