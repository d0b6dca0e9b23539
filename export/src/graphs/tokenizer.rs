//! tokenizer.onnx: 320 ms of audio to eight units (nano HuBERT, with the log-mel front end and the nearest centroid).

use sa_device::bundle::StageName;
use sa_models::audio::{BINS, HOP, LOG_FLOOR, MELS, WINDOW, dft_matrix, hann, mel_filters};
use sa_models::tokenizer::TokenizerConfig;
use sa_models::tokenizer::config::UNIT_SAMPLES;

use super::{StageGraph, depthwise, nearest, rolling_state};
use crate::onnx::{DataType, Form, Graph, Precision, Value};
use crate::weights::{Weights, WeightsError};

/// Epsilon of the network's LayerNorms (Burn's default).
const NORM_EPSILON: f32 = 1e-5;
/// Added to the scores of empty places of the context.
const MASKED: f32 = -1e9;

/// Draws the graph. With `features` the rows before the nearest centroid come out too (`features` f32 `[1, 8, d]`):
/// for the proof; a bundle's graph gives units only.
pub fn draw<'a>(
    config: &TokenizerConfig,
    weights: &Weights,
    form: impl Into<Form<'a>>,
    features: bool,
) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let (d, samples) = (config.width, config.chunk_samples());
    let mut graph = Graph::new(
        "tokenizer",
        "Causal streaming HuBERT: 16 kHz audio to units at 25 Hz. Log-mel, two strided convolutions, blocks of depthwise \
         convolution, chunked attention and feed-forward, nearest centroid.",
    );
    graph.form(&form);
    let g = &mut graph;
    let audio = g.input("audio", DataType::F32, &[1, samples]);
    let mel = log_mel(g, &audio); // [32, 64]

    let mut x = g.scope("stem1", |g| strided(g, weights, "stem1", &mel, d, precision))?; // [16, d]
    x = g.relu(&x);
    x = g.scope("stem2", |g| strided(g, weights, "stem2", &x, d, precision))?; // [8, d]

    // Which places of the context are filled: the same for all blocks.
    let (context, chunk) = (config.context(), config.chunk);
    let valid = g.input("state.valid", DataType::F32, &[1, context]);
    let ones = g.constant_f32("ones", &[1, chunk], &vec![1.0; chunk]);
    let seen = g.concat(&[&valid, &ones], 1); // [1, S + 8]
    let valid = g.slice(&seen, 1, chunk, chunk + context);
    g.output("state.valid.next", &valid);
    let empty = g.add_scalar(&seen, -1.0);
    let mask = g.mul_scalar(&empty, -MASKED);
    let mask = g.reshape(&mask, &[1, 1, context + chunk]);

    for i in 0..config.layer {
        x = g.scope(&format!("blocks.{i}"), |g| block(g, weights, config, i, &x, &mask, precision))?;
    }
    // The last layer is quantised after the final norm, an inner one as it is.
    if config.layer == config.layers {
        let (weight, bias) = (weights.tensor("norm.weight", &[d])?, weights.tensor("norm.bias", &[d])?);
        x = g.scope("norm", |g| g.layer_norm(&x, &weight, &bias, NORM_EPSILON));
    }
    let centroids = weights.tensor("centroids", &[config.units, d])?;
    let units = g.scope("centroids", |g| nearest(g, &centroids, &x));
    let units = g.reshape(&units, &[1, chunk]);
    g.output("units", &units);
    if features {
        let rows = g.reshape(&x, &[1, chunk, d]);
        g.output("features", &rows);
    }

    // Phones come `lag` units after their sound: the runtime waits for those of the last sound.
    let latency_ms = 1000.0 * (samples + config.lag * UNIT_SAMPLES) as f64 / 16_000.0;
    StageGraph::new(StageName::Tokenizer, graph, precision, samples, latency_ms)
}

/// Log-mel frames of a chunk: `[1, n]` to `[n / 160, 64]`. The windows are joined from hops, and the DFT is a product
/// with one matrix of cosines and sines.
fn log_mel(graph: &mut Graph, audio: &Value) -> Value {
    let overlap = WINDOW - HOP;
    let samples = audio.shape()[1];
    let frames = samples / HOP;
    graph.scope("log_mel", |g| {
        let past = g.input("state.audio", DataType::F32, &[1, overlap]);
        let joined = g.concat(&[&past, audio], 1); // [1, 240 + n]
        let kept = g.slice(&joined, 1, samples, samples + overlap);
        g.output("state.audio.next", &kept);
        let mut hops = |from: usize| {
            let part = g.slice(&joined, 1, from, from + samples);
            g.reshape(&part, &[frames, HOP])
        };
        // A window is two and a half hops; its last half hop ends the hop that starts `overlap` in.
        let (first, second, last) = (hops(0), hops(HOP), hops(overlap));
        let last = g.slice(&last, 1, 2 * HOP - overlap, HOP);
        let windows = g.concat(&[&first, &second, &last], 1); // [T, 400]

        let dft = g.constant_f32("dft", &[WINDOW, 2 * BINS], &dft_matrix(&hann(WINDOW)));
        let spectrum = g.matmul(&windows, &dft); // [T, 2 · 201]
        let power = g.mul(&spectrum, &spectrum);
        // The filters stand twice: their product adds the squares of the real and the imaginary parts.
        let filters = g.constant_f32("filters", &[2 * BINS, MELS], &mel_filters(WINDOW, MELS).repeat(2));
        let mel = g.matmul(&power, &filters); // [T, 64]
        let raised = g.add_scalar(&mel, LOG_FLOOR);
        let log = g.log(&raised);
        let shifted = g.add_scalar(&log, 4.0);
        g.mul_scalar(&shifted, 0.25)
    })
}

