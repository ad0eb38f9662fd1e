//! Names of what we make on a domain: `sendense-<n>-<deployment id>-<task id>`, n the length of the deployment's id.
//!
//! Invariant: a name is ours only if it is exactly what [`Checkpoint::name`] would have made for our deployment. libvirt
//! allows no character in a checkpoint's name that an id cannot have, so nothing could separate the two ids; their lengths
//! do, and deployment `dep-1` never takes the things of `dep-1-b` for its own.

use sendense_types::{DeploymentId, TaskId, TrackingToken};
use std::fmt;

/// A checkpoint of ours. Its name is also the name of the bitmaps that belong to it, and the token in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Checkpoint {
    /// Whose it is.
    pub deployment_id: DeploymentId,
    /// For which task it was made.
    pub task_id: TaskId,
}

impl Checkpoint {
    /// Its name in libvirt.
    pub fn name(&self) -> String {
        let Self { deployment_id, task_id } = self;
        format!("sendense-{}-{deployment_id}-{task_id}", deployment_id.as_str().len())
    }

    /// Reads a name back; none when it is not one of ours, whoever made it.
    pub fn parse(name: &str) -> Option<Self> {
        let (length, rest) = name.strip_prefix("sendense-")?.split_once('-')?;
        let (deployment, task) = rest.split_at_checked(length.parse().ok()?)?;
        let found = Self { deployment_id: deployment.parse().ok()?, task_id: task.strip_prefix('-')?.parse().ok()? };
        // A length may be written in several ways; only one is ours.
        Some(found).filter(|found| found.name() == name)
    }

    /// The token that goes into the manifest.
    pub fn token(&self) -> TrackingToken {
        TrackingToken(self.name())
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_exact_form_is_ours() {
        let made = Checkpoint { deployment_id: "dep-1".parse().unwrap(), task_id: "task-2.a".parse().unwrap() };
        assert_eq!(made.name(), "sendense-5-dep-1-task-2.a");
        assert_eq!(Checkpoint::parse(&made.name()), Some(made));
        let longer = Checkpoint::parse("sendense-7-dep-1-b-task-2").unwrap();
        assert_eq!((longer.deployment_id.as_str(), longer.task_id.as_str()), ("dep-1-b", "task-2"));
        for other in [
            "",
            "c1",
            "sendense",
            "sendense-5-dep-1",
            "sendense-5-dep-1-",
            "sendense-0--x",
            "sendense-05-dep-1-x",
            "sendense-+5-dep-1-x",
            "sendense-99-dep-1-x",
            "sendense-4-dep-1-x",
            "xsendense-1-a-b",
            "sendense-2-\u{e4}-b",
        ] {
            assert_eq!(Checkpoint::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_is_written(text in "(sendense-[0-9]{1,2}-)?[a-z0-9._-]{0,30}") {
            if let Some(found) = Checkpoint::parse(&text) {
                prop_assert_eq!(found.name(), text);
            }
        }
    }
}
