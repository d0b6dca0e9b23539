//! The nano HuBERT: a causal, streamable encoder from log-mel frames to features at 25 Hz.
//!
//! After HuBERT (Hsu et al. 2021) with a log-mel front end in place of the waveform convolutions, chunked
//! attention (Emformer, Shi et al. 2021) in place of full attention, and depthwise convolutions for position.
//!
//! ```text
//! audio ─▶ log-mel 100 Hz ─▶ 2 × conv k4 s2 (25 Hz) ─▶ L × { x + dwconv(x); x + attention(LN x); x + ffn(LN x) } ─▶ LN
//!                                                                        ├─▶ phone head (CTC) and unit head: training only
//!                                                                        └─▶ nearest centroid: the unit
//! ```
//! The activation is ReLU: on Flex the erf of GELU costs as much as the matrix products around it.
//!
//! Everything looks left only, but attention, which sees its own chunk of 8 frames (320 ms) whole and the 5 chunks before
//! it. So [`Tokenizer::forward`] over a whole utterance and [`Tokenizer::step`] chunk by chunk give the same features.
//!
//! B: batch, T: frames at 25 Hz, d: width, H: heads, h: head width, C: chunk, S: left context in frames.

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::tensor::activation::{relu, softmax};
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::TokenizerConfig;
use super::frontend::{FrontEnd, PAST};
use crate::audio::MELS;

/// Added to the attention scores of positions that must not be seen.
const MASKED: f32 = -1e9;

/// The tokenizer; tensor names in the checkpoint are the field paths.
#[derive(Module, Debug)]
pub struct Tokenizer {
    /// First stem convolution, kernel 4 stride 2 over 64 log-mel bands: rows are tap-major, `[4 * 64, d]`.
    pub stem1: Linear,
    /// Second stem convolution, kernel 4 stride 2: `[4 * d, d]`.
    pub stem2: Linear,
    /// What a masked frame holds instead of its stem output (HuBERT's mask embedding), `[d]`.
    pub mask: Param<Tensor<1>>,
    /// The L blocks.
    pub blocks: Vec<Block>,
    /// Final LayerNorm.
    pub norm: LayerNorm,
    /// CTC head, `[d, phones]`; class 0 is the blank. Training only.
    pub phone_head: Linear,
    /// Masked-prediction head, `[d, k]`. Training only.
    pub unit_head: Linear,
    /// Codebook, `[k, d]`.
    pub centroids: Param<Tensor<2>>,
    heads: usize,
    kernel: usize,
    chunk: usize,
    left_chunks: usize,
    layer: usize,
}

/// One block: depthwise convolution, chunked attention, feed-forward; each residual.
#[derive(Module, Debug)]
pub struct Block {
    /// Causal depthwise convolution, `[kernel, d]`; row `kernel - 1` multiplies the present frame. No norm: it also carries position.
    pub conv: Param<Tensor<2>>,
    /// Before attention.
    pub norm1: LayerNorm,
    /// Query, key, value and output products, `[d, d]`. Keys carry no bias: softmax would cancel it.
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Before the feed-forward layer.
    pub norm2: LayerNorm,
    /// `[d, feed_forward]`
    pub up: Linear,
    /// `[feed_forward, d]`
    pub down: Linear,
}

/// What streaming keeps between chunks; all zeros at the start of an utterance.
#[derive(Debug, Clone)]
pub struct State {
    /// Last samples of the audio, `[1, 240]`.
    pub audio: Tensor<2>,
    /// Last 2 log-mel frames, `[1, 2, 64]`.
    pub stem1: Tensor<3>,
    /// Last 2 frames between the stem convolutions, `[1, 2, d]`.
    pub stem2: Tensor<3>,
    /// Last frames before each depthwise convolution, L × `[1, kernel - 1, d]`.
    pub conv: Vec<Tensor<3>>,
    /// Keys of the left context, L × `[1, H, S, h]`.
    pub key: Vec<Tensor<4>>,
    /// Values of the left context, L × `[1, H, S, h]`.
    pub value: Vec<Tensor<4>>,
    /// 1 where the left context is filled, `[1, S]`.
    pub valid: Tensor<2>,
    /// Constant; here only so that it is made once.
    front_end: FrontEnd,
}

