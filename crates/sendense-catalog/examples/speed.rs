//! How fast the catalog answers with 100,000 backups in it, while eight backups report their progress.
//!
//! `cargo run --release -p sendense-catalog --example speed -- 'sqlite:///tmp/speed.db?mode=rwc'` (or a URL of an empty
//! MariaDB or PostgreSQL database). Rows are filled in by plain SQL, then every list and lookup is called through the
//! catalog and timed. With `fill` after the URL it only fills, for a hub that is measured then (`bench/catalog.sh`).

use sea_orm::{ConnectionTrait, Database};
use sendense_catalog::*;
use sendense_types::*;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const VMS: u32 = 200;
const BACKUPS: u32 = 100_000;
const REPOSITORIES: u32 = 4;
const CALLS: usize = 300;

type Any = Box<dyn std::error::Error + Send + Sync>;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_800_000_000_000_000).plus_seconds(seconds)
}

#[tokio::main]
async fn main() -> Result<(), Any> {
    let url = std::env::args().nth(1).ok_or("give a database URL")?;
    let catalog = Catalog::open(&url).await?;
    let begun = Instant::now();
    let (source_id, repositories, vms) = machines(&catalog).await?;
    fill(&url, &repositories, &vms).await?;
    // What was filled in behind its back is counted when the catalog is opened.
    catalog.close().await?;
    if std::env::args().nth(2).as_deref() == Some("fill") {
        return say(&format!("filled in {:.1} s", begun.elapsed().as_secs_f64()));
    }
    let opened = Instant::now();
    let catalog = Catalog::open(&url).await?;
    say(&format!("opened and counted in {:.0} ms", opened.elapsed().as_secs_f64() * 1e3))?;
    say(&format!("{}; filled in {:.1} s", catalog.database_version().await?, begun.elapsed().as_secs_f64()))?;

    let hub = catalog.hubs().acquire(&"hub-1".parse()?, at(1_000_000), at(0)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let reports = Arc::new(AtomicU64::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for vm in vms.iter().take(8) {
        let claim = begin(&catalog, &hub, vm, &repositories[0]).await?;
        let (catalog, stop, reports) = (catalog.clone(), stop.clone(), reports.clone());
        writers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                catalog.backups().progress(&claim, &progress()).await?;
                reports.fetch_add(1, Ordering::Relaxed);
                // Ten times as often as a backup reports.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, Error>(())
        });
    }
    lists(&catalog, &repositories, &vms).await?;
    lookups(&catalog, &source_id, &repositories, &vms).await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = writers.join_next().await {
        done??;
    }
    say(&format!("{} progress reports beside", reports.load(Ordering::Relaxed)))
}

fn say(text: &str) -> Result<(), Any> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

async fn machines(catalog: &Catalog) -> Result<(SourceId, Vec<RepositoryId>, Vec<VmContextId>), Any> {
    let source_id = SourceId::generate();
    let source = NewSource {
        source_id: source_id.clone(),
        name: "kvm".parse()?,
        kind: SourceKind::Libvirt,
        config: json!({}),
        secret: None,
    };
    catalog.sources().create(&source, at(0)).await?;
    let mut repositories = Vec::new();
    for number in 0..REPOSITORIES {
        let new = NewRepository {
            repository_id: RepositoryId::generate(),
            name: format!("repo{number}").parse()?,
            kind: RepositoryKind::Local,
            // A hub finds nothing there, and leaves the rows as they are.
            config: json!({"path": format!("/nonexistent/repo{number}")}),
            settings: json!({"compression": "default"}),
            secret: None,
        };
        repositories.push(catalog.repositories().create(&new, at(0)).await?.repository_id);
    }
    let mut told = Vec::new();
    for number in 0..VMS {
        let disk = |disk: u32| DiscoveredDisk {
            disk_key: format!("vd{disk}"),
            binding: DiskBinding(format!("vd{disk}|/images/{number}-{disk}")),
            label: format!("vd{disk}"),
            capacity_bytes: 1 << 34,
            datastore: None,
            format: Some("qcow2".to_owned()),
        };
        told.push(DiscoveredVm {
            instance_uuid: format!("uuid-{number}"),
            vm_name: format!("vm{number}").parse()?,
            named_at_path: false,
            path: None,
            folder: Some(format!("dc/vm/group-{}", number % 50)),
            power_state: PowerState::On,
            facts: json!({}),
            disks: vec![disk(0), disk(1)],
        });
    }
    let vms = catalog.vms().upsert_discovered(&source_id, &told, at(0)).await?.vm_context_ids;
    Ok((source_id, repositories, vms))
}

