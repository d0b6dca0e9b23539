//! The network in Burn: Qwen2's block over text tokens and unit groups, and the GroupModel head.
//!
//! Block: Qwen2 technical report, arXiv 2407.10671 (pre-RMSNorm, RoPE, grouped-query attention, SwiGLU).
//! Groups and GroupModel: IntrinsicVoice, arXiv 2410.08035, section 3.2.
//!
//! Field paths are the tensor names of the checkpoint, as Hugging Face has them: `model.layers.0.self_attn.q_proj.weight`.
//! This is the definition; [`super::fused`] computes the same gradients faster on the CPU, and a test holds them together.

use burn::module::{Module, Param};
use burn::nn::{Embedding, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::Config;
use super::sequence::Batch;

/// The group LM.
#[derive(Module, Debug)]
pub struct Network {
    pub model: Trunk,
    /// Row `units` is the end unit.
    pub unit_embedding: Embedding, // [k + 1, e]
    /// A group enters as its units' embeddings side by side.
    pub adaptor: Linear, // [G e → d]
    pub head: GroupModel,
}

/// Qwen2 without its language-model head, which is the embedding again.
#[derive(Module, Debug)]
pub struct Trunk {
    pub embed_tokens: Embedding, // [V, d]
    pub layers: Vec<Block>,
    pub norm: RmsNorm, // [d]
}

/// One pre-norm transformer block.
#[derive(Module, Debug)]
pub struct Block {
    pub input_layernorm: RmsNorm,
    pub self_attn: Attention,
    pub post_attention_layernorm: RmsNorm,
    pub mlp: Mlp,
}

/// Grouped-query attention: query head i uses key-value head i / (heads / key-value heads).
#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: Linear, // [d → H dh]
    pub k_proj: Linear, // [d → KV dh]
    pub v_proj: Linear, // [d → KV dh]
    pub o_proj: Linear, // [H dh → d]
    #[module(skip)]
    pub head_dim: usize,
}

/// SwiGLU.
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Linear, // [d → ff]
    pub up_proj: Linear,   // [d → ff]
    pub down_proj: Linear, // [ff → d]
}

/// Hidden state → G units in one step: the state and G learnt queries through a small encoder.
#[derive(Module, Debug)]
pub struct GroupModel {
    pub input: Linear,             // [d → d]
    pub queries: Param<Tensor<2>>, // [G, d]
    pub layers: Vec<Block>,
    pub norm: RmsNorm,  // [d]
    pub output: Linear, // [d → k + 1]
}

/// Keys (after RoPE) and values of what has been read, one pair a layer.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    pub layers: Vec<(Tensor<4>, Tensor<4>)>, // [B, KV, t, dh] each
}

impl Cache {
    /// Positions read.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.dims()[2])
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Forgets what came after the first `positions`.
    pub fn truncate(&mut self, positions: usize) {
        if positions == 0 {
            self.layers.clear();
        }
        for (keys, values) in &mut self.layers {
            keys.inplace(|t| t.narrow(2, 0, positions));
            values.inplace(|t| t.narrow(2, 0, positions));
        }
    }
}

/// Draws initial weights from a generator of its own, so that the seed alone decides them.
struct Draw<'a> {
    rng: ChaCha8Rng,
    device: &'a Device,
}

impl Draw<'_> {
    /// Normal values (Box-Muller), `std` wide.
    fn normal(&mut self, shape: [usize; 2], std: f64) -> Param<Tensor<2>> {
        let mut value = || {
            let (radius, angle) = (1.0 - self.rng.random::<f64>(), self.rng.random_range(0.0..std::f64::consts::TAU));
            (std * (-2.0 * radius.ln()).sqrt() * angle.cos()) as f32
        };
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| value()).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    /// Weights of variance gain² / inputs; a bias of zeros.
    fn linear(&mut self, inputs: usize, outputs: usize, bias: bool, gain: f64) -> Linear {
        let bias = bias.then(|| Param::from_tensor(Tensor::zeros([outputs], self.device)));
        Linear { weight: self.normal([inputs, outputs], gain / (inputs as f64).sqrt()), bias }
    }

    fn embedding(&mut self, rows: usize, width: usize, std: f64) -> Embedding {
        Embedding { weight: self.normal([rows, width], std) }
    }
}

