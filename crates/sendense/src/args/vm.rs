//! Words of `vm`.

use clap::Subcommand;
use sendense_types::Tag;

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List machines.
    List {
        /// Only those of this source.
        #[arg(long)]
        source: Option<String>,
        /// Only those that bear this tag.
        #[arg(long, value_name = "TAG")]
        tag: Option<String>,
        /// Only those that should have had a newer point by their policies' schedules.
        #[arg(long)]
        overdue: bool,
        /// Only those that no policy means or no schedule backs up, or of which no point can be restored; with --overdue, of both sorts.
        #[arg(long)]
        unprotected: bool,
    },
    /// Show one machine.
    Show {
        /// Its name or id.
        vm: String,
    },
    /// Hang tags on a machine, by which policies choose it, and take others off: vm tag web +prod -test.
    Tag {
        /// Its name or id.
        vm: String,
        /// +TAG or -TAG.
        #[arg(required = true, allow_hyphen_values = true, value_name = "+TAG|-TAG", value_parser = tag_change)]
        changes: Vec<TagChange>,
    },
}

/// A tag that a machine is to bear, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagChange {
    /// `+prod`
    Add(Tag),
    /// `-prod`
    Remove(Tag),
}

fn tag_change(text: &str) -> Result<TagChange, String> {
    let tag = |text: &str| text.parse::<Tag>().map_err(|error| error.to_string());
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(text), _) => tag(text).map(TagChange::Add),
        (_, Some(text)) => tag(text).map(TagChange::Remove),
        _ => Err(format!("write +{text} to hang it on, -{text} to take it off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_says_whether_a_tag_is_hung_on_or_taken_off() {
        let tag = |text: &str| text.parse::<Tag>().unwrap();
        assert_eq!(tag_change("+prod"), Ok(TagChange::Add(tag("prod"))));
        assert_eq!(tag_change("-env=test"), Ok(TagChange::Remove(tag("env=test"))));
        for text in ["prod", "", "+", "-", "--json", "+-x", "+a b"] {
            assert!(tag_change(text).is_err(), "{text:?} was taken");
        }
    }
}
