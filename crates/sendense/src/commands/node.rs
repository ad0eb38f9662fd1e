//! `sendense node`: what an administrator does with nodes at the hub, and what is done on the node's machine.

use super::backup::confirmed;
use super::hub::{log_to_stderr, tell_systemd};
use super::{absolute, block_on};
use crate::args::{Global, NodeArgs, NodeCommand, NodePlace, NodeRun};
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::tables;
use anyhow::{Context as _, Result, bail};
use sendense_api::reply::{DoneReply, NodeListReply, NodeWelcomeReply, PairingReply};
use sendense_api::{CreatePairing, ListQuery, NodeLimit, fingerprint_of};
use sendense_block::Cancel;
use sendense_node::identity::{self, HubAddress, HubTrust, Identity};
use sendense_node::remote::service::{self, Options};
use sendense_source::vsphere;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the command.
pub fn run(global: &Global, args: NodeArgs) -> Result<u8> {
    let Some(command) = args.command else { return serve(args.run) };
    match command {
        NodeCommand::Enrol { hub, code, proxy, place } => block_on(enrol(global, hub, code, proxy, place)),
        NodeCommand::Check(place) => block_on(check(global, place)),
        NodeCommand::Trust(place) => block_on(trust(global, place)),
        NodeCommand::Doctor { vddk_libdir, nbdkit_plugin, transports } => {
            doctor(global, vddk_libdir, nbdkit_plugin, transports)
        }
        command => {
            let context = Context::new(global)?;
            block_on(administer(context, command))
        }
    }
}

