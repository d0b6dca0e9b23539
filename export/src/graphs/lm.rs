//! lm.onnx: one text token or one group of units in; text logits, hidden state and the new rows of the cache out. A trunk without
//! speech weights reads text only, and has neither the input `units` nor `is_group`.
//!
//! The cache belongs to the runtime: the graph reads `position` rows of it and returns one new row a layer, so
//! nothing is copied. Rows from `position` on are masked.

use sa_device::bundle::StageName;
use sa_models::lm::Config;
use sa_models::lm::network::rope_tables;

use super::StageGraph;
use super::transformer::{Sizes, block};
use crate::onnx::{DataType, Form, Graph, Precision, Value};
use crate::weights::{Weights, WeightsError};

/// Added to the scores of rows that hold nothing yet.
const MASKED: f32 = -1e9;

/// What every block needs: where the position stands, and which rows are filled.
struct Position {
    /// Cosines and sines of this position, `[1, dh]`; the sines of the first half are negated.
    cos: Value,
    sin: Value,
    /// 0 for filled rows and the new one, a large negative number elsewhere, `[1, 1, C + 1]`.
    mask: Value,
}

/// Draws the graph of a model that has all its tensors in one place.
pub fn draw<'a>(config: &Config, weights: &Weights, form: impl Into<Form<'a>>) -> Result<StageGraph, WeightsError> {
    draw_parts(config, weights, Some(weights), form)
}

/// Draws the graph of a trunk; `speech` holds the unit embedding and the adaptor, if it reads speech.
pub fn draw_parts<'a>(
    config: &Config,
    trunk: &Weights,
    speech: Option<&Weights>,
    form: impl Into<Form<'a>>,
) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let weights = trunk;
    let (d, vocabulary, context) = (config.hidden_size, config.vocab_size, config.max_position_embeddings);
    let (kv, dh) = (config.num_key_value_heads, config.head_dim);
    let mut graph = Graph::new(
        "lm",
        "Group language model (Qwen2 blocks), one position: a text token or a group of units in, text logits and hidden state out.",
    );
    graph.form(&form);
    let g = &mut graph;
    let token = g.input("token", DataType::I64, &[1]);
    let spoken = speech.map(|speech| {
        let units = g.input("units", DataType::I64, &[1, config.group]);
        (speech, units, g.input("is_group", DataType::F32, &[1]))
    });
    let position = g.input("position", DataType::I64, &[1]);
    let layers = config.num_hidden_layers;
    let caches: Vec<(Value, Value)> = (0..layers)
        .map(|i| {
            let key = g.input(&format!("cache.key.{i}"), DataType::F32, &[kv, context, dh]);
            (key, g.input(&format!("cache.value.{i}"), DataType::F32, &[kv, context, dh]))
        })
        .collect();

    let embedding = weights.tensor("model.embed_tokens.weight", &[vocabulary, d])?;
    let table = g.table("model.embed_tokens.weight", &embedding, d, precision);
    let text = g.look_up(&table, &token); // [1, d]
    let mut x = match spoken {
        Some((speech, units, is_group)) => {
            let group = group_row(g, speech, config, &units, precision)?; // [1, d]
            let is_text = g.neg(&is_group);
            let is_text = g.add_scalar(&is_text, 1.0);
            let text = g.mul(&text, &is_text);
            let group = g.mul(&group, &is_group);
            g.add(&text, &group)
        }
        None => text,
    };

    let place = g.scope("position", |g| place(g, config, &position));
    let sizes = Sizes {
        width: d,
        heads: config.num_attention_heads,
        kv_heads: kv,
        head_dim: dh,
        hidden: config.intermediate_size,
        bias: config.attention_bias,
        epsilon: config.rms_norm_eps as f32,
    };
    for (i, cache) in caches.iter().enumerate() {
        let name = format!("model.layers.{i}");
        x = block(g, weights, &name, sizes, &x, precision, |g, qkv| attend(g, sizes, i, qkv, cache, &place))?;
    }
    let weight = weights.tensor("model.norm.weight", &[d])?;
    let hidden = g.scope("model.norm", |g| g.rms_norm(&x, &weight, config.rms_norm_eps as f32));
    let head = match config.tie_word_embeddings {
        true => embedding,
        false => weights.tensor("lm_head.weight", &[vocabulary, d])?,
    };
    let logits = g.scope("lm_head", |g| g.linear(&hidden, &head, None, precision));
    g.output("logits", &logits);
    g.output("hidden", &hidden);
    Ok(StageGraph::new(StageName::Lm, graph, precision, 1, 0.0))
}

