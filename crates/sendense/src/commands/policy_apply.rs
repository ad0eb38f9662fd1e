//! `sendense policy apply`: policies and schedules that are kept in a file.
//!
//! What the file says is compared with what the hub has, the difference is shown, and after a yes the hub has what the file says.
//! Applying twice is applying once. What the file does not name is left alone.

use super::backup::{LOOK_FIRST, confirmed};
use super::policy::most;
use crate::context::Context;
use crate::output::{json, line, say};
use crate::timetables;
use anyhow::{Context as _, Result, bail};
use sendense_api::{Client, ListQuery, PolicyPlan, PolicyRules, ScheduleRules};
use serde::{Deserialize, Serialize};
use similar::TextDiff;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// The longest file: thousands of policies fit.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Lines around a change that are shown with it.
const CONTEXT_LINES: usize = 2;

/// What is in the file: the bodies of the API, by the plural of their nouns.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    policies: Vec<PolicyRules>,
    schedules: Vec<ScheduleRules>,
}

/// What becomes of one policy or schedule.
struct Change<T> {
    name: String,
    wanted: T,
    /// None: it is made.
    before: Option<T>,
    diff: String,
}

impl<T: Clone + PartialEq + Serialize> Change<T> {
    /// None when there is nothing to change.
    fn of(name: &str, wanted: &T, before: Option<&T>) -> Result<Option<Self>> {
        if before == Some(wanted) {
            return Ok(None);
        }
        let text = |rules: Option<&T>| rules.map_or_else(|| Ok(String::new()), toml::to_string_pretty);
        let (old, new) = (text(before)?, text(Some(wanted))?);
        let diff = TextDiff::from_lines(&old, &new).unified_diff().context_radius(CONTEXT_LINES).to_string();
        Ok(Some(Self { name: name.to_owned(), wanted: wanted.clone(), before: before.cloned(), diff }))
    }

    fn verb(&self) -> &'static str {
        if self.before.is_some() { "change" } else { "make" }
    }

    fn show(&self, kind: &str) {
        line(format!("{} {kind} {}", self.verb(), self.name));
        // One by one: a line that is printed has no line's end in it.
        self.diff.lines().for_each(line);
    }

    fn told(&self, kind: &str) -> serde_json::Value {
        serde_json::json!({ "kind": kind, "name": self.name, "change": self.verb(), "diff": self.diff })
    }
}

/// The hub's words for things by the names that people use.
struct Names {
    repositories: BTreeMap<String, String>,
    sources: BTreeMap<String, String>,
    policies: BTreeMap<String, String>,
}

impl Names {
    fn policy(&self, mut rules: PolicyRules) -> PolicyRules {
        rules.repository_id = name_of(&self.repositories, &rules.repository_id);
        for source in &mut rules.sources {
            *source = name_of(&self.sources, source);
        }
        rules
    }

    fn schedule(&self, mut rules: ScheduleRules) -> ScheduleRules {
        rules.policy_id = name_of(&self.policies, &rules.policy_id);
        rules
    }
}

/// The name behind an id; what is no id is a name already.
fn name_of(names: &BTreeMap<String, String>, id_or_name: &str) -> String {
    names.get(id_or_name).cloned().unwrap_or_else(|| id_or_name.to_owned())
}

/// Runs the command.
pub(super) async fn run(context: &Context, file: &Path, dry_run: bool, yes: bool) -> Result<u8> {
    let client = &context.client;
    let wanted = read(file)?;
    let page = ListQuery { limit: most()?, offset: 0 };
    let policies = client.list_policies(&page).await?.items;
    let names = Names {
        repositories: pairs(client.list_repositories(&page).await?.items, |it| (it.repository_id.to_string(), it.name)),
        sources: pairs(client.list_sources(&page).await?.items, |it| (it.source_id.to_string(), it.name)),
        policies: pairs(policies.clone(), |it| (it.policy_id.to_string(), it.name)),
    };
    let there = pairs(policies, |it| (it.name, names.policy(it.rules)));
    let schedules = client.list_schedules(&page).await?.items;
    let scheduled = pairs(schedules, |it| (it.name, names.schedule(it.rules)));
    let mut policies = Vec::new();
    for rules in wanted.policies.into_iter().map(|rules| names.policy(rules)) {
        policies.extend(Change::of(&rules.name, &rules, there.get(&rules.name))?);
    }
    let mut schedules = Vec::new();
    for rules in wanted.schedules.into_iter().map(|rules| names.schedule(rules)) {
        schedules.extend(Change::of(&rules.name, &rules, scheduled.get(&rules.name))?);
    }
    let mut told = Vec::new();
    for change in &policies {
        let plan = client.plan_policy(&change.wanted).await?;
        if !context.json {
            change.show("policy");
            tell_plan(&change.name, &plan);
        }
        let mut change = change.told("policy");
        change["plan"] = serde_json::to_value(plan)?;
        told.push(change);
    }
    told.extend(schedules.iter().map(|change| change.told("schedule")));
    if !context.json {
        for change in &schedules {
            change.show("schedule");
        }
    }
    let count = told.len();
    if count == 0 {
        say("the hub has what the file says");
    } else if !dry_run && (yes || confirmed(&format!("make these {count} changes?"), LOOK_FIRST)?) {
        apply(client, &policies, &schedules).await?;
    } else if !dry_run {
        say("nothing was changed");
        return Ok(0);
    }
    if context.json {
        json(&serde_json::json!({ "success": true, "dry_run": dry_run, "changes": told }))?;
    } else if count > 0 {
        say(format!("{count} {}", if dry_run { "changes to make" } else { "changes made" }));
    }
    Ok(0)
}

