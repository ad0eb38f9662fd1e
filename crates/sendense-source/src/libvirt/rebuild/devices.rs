//! The devices of a new definition: each kind has its builder, which decides what of the recorded one it is made of.
//!
//! What does not live here: the domain around them. Invariant: a device that is not known is left out and told.

use super::{ADDRESS, BOOT, Keep, Medium, Notes, Wanted, copy, plain, take};
use crate::libvirt::xml::Element;

/// What a place begins with that is a bridge of the host, and no network of libvirt's.
const BRIDGE: &str = "bridge:";
/// Devices that are taken over as they are.
const DEVICES: &[Keep] = &[
    Keep(
        "controller",
        &["type", "index", "model", "ports", "vectors"],
        &[
            Keep("target", &["chassisNr", "chassis", "port", "busNr", "index", "hotplug"], &[]),
            Keep("model", &["name"], &[]),
            Keep("master", &["startport"], &[]),
            Keep("driver", &["queues", "cmd_per_lun", "max_sectors", "ioeventfd", "iothread"], &[]),
            ADDRESS,
        ],
    ),
    Keep("sound", &["model"], &[Keep("codec", &["type"], &[]), ADDRESS]),
    Keep("watchdog", &["model", "action"], &[ADDRESS]),
    Keep("memballoon", &["model", "autodeflate", "freePageReporting"], &[Keep("stats", &["period"], &[]), ADDRESS]),
    Keep("panic", &["model"], &[ADDRESS]),
    Keep("hub", &["type"], &[ADDRESS]),
    Keep(
        "video",
        &[],
        &[Keep("model", &["type", "vram", "ram", "vgamem", "vram64", "heads", "primary"], &[]), ADDRESS],
    ),
];

/// All devices of the new definition.
pub(super) fn devices(old: &Element, wanted: &Wanted<'_>, notes: &mut Notes) -> Element {
    let mut new = Element::new("devices");
    for device in &old.children {
        let built = match device.name.as_str() {
            "disk" if is_twice(&new, device) => {
                notes.left_out("a disk whose target another one has");
                continue;
            }
            "disk" => match disk(device, wanted, notes) {
                Some(disk) => Some(disk),
                // It was told by its name.
                None => continue,
            },
            "interface" => Some(interface(device, wanted, notes)),
            "serial" | "console" => Some(line(device)),
            "channel" => channel(device),
            "graphics" => graphics(device),
            "input" => input(device),
            "rng" => rng(device),
            "tpm" => tpm(device, notes),
            // The host's own emulator is taken, and its usual way to make sounds.
            "emulator" | "audio" => continue,
            name => DEVICES.iter().find(|keep| keep.0 == name).map(|keep| copy(device, keep, "", notes)),
        };
        match built {
            Some(built) => new.children.push(built),
            None => {
                let kind = device.attribute("type").filter(|kind| plain(kind)).unwrap_or_default();
                notes.left_out(format!("the device {} {kind}", device.name).trim_end());
            }
        }
    }
    new
}

/// Whether a disk with this one's target is there already: both would write to one file.
fn is_twice(new: &Element, disk: &Element) -> bool {
    let target = |disk: &Element| disk.child("target")?.attribute("dev").map(str::to_owned);
    target(disk).is_some_and(|name| new.children("disk").any(|known| target(known).as_ref() == Some(&name)))
}

fn disk(old: &Element, wanted: &Wanted<'_>, notes: &mut Notes) -> Option<Element> {
    let target = old.child("target")?;
    let name = target.attribute("dev").filter(|name| plain(name))?;
    let device = old.attribute("device").unwrap_or("disk");
    let medium = wanted.disks.get(name);
    let mut new = Element::new("disk");
    let driver = |options: &'static [&'static str]| match old.child("driver") {
        Some(driver) => copy(driver, &Keep("driver", options, &[]), "disk", &mut Notes::default()),
        None => Element::new("driver"),
    };
    match (device, medium) {
        ("disk", Some(Medium::File { path, format })) => {
            let driver = driver(&["cache", "io", "discard", "detect_zeroes", "error_policy"]);
            new = new.with("type", "file").with("device", "disk");
            new.children.push(driver.with("name", "qemu").with("type", format));
            new.children.push(Element::new("source").with("file", &path.to_string_lossy()));
        }
        ("disk", Some(Medium::Export { socket, name })) => {
            // A server that is away for a while must not become errors that a guest believes: it waits.
            let driver = driver(&["cache", "discard", "detect_zeroes"]);
            let driver = driver.with("error_policy", "stop").with("rerror_policy", "stop");
            new = new.with("type", "network").with("device", "disk");
            new.children.push(driver.with("name", "qemu").with("type", "raw"));
            let mut source = Element::new("source").with("protocol", "nbd").with("name", name);
            let host = Element::new("host").with("transport", "unix");
            source.children.push(host.with("socket", &socket.to_string_lossy()));
            new.children.push(source);
        }
        // Its medium is the host's.
        ("cdrom", _) => {
            new = new.with("type", "file").with("device", "cdrom");
            new.children.push(Element::new("readonly"));
        }
        _ => {
            let device = if plain(device) { device } else { "disk" };
            notes.add(format!("the {device} {name} was left out: the point does not hold it"));
            return None;
        }
    }
    let own = [
        Keep("target", &["dev", "bus", "rotation_rate"], &[]),
        Keep("serial", &[], &[]),
        Keep("wwn", &[], &[]),
        Keep("vendor", &[], &[]),
        Keep("product", &[], &[]),
        Keep("blockio", &["logical_block_size", "physical_block_size"], &[]),
        BOOT,
        ADDRESS,
    ];
    take(&mut new, old, &own);
    if device == "disk" && old.child("readonly").is_some() {
        new.children.push(Element::new("readonly"));
    }
    Some(new)
}

