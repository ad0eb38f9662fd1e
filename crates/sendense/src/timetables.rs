//! Tables of policies, schedules and executions.

use crate::exit::advice;
use crate::output::{bytes, moment, or_dash};
use crate::tables::{Table, facts, words};
use sendense_api::{
    Execution, ExecutionVm, NoLongerMeant, NotPrunedVm, Occurrence, Policy, PolicyDeletion, PolicyOrder, PolicyPlan,
    PolicyRules, Retention, Schedule, ScheduleRules, VanishedVm,
};
use std::collections::BTreeSet;

/// Machines that a sentence names: enough to see what it is about, short enough to read.
const NAMED_MAX: usize = 20;
/// What becomes of points that are merged into others.
const FOR_GOOD: &str = " (they can be restored no more then)";

/// Policies.
pub fn policies(policies: &[Policy]) -> Table {
    let mut table = Table::new(&["POLICY", "VMS", "REPOSITORY", "FULL EVERY", "KEEP"], &[3]);
    for policy in policies {
        table.row([
            policy.name.clone(),
            meant(&policy.rules),
            policy.rules.repository_id.clone(),
            or_dash(policy.rules.full_every),
            policy.rules.retention.as_ref().map_or_else(|| "all".to_owned(), keeps),
        ]);
    }
    table
}

/// One policy.
pub fn policy(policy: &Policy) -> Table {
    let rules = &policy.rules;
    let often = rules.verification.unwrap_or_default();
    facts(vec![
        ("policy", policy.name.clone()),
        ("id", policy.policy_id.to_string()),
        ("vms", rules.vms.join(" ")),
        ("tags", words(&rules.tags)),
        ("folders", rules.folders.join(" ")),
        ("but not", rules.exclude.join(" ")),
        ("but not tags", words(&rules.exclude_tags)),
        ("but not folders", rules.exclude_folders.join(" ")),
        ("sources", rules.sources.join(" ")),
        ("repository", rules.repository_id.clone()),
        ("full every", rules.full_every.map(|every| format!("{every} points")).unwrap_or_default()),
        (
            "time limit",
            rules.time_limit_seconds.map(|limit| crate::output::duration(f64::from(limit))).unwrap_or_default(),
        ),
        ("bandwidth", rules.bytes_per_second_max.map(|most| format!("{}/s", bytes(most))).unwrap_or_default()),
        ("at once", rules.vms_at_once.map(|most| format!("{most} VMs")).unwrap_or_default()),
        ("order", order(rules.order.unwrap_or_default()).to_owned()),
        ("chain points", said(rules.chain_points_max, chain_points(policy.in_force.chain_points_max))),
        ("verify at rest", said(often.at_rest_days, after(policy.in_force.at_rest_days))),
        ("verify deep", said(often.deep_days, after(policy.in_force.deep_days))),
        ("before", rules.hooks.as_ref().and_then(|hooks| hooks.before.clone()).unwrap_or_default()),
        ("after", rules.hooks.as_ref().and_then(|hooks| hooks.after.clone()).unwrap_or_default()),
        (
            "quiesce",
            match (rules.quiesce, rules.quiesce_or_fail) {
                (_, true) => "or fail".to_owned(),
                (true, false) => "yes".to_owned(),
                (false, false) => String::new(),
            },
        ),
        ("keep", rules.retention.as_ref().map_or_else(|| "all".to_owned(), keeps)),
        ("changed", moment(policy.updated_at)),
    ])
}

/// Which machines a policy means, in a few words.
fn meant(rules: &PolicyRules) -> String {
    let tags = rules.tags.iter().map(|tag| format!("tag:{tag}"));
    let folders = rules.folders.iter().map(|folder| format!("folder:{folder}"));
    rules.vms.iter().cloned().chain(tags).chain(folders).collect::<Vec<_>>().join(" ")
}

const fn order(order: PolicyOrder) -> &'static str {
    match order {
        PolicyOrder::Name => "by name",
        PolicyOrder::Listed => "as listed",
        PolicyOrder::LargestFirst => "largest first",
        PolicyOrder::OldestFirst => "oldest first",
    }
}

/// What holds, and by whom when not by the policy itself.
fn said(by_policy: Option<u32>, holds: String) -> String {
    if by_policy.is_some() { holds } else { format!("{holds} (as the hub says)") }
}

fn chain_points(bound: u32) -> String {
    if bound == 0 { "256 at most".to_owned() } else { bound.to_string() }
}

fn after(days: u32) -> String {
    if days == 0 { "never".to_owned() } else { format!("after {days} days") }
}

/// What a policy would do beside its machines' table, a sentence each.
pub fn told(plan: &PolicyPlan) -> Vec<String> {
    let unmatched = plan.unmatched.iter().map(|pattern| format!("no VM matches {pattern}"));
    let vanished = plan.vanished.iter().map(vanished);
    let not_judged = plan.vms.iter().filter_map(|vm| Some((vm.vm_name.as_str(), vm.not_judged.as_deref()?)));
    let retained = [retained(plan)].into_iter().chain(self::not_judged(not_judged.collect()));
    unmatched.chain(vanished).chain(no_longer(&plan.no_longer)).chain(retained).chain(chains_ended(plan)).collect()
}

