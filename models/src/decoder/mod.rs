//! The unit decoder (causal Vocos): units to the agent's voice.
//!
//! - [`config`]: sizes. [`network`]: the network, offline and streaming.
//! - [`synthesis`]: the inverse STFT after it, and where a frame stands in the audio.
//! - [`clips`], [`loss`], [`train`]: crops of the agent's speech, spectral losses, the training loop.

pub mod cli;
pub mod clips;
pub mod config;
pub mod loss;
pub mod network;
pub mod synthesis;
pub mod train;

pub use config::DecoderConfig;
pub use network::{Decoder, DecoderState};
pub use synthesis::Synthesis;

/// What can be wrong with a decoder or its data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecoderError {
    /// The sizes in `config.json` make no network; the text says which.
    #[error("decoder configuration: {0}")]
    Config(String),
}
