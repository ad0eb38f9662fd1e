//! Tables for people. Programs use `--json`.

use crate::output::{bytes, duration, moment, or_dash, state};
use comfy_table::presets;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use sendense_api::{Backup, Chain, Deletion, Repository, Source, Task, Token, Vm};

/// A table with these headings; the named columns are numbers.
pub fn table(headings: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings);
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Name and value, one a line.
pub fn facts(rows: Vec<(&str, String)>) -> Table {
    let mut table = table(&[], &[]);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([Cell::new(format!("{name}:")), Cell::new(value)]);
    }
    table
}

/// Backups, as the list shows them.
pub fn backups(backups: &[Backup]) -> Table {
    let headings = ["BACKUP", "VM", "DISKS", "TYPE", "STATUS", "READ", "STORED", "TOOK", "CREATED"];
    let mut table = table(&headings, &[5, 6, 7]);
    for backup in backups {
        table.add_row([
            backup.backup_id.to_string(),
            backup.vm_name.clone(),
            disk_numbers(backup),
            backup.backup_type.to_string(),
            state(backup.status.as_str()),
            bytes(backup.bytes_transferred),
            bytes(backup.bytes_stored),
            took(backup),
            moment(backup.created_at),
        ]);
    }
    table
}

/// One backup in full.
pub fn backup(backup: &Backup) -> Vec<Table> {
    let mut rows = vec![
        ("backup", backup.backup_id.to_string()),
        ("vm", format!("{} ({})", backup.vm_name, backup.vm_context_id)),
        ("repository", backup.repository_id.to_string()),
        ("type", backup.backup_type.to_string()),
        ("why", backup.type_reason.clone().unwrap_or_default()),
        ("status", state(backup.status.as_str())),
        ("phase", backup.phase.map(|phase| phase.to_string()).unwrap_or_default()),
        ("error", backup.error_message.clone().unwrap_or_default()),
        ("consistency", backup.consistency.map(|word| word.to_string()).unwrap_or_default()),
        ("", backup.consistency_note.clone().unwrap_or_default()),
        ("parent", backup.parent_backup_id.as_ref().map(|id| id.to_string()).unwrap_or_default()),
        ("read", bytes(backup.bytes_transferred)),
        ("stored", bytes(backup.bytes_stored)),
        ("created", moment(backup.created_at)),
        ("took", took(backup)),
    ];
    if backup.partial {
        rows.push(("partial", format!("without {}", backup.excluded_disks.join(", "))));
    }
    for (key, value) in &backup.tags {
        rows.push(("tag", format!("{key}={value}")));
    }
    let mut disks = table(&["DISK", "KEY", "TYPE", "CAPACITY", "READ", "STORED", "FILE", "WHY"], &[3, 4, 5]);
    for disk in &backup.disks {
        disks.add_row([
            disk.disk_id.to_string(),
            disk.disk_key.clone(),
            disk.backup_type.to_string(),
            bytes(disk.capacity_bytes),
            bytes(disk.bytes_transferred),
            bytes(disk.bytes_stored),
            or_dash(disk.file_path.as_ref()),
            disk.type_reason.clone().unwrap_or_default(),
        ]);
    }
    vec![facts(rows), disks]
}

/// A chain, oldest first.
pub fn chain(chain: &Chain) -> Table {
    let mut table = table(&["BACKUP", "TYPE", "SIZE", "READ", "TOOK", "CREATED", "ON TOP OF", "WHY"], &[2, 3, 4]);
    for point in &chain.backups {
        let disk = point.backup.disks.iter().find(|disk| disk.disk_id == chain.disk_id);
        table.add_row([
            point.backup.backup_id.to_string(),
            point.kind.to_string(),
            bytes(point.size_bytes),
            bytes(disk.map_or(point.backup.bytes_transferred, |disk| disk.bytes_transferred)),
            took(&point.backup),
            moment(point.backup.created_at),
            or_dash(point.backing_file.as_ref()),
            disk.and_then(|disk| disk.type_reason.clone()).or(point.backup.type_reason.clone()).unwrap_or_default(),
        ]);
    }
    table
}

/// What a delete takes.
pub fn deletion(deletion: &Deletion) -> Table {
    let mut table = table(&["BACKUP", "TYPE", "CREATED", "SIZE", "FILES"], &[3, 4]);
    for backup in &deletion.backups {
        table.add_row([
            backup.backup_id.to_string(),
            backup.backup_type.to_string(),
            moment(backup.created_at),
            bytes(backup.bytes_stored),
            backup.files.len().to_string(),
        ]);
    }
    table
}

/// Repositories.
pub fn repositories(repositories: &[Repository]) -> Table {
    let mut table = table(&["NAME", "TYPE", "BACKUPS", "USED", "FREE", "PATH", "STATE"], &[2, 3, 4]);
    for repository in repositories {
        let storage = repository.storage.as_ref();
        table.add_row([
            repository.name.clone(),
            repository.kind.to_string(),
            repository.backup_count.to_string(),
            or_dash(storage.map(|storage| bytes(storage.used_bytes))),
            or_dash(storage.map(|storage| bytes(storage.available_bytes))),
            repository.config.path.clone(),
            repository.problem.clone().unwrap_or_else(|| state("ok")),
        ]);
    }
    table
}

