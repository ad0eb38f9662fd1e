//! `sendense offline`: the verbs that work from a repository's folder alone, with no hub and no database.

use crate::args::{Format, OfflineCommand};
use crate::exit::WorkFailed;
use crate::output::{bytes, json, line, moment, say, table as show, verdict};
use crate::tables;
use anyhow::{Context as _, Result, bail};
use sendense_block::Cancel;
use sendense_block::copy::Progress;
use sendense_repo::compared::Given;
use sendense_repo::extract::{self, How, Owner, extract};
use sendense_repo::manifest::Manifest;
use sendense_repo::verify::{Depth, Options, Progress as VerifyProgress, Report, Scope};
use sendense_repo::{OnDamage, Repository};
use sendense_types::{BackupId, DiskNumber, VmContextId};
use serde_json::json as value;
use std::path::{Path, PathBuf};

/// Who holds chains, for messages.
pub(super) const WHO: &str = "offline command";

/// Runs the command.
pub fn run(command: OfflineCommand, as_json: bool) -> Result<u8> {
    match command {
        OfflineCommand::List { repo_path } => list(&repo_path, as_json),
        OfflineCommand::Verify { repo_path, backup_id, deep } => verify(&repo_path, backup_id, deep, as_json),
        OfflineCommand::Restore { repo_path, backup_id, disk, to, format, allow_damaged } => {
            let on_damage = if allow_damaged { OnDamage::Pass } else { OnDamage::Fail };
            restore(&repo_path, &backup_id, disk, &to, format, on_damage)
        }
        OfflineCommand::Export { repo_path, socket } => super::offline_export::run(&repo_path, socket, as_json),
    }
}

pub(super) fn open(path: &Path) -> Result<Repository> {
    Repository::open_read_only(path).with_context(|| format!("open the repository {}", path.display()))
}

/// All points, and how many manifests, or folders of machines, could not be read.
pub(super) fn points(repository: &Repository) -> Result<(Vec<Manifest>, usize)> {
    let (mut points, mut problems) = (Vec::new(), 0);
    for vm in repository.vms()? {
        let listing = match repository.list(&vm) {
            Ok(listing) => listing,
            // The other machines' points are wanted all the more.
            Err(error) => {
                say(format!("warning: {vm}: {}", sendense_block::error::chain(&error)));
                problems += 1;
                continue;
            }
        };
        for problem in &listing.problems {
            say(format!("warning: {}: {}", problem.path.display(), sendense_block::error::chain(&problem.error)));
        }
        problems += listing.problems.len();
        points.extend(listing.points);
    }
    Ok((points, problems))
}

