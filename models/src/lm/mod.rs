//! The group language model: spoken question → transcript, call and spoken reply, in one sequence of text tokens and unit groups.
//!
//! ```text
//! config     every number            network    the definition, in Burn
//! sequence   what stands where       fused      the same network in plain loops: gradients and generation on the CPU
//! ```

pub mod cli;
pub mod config;
pub mod fused;
pub mod network;
pub mod sequence;

pub use config::Config;
pub use network::Network;