/// Draws initial weights from a generator of its own, so that the seed alone decides them.
struct Draw<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
}

impl Draw<'_> {
    /// Normal values (Box-Muller), `std` wide.
    fn normal<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Param<Tensor<D>> {
        let mut value = || {
            let (radius, angle) = (1.0 - self.rng.random::<f32>(), self.rng.random_range(0.0..std::f32::consts::TAU));
            std * (-2.0 * radius.ln()).sqrt() * angle.cos()
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    /// A product whose outputs are about `gain` times as wide as its inputs; zero bias.
    fn linear(&mut self, input: usize, output: usize, gain: f32) -> Linear {
        let bias = Param::from_tensor(Tensor::zeros([output], self.device));
        Linear { weight: self.normal([input, output], gain / (input as f32).sqrt()), bias: Some(bias) }
    }
}

impl TokenizerConfig {
    /// A new network with random weights, the same on every call.
    pub fn init(&self, device: &Device) -> Tokenizer {
        self.init_seeded(0, device)
    }

    /// A new network with the random weights of `seed`.
    pub fn init_seeded(&self, seed: u64, device: &Device) -> Tokenizer {
        let d = self.width;
        let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(seed), device };
        // ReLU halves the power, and what adds to the residual stream starts smaller, as in GPT-2.
        let (relu_gain, residual) = (2f32.sqrt(), 1.0 / (2.0 * self.layers as f32).sqrt());
        let (stem1, stem2) = (draw.linear(4 * MELS, d, relu_gain), draw.linear(4 * d, d, relu_gain));
        let mut block = || Block {
            conv: draw.normal([self.kernel, d], 0.5 / (self.kernel as f32).sqrt()),
            norm1: LayerNormConfig::new(d).init(device),
            query: draw.linear(d, d, 1.0),
            key: Linear { bias: None, ..draw.linear(d, d, 1.0) },
            value: draw.linear(d, d, 1.0),
            output: draw.linear(d, d, residual),
            norm2: LayerNormConfig::new(d).init(device),
            up: draw.linear(d, self.feed_forward, relu_gain),
            down: draw.linear(self.feed_forward, d, residual),
        };
        let blocks = (0..self.layers).map(|_| block()).collect();
        Tokenizer {
            stem1,
            stem2,
            mask: draw.normal([d], 0.3),
            blocks,
            norm: LayerNormConfig::new(d).init(device),
            phone_head: draw.linear(d, self.phones, 1.0),
            unit_head: draw.linear(d, self.units, 1.0),
            centroids: Param::from_tensor(Tensor::zeros([self.units, d], device)).set_require_grad(false),
            heads: self.heads,
            kernel: self.kernel,
            chunk: self.chunk,
            left_chunks: self.left_chunks,
            layer: self.layer,
        }
    }
}

impl Tokenizer {
    /// Features of whole utterances: log-mel `[B, 4T, 64]` to `[B, T, d]`. `T` is a whole number of chunks.
    pub fn forward(&self, mel: Tensor<3>) -> Tensor<3> {
        self.encode(self.stem(mel))
    }

    /// Log-mel `[B, 4T, 64]` to frames at 25 Hz `[B, T, d]`.
    pub fn stem(&self, mel: Tensor<3>) -> Tensor<3> {
        let [b, _, bands] = mel.dims();
        let device = mel.device();
        let (x, _) = strided_conv(&self.stem1, Tensor::zeros([b, 2, bands], &device), mel); // [B, 2T, d]
        let x = relu(x);
        let d = x.dims()[2];
        let (x, _) = strided_conv(&self.stem2, Tensor::zeros([b, 2, d], &device), x); // [B, T, d]
        x
    }

    /// All blocks and the final norm over stem frames `[B, T, d]`.
    pub fn encode(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(self.blocks(x, self.blocks.len()))
    }

