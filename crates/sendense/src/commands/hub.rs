//! `sendense hub`: starts the server and keeps it until it is told to end.

use super::absolute;
use crate::args::HubArgs;
use crate::output::say;
use anyhow::{Context as _, Result, bail};
use sendense_block::nbd::TlsIdentity;
use sendense_block::nbd::server::ServerTls;
use sendense_hub::{Hub, HubConfig, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Runs the hub until SIGTERM or SIGINT.
pub fn run(args: HubArgs, as_json: bool) -> Result<u8> {
    if let Some(command) = args.command {
        return super::hub_recover::run(command, as_json);
    }
    log_to_stderr(args.log_json);
    let config = config(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let served = runtime.block_on(serve(config));
    // All that the hub waits for has ended. A thread that hangs in the kernel is not waited for: it ends with the process.
    runtime.shutdown_background();
    served.map(|()| 0)
}

fn config(args: HubArgs) -> Result<HubConfig> {
    let data_dir = args.data_dir.context("--data-dir is required")?;
    let mut config = HubConfig::new(absolute(&data_dir)?);
    config.listen = args.listen;
    config.database_url = args.database_url;
    config.allow_paths = args.allow_paths.iter().map(|path| absolute(path)).collect::<Result<_>>()?;
    config.tls = args.tls_cert.zip(args.tls_key).map(|(certificate, key)| TlsFiles { certificate, key });
    config.limits.running_per_hub = args.running_tasks_max as usize;
    config.limits.pending_max = args.waiting_tasks_max as usize;
    config.limits.mounts_max = args.mounts_max as usize;
    config.limits.mount_idle_seconds = args.mount_idle_seconds.into();
    config.nbd.listen = args.nbd_listen;
    config.nbd.host = args.nbd_host;
    config.nbd.exports_max = args.exports_max as usize;
    config.nbd.idle_seconds = args.export_idle_seconds;
    if let (Some(certificate_file), Some(key_file), Some(client_ca_file)) =
        (args.nbd_tls_cert, args.nbd_tls_key, args.nbd_tls_client_ca)
    {
        config.nbd.tls = Some(ServerTls { identity: TlsIdentity { certificate_file, key_file }, client_ca_file });
    }
    config.recovery.dir = args.recovery_dir.map(|path| absolute(&path)).transpose()?;
    config.recovery.floor_bytes = args.recovery_floor.as_u64();
    config.recovery.recoveries_max = args.recoveries_max as usize;
    config.hooks_dir = args.hooks_dir.map(|path| absolute(&path)).transpose()?;
    config.limits.lease_seconds = args.lease_seconds;
    config.limits.audit_per_million = args.audit_per_million;
    config.limits.node_lease_seconds = args.node_lease_seconds;
    config.limits.verify_after_days = args.verify_after_days;
    config.limits.verify_deep = args.verify_deep;
    // Nothing at all would never end.
    config.limits.chain_points_max = args.chain_points_max;
    config.limits.verify_bytes_per_second = args.verify_rate.as_u64().max(1 << 20);
    config.limits.history_days = args.history_days;
    config.limits.merge_bytes_per_second = args.merge_rate.as_u64().max(1 << 20);
    config.accept_new_key = args.accept_new_key;
    Ok(config)
}

async fn serve(config: HubConfig) -> Result<()> {
    let token_file = config.data_dir.join("admin-token");
    // Asked for before anything is started: a signal that comes early must not kill the process half-way.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hub = Hub::start(config).await?;
    // The one line on stdout: scripts wait for it and read the port from it.
    println!("listening on {}", hub.url());
    if let Some(fingerprint) = hub.fingerprint() {
        println!("certificate {fingerprint}");
    }
    say(format!("admin token in {}", token_file.display()));
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let superseded = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = hub.superseded() => true,
    };
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    say("stopping: no new work is taken, running work is ended");
    hub.shutdown().await;
    if superseded {
        // Two processes with one identity: a data folder that was copied, say. The later one works on.
        bail!("another process has started as the same hub on this catalog; give each hub a data folder of its own");
    }
    Ok(())
}

/// Does nothing where systemd did not start us.
pub(super) fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "tell systemd");
    }
}

pub(super) fn log_to_stderr(json: bool) {
    // RUST_LOG chooses; by default state changes and what a person must look at, without the chatter of libraries.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,sea_orm=warn,hyper=warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if json { subscriber.json().init() } else { subscriber.init() }
}
