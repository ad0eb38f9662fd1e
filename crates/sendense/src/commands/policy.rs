//! `sendense policy`.

use super::backup::{LOOK_FIRST, confirmed};
use crate::args::{PolicyArgs, PolicyCommand};
use crate::context::Context;
use crate::output::{bytes, json, line, say, table as show};
use crate::{exit, tables, timetables};
use anyhow::Result;
use sendense_api::reply::{PolicyDeletionReply, PolicyListReply, PolicyPlanReply, PolicyReply, PrunesReply};
use sendense_api::{
    ClientError, Limit, ListQuery, NotPrunedVm, Policy, PolicyHooks, PolicyPlan, PolicyPrune, PolicyRules,
    PolicyVerification, Prune, PruneQuery, Retention,
};
use sendense_types::ProblemCode;

/// What who is not asked is told.
const LOOK_FIRST_AT_POLICY: &str = "look with `policy plan --policy`, then say --yes";

/// Runs the command.
pub async fn run(context: &Context, command: PolicyCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        PolicyCommand::Create { name, rules } => {
            made(context, client.create_policy(&policy_rules(name, rules)).await?)?;
        }
        PolicyCommand::Update { policy, rename, rules, yes } => {
            let was = client.get_policy(&policy).await?.name;
            // By its name: as a change of what is saved.
            let mut rules = policy_rules(was, rules);
            let plan = client.plan_policy(&rules).await?;
            if !context.json {
                timetables::told(&plan).into_iter().for_each(say);
            }
            if !yes && !confirmed(&format!("change policy {}?", rules.name), LOOK_FIRST_AT_POLICY)? {
                say("nothing was changed");
                return Ok(0);
            }
            rules.name = rename.unwrap_or(rules.name);
            made(context, client.replace_policy(&policy, &rules).await?)?;
        }
        PolicyCommand::Plan { policy, rules } => {
            let name = match policy {
                Some(policy) => client.get_policy(&policy).await?.name,
                None => "planned".to_owned(),
            };
            let plan = client.plan_policy(&policy_rules(name, rules)).await?;
            if context.json { json(&PolicyPlanReply::new(plan))? } else { print_plan(&plan) }
        }
        PolicyCommand::Apply { file, dry_run, yes } => {
            return super::policy_apply::run(context, &file, dry_run, yes).await;
        }
        PolicyCommand::List => {
            let page = client.list_policies(&ListQuery { limit: most()?, offset: 0 }).await?;
            if context.json {
                json(&PolicyListReply::from(page))?;
            } else {
                show(timetables::policies(&page.items));
            }
        }
        PolicyCommand::Show { policy } => {
            let policy = client.get_policy(&policy).await?;
            if context.json {
                json(&PolicyReply::new(policy))?;
            } else {
                show(timetables::policy(&policy));
                print_plan(&client.plan_of_policy(policy.policy_id.as_str()).await?);
            }
        }
        PolicyCommand::Prune { policy, dry_run, yes } => return prune(context, &policy, dry_run, yes).await,
        PolicyCommand::Delete { policy, dry_run, yes } => return delete(context, &policy, dry_run, yes).await,
    }
    Ok(0)
}

/// The longest page.
pub(super) fn most() -> Result<Limit> {
    Limit::try_from(sendense_api::LIMIT_MAX).map_err(anyhow::Error::msg)
}

fn made(context: &Context, policy: Policy) -> Result<()> {
    if context.json {
        return json(&PolicyReply::new(policy));
    }
    line(policy.policy_id.as_str());
    Ok(())
}

fn policy_rules(name: String, args: PolicyArgs) -> PolicyRules {
    let retention = Retention {
        keep_last: args.keep_last,
        keep_hourly: args.keep_hourly,
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
        keep_yearly: args.keep_yearly,
        time_zone: Some(args.counting.time_zone),
        minimum_age_seconds: u64::from(args.counting.minimum_age_hours) * 3600,
    };
    let kept =
        [args.keep_last, args.keep_hourly, args.keep_daily, args.keep_weekly, args.keep_monthly, args.keep_yearly];
    let verification = PolicyVerification { at_rest_days: args.verify_at_rest, deep_days: args.verify_deep };
    let hooks = PolicyHooks { before: args.before, after: args.after, timeout_seconds: args.hook_timeout };
    // Who says tags or folders alone means machines of any name.
    let vms = if args.vms.is_empty() { vec!["*".to_owned()] } else { args.vms };
    PolicyRules {
        name,
        vms,
        tags: args.tags,
        folders: args.folders,
        exclude: args.exclude,
        exclude_tags: args.exclude_tags,
        exclude_folders: args.exclude_folders,
        sources: args.sources,
        repository_id: args.repo,
        full_every: args.full_every,
        quiesce: args.quiesce || args.quiesce_or_fail,
        quiesce_or_fail: args.quiesce_or_fail,
        compression: args.compression,
        on_tracking_loss: args.on_tracking_loss,
        time_limit_seconds: args.time_limit_seconds,
        bytes_per_second_max: args.bandwidth,
        vms_at_once: args.at_once,
        order: args.order,
        chain_points_max: args.chain_points_max,
        verification: (verification != PolicyVerification::default()).then_some(verification),
        hooks: (hooks != PolicyHooks::default()).then_some(hooks),
        retention: kept.iter().any(|count| *count > 0).then_some(retention),
    }
}

