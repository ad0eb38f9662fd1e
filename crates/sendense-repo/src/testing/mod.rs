//! What tests of the whole repository need: a moment, a claim, a file system with a script, a medium that loses power, and
//! a world of made-up machines with the bytes that each of their points must give back. Tests of other crates have the script alone.

#[cfg(test)]
pub(crate) mod before;
#[cfg(test)]
pub(crate) mod medium;
#[cfg(test)]
pub(crate) mod qemu;
#[cfg(test)]
pub(crate) mod record;
pub mod stage;
#[cfg(test)]
pub(crate) mod world;

#[cfg(test)]
use crate::owner::{Adopt, Claim};
#[cfg(test)]
use sendense_types::Timestamp;

/// A moment.
#[cfg(test)]
pub fn now() -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000)
}

/// A hub's claim.
#[cfg(test)]
pub fn claim() -> Claim {
    Claim {
        deployment_id: "dep-test".parse().unwrap(),
        hub_id: "hub-test".parse().unwrap(),
        lease_seconds: 60,
        adopt: Adopt::Never,
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}
