//! Which machines a policy means: by name, tag, folder and source.
//!
//! Pure. Invariant: what is excluded is never meant, whatever else says so.

use sendense_api::PolicyRules;
use sendense_catalog::{SeenVm, VmContext};
use sendense_types::{SourceId, Tag};
use std::collections::BTreeSet;

/// What a machine is chosen by.
#[derive(Clone, Copy)]
pub(super) struct Seen<'v> {
    name: &'v str,
    source_id: Option<&'v SourceId>,
    folder: Option<&'v str>,
    tags: &'v BTreeSet<Tag>,
}

impl<'v> From<&'v VmContext> for Seen<'v> {
    fn from(vm: &'v VmContext) -> Self {
        let (name, folder) = (vm.vm_name.as_str(), vm.folder.as_deref());
        Self { name, source_id: vm.source_id.as_ref(), folder, tags: &vm.tags }
    }
}

impl<'v> From<&'v SeenVm> for Seen<'v> {
    fn from(vm: &'v SeenVm) -> Self {
        let (name, folder) = (vm.vm_name.as_str(), vm.folder.as_deref());
        Self { name, source_id: vm.source_id.as_ref(), folder, tags: &vm.tags }
    }
}

/// The choice of one policy, and what of it has found a machine.
pub(super) struct Selector<'a> {
    rules: &'a PolicyRules,
    found: BTreeSet<String>,
}

impl<'a> Selector<'a> {
    pub fn new(rules: &'a PolicyRules) -> Self {
        Self { rules, found: BTreeSet::new() }
    }

    /// True when the policy means the machine. One without a source cannot be backed up and is never meant.
    pub fn means<'v>(&mut self, vm: impl Into<Seen<'v>>) -> bool {
        let (rules, vm) = (self.rules, vm.into());
        let Some(source_id) = vm.source_id else { return false };
        if !rules.sources.is_empty() && !rules.sources.iter().any(|source| source == source_id.as_str()) {
            return false;
        }
        let (name, folder) = (vm.name, vm.folder);
        let lies_in = |wanted: &String| folder.is_some_and(|folder| is_in(folder, wanted));
        // Each is asked for by itself, so that what is told of a tag does not hang on names.
        let by_name = self.note(rules.vms.iter().filter(|pattern| matches(pattern, name)).map(String::clone));
        let by_tag = self.note(rules.tags.iter().filter(|tag| vm.tags.contains(tag)).map(|tag| format!("tag {tag}")));
        let by_folder = self.note(rules.folders.iter().filter(|one| lies_in(one)).map(|one| format!("folder {one}")));
        let is_excluded = rules.exclude.iter().any(|pattern| matches(pattern, name))
            || rules.exclude_tags.iter().any(|tag| vm.tags.contains(tag))
            || rules.exclude_folders.iter().any(lies_in);
        by_name && (by_tag || rules.tags.is_empty()) && (by_folder || rules.folders.is_empty()) && !is_excluded
    }

    /// Notes what has found a machine; true when anything has.
    fn note(&mut self, found: impl Iterator<Item = String>) -> bool {
        let mut any = false;
        for word in found {
            any = true;
            self.found.insert(word);
        }
        any
    }

    /// Patterns, tags and folders that have found none.
    pub fn unmatched(self) -> Vec<String> {
        let tags = self.rules.tags.iter().map(|tag| format!("tag {tag}"));
        let folders = self.rules.folders.iter().map(|folder| format!("folder {folder}"));
        let all = self.rules.vms.iter().cloned().chain(tags).chain(folders);
        all.filter(|word| !self.found.contains(word)).collect()
    }
}

/// The parts of a folder's path. Doubled and outer slashes mean nothing.
pub(super) fn parts(folder: &str) -> Vec<&str> {
    folder.split('/').filter(|part| !part.is_empty()).collect()
}

/// True when a folder is the wanted one, or one in it. Whole parts are compared: `DC/vm/prod` is not in `DC/vm/pro`.
fn is_in(folder: &str, wanted: &str) -> bool {
    parts(folder).starts_with(&parts(wanted))
}

