//! The shipped agent as its users meet it: `sa-agent` is run, and what it prints and writes is checked.

mod bad_input;
mod bundles;
mod complete;
mod conversation;
mod engines;
mod field;
mod layers;
mod live;
mod long;
mod memory;
mod noisy;
mod overlap;
mod resources;
mod rings;
mod slow;
mod streaming;
mod tools;
mod wake;
