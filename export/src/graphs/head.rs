//! head.onnx: the hidden state before a group to the logits of its G units (the GroupModel).

use sa_device::bundle::StageName;
use sa_models::lm::Config;

use super::StageGraph;
use super::transformer::{Sizes, block};
use crate::onnx::{DataType, Form, Graph, Value};
use crate::weights::{Weights, WeightsError};

/// Draws the graph.
pub fn draw<'a>(config: &Config, weights: &Weights, form: impl Into<Form<'a>>) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let (d, group, outputs) = (config.hidden_size, config.group, config.units + 1);
    let mut graph =
        Graph::new("head", "GroupModel: the hidden state joined by G learnt queries through a small encoder; unit logits of one group.");
    graph.form(&form);
    let g = &mut graph;
    let hidden = g.input("hidden", DataType::F32, &[1, d]);
    let input = weights.tensor("head.input.weight", &[d, d])?;
    let queries = weights.tensor("head.queries", &[group, d])?;
    let state = g.scope("head.input", |g| g.linear(&hidden, &input, None, precision));
    let queries = g.constant_f32("head.queries", &[group, d], &queries);
    let mut x = g.concat(&[&state, &queries], 0); // [1 + G, d]

    let sizes = Sizes {
        width: d,
        heads: config.head.num_attention_heads,
        kv_heads: config.head.num_attention_heads,
        head_dim: config.head.head_dim,
        hidden: config.head.intermediate_size,
        bias: false,
        epsilon: config.rms_norm_eps as f32,
    };
    for i in 0..config.head.num_hidden_layers {
        x = block(g, weights, &format!("head.layers.{i}"), sizes, &x, precision, |g, qkv| attend(g, sizes, qkv))?;
    }
    let x = g.slice(&x, 0, 1, 1 + group);
    let weight = weights.tensor("head.norm.weight", &[d])?;
    let output = weights.tensor("head.output.weight", &[outputs, d])?;
    let x = g.scope("head.norm", |g| g.rms_norm(&x, &weight, config.rms_norm_eps as f32));
    let logits = g.scope("head.output", |g| g.linear(&x, &output, None, precision)); // [G, k + 1]
    let logits = g.reshape(&logits, &[1, group, outputs]);
    g.output("unit_logits", &logits);
    StageGraph::new(StageName::Head, graph, precision, 1, 0.0)
}

/// Draws a head of one product: `hidden` `[1, d]` to `unit_logits` `[1, G, k + 1]` (SLAM-Omni).
pub fn draw_linear<'a>(config: &Config, weights: &Weights, form: impl Into<Form<'a>>) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let (d, group, outputs) = (config.hidden_size, config.group, config.units + 1);
    let mut graph = Graph::new("head", "One product from the hidden state to the unit logits of a whole group.");
    graph.form(&form);
    let g = &mut graph;
    let hidden = g.input("hidden", DataType::F32, &[1, d]);
    let output = weights.tensor("head.output.weight", &[group * outputs, d])?;
    let logits = g.scope("head.output", |g| g.linear(&hidden, &output, None, precision));
    let logits = g.reshape(&logits, &[1, group, outputs]);
    g.output("unit_logits", &logits);
    StageGraph::new(StageName::Head, graph, precision, 1, 0.0)
}

