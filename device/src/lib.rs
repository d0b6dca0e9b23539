//! The runtime of the `sa` speech agent.

pub mod bundle;
pub mod vocabulary;