/// Chains of 14 points, the VMs in turn, three of a hundred attempts failed; the task of each.
async fn fill(url: &str, repositories: &[RepositoryId], vms: &[VmContextId]) -> Result<(), Any> {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let raw = Database::connect(options).await?;
    raw.execute_unprepared("BEGIN").await?;
    let mut newest: Vec<Option<(String, u32)>> = vec![None; vms.len()];
    for first in (0..BACKUPS).step_by(500) {
        let mut backups = String::from(
            "INSERT INTO backups (backup_id, vm_context_id, vm_name, repository_id, requested_type, backup_type, \
             parent_backup_id, status, bytes_done, bytes_transferred, bytes_stored, total_bytes, consistency, tags, \
             partial, quiesce, compression, on_tracking_loss, created_at, started_at, completed_at) VALUES ",
        );
        let mut disks = String::from(
            "INSERT INTO backup_disks (backup_id, disk_id, vm_context_id, repository_id, disk_key, label, backup_type, \
             file_path, capacity_bytes, bytes_transferred, bytes_stored, change_id, status, parent_backup_id) VALUES ",
        );
        let mut tasks = String::from(
            "INSERT INTO tasks (task_id, kind, state, subject_kind, subject_id, request, version, attempts, cancel_requested, \
             bytes_done, bytes_total, log_next, created_at, started_at, finished_at) VALUES ",
        );
        for number in first..(first + 500).min(BACKUPS) {
            let vm = number as usize % vms.len();
            let (vm_id, repository) = (&vms[vm], &repositories[vm % repositories.len()]);
            let id = format!("bk-{number:08}");
            let failed = number % 33 == 5;
            let status = if failed { "failed" } else { "completed" };
            let parent = newest[vm].as_ref().filter(|(_, length)| *length < 14);
            let kind = if parent.is_some() { "incremental" } else { "full" };
            let parent_sql = parent.map_or("NULL".to_owned(), |(id, _)| format!("'{id}'"));
            let comma = if number == first { "" } else { ", " };
            let micros = at(i64::from(number)).as_micros();
            write!(
                backups,
                "{comma}('{id}', '{vm_id}', 'vm{vm}', '{repository}', '{kind}', '{kind}', {parent_sql}, '{status}', \
                 1, 2, 3, 4, 'crash', '{{}}', false, false, 'default', 'compare', {micros}, {micros}, {micros})"
            )?;
            write!(
                tasks,
                "{comma}('task-{number:08}', 'backup', '{status}', 'backup', '{id}', '{{}}', 3, 1, false, 1, 1, 0, \
                 {micros}, {micros}, {micros})"
            )?;
            for disk in 0..2 {
                let comma = if number == first && disk == 0 { "" } else { ", " };
                write!(
                    disks,
                    "{comma}('{id}', {disk}, '{vm_id}', '{repository}', 'vd{disk}', 'vd{disk}', '{kind}', \
                     '{vm_id}/disk-{disk}/{id}.qcow2', 1, 2, 3, 'token-{id}', '{status}', {parent_sql})"
                )?;
            }
            if !failed {
                let length = parent.map_or(0, |(_, length)| *length);
                newest[vm] = Some((id, length + 1));
            }
        }
        raw.execute_unprepared(&backups).await?;
        raw.execute_unprepared(&disks).await?;
        raw.execute_unprepared(&tasks).await?;
    }
    for (vm, newest) in newest.iter().enumerate() {
        let Some((id, _)) = newest else { continue };
        for disk in 0..2 {
            let (vm_id, repository) = (&vms[vm], &repositories[vm % repositories.len()]);
            raw.execute_unprepared(&format!(
                "INSERT INTO chains (vm_context_id, repository_id, disk_id, full_backup_id, latest_backup_id, updated_at) \
                 VALUES ('{vm_id}', '{repository}', {disk}, '{id}', '{id}', 1)"
            ))
            .await?;
        }
    }
    raw.execute_unprepared("COMMIT").await?;
    Ok(raw.close().await?)
}

async fn begin(
    catalog: &Catalog,
    hub: &HubLease,
    vm: &VmContextId,
    repository_id: &RepositoryId,
) -> Result<TaskClaim, Any> {
    let new = NewBackup {
        backup_id: BackupId::generate(),
        task_id: TaskId::generate(),
        vm_context_id: vm.clone(),
        repository_id: repository_id.clone(),
        requested_type: BackupType::Full,
        policy_id: None,
        tags: Default::default(),
        partial: false,
        quiesce: false,
        compression: Compression::Default,
        on_tracking_loss: OnTrackingLoss::Compare,
        created_by: None,
        request: json!({}),
    };
    let (_, task) = catalog.backups().begin(&new, at(200_000)).await?;
    let task = catalog.tasks().claim(&task.claim(), hub, at(900_000), at(200_000)).await?;
    catalog.backups().start(&task.claim(), at(200_000)).await?;
    Ok(task.claim())
}