/// Policies first: schedules name them.
async fn apply(client: &Client, policies: &[Change<PolicyRules>], schedules: &[Change<ScheduleRules>]) -> Result<()> {
    for change in policies {
        let done = match &change.before {
            None => client.create_policy(&change.wanted).await,
            Some(_) => client.replace_policy(&change.name, &change.wanted).await,
        };
        done.with_context(|| format!("{} policy {}", change.verb(), change.name))?;
    }
    for change in schedules {
        let done = match &change.before {
            None => client.create_schedule(&change.wanted).await,
            Some(_) => client.replace_schedule(&change.name, &change.wanted).await,
        };
        done.with_context(|| format!("{} schedule {}", change.verb(), change.name))?;
    }
    Ok(())
}

/// Says what a policy would do that is not saved.
fn tell_plan(name: &str, plan: &PolicyPlan) {
    timetables::told(plan).into_iter().for_each(|told| say(format!("{name}: {told}")));
}

fn pairs<T, V>(items: Vec<T>, pair: impl Fn(T) -> (String, V)) -> BTreeMap<String, V> {
    items.into_iter().map(pair).collect()
}

fn read(path: &Path) -> Result<File> {
    let mut text = String::new();
    let shown = path.display();
    let read = if path == Path::new("-") {
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("open {shown}"))?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    };
    if read.with_context(|| format!("read {shown}"))? as u64 > FILE_BYTES_MAX {
        bail!("{shown} is longer than {FILE_BYTES_MAX} bytes");
    }
    parse(&text).with_context(|| format!("read {shown}"))
}

/// JSON where it begins like JSON, else TOML.
fn parse(text: &str) -> Result<File> {
    let file: File =
        if text.trim_start().starts_with('{') { serde_json::from_str(text)? } else { toml::from_str(text)? };
    let mut seen = BTreeSet::new();
    let names = file.policies.iter().map(|one| ("policy", &one.name));
    for (kind, name) in names.chain(file.schedules.iter().map(|one| ("schedule", &one.name))) {
        if !seen.insert((kind, name)) {
            bail!("{kind} {name} is in it twice");
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOML: &str = r#"
[[policies]]
name = "gold"
vms = ["web-*"]
repository_id = "main"
[policies.retention]
keep_daily = 7

[[schedules]]
name = "nightly"
policy_id = "gold"
cron = "30 1 * * *"
"#;

    #[test]
    fn toml_and_json_say_the_same_and_what_is_wrong_is_named() {
        let file = parse(TOML).unwrap();
        let json = serde_json::json!({ "policies": file.policies, "schedules": file.schedules }).to_string();
        assert_eq!(parse(&json).unwrap(), file);
        for (text, told) in [
            ("[[policies]]\nname = \"x\"\n", "vms"),
            ("[[policy]]\n", "policy"),
            (&TOML.replace("keep_daily", "keep_nightly"), "keep_nightly"),
            (&format!("{TOML}{TOML}"), "policy gold is in it twice"),
            ("{\"policies\": 1}", "invalid type"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(told), "{told}: {error}");
        }
    }

    #[test]
    fn only_what_differs_is_changed_and_shown() {
        let wanted = parse(TOML).unwrap().policies.remove(0);
        assert!(Change::of("gold", &wanted, Some(&wanted)).unwrap().is_none());
        let mut before = wanted.clone();
        before.retention.as_mut().unwrap().keep_daily = 3;
        let change = Change::of("gold", &wanted, Some(&before)).unwrap().unwrap();
        assert!(change.diff.contains("-keep_daily = 3\n+keep_daily = 7\n"), "{}", change.diff);
        assert_eq!(Change::of("gold", &wanted, None).unwrap().unwrap().verb(), "make");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
