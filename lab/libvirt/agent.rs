//! A guest agent without a guest: the test plays both the guest's driver, which opens the channel's port, and the agent.
//!
//! libvirt talks to an agent only after the guest's driver has opened the port. There is no guest, so the test drives the
//! virtio-serial device itself through QEMU's qtest socket (port and memory accesses), with the legacy interface of the
//! Virtual I/O Device specification 1.0 (section 4.1.4.8, "Legacy Interfaces: PCI", and 5.3.6, multiport control messages). The agent
//! then listens where QEMU and libvirt both connect to, and answers libvirt.

use super::guest::Guest;
use super::{Lab, MIB, until};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What happened to the guest's file systems, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Frozen,
    Thawed,
}

/// How the agent behaves.
#[derive(Debug, Default)]
pub struct Manners {
    /// It freezes and then keeps silent for so long (milliseconds).
    pub freeze_delay_ms: AtomicU32,
    /// It refuses to freeze.
    pub refuses: AtomicBool,
}

/// The agent.
#[derive(Default)]
pub struct Agent {
    pub manners: Manners,
    events: Mutex<Vec<(Event, Instant)>>,
    frozen: AtomicBool,
}

impl Agent {
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().iter().map(|(event, _)| *event).collect()
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// How long the last freeze lasted, once it is over.
    pub fn frozen_for(&self) -> Option<Duration> {
        let events = self.events.lock().unwrap();
        let frozen = events.iter().rev().find(|(event, _)| *event == Event::Frozen)?.1;
        let thawed = events.iter().find(|(event, at)| *event == Event::Thawed && *at >= frozen)?.1;
        Some(thawed - frozen)
    }

    fn set(&self, frozen: bool) -> u64 {
        let changed = self.frozen.swap(frozen, Ordering::SeqCst) != frozen;
        if changed {
            self.events.lock().unwrap().push((if frozen { Event::Frozen } else { Event::Thawed }, Instant::now()));
        }
        u64::from(changed) * 2
    }

