//! A domain as libvirt describes it: the XML's facts that matter for a backup.
//!
//! What lives here: reading domain XML into values, and what a disk *is* ([`Disk::binding`]). What does not: asking
//! libvirt, or judging what can be backed up.
//!
//! A disk is bound to its target and to the *lowest* file of its chain, with serial and WWN where they are set: an external
//! snapshot puts a new file on top of the same disk, and committing it takes the file away again, while the lowest stays.

use super::xml::{self, Element};
use crate::error::{Error, Kind, Result};
use crate::model::Network;
use sendense_types::DiskBinding;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What the guest agent's channel is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agent {
    /// The domain has no channel for one.
    NoChannel,
    /// It has a channel, and nobody in the guest listens.
    Silent,
    /// Somebody listens.
    Connected,
}

/// A domain.
#[derive(Debug, Clone)]
pub(super) struct Domain {
    pub uuid: String,
    pub name: String,
    pub title: Option<String>,
    /// QEMU runs (the machine may be paused).
    pub running: bool,
    pub cpu_count: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub guest_os: Option<String>,
    pub agent: Agent,
    pub disks: Vec<Disk>,
    pub networks: Vec<Network>,
}

/// A disk, CD-ROM or floppy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// The target, `vda`: unique within the domain.
    pub target: String,
    /// `disk`, `cdrom`, `floppy`, `lun`.
    pub device: String,
    pub readonly: bool,
    pub shareable: bool,
    pub transient: bool,
    pub serial: Option<String>,
    pub wwn: Option<String>,
    /// The files on top of each other, highest first. At least one. Some may be known from the images' headers only: what
    /// a header says binds a disk, but does not open a file.
    pub layers: Vec<Layer>,
    /// How many of them the domain's own XML names.
    pub declared: usize,
    /// The XML names all layers (it does for a running domain; for one that is off only the images' headers know).
    pub layers_complete: bool,
    /// libvirt's number for the highest layer while the domain runs: QEMU's node is `libvirt-<number>-format`.
    pub node_index: Option<String>,
}

/// One file (or volume, or network image) of a disk's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub place: Place,
    /// As declared; never probed.
    pub format: Option<String>,
}

/// Where a layer lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Block(PathBuf),
    Volume {
        pool: String,
        volume: String,
    },
    Network {
        protocol: String,
        name: String,
    },
    /// An empty drive, or a type that we do not know.
    Other(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Block(path) => write!(f, "block:{}", path.display()),
            Self::Volume { pool, volume } => write!(f, "volume:{pool}/{volume}"),
            Self::Network { protocol, name } => write!(f, "{protocol}:{name}"),
            Self::Other(kind) => write!(f, "{kind}:"),
        }
    }
}

impl Layer {
    /// Where it lies, for people: a pool, a folder, a protocol.
    pub fn datastore(&self) -> Option<String> {
        match &self.place {
            Place::File(path) | Place::Block(path) => path.parent().map(|folder| folder.display().to_string()),
            Place::Volume { pool, .. } => Some(pool.clone()),
            Place::Network { protocol, .. } => Some(protocol.clone()),
            Place::Other(_) => None,
        }
    }
}

impl Disk {
    /// The highest layer, which the guest writes to.
    pub fn top(&self) -> &Layer {
        self.layers.first().expect("a disk is read with at least one layer")
    }

    /// What the disk is.
    pub fn binding(&self) -> DiskBinding {
        let lowest = self.layers.last().expect("a disk is read with at least one layer");
        let mut text = format!("{} {}", self.target, lowest.place);
        for (name, value) in [("serial", &self.serial), ("wwn", &self.wwn)] {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value}"));
            }
        }
        DiskBinding(text)
    }

    /// The declared format of the highest layer.
    pub fn format(&self) -> &str {
        match self.top() {
            // For an empty drive libvirt says `raw` while the domain runs and nothing while it is off.
            Layer { place: Place::Other(_), .. } => "unknown",
            layer => layer.format.as_deref().unwrap_or("unknown"),
        }
    }

    /// Why it cannot be backed up, or none.
    pub fn unsupported(&self) -> Option<String> {
        match (self.device.as_str(), &self.top().place) {
            ("disk", Place::Other(kind)) => Some(format!("a disk of type {kind} cannot be read")),
            ("disk", _) if self.top().format.is_none() => Some("its format is not declared in the domain".into()),
            ("disk", _) => None,
            ("cdrom", _) => Some("a CD-ROM drive".into()),
            ("floppy", _) => Some("a floppy drive".into()),
            ("lun", _) => Some("a SCSI device that is passed through (lun)".into()),
            (other, _) => Some(format!("a device of kind {other:?}")),
        }
    }

    /// Why its changes are not tracked, or none if they can be.
    pub fn untracked(&self) -> Option<String> {
        match (self.format(), self.readonly, self.transient) {
            (_, true, _) => Some("read-only disk, no change tracking".into()),
            (_, _, true) => Some("transient disk, no change tracking".into()),
            ("qcow2", ..) => None,
            (format, ..) => Some(format!("{format} disk, no change tracking")),
        }
    }
}

