//! The speech tokenizer (nano HuBERT): audio to units.
//!
//! ```text
//! corpus ─▶ data (batches, log-mel) ─▶ train (ctc ─▶ kmeans ─▶ hubert ─▶ robust) ─▶ checkpoint ─▶ encode, probe, stream
//!                                        └─ network (frontend), losses, ctc
//! ```

pub mod cli;
pub mod config;
pub mod ctc;
pub mod data;
pub mod disturb;
pub mod encode;
pub mod frontend;
pub mod kmeans;
pub mod lag;
mod losses;
pub mod network;
pub mod probe;
pub mod stream;
pub mod train;

pub use config::{TokenizerConfig, UNIT_SAMPLES, units_of_samples};
pub use encode::{UnitStore, encode_batch};
pub use network::{State, Tokenizer};
pub use stream::Stream;
pub use train::load;
