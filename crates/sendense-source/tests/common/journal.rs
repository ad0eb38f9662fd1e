//! A journal in memory that forgets nothing but what was closed.

// Each test program uses its part of it.
#![allow(dead_code)]

use parking_lot::Mutex;
use sendense_source::{Artefact, Journal, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A journal in memory.
#[derive(Default)]
pub struct Memory(Mutex<(u64, BTreeMap<u64, Artefact>)>);

impl Memory {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn door(self: &Arc<Self>) -> Arc<dyn Journal> {
        self.clone()
    }

    pub fn open(&self) -> Vec<Artefact> {
        self.0.lock().1.values().cloned().collect()
    }
}

impl Journal for Memory {
    fn record(&self, artefact: &Artefact) -> Result<u64> {
        let mut state = self.0.lock();
        state.0 += 1;
        let number = state.0;
        state.1.insert(number, artefact.clone());
        Ok(number)
    }

    fn close(&self, entry: u64) -> Result<()> {
        assert!(self.0.lock().1.remove(&entry).is_some(), "entry {entry} was closed twice");
        Ok(())
    }

    fn open_entries(&self) -> Result<Vec<(u64, Artefact)>> {
        Ok(self.0.lock().1.iter().map(|(number, artefact)| (*number, artefact.clone())).collect())
    }
}
