//! lm.onnx: one text token or one group of units in; text logits, hidden state and the new rows of the cache out. A trunk without
//! speech weights reads text only, and has neither the input `units` nor `is_group`.
//!
//! The cache belongs to the runtime: the graph reads `position` rows of it and returns one new row a layer, so
//! nothing is copied. Rows from `position` on are masked.
//!
//! A trunk that is too large to be loaded at once is drawn as [`pieces`]: graphs of some layers each, that are run one after another.

use std::ops::Range;

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

/// The layers that a graph holds: all of them, or some. The graph of the first layer reads tokens, others the row `x` that came out of
/// the piece before; that of the last gives logits and hidden state, others the row `y`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    layers: Range<usize>,
    of: usize,
}

impl Piece {
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    pub fn is_last(&self) -> bool {
        self.layers.end == self.of
    }
}

/// A trunk's layers in pieces whose blocks have at most so many weights, or one layer.
pub fn pieces(config: &Config, most: usize) -> Vec<Piece> {
    let (of, step) = (config.num_hidden_layers, (most / block_weights(config).max(1)).max(1));
    // The embedding and the logits' product count as well, where that makes one piece of all.
    if weights(config) <= most {
        return vec![Piece { layers: 0..of, of }];
    }
    (0..of).step_by(step).map(|start| Piece { layers: start..(start + step).min(of), of }).collect()
}

/// Weights of the matrices of a graph: the embedding, the blocks, and the logits' product. A configuration can promise any number; what
/// is beyond the greatest is that.
pub fn weights(config: &Config) -> usize {
    product(&[config.num_hidden_layers, block_weights(config)]).saturating_add(product(&[2, config.hidden_size, config.vocab_size]))
}

/// Bytes that they take in a file, at the least: scales and what is stored more exactly are not counted, but for the embedding, which has
/// 16 bits where products have fewer. In single precision a tied one is there once.
pub fn bytes(config: &Config, precision: Precision) -> usize {
    let table = product(&[config.hidden_size, config.vocab_size]);
    let tables = if shares_table(config, precision) { 2 } else { 1 };
    let products = weights(config).saturating_sub(product(&[tables, table]));
    (products / 8).saturating_mul(precision.bits()).saturating_add((table / 8).saturating_mul(precision.bits().max(16)))
}

/// Are the logits products with the rows of the embedding itself? In fewer bits the two are stored differently.
pub fn shares_table(config: &Config, precision: Precision) -> bool {
    config.tie_word_embeddings && precision == Precision::Fp32
}

fn block_weights(config: &Config) -> usize {
    let wide = product(&[config.num_attention_heads.saturating_add(config.num_key_value_heads), config.head_dim]);
    product(&[2, config.hidden_size, wide]).saturating_add(product(&[3, config.hidden_size, config.intermediate_size]))
}

fn product(sizes: &[usize]) -> usize {
    sizes.iter().copied().fold(1, usize::saturating_mul)
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
    let of = config.num_hidden_layers;
    draw_piece(config, trunk, speech, &Piece { layers: 0..of, of }, form)
}

/// Draws a piece of a trunk.
pub fn draw_piece<'a>(
    config: &Config,
    trunk: &Weights,
    speech: Option<&Weights>,
    piece: &Piece,
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
    let row = match piece.is_first() {
        true => Row::Heard(heard(g, config, speech)),
        false => Row::Computed(g.input("x", DataType::F32, &[1, d])),
    };
    let position = g.input("position", DataType::I64, &[1]);
    let caches: Vec<(Value, Value)> = (piece.layers.clone())
        .map(|i| {
            let key = g.input(&format!("cache.key.{i}"), DataType::F32, &[kv, context, dh]);
            (key, g.input(&format!("cache.value.{i}"), DataType::F32, &[kv, context, dh]))
        })
        .collect();

    let (mut x, table) = match row {
        Row::Heard(heard) => {
            let (x, table) = embedded(g, config, weights, heard, precision)?;
            (x, Some(table))
        }
        Row::Computed(x) => (x, None),
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
    for (i, cache) in piece.layers.clone().zip(&caches) {
        let name = format!("model.layers.{i}");
        x = block(g, weights, &name, sizes, &x, precision, |g, qkv| attend(g, sizes, i, qkv, cache, &place))?;
    }
    if !piece.is_last() {
        g.output("y", &x);
        return StageGraph::new(StageName::Lm, graph, precision, 1, 0.0);
    }
    let weight = weights.tensor("model.norm.weight", &[d])?;
    let hidden = g.scope("model.norm", |g| g.rms_norm(&x, &weight, config.rms_norm_eps as f32));
    let logits = match table.filter(|_| shares_table(config, precision)) {
        Some(table) => g.scope("lm_head", |g| g.linear_of_table(&hidden, &table)),
        None => {
            // Read once more where it is the embedding: memory is dearer than the second that this takes.
            let head = if config.tie_word_embeddings { EMBEDDING } else { "lm_head.weight" };
            let head = weights.tensor(head, &[vocabulary, d])?;
            g.scope("lm_head", |g| g.linear(&hidden, &head, None, precision))
        }
    };
    g.output("logits", &logits);
    g.output("hidden", &hidden);
    StageGraph::new(StageName::Lm, graph, precision, 1, 0.0)
}

