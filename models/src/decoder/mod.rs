//! The unit decoder (causal Vocos): units to the agent's voice.

pub mod cli;