/// Draws a head of small steps (DrVoice): `hidden` `[1, d]` to `unit_logits` `[1, G, k + 1]`. Step i of G reads its own projection of the
/// hidden state and the unit that step i - 1 liked best, and attends to the steps before it. All steps are in the one graph.
pub fn draw_depth<'a>(config: &Config, width: usize, weights: &Weights, form: impl Into<Form<'a>>) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let (d, group, outputs) = (config.hidden_size, config.group, config.units + 1);
    let mut graph = Graph::new(
        "head",
        "A small causal transformer of G steps: each reads the hidden state and the unit before; unit logits of one group.",
    );
    graph.form(&form);
    let g = &mut graph;
    let hidden = g.input("hidden", DataType::F32, &[1, d]);
    let input = weights.tensor("head.input.weight", &[group * width, d])?;
    let embedding = weights.tensor("head.embedding.weight", &[outputs, width])?;
    let norm = weights.tensor("head.norm.weight", &[width])?;
    let output = weights.tensor("head.output.weight", &[outputs, width])?;
    let epsilon = config.rms_norm_eps as f32;
    let inputs = g.scope("head.input", |g| g.linear(&hidden, &input, None, precision)); // [1, G w]
    let table = g.table("head.embedding.weight", &embedding, width, precision);
    let sizes = Sizes {
        width,
        heads: config.head.num_attention_heads,
        kv_heads: config.head.num_attention_heads,
        head_dim: config.head.head_dim,
        hidden: config.head.intermediate_size,
        bias: false,
        epsilon,
    };
    // Keys and values of the steps so far, a layer.
    let mut seen: Vec<Option<(Value, Value)>> = vec![None; config.head.num_hidden_layers];
    let mut before: Option<Value> = None;
    let mut steps = Vec::with_capacity(group);
    for step in 0..group {
        let mut x = g.slice(&inputs, 1, step * width, (step + 1) * width);
        if let Some(unit) = &before {
            let said = g.look_up(&table, unit);
            x = g.add(&x, &said);
        }
        for (i, seen) in seen.iter_mut().enumerate() {
            x = block(g, weights, &format!("head.layers.{i}"), sizes, &x, precision, |g, qkv| attend_back(g, sizes, qkv, seen))?;
        }
        let x = g.scope("head.norm", |g| g.rms_norm(&x, &norm, epsilon));
        let logits = g.scope("head.output", |g| g.linear(&x, &output, None, precision)); // [1, k + 1]
        let worst = g.neg(&logits);
        before = Some(g.arg_min(&worst));
        steps.push(logits);
    }
    let logits = g.concat(&steps.iter().collect::<Vec<_>>(), 0);
    let logits = g.reshape(&logits, &[1, group, outputs]);
    g.output("unit_logits", &logits);
    StageGraph::new(StageName::Head, graph, precision, 1, 0.0)
}

/// Attention of one more step to itself and those before, which `seen` holds: `[1, 3 H dh]` to `[1, H dh]`.
fn attend_back(graph: &mut Graph, sizes: Sizes, qkv: &Value, seen: &mut Option<(Value, Value)>) -> Value {
    let Sizes { heads, head_dim: dh, .. } = sizes;
    let part = |g: &mut Graph, part: usize| {
        let row = g.slice(qkv, 1, part * heads * dh, (part + 1) * heads * dh);
        g.reshape(&row, &[heads, 1, dh])
    };
    let (q, mut k, mut v) = (part(graph, 0), part(graph, 1), part(graph, 2));
    if let Some((keys, values)) = seen {
        k = graph.concat(&[keys, &k], 1);
        v = graph.concat(&[values, &v], 1);
    }
    *seen = Some((k.clone(), v.clone()));
    let k = graph.transpose(&k, &[0, 2, 1]);
    let scores = graph.matmul(&q, &k); // [H, 1, steps]
    let shares = graph.softmax(&scores);
    let mixed = graph.matmul(&shares, &v);
    graph.reshape(&mixed, &[1, heads * dh])
}

/// Attention of all positions to all, without positions: `[n, 3 H dh]` to `[n, H dh]`.
fn attend(graph: &mut Graph, sizes: Sizes, qkv: &Value) -> Value {
    let Sizes { heads, head_dim: dh, .. } = sizes;
    let n = qkv.shape()[0];
    let split = |g: &mut Graph, part: usize| {
        let rows = g.slice(qkv, 1, part * heads * dh, (part + 1) * heads * dh);
        let rows = g.reshape(&rows, &[n, heads, dh]);
        g.transpose(&rows, &[1, 0, 2]) // [H, n, dh]
    };
    let (q, k, v) = (split(graph, 0), split(graph, 1), split(graph, 2));
    let k = graph.transpose(&k, &[0, 2, 1]);
    let scores = graph.matmul(&q, &k);
    let shares = graph.softmax(&scores);
    let mixed = graph.matmul(&shares, &v);
    let mixed = graph.transpose(&mixed, &[1, 0, 2]);
    graph.reshape(&mixed, &[n, heads * dh])
}