fn list(path: &Path, as_json: bool) -> Result<u8> {
    let (points, problems) = points(&open(path)?)?;
    if as_json {
        let rows: Vec<_> = points
            .iter()
            .map(|point| {
                value!({
                    "backup_id": point.backup_id, "vm_context_id": point.vm_context_id, "vm_name": point.vm.name,
                    "backup_type": point.backup_type, "created_at": point.created_at, "size_bytes": point.file_bytes(),
                    "disks": point.disks.iter().map(|disk| value!({
                        "disk_id": disk.disk_id, "disk_key": disk.disk_key, "capacity_bytes": disk.capacity().0,
                        "backup_type": disk.backup_type, "parent_backup_id": disk.parent_backup_id,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json(&value!({ "success": problems == 0, "points": rows, "unreadable_manifests": problems }))?;
    } else {
        let mut table = tables::Table::new(&["BACKUP", "VM", "DISKS", "TYPE", "SIZE", "CREATED"], &[4]);
        for point in &points {
            let disks: Vec<_> = point.disks.iter().map(|disk| disk.disk_id.to_string()).collect();
            table.row([
                point.backup_id.to_string(),
                point.vm.name.to_string(),
                disks.join(","),
                point.backup_type.to_string(),
                bytes(point.file_bytes()),
                moment(point.created_at),
            ]);
        }
        show(table);
    }
    Ok(u8::from(problems > 0))
}

fn verify(path: &Path, backup_id: Option<BackupId>, deep: bool, as_json: bool) -> Result<u8> {
    let repository = open(path)?;
    // All points have each their own files; of one, all that a restore of it reads.
    let scope = if backup_id.is_some() { Scope::Chain } else { Scope::Point };
    let (wanted, problems) = match backup_id {
        Some(id) => (vec![(repository.find(&id)?, id)], 0),
        None => {
            let (points, problems) = points(&repository)?;
            (points.into_iter().map(|point| (point.vm_context_id, point.backup_id)).collect(), problems)
        }
    };
    let options = Options {
        depth: if deep { Depth::Deep } else { Depth::AtRest },
        scope,
        // Enough reads to keep a disk busy, no more than an old machine on the worst day can take.
        threads: 4,
        bytes_per_second: None,
        who: WHO.into(),
    };
    let (mut rows, mut bad) = (Vec::new(), problems);
    for (vm, id) in wanted {
        let report = repository.verify(&vm, &id, None, &options, &VerifyProgress::default(), &Cancel::new())?;
        bad += usize::from(!report.is_sound());
        if as_json { rows.push(report_json(&id, &report)) } else { print_report(&id, &report) }
    }
    let message = format!("{bad} points are not sound");
    if as_json {
        json(&value!({ "success": bad == 0, "points": rows, "unreadable_manifests": problems }))?;
        if bad > 0 {
            // The report is the answer: a program reads one document.
            say(message);
            return Ok(crate::exit::WORK_FAILED);
        }
    }
    if bad > 0 {
        let what = "verification".to_owned();
        return Err(WorkFailed { what, message, details: String::new(), code: "corrupt".into() }.into());
    }
    Ok(0)
}

fn print_report(id: &BackupId, report: &Report) {
    let word = match (report.damaged.is_empty(), report.unreadable.is_empty()) {
        (false, _) => "corrupt",
        (true, false) => "unreadable",
        (true, true) => "ok",
    };
    verdict(word, format!("{id} {}", bytes(report.checked_bytes)));
    for finding in report.damaged.iter().chain(&report.unreadable) {
        let segment = finding.segment.map(|segment| format!(" segment {segment}")).unwrap_or_default();
        line(format!("  {}{segment}: {}", finding.file.display(), finding.what));
    }
}

fn report_json(id: &BackupId, report: &Report) -> serde_json::Value {
    let findings = |list: &[sendense_repo::verify::Finding]| -> Vec<_> {
        let row = |finding: &sendense_repo::verify::Finding| value!({ "file": finding.file, "segment": finding.segment, "what": finding.what });
        list.iter().map(row).collect()
    };
    value!({
        "backup_id": id, "sound": report.is_sound(), "checked_bytes": report.checked_bytes,
        "damaged": findings(&report.damaged), "unreadable": findings(&report.unreadable),
    })
}

fn restore(
    path: &Path,
    id: &BackupId,
    disk: Option<u32>,
    to: &Path,
    format: Format,
    on_damage: OnDamage,
) -> Result<u8> {
    let repository = open(path)?;
    let vm = repository.find(id)?;
    let number = which_disk(&repository, &vm, id, disk)?;
    let point = repository.open_compared(&vm, id, number, WHO, on_damage)?;
    let format = match format {
        Format::Raw => extract::Format::Raw,
        Format::Qcow2 => extract::Format::Qcow2,
    };
    let lanes = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    let suffix = format!("sendense-{}", std::process::id());
    let (suffix, disk_name, owner) = (&*suffix, point.name(), Owner::Us);
    let cancel = Cancel::new();
    let needed_bytes = Some(point.needed_bytes(&cancel)?);
    let how = How { format, lanes, suffix, disk_name, overwrite: false, owner, needed_bytes, is_last: true };
    extract(&point, &resolved(to)?, how, &Progress::default(), &cancel)?;
    let damage = point.damage();
    for (range, given) in damage.ranges() {
        let written = match given {
            Given::AsRead => "not what was backed up, and written as they were read",
            Given::Zeros => "not to be read or decoded, and written as zeros",
            Given::Unproved => "without a sound digest, and written as they were read",
        };
        say(format!("warning: bytes {range} are {written}"));
    }
    say(format!("restored disk {number} of {id} to {}", to.display()));
    if !damage.is_empty() {
        let more = if damage.is_more() { "more than " } else { "" };
        say(format!("WARNING: {more}{} blocks of it are damaged", damage.blocks()));
    }
    Ok(0)
}

/// The path with its folder resolved: here a person's links are followed, once.
fn resolved(to: &Path) -> Result<PathBuf> {
    let to = super::absolute(to)?;
    let (Some(folder), Some(name)) = (to.parent(), to.file_name()) else { bail!("{} names no file", to.display()) };
    let folder = folder.canonicalize().with_context(|| format!("find the folder {}", folder.display()))?;
    Ok(folder.join(name))
}

fn which_disk(repository: &Repository, vm: &VmContextId, id: &BackupId, disk: Option<u32>) -> Result<DiskNumber> {
    let manifest = repository.manifest(vm, id)?;
    let numbers: Vec<_> = manifest.disks.iter().map(|disk| disk.disk_id).collect();
    match (disk.map(DiskNumber), numbers.as_slice()) {
        (Some(number), numbers) if numbers.contains(&number) => Ok(number),
        (None, [only]) => Ok(*only),
        (wanted, numbers) => {
            let list: Vec<_> = numbers.iter().map(DiskNumber::to_string).collect();
            let why = wanted.map_or("say which disk".to_owned(), |number| format!("no disk {number}"));
            bail!("{why}: {id} holds disks {} (--disk N)", list.join(", "))
        }
    }
}
