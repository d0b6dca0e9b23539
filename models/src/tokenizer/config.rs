//! Sizes of the tokenizer network; `config.json` of a checkpoint.

use serde::{Deserialize, Serialize};

/// Architecture of the speech tokenizer. Every number that shapes a tensor is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Width of the network, d.
    pub width: usize,
    /// Number of blocks, L.
    pub layers: usize,
    /// Attention heads, H; the head width is `width / heads`.
    pub heads: usize,
    /// Hidden width of the feed-forward layers.
    pub feed_forward: usize,
    /// Taps of the causal depthwise convolution of each block.
    pub kernel: usize,
    /// Frames (25 Hz) of one attention chunk.
    pub chunk: usize,
    /// Chunks of left context that a chunk attends to, besides itself.
    pub left_chunks: usize,
    /// Classes of the CTC head: the blank (0) and the phones.
    pub phones: usize,
    /// Number of units, k.
    pub units: usize,
    /// By how many units phones come later than their sound: measured on the agent's speech when training ends (see `lag`).
    pub lag: usize,
    /// Layer whose output is quantised: `layers` is the last one, after the final LayerNorm; 1.. are block outputs.
    pub layer: usize,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            width: 256,
            layers: 6,
            heads: 4,
            feed_forward: 1024,
            kernel: 9,
            chunk: 8,
            left_chunks: 5,
            phones: 50,
            units: 500,
            lag: 0,
            layer: 6,
        }
    }
}

impl TokenizerConfig {
    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Frames of left context kept while streaming.
    pub fn context(&self) -> usize {
        self.left_chunks * self.chunk
    }

    /// Samples of one streamed chunk (5120 = 320 ms by default).
    pub fn chunk_samples(&self) -> usize {
        self.chunk * UNIT_SAMPLES
    }

    /// What is wrong with the sizes, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.width == 0 || !self.width.is_multiple_of(self.heads.max(1)) || self.heads == 0 {
            return Err(format!("width {} is not a multiple of heads {}", self.width, self.heads));
        }
        if self.layer == 0 || self.layer > self.layers {
            return Err(format!("layer {} is not in 1..={}", self.layer, self.layers));
        }
        if self.kernel == 0 || self.chunk == 0 || self.phones < 2 || self.units < 2 {
            return Err("kernel and chunk must be at least 1, phones and units at least 2".into());
        }
        Ok(())
    }
}

/// Samples (16 kHz) of one unit: 40 ms.
pub const UNIT_SAMPLES: usize = 640;

/// Log-mel frames (100 Hz) of one unit.
pub const UNIT_FRAMES: usize = 4;

/// Units that `samples` of audio give: the last, incomplete one counts.
pub fn units_of_samples(samples: usize) -> usize {
    samples.div_ceil(UNIT_SAMPLES)
}
