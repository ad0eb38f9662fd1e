//! Proofs about the whole repository: what it survives, and that it gives back every byte.

mod compared;
mod damage;
mod faults;
mod fencing;
mod foreign;
mod full;
mod golden;
mod heal;
mod holds;
mod leftovers;
mod merge;
mod merge_disks;
mod model;
mod moving;
mod no_room;
mod pairs;
mod parsers;
mod power_loss;
mod resume;
mod shared;
mod sizes;
mod takeover;