    /// The first `count` blocks over stem frames `[B, T, d]`.
    fn blocks(&self, mut x: Tensor<3>, count: usize) -> Tensor<3> {
        let [b, t, d] = x.dims();
        assert!(t % self.chunk == 0, "{t} frames are not a whole number of chunks of {}", self.chunk);
        let device = x.device();
        let mask = self.chunk_mask(t, &device); // [1, 1, T, T]
        let past = Tensor::zeros([b, self.kernel - 1, d], &device);
        for block in &self.blocks[..count] {
            x = block.convolve(Tensor::cat(vec![past.clone(), x], 1)); // [B, T, d]
            let (q, k, v) = block.project(x.clone(), self.heads); // [B, H, T, h]
            x = block.attend(x, q, k, v, mask.clone());
            x = block.feed_forward(x);
        }
        x
    }

    /// What is quantised, from log-mel `[B, 4T, 64]`: the configured layer, `[B, T, d]`.
    pub fn features(&self, mel: Tensor<3>) -> Tensor<3> {
        let stem = self.stem(mel);
        if self.layer == self.blocks.len() { self.encode(stem) } else { self.blocks(stem, self.layer) }
    }

    /// CTC logits of features: `[B, T, d]` to `[B, T, phones]`.
    pub fn phone_logits(&self, features: Tensor<3>) -> Tensor<3> {
        self.phone_head.forward(features)
    }

    /// The nearest centroid of each feature row: `[N, d]` to `[N]`, argmin of ‖c‖² − 2 x·c.
    pub fn quantise(&self, features: Tensor<2>) -> Tensor<1, Int> {
        let centroids = self.centroids.val().detach(); // [k, d]
        let squares = centroids.clone().powi_scalar(2).sum_dim(1).transpose(); // [1, k]
        let scores = squares - features.matmul(centroids.transpose()).mul_scalar(2.0); // [N, k]
        scores.argmin(1).squeeze_dim(1)
    }

    /// State before the first chunk of an utterance.
    pub fn initial_state(&self, device: &Device) -> State {
        let d = self.norm.gamma.val().dims()[0];
        let context = self.left_chunks * self.chunk;
        let rows = || Tensor::zeros([1, self.heads, context, d / self.heads], device);
        State {
            audio: Tensor::zeros([1, PAST], device),
            stem1: Tensor::zeros([1, 2, MELS], device),
            stem2: Tensor::zeros([1, 2, d], device),
            conv: self.blocks.iter().map(|_| Tensor::zeros([1, self.kernel - 1, d], device)).collect(),
            key: self.blocks.iter().map(|_| rows()).collect(),
            value: self.blocks.iter().map(|_| rows()).collect(),
            valid: Tensor::zeros([1, context], device),
            front_end: FrontEnd::new(device),
        }
    }

    /// One chunk: audio `[1, 5120]` to units `[8]` and features `[8, d]`. The same values as `forward` over the whole utterance.
    pub fn step(&self, audio: Tensor<2>, state: &mut State) -> (Tensor<1, Int>, Tensor<2>) {
        let device = audio.device();
        let audio = Tensor::cat(vec![state.audio.clone(), audio], 1); // [1, 240 + 5120]
        let samples = audio.dims()[1];
        state.audio = audio.clone().slice([0..1, samples - PAST..samples]);
        let mel = state.front_end.forward(audio); // [1, 32, 64]

        let (x, tail) = strided_conv(&self.stem1, state.stem1.clone(), mel);
        state.stem1 = tail;
        let (mut x, tail) = strided_conv(&self.stem2, state.stem2.clone(), relu(x));
        state.stem2 = tail; // x: [1, 8, d]
        let [_, t, d] = x.dims();
        let context = self.left_chunks * self.chunk;

        // Empty places of the context are masked; the chunk itself is seen whole.
        let seen = Tensor::cat(vec![state.valid.clone(), Tensor::ones([1, t], &device)], 1); // [1, S + 8]
        let mask = (seen.clone() - 1.0).mul_scalar(-MASKED).reshape([1, 1, 1, context + t]);
        state.valid = seen.slice([0..1, t..t + context]);

        for (i, block) in self.blocks[..self.layer].iter().enumerate() {
            let input = Tensor::cat(vec![state.conv[i].clone(), x], 1); // [1, kernel - 1 + 8, d]
            let rows = input.dims()[1];
            state.conv[i] = input.clone().slice([0..1, rows - (self.kernel - 1)..rows, 0..d]);
            x = block.convolve(input);
            let (q, k, v) = block.project(x.clone(), self.heads);
            let k = Tensor::cat(vec![state.key[i].clone(), k], 2); // [1, H, S + 8, h]
            let v = Tensor::cat(vec![state.value[i].clone(), v], 2);
            let last = |rows: &Tensor<4>| rows.clone().slice([0..1, 0..self.heads, t..t + context, 0..d / self.heads]);
            state.key[i] = last(&k);
            state.value[i] = last(&v);
            x = block.attend(x, q, k, v, mask.clone());
            x = block.feed_forward(x);
        }
        let features = if self.layer == self.blocks.len() { self.norm.forward(x) } else { x }.reshape([t, d]);
        (self.quantise(features.clone()), features)
    }