/// Causal convolution of kernel 4 and stride 2 as one product over neighbouring pairs: `[2T, c]` to `[T, d]`.
fn strided(graph: &mut Graph, weights: &Weights, name: &str, x: &Value, d: usize, precision: Precision) -> Result<Value, WeightsError> {
    let (rows, c) = (x.shape()[0], x.shape()[1]);
    let weight = weights.tensor(&format!("{name}.weight"), &[d, 4 * c])?;
    let bias = weights.tensor(&format!("{name}.bias"), &[d])?;
    let joined = rolling_state(graph, name, x, 2); // [2 + 2T, c]
    let pairs = graph.reshape(&joined, &[rows / 2 + 1, 2 * c]);
    let before = graph.slice(&pairs, 0, 0, rows / 2);
    let now = graph.slice(&pairs, 0, 1, rows / 2 + 1);
    let windows = graph.concat(&[&before, &now], 1); // [T, 4c]
    Ok(graph.linear(&windows, &weight, Some(&bias), precision))
}

/// A block on `x` `[T, d]`.
fn block(
    graph: &mut Graph,
    weights: &Weights,
    config: &TokenizerConfig,
    i: usize,
    x: &Value,
    mask: &Value,
    precision: Precision,
) -> Result<Value, WeightsError> {
    let (d, t, f) = (config.width, x.shape()[0], config.feed_forward);
    let tensor = |field: &str, shape: &[usize]| weights.tensor(&format!("blocks.{i}.{field}"), shape);

    // x + dwconv(x): the residual is one more on the tap of the present frame.
    let mut taps = tensor("conv", &[config.kernel, d])?;
    taps[(config.kernel - 1) * d..].iter_mut().for_each(|tap| *tap += 1.0);
    let joined = rolling_state(graph, &format!("conv.{i}"), x, config.kernel - 1);
    let x = depthwise(graph, &joined, &taps, None, precision);

    // Queries, keys and values in one product; the softmax scale sits in the query weights.
    let scale = 1.0 / (config.head_width() as f32).sqrt();
    let scaled = |values: Vec<f32>| values.into_iter().map(|w| w * scale).collect::<Vec<_>>();
    let mut product = scaled(tensor("query.weight", &[d, d])?);
    product.extend(tensor("key.weight", &[d, d])?);
    product.extend(tensor("value.weight", &[d, d])?);
    let mut product_bias = scaled(tensor("query.bias", &[d])?);
    product_bias.extend(vec![0.0; d]);
    product_bias.extend(tensor("value.bias", &[d])?);
    let (output, output_bias) = (tensor("output.weight", &[d, d])?, tensor("output.bias", &[d])?);
    let (norm1, norm1_bias) = (tensor("norm1.weight", &[d])?, tensor("norm1.bias", &[d])?);
    let attended = graph.scope("attention", |g| {
        let normed = g.layer_norm(&x, &norm1, &norm1_bias, NORM_EPSILON);
        let qkv = g.linear_in_parts(&normed, &product, &product_bias, 3, precision); // [T, d] each
        let heads = |g: &mut Graph, part: usize| {
            let rows = qkv.part(g, part);
            let rows = g.reshape(&rows, &[t, config.heads, config.head_width()]);
            g.transpose(&rows, &[1, 0, 2]) // [H, T, h]
        };
        let (q, k, v) = (heads(g, 0), heads(g, 1), heads(g, 2));
        let k = window(g, &format!("key.{i}"), &k, config.context()); // [H, S + T, h]
        let v = window(g, &format!("value.{i}"), &v, config.context());
        let k = g.transpose(&k, &[0, 2, 1]);
        let scores = g.matmul(&q, &k);
        let scores = g.add(&scores, mask);
        let shares = g.softmax(&scores); // [H, T, S + T]
        let mixed = g.matmul(&shares, &v);
        let mixed = g.transpose(&mixed, &[1, 0, 2]);
        let mixed = g.reshape(&mixed, &[t, d]);
        g.scope("output", |g| g.linear(&mixed, &output, Some(&output_bias), precision))
    });
    let x = graph.add(&x, &attended);

    let (norm2, norm2_bias) = (tensor("norm2.weight", &[d])?, tensor("norm2.bias", &[d])?);
    let (up, up_bias) = (tensor("up.weight", &[f, d])?, tensor("up.bias", &[f])?);
    let (down, down_bias) = (tensor("down.weight", &[d, f])?, tensor("down.bias", &[d])?);
    let update = graph.scope("feed_forward", |g| {
        let normed = g.layer_norm(&x, &norm2, &norm2_bias, NORM_EPSILON);
        let hidden = g.scope("up", |g| g.linear(&normed, &up, Some(&up_bias), precision));
        let hidden = g.relu(&hidden);
        g.scope("down", |g| g.linear(&hidden, &down, Some(&down_bias), precision))
    });
    Ok(graph.add(&x, &update))
}

/// Keys or values `[H, T, h]` behind the rolling window of the context, `[H, S + T, h]`.
fn window(graph: &mut Graph, name: &str, rows: &Value, context: usize) -> Value {
    let (heads, t, h) = (rows.shape()[0], rows.shape()[1], rows.shape()[2]);
    let state = graph.input(&format!("state.{name}"), DataType::F32, &[1, heads, context, h]);
    let past = graph.reshape(&state, &[heads, context, h]);
    let joined = graph.concat(&[&past, rows], 1);
    let kept = graph.slice(&joined, 1, t, t + context);
    let kept = graph.reshape(&kept, &[1, heads, context, h]);
    graph.output(&format!("state.{name}.next"), &kept);
    joined
}