impl Domain {
    /// Reads what `virsh dumpxml` printed.
    pub fn parse(document: &str) -> Result<Self> {
        Self::from_element(&xml::parse(document, "domain")?)
    }

    /// Reads a domain that is a part of another document.
    pub fn from_element(root: &Element) -> Result<Self> {
        let missing = |what: &str| Error::new(Kind::Failed, format!("a domain without {what}"));
        let name = root.child_text("name").ok_or_else(|| missing("name"))?.to_owned();
        let uuid = root.child_text("uuid").ok_or_else(|| missing("UUID"))?;
        let uuid = uuid::Uuid::parse_str(uuid).map_err(|_| missing("valid UUID"))?.to_string();
        let os = root.child("os").and_then(|os| os.child("type"));
        let devices = root.child("devices").cloned().unwrap_or_default();
        Ok(Self {
            title: root.child_text("title").map(str::to_owned),
            running: root.attribute("id").is_some(),
            cpu_count: root.child_text("vcpu").and_then(|count| count.parse().ok()),
            memory_bytes: root.child("memory").and_then(memory_bytes),
            guest_os: guest_os(root).or_else(|| os.and_then(Element::text).map(str::to_owned)),
            agent: agent(&devices),
            disks: devices.children("disk").filter_map(disk).collect(),
            networks: devices.children("interface").enumerate().map(|(at, card)| network(at, card)).collect(),
            name,
            uuid,
        })
    }

    /// The disk with that target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// What libosinfo's metadata say, `http://debian.org/debian/12` as `debian 12`.
fn guest_os(root: &Element) -> Option<String> {
    let info = root.child("metadata")?.children.iter().find(|child| child.name.ends_with("libosinfo"))?;
    let id = info.children.iter().find(|child| child.name.rsplit(':').next() == Some("os"))?.attribute("id")?;
    let mut parts = id.rsplit('/').filter(|part| !part.is_empty());
    let version = parts.next()?;
    Some(parts.next().map_or_else(|| version.to_owned(), |product| format!("{product} {version}")))
}

/// libvirt's units are powers of 1024 but for those with a `B`.
fn memory_bytes(memory: &Element) -> Option<u64> {
    let unit = match memory.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1u64 << 40,
        _ => return None,
    };
    memory.text()?.parse::<u64>().ok()?.checked_mul(unit)
}

fn agent(devices: &Element) -> Agent {
    let targets = devices.children("channel").filter_map(|channel| channel.child("target"));
    let channel = targets.into_iter().find(|target| target.attribute("name") == Some("org.qemu.guest_agent.0"));
    match channel.map(|target| target.attribute("state")) {
        None => Agent::NoChannel,
        Some(Some("connected")) => Agent::Connected,
        Some(_) => Agent::Silent,
    }
}

fn network(at: usize, card: &Element) -> Network {
    let source = card.child("source");
    let named = ["network", "bridge", "dev", "path"].iter().find_map(|name| source?.attribute(name));
    let alias = card.child("target").and_then(|target| target.attribute("dev"));
    let mac = card.child("mac").and_then(|mac| mac.attribute("address"));
    Network {
        // The MAC address stays when cards are added; a card without one (off, never started) has its place only.
        key: mac.or(alias).map_or_else(|| format!("net{at}"), str::to_owned),
        network: named.or(card.attribute("type")).unwrap_or("unknown").to_owned(),
        mac: mac.map(str::to_owned),
        model: card.child("model").and_then(|model| model.attribute("type")).map(str::to_owned),
    }
}

fn disk(element: &Element) -> Option<Disk> {
    let target = element.child("target")?.attribute("dev")?.to_owned();
    let format = element.child("driver").and_then(|driver| driver.attribute("type")).map(str::to_owned);
    let mut layers = vec![Layer { place: place(element), format }];
    let (mut below, mut layers_complete) = (element.child("backingStore"), false);
    while let Some(store) = below {
        // An empty one ends the chain.
        if store.child("source").is_none() {
            layers_complete = true;
            break;
        }
        let format = store.child("format").and_then(|format| format.attribute("type")).map(str::to_owned);
        layers.push(Layer { place: place(store), format });
        below = store.child("backingStore");
    }
    Some(Disk {
        target,
        device: element.attribute("device").unwrap_or("disk").to_owned(),
        readonly: element.child("readonly").is_some(),
        shareable: element.child("shareable").is_some(),
        transient: element.child("transient").is_some(),
        serial: element.child_text("serial").map(str::to_owned),
        wwn: element.child_text("wwn").map(str::to_owned),
        declared: layers.len(),
        layers,
        layers_complete,
        node_index: element.child("source").and_then(|source| source.attribute("index")).map(str::to_owned),
    })
}