/// Of which machines it is not known what retention would do, and why.
fn not_judged(vms: Vec<(&str, &str)>) -> Vec<String> {
    let more = vms.len().saturating_sub(NAMED_MAX);
    let more = (more > 0).then(|| format!("the same is true of {more} more VMs, for reasons of their own"));
    let told = |(name, why)| format!("what retention would do with {name} is not known: {why}");
    vms.into_iter().take(NAMED_MAX).map(told).chain(more).collect()
}

/// Which machines of a policy were not pruned, why, and who must act.
pub fn not_pruned(vms: &[NotPrunedVm]) -> Vec<String> {
    let told = |vm: &NotPrunedVm| {
        let (name, why, code, who) = (&vm.vm_name, &vm.why, vm.code, advice(vm.code.who_acts()));
        format!("{name} is not pruned: {why} (code {code}: {who})")
    };
    let more = vms.len().saturating_sub(NAMED_MAX);
    let more = (more > 0).then(|| format!("the same is true of {more} more VMs, for reasons of their own"));
    vms.iter().take(NAMED_MAX).map(told).chain(more).collect()
}

/// What becomes of machines and points without a policy, a sentence each.
pub fn told_of_deletion(plan: &PolicyDeletion) -> Vec<String> {
    let schedules =
        plan.schedules.iter().map(|name| format!("schedule {name} carries it out, and is to be deleted first"));
    let bytes = bytes(plan.freed_bytes);
    let (made, deleted, merged) = (plan.points, plan.deleted, plan.merged);
    let made =
        format!("{made} points that it made belong to no policy then, and are verified as the hub's settings say");
    let left: u64 = plan.left.iter().map(|left| left.points).sum();
    let names: BTreeSet<&str> = plan.left.iter().map(|left| left.vm_name.as_str()).collect();
    let left = (left > 0).then(|| {
        let names = named(&names.into_iter().collect::<Vec<_>>());
        format!("{left} of them no rules judge, they stay until somebody deletes them: {names}")
    });
    let judged = (!plan.judged.is_empty()).then(|| {
        let merged = if merged > 0 { format!(", and merge {merged} into later ones{FOR_GOOD}") } else { String::new() };
        format!("the rules of other policies would delete {deleted} points, {bytes}{merged}")
    });
    let not_judged = plan.judged.iter().filter_map(|vm| Some((vm.vm_name.as_str(), vm.not_judged.as_deref()?)));
    let not_judged = not_judged.collect();
    let points = [made].into_iter().chain(left).chain(judged).chain(self::not_judged(not_judged));
    schedules.chain(no_longer(&plan.no_longer)).chain(points).collect()
}

/// What other policies would do without one.
pub fn policy_deletion(plan: &PolicyDeletion) -> Table {
    let mut table = Table::new(&["VM", "ID", "POLICY", "KEEP", "MERGE", "DELETE"], &[3, 4, 5]);
    for vm in &plan.judged {
        table.row([
            vm.vm_name.clone(),
            vm.vm_context_id.to_string(),
            vm.policy.clone(),
            or_dash(vm.prune.as_ref().map(|prune| prune.kept.saturating_sub(vm.merged))),
            or_dash(vm.prune.as_ref().map(|_| vm.merged)),
            or_dash(vm.prune.as_ref().map(|prune| prune.deleted)),
        ]);
    }
    table
}

/// The first of these names, and how many more there are.
fn named(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names[..names.len().min(NAMED_MAX)].join(", "))
}

/// Which machines a policy would not mean any more, and which of them no other one means.
fn no_longer(vms: &[NoLongerMeant]) -> Vec<String> {
    let names = |bare: bool| {
        let of = vms.iter().filter(|vm| !bare || vm.policies.is_empty());
        let names: Vec<&str> = of.map(|vm| vm.vm_name.as_str()).collect();
        (names.len(), named(&names))
    };
    let ((all, of_all), (bare, of_bare)) = (names(false), names(true));
    let all = (all > 0).then(|| format!("{all} VMs would not be meant any more: {of_all}"));
    let bare =
        (bare > 0).then(|| format!("{bare} of them no other policy means, nothing would back them up: {of_bare}"));
    all.into_iter().chain(bare).collect()
}

/// How many chains the next points would end, if any.
fn chains_ended(plan: &PolicyPlan) -> Option<String> {
    let ended = plan.chains_ended;
    (ended > 0).then(|| format!("{ended} chains would be too long with the next point, which becomes a full"))
}

/// What a retention keeps, in a few words.
fn keeps(retention: &Retention) -> String {
    let rules = [
        ("last", retention.keep_last),
        ("hourly", retention.keep_hourly),
        ("daily", retention.keep_daily),
        ("weekly", retention.keep_weekly),
        ("monthly", retention.keep_monthly),
        ("yearly", retention.keep_yearly),
    ];
    let said: Vec<String> =
        rules.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}")).collect();
    said.join(", ")
}