/// A card is plugged in only where the caller says so: the name of a network in a recorded document is a wish of whoever wrote
/// it, and every host has networks that not every guest may reach.
fn interface(old: &Element, wanted: &Wanted<'_>, notes: &mut Notes) -> Element {
    let attribute = |child: &str, name: &str| old.child(child).and_then(|child| child.attribute(name));
    let old_mac = attribute("mac", "address").filter(|mac| is_mac(mac));
    let kind = old.attribute("type").filter(|kind| plain(kind)).unwrap_or_default();
    let named = match kind {
        "network" => attribute("source", "network"),
        "bridge" => attribute("source", "bridge"),
        _ => None,
    }
    .filter(|name| plain(name));
    let told = |key: Option<&str>| key.and_then(|key| wanted.networks.get(key));
    let mut new = Element::new("interface");
    let mac = match old_mac {
        Some(mac) if wanted.keep_macs => mac.to_owned(),
        _ => random_mac(),
    };
    let plugged = match told(old_mac).or_else(|| told(named)) {
        Some(place) => place.as_deref(),
        None => {
            let (was, key) = match (named, old_mac) {
                (Some(name), _) => (format!("was in the {kind} {name}"), name),
                (None, Some(mac)) => (format!("had the address {mac} and was of type {kind}"), mac),
                (None, None) => (format!("was of type {kind}"), ""),
            };
            let how = if key.is_empty() { String::new() } else { format!(": '--network {key}=NEW' would plug it in") };
            notes.add(format!("the network card {mac}, which {was}, is unplugged{how}"));
            None
        }
    };
    match plugged.map(|place| (place.strip_prefix(BRIDGE), place)) {
        Some((Some(bridge), _)) => {
            new = new.with("type", "bridge").child_of("source", &[("bridge", bridge)]);
            // Open vSwitch needs to be told apart from the kernel's bridge.
            if attribute("virtualport", "type") == Some("openvswitch") {
                new = new.child_of("virtualport", &[("type", "openvswitch")]);
            }
        }
        Some((None, network)) => new = new.with("type", "network").child_of("source", &[("network", network)]),
        // QEMU's own network needs nothing of the host to start.
        None => new = new.with("type", "user"),
    }
    new.children.push(Element::new("mac").with("address", &mac));
    take(&mut new, old, &[Keep("model", &["type"], &[]), Keep("mtu", &["size"], &[]), BOOT, ADDRESS]);
    match plugged {
        Some(_) => take(&mut new, old, &[Keep("link", &["state"], &[])]),
        // Through QEMU's own network a guest reaches what listens on this host's loopback address.
        None => new.children.push(Element::new("link").with("state", "down")),
    }
    new
}

/// Whether a card of the recorded machine is meant by this key: its address, or its network's name.
pub(super) fn has_card(devices: &Element, key: &str) -> bool {
    devices.children("interface").any(|card| {
        let is = |child: &str, name: &str| card.child(child).and_then(|child| child.attribute(name)) == Some(key);
        is("mac", "address") || is("source", "network") || is("source", "bridge")
    })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// QEMU's prefix, as libvirt itself chooses.
fn random_mac() -> String {
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2])
}

/// A serial line ends in a terminal of libvirt's, wherever it went before.
fn line(old: &Element) -> Element {
    let mut new = Element::new(&old.name).with("type", "pty");
    take(&mut new, old, &[Keep("target", &["type", "port"], &[Keep("model", &["name"], &[])]), ADDRESS]);
    new
}

/// The guest agent's channel and the SPICE agent's; libvirt chooses the socket.
fn channel(old: &Element) -> Option<Element> {
    let name = old.child("target")?.attribute("name")?;
    let kind = match name {
        "org.qemu.guest_agent.0" => "unix",
        "com.redhat.spice.0" => "spicevmc",
        _ => return None,
    };
    let mut new = Element::new("channel").with("type", kind);
    new.children.push(Element::new("target").with("type", "virtio").with("name", name));
    take(&mut new, old, &[ADDRESS]);
    Some(new)
}

/// A screen for this host only, on a free port, without the recorded password.
fn graphics(old: &Element) -> Option<Element> {
    let kind = old.attribute("type").filter(|kind| matches!(*kind, "vnc" | "spice"))?;
    Some(Element::new("graphics").with("type", kind).with("autoport", "yes").with("listen", "127.0.0.1"))
}

fn input(old: &Element) -> Option<Element> {
    let kind = old.attribute("type").filter(|kind| matches!(*kind, "mouse" | "tablet" | "keyboard"))?;
    let mut new = Element::new("input").with("type", kind);
    if let Some(bus) = old.attribute("bus").filter(|bus| plain(bus)) {
        new = new.with("bus", bus);
    }
    take(&mut new, old, &[ADDRESS]);
    Some(new)
}

fn rng(old: &Element) -> Option<Element> {
    let model = old.attribute("model").filter(|model| plain(model))?;
    let mut new = Element::new("rng").with("model", model);
    new.children.push(Element::new("backend").with("model", "random").with_text("/dev/urandom"));
    take(&mut new, old, &[Keep("rate", &["bytes", "period"], &[]), ADDRESS]);
    Some(new)
}

fn tpm(old: &Element, notes: &mut Notes) -> Option<Element> {
    old.child("backend").filter(|backend| backend.attribute("type") == Some("emulator"))?;
    notes.add("the TPM is a new one: what the old one had sealed is lost".to_owned());
    let model = old.attribute("model").filter(|model| plain(model)).unwrap_or("tpm-crb");
    Some(Element::new("tpm").with("model", model).child_of("backend", &[("type", "emulator"), ("version", "2.0")]))
}