/// Sources.
pub fn sources(sources: &[Source]) -> Table {
    let mut table = table(&["NAME", "KIND", "ADDRESS", "VMS", "DISCOVERED"], &[3]);
    for source in sources {
        table.add_row([
            source.name.clone(),
            source.kind.to_string(),
            source.address.clone(),
            source.vm_count.to_string(),
            or_dash(source.discovered_at.map(moment)),
        ]);
    }
    table
}

/// Machines.
pub fn vms(vms: &[Vm]) -> Table {
    let mut table = table(&["VM", "POWER", "DISKS", "SIZE", "TRACKING", "STATE", "LAST BACKUP", "NOTE"], &[2, 3]);
    for vm in vms {
        let disks: Vec<_> = vm.disks.iter().filter(|disk| !disk.removed).collect();
        let protection = serde_json::to_value(vm.protection_state).ok();
        let note = if vm.missing { Some("not found at the last discovery".into()) } else { vm.unsupported.clone() };
        table.add_row([
            vm.vm_name.clone(),
            vm.power_state.to_string(),
            disks.len().to_string(),
            bytes(disks.iter().map(|disk| disk.capacity_bytes).sum()),
            if vm.change_tracking { "yes" } else { "no" }.into(),
            state(protection.as_ref().and_then(|word| word.as_str()).unwrap_or("-")),
            or_dash(vm.last_backup.as_ref().map(|backup| moment(backup.created_at))),
            note.unwrap_or_default(),
        ]);
    }
    table
}

/// One machine in full.
pub fn vm(vm: &Vm) -> Vec<Table> {
    let last = vm.last_backup.as_ref();
    let rows = vec![
        ("vm", format!("{} ({})", vm.vm_name, vm.vm_context_id)),
        ("uuid", vm.instance_uuid.clone()),
        ("path", vm.path.clone().unwrap_or_default()),
        ("power", vm.power_state.to_string()),
        ("guest", vm.guest_os.clone().unwrap_or_default()),
        ("cpus", vm.cpu_count.map(|count| count.to_string()).unwrap_or_default()),
        ("memory", vm.memory_bytes.map(bytes).unwrap_or_default()),
        ("tracking", if vm.change_tracking { "yes" } else { "no" }.into()),
        (
            "last backup",
            last.map(|b| format!("{} {} {}", b.backup_id, b.status, moment(b.created_at))).unwrap_or_default(),
        ),
        ("cannot be backed up", vm.unsupported.clone().unwrap_or_default()),
    ];
    let mut disks = table(&["DISK", "KEY", "LABEL", "CAPACITY", "FORMAT", "ON", "NOTE"], &[3]);
    for disk in &vm.disks {
        let note = if disk.removed { Some("removed".to_owned()) } else { disk.unsupported.clone() };
        disks.add_row([
            disk.disk_id.to_string(),
            disk.disk_key.clone(),
            disk.label.clone(),
            bytes(disk.capacity_bytes),
            or_dash(disk.format.as_ref()),
            or_dash(disk.datastore.as_ref()),
            note.unwrap_or_default(),
        ]);
    }
    let mut tables = vec![facts(rows), disks];
    if !vm.networks.is_empty() {
        let mut networks = table(&["CARD", "NETWORK", "MAC", "MODEL"], &[]);
        for card in &vm.networks {
            networks.add_row([
                card.key.clone(),
                card.network.clone(),
                or_dash(card.mac.as_ref()),
                or_dash(card.model.as_ref()),
            ]);
        }
        tables.push(networks);
    }
    tables
}

/// Tasks.
pub fn tasks(tasks: &[Task]) -> Table {
    let mut table = table(&["TASK", "KIND", "STATE", "VM", "DONE", "CREATED", "RESULT"], &[4]);
    for task in tasks {
        let result = task.error.as_ref().map(|error| error.message.clone()).or(task.summary.clone());
        table.add_row([
            task.task_id.to_string(),
            task.kind.to_string(),
            state(task.state.as_str()),
            or_dash(task.vm_name.as_ref()),
            format!("{:.0}%", task.progress_percent),
            moment(task.created_at),
            result.unwrap_or_default(),
        ]);
    }
    table
}

/// Tokens.
pub fn tokens(tokens: &[Token]) -> Table {
    let mut table = table(&["TOKEN", "NAME", "ROLE", "CREATED", "LAST USED"], &[]);
    for token in tokens {
        table.add_row([
            token.token_id.clone(),
            token.name.clone(),
            token.role.to_string(),
            moment(token.created_at),
            or_dash(token.last_used_at.map(moment)),
        ]);
    }
    table
}

fn disk_numbers(backup: &Backup) -> String {
    let numbers: Vec<_> = backup.disks.iter().map(|disk| disk.disk_id.to_string()).collect();
    if numbers.is_empty() { or_dash(backup.disk_id) } else { numbers.join(",") }
}

fn took(backup: &Backup) -> String {
    let times = backup.started_at.zip(backup.completed_at);
    or_dash(times.map(|(started, completed)| duration(completed.seconds_since(started))))
}
