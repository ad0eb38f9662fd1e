//! The databases under test: SQLite files, and one MariaDB and one PostgreSQL server that this process starts itself.
//!
//! A server runs below a shell that waits for the end of its standard input, which this process holds open and never writes
//! to. However this process ends, the input ends with it, and the shell stops the server and removes its folder: nothing is
//! left behind, not even by `kill -9`.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use sendense_catalog::Catalog;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to answer first. Loaded machines with two cores need 5 to 20 s.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A fresh, empty database.
pub struct TestDb {
    url: String,
    /// Removed with this value.
    folder: Option<tempfile::TempDir>,
}

impl TestDb {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let url = format!("sqlite://{}/catalog.db?mode=rwc", folder.path().display());
        Self { url, folder: Some(folder) }
    }

    pub async fn mariadb() -> Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(Server::mariadb);
        let socket = server.folder.join("s");
        let url = |database: &str| format!("mysql://root@localhost/{database}?socket={}", socket.display());
        let name = next_name();
        wait_until_it_answers(&url(""), "mariadbd", server).await;
        execute(&url(""), &format!("CREATE DATABASE {name}")).await;
        Self { url: url(&name), folder: None }
    }

    pub async fn postgres() -> Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        let server = SERVER.get_or_init(Server::postgres);
        let url = |database: &str| {
            format!("postgres://postgres@localhost/{database}?host={}&sslmode=disable", server.folder.display())
        };
        let name = next_name();
        wait_until_it_answers(&url("postgres"), "postgres", server).await;
        execute(&url("postgres"), &format!("CREATE DATABASE {name}")).await;
        Self { url: url(&name), folder: None }
    }

    /// Opens the catalog, as a hub would.
    pub async fn open(&self) -> Catalog {
        Catalog::open(&self.url).await.expect("open the catalog")
    }

    /// SQLite: a copy of the files while they are in use, which is what a killed process leaves. `None` for a server, where
    /// what was committed lies with the server.
    pub fn as_a_crash_leaves_it(&self) -> Option<Self> {
        let from = self.folder.as_ref()?;
        let folder = tempfile::tempdir().expect("make a folder");
        for file in std::fs::read_dir(from.path()).expect("list the files").flatten() {
            // The shared memory is an index that dies with the machine; without it the log is read anew.
            if file.path().extension().is_none_or(|extension| extension != "db-shm") {
                std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("copy a file");
            }
        }
        let url = format!("sqlite://{}/catalog.db?mode=rw", folder.path().display());
        Some(Self { url, folder: Some(folder) })
    }

    /// Runs a statement as a person at the SQL prompt would.
    pub async fn execute(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

fn next_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("case_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection behind the catalog's back.
pub async fn raw(url: &str) -> DatabaseConnection {
    Database::connect(options(url)).await.expect("connect to the server")
}

fn options(url: &str) -> ConnectOptions {
    let mut options = ConnectOptions::new(url);
    // Without a look through idle connections, as in the catalog.
    options.max_connections(1).sqlx_logging(false).idle_timeout(None).max_lifetime(None);
    options
}

async fn execute(url: &str, sql: &str) {
    let connection = raw(url).await;
    connection.execute_unprepared(sql).await.expect(sql);
    connection.close().await.expect("close the connection");
}

async fn wait_until_it_answers(url: &str, what: &str, server: &Server) {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let mut options = options(url);
        options.acquire_timeout(Duration::from_secs(2));
        match Database::connect(options).await {
            Ok(connection) => {
                connection.close().await.expect("close the connection");
                return;
            }
            Err(error) if Instant::now() < deadline && !server.folder.join("failed").exists() => {
                // A socket that is not there yet gives no event to wait for; the deadline bounds the polling.
                tokio::time::sleep(Duration::from_millis(100)).await;
                drop(error);
            }
            Err(error) => {
                let log = std::fs::read_to_string(server.folder.join("log")).unwrap_or_default();
                panic!("{what} does not answer: {error}\n{log}");
            }
        }
    }
}

/// A server of this process.
struct Server {
    folder: PathBuf,
    /// Held for its standard input.
    _shell: Child,
}

impl Server {
    fn mariadb() -> Self {
        let install = tool("mariadb-install-db", "mariadb-server");
        let server = tool("mariadbd", "mariadb-server");
        let folder = newfolder();
        // Durability is not what is tested, and the folder dies with the process. Temporary tables get a folder of their own: a server
        // that starts removes all that it finds in the common one, those of another server's installation among them.
        let user = if is_root() { "--user=root" } else { "" };
        let script = format!(
            "mkdir {0}/t && {install} --no-defaults {user} --datadir={0}/d --tmpdir={0}/t --auth-root-authentication-method=normal >{0}/log 2>&1 && \
             {server} --no-defaults {user} --datadir={0}/d --tmpdir={0}/t --socket={0}/s --pid-file={0}/pid --skip-networking \
             --innodb-flush-log-at-trx-commit=0 --innodb-use-native-aio=0 --innodb-buffer-pool-size=64M --max-connections=500 >>{0}/log 2>&1",
            folder.display()
        );
        Self::start(folder, &script)
    }

    fn postgres() -> Self {
        let init = tool("initdb", "postgresql");
        let server = tool("postgres", "postgresql");
        let folder = newfolder();
        // PostgreSQL refuses to run as root.
        let as_user = if is_root() {
            let chown = Command::new("chown").arg("nobody").arg(&folder).status().expect("run chown");
            assert!(chown.success(), "chown failed");
            format!("{} --reuid=nobody --clear-groups ", tool("setpriv", "util-linux"))
        } else {
            String::new()
        };
        let script = format!(
            "{as_user}{init} -D {0}/d -U postgres -A trust -E UTF8 --locale=C --no-sync >{0}/log 2>&1 && \
             {as_user}{server} -D {0}/d -k {0} -c listen_addresses= -c fsync=off -c max_connections=500 \
             -c shared_buffers=64MB >>{0}/log 2>&1",
            folder.display()
        );
        Self::start(folder, &script)
    }

    fn start(folder: PathBuf, script: &str) -> Self {
        // The server gets /dev/null, so that only the shell reads our input. `setsid` keeps a ^C at the terminal from
        // ending the shell before it has stopped the server.
        let whole = format!(
            "( exec </dev/null; {script} || touch {0}/failed ) & \
             cat >/dev/null; \
             for pid in $(cat {0}/pid 2>/dev/null; head -n1 {0}/d/postmaster.pid 2>/dev/null); do kill -TERM $pid; done; \
             wait; rm -rf {0}",
            folder.display()
        );
        let shell = Command::new("setsid")
            .args(["sh", "-c", &whole])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .expect("start a shell (setsid is in the Debian package util-linux)");
        Self { folder, _shell: shell }
    }
}

/// A short folder: the path of a unix socket ends at 107 bytes.
fn newfolder() -> PathBuf {
    tempfile::Builder::new().prefix("cat-").tempdir_in("/tmp").expect("make a folder").keep()
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("run id");
    id.stdout.trim_ascii() == b"0"
}

/// Finds a program, also where Debian keeps servers out of the path.
fn tool(name: &str, package: &str) -> String {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.iter().map(|folder| folder.join(name)).find(|path: &PathBuf| Path::is_file(path));
    match found {
        Some(path) => path.display().to_string(),
        None => panic!("{name} is missing: install the Debian package {package}"),
    }
}
