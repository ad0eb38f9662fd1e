//! Runs one hook: what it is told, for how long it may run, and what of its words is kept.
//!
//! Invariant: no shell sees a word of what a hook is told, and its environment holds nothing of the hub's own.

use super::place::Place;
use sendense_block::Cancel;
use sendense_block::error::chain;
use sendense_catalog::LogLevel;
use sendense_source::child::{Child, Ended, Outcome, Spec};
use std::collections::BTreeMap;
use std::time::Duration;

/// Lines of a hook's output that go into the task's log: the last ones, which tell why it ended. Half of what the log takes at once.
const LINES_MAX: usize = 100;
/// Characters of a line that are kept.
const LINE_CHARS_MAX: usize = 500;

/// Characters of a variable that a hook is told: an error's message with its chain. Linux takes 128 KiB of one.
const VALUE_CHARS_MAX: usize = 4000;

/// What `env` and shells end with where they could not execute, or not find, a program: then nothing was done, or a part of it.
const NOT_RUN: [i32; 2] = [126, 127];

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    After,
}

impl Moment {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// What came of it.
pub(super) struct Ran {
    /// Why it is no success, if it is none.
    pub failure: Option<String>,
    /// What it said, and how it ended.
    pub lines: Vec<(LogLevel, String)>,
    /// Whether it was begun at all, and found what it needs.
    pub has_begun: bool,
    /// Whether it was ended because somebody asked for that.
    pub was_stopped: bool,
}

/// Runs a hook to its end. Blocks.
pub(super) fn run(
    place: &Place,
    moment: Moment,
    name: &str,
    told: &BTreeMap<String, String>,
    timeout: Duration,
    cancel: &Cancel,
) -> Ran {
    let failed = |failure: String, has_begun: bool, was_stopped: bool| Ran {
        lines: vec![(LogLevel::Error, failure.clone())],
        failure: Some(failure),
        has_begun,
        was_stopped,
    };
    let refused = |why: String| failed(format!("hook {name} cannot be run: {why}"), false, false);
    let program = match place.find(name) {
        Ok(program) => program,
        Err(error) => return refused(chain(&error)),
    };
    let mut spec = Spec::new(program, name).deadline(timeout).with_its_group().env("SENDENSE_HOOK", moment.as_str());
    for (name, value) in told {
        spec = spec.env(name, harmless(value));
    }
    let child = match Child::spawn(&spec) {
        Ok(child) => child,
        Err(error) => return refused(chain(&error)),
    };
    let outcome = match child.wait(cancel) {
        Ok(outcome) => Ok(outcome),
        // It was asked to stop, and is killed; what it had said is told all the same.
        Err(error) if cancel.is_cancelled() => {
            child.kill();
            child.outcome().ok_or(error)
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(outcome) => judge(moment, name, timeout, &outcome),
        Err(error) => failed(format!("hook {name}: {}", chain(&error)), true, cancel.is_cancelled()),
    }
}

/// A value as a hook is told it: names come from hypervisors. A variable can hold no NUL, a line of a script should not hold more
/// than one, and all of them together must leave room for the program's start.
fn harmless(value: &str) -> String {
    value.chars().take(VALUE_CHARS_MAX).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn judge(moment: Moment, name: &str, timeout: Duration, outcome: &Outcome) -> Ran {
    let is_missing =
        outcome.ended == Ended::Exited && outcome.status.code().is_some_and(|code| NOT_RUN.contains(&code));
    let failure = match outcome.ended {
        Ended::Exited if outcome.status.success() => None,
        Ended::Exited if is_missing => Some(format!(
            "hook {name} cannot be run: {}: a program that it needs is missing, or may not be executed",
            outcome.status
        )),
        Ended::Exited => Some(format!("hook {name} failed: {}", outcome.status)),
        Ended::Deadline => Some(format!("hook {name} did not end within {} s and was killed", timeout.as_secs())),
        Ended::Killed => Some(format!("hook {name} was killed because the backup was stopped")),
    };
    let mut lines = Vec::new();
    for (output, bytes, is_cut) in [("stdout", &outcome.stdout, outcome.stdout_cut), ("stderr", &outcome.stderr, false)]
    {
        lines.extend(said(moment, name, output, bytes, is_cut));
    }
    lines.push(match &failure {
        None => (LogLevel::Info, format!("hook {name} ({}) has ended well", moment.as_str())),
        Some(failure) => (LogLevel::Error, failure.clone()),
    });
    Ran { failure, lines, has_begun: !is_missing, was_stopped: outcome.ended == Ended::Killed }
}

/// The last lines of an output, made harmless.
fn said(moment: Moment, name: &str, output: &str, bytes: &[u8], is_cut: bool) -> Vec<(LogLevel, String)> {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let max = LINES_MAX / 2;
    let mut lines = Vec::new();
    if is_cut || all.len() > max {
        let left_out = format!("hook {name} ({}) said more on {output}; these are its last lines", moment.as_str());
        lines.push((LogLevel::Warning, left_out));
    }
    lines.extend(all[all.len().saturating_sub(max)..].iter().map(|line| {
        let line: String = line.chars().take(LINE_CHARS_MAX).collect();
        let line = harmless(&line);
        (LogLevel::Info, format!("{name} {output}: {line}"))
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hook_is_told_is_one_short_line() {
        assert_eq!(harmless("web\0\n$(reboot) ü"), "web  $(reboot) ü");
        assert_eq!(harmless(&"ü".repeat(VALUE_CHARS_MAX + 1)).chars().count(), VALUE_CHARS_MAX);
    }

    #[test]
    fn a_hook_whose_programs_are_missing_counts_as_not_run() {
        use std::os::unix::process::ExitStatusExt;
        for (code, has_begun, said) in [
            (0, true, None),
            (1, true, Some("hook x failed: exit status: 1")),
            (125, true, Some("hook x failed: exit status: 125")),
            (
                126,
                false,
                Some(
                    "hook x cannot be run: exit status: 126: a program that it needs is missing, or may not be executed",
                ),
            ),
            (
                127,
                false,
                Some(
                    "hook x cannot be run: exit status: 127: a program that it needs is missing, or may not be executed",
                ),
            ),
            (128, true, Some("hook x failed: exit status: 128")),
        ] {
            let outcome = Outcome {
                status: std::process::ExitStatus::from_raw(code << 8),
                ended: Ended::Exited,
                stdout: Vec::new(),
                stdout_cut: false,
                stderr: Vec::new(),
            };
            let ran = judge(Moment::After, "x", Duration::from_secs(1), &outcome);
            assert_eq!((ran.has_begun, ran.failure.as_deref()), (has_begun, said));
        }
    }

    #[test]
    fn of_many_words_the_last_are_kept_and_made_harmless() {
        let flood: String = (0..1000).map(|number| format!("line {number}\n\n")).collect();
        let lines = said(Moment::After, "x", "stdout", flood.as_bytes(), false);
        assert_eq!(lines.len(), LINES_MAX / 2 + 1);
        assert!(lines[0].1.contains("said more"), "{:?}", lines[0]);
        assert_eq!(lines.last().unwrap().1, "x stdout: line 999");
        let lines = said(Moment::Before, "x", "stderr", b"\x1b[31mred\xff\n", false);
        assert_eq!(lines, [(LogLevel::Info, "x stderr:  [31mred\u{fffd}".to_owned())]);
        let lines = said(Moment::Before, "x", "stdout", "y".repeat(9999).as_bytes(), true);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].1.len() < LINE_CHARS_MAX + 20);
        assert!(said(Moment::Before, "x", "stdout", b"\n \n", false).is_empty());
    }
}
