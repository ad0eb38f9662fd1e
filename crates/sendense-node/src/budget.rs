//! How many copy lanes run in this process at once, so that memory is bounded whatever the number of tasks and disks.

use parking_lot::Mutex;
use std::sync::Arc;

/// Lanes that a process runs at once. A lane takes two request buffers and a zstd context: 32 lanes with requests of
/// 256 KiB take about 50 MiB, of 1 MiB (vSphere) about 100, which leaves the hub's 256 MiB to its other parts.
pub const LANES_DEFAULT: usize = 32;

/// A shared number of lanes. Every taker gets at least one, so nothing waits here; the bound is the budget plus one lane
/// for each disk that is copied at the same time.
#[derive(Debug, Clone)]
pub struct LaneBudget(Arc<Mutex<usize>>);

impl LaneBudget {
    /// A budget of this many lanes.
    pub fn new(lanes: usize) -> Self {
        Self(Arc::new(Mutex::new(lanes)))
    }

    /// Takes up to `wanted` lanes, at least one, until the share is dropped. Half of what is free at the most, so that the
    /// first of several disks does not take all.
    pub fn take(&self, wanted: usize) -> LaneShare {
        let mut free = self.0.lock();
        let taken = wanted.min(free.div_ceil(2));
        *free -= taken;
        LaneShare { budget: self.clone(), taken }
    }
}

impl Default for LaneBudget {
    fn default() -> Self {
        Self::new(LANES_DEFAULT)
    }
}

/// Lanes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct LaneShare {
    budget: LaneBudget,
    taken: usize,
}

impl LaneShare {
    /// How many lanes may run.
    pub fn lanes(&self) -> usize {
        self.taken.max(1)
    }
}

impl Drop for LaneShare {
    fn drop(&mut self) {
        *self.budget.0.lock() += self.taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_one_and_all_comes_back() {
        let budget = LaneBudget::new(8);
        let shares: Vec<_> = (0..6).map(|_| budget.take(16)).collect();
        assert_eq!(shares.iter().map(LaneShare::lanes).collect::<Vec<_>>(), [4, 2, 1, 1, 1, 1]);
        drop(shares);
        assert_eq!(*budget.0.lock(), 8);
    }
}
