//! Where a new machine can go: datacenters, what computes in them, their datastores and networks.
//!
//! What lives here: reading them. What does not: choosing among them; whoever makes the machine does.

use crate::client::Vim;
use crate::error::Result;
use crate::inventory::unescaped;
use crate::machine::CardNetwork;
use crate::property::Object;
use crate::reply::reference;
use crate::request::Ref;
use sendense_block::Cancel;

/// A datacenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datacenter {
    /// The object.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// The folder that all its machines lie below.
    pub machines: Ref,
    /// Its datastores.
    pub datastores: Vec<Ref>,
    /// Its networks.
    pub networks: Vec<Ref>,
}

/// A datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datastore {
    /// The object.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// Whether any host reaches it.
    pub accessible: bool,
    /// What is free, as the server last looked.
    pub free_bytes: u64,
}

/// A host, or a cluster of some, that machines run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compute {
    /// The object.
    pub reference: Ref,
    /// Its name: the cluster's, or the host's.
    pub name: String,
    /// Its outermost resource pool.
    pub pool: Ref,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The object.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// What it computes for.
    pub compute: Option<Ref>,
    /// The datastores that it reaches.
    pub datastores: Vec<Ref>,
    /// Connected, and not in maintenance.
    pub usable: bool,
}

/// A network that a card can be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The object.
    pub reference: Ref,
    /// Its name.
    pub name: String,
    /// What a card is told.
    pub backing: CardNetwork,
}

fn name(object: &Object) -> String {
    unescaped(object.text("name").unwrap_or(&object.reference.id))
}

fn references(object: &Object, property: &str) -> Vec<Ref> {
    object.get(property).map(|value| value.children.iter().filter_map(reference).collect()).unwrap_or_default()
}

impl Vim {
    /// All datacenters; a bare host has one.
    pub fn datacenters(&self, cancel: &Cancel) -> Result<Vec<Datacenter>> {
        let found = self.all("Datacenter", &["name", "vmFolder", "datastore", "network"], cancel)?;
        let read = |object: &Object| {
            Some(Datacenter {
                reference: object.reference.clone(),
                name: name(object),
                machines: object.reference("vmFolder")?,
                datastores: references(object, "datastore"),
                networks: references(object, "network"),
            })
        };
        Ok(found.iter().filter_map(read).collect())
    }

    /// All datastores.
    pub fn datastores(&self, cancel: &Cancel) -> Result<Vec<Datastore>> {
        let found = self.all("Datastore", &["name", "summary.accessible", "summary.freeSpace"], cancel)?;
        let read = |object: &Object| Datastore {
            reference: object.reference.clone(),
            name: name(object),
            accessible: object.flag("summary.accessible").unwrap_or(true),
            free_bytes: object.number("summary.freeSpace").unwrap_or(0),
        };
        Ok(found.iter().map(read).collect())
    }

    /// All hosts and clusters that machines run on.
    pub fn computes(&self, cancel: &Cancel) -> Result<Vec<Compute>> {
        let mut computes: Vec<Compute> = Vec::new();
        // A cluster is a compute resource for some servers and not for others.
        for kind in ["ComputeResource", "ClusterComputeResource"] {
            for object in self.all(kind, &["name", "resourcePool"], cancel)? {
                let known = computes.iter().any(|one| one.reference == object.reference);
                if let (false, Some(pool)) = (known, object.reference("resourcePool")) {
                    computes.push(Compute { reference: object.reference.clone(), name: name(&object), pool });
                }
            }
        }
        Ok(computes)
    }

    /// All hosts.
    pub fn hosts(&self, cancel: &Cancel) -> Result<Vec<Host>> {
        let properties = ["name", "parent", "datastore", "runtime.connectionState", "runtime.inMaintenanceMode"];
        let found = self.all("HostSystem", &properties, cancel)?;
        let read = |object: &Object| Host {
            reference: object.reference.clone(),
            name: name(object),
            compute: object.reference("parent"),
            datastores: references(object, "datastore"),
            usable: object.text("runtime.connectionState").is_none_or(|state| state == "connected")
                && !object.flag("runtime.inMaintenanceMode").unwrap_or(false),
        };
        Ok(found.iter().map(read).collect())
    }

    /// All networks that a card can be in: standard ones, and port groups of distributed switches.
    pub fn networks(&self, cancel: &Cancel) -> Result<Vec<Network>> {
        let mut networks = Vec::new();
        for object in self.all("Network", &["name"], cancel)? {
            // Port groups are networks, too, and come below.
            if object.reference.kind == "Network" {
                let name = name(&object);
                let backing = CardNetwork::Standard(name.clone());
                networks.push(Network { reference: object.reference, name, backing });
            }
        }
        let groups =
            self.all("DistributedVirtualPortgroup", &["name", "key", "config.distributedVirtualSwitch"], cancel)?;
        for object in groups {
            let (Some(key), Some(switch)) = (object.text("key"), object.reference("config.distributedVirtualSwitch"))
            else {
                continue;
            };
            let Some(switch_uuid) = self.properties(&switch, &["uuid"], cancel)?.text("uuid").map(str::to_owned) else {
                continue;
            };
            let backing = CardNetwork::Distributed { switch_uuid, portgroup_key: key.to_owned() };
            networks.push(Network { name: name(&object), reference: object.reference, backing });
        }
        Ok(networks)
    }
}
