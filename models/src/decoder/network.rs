//! The causal Vocos: units in, log-magnitude and phase of an inverse STFT out.
//!
//! Siuzdak, "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders" (2023), with the
//! ConvNeXt blocks of Liu et al. (2022), made causal and streamable:
//!
//! ```text
//! units 25 Hz ─▶ embedding ─▶ norm ─▶ unit_blocks (the first sees 2 units ahead) ─▶ upsample ×4
//!             ─▶ frame_blocks at 100 Hz ─▶ final_norm ─▶ head ─▶ [log-magnitude 321 | phase 321]
//! ```
//!
//! Every convolution is *valid*: it takes its left context as input and pads nothing. Training gives the
//! context as real units, [`Decoder::step`] keeps it as explicit state, and offline decoding puts
//! [`DecoderConfig::start_units`] pad units before the utterance. So one code path serves all three and they
//! agree to rounding. What lies before an utterance is an endless row of pad units.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::DecoderConfig;

const NORM_EPSILON: f64 = 1e-6;

/// Layer normalisation over the last dimension.
#[derive(Module, Debug)]
pub struct Norm {
    /// Scale, `[D]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[D]`.
    pub bias: Param<Tensor<1>>,
}

/// Draws initial weights from a generator of its own: the seed alone decides them, whatever else runs.
struct Draw<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
}

impl Draw<'_> {
    fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.rng.random_range(-bound..=bound)).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    fn constant(&self, length: usize, value: f32) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::full([length], value, self.device))
    }

    /// PyTorch's initialisation: weights and biases uniform within `1 / sqrt(input)`.
    fn linear(&mut self, input: usize, output: usize) -> Linear {
        let bound = 1.0 / (input as f32).sqrt();
        Linear { weight: self.uniform([input, output], bound), bias: Some(self.uniform([output], bound)) }
    }

    fn norm(&self, dimension: usize) -> Norm {
        Norm { weight: self.constant(dimension, 1.0), bias: self.constant(dimension, 0.0) }
    }
}

impl Norm {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        burn::tensor::module::layer_norm(x, self.weight.val(), Some(self.bias.val()), NORM_EPSILON)
    }
}

/// A ConvNeXt block: depthwise convolution in time, then a two-layer perceptron on each step, with a residual.
#[derive(Module, Debug)]
pub struct Block {
    /// Taps of the depthwise convolution, oldest first, `[K, D]`.
    pub depthwise_weight: Param<Tensor<2>>,
    /// Its bias, `[D]`.
    pub depthwise_bias: Param<Tensor<1>>,
    /// Normalisation before the perceptron.
    pub norm: Norm,
    /// `[D, F]` (on disk `[F, D]`, the PyTorch layout).
    pub expand: Linear,
    /// `[F, D]` (on disk `[D, F]`).
    pub contract: Linear,
    /// Layer scale, `[D]`.
    pub scale: Param<Tensor<1>>,
    /// Steps that the convolution sees ahead.
    #[module(skip)]
    pub look_ahead: usize,
}

impl Block {
    fn new(config: &DecoderConfig, kernel: usize, look_ahead: usize, draw: &mut Draw) -> Self {
        let d = config.dimension;
        let layers = config.unit_blocks + config.frame_blocks;
        Block {
            depthwise_weight: draw.uniform([kernel, d], 1.0 / (kernel as f32).sqrt()),
            depthwise_bias: draw.constant(d, 0.0),
            norm: draw.norm(d),
            expand: draw.linear(d, config.feed_forward),
            contract: draw.linear(config.feed_forward, d),
            scale: draw.constant(d, 1.0 / layers as f32),
            look_ahead,
        }
    }

    /// `[B, T + K - 1, D]` (the context first) to `[B, T, D]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [kernel, d] = self.depthwise_weight.dims();
        let steps = x.dims()[1] + 1 - kernel;
        let weight = self.depthwise_weight.val().reshape([kernel, 1, 1, d]);
        let mut mixed: Option<Tensor<3>> = None; // [B, T, D]
        for tap in 0..kernel {
            let term = x.clone().narrow(1, tap, steps) * weight.clone().narrow(0, tap, 1).reshape([1, 1, d]);
            mixed = Some(match mixed {
                Some(sum) => sum + term,
                None => term,
            });
        }
        let mixed = mixed.expect("a kernel has taps") + self.depthwise_bias.val().reshape([1, 1, d]);
        let hidden = gelu(self.expand.forward(self.norm.forward(mixed))); // [B, T, F]
        let update = self.contract.forward(hidden) * self.scale.val().reshape([1, 1, d]);
        x.narrow(1, kernel - 1 - self.look_ahead, steps) + update
    }
}