    /// Which frames see which: 0 or a large negative number, `[1, 1, T, T]`.
    fn chunk_mask(&self, t: usize, device: &Device) -> Tensor<4> {
        let mut mask = vec![MASKED; t * t];
        for (query, row) in mask.chunks_exact_mut(t).enumerate() {
            let chunk = query / self.chunk;
            row[chunk.saturating_sub(self.left_chunks) * self.chunk..(chunk + 1) * self.chunk].fill(0.0);
        }
        Tensor::from_data(TensorData::new(mask, [1, 1, t, t]), device)
    }
}

impl Block {
    /// `x + dwconv(x)` of `[B, kernel - 1 + T, d]`, giving `[B, T, d]`. By shifts: Flex runs these faster than its grouped convolution.
    fn convolve(&self, x: Tensor<3>) -> Tensor<3> {
        let weight = self.conv.val(); // [kernel, d]
        let [b, rows, d] = x.dims();
        let kernel = weight.dims()[0];
        let t = rows - (kernel - 1);
        let mut sum = x.clone().slice([0..b, kernel - 1..rows, 0..d]);
        for tap in 0..kernel {
            let frames = x.clone().slice([0..b, tap..tap + t, 0..d]);
            let row = weight.clone().slice([tap..tap + 1, 0..d]).reshape([1, 1, d]);
            sum = sum + frames * row;
        }
        sum
    }

    /// Queries (scaled), keys and values of `[B, T, d]`, each `[B, H, T, h]`.
    fn project(&self, x: Tensor<3>, heads: usize) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [b, t, d] = x.dims();
        let head = d / heads;
        let x = self.norm1.forward(x);
        // The softmax scale is folded into the small query weights, so that no pass over the scores is spent on it.
        let scale = 1.0 / (head as f64).sqrt();
        let bias = self.query.bias.as_ref().map(|bias| bias.val().mul_scalar(scale));
        let q = linear(x.clone(), self.query.weight.val().mul_scalar(scale), bias);
        let split = |rows: Tensor<3>| rows.reshape([b, t, heads, head]).swap_dims(1, 2);
        (split(q), split(self.key.forward(x.clone())), split(self.value.forward(x)))
    }

    /// `x + attention`: x `[B, T, d]`, queries `[B, H, T, h]`, keys and values `[B, H, S, h]`, mask `[1, 1, T or 1, S]`.
    fn attend(&self, x: Tensor<3>, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Tensor<4>) -> Tensor<3> {
        let [b, t, d] = x.dims();
        let weights = softmax(q.matmul(k.transpose()) + mask, 3); // [B, H, T, S]
        let mixed = weights.matmul(v).swap_dims(1, 2).reshape([b, t, d]);
        x + self.output.forward(mixed)
    }

    /// `x + ffn(LN x)`, `[B, T, d]`.
    fn feed_forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = relu(self.up.forward(self.norm2.forward(x.clone()))); // [B, T, feed_forward]
        x + self.down.forward(hidden)
    }
}

