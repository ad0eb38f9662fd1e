//! Where a new machine goes: the datastore, what runs it, the folder, the networks of its cards.
//!
//! What lives here: choosing among what the server has, and saying what there is where the choice is not clear. What does
//! not: the machine's hardware (`recorded`). Nothing is made here.

use super::recorded::{Recorded, card_kind};
use crate::error::{Error, Kind, Result};
use crate::remote::NewRemoteVm;
use sendense_block::Cancel;
use sendense_vsphere::machine::NewCard;
use sendense_vsphere::place::{Datacenter, Datastore, Network};
use sendense_vsphere::{Ref, Vim};

/// The key of the first card within the specification; the server chooses the real ones.
const CARD_KEY: i32 = -101;
/// Names that are told where a choice is not clear.
const TOLD_MAX: usize = 10;

/// The place of a new machine.
pub(super) struct Place {
    pub datastore: String,
    pub folder: Ref,
    pub pool: Ref,
    pub host: Option<Ref>,
    pub cards: Vec<NewCard>,
}

/// Finds the place that is asked for.
pub(super) fn choose(
    vim: &Vim,
    new: &NewRemoteVm<'_>,
    recorded: &Recorded,
    notes: &mut Vec<String>,
    cancel: &Cancel,
) -> Result<Place> {
    let datacenters = vim.datacenters(cancel)?;
    let (folder, within) = match new.folder {
        None => (None, None),
        Some(path) => {
            let folders = vim.folders(cancel)?;
            let folder = folders
                .find(path)
                .ok_or_else(|| Error::new(Kind::NotFound, format!("the server has no folder {path:?}")))?;
            let within = folders.datacenter_of(&folder);
            (Some(folder), within)
        }
    };
    let (datacenter, datastore) = datastore(vim, new, recorded, &datacenters, within.as_ref(), cancel)?;
    let wanted: u64 = new.disks.iter().map(|disk| disk.capacity_bytes).fold(0, u64::saturating_add);
    if wanted > datastore.free_bytes {
        // Not refused: the disks are thin, and how much they hold is known when they are written.
        let (name, free) = (&datastore.name, datastore.free_bytes >> 20);
        notes.push(format!("{name} has {free} MiB free; the disks may grow to {} MiB", wanted >> 20));
    }
    let (pool, host) = compute(vim, new, &datastore, cancel)?;
    let networks = vim.networks(cancel)?;
    let here: Vec<&Network> =
        networks.iter().filter(|network| datacenter.networks.contains(&network.reference)).collect();
    Ok(Place {
        cards: cards(new, recorded, &here, notes)?,
        folder: folder.unwrap_or_else(|| datacenter.machines.clone()),
        datastore: datastore.name,
        pool,
        host,
    })
}

fn datastore<'d>(
    vim: &Vim,
    new: &NewRemoteVm<'_>,
    recorded: &Recorded,
    datacenters: &'d [Datacenter],
    within: Option<&Ref>,
    cancel: &Cancel,
) -> Result<(&'d Datacenter, Datastore)> {
    let holds = |one: &Datacenter, store: &Datastore| {
        within.is_none_or(|within| one.reference == *within) && one.datastores.contains(&store.reference)
    };
    let all = vim.datastores(cancel)?;
    let reached = |store: &Datastore| store.accessible && datacenters.iter().any(|one| holds(one, store));
    let stores: Vec<Datastore> = all.into_iter().filter(reached).collect();
    let there = || told(stores.iter().map(|store| store.name.as_str()));
    let wanted = new.datastore.or_else(|| recorded.datastore());
    let found = match (stores.iter().find(|store| Some(store.name.as_str()) == wanted), stores.as_slice()) {
        (Some(found), _) => found,
        // The original's is gone, and there is no choice.
        (None, [only]) if new.datastore.is_none() => only,
        (None, _) => {
            let message = match wanted {
                Some(name) => format!("there is no datastore {name:?} that can be reached"),
                None => "the point does not say on which datastore the machine was".to_owned(),
            };
            return Err(Error::new(Kind::NotFound, message).hint(format!("name one of {}", there())));
        }
    };
    let datacenter = datacenters
        .iter()
        .find(|one| holds(one, found))
        .ok_or_else(|| Error::new(Kind::NotFound, format!("the datastore {} is in no datacenter", found.name)))?;
    Ok((datacenter, found.clone()))
}

/// The pool of a cluster or host that reaches the datastore, and such a host: a cluster that does not place machines
/// by itself wants to be told.
fn compute(vim: &Vim, new: &NewRemoteVm<'_>, datastore: &Datastore, cancel: &Cancel) -> Result<(Ref, Option<Ref>)> {
    let (computes, hosts) = (vim.computes(cancel)?, vim.hosts(cancel)?);
    let mut able = Vec::new();
    for compute in &computes {
        let reaches = |host: &&sendense_vsphere::place::Host| {
            host.usable
                && host.compute.as_ref() == Some(&compute.reference)
                && host.datastores.contains(&datastore.reference)
        };
        if let Some(host) = hosts.iter().find(reaches) {
            able.push((compute, host));
        }
    }
    let names = || told(able.iter().map(|(compute, _)| compute.name.as_str()));
    let found = match new.cluster {
        None => able.first(),
        Some(name) => able.iter().find(|(compute, host)| compute.name == name || host.name == name),
    };
    match (found, new.cluster) {
        (Some((compute, host)), _) => Ok((compute.pool.clone(), Some(host.reference.clone()))),
        (None, None) => Err(Error::new(
            Kind::Unavailable,
            format!("no host that is connected and not in maintenance reaches the datastore {}", datastore.name),
        )),
        (None, Some(name)) => {
            let message = format!("there is no cluster or host {name:?} that reaches the datastore {}", datastore.name);
            Err(Error::new(Kind::NotFound, message).hint(format!("those that do are {}", names())))
        }
    }
}

fn cards(
    new: &NewRemoteVm<'_>,
    recorded: &Recorded,
    networks: &[&Network],
    notes: &mut Vec<String>,
) -> Result<Vec<NewCard>> {
    let find = |name: &str| networks.iter().find(|network| network.name == name);
    let mut cards = Vec::new();
    for (card, key) in recorded.networks.iter().zip((0..).map(|number| CARD_KEY - number)) {
        let mapped = new.networks.get(card.network().unwrap_or_default());
        let mapped = card.mac.as_ref().and_then(|mac| new.networks.get(mac)).or(mapped);
        let (network, connected) = match mapped {
            Some(Some(name)) => match find(name) {
                Some(network) => (Some(network), true),
                None => {
                    let there = told(networks.iter().map(|network| network.name.as_str()));
                    let error = Error::new(Kind::NotFound, format!("there is no network {name:?}"));
                    return Err(error.hint(format!("there are {there}")));
                }
            },
            // A card must be in some network, also while it is not connected: where it was, if that is there.
            Some(None) => (card.network().and_then(find).or(networks.first()), false),
            None => {
                let was = card.network().unwrap_or("no network");
                notes.push(format!("{}: it was in {was}, nobody said where it goes; it is not connected", card.label));
                (card.network().and_then(find).or(networks.first()), false)
            }
        };
        let Some(network) = network else {
            notes.push(format!("{}: there is no network at all; the card is left out", card.label));
            continue;
        };
        cards.push(NewCard {
            key,
            kind: card_kind(&card.kind, notes).to_owned(),
            network: network.backing.clone(),
            mac: card.mac.clone().filter(|mac| new.keep_identity && is_mac(mac)),
            connected,
        });
    }
    Ok(cards)
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

fn told<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.take(TOLD_MAX).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