fn place(element: &Element) -> Place {
    let source = element.child("source");
    let attribute = |name: &str| source.and_then(|source| source.attribute(name)).map(str::to_owned);
    let kind = element.attribute("type").unwrap_or("file");
    let found = match kind {
        "file" => attribute("file").map(|path| Place::File(cleaned(Path::new(&path)))),
        "block" => attribute("dev").map(|path| Place::Block(cleaned(Path::new(&path)))),
        "volume" => attribute("pool").zip(attribute("volume")).map(|(pool, volume)| Place::Volume { pool, volume }),
        "network" => attribute("protocol")
            .map(|protocol| Place::Network { protocol, name: attribute("name").unwrap_or_default() }),
        _ => None,
    };
    found.unwrap_or_else(|| Place::Other(kind.to_owned()))
}

/// The path without `.`, doubled separators and `..`, by its text alone: the same on a host that cannot see the file.
/// Where a folder on the way is a symbolic link, `..` means another folder; such a path binds to a name that does not
/// exist, which is harmless, and is never opened: opening takes the path as it was written.
pub(super) fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn domain(disks: &str) -> Domain {
        let text = format!(
            "<domain type='qemu' id='3'><name>web</name><uuid>23b7165e-2efc-40b7-9fc7-4af794dd0157</uuid>
             <metadata><libosinfo:libosinfo><libosinfo:os id='http://debian.org/debian/12'/></libosinfo:libosinfo></metadata>
             <memory unit='KiB'>65536</memory><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type></os><devices>{disks}
             <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/></interface>
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/></channel>
             </devices></domain>"
        );
        Domain::parse(&text).unwrap()
    }

    #[test]
    fn the_facts_are_read() {
        let found = domain("");
        assert_eq!((found.name.as_str(), found.running, found.cpu_count), ("web", true, Some(2)));
        assert_eq!((found.memory_bytes, found.guest_os.as_deref()), (Some(64 << 20), Some("debian 12")));
        assert_eq!(found.agent, Agent::Silent);
        assert_eq!(found.networks[0].network, "default");
    }

    fn check(disk: &str, expected: Expect) {
        let found = domain(disk);
        let lines: Vec<String> = found
            .disks
            .iter()
            .map(|disk| {
                let (unsupported, untracked) = (disk.unsupported(), disk.untracked());
                format!("{} | {unsupported:?} | {untracked:?} | {} layers", disk.binding(), disk.layers.len())
            })
            .collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn disks_are_bound_to_target_and_lowest_file() {
        check(
            "<disk type='file' device='disk'><driver type='qcow2'/><source file='/i/s1.qcow2'/><backingStore type='file'>
             <format type='qcow2'/><source file='/i/x/../a.qcow2'/><backingStore/></backingStore><target dev='vda'/>
             <serial>S1</serial></disk>",
            expect!["vda file:/i/a.qcow2 serial=S1 | None | None | 2 layers"],
        );
        check(
            "<disk type='volume' device='disk'><driver type='raw'/><source pool='p' volume='v'/><target dev='vdb'/></disk>
             <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
             <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
             <disk type='block' device='lun'><driver type='raw'/><source dev='/dev/sdx'/><target dev='sdb'/></disk>
             <disk type='file' device='disk'><source file='/i/b'/><target dev='vdd'/></disk>
             <disk type='vhostuser' device='disk'><driver type='raw'/><source type='unix' path='/s'/><target dev='vde'/></disk>",
            expect![[r#"
                vdb volume:p/v | None | Some("raw disk, no change tracking") | 1 layers
                sda file: | Some("a CD-ROM drive") | Some("read-only disk, no change tracking") | 1 layers
                vdc rbd:p/i | None | Some("raw disk, no change tracking") | 1 layers
                sdb block:/dev/sdx | Some("a SCSI device that is passed through (lun)") | Some("raw disk, no change tracking") | 1 layers
                vdd file:/i/b | Some("its format is not declared in the domain") | Some("unknown disk, no change tracking") | 1 layers
                vde vhostuser: | Some("a disk of type vhostuser cannot be read") | Some("unknown disk, no change tracking") | 1 layers"#]],
        );
    }

    proptest! {
        #[test]
        fn a_cleaned_path_has_no_dots(path in "/[a-z./]{0,30}") {
            let clean = cleaned(Path::new(&path));
            prop_assert!(clean.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))));
        }
    }
}
