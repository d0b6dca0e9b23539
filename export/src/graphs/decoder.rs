//! decoder.onnx: two units to the eight frames that they complete (causal Vocos, up to log-magnitude and phase).
//!
//! The inverse STFT is the runtime's: sine, cosine and the FFT are several times faster outside the graph.

use sa_device::bundle::StageName;
use sa_models::decoder::DecoderConfig;

use super::{StageGraph, depthwise, rolling_state};
use crate::onnx::{DataType, Form, Graph, Precision, Value};
use crate::weights::{Weights, WeightsError};

/// Units of one run.
pub const CHUNK: usize = 2;
/// Epsilon of the network's normalisations.
const NORM_EPSILON: f32 = 1e-6;

/// Draws the graph. `initial` is the state after the start padding, in the order of the `state.*` inputs.
pub fn draw<'a>(
    config: &DecoderConfig,
    weights: &Weights,
    form: impl Into<Form<'a>>,
    initial: Vec<f32>,
) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let d = config.dimension;
    let mut graph = Graph::new(
        "decoder",
        "Causal Vocos: units at 25 Hz to log-magnitude and phase at 100 Hz. Frames are those of the units `look_ahead` before.",
    );
    graph.form(&form);
    let g = &mut graph;
    let units = g.input("units", DataType::I64, &[1, CHUNK]);

    // Normalising a row of the table is the same as normalising it after the look-up, once and for all.
    let rows = weights.tensor("embedding", &[config.units + 1, d])?;
    let (weight, bias) = (weights.tensor("norm.weight", &[d])?, weights.tensor("norm.bias", &[d])?);
    let table: Vec<f32> = rows.chunks_exact(d).flat_map(|row| normalised(row, &weight, &bias)).collect();
    let table = g.table("embedding", &table, d, precision);
    let x = g.look_up(&table, &units); // [1, 2, D]
    let mut x = g.reshape(&x, &[CHUNK, d]);

    for i in 0..config.unit_blocks {
        let look_ahead = if i == 0 { config.look_ahead } else { 0 };
        x = block(g, weights, &format!("unit_blocks.{i}"), config, config.unit_kernel, look_ahead, &x, precision)?;
    }
    let frames = CHUNK * config.upsampling;
    let weight = weights.tensor("upsample.weight", &[config.upsampling * d, d])?;
    let bias = weights.tensor("upsample.bias", &[config.upsampling * d])?;
    let wide = g.scope("upsample", |g| g.linear(&x, &weight, Some(&bias), precision));
    x = g.reshape(&wide, &[frames, d]);
    for i in 0..config.frame_blocks {
        x = block(g, weights, &format!("frame_blocks.{i}"), config, config.frame_kernel, 0, &x, precision)?;
    }

    let (weight, bias) = (weights.tensor("final_norm.weight", &[d])?, weights.tensor("final_norm.bias", &[d])?);
    let x = g.scope("final_norm", |g| g.layer_norm(&x, &weight, &bias, NORM_EPSILON));
    let (bins, width) = (config.bins(), config.head_width());
    let (weight, bias) = (weights.tensor("head.weight", &[width, d])?, weights.tensor("head.bias", &[width])?);
    let spectrum = g.scope("head", |g| g.linear_in_parts(&x, &weight, &bias, 2, precision)); // [8, bins] each
    for (i, name) in ["log_magnitude", "phase"].into_iter().enumerate() {
        let part = spectrum.part(g, i);
        let part = g.reshape(&part, &[1, frames, bins]);
        g.output(name, &part);
    }

    let latency_ms = 1000.0 * (config.look_ahead * config.unit_samples()) as f64 / 16_000.0;
    let mut stage = StageGraph::new(StageName::Decoder, graph, precision, CHUNK, latency_ms)?;
    stage.initial = Some(initial);
    Ok(stage)
}

/// A ConvNeXt block on `x` `[T, D]`; its convolution's memory becomes a state of the graph.
#[allow(clippy::too_many_arguments, reason = "they are the block's sizes, used once")]
fn block(
    graph: &mut Graph,
    weights: &Weights,
    name: &str,
    config: &DecoderConfig,
    kernel: usize,
    look_ahead: usize,
    x: &Value,
    precision: Precision,
) -> Result<Value, WeightsError> {
    let (d, f) = (config.dimension, config.feed_forward);
    let tensor = |field: &str, shape: &[usize]| weights.tensor(&format!("{name}.{field}"), shape);
    let taps = tensor("depthwise_weight", &[kernel, d])?;
    let depthwise_bias = tensor("depthwise_bias", &[d])?;
    let (norm_weight, norm_bias) = (tensor("norm.weight", &[d])?, tensor("norm.bias", &[d])?);
    let (expand, expand_bias) = (tensor("expand.weight", &[f, d])?, tensor("expand.bias", &[f])?);
    let (mut contract, mut contract_bias) = (tensor("contract.weight", &[d, f])?, tensor("contract.bias", &[d])?);
    // The layer scale multiplies the outputs of `contract`: its rows and bias take it in.
    for (i, scale) in tensor("scale", &[d])?.into_iter().enumerate() {
        contract[i * f..(i + 1) * f].iter_mut().for_each(|w| *w *= scale);
        contract_bias[i] *= scale;
    }

    let steps = x.shape()[0];
    Ok(graph.scope(name, |g| {
        let joined = rolling_state(g, name, x, kernel - 1); // [K - 1 + T, D]
        let mixed = depthwise(g, &joined, &taps, Some(&depthwise_bias), precision);
        let normed = g.layer_norm(&mixed, &norm_weight, &norm_bias, NORM_EPSILON);
        let hidden = g.linear(&normed, &expand, Some(&expand_bias), precision); // [T, F]
        let hidden = g.gelu(&hidden);
        let update = g.linear(&hidden, &contract, Some(&contract_bias), precision);
        let start = kernel - 1 - look_ahead;
        let residual = g.slice(&joined, 0, start, start + steps);
        g.add(&residual, &update)
    }))
}

/// LayerNorm of one row.
fn normalised(row: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let n = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(NORM_EPSILON)).sqrt();
    row.iter().zip(weight.iter().zip(bias)).map(|(&x, (&w, &b))| ((f64::from(x) - mean) * scale) as f32 * w + b).collect()
}
