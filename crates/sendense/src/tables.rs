//! Tables for people. Programs use `--json`.

use crate::output::{Mood, bytes, duration, moment, mood, or_dash, stdout_takes_colours};
use crate::plain::plain;
use comfy_table::presets;
use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement};
use sendense_api::{
    Backup, CatalogCopy, CbtAudit, Chain, Deletion, Export, NbdOptions, Node, NodeStatus, ProtectionState,
    ProvedBackup, Prune, Recovery, Source, Task, Token, Vm,
};
use sendense_types::{Tag, VerifyDepth, VerifyState};
use std::collections::HashSet;
use std::fmt;

/// A table. All text that goes into it is made safe to print; words of a state are coloured.
///
/// Elsewhere than on a terminal a row is a line, for programs that read lines. On a terminal the last column, which is
/// the one for sentences, is folded; where even the others do not fit, each row becomes a paragraph of named values, so
/// that an id can still be copied.
pub struct Table {
    headings: Vec<String>,
    /// Columns that are figures.
    figures: Vec<usize>,
    rows: Vec<Vec<String>>,
    /// Columns of the terminal; none when stdout is no terminal.
    width: Option<u16>,
    coloured: bool,
}

/// What a folded column must have at the least, or the table becomes paragraphs: two short words.
const FOLDED_WIDTH_MIN: usize = 16;