struct BlockSize {
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    bias: bool,
    eps: f64,
    /// Blocks whose outputs add up in the residual stream.
    depth: usize,
}

impl Block {
    fn new(size: &BlockSize, draw: &mut Draw<'_>) -> Self {
        let device = draw.device;
        let norm = || RmsNormConfig::new(size.width).with_epsilon(size.eps).init(device);
        let residual = 1.0 / (2.0 * size.depth as f64).sqrt();
        let keys = size.kv_heads * size.head_dim;
        Self {
            input_layernorm: norm(),
            self_attn: Attention {
                q_proj: draw.linear(size.width, size.heads * size.head_dim, size.bias, 1.0),
                k_proj: draw.linear(size.width, keys, size.bias, 1.0),
                v_proj: draw.linear(size.width, keys, size.bias, 1.0),
                o_proj: draw.linear(size.heads * size.head_dim, size.width, false, residual),
                head_dim: size.head_dim,
            },
            post_attention_layernorm: norm(),
            mlp: Mlp {
                gate_proj: draw.linear(size.width, size.hidden, false, 1.0),
                up_proj: draw.linear(size.width, size.hidden, false, 1.0),
                down_proj: draw.linear(size.hidden, size.width, false, residual),
            },
        }
    }

    /// `x` [B, T, d]; `past` are keys and values read before; returns the new rows' keys and values behind them.
    fn forward(
        &self,
        x: Tensor<3>,
        past: Option<&(Tensor<4>, Tensor<4>)>,
        rope: Option<&Rope>,
        mask: Option<&Tensor<4, Bool>>,
    ) -> (Tensor<3>, (Tensor<4>, Tensor<4>)) {
        let (attended, kept) = self.self_attn.forward(self.input_layernorm.forward(x.clone()), past, rope, mask);
        let x = x + attended; // [B, T, d]
        let mlp = &self.mlp;
        let y = self.post_attention_layernorm.forward(x.clone());
        let gated = activation::silu(mlp.gate_proj.forward(y.clone())) * mlp.up_proj.forward(y); // [B, T, ff]
        (x + mlp.down_proj.forward(gated), kept)
    }
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<3>,
        past: Option<&(Tensor<4>, Tensor<4>)>,
        rope: Option<&Rope>,
        mask: Option<&Tensor<4, Bool>>,
    ) -> (Tensor<3>, (Tensor<4>, Tensor<4>)) {
        let [batch, length, _] = x.dims();
        let dh = self.head_dim;
        let split = |t: Tensor<3>| {
            let heads = t.dims()[2] / dh;
            t.reshape([batch, length, heads, dh]).swap_dims(1, 2) // [B, H, T, dh]
        };
        let mut query = split(self.q_proj.forward(x.clone()));
        let mut key = split(self.k_proj.forward(x.clone()));
        let mut value = split(self.v_proj.forward(x));
        if let Some(rope) = rope {
            query = rope.apply(query);
            key = rope.apply(key);
        }
        if let Some((keys, values)) = past {
            key = Tensor::cat(vec![keys.clone(), key], 2);
            value = Tensor::cat(vec![values.clone(), value], 2);
        }
        let kept = (key.clone(), value.clone());
        let (heads, kv_heads, read) = (query.dims()[1], key.dims()[1], key.dims()[2]);
        let share = heads / kv_heads;
        // Each key-value head serves `share` query heads that follow one another.
        let repeat = |t: Tensor<4>| t.reshape([batch, kv_heads, 1, read, dh]).repeat_dim(2, share).reshape([batch, heads, read, dh]);
        let mut scores = query.matmul(repeat(key).swap_dims(2, 3)).div_scalar((dh as f64).sqrt()); // [B, H, T, t]
        if let Some(mask) = mask {
            scores = scores.mask_fill(mask.clone().expand([batch, heads, length, read]), f32::NEG_INFINITY);
        }
        let attended = activation::softmax(scores, 3).matmul(repeat(value)); // [B, H, T, dh]
        (self.o_proj.forward(attended.swap_dims(1, 2).reshape([batch, length, heads * dh])), kept)
    }
}

