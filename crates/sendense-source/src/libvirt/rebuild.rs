//! A domain's definition made anew from a recorded one, which is believed in nothing.
//!
//! What a repository's folder holds may have been written by anybody. So nothing is taken out of the recorded document:
//! a new one is built, and takes over only elements and attributes that are listed here, with values that cannot be paths.
//! What the host is, stays the host's: no emulator, command line, host device, shared folder, socket or file of it is
//! named, and the firmware's code only where distributions put it. What was left out is told.

mod devices;

use super::domain::cleaned;
use super::xml::{self, Element};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Sentences about what was left out. A hostile document has thousands; a person reads fewer.
const NOTES_MAX: usize = 60;
/// The longest value that is taken over.
const VALUE_BYTES_MAX: usize = 128;
/// The longest title or description: a page of text.
const TEXT_LETTERS_MAX: usize = 4096;
/// Threads for disks: one for each of the disks that a virtio-scsi bus commonly has is more than anybody configures.
const IOTHREADS_MAX: u16 = 256;
/// What a guest's crash or a watchdog's bite may ask for: its whole memory in a file of the host's.
const FILLS_THE_HOST: [&str; 3] = ["dump", "coredump-destroy", "coredump-restart"];
/// Where distributions put firmware.
const FIRMWARE: [&str; 7] = [
    "/usr/share/OVMF/",
    "/usr/share/ovmf/",
    "/usr/share/AAVMF/",
    "/usr/share/qemu/",
    "/usr/share/qemu-efi-aarch64/",
    "/usr/share/edk2/",
    "/usr/share/seabios/",
];

/// What a disk is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Medium<'a> {
    /// A file of this format.
    File { path: &'a Path, format: &'a str },
    /// An export of an NBD server on this host.
    Export { socket: &'a Path, name: &'a str },
}

/// The firmware's variables.
#[derive(Debug, Clone, Copy)]
pub(super) enum Variables<'a> {
    /// There are none: the firmware begins with its own.
    New,
    /// In this file.
    File(&'a Path),
    /// They are put where libvirt keeps them, once it knows the domain.
    Usual,
}

/// What the new domain shall be.
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    /// The disks, by target.
    pub disks: BTreeMap<&'a str, Medium<'a>>,
    pub variables: Variables<'a>,
    pub networks: &'a BTreeMap<String, Option<String>>,
    pub keep_macs: bool,
}

/// A definition.
pub(super) struct Rebuilt {
    pub document: String,
    pub notes: Vec<String>,
    /// Its firmware keeps variables.
    pub has_variables: bool,
}