    fn answer(&self, request: &serde_json::Value) -> Option<(bool, serde_json::Value)> {
        let count = |count| Some((false, serde_json::json!({ "return": count })));
        match request["execute"].as_str()? {
            "guest-sync" => Some((false, serde_json::json!({"return": request["arguments"]["id"]}))),
            "guest-sync-delimited" => Some((true, serde_json::json!({"return": request["arguments"]["id"]}))),
            "guest-fsfreeze-freeze" if self.manners.refuses.load(Ordering::SeqCst) => {
                let error = serde_json::json!({"class": "GenericError", "desc": "guest-fsfreeze-freeze is disabled"});
                Some((false, serde_json::json!({ "error": error })))
            }
            "guest-fsfreeze-freeze" => {
                let changed = self.set(true);
                let delay = self.manners.freeze_delay_ms.load(Ordering::SeqCst);
                // Not a synchronisation: this is an agent that is slow.
                std::thread::sleep(Duration::from_millis(delay.into()));
                count(changed)
            }
            "guest-fsfreeze-thaw" => count(self.set(false)),
            other => {
                let error = serde_json::json!({"class": "CommandNotFound", "desc": format!("no {other} here")});
                Some((false, serde_json::json!({ "error": error })))
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        let mut writer = stream.try_clone().unwrap();
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            // A delimiter may stand before a request.
            let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
            let Ok(request) = serde_json::from_slice(&text) else { continue };
            let Some((delimited, answer)) = self.answer(&request) else { continue };
            let mut bytes = if delimited { vec![0xff] } else { vec![] };
            bytes.extend(answer.to_string().bytes());
            bytes.push(b'\n');
            if writer.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}

/// Starts a domain whose agent is connected.
pub fn start_with_agent(lab: &Lab) -> (Guest<'_>, Arc<Agent>) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (socket, qtest) = (lab.dir.join(format!("ga{number}")), lab.dir.join(format!("qt{number}")));
    let agent = Arc::new(Agent::default());
    let listener = UnixListener::bind(&socket).unwrap();
    lab.give(&socket);
    let served = agent.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let agent = served.clone();
            std::thread::spawn(move || agent.serve(stream));
        }
    });
    let devices = format!(
        "<channel type='unix'><source mode='connect' path='{}'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        socket.display()
    );
    let tail = format!(
        "<qemu:commandline><qemu:arg value='-qtest'/><qemu:arg value='unix:{},server=on,wait=off'/>
         <qemu:arg value='-qtest-log'/><qemu:arg value='none'/></qemu:commandline>",
        qtest.display()
    );
    let guest = Guest::define_with(lab, &[("vda", "qcow2", 8 * MIB)], &devices, &tail);
    guest.start();
    let mut driver = Driver::connect(qtest);
    // The firmware configures the devices first, and it may undo what is done too early. It stands still meanwhile: it and the driver
    // would take the register that says of which device is spoken from each other.
    until("the agent's channel is connected", || {
        lab.virsh(&["suspend", &guest.uuid]);
        driver.open_port(1);
        lab.virsh(&["resume", &guest.uuid]);
        lab.virsh(&["dumpxml", &guest.uuid]).contains("state='connected'").then_some(())
    });
    until("libvirt has connected to the agent", || {
        lab.try_virsh(&["qemu-agent-command", &guest.uuid, r#"{"execute":"guest-fsfreeze-thaw"}"#]).ok()
    });
    assert_eq!(agent.events(), []);
    (guest, agent)
}

/// The guest's driver of the virtio-serial device.
struct Driver {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// Guest memory that the firmware does not use.
const QUEUE: u64 = 32 * MIB;
const MESSAGES: u64 = 33 * MIB;
/// The queue on which the driver sends control messages.
const CONTROL_QUEUE: u64 = 3;

impl Driver {
    fn connect(path: PathBuf) -> Self {
        let writer = until("qtest's socket", || UnixStream::connect(&path).ok());
        Self { reader: BufReader::new(writer.try_clone().unwrap()), writer }
    }

    fn ask(&mut self, command: String) -> u64 {
        writeln!(self.writer, "{command}").unwrap();
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let value = line.trim().strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {line}"));
        u64::from_str_radix(value.trim().trim_start_matches("0x"), 16).unwrap_or_default()
    }

    fn out(&mut self, width: char, port: u64, value: u64) {
        self.ask(format!("out{width} {port:#x} {value:#x}"));
    }

    fn inp(&mut self, width: char, port: u64) -> u64 {
        self.ask(format!("in{width} {port:#x}"))
    }

    fn memory(&mut self, at: u64, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(format!("write {at:#x} {:#x} 0x{hex}", bytes.len()));
    }

    fn config(&mut self, slot: u64, register: u64) -> u64 {
        self.out('l', 0xcf8, 0x8000_0000 | slot << 11 | register);
        self.inp('l', 0xcfc)
    }

    /// Opens a port as a guest's driver does; does nothing while the firmware has not given the device its addresses. The guest's
    /// processors stand still meanwhile, and find the register as they left it.
    fn open_port(&mut self, port: u32) {
        let chosen = self.inp('l', 0xcf8);
        self.open_port_of_device(port);
        self.out('l', 0xcf8, chosen);
    }

    fn open_port_of_device(&mut self, port: u32) {
        // Vendor 1af4, device 1003: the transitional virtio-serial device.
        let Some(slot) = (0..32).find(|slot| self.config(*slot, 0) == 0x1003_1af4) else { return };
        let base = self.config(slot, 0x10) & !3;
        let command = self.config(slot, 4);
        // While the firmware asks how large the range is, it reads as ones.
        if base == 0 || base > 0xffff || command & 1 == 0 {
            return;
        }
        // The device may read memory.
        self.out('l', 0xcf8, 0x8000_0000 | slot << 11 | 4);
        self.out('l', 0xcfc, command & 0xffff | 5);
        // Reset, acknowledge, driver, the feature "several ports".
        for status in [0, 1, 3] {
            self.out('b', base + 0x12, status);
        }
        self.out('l', base + 4, 1 << 1);
        self.out('w', base + 0xe, CONTROL_QUEUE);
        let entries = self.inp('w', base + 0xc);
        let messages: [(u32, u16); 3] = [(u32::MAX, 0), (port, 3), (port, 6)]; // device ready, port ready, port open
        let (mut descriptors, mut ring) = (Vec::new(), vec![0, 0, 3, 0]);
        for (number, (id, event)) in (0u16..).zip(messages) {
            let mut message = id.to_le_bytes().to_vec();
            message.extend(event.to_le_bytes());
            message.extend(1u16.to_le_bytes());
            let at = MESSAGES + u64::from(number) * 16;
            self.memory(at, &message);
            descriptors.extend(at.to_le_bytes());
            descriptors.extend(8u32.to_le_bytes());
            descriptors.extend([0; 4]);
            ring.extend(number.to_le_bytes());
        }
        self.memory(QUEUE, &vec![0; 8192]);
        self.memory(QUEUE, &descriptors);
        self.memory(QUEUE + entries * 16, &ring);
        self.out('l', base + 8, QUEUE >> 12);
        self.out('b', base + 0x12, 7);
        self.out('w', base + 0x10, CONTROL_QUEUE);
    }
}