/// The row of a group: its units' embeddings side by side through the adaptor.
fn group_row(graph: &mut Graph, weights: &Weights, config: &Config, units: &Value, precision: Precision) -> Result<Value, WeightsError> {
    let (e, wide) = (config.unit_embedding_size, config.group * config.unit_embedding_size);
    let table = weights.tensor("unit_embedding.weight", &[config.units + 1, e])?;
    let adaptor = weights.tensor("adaptor.weight", &[config.hidden_size, wide])?;
    let table = graph.table("unit_embedding.weight", &table, e, precision);
    let rows = graph.look_up(&table, units); // [1, G, e]
    let rows = graph.reshape(&rows, &[1, wide]);
    Ok(graph.scope("adaptor", |g| g.linear(&rows, &adaptor, None, precision)))
}

fn place(graph: &mut Graph, config: &Config, position: &Value) -> Position {
    let (context, dh) = (config.max_position_embeddings, config.head_dim);
    let (cos, mut sin) = rope_tables(dh, config.rope_theta, 0, context);
    for row in sin.chunks_exact_mut(dh) {
        row[..dh / 2].iter_mut().for_each(|s| *s = -*s);
    }
    let cos = graph.constant_f32("cos", &[context, dh], &cos);
    let sin = graph.constant_f32("sin", &[context, dh], &sin);
    let (cos, sin) = (graph.gather(&cos, position), graph.gather(&sin, position)); // [1, dh]

    let rows: Vec<i64> = (0..context as i64).collect();
    let rows = graph.constant_i64("rows", &[1, 1, context], &rows);
    let filled = graph.less(&rows, position);
    let (shown, hidden) = (graph.scalar(0.0), graph.scalar(MASKED));
    let past = graph.select(&filled, &shown, &hidden); // [1, 1, C]
    let new = graph.constant_f32("new", &[1, 1, 1], &[0.0]);
    let mask = graph.concat(&[&past, &new], 2);
    Position { cos, sin, mask }
}

/// Grouped-query attention of one new position over the cache and itself: `[1, (H + 2 KV) dh]` to `[1, H dh]`.
fn attend(graph: &mut Graph, sizes: Sizes, layer: usize, qkv: &Value, cache: &(Value, Value), place: &Position) -> Value {
    let Sizes { heads, kv_heads: kv, head_dim: dh, .. } = sizes;
    let share = heads / kv;
    let context = cache.0.shape()[1];
    let turned = heads + kv; // queries and keys turn together
    let rows = graph.reshape(qkv, &[turned + kv, dh]);
    let qk = graph.slice(&rows, 0, 0, turned);
    let low = graph.slice(&qk, 1, 0, dh / 2);
    let high = graph.slice(&qk, 1, dh / 2, dh);
    let swapped = graph.concat(&[&high, &low], 1);
    let straight = graph.mul(&qk, &place.cos);
    let crossed = graph.mul(&swapped, &place.sin);
    let qk = graph.add(&straight, &crossed);

    let q = graph.slice(&qk, 0, 0, heads);
    let q = graph.reshape(&q, &[kv, share, dh]); // query head i reads key head i / share
    let k = graph.slice(&qk, 0, heads, turned);
    let k = graph.reshape(&k, &[kv, 1, dh]);
    let v = graph.slice(&rows, 0, turned, turned + kv);
    let v = graph.reshape(&v, &[kv, 1, dh]);
    graph.output(&format!("cache.key.{layer}.new"), &k);
    graph.output(&format!("cache.value.{layer}.new"), &v);

    let past = graph.transpose(&cache.0, &[0, 2, 1]);
    let past = graph.matmul(&q, &past); // [KV, share, C]
    let now = graph.transpose(&k, &[0, 2, 1]);
    let now = graph.matmul(&q, &now); // [KV, share, 1]
    let scores = graph.concat(&[&past, &now], 2);
    let scores = graph.add(&scores, &place.mask);
    let shares = graph.softmax(&scores);
    let past = graph.slice(&shares, 2, 0, context);
    let past = graph.matmul(&past, &cache.1); // [KV, share, dh]
    let now = graph.slice(&shares, 2, context, context + 1);
    let now = graph.mul(&now, &v);
    let mixed = graph.add(&past, &now);
    graph.reshape(&mixed, &[1, heads * dh])
}
