//! How long backups take and chains grow, and how often points are verified: what a policy says, and what the hub says where it says nothing.
//!
//! What lives here: the bounds of what may be said, and what holds. What does not: who acts on it (`consolidate`,
//! [`crate::verification`]). Invariant: whatever is shown as in force comes from the same function as what is done.

use crate::config::Limits;
use crate::fault::{Result, invalid};
use sendense_api::{BYTES_PER_SECOND_MIN, PolicyInForce, PolicyRules, PolicyVerification, TIME_LIMIT_SECONDS_MAX};
use std::ops::RangeInclusive;

/// More than any hub does at once.
const VMS_AT_ONCE_MAX: u32 = 1000;
/// A chain of one point is a full each time, which `full_every` says better; at 256 points backups make a full by themselves.
const CHAIN_POINTS: RangeInclusive<u32> = 2..=256;
/// Ten years, as for the hub's own setting.
const VERIFY_DAYS_MAX: u32 = 3650;

/// Refuses what makes no sense.
pub(super) fn check(rules: &PolicyRules) -> Result<()> {
    if rules.chain_points_max.is_some_and(|points| !CHAIN_POINTS.contains(&points)) {
        let (least, most) = (CHAIN_POINTS.start(), CHAIN_POINTS.end());
        return Err(invalid(format!("chain_points_max is {least} to {most}; {most} is as late as can be")));
    }
    if rules.time_limit_seconds.is_some_and(|limit| !(1..=TIME_LIMIT_SECONDS_MAX).contains(&limit)) {
        return Err(invalid(format!("time_limit_seconds is 1 to {TIME_LIMIT_SECONDS_MAX}")));
    }
    if rules.bytes_per_second_max.is_some_and(|most| most < BYTES_PER_SECOND_MIN) {
        return Err(invalid(format!("bytes_per_second_max is at least {BYTES_PER_SECOND_MIN}")));
    }
    if rules.vms_at_once.is_some_and(|most| !(1..=VMS_AT_ONCE_MAX).contains(&most)) {
        return Err(invalid(format!("vms_at_once is 1 to {VMS_AT_ONCE_MAX}")));
    }
    let Some(often) = rules.verification else { return Ok(()) };
    let said = [("at_rest_days", often.at_rest_days), ("deep_days", often.deep_days)];
    if said.iter().all(|(_, days)| days.is_none()) {
        return Err(invalid("verification says nothing: give at_rest_days or deep_days, or leave it out"));
    }
    match said.iter().find(|(_, days)| days.is_some_and(|days| days > VERIFY_DAYS_MAX)) {
        Some((name, _)) => Err(invalid(format!("verification.{name} is 0 (never) to {VERIFY_DAYS_MAX}"))),
        None => Ok(()),
    }
}

/// What holds for the points of a policy; of no policy, for those that were made by hand.
pub(crate) fn in_force(limits: &Limits, rules: Option<&PolicyRules>) -> PolicyInForce {
    of(limits, rules.and_then(|rules| rules.chain_points_max), rules.and_then(|rules| rules.verification))
}

/// What holds where so much is said.
pub(crate) fn of(
    limits: &Limits,
    chain_points_max: Option<u32>,
    verification: Option<PolicyVerification>,
) -> PolicyInForce {
    let PolicyVerification { at_rest_days, deep_days } = verification.unwrap_or_default();
    let at_rest_days = at_rest_days.unwrap_or(limits.verify_after_days);
    PolicyInForce {
        chain_points_max: chain_points_max.unwrap_or(limits.chain_points_max),
        at_rest_days,
        // A hub that decodes does so with each of its looks.
        deep_days: deep_days.unwrap_or(if limits.verify_deep { at_rest_days } else { 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(said: serde_json::Value) -> PolicyRules {
        let mut body = json!({ "name": "gold", "vms": ["*"], "repository_id": "main" });
        let (Some(body_of), Some(said)) = (body.as_object_mut(), said.as_object()) else { unreachable!() };
        body_of.extend(said.clone());
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn what_a_policy_leaves_out_is_as_the_hub_says() {
        let plain = Limits::default();
        let deep = Limits { verify_deep: true, verify_after_days: 20, chain_points_max: 0, ..Limits::default() };
        for (said, by_plain, by_deep) in [
            (json!({}), (60, 30, 0), (0, 20, 20)),
            (json!({ "chain_points_max": 9 }), (9, 30, 0), (9, 20, 20)),
            (json!({ "verification": { "at_rest_days": 7 } }), (60, 7, 0), (0, 7, 7)),
            (json!({ "verification": { "deep_days": 90 } }), (60, 30, 90), (0, 20, 90)),
            (json!({ "verification": { "deep_days": 0 } }), (60, 30, 0), (0, 20, 0)),
            (json!({ "verification": { "at_rest_days": 0, "deep_days": 90 } }), (60, 0, 90), (0, 0, 90)),
        ] {
            let rules = rules(said);
            check(&rules).unwrap();
            for (limits, expected) in [(&plain, by_plain), (&deep, by_deep)] {
                let holds = in_force(limits, Some(&rules));
                assert_eq!((holds.chain_points_max, holds.at_rest_days, holds.deep_days), expected, "{rules:?}");
            }
        }
        assert_eq!(in_force(&deep, None), in_force(&deep, Some(&rules(json!({})))));
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_the_field() {
        for (said, named) in [
            (json!({ "chain_points_max": 0 }), "chain_points_max is 2 to 256"),
            (json!({ "chain_points_max": 1 }), "chain_points_max is 2 to 256"),
            (json!({ "chain_points_max": 257 }), "chain_points_max is 2 to 256"),
            (json!({ "time_limit_seconds": 0 }), "time_limit_seconds is 1 to"),
            (json!({ "time_limit_seconds": 31_536_001 }), "time_limit_seconds is 1 to"),
            (json!({ "bytes_per_second_max": 1_048_575 }), "bytes_per_second_max is at least 1048576"),
            (json!({ "vms_at_once": 0 }), "vms_at_once is 1 to 1000"),
            (json!({ "vms_at_once": 1001 }), "vms_at_once is 1 to 1000"),
            (json!({ "verification": {} }), "verification says nothing"),
            (json!({ "verification": { "at_rest_days": 3651 } }), "verification.at_rest_days"),
            (json!({ "verification": { "at_rest_days": 1, "deep_days": 3651 } }), "verification.deep_days"),
        ] {
            let problem = check(&rules(said)).unwrap_err();
            assert!(problem.message.contains(named), "{problem:?}");
        }
    }
}
