//! Devices that need no server: a file, memory, and a device that fails on command.

mod faulty;
mod file;
mod memory;

pub use faulty::{Fault, Faulty, Operation};
pub use file::{File, Options};
pub use memory::Memory;