/// Rotary positions in Hugging Face's convention: the first half of a head turns with the second half.
pub struct Rope {
    cos: Tensor<4>, // [1, 1, T, dh]
    sin: Tensor<4>,
}

impl Rope {
    pub fn new(head_dim: usize, theta: f64, start: usize, length: usize, device: &Device) -> Self {
        let (cos, sin) = rope_tables(head_dim, theta, start, length);
        let table = |values| Tensor::<4>::from_data(TensorData::new(values, [1, 1, length, head_dim]), device);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// x cos + rotate_half(x) sin, with rotate_half([a, b]) = [-b, a].
    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let turned = Tensor::cat(vec![x.clone().narrow(3, half, half).neg(), x.clone().narrow(3, 0, half)], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}

/// Cosines and sines [length, head_dim] of the positions from `start`; the halves of a row are equal.
pub fn rope_tables(head_dim: usize, theta: f64, start: usize, length: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    (start..start + length)
        .flat_map(|position| (0..head_dim).map(move |i| position as f64 * theta.powf(-((i % half) as f64) / half as f64)))
        .map(|angle| (angle.cos() as f32, angle.sin() as f32))
        .unzip()
}

impl Network {
    /// A network with random weights, the same on every call.
    pub fn new(config: &Config, device: &Device) -> Self {
        Self::seeded(config, 0, device)
    }

    /// A network with the random weights of `seed`.
    pub fn seeded(config: &Config, seed: u64, device: &Device) -> Self {
        let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(seed), device };
        let d = config.hidden_size;
        let norm = || RmsNormConfig::new(d).with_epsilon(config.rms_norm_eps).init(device);
        let trunk = BlockSize {
            width: d,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            hidden: config.intermediate_size,
            bias: config.attention_bias,
            eps: config.rms_norm_eps,
            depth: config.num_hidden_layers,
        };
        let head = BlockSize {
            width: d,
            heads: config.head.num_attention_heads,
            kv_heads: config.head.num_attention_heads,
            head_dim: config.head.head_dim,
            hidden: config.head.intermediate_size,
            bias: false,
            eps: config.rms_norm_eps,
            depth: config.head.num_hidden_layers,
        };
        Self {
            model: Trunk {
                embed_tokens: draw.embedding(config.vocab_size, d, 0.06),
                layers: (0..config.num_hidden_layers).map(|_| Block::new(&trunk, &mut draw)).collect(),
                norm: norm(),
            },
            unit_embedding: draw.embedding(config.units + 1, config.unit_embedding_size, 0.3),
            adaptor: draw.linear(config.group * config.unit_embedding_size, d, false, 1.0),
            head: GroupModel {
                input: draw.linear(d, d, false, 1.0),
                queries: draw.normal([config.group, d], 1.0),
                layers: (0..config.head.num_hidden_layers).map(|_| Block::new(&head, &mut draw)).collect(),
                norm: norm(),
                output: draw.linear(d, config.units + 1, false, 1.0),
            },
        }
    }

    /// Text tokens [n] → rows [n, d].
    pub fn embed_tokens(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        self.model.embed_tokens.weight.val().select(0, tokens)
    }

    /// Groups of units [n, G] → rows [n, d].
    pub fn embed_groups(&self, units: Tensor<2, Int>) -> Tensor<2> {
        let [groups, group] = units.dims();
        let rows = self.unit_embedding.weight.val().select(0, units.reshape([groups * group])); // [n G, e]
        let width = rows.dims()[1];
        self.adaptor.forward(rows.reshape([groups, group * width]))
    }

    /// Rows `x` [B, T, d] behind what `cache` holds → hidden states [B, T, d] (after the last norm); the cache grows by T.
    /// With an empty cache this is the offline pass.
    pub fn forward(&self, config: &Config, mut x: Tensor<3>, cache: &mut Cache) -> Tensor<3> {
        let [_, length, _] = x.dims();
        let start = cache.len();
        let rope = Rope::new(config.head_dim, config.rope_theta, start, length, &x.device());
        let mask = (length > 1).then(|| {
            let ahead = (0..length).flat_map(|i| (0..start + length).map(move |j| j > start + i)).collect::<Vec<_>>();
            Tensor::<4, Bool>::from_data(TensorData::new(ahead, [1, 1, length, start + length]), &x.device())
        });
        let mut layers = Vec::with_capacity(self.model.layers.len());
        for (i, block) in self.model.layers.iter().enumerate() {
            let kept;
            (x, kept) = block.forward(x, cache.layers.get(i), Some(&rope), mask.as_ref());
            layers.push(kept);
        }
        cache.layers = layers;
        self.model.norm.forward(x)
    }

    /// One position, as the exported graph has it: row [1, d] → text logits [1, V] and hidden state [1, d].
    pub fn step(&self, config: &Config, row: Tensor<2>, cache: &mut Cache) -> (Tensor<2>, Tensor<2>) {
        let width = row.dims()[1];
        let hidden = self.forward(config, row.reshape([1, 1, width]), cache).reshape([1, width]);
        (self.text_logits(hidden.clone()), hidden)
    }

    /// Hidden states [n, d] → text logits [n, V] (the embedding, transposed).
    pub fn text_logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.model.embed_tokens.weight.val().transpose())
    }

    /// Hidden states [n, d] of the positions before agent groups → unit logits [n, G, k + 1].
    pub fn unit_logits(&self, hidden: Tensor<2>) -> Tensor<3> {
        let head = &self.head;
        let [n, d] = hidden.dims();
        let queries = head.queries.val();
        let group = queries.dims()[0];
        let state = head.input.forward(hidden).reshape([n, 1, d]);
        let mut x = Tensor::cat(vec![state, queries.reshape([1, group, d]).repeat_dim(0, n)], 1); // [n, 1 + G, d]
        for block in &head.layers {
            (x, _) = block.forward(x, None, None, None);
        }
        head.output.forward(head.norm.forward(x.narrow(1, 1, group)))
    }
}