impl Table {
    /// A table with these headings; the numbered columns are figures.
    pub fn new(headings: &[&str], figures: &[usize]) -> Self {
        Self {
            headings: headings.iter().map(|heading| (*heading).to_owned()).collect(),
            figures: figures.to_vec(),
            rows: Vec::new(),
            // A terminal that says nothing of its width says 0.
            width: comfy_table::Table::new().width().filter(|width| *width > 0),
            coloured: stdout_takes_colours(),
        }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|text| plain(text).into_owned()).collect());
    }

    fn cell(&self, text: &str, moody: bool) -> Cell {
        let cell = Cell::new(text);
        let colour = match mood(text) {
            Mood::Good => Color::Green,
            Mood::Bad => Color::Red,
            Mood::Open => Color::Yellow,
            Mood::None => return cell,
        };
        if moody && self.coloured { cell.fg(colour) } else { cell }
    }

    fn in_columns(&self) -> comfy_table::Table {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if !self.headings.is_empty() {
            table.set_header(&self.headings);
        }
        for row in &self.rows {
            let named = row.first().is_some_and(|name| matches!(name.as_str(), "status:" | "state:"));
            let cells = row.iter().enumerate().map(|(column, text)| {
                let heading = self.headings.get(column).map(String::as_str);
                self.cell(text, named || matches!(heading, Some("STATUS" | "STATE")))
            });
            table.add_row(cells.collect::<Vec<_>>());
        }
        for column in &self.figures {
            if let Some(column) = table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// Each row as a paragraph.
    fn in_paragraphs(&self) -> Vec<Self> {
        let paragraph = |row: &Vec<String>| {
            let mut facts = Self { headings: Vec::new(), figures: Vec::new(), rows: Vec::new(), ..*self };
            for (heading, text) in self.headings.iter().zip(row).filter(|(_, text)| !text.is_empty()) {
                facts.rows.push(vec![format!("{}:", heading.to_lowercase()), text.clone()]);
            }
            facts
        };
        self.rows.iter().map(paragraph).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = self.in_columns();
        if let Some(width) = self.width {
            // Each column has a blank on both sides.
            let mut widths: Vec<usize> =
                table.column_max_content_widths().iter().map(|w| usize::from(*w) + 2).collect();
            let (last, others) = (widths.pop().unwrap_or(0), widths.iter().sum::<usize>());
            if others + last > width.into() {
                if others + FOLDED_WIDTH_MIN.min(last) > width.into() && !self.headings.is_empty() {
                    let paragraphs = self.in_paragraphs();
                    let texts: Vec<_> = paragraphs.iter().map(Self::to_string).collect();
                    return f.write_str(&texts.join("\n\n"));
                }
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
                for column in 0..widths.len() {
                    if let Some(column) = table.column_mut(column) {
                        column.set_constraint(ColumnConstraint::ContentWidth);
                    }
                }
            }
        }
        if self.coloured {
            table.enforce_styling();
        }
        // The blank before the first column is not wanted, and those that only fill the last one up would wrap on a
        // terminal that is as wide as the text.
        let lines: Vec<_> =
            table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Name and value, one a line; what is empty is left out.
pub fn facts(rows: Vec<(&str, String)>) -> Table {
    let mut table = Table::new(&[], &[]);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.row([if name.is_empty() { String::new() } else { format!("{name}:") }, value]);
    }
    table
}

/// Backups, as the list shows them.
pub fn backups(backups: &[Backup]) -> Table {
    let headings = ["BACKUP", "VM", "DISKS", "TYPE", "STATUS", "SENT", "STORED", "TOOK", "CREATED"];
    let mut table = Table::new(&headings, &[5, 6, 7]);
    for backup in backups {
        table.row([
            backup.backup_id.to_string(),
            backup.vm_name.clone(),
            disk_numbers(backup),
            backup.backup_type.to_string(),
            status(backup),
            bytes(backup.bytes_transferred),
            bytes(backup.bytes_stored),
            took(backup),
            moment(backup.created_at),
        ]);
    }
    table
}

/// How a backup stands in a list: that its data is damaged says more than that it was completed.
fn status(backup: &Backup) -> String {
    match backup.verify_state {
        Some(state @ (VerifyState::Corrupt | VerifyState::Affected)) => state.to_string(),
        Some(VerifyState::Sound) | None => backup.status.to_string(),
    }
}

/// What verifications say of a backup: `sound (deep, 210 MB/s, open in 12 ms) 2026-01-31 …`.
fn verified(backup: &Backup, state: VerifyState) -> String {
    let depth = backup.verify_depth.map(depth_words).map(str::to_owned);
    let figures = [backup.verify_speed_bps.map(speed), backup.verify_open_ms.map(opened)];
    let how: Vec<String> = depth.into_iter().chain(figures.into_iter().flatten()).collect();
    let how = if how.is_empty() { String::new() } else { format!(" ({})", how.join(", ")) };
    format!("{state}{how} {}", backup.verified_at.map(moment).unwrap_or_default())
}

fn depth_words(depth: VerifyDepth) -> &'static str {
    match depth {
        VerifyDepth::AtRest => "at rest",
        VerifyDepth::Deep => "deep",
    }
}

fn opened(ms: u64) -> String {
    format!("open in {ms} ms")
}

fn speed(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// One backup in full.
pub fn backup(backup: &Backup) -> Vec<Table> {
    let mut rows = vec![
        ("backup", backup.backup_id.to_string()),
        ("vm", format!("{} ({})", backup.vm_name, backup.vm_context_id)),
        ("repository", backup.repository_id.to_string()),
        ("type", backup.backup_type.to_string()),
        ("why", backup.type_reason.clone().unwrap_or_default()),
        ("status", backup.status.to_string()),
        ("phase", backup.phase.map(|phase| phase.to_string()).unwrap_or_default()),
        ("error", backup.error_message.clone().unwrap_or_default()),
        ("consistency", backup.consistency.map(|word| word.to_string()).unwrap_or_default()),
        ("", backup.consistency_note.clone().unwrap_or_default()),
        ("audit", backup.cbt_audit.map(audit).unwrap_or_default()),
        ("verified", backup.verify_state.map(|state| verified(backup, state)).unwrap_or_default()),
        ("", backup.verify_finding.clone().unwrap_or_default()),
        ("parent", backup.parent_backup_id.as_ref().map(|id| id.to_string()).unwrap_or_default()),
        ("sent", bytes(backup.bytes_transferred)),
        ("stored", bytes(backup.bytes_stored)),
        ("created", moment(backup.created_at)),
        ("took", took(backup)),
    ];
    if backup.partial {
        let excluded = backup.excluded_disks.join(", ");
        rows.push(("partial", if excluded.is_empty() { "yes".to_owned() } else { format!("without {excluded}") }));
    }
    if let Some(held) = held(backup) {
        rows.push(("kept", held));
    }
    for (key, value) in &backup.tags {
        rows.push(("tag", format!("{key}={value}")));
    }
    let mut disks = Table::new(&["DISK", "KEY", "TYPE", "CAPACITY", "SENT", "STORED", "FILE", "WHY"], &[3, 4, 5]);
    for disk in &backup.disks {
        disks.row([
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

fn audit(found: CbtAudit) -> String {
    let CbtAudit { blocks_checked, blocks_different } = found;
    match blocks_different {
        0 => format!("{blocks_checked} blocks that change tracking calls unchanged were checked, and are"),
        _ => format!("{blocks_different} of {blocks_checked} blocks that change tracking calls unchanged had changed"),
    }
}

/// A chain, oldest first.
pub fn chain(chain: &Chain) -> Table {
    let mut table = Table::new(&["BACKUP", "TYPE", "SIZE", "SENT", "TOOK", "CREATED", "ON TOP OF", "WHY"], &[2, 3, 4]);
    for point in &chain.backups {
        let disk = point.backup.disks.iter().find(|disk| disk.disk_id == chain.disk_id);
        table.row([
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
    let mut table = Table::new(&["BACKUP", "TYPE", "CREATED", "SIZE", "FILES"], &[3, 4]);
    for backup in &deletion.backups {
        table.row([
            backup.backup_id.to_string(),
            backup.backup_type.to_string(),
            moment(backup.created_at),
            bytes(backup.bytes_stored),
            backup.files.len().to_string(),
        ]);
    }
    table
}

/// What keeps a backup from being deleted.
pub fn held(backup: &Backup) -> Option<String> {
    let until = backup.hold_until.map(|until| format!("held until {}", moment(until)));
    match (backup.protected, until) {
        (true, Some(until)) => Some(format!("protected, and {until}")),
        (true, None) => Some("protected".to_owned()),
        (false, until) => until,
    }
}

/// What a prune takes and leaves: each point before those it stands on.
pub fn prune(prune: &Prune) -> Table {
    let mut table = Table::new(&["BACKUP", "TYPE", "COMPLETED", "SIZE", "FATE", "WHY"], &[3]);
    for backup in &prune.backups {
        table.row([
            backup.backup_id.to_string(),
            or_dash(backup.backup_type),
            or_dash(backup.completed_at.map(moment)),
            bytes(backup.bytes_stored),
            backup.fate.as_str().to_owned(),
            backup.reason.clone(),
        ]);
    }
    table
}

/// Copies of catalogs.
pub fn catalog_copies(copies: &[CatalogCopy]) -> Table {
    let mut table = Table::new(&["NAME", "MADE", "SIZE", "DEPLOYMENT"], &[2]);
    for copy in copies {
        table.row([copy.name.clone(), moment(copy.made_at), bytes(copy.bytes), copy.deployment_id.to_string()]);
    }
    table
}

/// Sources.
pub fn sources(sources: &[Source]) -> Table {
    let mut table = Table::new(&["NAME", "KIND", "ADDRESS", "VMS", "DISCOVERED"], &[3]);
    for source in sources {
        table.row([
            source.name.clone(),
            source.kind.to_string(),
            source.address.clone(),
            source.vm_count.to_string(),
            or_dash(source.discovered_at.map(moment)),
        ]);
    }
    table
}

/// One source in full.
pub fn source(source: &Source) -> Table {
    let nbd = source.nbd.clone().unwrap_or_default();
    let vsphere = source.vsphere.clone().unwrap_or_default();
    let NbdOptions { dirty_bitmap, trust_bitmap, bitmap_epoch, connections, tls_server_name } = nbd;
    let trusted = bitmap_epoch.filter(|_| trust_bitmap).map(|epoch| format!("trusted, epoch {epoch}"));
    let bitmap = dirty_bitmap.map(|name| format!("{name} ({})", trusted.unwrap_or_else(|| "not trusted".into())));
    facts(vec![
        ("source", format!("{} ({})", source.name, source.source_id)),
        ("kind", source.kind.to_string()),
        ("address", source.address.clone()),
        ("node", source.node.clone().unwrap_or_default()),
        ("credentials", if source.has_credentials { "stored" } else { "none" }.into()),
        ("scratch", source.scratch_path.clone().unwrap_or_default()),
        ("scratch floor", source.scratch_floor_bytes.map(bytes).unwrap_or_default()),
        ("dirty bitmap", bitmap.unwrap_or_default()),
        ("connections", connections.map(|count| count.to_string()).unwrap_or_default()),
        ("server name", tls_server_name.unwrap_or_default()),
        ("thumbprint", source.thumbprint.clone().unwrap_or_default()),
        ("vddk", vsphere.vddk_libdir.unwrap_or_default()),
        ("nbdkit plugin", vsphere.nbdkit_plugin.unwrap_or_default()),
        ("transports", vsphere.transports.unwrap_or_default()),
        ("sessions", vsphere.sessions_max.map(|count| count.to_string()).unwrap_or_default()),
        ("proxy", vsphere.proxy.unwrap_or_default()),
        ("quiesce", if vsphere.quiesce_or_fail { "or fail".into() } else { String::new() }),
        ("tasks at once", source.running_tasks_max.map(|count| count.to_string()).unwrap_or_default()),
        ("vms", source.vm_count.to_string()),
        ("discovered", or_dash(source.discovered_at.map(moment))),
    ])
}

/// Machines; with their ids where a name is that of several.
pub fn vms(vms: &[Vm]) -> Table {
    let mut seen = HashSet::new();
    let ambiguous: HashSet<&str> =
        vms.iter().map(|vm| vm.vm_name.as_str()).filter(|name| !seen.insert(*name)).collect();
    let mut table =
        Table::new(&["VM", "POWER", "DISKS", "SIZE", "TRACKING", "STATE", "POLICY", "LAST BACKUP", "NOTE"], &[2, 3]);
    for vm in vms {
        let disks: Vec<_> = vm.disks.iter().filter(|disk| !disk.removed).collect();
        let protection = serde_json::to_value(vm.protection_state).ok();
        let note = if vm.missing { Some("not found at the last discovery".into()) } else { vm.unsupported.clone() };
        let id = ambiguous.contains(vm.vm_name.as_str()).then(|| format!(" ({})", vm.vm_context_id));
        table.row([
            format!("{}{}", vm.vm_name, id.unwrap_or_default()),
            vm.power_state.to_string(),
            disks.len().to_string(),
            bytes(disks.iter().map(|disk| disk.capacity_bytes).sum()),
            if vm.change_tracking { "yes" } else { "no" }.into(),
            match vm.overdue_since {
                Some(_) => "overdue".to_owned(),
                None if vm.unscheduled && vm.protection_state == ProtectionState::Protected => "unscheduled".to_owned(),
                None => protection.as_ref().and_then(|word| word.as_str()).unwrap_or("-").to_owned(),
            },
            if vm.policies.is_empty() { "-".to_owned() } else { vm.policies.join(" ") },
            or_dash(vm.last_backup.as_ref().map(|backup| moment(backup.created_at))),
            note.unwrap_or_default(),
        ]);
    }
    table
}

/// The newest point that is proved good: which, when, how, how fast.
fn proved(proved: &ProvedBackup) -> String {
    let which = if proved.is_newest { "the newest point" } else { "a point of" };
    let made = if proved.is_newest { String::new() } else { format!(" {}", moment(proved.created_at)) };
    let figures = [proved.speed_bps.map(speed), proved.open_ms.map(opened)];
    let figures: String = figures.iter().flatten().map(|figure| format!(", {figure}")).collect();
    let (id, depth) = (&proved.backup_id, depth_words(proved.depth));
    format!("{} {id}, {which}{made} ({depth}{figures})", moment(proved.proved_at))
}

/// Tags, for people.
pub fn words<'a>(tags: impl IntoIterator<Item = &'a Tag>) -> String {
    tags.into_iter().map(Tag::as_str).collect::<Vec<_>>().join(" ")
}

/// One machine in full.
pub fn vm(vm: &Vm) -> Vec<Table> {
    let last = vm.last_backup.as_ref();
    let rows = vec![
        ("vm", format!("{} ({})", vm.vm_name, vm.vm_context_id)),
        ("uuid", vm.instance_uuid.clone()),
        ("path", vm.path.clone().unwrap_or_default()),
        ("folder", vm.folder.clone().unwrap_or_default()),
        ("tags", words(&vm.tags)),
        ("power", vm.power_state.to_string()),
        ("guest", vm.guest_os.clone().unwrap_or_default()),
        ("cpus", vm.cpu_count.map(|count| count.to_string()).unwrap_or_default()),
        ("memory", vm.memory_bytes.map(bytes).unwrap_or_default()),
        ("hardware", vm.hardware.clone().unwrap_or_default()),
        (
            "tracking",
            match (vm.change_tracking, &vm.no_change_tracking) {
                (true, _) => "yes".to_owned(),
                (false, Some(why)) => format!("no: {why}"),
                (false, None) => "no".to_owned(),
            },
        ),
        ("snapshots", vm.snapshots.join(", ")),
        (
            "last backup",
            last.map(|b| format!("{} {} {}", b.backup_id, b.status, moment(b.created_at))).unwrap_or_default(),
        ),
        ("last proved", vm.last_proved.as_ref().map(proved).unwrap_or_else(|| "never".to_owned())),
        ("proof overdue", vm.proof_overdue_since.map(|at| format!("since {}", moment(at))).unwrap_or_default()),
        ("cannot be backed up", vm.unsupported.clone().unwrap_or_default()),
    ];
    let mut disks = Table::new(&["DISK", "KEY", "LABEL", "CAPACITY", "FORMAT", "ON", "MODE", "NOTE"], &[3]);
    for disk in &vm.disks {
        let note = if disk.removed { Some("removed".to_owned()) } else { disk.unsupported.clone() };
        disks.row([
            disk.disk_id.to_string(),
            disk.disk_key.clone(),
            disk.label.clone(),
            bytes(disk.capacity_bytes),
            or_dash(disk.format.as_ref()),
            or_dash(disk.path.as_ref().or(disk.datastore.as_ref())),
            or_dash(disk.mode.as_ref()),
            note.unwrap_or_default(),
        ]);
    }
    let mut tables = vec![facts(rows), disks];
    if !vm.networks.is_empty() {
        let mut networks = Table::new(&["CARD", "NETWORK", "MAC", "MODEL"], &[]);
        for card in &vm.networks {
            networks.row([
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
    let mut table = Table::new(&["TASK", "KIND", "STATE", "VM", "DONE", "CREATED", "RESULT"], &[4]);
    for task in tasks {
        let result = task.error.as_ref().map(|error| error.message.clone()).or(task.summary.clone());
        table.row([
            task.task_id.to_string(),
            task.kind.to_string(),
            task.state.to_string(),
            or_dash(task.vm_name.as_ref()),
            format!("{:.0}%", task.progress_percent),
            moment(task.created_at),
            result.unwrap_or_default(),
        ]);
    }
    table
}

/// What is on offer over NBD.
pub fn exports(exports: &[Export]) -> Table {
    let mut table = Table::new(&["EXPORT", "BACKUP", "VM", "DISK", "SIZE", "CLIENTS", "READ", "EXPIRES"], &[4, 6]);
    for export in exports {
        table.row([
            export.export_id.to_string(),
            export.backup_id.to_string(),
            export.vm_name.clone(),
            export.disk_id.to_string(),
            bytes(export.size_bytes),
            export.clients.to_string(),
            bytes(export.bytes_read),
            moment(export.expires_at),
        ]);
    }
    table
}

/// Recovered machines.
pub fn recoveries(recoveries: &[Recovery]) -> Table {
    let mut table = Table::new(
        &["RECOVERY", "NAME", "STATUS", "BACKUP", "VM", "DISKS", "WRITTEN", "CLIENTS", "CREATED"],
        &[5, 6, 7],
    );
    for recovery in recoveries {
        let held = recovery.disks.iter().map(|disk| disk.held_bytes).sum::<Option<u64>>();
        table.row([
            recovery.recovery_id.to_string(),
            recovery.name.to_string(),
            recovery.status.as_str().to_owned(),
            recovery.backup_id.to_string(),
            recovery.vm_name.clone(),
            recovery.disks.len().to_string(),
            or_dash(held.map(bytes)),
            recovery.disks.iter().map(|disk| disk.clients).sum::<u64>().to_string(),
            moment(recovery.created_at),
        ]);
    }
    table
}

/// Nodes.
pub fn nodes(nodes: &[Node]) -> Table {
    let mut table = Table::new(
        &["NAME", "STATUS", "VERSION", "MACHINE", "SOURCES", "BACKUPS", "THROUGHPUT", "LIMIT", "LAST SEEN", "NODE"],
        &[5, 6, 7],
    );
    for node in nodes {
        table.row([
            node.name.clone(),
            if node.status == NodeStatus::Online { "online".into() } else { "offline".into() },
            or_dash(node.version.clone()),
            or_dash(node.host.clone()),
            or_dash(Some(node.sources.join(", ")).filter(|names| !names.is_empty())),
            node.running_backups.to_string(),
            format!("{}/s", bytes(node.bytes_per_second)),
            or_dash(node.limit_now.map(|limit| format!("{}/s", bytes(limit)))),
            or_dash(node.last_seen_at.map(moment)),
            node.node_id.to_string(),
        ]);
    }
    table
}

/// Tokens.
pub fn tokens(tokens: &[Token]) -> Table {
    let mut table = Table::new(&["TOKEN", "NAME", "ROLE", "CREATED", "LAST USED"], &[]);
    for token in tokens {
        table.row([
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

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(width: Option<u16>, expected: Expect) {
        let mut table = Table { width, coloured: false, ..Table::new(&["BACKUP", "SIZE", "STATUS", "WHY"], &[1]) };
        table.row([
            "bk-0123456789".into(),
            "1.0 GiB".into(),
            "completed".into(),
            "the parent was lost long ago".into(),
        ]);
        table.row(["bk-2".into(), "17 B".into(), "failed".into(), "a\u{1b}[2J\nb".into()]);
        expected.assert_eq(&table.to_string());
    }

    #[test]
    fn tables_fit_where_they_are_printed() {
        check(
            None,
            expect![[r#"
                BACKUP            SIZE  STATUS     WHY
                bk-0123456789  1.0 GiB  completed  the parent was lost long ago
                bk-2              17 B  failed     a\u{1b}[2J\nb"#]],
        );
        check(
            Some(54),
            expect![[r#"
                BACKUP            SIZE  STATUS     WHY
                bk-0123456789  1.0 GiB  completed  the parent was
                                                   lost long ago
                bk-2              17 B  failed     a\u{1b}[2J\nb"#]],
        );
        check(
            Some(30),
            expect![[r#"
                backup:  bk-0123456789
                size:    1.0 GiB
                status:  completed
                why:     the parent was lost
                         long ago

                backup:  bk-2
                size:    17 B
                status:  failed
                why:     a\u{1b}[2J\nb"#]],
        );
    }

    #[test]
    fn colours_come_from_the_word_and_only_where_they_are_wanted() {
        let shown = |coloured| {
            let mut table = Table { coloured, ..Table::new(&["STATE", "NAME"], &[]) };
            table.row(["failed".into(), "failed".into()]);
            table.to_string()
        };
        assert!(!shown(false).contains('\u{1b}'));
        assert_eq!(shown(true).matches("failed").count(), 2);
        assert!(shown(true).contains("failed \u{1b}[") || shown(true).contains("failed\u{1b}["));
        assert!(shown(true).ends_with("failed"), "a name is no state: {:?}", shown(true));
    }
}
