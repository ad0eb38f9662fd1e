//! A vCenter of the test's own: govmomi's simulator with disks and change tracking, a proxy that makes trouble, and a VDDK
//! of our own under the real nbdkit and its real vddk plugin.
//!
//! What lives here: starting it, machines, what their guests write. What does not: anything of the source, so that the
//! tests of every crate can use it. They name this file as a module by its path. Everything ends with the test's process.

// Each test program uses its part of it, and none of it runs outside tests.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::panic)]

pub mod proxy;
mod schema;

pub use proxy::{Proxy, Trouble};

use sendense_block::Cancel;
use sendense_vsphere::machine::{NewController, NewDisk, NewMachine};
use sendense_vsphere::{Element, Http, HttpOptions, Login, Ref, Trust, Vim, probe};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub const MIB: u64 = 1 << 20;
pub const USERNAME: &str = "backup@vsphere.local";
pub const PASSWORD: &str = "p&ss<word>";

/// Where the simulator, the library and the plugin are built, once for all tests.
pub fn built() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vsphere-lab");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/vsphere/build.sh");
    let output = Command::new(script).arg(&dir).output().unwrap();
    assert!(output.status.success(), "build the vSphere lab: {}", String::from_utf8_lossy(&output.stderr));
    dir
}

/// A vCenter.
pub struct Lab {
    /// Disks, control files, snapshots.
    pub root: PathBuf,
    /// VDDK's folder.
    pub libdir: PathBuf,
    /// nbdkit's plugin.
    pub plugin: PathBuf,
    pub proxy: Proxy,
    dir: PathBuf,
    server: Child,
    hold: Option<ChildStdin>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(&[], &[])
    }

    /// A lab whose simulator and library are told more: `-esx`; `handles=2`.
    pub fn with(flags: &[&str], library: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let built = built();
        // Sockets may lie below: the path must be short, so not below the target folder.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sdvs-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let (root, libdir) = (dir.join("root"), dir.join("vddk"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(libdir.join("lib64")).unwrap();
        std::os::unix::fs::symlink(built.join("libvixDiskLib.so.8"), libdir.join("lib64/libvixDiskLib.so.8")).unwrap();
        let log = fs::File::create(dir.join("vcsim.log")).unwrap();
        let mut server = Command::new(built.join("vcsim"))
            .args(["-root".as_ref(), root.as_os_str()])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let hold = server.stdin.take();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let proxy = Proxy::start(port.trim().parse().expect("the simulator tells its port"));
        let lab = Self { plugin: built.join("nbdkit-vddk-plugin.so"), root, libdir, proxy, dir, server, hold };
        let thumbprint = probe(&lab.address(), None, &Cancel::new()).unwrap().vddk_thumbprint();
        let mut conf =
            format!("root={}\nuser={USERNAME}\npassword={PASSWORD}\nthumbprint={thumbprint}\n", lab.root.display());
        library.iter().for_each(|line| conf.push_str(&format!("{line}\n")));
        fs::write(lab.libdir.join("lab.conf"), conf).unwrap();
        lab
    }

    /// Where it is.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.proxy.port)
    }

    /// A folder for what a test makes.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A session of its own.
    pub fn vim(&self) -> Vim {
        self.try_vim(PASSWORD).unwrap()
    }

    pub fn try_vim(&self, password: &str) -> sendense_vsphere::Result<Vim> {
        let trust = Trust::Pin(probe(&self.address(), None, &Cancel::new())?.fingerprint());
        let http = Http::new(&HttpOptions { address: self.address(), trust, proxy: None })?;
        let login = Login { username: USERNAME.into(), password: password.into() };
        Vim::connect(Arc::new(http), login, &Cancel::new())
    }

    /// Leaves word for simulator and library.
    pub fn control(&self, name: &str, value: &str) {
        fs::write(self.root.join("control").join(name), value).unwrap();
    }

    /// Takes it back.
    pub fn uncontrol(&self, name: &str) {
        fs::remove_file(self.root.join("control").join(name)).unwrap();
    }

    /// A machine with disks of those sizes, powered off.
    pub fn machine(&self, vim: &Vim, name: &str, disks: &[u64]) -> Guest<'_> {
        let cancel = &Cancel::new();
        let one = |of: &Ref, property: &str| vim.named(of, property, cancel).unwrap().remove(0);
        let datacenter = one(vim.root_folder(), "childEntity");
        let compute = one(&one(&datacenter, "hostFolder"), "childEntity");
        let new = NewMachine {
            name: name.into(),
            uuid: None,
            instance_uuid: None,
            datastore: "LocalDS_0".into(),
            hardware_version: Some(13),
            guest_id: "otherGuest".into(),
            firmware: None,
            cpu_count: 2,
            cores_per_socket: None,
            memory_mb: 256,
            controllers: vec![NewController { key: 1000, kind: "ParaVirtualSCSIController".into(), bus_number: 0 }],
            disks: disks
                .iter()
                .zip(0..)
                .map(|(size, unit)| NewDisk {
                    key: -1 - unit,
                    controller_key: 1000,
                    unit_number: unit,
                    datastore: "LocalDS_0".into(),
                    capacity_bytes: *size,
                })
                .collect(),
            cards: Vec::new(),
            annotation: String::new(),
        };
        let (folder, pool) = (one(&datacenter, "vmFolder"), one(&compute, "resourcePool"));
        let host = one(&compute, "host");
        let machine = vim.create_machine(&folder, &pool, Some(&host), &new, cancel).unwrap();
        Guest { lab: self, machine }
    }

    /// Runs a script of this folder with VMware's own client library; gives what it prints.
    pub fn python(&self, script: &str, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/vsphere").join(script);
        let output = Command::new("/usr/bin/python3")
            .arg(script)
            .args(["127.0.0.1", &self.proxy.port.to_string(), USERNAME, PASSWORD])
            .args(arguments)
            .output()
            .expect("install python3");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "install python3-pyvmomi, or: {complaint}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Snapshots that are there, in any machine.
    pub fn snapshots(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(".snap")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Lab {
    /// Disks that are open now, each a session of the host.
    pub fn sessions(&self) -> usize {
        let marks = fs::read_dir(self.root.join(".handles")).into_iter().flatten().flatten();
        let alive = |name: &str| name.split_once('-').is_some_and(|(pid, _)| Path::new("/proc").join(pid).exists());
        marks.filter(|mark| alive(&mark.file_name().to_string_lossy())).count()
    }

    /// Processes of nbdkit that serve disks of this vCenter.
    pub fn nbdkits(&self) -> usize {
        let port = format!("port={}", self.proxy.port);
        let serves = |line: Vec<u8>| {
            let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            arguments.first().is_some_and(|program| program.ends_with(b"nbdkit"))
                && arguments.contains(&port.as_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(|process| fs::read(process.path().join("cmdline")).is_ok_and(serves)).count()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The simulator ends when its stdin does.
        self.hold = None;
        let _ = self.server.wait();
        if !std::thread::panicking() {
            assert_eq!(self.proxy.misfits(), Vec::<String>::new(), "a real server would not read these requests");
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A machine, seen from inside.
pub struct Guest<'lab> {
    pub lab: &'lab Lab,
    pub machine: Ref,
}

impl Guest<'_> {
    /// The file that holds what the guest sees on a disk now.
    pub fn file(&self, vim: &Vim, disk: usize) -> PathBuf {
        let found = vim.machine(&self.machine, &Cancel::new()).unwrap();
        let name = found.devices.disks[disk].backing.file_name.clone().unwrap();
        let (store, path) = name.strip_prefix('[').unwrap().split_once("] ").unwrap();
        self.lab.root.join(store).join(path)
    }

    /// The guest writes.
    pub fn write(&self, vim: &Vim, disk: usize, at: u64, bytes: &[u8]) {
        write(&self.file(vim, disk), at, bytes);
    }
}

/// A guest writes to the file behind its disk.
pub fn write(file: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

impl Guest<'_> {
    /// An administrator makes a disk larger.
    pub fn grow(&self, vim: &Vim, disk: usize, bytes: u64) {
        let key = vim.machine(&self.machine, &Cancel::new()).unwrap().devices.disks[disk].key;
        self.administrator(vim, &["grow", &key.to_string(), &bytes.to_string()]);
    }

    /// An administrator adds a disk.
    pub fn add(&self, vim: &Vim, unit: u32, bytes: u64) {
        self.administrator(vim, &["add", &unit.to_string(), &bytes.to_string()]);
    }

    /// An administrator adds a disk of another sort: `independent_persistent`, or `physical` for a raw device.
    pub fn add_sort(&self, vim: &Vim, unit: u32, bytes: u64, sort: &str) {
        self.administrator(vim, &["add", &unit.to_string(), &bytes.to_string(), sort]);
    }

    /// An administrator makes a template of the machine, or a machine of the template.
    pub fn make_template(&self, vim: &Vim, template: bool) {
        self.administrator(vim, &[if template { "template" } else { "machine" }]);
    }

    /// An administrator takes a disk away, with its file.
    pub fn remove(&self, vim: &Vim, disk: usize) {
        let key = vim.machine(&self.machine, &Cancel::new()).unwrap().devices.disks[disk].key;
        self.administrator(vim, &["remove", &key.to_string()]);
    }

    fn administrator(&self, vim: &Vim, what: &[&str]) {
        let name = vim.name_of(&self.machine, &Cancel::new()).unwrap();
        self.lab.python("administrator.py", &[&[name.as_str()], what].concat());
    }
}