impl Network {
    /// The loss of [`super::fused::gradients`] over one batch, by Burn's own operations: for other devices, and as its test.
    pub fn loss(&self, config: &Config, batch: &Batch, unit_weight: f32, device: &Device) -> Tensor<1> {
        let longest = batch.lengths.iter().max().copied().unwrap_or(0);
        let indices = |values: Vec<i32>| {
            let length = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [length]), device)
        };
        // Rows: first all tokens, then all groups; `places` says which of them stands at each padded position.
        let mut places = vec![0; batch.rows()];
        for (i, (row, _)) in batch.tokens.iter().enumerate() {
            places[*row] = i as i32;
        }
        for (i, row) in batch.group_rows.iter().enumerate() {
            places[*row] = (batch.tokens.len() + i) as i32;
        }
        let mut rows = self.embed_tokens(indices(batch.tokens.iter().map(|(_, token)| i32::from(*token)).collect()));
        if !batch.group_rows.is_empty() {
            let units = indices(batch.groups.iter().map(|unit| i32::from(*unit)).collect());
            rows = Tensor::cat(vec![rows, self.embed_groups(units.reshape([batch.group_rows.len(), config.group]))], 0);
        }
        // Padding stands behind a sequence, where the causal mask hides it.
        let (mut padded, mut places_of_rows, mut start) = (Vec::new(), Vec::new(), 0);
        for (i, &length) in batch.lengths.iter().enumerate() {
            places_of_rows.extend((0..length).map(|j| (i * longest + j) as i32));
            padded.extend_from_slice(&places[start..start + length]);
            padded.extend(std::iter::repeat_n(0, longest - length));
            start += length;
        }
        let x = rows.select(0, indices(padded)).reshape([batch.lengths.len(), longest, config.hidden_size]);
        let hidden = self.forward(config, x, &mut Cache::default()).reshape([batch.lengths.len() * longest, config.hidden_size]);

        let at = |row: usize| places_of_rows[row];
        let asked = hidden.clone().select(0, indices(batch.text_targets.iter().map(|(row, _, _)| at(*row)).collect()));
        let targets = indices(batch.text_targets.iter().map(|(_, target, _)| i32::from(*target)).collect());
        let loss = cross_entropy(self.text_logits(asked), targets);
        if batch.unit_targets.is_empty() {
            return loss;
        }
        let asked = hidden.select(0, indices(batch.unit_targets.iter().map(|(row, _, _)| at(*row)).collect()));
        let logits = self.unit_logits(asked).reshape([batch.unit_targets.len() * config.group, config.units + 1]);
        let units = batch.unit_targets.iter().flat_map(|(_, index, _)| &batch.groups[index * config.group..][..config.group]);
        let units = indices(units.map(|unit| i32::from(*unit)).collect());
        loss + cross_entropy(logits, units).mul_scalar(unit_weight)
    }
}

