//! The speech tokenizer (nano HuBERT): audio to units.

pub mod cli;