/// An element that is taken over: these attributes, its text, these children.
struct Keep(&'static str, &'static [&'static str], &'static [Keep]);

const ADDRESS: Keep = Keep(
    "address",
    &[
        "type",
        "domain",
        "bus",
        "slot",
        "function",
        "multifunction",
        "controller",
        "target",
        "unit",
        "port",
        "cssid",
        "ssid",
        "devno",
        "reg",
        "iobase",
        "irq",
    ],
    &[],
);
const BOOT: Keep = Keep("boot", &["order", "dev"], &[]);
const STATE: &[&str] = &["state", "retries", "value", "mode", "driver", "version"];

/// What is taken over as it is, directly below the domain.
const DOMAIN: &[Keep] = &[
    Keep("memory", &["unit"], &[]),
    Keep("currentMemory", &["unit"], &[]),
    Keep("vcpu", &["current"], &[]),
    Keep(
        "features",
        &[],
        &[
            Keep("acpi", &[], &[]),
            Keep("apic", &["eoi"], &[]),
            Keep("pae", &[], &[]),
            Keep("hap", STATE, &[]),
            Keep("vmport", STATE, &[]),
            Keep("smm", STATE, &[]),
            Keep("pmu", STATE, &[]),
            Keep("pvspinlock", STATE, &[]),
            Keep("ioapic", STATE, &[]),
            Keep("gic", STATE, &[]),
            Keep("vmcoreinfo", STATE, &[]),
            Keep("kvm", &[], &[Keep("hidden", STATE, &[]), Keep("poll-control", STATE, &[])]),
            Keep(
                "hyperv",
                STATE,
                &[
                    Keep("relaxed", STATE, &[]),
                    Keep("vapic", STATE, &[]),
                    Keep("spinlocks", STATE, &[]),
                    Keep("vpindex", STATE, &[]),
                    Keep("runtime", STATE, &[]),
                    Keep("synic", STATE, &[]),
                    Keep("stimer", STATE, &[Keep("direct", STATE, &[])]),
                    Keep("reset", STATE, &[]),
                    Keep("vendor_id", STATE, &[]),
                    Keep("frequencies", STATE, &[]),
                    Keep("reenlightenment", STATE, &[]),
                    Keep("tlbflush", STATE, &[]),
                    Keep("ipi", STATE, &[]),
                    Keep("evmcs", STATE, &[]),
                    Keep("avic", STATE, &[]),
                ],
            ),
        ],
    ),
    Keep(
        "cpu",
        &["mode", "match", "check", "migratable"],
        &[
            Keep("model", &["fallback", "vendor_id"], &[]),
            Keep("vendor", &[], &[]),
            Keep("topology", &["sockets", "dies", "clusters", "cores", "threads"], &[]),
            Keep("feature", &["policy", "name"], &[]),
            Keep("cache", &["mode", "level"], &[]),
            Keep("maxphysaddr", &["mode", "bits"], &[]),
        ],
    ),
    Keep(
        "clock",
        &["offset", "basis", "adjustment"],
        &[Keep("timer", &["name", "tickpolicy", "present", "track", "mode", "frequency"], &[])],
    ),
    Keep("on_poweroff", &[], &[]),
    Keep("on_reboot", &[], &[]),
    Keep("on_crash", &[], &[]),
    Keep("pm", &[], &[Keep("suspend-to-mem", &["enabled"], &[]), Keep("suspend-to-disk", &["enabled"], &[])]),
];

/// Builds the new definition.
pub(super) fn rebuild(recorded: &str, wanted: &Wanted<'_>) -> Result<Rebuilt> {
    let old = xml::parse(recorded, "domain")?;
    let mut notes = Notes::default();
    let kind = match old.attribute("type") {
        Some("kvm") => "kvm",
        _ => "qemu",
    };
    let mut new = Element::new("domain").with("type", kind);
    new.children.push(Element::new("name").with_text(wanted.name));
    new.children.push(Element::new("uuid").with_text(wanted.uuid));
    for name in ["title", "description"] {
        // Free text, which nobody interprets. libvirt refuses a title of several lines.
        if let Some(text) = old.child_text(name) {
            let is_kept = |letter: &char| !letter.is_control() || (*letter == '\n' && name == "description");
            let text: String = text.chars().filter(is_kept).take(TEXT_LETTERS_MAX).collect();
            new.children.push(Element::new(name).with_text(&text));
        }
    }
    for child in &old.children {
        match child.name.as_str() {
            "name" | "uuid" | "title" | "description" | "metadata" => {}
            // The host starts one for each before the guest runs, and libvirt knows no bound.
            "iothreads" => match child.text().and_then(|text| text.parse::<u16>().ok()).filter(|n| *n <= IOTHREADS_MAX)
            {
                Some(number) => new.children.push(Element::new("iothreads").with_text(&number.to_string())),
                None => notes.left_out("iothreads"),
            },
            "os" => new.children.push(os(child, wanted, &mut notes)),
            "devices" => new.children.push(devices::devices(child, wanted, &mut notes)),
            name => match DOMAIN.iter().find(|keep| keep.0 == name) {
                Some(keep) => new.children.push(copy(child, keep, "", &mut notes)),
                None => notes.left_out(name),
            },
        }
    }
    for key in wanted.networks.keys() {
        if !old.children("devices").any(|devices| devices::has_card(devices, key)) {
            notes.add(format!("no network card of the machine is meant by {key:?}, for which a network was given"));
        }
    }
    let Some(devices) = new.child("devices") else {
        return Err(Error::new(Kind::Failed, "the recorded configuration has no devices"));
    };
    let is_used = |target: &str| {
        let mut disks = devices.children("disk").filter(|disk| disk.attribute("device") == Some("disk"));
        disks.any(|disk| disk.child("target").and_then(|found| found.attribute("dev")) == Some(target))
    };
    // A disk that nobody would notice is missing must not take hours to copy first.
    if let Some(target) = wanted.disks.keys().find(|target| !is_used(target)) {
        let message = format!("the recorded configuration has no disk {target}, which the point holds");
        return Err(Error::new(Kind::Unsupported, message).hint("restore the disks by themselves"));
    }
    Ok(Rebuilt {
        document: new.document(),
        notes: notes.0,
        has_variables: old.child("os").is_some_and(keeps_variables),
    })
}

#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        match self.0.len() {
            held if held < NOTES_MAX && !self.0.contains(&note) => self.0.push(note),
            NOTES_MAX if !self.0.contains(&note) => self.0.push("more was left out than is told here".to_owned()),
            _ => {}
        }
    }

    fn left_out(&mut self, what: &str) {
        let what: String = what.chars().filter(|letter| !letter.is_control()).take(80).collect();
        self.add(format!("{what} was left out"));
    }
}