/// Causal convolution of kernel 4 and stride 2 as one matrix product: `past [B, 2, c]` and `x [B, 2T, c]` give `[B, T, o]` and the next `past`.
///
/// Output `t` sees inputs `2t - 2 ..= 2t + 1`, so neighbouring pairs are joined.
fn strided_conv(weight: &Linear, past: Tensor<3>, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let [b, rows, c] = x.dims();
    let t = rows / 2;
    let pairs = Tensor::cat(vec![past, x], 1).reshape([b, t + 1, 2 * c]);
    let before = pairs.clone().slice([0..b, 0..t, 0..2 * c]);
    let now = pairs.clone().slice([0..b, 1..t + 1, 0..2 * c]);
    let tail = pairs.slice([0..b, t..t + 1, 0..2 * c]).reshape([b, 2, c]);
    (weight.forward(Tensor::cat(vec![before, now], 2)), tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::LogMel;
    use crate::tokenizer::config::UNIT_SAMPLES;

    /// Streamed and offline run the same products in another order.
    const CLOSE: f32 = 2e-4;

    pub fn small() -> TokenizerConfig {
        TokenizerConfig { width: 32, layers: 2, layer: 2, heads: 2, feed_forward: 64, phones: 6, units: 12, ..TokenizerConfig::default() }
    }

    fn audio(chunks: usize, config: &TokenizerConfig) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        (0..chunks * config.chunk_samples()).map(|i| 0.2 * (i as f32 * 0.05).sin() + rng.random_range(-0.1..0.1)).collect()
    }

    fn offline(model: &Tokenizer, audio: &[f32], device: &Device) -> Vec<f32> {
        let mel = LogMel::default().frames(audio);
        let frames = mel.len() / MELS;
        model.features(Tensor::from_data(TensorData::new(mel, [1, frames, MELS]), device)).into_data().try_to_vec().expect("f32")
    }

    fn streamed(model: &Tokenizer, audio: &[f32], config: &TokenizerConfig, state: &mut State, device: &Device) -> Vec<f32> {
        let step = |chunk: &[f32]| {
            let chunk = Tensor::<2>::from_data(TensorData::new(chunk.to_vec(), [1, chunk.len()]), device);
            model.step(chunk, state).1.into_data().try_to_vec::<f32>().expect("f32")
        };
        audio.chunks(config.chunk_samples()).flat_map(step).collect()
    }

    #[test]
    fn streaming_gives_the_offline_features_whatever_the_length() {
        let device = Device::flex();
        for config in [small(), TokenizerConfig { layer: 1, ..small() }] {
            let model = config.init(&device);
            for chunks in [1, 2, 9] {
                let audio = audio(chunks, &config);
                let (whole, parts) =
                    (offline(&model, &audio, &device), streamed(&model, &audio, &config, &mut model.initial_state(&device), &device));
                assert_eq!(whole.len(), audio.len() / UNIT_SAMPLES * config.width);
                let worst = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < CLOSE, "{chunks} chunks: {worst}");
            }
        }
    }

    #[test]
    fn the_past_beyond_the_context_is_forgotten_and_the_future_unseen() {
        let device = Device::flex();
        let config = TokenizerConfig { layers: 1, layer: 1, ..small() };
        let model = config.init(&device);
        let plain = audio(10, &config);
        let mut changed = plain.clone();
        changed[..1000].fill(0.5);
        let end = config.chunk_samples();
        let (a, b) = (offline(&model, &plain, &device), offline(&model, &changed, &device));
        let frame = 8 * config.chunk * config.width;
        assert!(a[frame..].iter().zip(&b[frame..]).all(|(a, b)| (a - b).abs() < CLOSE));
        let shorter = offline(&model, &plain[..2 * end], &device);
        assert!(a.iter().zip(&shorter).all(|(a, b)| (a - b).abs() < CLOSE));
    }
}