/// The decoder's network. Field names are the tensor names of a checkpoint.
#[derive(Module, Debug)]
pub struct Decoder {
    /// One row per unit, then the pad unit's, `[k + 1, D]`.
    pub embedding: Param<Tensor<2>>,
    /// Normalisation of the embedding.
    pub norm: Norm,
    /// Blocks at the unit rate; the first looks ahead.
    pub unit_blocks: Vec<Block>,
    /// `[D, 4 D]`: the frames of a unit lie side by side.
    pub upsample: Linear,
    /// Blocks at the frame rate, causal.
    pub frame_blocks: Vec<Block>,
    /// Normalisation before the head.
    pub final_norm: Norm,
    /// `[D, 2 bins]`: log-magnitudes, then phases.
    pub head: Linear,
    /// The sizes.
    #[module(skip)]
    pub config: DecoderConfig,
}

/// What streaming keeps between calls: the convolutions' contexts, oldest step first.
#[derive(Clone, Debug)]
pub struct DecoderState {
    /// Per unit-rate block, `[B, unit_kernel - 1, D]`.
    pub units: Vec<Tensor<3>>,
    /// Per frame-rate block, `[B, frame_kernel - 1, D]`.
    pub frames: Vec<Tensor<3>>,
}

impl Decoder {
    /// A network with random weights, the same on every call.
    ///
    /// # Panics
    /// When the sizes do not pass [`DecoderConfig::check`].
    pub fn new(config: &DecoderConfig, device: &Device) -> Self {
        Self::seeded(config, 0, device)
    }

    /// A network with the random weights of `seed`.
    ///
    /// # Panics
    /// When the sizes do not pass [`DecoderConfig::check`].
    pub fn seeded(config: &DecoderConfig, seed: u64, device: &Device) -> Self {
        config.check().expect("sizes were checked when they were read");
        let draw = &mut Draw { rng: ChaCha8Rng::seed_from_u64(seed), device };
        let d = config.dimension;
        let ahead = |i| if i == 0 { config.look_ahead } else { 0 };
        Decoder {
            embedding: draw.uniform([config.units + 1, d], 3f32.sqrt()), // unit variance; a norm follows
            norm: draw.norm(d),
            unit_blocks: (0..config.unit_blocks).map(|i| Block::new(config, config.unit_kernel, ahead(i), draw)).collect(),
            upsample: draw.linear(d, config.upsampling * d),
            frame_blocks: (0..config.frame_blocks).map(|_| Block::new(config, config.frame_kernel, 0, draw)).collect(),
            final_norm: draw.norm(d),
            head: draw.linear(d, config.head_width()),
            config: config.clone(),
        }
    }

    fn embed(&self, units: Tensor<2, Int>) -> Tensor<3> {
        self.norm.forward(burn::tensor::module::embedding(self.embedding.val(), units)) // [B, U, D]
    }