fn print_plan(plan: &PolicyPlan) {
    show(timetables::policy_plan(plan));
    timetables::told(plan).into_iter().for_each(say);
}

async fn delete(context: &Context, policy: &str, dry_run: bool, yes: bool) -> Result<u8> {
    let client = &context.client;
    let plan = client.plan_policy_deletion(policy).await?;
    if dry_run && context.json {
        json(&PolicyDeletionReply::new(plan))?;
        return Ok(0);
    }
    if dry_run {
        show(timetables::policy_deletion(&plan));
    }
    if !context.json {
        timetables::told_of_deletion(&plan).into_iter().for_each(say);
    }
    if dry_run {
        return Ok(0);
    }
    if !yes && !confirmed(&format!("forget policy {}?", plan.name), LOOK_FIRST)? {
        say("nothing was changed");
        return Ok(0);
    }
    // By the id: what was looked at, whatever bears its name now.
    client.delete_policy(plan.policy_id.as_str()).await?;
    say(format!("policy {} is forgotten", plan.name));
    Ok(0)
}

async fn prune(context: &Context, policy: &str, dry_run: bool, yes: bool) -> Result<u8> {
    let client = &context.client;
    if yes && !dry_run {
        let done = client.prune_policy(policy, &PruneQuery { dry_run: false, plan_id: None }).await?;
        return print_prunes(context, done);
    }
    let plan = client.prune_policy(policy, &PruneQuery { dry_run: true, plan_id: None }).await?;
    if dry_run {
        return print_prunes(context, plan);
    }
    for prune in &plan.prunes {
        eprintln!("{}\n{}", prune.vm_name, tables::prune(prune));
    }
    timetables::not_pruned(&plan.not_pruned).into_iter().for_each(say);
    let (deleted, freed) = sums(&plan.prunes);
    if !confirmed(&format!("delete {deleted} points, {}?", bytes(freed)), LOOK_FIRST)? {
        say("nothing was deleted");
        return Ok(0);
    }
    // What a person said yes to goes, machine by machine, or that machine's prune is refused.
    let mut done = PolicyPrune { not_pruned: plan.not_pruned, ..PolicyPrune::default() };
    for plan in plan.prunes.into_iter().filter(|plan| plan.deleted > 0) {
        match prune_one(context, policy, &plan).await {
            Ok(prune) => done.prunes.push(prune),
            Err(error) => done.not_pruned.push(not_pruned(plan, error)?),
        }
    }
    print_prunes(context, done)
}

/// Carries out the plan of one machine.
async fn prune_one(context: &Context, policy: &str, plan: &Prune) -> Result<Prune, ClientError> {
    let request = sendense_api::PruneVm { policy_id: Some(policy.to_owned()), ..Default::default() };
    let how = PruneQuery { dry_run: false, plan_id: Some(plan.plan_id.clone()) };
    context.client.prune_vm(plan.vm_context_id.as_str(), &request, &how).await
}

/// What came between of one machine is in no other one's way. Any other error is given back.
fn not_pruned(plan: Prune, error: ClientError) -> Result<NotPrunedVm, ClientError> {
    use ProblemCode::{BackupHeld, Conflict, Corrupt, HasDependents};
    let Some(code @ (BackupHeld | Conflict | Corrupt | HasDependents)) = error.code() else { return Err(error) };
    let (vm_context_id, vm_name, why) = (plan.vm_context_id, plan.vm_name, error.to_string());
    Ok(NotPrunedVm { vm_context_id, vm_name, code, why })
}

fn sums(prunes: &[Prune]) -> (u64, u64) {
    let deleted = prunes.iter().map(|prune| prune.deleted).sum();
    (deleted, prunes.iter().map(|prune| prune.freed_bytes).fold(0, u64::saturating_add))
}

/// Tells what was done, and of what was left the exit code, too.
fn print_prunes(context: &Context, done: PolicyPrune) -> Result<u8> {
    let code = if done.not_pruned.is_empty() { 0 } else { exit::FAILED };
    if context.json {
        json(&PrunesReply::from(done))?;
        return Ok(code);
    }
    let prunes = &done.prunes;
    for prune in prunes {
        line(&prune.vm_name);
        show(tables::prune(prune));
    }
    let (deleted, freed) = sums(prunes);
    let verb = if prunes.iter().any(|prune| prune.dry_run) { "would delete" } else { "deleted" };
    say(format!("{verb} {deleted} points of {} VMs, {}", prunes.len(), bytes(freed)));
    timetables::not_pruned(&done.not_pruned).into_iter().for_each(say);
    Ok(code)
}