/// A value that is neither a path nor more than one option, whatever reads it, and asks for nothing of the host.
fn plain(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX
        && value.chars().all(|letter| letter.is_ascii_alphanumeric() || " _.:+-".contains(letter))
        && !value.starts_with('-')
        && !FILLS_THE_HOST.contains(&value)
}

fn copy(old: &Element, keep: &Keep, above: &str, notes: &mut Notes) -> Element {
    let here = if above.is_empty() { keep.0.to_owned() } else { format!("{above}/{}", keep.0) };
    let mut new = Element::new(keep.0);
    for name in keep.1 {
        match old.attribute(name) {
            Some(value) if plain(value) => new = new.with(name, value),
            Some(_) => notes.left_out(&format!("{here}@{name}")),
            None => {}
        }
    }
    match old.text() {
        Some(text) if plain(text) => new = new.with_text(text),
        Some(_) => notes.left_out(&format!("the text of {here}")),
        None => {}
    }
    for child in &old.children {
        match keep.2.iter().find(|keep| keep.0 == child.name) {
            Some(keep) => new.children.push(copy(child, keep, &here, notes)),
            // libvirt's own names of devices.
            None if child.name == "alias" => {}
            None => notes.left_out(&format!("{here}/{}", child.name)),
        }
    }
    new
}

/// Copies the listed children of a device, and tells of nothing else: what a device is made of is decided by its builder.
fn take(new: &mut Element, old: &Element, keeps: &[Keep]) {
    let mut silent = Notes::default();
    for keep in keeps {
        for child in old.children(keep.0) {
            new.children.push(copy(child, keep, "", &mut silent));
        }
    }
}

