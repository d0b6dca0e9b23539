//! The decoder's sizes: every number of the network in one place, stored as `config.json` beside the weights.

use serde::{Deserialize, Serialize};

use super::DecoderError;

/// Sizes of the causal Vocos. The defaults are the release `nano`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Units of the tokenizer, k. Unit id k is the start and end padding and has its own embedding row.
    pub units: usize,
    /// Width of the trunk.
    pub dimension: usize,
    /// Width inside a block, between its two linear maps.
    pub feed_forward: usize,
    /// Blocks at the unit rate (25 Hz).
    pub unit_blocks: usize,
    /// Kernel of their depthwise convolutions, in units.
    pub unit_kernel: usize,
    /// Units that the first block sees ahead; the only look-ahead of the network.
    pub look_ahead: usize,
    /// Blocks at the frame rate (100 Hz).
    pub frame_blocks: usize,
    /// Kernel of their depthwise convolutions, in frames.
    pub frame_kernel: usize,
    /// Frames per unit.
    pub upsampling: usize,
    /// Points of the inverse DFT and length of the Hann window, in samples.
    pub n_fft: usize,
    /// Samples per frame.
    pub hop: usize,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        DecoderConfig {
            units: 500,
            dimension: 256,
            feed_forward: 768,
            unit_blocks: 3,
            unit_kernel: 5,
            look_ahead: 2,
            frame_blocks: 5,
            frame_kernel: 7,
            upsampling: 4,
            n_fft: 640,
            hop: 160,
        }
    }
}

impl DecoderConfig {
    /// Frequency bins of a frame, 0 Hz and Nyquist included.
    pub fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// Width of the head's output: log-magnitudes, then phases.
    pub fn head_width(&self) -> usize {
        2 * self.bins()
    }

    /// Samples per unit.
    pub fn unit_samples(&self) -> usize {
        self.upsampling * self.hop
    }

    /// The id of the unit that stands before an utterance and after it.
    pub fn pad(&self) -> usize {
        self.units
    }

    /// Units that the unit-rate blocks see before the unit they work on.
    pub fn unit_history(&self) -> usize {
        self.unit_blocks * (self.unit_kernel - 1) - self.look_ahead
    }

    /// Frames that the frame-rate blocks see before the frame they work on.
    pub fn frame_history(&self) -> usize {
        self.frame_blocks * (self.frame_kernel - 1)
    }

    /// Pad units that stand before an utterance: the fewest, in whole chunks of two, that fill every
    /// convolution's memory, so that what lay before them makes no difference.
    pub fn start_units(&self) -> usize {
        (self.unit_history() + self.look_ahead + self.frame_history().div_ceil(self.upsampling)).next_multiple_of(2)
    }

    /// Refuses sizes that make no network.
    pub fn check(&self) -> Result<(), DecoderError> {
        let refuse = |what: String| Err(DecoderError::Config(what));
        if self.units == 0 || self.dimension == 0 || self.feed_forward == 0 {
            return refuse("units, dimension and feed_forward must be positive".into());
        }
        if self.unit_blocks == 0 || self.frame_blocks == 0 || self.unit_kernel < 2 || self.frame_kernel < 2 {
            return refuse("each rate needs at least one block, with a kernel of at least 2".into());
        }
        if self.look_ahead >= self.unit_kernel {
            return refuse(format!("look_ahead {} does not fit in unit_kernel {}", self.look_ahead, self.unit_kernel));
        }
        if self.upsampling == 0 || self.hop == 0 || self.n_fft != 4 * self.hop {
            return refuse(format!(
                "n_fft must be 4 hops (the squared Hann windows then sum to a constant): n_fft {}, hop {}",
                self.n_fft, self.hop
            ));
        }
        Ok(())
    }
}