fn progress() -> Progress {
    Progress {
        phase: Phase::Transferring,
        bytes_done: 1,
        total_bytes: 2,
        bytes_transferred: 1,
        bytes_stored: 1,
        disks: Vec::new(),
        lease_until: at(900_000),
        details: Some(json!({"speed_bps": 1})),
    }
}

async fn lists(catalog: &Catalog, repositories: &[RepositoryId], vms: &[VmContextId]) -> Result<(), Any> {
    let filters: [(&str, BackupFilter); 8] = [
        ("list, no filter", BackupFilter::default()),
        ("list, vm_name", BackupFilter { vm_name: Some("vm17".to_owned()), ..Default::default() }),
        ("list, vm_context_id", BackupFilter { vm_context_id: Some(vms[17].clone()), ..Default::default() }),
        ("list, repository_id", BackupFilter { repository_id: Some(repositories[1].clone()), ..Default::default() }),
        ("list, status completed", BackupFilter { status: Some(BackupStatus::Completed), ..Default::default() }),
        ("list, status cancelled (none)", BackupFilter { status: Some(BackupStatus::Cancelled), ..Default::default() }),
        (
            "list, repository + failed + full",
            BackupFilter {
                repository_id: Some(repositories[1].clone()),
                status: Some(BackupStatus::Failed),
                backup_type: Some(BackupType::Full),
                ..Default::default()
            },
        ),
        (
            "list, vm + completed + full",
            BackupFilter {
                vm_context_id: Some(vms[17].clone()),
                status: Some(BackupStatus::Completed),
                backup_type: Some(BackupType::Full),
                ..Default::default()
            },
        ),
    ];
    for (what, filter) in &filters {
        for offset in [0, 90_000] {
            let page = Page { limit: 100, offset };
            let what = format!("{what}, offset {offset}");
            time(&what, async |_| catalog.backups().list(filter, page).await.map(drop)).await?;
        }
    }
    let page = Page { limit: 1000, offset: 0 };
    time("list, 1000 rows", async |_| catalog.backups().list(&filters[0].1, page).await.map(drop)).await?;
    let page = Page::default();
    time("list of VMs", async |_| catalog.vms().list(&VmFilter::default(), page).await.map(drop)).await?;
    time("list of tasks", async |_| catalog.tasks().list(&TaskFilter::default(), page).await.map(drop)).await?;
    let completed = TaskFilter { state: Some(TaskState::Completed), ..Default::default() };
    time("list of tasks, completed", async |_| catalog.tasks().list(&completed, page).await.map(drop)).await
}

async fn lookups(
    catalog: &Catalog,
    source_id: &SourceId,
    repositories: &[RepositoryId],
    vms: &[VmContextId],
) -> Result<(), Any> {
    let backups = catalog.backups();
    let vm = |round: usize| &vms[round * 7 % vms.len()];
    let id = |round: usize| format!("bk-{:08}", round * 331 % BACKUPS as usize).parse::<BackupId>().expect("an id");
    time("get a backup", async |round| backups.get(&id(round)).await.map(drop)).await?;
    time("children", async |round| backups.children(&id(round)).await.map(drop)).await?;
    time("dependents", async |round| backups.dependents(&id(round)).await.map(drop)).await?;
    time("chain", async |round| backups.chain(vm(round), DiskNumber(0), None).await.map(drop)).await?;
    time("newest completed", async |round| {
        backups.newest_completed(vm(round), &repositories[round * 7 % vms.len() % 4], DiskNumber(1)).await.map(drop)
    })
    .await?;
    time("tokens in use", async |round| backups.tokens_in_use(vm(round)).await.map(drop)).await?;
    time("newest of 100 VMs", async |_| backups.newest_of_vms(&vms[..100]).await.map(drop)).await?;
    time("get a VM", async |round| catalog.vms().get(vm(round)).await.map(drop)).await?;
    time("VMs by name", async |_| catalog.vms().by_name("vm100").await.map(drop)).await?;
    time("get a source", async |_| catalog.sources().get(source_id).await.map(drop)).await
}

async fn time(what: &str, call: impl AsyncFn(usize) -> Result<()>) -> Result<(), Any> {
    let mut took = Vec::with_capacity(CALLS);
    for round in 0..CALLS {
        let begun = Instant::now();
        call(round).await?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let ms = |share: f64| took[((CALLS - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    say(&format!("{what:<48} median {:7.2} ms   p99 {:7.2} ms", ms(0.5), ms(0.99)))
}
