//! `sendense schedule`.

use super::policy::most;
use crate::args::{Missed, ScheduleArgs, ScheduleCommand};
use crate::context::Context;
use crate::output::{json, line, say, table as show};
use crate::timetables;
use anyhow::Result;
use sendense_api::reply::{ExecutionListReply, ExecutionReply, PreviewReply, ScheduleListReply, ScheduleReply};
use sendense_api::{CatchUp, Day, Limit, ListQuery, PreviewQuery, Schedule, ScheduleRules, ScheduleWindow};

/// Runs the command.
pub async fn run(context: &Context, command: ScheduleCommand) -> Result<u8> {
    let client = &context.client;
    match command {
        ScheduleCommand::Create { name, rules, disabled } => {
            let schedule = client.create_schedule(&schedule_rules(name, rules, !disabled)).await?;
            if context.json { json(&ScheduleReply::new(schedule))? } else { line(schedule.schedule_id.as_str()) }
        }
        ScheduleCommand::Update { schedule, rename, rules } => {
            let known = client.get_schedule(&schedule).await?;
            let rules = schedule_rules(rename.unwrap_or(known.name), rules, known.enabled);
            print(context, client.replace_schedule(&schedule, &rules).await?)?;
        }
        ScheduleCommand::List => {
            let page = client.list_schedules(&ListQuery { limit: most()?, offset: 0 }).await?;
            if context.json {
                json(&ScheduleListReply::from(page))?;
            } else {
                show(timetables::schedules(&page.items));
            }
        }
        ScheduleCommand::Show { schedule } => print(context, client.get_schedule(&schedule).await?)?,
        ScheduleCommand::Preview { schedule, days } => {
            let occurrences = client.preview_schedule(&schedule, &PreviewQuery { days }).await?;
            if context.json {
                json(&PreviewReply::new(occurrences))?;
            } else {
                show(timetables::occurrences(&occurrences));
                say(format!("{} occurrences in {days} days", occurrences.len()));
            }
        }
        ScheduleCommand::Enable { schedule } => print(context, client.enable_schedule(&schedule, true).await?)?,
        ScheduleCommand::Disable { schedule } => print(context, client.enable_schedule(&schedule, false).await?)?,
        ScheduleCommand::Trigger { schedule } => {
            let execution = client.trigger_schedule(&schedule).await?;
            if context.json {
                json(&ExecutionReply::new(execution))?;
            } else {
                line(execution.execution_id.as_str());
                say(format!("look at it with 'sendense schedule execution {}'", execution.execution_id));
            }
        }
        ScheduleCommand::Executions { schedule, limit } => {
            let limit = Limit::try_from(limit).map_err(anyhow::Error::msg)?;
            let page = client.list_executions(&schedule, &ListQuery { limit, offset: 0 }).await?;
            if context.json {
                json(&ExecutionListReply::from(page))?;
            } else {
                show(timetables::executions(&page.items));
            }
        }
        ScheduleCommand::Execution { execution_id } => {
            let execution = client.get_execution(&execution_id).await?;
            if context.json {
                json(&ExecutionReply::new(execution))?;
            } else {
                show(timetables::executions(std::slice::from_ref(&execution)));
                show(timetables::execution_vms(execution.vms.as_deref().unwrap_or_default()));
            }
        }
        ScheduleCommand::Delete { schedule } => {
            client.delete_schedule(&schedule).await?;
            say(format!("schedule {schedule} is forgotten"));
        }
    }
    Ok(0)
}

fn print(context: &Context, schedule: Schedule) -> Result<()> {
    if context.json {
        return json(&ScheduleReply::new(schedule));
    }
    show(timetables::schedule(&schedule));
    Ok(())
}

fn schedule_rules(name: String, args: ScheduleArgs, enabled: bool) -> ScheduleRules {
    let days: Vec<Day> = args.window_days.iter().map(|day| day.told()).collect();
    let stop_running = args.window_stops;
    ScheduleRules {
        name,
        policy_id: args.policy,
        cron: args.cron,
        every_seconds: args.every,
        time_zone: Some(args.time_zone),
        jitter_seconds: args.jitter_minutes * 60,
        catch_up: match args.missed {
            Missed::Once => CatchUp::Once,
            Missed::Skip => CatchUp::Skip,
        },
        window: args.window.map(|(from, until)| ScheduleWindow { from, until, days, stop_running }),
        enabled,
    }
}
