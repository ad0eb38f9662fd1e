//! `sendense hub recovery-key`, `copies` and `recover`: for the day on which the hub's machine is gone.

use super::{absolute, block_on};
use crate::args::{HubCommand, HubRecoverArgs};
use crate::output::{bytes, duration, json, line, moment, say, table as show};
use crate::secret;
use crate::tables::{Table, facts};
use anyhow::{Context as _, Result, bail};
use sendense_hub::catalog_copy::{self, Recover, RecoveryKey, Shown};
use sendense_types::{Clock as _, SystemClock};
use std::io::IsTerminal;
use std::path::Path;

/// Holds the recovery key, for scripts.
const KEY_VARIABLE: &str = "SENDENSE_RECOVERY_KEY";

/// Runs the command.
pub fn run(command: HubCommand, as_json: bool) -> Result<u8> {
    match command {
        HubCommand::RecoveryKey { data_dir } => {
            let key = catalog_copy::recovery_key(&absolute(&data_dir)?)?;
            if as_json {
                json(&serde_json::json!({ "success": true, "recovery_key": key.to_text(), "key_id": key.id() }))?;
            } else {
                line(key.to_text());
                say(
                    "keep it where this machine's end does not reach: whoever has it and a copy of the catalog has all passwords in it",
                );
            }
        }
        HubCommand::Copies { from } => copies(&absolute(&from)?, as_json)?,
        HubCommand::Recover(args) => block_on(recover(args, as_json))?,
    }
    Ok(0)
}

fn copies(from: &Path, as_json: bool) -> Result<()> {
    let shown = catalog_copy::list(from)?;
    let key_of = |shown: &Shown| match &shown.header {
        Ok(header) => header.key_id.clone(),
        Err(error) => format!("{error}"),
    };
    if as_json {
        let copies = shown.iter().map(|one| {
            let (key_id, problem) = match &one.header {
                Ok(header) => (Some(header.key_id.clone()), None),
                Err(error) => (None, Some(error.to_string())),
            };
            serde_json::json!({
                "name": one.copy.name, "made_at": one.copy.made_at, "bytes": one.copy.bytes,
                "deployment_id": one.copy.deployment_id, "key_id": key_id, "problem": problem,
            })
        });
        json(&serde_json::json!({ "success": true, "catalog_copies": copies.collect::<Vec<_>>() }))?;
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "MADE", "SIZE", "DEPLOYMENT", "KEY"], &[2]);
    for one in &shown {
        let copy = &one.copy;
        let deployment = copy.deployment_id.to_string();
        table.row([copy.name.clone(), moment(copy.made_at), bytes(copy.bytes), deployment, key_of(one)]);
    }
    show(table);
    Ok(())
}

async fn recover(args: HubRecoverArgs, as_json: bool) -> Result<()> {
    let key = key(args.recovery_key_file.as_deref())?;
    let wanted = Recover {
        repository: absolute(&args.from)?,
        copy: args.copy.clone(),
        deployment_id: args.deployment,
        key,
        data_dir: absolute(&args.data_dir)?,
        database_url: args.database_url,
        old_hub_is_gone: args.old_hub_is_gone,
        now: SystemClock.now(),
    };
    let recovered = catalog_copy::recover(wanted).await.map_err(|error| {
        // The one before it may be whole; it is for a person to say that an older one will do.
        let hint = matches!(&error, catalog_copy::Error::Sealed { .. } | catalog_copy::Error::Contents(_));
        let old_hub = matches!(&error, catalog_copy::Error::OldHub { .. });
        let error = anyhow::Error::from(error);
        if old_hub {
            return error.context("recover (end the old hub and wait for its lease, or say --old-hub-is-gone)");
        }
        if hint { error.context("recover (see `sendense hub copies` for others, and --copy)") } else { error }
    })?;
    let counts = recovered.counts;
    if as_json {
        json(&serde_json::json!({
            "success": true, "copy": recovered.copy, "made_at": recovered.made_at,
            "deployment_id": recovered.deployment_id, "hub_id": recovered.hub_id,
            "repositories": counts.repositories, "sources": counts.sources, "vms": counts.vms,
            "policies": counts.policies, "schedules": counts.schedules, "tokens": counts.tokens, "nodes": counts.nodes,
        }))?;
        return Ok(());
    }
    show(facts(vec![
        ("copy", recovered.copy),
        ("made", moment(recovered.made_at)),
        ("deployment", recovered.deployment_id.to_string()),
        ("hub", recovered.hub_id.to_string()),
        ("repositories", counts.repositories.to_string()),
        ("sources", counts.sources.to_string()),
        ("machines", counts.vms.to_string()),
        ("policies", counts.policies.to_string()),
        ("schedules", counts.schedules.to_string()),
        ("tokens", counts.tokens.to_string()),
        ("nodes", counts.nodes.to_string()),
    ]));
    let age = duration(SystemClock.now().seconds_since(recovered.made_at).max(0.0));
    say(format!(
        "the copy is {age} old: what was changed since then is undone, also tokens and nodes that were revoked"
    ));
    say("start the hub on this data folder; it takes the restore points in by itself");
    Ok(())
}

fn key(file: Option<&Path>) -> Result<RecoveryKey> {
    let from_environment = std::env::var(KEY_VARIABLE).ok().filter(|text| !text.is_empty());
    let text = match (file, from_environment) {
        (Some(file), _) => secret::from_file(file)?.expose().to_owned(),
        (None, Some(text)) => text,
        (None, None) if std::io::stdin().is_terminal() => rpassword::prompt_password("recovery key: ")?,
        (None, None) => {
            bail!("stdin is no terminal to ask for the recovery key on: use --recovery-key-file or {KEY_VARIABLE}")
        }
    };
    text.parse().context("read the recovery key")
}
