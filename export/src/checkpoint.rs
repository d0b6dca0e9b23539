//! A checkpoint folder: three networks and the vocabulary, checked to belong together.
//!
//! ```text
//! tokenizer/{config.json, model.safetensors}   decoder/{…}   lm/{…}   vocabulary.txt
//! ```

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sa_device::vocabulary::{Vocabulary, VocabularyError};
use sa_models::decoder::{Decoder, DecoderConfig};
use sa_models::lm::{self, Network};
use sa_models::tokenizer::{Tokenizer, TokenizerConfig};
use sa_models::train::checkpoint::{self, CheckpointError};

use crate::target::fingerprint;
use crate::weights::{Weights, WeightsError};

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Check `--checkpoint`: the folder that holds `tokenizer`, `decoder`, `lm` and `vocabulary.txt`.
    #[error("{dir} is not a checkpoint: it has no {missing}")]
    NotACheckpoint { dir: PathBuf, missing: String },
    #[error(transparent)]
    Network(#[from] CheckpointError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{path}: {message}")]
    Config { path: PathBuf, message: String },
    /// The parts were trained for different tokenizers or vocabularies: put the parts of one run together.
    #[error("the parts do not belong together: {0}")]
    Mismatch(String),
    #[error("{path}: {source}")]
    Vocabulary { path: PathBuf, source: VocabularyError },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

/// An opened checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    pub tokenizer: TokenizerConfig,
    pub decoder: DecoderConfig,
    pub lm: lm::Config,
    pub tokenizer_weights: Weights,
    pub decoder_weights: Weights,
    pub lm_weights: Weights,
    pub vocabulary: Vocabulary,
}

/// The files that make a checkpoint.
const FILES: [&str; 7] = [
    "tokenizer/config.json",
    "tokenizer/model.safetensors",
    "decoder/config.json",
    "decoder/model.safetensors",
    "lm/config.json",
    "lm/model.safetensors",
    "vocabulary.txt",
];

impl Checkpoint {
    /// Opens the folder and checks that the parts fit together; tensors are read when they are drawn.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        if let Some(missing) = FILES.iter().find(|file| !dir.join(file).is_file()) {
            return Err(OpenError::NotACheckpoint { dir: dir.into(), missing: (*missing).into() });
        }
        let tokenizer: TokenizerConfig = checkpoint::load_config(&dir.join("tokenizer"))?;
        let decoder: DecoderConfig = checkpoint::load_config(&dir.join("decoder"))?;
        let lm: lm::Config = checkpoint::load_config(&dir.join("lm"))?;
        let config = |part: &str, message: String| OpenError::Config { path: dir.join(part).join("config.json"), message };
        tokenizer.check().map_err(|message| config("tokenizer", message))?;
        decoder.check().map_err(|error| config("decoder", error.to_string()))?;

        let path = dir.join("vocabulary.txt");
        let text = std::fs::read_to_string(&path).map_err(|source| OpenError::Read { path: path.clone(), source })?;
        let vocabulary = Vocabulary::parse(&text).map_err(|source| OpenError::Vocabulary { path, source })?;
        if vocabulary.len() != lm.vocab_size {
            let message = format!("vocabulary.txt has {} tokens, the language model {}", vocabulary.len(), lm.vocab_size);
            return Err(OpenError::Mismatch(message));
        }
        for (part, units) in [("decoder", decoder.units), ("language model", lm.units)] {
            if units != tokenizer.units {
                return Err(OpenError::Mismatch(format!("the tokenizer has {} units, the {part} {units}", tokenizer.units)));
            }
        }
        let weights = |part: &str| Weights::open(&dir.join(part).join("model.safetensors"));
        Ok(Self {
            tokenizer_weights: weights("tokenizer")?,
            decoder_weights: weights("decoder")?,
            lm_weights: weights("lm")?,
            dir: dir.into(),
            tokenizer,
            decoder,
            lm,
            vocabulary,
        })
    }

    /// The tokenizer as Burn runs it.
    pub fn tokenizer_network(&self) -> Result<Tokenizer, OpenError> {
        Ok(checkpoint::load_weights(&self.dir.join("tokenizer"), self.tokenizer.init(&Device::flex()))?)
    }

    /// The decoder as Burn runs it.
    pub fn decoder_network(&self) -> Result<Decoder, OpenError> {
        Ok(checkpoint::load_weights(&self.dir.join("decoder"), Decoder::new(&self.decoder, &Device::flex()))?)
    }

    /// The language model as Burn runs it.
    pub fn lm_network(&self) -> Result<Network, OpenError> {
        Ok(checkpoint::load_weights(&self.dir.join("lm"), Network::new(&self.lm, &Device::flex()))?)
    }

    /// SHA-256 over the names and hashes of the checkpoint's files: what a bundle says it was made from.
    pub fn sha256(&self) -> Result<String, OpenError> {
        let files = FILES.map(|file| (file.to_owned(), self.dir.join(file)));
        fingerprint(files).map_err(|(path, source)| OpenError::Read { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sa_device::bundle::Bundle;

    #[test]
    fn the_shipped_bundle_names_the_shipped_checkpoint() {
        let nano = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/pretrained/nano"));
        let bundle = Bundle::open(&nano.join("bundle")).expect("it is in the repository");
        let checkpoint = Checkpoint::open(&nano.join("checkpoint")).expect("it is in the repository");
        assert_eq!(bundle.manifest().source_checkpoint, checkpoint.sha256().expect("readable"));
    }
}
