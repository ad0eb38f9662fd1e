//! The overlay against a stupid model, through crashes at every step. `sim` plays the disk, `model` knows what may be read.

#![allow(clippy::unwrap_used)]

mod crash;
mod model;
mod parse;
mod sim;
mod system;