fn os(old: &Element, wanted: &Wanted<'_>, notes: &mut Notes) -> Element {
    let mut new = Element::new("os");
    let mut has_loader = false;
    for child in &old.children {
        match child.name.as_str() {
            "type" => new.children.push(copy(child, &Keep("type", &["arch", "machine"], &[]), "os", notes)),
            "boot" => new.children.push(copy(child, &BOOT, "os", notes)),
            "bootmenu" => new.children.push(copy(child, &Keep("bootmenu", &["enable", "timeout"], &[]), "os", notes)),
            "firmware" => {
                let feature = Keep("firmware", &[], &[Keep("feature", &["enabled", "name"], &[])]);
                new.children.push(copy(child, &feature, "os", notes));
            }
            "loader" => match child.text().filter(|path| is_firmware(path)) {
                Some(path) => {
                    has_loader = true;
                    let keep = Keep("loader", &["secure", "type"], &[]);
                    let loader = copy(child, &keep, "os", &mut Notes::default());
                    // All machines share it, so none may write to it.
                    new.children.push(loader.with("readonly", "yes").with_text(path));
                }
                None => notes.left_out("the firmware's code, which lies in no folder of firmware,"),
            },
            "nvram" => {}
            name => notes.left_out(&format!("os/{name}")),
        }
    }
    let efi = keeps_variables(old);
    if efi && !has_loader {
        new = new.with("firmware", "efi");
    } else {
        // They choose a firmware, and libvirt refuses them where it is chosen.
        new.children.retain(|child| child.name != "firmware");
    }
    match wanted.variables {
        Variables::File(path) if efi => new.children.push(Element::new("nvram").with_text(&path.to_string_lossy())),
        Variables::New if efi => {
            notes.add("the firmware's variables are not restored: it looks for a boot loader itself".into());
        }
        _ => {}
    }
    new
}

/// Whether a firmware keeps variables: UEFI does.
fn keeps_variables(os: &Element) -> bool {
    os.attribute("firmware") == Some("efi") || os.child("nvram").is_some()
}