    /// `[B, U, D]` at the unit rate to `[B, 4 U, D]` at the frame rate.
    fn to_frames(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, units, d] = x.dims();
        self.upsample.forward(x).reshape([batch, units * self.config.upsampling, d])
    }

    /// The frames that `units` `[B, U]` determine, context and look-ahead being part of them.
    ///
    /// They are `4 (U - unit_history - look_ahead) - frame_history`, of which the first stands `frame_history` after
    /// the first frame of unit number `unit_history`, and the last is the last frame of unit number
    /// `U - look_ahead - 1`. Of these, those in `range` are computed: `[B, range.len(), 2 bins]`.
    ///
    /// # Panics
    /// When the range reaches beyond what the units determine.
    pub fn forward(&self, units: Tensor<2, Int>, range: Range<usize>) -> Tensor<3> {
        let mut x = self.embed(units);
        for block in &self.unit_blocks {
            x = block.forward(x);
        }
        x = self.to_frames(x);
        x = x.narrow(1, range.start, range.len() + self.config.frame_history());
        for block in &self.frame_blocks {
            x = block.forward(x);
        }
        self.head.forward(self.final_norm.forward(x))
    }

    /// Offline decoding of a whole utterance: all frames of `units`, `[1, 4 U, 2 bins]`.
    ///
    /// Pad units stand before and after. Equal to [`Decoder::initial_state`], [`Decoder::step`] over the units and
    /// then over `look_ahead` pad units, with the first `look_ahead` units' frames dropped.
    pub fn decode(&self, units: &[usize]) -> Tensor<3> {
        let config = &self.config;
        let padded: Vec<i32> = std::iter::repeat_n(config.pad(), config.start_units())
            .chain(units.iter().copied())
            .chain(std::iter::repeat_n(config.pad(), config.look_ahead))
            .map(|unit| unit as i32)
            .collect();
        let length = padded.len();
        let device = self.embedding.val().device();
        let padded = Tensor::<2, Int>::from_data(TensorData::new(padded, [1, length]), &device);
        let end = config.upsampling * (length - config.unit_history() - config.look_ahead) - config.frame_history();
        self.forward(padded, end - config.upsampling * units.len()..end)
    }

    /// The state before an utterance: that of an endless row of pad units.
    pub fn initial_state(&self, batch: usize) -> DecoderState {
        let config = &self.config;
        let device = self.embedding.val().device();
        let zeros = |kernel: usize| Tensor::<3>::zeros([batch, kernel - 1, config.dimension], &device);
        let mut state = DecoderState {
            units: self.unit_blocks.iter().map(|_| zeros(config.unit_kernel)).collect(),
            frames: self.frame_blocks.iter().map(|_| zeros(config.frame_kernel)).collect(),
        };
        let pads = Tensor::<2, Int>::full([batch, config.start_units()], config.pad() as i64, &device);
        let _ = self.step(pads, &mut state);
        state
    }

    /// One streaming step: `[B, n]` units to the `4 n` frames that they complete, `[B, 4 n, 2 bins]`.
    ///
    /// The frames are those of the units `look_ahead` before: after [`Decoder::initial_state`] the first
    /// `look_ahead` units' frames belong to the padding and are dropped, and `look_ahead` pad units flush the last.
    pub fn step(&self, units: Tensor<2, Int>, state: &mut DecoderState) -> Tensor<3> {
        let mut x = self.embed(units);
        for (block, context) in self.unit_blocks.iter().zip(&mut state.units) {
            x = advance(block, x, context);
        }
        x = self.to_frames(x);
        for (block, context) in self.frame_blocks.iter().zip(&mut state.frames) {
            x = advance(block, x, context);
        }
        self.head.forward(self.final_norm.forward(x))
    }
}

/// Runs a block on its context and the new steps; keeps the last steps as the next context.
fn advance(block: &Block, x: Tensor<3>, context: &mut Tensor<3>) -> Tensor<3> {
    let joined = Tensor::cat(vec![context.clone(), x], 1);
    let kept = context.dims()[1];
    let length = joined.dims()[1];
    *context = joined.clone().narrow(1, length - kept, kept);
    block.forward(joined)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A network small enough for a test, with every part of the real one.
    pub fn tiny() -> DecoderConfig {
        DecoderConfig { units: 20, dimension: 16, feed_forward: 32, frame_blocks: 2, n_fft: 64, hop: 16, ..DecoderConfig::default() }
    }

    fn values(tensor: Tensor<3>) -> Vec<f32> {
        tensor.into_data().try_to_vec().expect("f32 tensors")
    }

    #[test]
    fn streaming_equals_offline_for_any_chunk() {
        let device = Device::flex();
        let config = tiny();
        let network = Decoder::new(&config, &device);
        let units: Vec<usize> = (0..24).map(|i| (i * 7 + 3) % config.units).collect();
        let offline = values(network.decode(&units));
        let per_unit = config.upsampling * config.head_width();
        assert_eq!(offline.len(), units.len() * per_unit);
        for chunk in [1, 2, 4, 6, 13] {
            let mut state = network.initial_state(1);
            let mut streamed = Vec::new();
            let flushed: Vec<i32> = units.iter().copied().chain([config.pad(); 2]).map(|unit| unit as i32).collect();
            for piece in flushed.chunks(chunk) {
                let piece = Tensor::from_data(TensorData::new(piece.to_vec(), [1, piece.len()]), &device);
                streamed.extend(values(network.step(piece, &mut state)));
            }
            let streamed = &streamed[config.look_ahead * per_unit..];
            assert_eq!(streamed.len(), offline.len());
            let worst = streamed.iter().zip(&offline).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "chunk {chunk}: {worst}");
        }
    }

    #[test]
    fn more_padding_before_an_utterance_changes_nothing() {
        let device = Device::flex();
        let network = Decoder::new(&tiny(), &device);
        let fresh = network.initial_state(1);
        let mut padded = network.initial_state(1);
        let pads = Tensor::<2, Int>::full([1, 6], network.config.pad() as i64, &device);
        let _ = network.step(pads, &mut padded);
        for (a, b) in fresh.units.iter().chain(&fresh.frames).zip(padded.units.iter().chain(&padded.frames)) {
            let worst = (a.clone() - b.clone()).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-5, "{worst}");
        }
    }
}
