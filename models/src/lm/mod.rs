//! The group language model.

pub mod cli;