/// True when a name matches a pattern in which `*` stands for any characters and `?` for one. Takes time in proportion to both
/// lengths at the worst.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    // A list of names is the usual one, and may be long.
    if !pattern.contains(['*', '?']) {
        return pattern == name;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of) = (0, 0);
    // Where the last star stood, and up to where it has eaten.
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        match (pattern.get(at), star) {
            (Some('*'), _) => {
                star = Some((at, of));
                at += 1;
            }
            (Some(one), _) if *one == '?' || *one == name[of] => {
                at += 1;
                of += 1;
            }
            (_, Some((stood, eaten))) => {
                star = Some((stood, eaten + 1));
                at = stood + 1;
                of = eaten + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(name: &str, folder: Option<&str>, tags: &[&str]) -> VmContext {
        let at = sendense_types::Timestamp::from_micros(0);
        VmContext {
            vm_context_id: "vm-1".parse().unwrap(),
            source_id: Some("src-1".parse().unwrap()),
            kind: sendense_types::SourceKind::Vsphere,
            instance_uuid: "u".to_owned(),
            vm_name: name.parse().unwrap(),
            path: None,
            folder: folder.map(str::to_owned),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            power_state: sendense_types::PowerState::On,
            facts: serde_json::Value::Null,
            created_at: at,
            last_seen_at: Some(at),
            vanished_at: None,
            disks: Vec::new(),
        }
    }

    fn rules(said: serde_json::Value) -> PolicyRules {
        let mut all = serde_json::json!({ "name": "gold", "vms": ["*"], "repository_id": "repo-1" });
        all.as_object_mut().unwrap().extend(said.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_machine_matches_one_of_each_that_is_given_and_nothing_that_is_excluded() {
        let web = vm("web", Some("DC/vm/prod/eu"), &["prod", "db"]);
        for (said, expected) in [
            (serde_json::json!({}), true),
            (serde_json::json!({ "tags": ["prod"] }), true),
            (serde_json::json!({ "tags": ["test", "db"] }), true),
            (serde_json::json!({ "tags": ["Prod"] }), false),
            (serde_json::json!({ "folders": ["DC/vm/prod"] }), true),
            (serde_json::json!({ "folders": ["/DC/vm/prod/eu/"] }), true),
            (serde_json::json!({ "folders": ["DC/vm/pro"] }), false),
            (serde_json::json!({ "folders": ["DC/vm/prod/eu/web"] }), false),
            (serde_json::json!({ "folders": ["prod"] }), false),
            (serde_json::json!({ "tags": ["prod"], "folders": ["DC/vm/test"] }), false),
            (serde_json::json!({ "tags": ["prod"], "folders": ["DC/vm/test", "DC"] }), true),
            (serde_json::json!({ "vms": ["db*"], "tags": ["prod"] }), false),
            (serde_json::json!({ "tags": ["prod"], "exclude_tags": ["db"] }), false),
            (serde_json::json!({ "exclude_tags": ["other"], "exclude_folders": ["DC/vm/test"] }), true),
            (serde_json::json!({ "exclude_folders": ["DC/vm"] }), false),
            (serde_json::json!({ "tags": ["prod"], "exclude": ["w?b"] }), false),
            (serde_json::json!({ "tags": ["prod"], "sources": ["src-2"] }), false),
            (serde_json::json!({ "folders": ["DC"], "sources": ["src-2", "src-1"] }), true),
        ] {
            assert_eq!(Selector::new(&rules(said.clone())).means(&web), expected, "{said}");
        }
        let nowhere = vm("web", None, &[]);
        assert!(!Selector::new(&rules(serde_json::json!({ "folders": ["DC"] }))).means(&nowhere));
        assert!(Selector::new(&rules(serde_json::json!({ "exclude_folders": ["DC"] }))).means(&nowhere));
        let lost = VmContext { source_id: None, ..web };
        assert!(!Selector::new(&rules(serde_json::json!({}))).means(&lost));
    }

    #[test]
    fn what_finds_no_machine_is_told_also_where_another_condition_leaves_it_out() {
        let said = serde_json::json!({
            "vms": ["web*", "db*"], "tags": ["prod", "none"], "folders": ["A/b", "B"], "exclude": ["web*"]
        });
        let rules = rules(said);
        let mut selector = Selector::new(&rules);
        assert!(!selector.means(&vm("web", Some("A/b/c"), &["prod"])));
        assert!(!selector.means(&vm("x", Some("A"), &[])));
        assert_eq!(selector.unmatched(), ["db*", "tag none", "folder B"]);
    }

    #[test]
    fn patterns_match_as_one_expects() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("web", "web", true),
            ("web", "Web", false),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*-db-*", "a-db-b-db-c", true),
            ("db?", "db1", true),
            ("db?", "db", false),
            ("?", "ä", true),
            ("*.test", "x.test.de", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    /// The same, told by trying everything.
    fn tried(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|eaten| tried(rest, &name[eaten..])),
            (['?', rest @ ..], [_, left @ ..]) => tried(rest, left),
            ([one, rest @ ..], [first, left @ ..]) => one == first && tried(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_the_model_says(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            let model = tried(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>());
            prop_assert_eq!(matches(&pattern, &name), model);
        }
    }
}
