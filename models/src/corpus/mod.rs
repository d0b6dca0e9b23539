//! Spoken dialogues from a grammar: text, speech, splits.

pub mod cli;
