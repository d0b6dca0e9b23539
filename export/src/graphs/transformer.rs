//! What the language model's trunk and its head share: pre-norm blocks with SwiGLU.

use crate::onnx::{Graph, Precision, Value};
use crate::weights::{Weights, WeightsError};

/// Sizes of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    /// Biases of queries, keys and values.
    pub bias: bool,
    pub epsilon: f32,
}

/// A block on `x` `[n, d]`; `attend` turns the product of queries (scaled), keys and values `[n, (H + 2 KV) dh]` into
/// what the heads read `[n, H dh]`.
pub(super) fn block(
    graph: &mut Graph,
    weights: &Weights,
    name: &str,
    sizes: Sizes,
    x: &Value,
    precision: Precision,
    attend: impl FnOnce(&mut Graph, &Value) -> Value,
) -> Result<Value, WeightsError> {
    let Sizes { width: d, hidden, epsilon, .. } = sizes;
    let (h, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let tensor = |field: &str, shape: &[usize]| weights.tensor(&format!("{name}.{field}"), shape);
    let scale = 1.0 / (sizes.head_dim as f32).sqrt();
    let scaled = |values: Vec<f32>| values.into_iter().map(|w| w * scale).collect::<Vec<_>>();

    let mut product = scaled(tensor("self_attn.q_proj.weight", &[h, d])?);
    product.extend(tensor("self_attn.k_proj.weight", &[kv, d])?);
    product.extend(tensor("self_attn.v_proj.weight", &[kv, d])?);
    let product_bias = if sizes.bias {
        let mut bias = scaled(tensor("self_attn.q_proj.bias", &[h])?);
        bias.extend(tensor("self_attn.k_proj.bias", &[kv])?);
        bias.extend(tensor("self_attn.v_proj.bias", &[kv])?);
        Some(bias)
    } else {
        None
    };
    let output = tensor("self_attn.o_proj.weight", &[d, h])?;
    let mut gate_up = tensor("mlp.gate_proj.weight", &[hidden, d])?;
    gate_up.extend(tensor("mlp.up_proj.weight", &[hidden, d])?);
    let down = tensor("mlp.down_proj.weight", &[d, hidden])?;
    let (norm1, norm2) = (tensor("input_layernorm.weight", &[d])?, tensor("post_attention_layernorm.weight", &[d])?);

    Ok(graph.scope(name, |g| {
        let attended = g.scope("self_attn", |g| {
            let normed = g.rms_norm(x, &norm1, epsilon);
            let qkv = g.scope("qkv_proj", |g| g.linear(&normed, &product, product_bias.as_deref(), precision));
            let mixed = attend(g, &qkv);
            g.scope("o_proj", |g| g.linear(&mixed, &output, None, precision))
        });
        let x = g.add(x, &attended);
        let update = g.scope("mlp", |g| {
            let normed = g.rms_norm(&x, &norm2, epsilon);
            let both = g.scope("gate_up_proj", |g| g.linear(&normed, &gate_up, None, precision)); // [n, 2 ff]
            let gate = g.slice(&both, 1, 0, hidden);
            let up = g.slice(&both, 1, hidden, 2 * hidden);
            let gate = g.silu(&gate);
            let gated = g.mul(&gate, &up);
            g.scope("down_proj", |g| g.linear(&gated, &down, None, precision))
        });
        g.add(&x, &update)
    }))
}