/// What a piece computes on.
enum Row<'a> {
    /// The inputs of the first one.
    Heard(Heard<'a>),
    Computed(Value),
}

/// The token, and where it reads speech the units, whether it is they that count, and the weights of their rows.
struct Heard<'a> {
    token: Value,
    spoken: Option<(&'a Weights, Value, Value)>,
}

fn heard<'a>(graph: &mut Graph, config: &Config, speech: Option<&'a Weights>) -> Heard<'a> {
    let token = graph.input("token", DataType::I64, &[1]);
    let spoken = speech.map(|speech| {
        let units = graph.input("units", DataType::I64, &[1, config.group]);
        (speech, units, graph.input("is_group", DataType::F32, &[1]))
    });
    Heard { token, spoken }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

/// The row `[1, d]` of a token or group, and the table of the tokens' rows.
fn embedded(g: &mut Graph, config: &Config, weights: &Weights, heard: Heard, precision: Precision) -> Result<(Value, Value), WeightsError> {
    let embedding = weights.tensor(EMBEDDING, &[config.vocab_size, config.hidden_size])?;
    let table = g.table(EMBEDDING, &embedding, config.hidden_size, precision);
    drop(embedding);
    let text = g.look_up(&table, &heard.token);
    let row = match heard.spoken {
        Some((speech, units, is_group)) => {
            let group = group_row(g, speech, config, &units, precision)?;
            let is_text = g.neg(&is_group);
            let is_text = g.add_scalar(&is_text, 1.0);
            let text = g.mul(&text, &is_text);
            let group = g.mul(&group, &is_group);
            g.add(&text, &group)
        }
        None => text,
    };
    Ok((row, table))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_public_trunks_and_of_impossible_ones() {
        let trunk = |hidden_size, intermediate_size, num_hidden_layers, num_attention_heads| Config {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: 2,
            head_dim: 128,
            ..Config::nano(151_936, 1)
        };
        // Qwen2.5 of 1.5 and 3 billion weights, with the embedding twice.
        let (small, large) = (trunk(1536, 8960, 28, 12), trunk(2048, 11_008, 36, 16));
        assert_eq!((weights(&small) / 1_000_000, weights(&large) / 1_000_000), (1776, 3396));
        let file = (1 << 31) - 1;
        let fits = |config: &Config| Precision::ALL.map(|form| bytes(config, form) <= file);
        assert_eq!((fits(&small), fits(&large)), ([false, false, true, true, true], [false; 5]));
        // Qwen2.5-0.5B has the embedding once: 1.98 GB in single precision, and 2.52 GB if it were there twice.
        let tied = |tie_word_embeddings| Config { head_dim: 64, tie_word_embeddings, ..trunk(896, 4864, 24, 14) };
        assert_eq!((bytes(&tied(true), Precision::Fp32) / 1_000_000, fits(&tied(true))), (1975, [true; 5]));
        assert!(!fits(&tied(false))[0]);
        let most = 1 << 24;
        let hostile = Config { num_key_value_heads: most, head_dim: 1024, vocab_size: most, ..trunk(most, most, 16, most) };
        assert_eq!(weights(&hostile), usize::MAX);
        assert!(bytes(&hostile, Precision::Int4) > file);
        assert_eq!(pieces(&hostile, 1 << 24).len(), 16);
    }
}