/// Runs as a node until SIGTERM or SIGINT, or until the hub refuses it.
fn serve(args: NodeRun) -> Result<u8> {
    log_to_stderr(args.log_json);
    let folder = absolute(&args.place.data_dir)?;
    let mut identity = Identity::open(&folder)?;
    if let Some(name) = args.name.filter(|name| *name != identity.name) {
        bail!("{} holds node {} and not {name}", folder.display(), identity.name);
    }
    if let Some(url) = args.hub.filter(|url| *url != identity.hub.url) {
        identity.change_hub(&folder, HubAddress { url, ..identity.hub.clone() })?;
    }
    let options = Options {
        data_dir: folder,
        allow_paths: args.allow_paths.iter().map(|path| absolute(path)).collect::<Result<_>>()?,
        bytes_per_second: args.bandwidth,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let stop = Cancel::new();
    let asked = stop.clone();
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell_systemd(&[sd_notify::NotifyState::Stopping]);
            say("stopping: running backups are given up, their sources are let go");
            asked.cancel();
        });
        anyhow::Ok(())
    })?;
    let ready = || {
        // The one line on stdout: scripts wait for it.
        println!("node {} of {}", identity.name, identity.hub.url);
        tell_systemd(&[sd_notify::NotifyState::Ready]);
    };
    match service::run(&identity, options, runtime.handle().clone(), &stop, ready) {
        Ok(()) => Ok(0),
        // Told as the hub's own words are, with their exit code.
        Err(service::Error::Refused(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

async fn administer(context: Context, command: NodeCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        NodeCommand::Pair { name } => {
            let pairing = client.create_pairing(&CreatePairing { name }).await?;
            if context.json {
                json(&PairingReply::from(pairing))?;
            } else {
                line(&pairing.code);
                say(format!("lets one node in as {} until {}. On its machine:", pairing.name, pairing.expires_at));
                say(format!(
                    "sendense node enrol --hub https://HOST:PORT --code {} --fingerprint {}",
                    pairing.code, pairing.fingerprint
                ));
            }
        }
        NodeCommand::List => {
            let page = client.list_nodes(&ListQuery::default()).await?;
            if context.json {
                json(&NodeListReply::from(page))?;
            } else {
                show(tables::nodes(&page.items));
            }
        }
        NodeCommand::Limit { node, bandwidth, windows, time_zone, none } => {
            let time_zone = (!none).then_some(time_zone);
            client.limit_node(&node, &NodeLimit { bytes_per_second: bandwidth, time_zone, windows }).await?;
            let done =
                if none { format!("node {node} takes what there is") } else { format!("node {node} keeps to it") };
            if context.json { json(&DoneReply::new(done))? } else { say(done) }
        }
        NodeCommand::Revoke { node } => {
            client.revoke_node(&node).await?;
            if context.json {
                json(&DoneReply::new(format!("node {node} revoked")))?;
            } else {
                say(format!("node {node} is revoked"));
            }
        }
        NodeCommand::Enrol { .. } | NodeCommand::Check(_) | NodeCommand::Trust(_) | NodeCommand::Doctor { .. } => {
            unreachable!("handled above")
        }
    }
    Ok(0)
}

async fn enrol(global: &Global, url: String, code: String, proxy: Option<String>, place: NodePlace) -> Result<u8> {
    let folder = absolute(&place.data_dir)?;
    let trust = known_by(global, &url, proxy.as_deref()).await?;
    let identity = Identity::enrol(&folder, HubAddress { url, trust, proxy }, code).await.map_err(told)?;
    // Only an answer over the new certificate shows that the next connection will work.
    let welcome = identity::hello(&identity.client()?).await?;
    if global.json {
        json(&NodeWelcomeReply::from(welcome))?;
    } else {
        say(format!(
            "this machine is node {} now ({}), its key lies in {}",
            identity.name,
            identity.node_id,
            folder.display()
        ));
    }
    Ok(0)
}

async fn check(global: &Global, place: NodePlace) -> Result<u8> {
    let identity = Identity::open(&absolute(&place.data_dir)?)?;
    let welcome = identity::hello(&identity.client()?).await?;
    if global.json {
        json(&NodeWelcomeReply::from(welcome))?;
    } else {
        say(format!("{} knows this machine as node {} ({})", identity.hub.url, welcome.name, welcome.node_id));
    }
    Ok(0)
}

async fn trust(global: &Global, place: NodePlace) -> Result<u8> {
    let folder = absolute(&place.data_dir)?;
    let mut identity = Identity::open(&folder)?;
    let trust = known_by(global, &identity.hub.url, identity.hub.proxy.as_deref()).await?;
    let hub = HubAddress { trust, ..identity.hub.clone() };
    identity.change_hub(&folder, hub)?;
    check(global, place).await
}

/// Works without a hub: it may be what is to be repaired before there is one.
fn doctor(global: &Global, libdir: Option<PathBuf>, plugin: Option<PathBuf>, transports: Option<String>) -> Result<u8> {
    let whole = |path: Option<PathBuf>| path.map(|path| absolute(&path)).transpose();
    let found = vsphere::examine(whole(libdir)?, whole(plugin)?, transports, &Cancel::new())?;
    let is_well = found.iter().all(|one| one.advice.is_none());
    if global.json {
        let findings: Vec<_> = found
            .iter()
            .map(|one| {
                let ok = one.advice.is_none();
                serde_json::json!({ "what": one.what, "ok": ok, "found": one.told, "advice": one.advice })
            })
            .collect();
        json(&serde_json::json!({ "success": is_well, "findings": findings }))?;
    } else {
        for one in &found {
            line(format!("{:<8}{:<14}{}", if one.advice.is_none() { "ok" } else { "PROBLEM" }, one.what, one.told));
            if let Some(advice) = &one.advice {
                line(format!("{:<22}{advice}", ""));
            }
        }
    }
    Ok(u8::from(!is_well))
}

/// What the hub said is told as from any other command, with its exit code.
fn told(error: identity::Error) -> anyhow::Error {
    match error {
        identity::Error::Hub(error) => error.into(),
        error => error.into(),
    }
}

/// By what the hub is known from now on: what the command line says, else what a person confirms.
async fn known_by(global: &Global, url: &str, proxy: Option<&str>) -> Result<HubTrust> {
    if let Some(path) = &global.ca_file {
        return Ok(HubTrust::Ca(std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?));
    }
    if let Some(fingerprint) = &global.fingerprint {
        return Ok(HubTrust::Fingerprint(fingerprint.clone()));
    }
    let shown = fingerprint_of(url, proxy).await?;
    say(format!("{url} shows a certificate with the SHA-256 fingerprint\n{shown}"));
    say("`sendense hub` prints its own when it starts, and `sendense node pair` does.");
    let hint = "give the hub's fingerprint with --fingerprint, or its authority with --ca-file";
    if !confirmed("Is it the same?", hint)? {
        bail!("the hub was not confirmed; nothing was sent to it");
    }
    Ok(HubTrust::Fingerprint(shown))
}