fn is_firmware(path: &str) -> bool {
    path.len() <= VALUE_BYTES_MAX
        && cleaned(Path::new(path)) == Path::new(path)
        && path.chars().all(|letter| letter.is_ascii_alphanumeric() || "/._-+".contains(letter))
        && FIRMWARE.iter().any(|folder| path.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> Medium<'static> {
        Medium::File { path: Path::new("/pool/new-vda.qcow2"), format: "qcow2" }
    }

    fn run(document: &str, networks: &[(&str, Option<&str>)], keep_macs: bool) -> Rebuilt {
        let networks: BTreeMap<String, Option<String>> =
            networks.iter().map(|(old, new)| ((*old).to_owned(), new.map(str::to_owned))).collect();
        let wanted = Wanted {
            name: "new",
            uuid: "11111111-2222-4333-8444-555555555555",
            disks: BTreeMap::from([("vda", file())]),
            variables: Variables::File(Path::new("/pool/new-nvram.fd")),
            networks: &networks,
            keep_macs,
        };
        rebuild(document, &wanted).unwrap()
    }

    const ORDINARY: &str = "<domain type='kvm' id='7'><name>web</name><uuid>23b7165e-2efc-40b7-9fc7-4af794dd0157</uuid>
        <title>the &lt;web&gt; server</title><memory unit='KiB'>65536</memory><vcpu placement='static'>2</vcpu>
        <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
        <nvram template='/usr/share/OVMF/x'>/var/lib/old_VARS.fd</nvram><boot dev='hd'/></os>
        <features><acpi/><hyperv mode='custom'><relaxed state='on'/></hyperv></features><cpu mode='host-passthrough'/>
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
        <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/old.raw'/><target dev='vda' bus='virtio'/><serial>S-1</serial></disk>
        <disk type='file' device='disk'><source file='/other.raw'/><target dev='vdb'/></disk>
        <disk type='file' device='cdrom'><source file='/old.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
        <controller type='pci' index='0' model='pcie-root'><alias name='pcie.0'/></controller>
        <interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='lan'/><model type='virtio'/></interface>
        <serial type='file'><source path='/var/log/x'/><target port='0'/></serial></devices></domain>";

    #[test]
    fn an_ordinary_machine_is_the_same_with_other_disks_and_identity() {
        let found = run(ORDINARY, &[], false);
        let new = xml::parse(&found.document, "domain").unwrap();
        let text = &found.document;
        assert_eq!((new.child_text("name"), new.child_text("title")), (Some("new"), Some("the <web> server")));
        for has in [
            "/pool/new-vda.qcow2",
            "/pool/new-nvram.fd",
            "OVMF_CODE_4M.fd",
            "pc-q35-7.2",
            "cache=\"none\"",
            "relaxed",
            "S-1",
            "pcie-root",
        ] {
            assert!(text.contains(has), "{has} is missing in {text}");
        }
        for gone in ["/old", "/other", "/var", "52:54:00:aa:bb:cc", "23b7165e", "vdb", "template", " id="] {
            assert!(!text.contains(gone), "{gone} is in {text}");
        }
        assert!(found.notes.iter().any(|note| note.contains("vdb")), "{:?}", found.notes);
        assert!(run(ORDINARY, &[], true).document.contains("52:54:00:aa:bb:cc"));
    }

    #[test]
    fn a_disk_that_is_served_makes_its_guest_wait() {
        let socket = Path::new("/run/sr-1/nbd");
        let wanted = Wanted {
            name: "new",
            uuid: "11111111-2222-4333-8444-555555555555",
            disks: BTreeMap::from([("vda", Medium::Export { socket, name: "secret" })]),
            variables: Variables::New,
            networks: &BTreeMap::new(),
            keep_macs: false,
        };
        let document = ORDINARY.replace("cache='none'", "cache='none' io='native' error_policy='report'");
        let text = rebuild(&document, &wanted).unwrap().document;
        let new = xml::parse(&text, "domain").unwrap();
        let disk = new.child("devices").unwrap().child("disk").unwrap();
        let (driver, source) = (disk.child("driver").unwrap(), disk.child("source").unwrap());
        assert_eq!((disk.attribute("type"), source.attribute("name")), (Some("network"), Some("secret")));
        assert_eq!(source.child("host").unwrap().attribute("socket"), socket.to_str());
        for (name, value) in [("type", "raw"), ("cache", "none"), ("error_policy", "stop"), ("rerror_policy", "stop")] {
            assert_eq!(driver.attribute(name), Some(value), "{text}");
        }
        assert!(!text.contains("native") && !text.contains("report") && !text.contains("/pool"), "{text}");
    }

    /// The only card of a definition: its place, and whether it is unplugged.
    fn card(found: &Rebuilt) -> (Option<String>, bool) {
        let new = xml::parse(&found.document, "domain").unwrap();
        let card = new.child("devices").unwrap().child("interface").unwrap();
        let source = card.child("source").and_then(|source| source.attributes.first());
        let link = card.child("link").and_then(|link| link.attribute("state"));
        (source.map(|(kind, name)| format!("{kind} {name}")), link == Some("down"))
    }

    #[test]
    fn a_card_is_plugged_in_only_where_the_caller_says_so() {
        let bridged = ORDINARY.replace("type='network'", "type='bridge'").replace("network='lan'", "bridge='lan'");
        let direct = ORDINARY.replace("type='network'", "type='direct'").replace("network='lan'", "dev='lan'");
        for document in [ORDINARY, &bridged, &direct] {
            let found = run(document, &[], false);
            assert_eq!(card(&found), (None, true));
            assert!(found.notes.iter().any(|note| note.contains("is unplugged")), "{:?}", found.notes);
            assert!(!found.document.contains("lan"), "{}", found.document);
            let named = run(document, &[("52:54:00:aa:bb:cc", Some("lab"))], false);
            assert_eq!(card(&named), (Some("network lab".into()), false));
            assert!(!named.notes.iter().any(|note| note.contains("plugged")), "{:?}", named.notes);
        }
        for document in [ORDINARY, &bridged] {
            assert_eq!(card(&run(document, &[("lan", Some("lab"))], false)), (Some("network lab".into()), false));
            assert_eq!(card(&run(document, &[("lan", Some("bridge:br0"))], false)), (Some("bridge br0".into()), false));
            let off = run(document, &[("lan", None)], false);
            assert_eq!(card(&off), (None, true));
            assert!(!off.notes.iter().any(|note| note.contains("unplugged")), "it was asked for: {:?}", off.notes);
        }
        // One card's mapping says nothing of the others, and one that fits no card is told.
        let found = run(ORDINARY, &[("lam", Some("lab"))], false);
        assert_eq!(card(&found), (None, true));
        assert!(found.notes.iter().any(|note| note.contains("\"lam\"")), "{:?}", found.notes);
    }

    #[test]
    fn free_text_with_letters_that_no_document_may_hold_breaks_nothing() {
        let title = "a&#xFFFE;b&#x1;c&#10;d\u{ffff}&lt;e&#x1F600;";
        let text = format!("<title>{title}</title><description>{title}</description>");
        let document = ORDINARY.replace("<title>the &lt;web&gt; server</title>", &text);
        assert_ne!(document, ORDINARY);
        let found = run(&document, &[], false).document;
        assert!(found.chars().all(xml::is_letter), "{found:?}");
        let new = xml::parse(&found, "domain").unwrap();
        assert_eq!(new.child_text("title"), Some("a\u{fffd}bcd\u{fffd}<e\u{1F600}"));
        assert_eq!(new.child_text("description"), Some("a\u{fffd}bc\nd\u{fffd}<e\u{1F600}"));
    }

    #[test]
    fn a_disk_that_is_there_twice_is_taken_once() {
        let disk = "<disk type='file' device='disk'><target dev='vda' bus='sata'/></disk>";
        let found = run(&ORDINARY.replace("</devices>", &format!("{disk}</devices>")), &[], false);
        assert_eq!(found.document.matches("dev=\"vda\"").count(), 1, "{}", found.document);
        assert!(found.notes.iter().any(|note| note.contains("another one has")), "{:?}", found.notes);
    }

    #[test]
    fn a_person_is_told_when_more_was_left_out_than_can_be_read() {
        let many: String = (0..500).map(|number| format!("<evil{number}/>")).collect();
        let found = run(&ORDINARY.replace("<devices>", &format!("{many}<devices>")), &[], false);
        assert_eq!(found.notes.len(), NOTES_MAX + 1);
        assert!(found.notes.last().is_some_and(|note| note.starts_with("more was")), "{:?}", found.notes);
    }

    #[test]
    fn a_configuration_that_lacks_a_disk_is_refused() {
        let document = ORDINARY.replace("dev='vda'", "dev='vdx'");
        let wanted = Wanted {
            name: "new",
            uuid: "11111111-2222-4333-8444-555555555555",
            disks: BTreeMap::from([("vda", file())]),
            variables: Variables::New,
            networks: &BTreeMap::new(),
            keep_macs: false,
        };
        let error = rebuild(&document, &wanted).err().unwrap();
        assert!(error.kind == Kind::Unsupported && error.to_string().contains("vda"), "{error}");
    }

    #[test]
    fn firmware_is_named_or_chosen_by_its_features_but_not_both() {
        let features = "<firmware><feature enabled='yes' name='secure-boot'/></firmware>";
        let named = ORDINARY.replace("<nvram ", &format!("{features}<nvram "));
        assert!(!run(&named, &[], false).document.contains("secure-boot"));
        let chosen = named.replace("/usr/share/OVMF/OVMF_CODE_4M.fd", "/nix/store/OVMF.fd");
        let text = run(&chosen, &[], false).document;
        assert!(
            text.contains("<os firmware=\"efi\">") && text.contains("secure-boot") && !text.contains("nix"),
            "{text}"
        );
    }

    /// Everything by which a definition has ever reached into its host.
    const HOSTILE: &str = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>--evil</name><uuid>x</uuid>
        <memory unit='KiB'>65536</memory><memoryBacking><source type='file'/></memoryBacking>
        <os><type arch='x86_64' machine='pc,dumpdtb=/tmp/x'>hvm</type><loader>/etc/shadow</loader><loader readonly='no' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><kernel>/etc/shadow</kernel><initrd>/etc/shadow</initrd><cmdline>x</cmdline></os>
        <launchSecurity type='sev'/><cputune><emulatorpin cpuset='0'/></cputune><numatune><memory nodeset='0'/></numatune><genid>x</genid><bootloader>/etc/x</bootloader>
        <iothreads>4000000000</iothreads><sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>
        <on_crash>coredump-destroy</on_crash><seclabel type='none'/><resource><partition>/x</partition></resource>
        <features><acpi>/etc/shadow</acpi><acpi2/></features>
        <qemu:commandline><qemu:arg value='-chardev'/><qemu:env name='LD_PRELOAD' value='/tmp/x.so'/></qemu:commandline>
        <qemu:override><qemu:device alias='x'/></qemu:override>
        <devices><emulator>/tmp/evil</emulator>
        <disk type='block' device='disk'><driver name='qemu' type='raw' cache='none&quot;/&gt;&lt;evil/&gt;'/><source dev='/dev/sda'/><target dev='vda' bus='virtio'/><serial>/etc/shadow</serial>
          <backingStore type='file'><source file='/etc/shadow'/></backingStore><mirror/></disk>
        <disk type='block' device='lun'><source dev='/dev/sda'/><target dev='sdb'/></disk>
        <disk type='network' device='disk'><source protocol='nbd' name='x'/><target dev='../../x'/></disk>
        <disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sda'/></disk>
        <hostdev mode='subsystem' type='pci'><source><address domain='0'/></source></hostdev>
        <filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>
        <interface type='ethernet'><script path='/tmp/evil'/><target dev='tap0'/><backend tap='/dev/x' vhost='/dev/x'/></interface>
        <interface type='user'><mac address='52:54:00:00:00:01'/></interface><watchdog model='i6300esb' action='dump'/>
        <interface type='vhostuser'><source type='unix' path='/run/x.sock' mode='client'/></interface>
        <interface type='bridge'><source bridge='/../x'/></interface>
        <interface type='bridge'><source bridge='mgmt0'/><virtualport type='openvswitch'/></interface>
        <interface type='network'><source network='mgmt1' portgroup='mgmt2'/><link state='up'/></interface>
        <interface type='direct'><source dev='mgmt3' mode='passthrough'/></interface>
        <interface type='hostdev'><source><address type='pci' slot='1'/></source></interface>
        <interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>
        <interface type='server'><source address='0.0.0.0' port='1'/></interface>
        <sound model='ich9'><audio id='1'/></sound><audio id='1' type='file' path='/etc/x'/>
        <console type='tcp'><source mode='bind' host='0.0.0.0' service='1'/><protocol type='telnet'/><log file='/etc/x'/></console>
        <channel type='tcp'><source mode='connect' host='10.0.0.1' service='1'/><target type='virtio' name='com.redhat.spice.0'/></channel>
        <tpm model='tpm-crb'><backend type='emulator' persistent_state='yes'><encryption secret='x'/><source type='dir' path='/etc/x'/></backend></tpm>
        <tpm model='tpm-crb'><backend type='external'><source type='unix' path='/run/x'/></backend></tpm>
        <crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto><iommu model='intel'/>
        <serial type='file'><source path='/etc/cron.d/x'/><target port='0'/></serial>
        <console type='unix'><source mode='connect' path='/run/docker.sock'/></console>
        <parallel type='dev'><source path='/dev/parport0'/></parallel>
        <channel type='unix'><source mode='connect' path='/run/libvirt/libvirt-sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <channel type='file'><source path='/etc/x'/><target type='virtio' name='evil'/></channel>
        <graphics type='vnc' listen='0.0.0.0' passwd='secret' socket='/tmp/x'/><graphics type='desktop'/>
        <input type='evdev'><source dev='/dev/input/event0'/></input><input type='tablet' bus='usb'/>
        <rng model='virtio'><backend model='egd' type='unix'><source path='/run/x'/></backend></rng>
        <tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
        <smartcard mode='host-certificates'><database>/etc</database></smartcard><redirdev bus='usb' type='tcp'/>
        <shmem name='x'/><memory model='nvdimm'><source><path>/etc/shadow</path></source></memory><vsock><cid auto='no' address='3'/></vsock>
        <nvram><address type='spapr-vio'/></nvram><video><model type='vga'/><driver vgaconf='on'/></video>
        </devices></domain>";

    #[test]
    fn a_hostile_document_reaches_nothing_of_the_host() {
        let found = run(HOSTILE, &[], true);
        let text = &found.document;
        for evil in [
            "qemu:",
            "/etc",
            "/tmp",
            "/dev/sd",
            "/dev/tpm",
            "/dev/x",
            "/run",
            "evil",
            "hostdev",
            "filesystem",
            "script",
            "vhostuser",
            "ethernet",
            "passwd",
            "0.0.0.0",
            "socket",
            "kernel",
            "initrd",
            "cmdline",
            "fwcfg",
            "seclabel",
            "LD_PRELOAD",
            "emulator>",
            "backingStore",
            "lun",
            "passthrough",
            "smartcard",
            "redirdev",
            "shmem",
            "egd",
            "evdev",
            "dumpdtb",
            "parallel",
            "..",
            "nvdimm",
            "memoryBacking",
            "vsock",
            "dump",
            "mgmt",
            "portgroup",
            "direct",
            "vdpa",
            "10.0.0.1",
            "persistent_state",
            "encryption",
            "external",
            "lkcf",
            "launchSecurity",
            "tune",
            "bootloader",
            "telnet",
            "4000000000",
            "readonly=\"no\"",
        ] {
            assert!(!text.contains(evil), "{evil} is in {text}");
        }
        assert!(text.contains("<loader type=\"pflash\" readonly=\"yes\">"), "{text}");
        // The only paths are ours, the host's firmware and its source of randomness.
        fn values(element: &Element, found: &mut Vec<String>) {
            found.extend(element.attributes.iter().map(|(_, value)| value.clone()));
            found.extend(element.text().map(str::to_owned));
            element.children.iter().for_each(|child| values(child, found));
        }
        let mut found_values = Vec::new();
        values(&xml::parse(text, "domain").unwrap(), &mut found_values);
        for value in found_values.iter().filter(|value| value.contains('/')) {
            let known = value.starts_with("/pool/new-") || value == "/dev/urandom" || is_firmware(value);
            assert!(known, "{value} in {text}");
        }
        // No card is plugged in, whatever it was plugged into.
        let new = xml::parse(text, "domain").unwrap();
        assert_eq!(new.child("devices").unwrap().children("interface").count(), 10);
        for card in new.child("devices").unwrap().children("interface") {
            assert!(card.attribute("type") == Some("user") && card.child("source").is_none(), "{card:?}");
            assert_eq!(card.child("link").and_then(|link| link.attribute("state")), Some("down"), "{card:?}");
        }
        for told in ["qemu:commandline", "hostdev", "filesystem", "os/kernel", "ethernet", "parallel", "vsock", "user"]
        {
            assert!(found.notes.iter().any(|note| note.contains(told)), "{told} is not told in {:?}", found.notes);
        }
    }

    proptest! {
        /// Any attribute value and text, wherever it is: the document stays well-formed and gets no element of theirs.
        #[test]
        fn values_cannot_become_markup(value in "[ -~]{0,20}") {
            let value = xml::escaped(&value);
            let text = format!(
                "<domain type='{value}'><name>{value}</name><title>{value}</title><vcpu current='{value}'>{value}</vcpu><devices>
                 <disk device='disk'><driver cache='{value}'/><target dev='vda' bus='{value}'/><serial>{value}</serial></disk>
                 <interface type='network'><mac address='{value}'/><source network='{value}'/></interface>
                 <{name} x='{value}'/></devices></domain>", name = "evilthing"
            );
            let found = run(&text, &[], true);
            let parsed = xml::parse(&found.document, "domain").unwrap();
            prop_assert_eq!(parsed.child("devices").unwrap().children.len(), 2);
        }
    }
}
