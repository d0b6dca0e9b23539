//! The runtime of the `sa` speech agent.