/// Of a machine that is not found any more, in a sentence.
pub fn vanished(vm: &VanishedVm) -> String {
    let seen = vm.discovered_at.map(|at| format!(", last seen {}", moment(at))).unwrap_or_default();
    format!("{} is not found any more{seen}; its points stay, the newest of {}", vm.vm_name, moment(vm.newest_point_at))
}

/// What retention would do, in a sentence.
fn retained(plan: &PolicyPlan) -> String {
    if let Some(why) = &plan.not_judged {
        return format!("{} VMs; what retention would do is not known: {why}", plan.vms.len());
    }
    let merged =
        if plan.merged > 0 { format!(", and merge {} into later ones{FOR_GOOD}", plan.merged) } else { String::new() };
    let (vms, deleted, freed, kept) = (plan.vms.len(), plan.deleted, bytes(plan.freed_bytes), plan.kept);
    format!("{vms} VMs; retention would delete {deleted} points, {freed}{merged}; {kept} stay")
}

/// What a policy would do.
pub fn policy_plan(plan: &PolicyPlan) -> Table {
    let mut table = Table::new(&["VM", "ID", "NEXT", "CHAIN", "KEEP", "MERGE", "DELETE"], &[3, 4, 5, 6]);
    for vm in &plan.vms {
        table.row([
            vm.vm_name.clone(),
            vm.vm_context_id.to_string(),
            if vm.ends_chain { format!("{}, then full", vm.next_type) } else { vm.next_type.to_string() },
            vm.chain_points.to_string(),
            or_dash(vm.prune.as_ref().map(|prune| prune.kept.saturating_sub(vm.merged))),
            or_dash(vm.prune.as_ref().map(|_| vm.merged)),
            or_dash(vm.prune.as_ref().map(|prune| prune.deleted)),
        ]);
    }
    table
}

/// Schedules.
pub fn schedules(schedules: &[Schedule]) -> Table {
    let mut table = Table::new(&["SCHEDULE", "POLICY", "WHEN", "NEXT", "LAST"], &[]);
    for schedule in schedules {
        table.row([
            schedule.name.clone(),
            schedule.policy_id.to_string(),
            when(&schedule.rules),
            if schedule.enabled { or_dash(schedule.next_at.map(moment)) } else { "disabled".to_owned() },
            or_dash(schedule.handled_at.map(moment)),
        ]);
    }
    table
}

/// One schedule.
pub fn schedule(schedule: &Schedule) -> Table {
    let rules = &schedule.rules;
    let window = rules.window.as_ref().map(|window| format!("{} to {}", window.from, window.until));
    facts(vec![
        ("schedule", schedule.name.clone()),
        ("id", schedule.schedule_id.to_string()),
        ("policy", schedule.policy_id.to_string()),
        ("enabled", if schedule.enabled { "yes".to_owned() } else { "no".to_owned() }),
        ("when", when(rules)),
        ("window", window.unwrap_or_default()),
        ("next", or_dash(schedule.next_at.map(moment))),
        ("last", or_dash(schedule.handled_at.map(moment))),
    ])
}

fn when(rules: &ScheduleRules) -> String {
    let zone = rules.time_zone.as_deref().unwrap_or("UTC");
    match (&rules.cron, rules.every_seconds) {
        (Some(cron), _) => format!("{cron} ({zone})"),
        (None, Some(seconds)) if seconds % 3600 == 0 => format!("every {} h", seconds / 3600),
        (None, Some(seconds)) => format!("every {} min", seconds / 60),
        (None, None) => String::new(),
    }
}

/// Occurrences to come.
pub fn occurrences(occurrences: &[Occurrence]) -> Table {
    let mut table = Table::new(&["DUE", "BEGINS", "WINDOW"], &[]);
    for occurrence in occurrences {
        let window = if occurrence.may_begin { "open" } else { "shut: left out" };
        table.row([moment(occurrence.due_at), moment(occurrence.begins_at), window.to_owned()]);
    }
    table
}

/// Executions.
pub fn executions(executions: &[Execution]) -> Table {
    let mut table = Table::new(&["EXECUTION", "DUE", "STATE", "BEGAN", "ENDED", "BY", "WHY"], &[]);
    for execution in executions {
        table.row([
            execution.execution_id.to_string(),
            moment(execution.due_at),
            execution.state.to_string(),
            moment(execution.started_at),
            or_dash(execution.finished_at.map(moment)),
            execution.triggered_by.clone().unwrap_or_else(|| "schedule".to_owned()),
            execution.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// What became of each machine.
pub fn execution_vms(vms: &[ExecutionVm]) -> Table {
    let mut table = Table::new(&["VM", "STATE", "BACKUP", "TRIES", "WHY"], &[3]);
    for vm in vms {
        table.row([
            vm.vm_name.clone(),
            vm.outcome.to_string(),
            or_dash(vm.backup_id.as_ref()),
            vm.attempts.to_string(),
            vm.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}
