//! Proofs about the whole repository: what it survives, and that it gives back every byte.

mod faults;
mod leftovers;
mod model;
mod power_loss;
