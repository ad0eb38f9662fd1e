//! Proofs about the whole repository: what it survives, and that it gives back every byte.

mod leftovers;
mod power_loss;
