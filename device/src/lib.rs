//! The runtime of the `sa` speech agent.

pub mod bundle;
pub mod engine;
pub mod stage;
pub mod vocabulary;
