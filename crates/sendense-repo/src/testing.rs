//! What several tests need: a claim, a moment, facts of a made-up VM.

use crate::owner::{Adopt, Claim};
use sendense_types::Timestamp;

/// A moment.
pub fn now() -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000)
}

/// A hub's claim.
pub fn claim() -> Claim {
    Claim {
        deployment_id: "dep-test".parse().unwrap(),
        hub_id: "hub-test".parse().unwrap(),
        lease_seconds: 60,
        adopt: Adopt::Never,
    }
}
