//! A domain of the lab without an operating system; the test is its guest.

use super::{Lab, until};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A disk of a domain in the lab.
#[derive(Clone)]
pub struct LabDisk {
    pub target: &'static str,
    pub format: &'static str,
    pub path: PathBuf,
}

/// A domain. Dropping it takes it away.
pub struct Guest<'a> {
    pub lab: &'a Lab,
    pub name: String,
    pub uuid: String,
    /// What each disk holds, by target.
    pub model: BTreeMap<&'static str, Vec<u8>>,
    pub disks: Vec<LabDisk>,
    /// libvirt's names for the running domain's disks, by target.
    aliases: Mutex<BTreeMap<String, String>>,
}

impl<'a> Guest<'a> {
    /// Defines a domain with disks of these targets, formats and sizes.
    pub fn define(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)]) -> Self {
        Self::define_with(lab, disks, "", "")
    }

    pub fn define_with(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)], devices: &str, tail: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("guest{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let model = disks.iter().map(|(target, _, size)| (*target, vec![0; *size as usize])).collect();
        let disks: Vec<LabDisk> = disks
            .iter()
            .map(|(target, format, size)| LabDisk {
                target,
                format,
                path: lab.image(&format!("{name}-{target}.{format}"), format, *size),
            })
            .collect();
        let xml: String = disks.iter().map(disk_xml).collect();
        let document = format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{name}</name>
             <title>lab/{name}</title><memory unit='MiB'>64</memory><vcpu>1</vcpu>
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
             <devices>{xml}{devices}<controller type='usb' model='none'/><memballoon model='none'/></devices>{tail}</domain>"
        );
        let file = lab.dir.join(format!("{name}.xml"));
        std::fs::write(&file, document).unwrap();
        lab.virsh(&["define", file.to_str().unwrap()]);
        let uuid = lab.virsh(&["domuuid", &name]).trim().to_owned();
        Self { lab, name, uuid, model, disks, aliases: Mutex::default() }
    }

    /// Defines and starts one.
    pub fn start_new(lab: &'a Lab, disks: &[(&'static str, &'static str, u64)]) -> Self {
        let guest = Self::define(lab, disks);
        guest.start();
        guest
    }

    pub fn start(&self) {
        self.aliases.lock().unwrap().clear();
        self.lab.virsh(&["start", &self.name]);
    }

    /// Ends QEMU in order, so that bitmaps are stored.
    pub fn power_off(&self) {
        self.lab.virsh(&["destroy", "--graceful", &self.name]);
    }

    pub fn qemu_pid(&self) -> i32 {
        let file = self.lab.dir.join("run/libvirt/qemu/run").join(format!("{}.pid", self.name));
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    pub fn kill_qemu(&self) {
        let pid = rustix::process::Pid::from_raw(self.qemu_pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until("the domain is seen to be off", || {
            self.lab.virsh(&["domstate", &self.name]).contains("shut off").then_some(())
        });
    }

    #[track_caller]
    fn qemu_io(&self, target: &str, command: &str) {
        let answer = self.try_qemu_io(target, command);
        assert!(!answer.contains("failed") && !answer.contains("rror"), "qemu-io {command}: {answer}");
    }

    pub fn try_qemu_io(&self, target: &str, command: &str) -> String {
        let alias = self.alias(target);
        let line = format!("qemu-io -d /machine/peripheral/{alias}/virtio-backend \"{command}\"");
        self.lab.virsh(&["qemu-monitor-command", &self.uuid, "--hmp", &line])
    }

    fn alias(&self, target: &str) -> String {
        let mut aliases = self.aliases.lock().unwrap();
        let find = || {
            // Virtio disks are numbered in the order of their targets.
            let document = self.lab.virsh(&["dumpxml", &self.uuid]);
            let at = document.find(&format!("<target dev='{target}'")).unwrap();
            document[at..].split("<alias name='").nth(1).unwrap().split('\'').next().unwrap().to_owned()
        };
        aliases.entry(target.to_owned()).or_insert_with(find).clone()
    }

    pub fn write(&mut self, target: &'static str, pattern: u8, at: u64, len: u64) {
        self.qemu_io(target, &format!("write -P {pattern} {at} {len}"));
        self.model.get_mut(target).unwrap()[at as usize..(at + len) as usize].fill(pattern);
    }

    /// Zeros, by a flagged write or by a trim of an unmapping disk (which reads as zeros in QCOW2 without a backing file).
    pub fn zero(&mut self, target: &'static str, at: u64, len: u64, unmap: bool) {
        self.qemu_io(target, &format!("write -z {} {at} {len}", if unmap { "-u" } else { "" }));
        self.model.get_mut(target).unwrap()[at as usize..(at + len) as usize].fill(0);
    }

    /// Trims whole clusters, which reads as zeros afterwards.
    pub fn trim(&mut self, target: &'static str, at: u64, len: u64) {
        self.qemu_io(target, &format!("discard {at} {len}"));
        self.model.get_mut(target).unwrap()[at as usize..(at + len) as usize].fill(0);
    }

    pub fn checkpoints(&self) -> Vec<String> {
        self.lab.virsh(&["checkpoint-list", &self.uuid, "--name"]).split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.lab.try_virsh(&["destroy", &self.uuid]);
        let _ = self.lab.try_virsh(&["undefine", &self.uuid, "--checkpoints-metadata", "--snapshots-metadata"]);
    }
}

pub fn disk_xml(disk: &LabDisk) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/><source file='{}'/>
         <target dev='{}' bus='virtio'/></disk>",
        disk.format,
        disk.path.display(),
        disk.target
    )
}
