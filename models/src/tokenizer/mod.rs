//! The speech tokenizer (nano HuBERT): audio to units.
//!
//! ```text
//! corpus ─▶ data (batches, log-mel) ─▶ train (ctc ─▶ kmeans ─▶ hubert ─▶ kmeans) ─▶ checkpoint ─▶ encode, probe
//!                                        └─ network (frontend), ctc
//! ```

pub mod cli;
pub mod config;
pub mod ctc;
pub mod data;
pub mod frontend;
pub mod kmeans;
pub mod network;
pub mod train;

pub use config::{TokenizerConfig, UNIT_SAMPLES, units_of_samples};
pub use network::{State, Tokenizer};
pub use train::load;