/// Mean cross-entropy of `logits` [n, kinds] against `targets` [n].
fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let n = targets.dims()[0];
    activation::log_softmax(logits, 1).gather(1, targets.reshape([n, 1])).mean().neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_turns_the_halves_of_a_head_as_hugging_face_does() {
        let device = Device::flex();
        // head_dim 4, theta 100: angles of position 3 are 3 and 3 / 10.
        let rope = Rope::new(4, 100.0, 3, 1, &device);
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
        let turned = rope.apply(x).into_data().try_into_vec::<f32>().expect("floats");
        let (a, b) = (3.0f32, 0.3f32);
        let expected = [a.cos() - 3.0 * a.sin(), 2.0 * b.cos() - 4.0 * b.sin(), 3.0 * a.cos() + a.sin(), 4.0 * b.cos() + 2.0 * b.sin()];
        for (x, y) in turned.iter().zip(expected) {
            assert!((x - y).abs() < 1e-5, "{turned:?} {expected:?}");
        }
    }

    #[test]
    fn key_value_heads_are_shared_by_following_query_heads() {
        let device = Device::flex();
        let config = Config::tiny();
        let network = Network::new(&config, &device);
        let attention = &network.model.layers[0].self_attn;
        assert_eq!(attention.q_proj.weight.dims(), [16, 32]);
        assert_eq!(attention.k_proj.weight.dims(), [16, 16]);
        let x = Tensor::random([2, 5, 16], burn::tensor::Distribution::Default, &device);
        let (y, (keys, values)) = attention.forward(x.clone(), None, None, None);
        assert_eq!((y.dims(), keys.dims(), values.dims()), ([2, 5, 16], [2, 2, 5, 8], [2, 2, 5, 8]));
        // Without value head 1, query heads 2 and 3 give nothing: the output is that of heads 0 and 1 alone.
        let mut cut = attention.clone();
        cut.v_proj.weight = cut.v_proj.weight.map(|w| w.slice_fill([0..16, 8..16], 0.0));
        let (first, _) = cut.forward(x.clone(), None, None, None);
        let mut halved = attention.clone();
        halved.o_proj.weight = halved.o_proj.weight.map(|w| w.slice_fill([16..32, 0..16], 0.0));
        let (second, _) = halved.forward(x, None, None, None);
        assert!((first - second).abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn a_step_at_a_time_equals_the_offline_pass() {
        let device = Device::flex();
        device.seed(5);
        let config = Config::tiny();
        let network = Network::new(&config, &device);
        let x = Tensor::<3>::random([1, 9, 16], burn::tensor::Distribution::Default, &device);
        let offline = network.forward(&config, x.clone(), &mut Cache::default());
        for chunk in [1, 2, 3, 7] {
            let mut cache = Cache::default();
            let mut parts = Vec::new();
            for start in (0..9).step_by(chunk) {
                parts.push(network.forward(&config, x.clone().narrow(1, start, chunk.min(9 - start)), &mut cache));
            }
            let error = (Tensor::cat(parts, 1) - offline.clone()).abs().max().into_scalar::<f32>();
            assert!(error < 1e-5, "chunks of {chunk}: {error}");
        }
        // Forgetting is a change of length.
        let mut cache = Cache::default();
        network.forward(&config, x.clone(), &mut cache);
        cache.truncate(4);
        let (_, hidden) = network.step(&config, x.narrow(1, 4, 1).reshape([1, 16]), &mut cache);
        let error = (hidden - offline.narrow(1, 4, 1).reshape([1, 16])).abs().max().into_scalar::<f32>();
        assert!(error < 1e-5 && cache.len() == 5, "{error}");
    }
}
