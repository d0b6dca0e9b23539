//! The group language model: spoken question → transcript, call and spoken reply, in one sequence of text tokens and unit groups.
//!
//! ```text
//! config     every number            network    the definition, in Burn
//! sequence   what stands where       fused      the same network in plain loops: gradients and generation on the CPU
//! data       the tasks' mixture      train      the loop
//! generate   greedy answers          evaluate   how many of them are right
//! ```

pub mod cli;
pub mod config;
pub mod data;
pub mod evaluate;
pub mod fused;
pub mod generate;
pub mod network;
pub mod sequence;
pub mod train;

pub use config::Config;
pub use network::Network;

#[cfg(test)]
mod tests;
