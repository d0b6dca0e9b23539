//! A public unit HiFi-GAN as a streaming decoder: a window of units slides along, and the samples of those in its middle come out.
//!
//! Unlike HuBERT, a HiFi-GAN sees a bounded distance (`reach`): with so many units on both sides the window gives exactly what the
//! whole utterance would, and with fewer nearly that.

use sa_device::bundle::StageName;

use super::{StageGraph, Window};
use crate::import::hifigan::HifiGan;
use crate::onnx::{DataType, Form, Graph, Precision, Value};
use crate::weights::WeightsError;

/// Slope of the leaky ReLUs, and of the last one (PyTorch's default).
const SLOPE: f32 = 0.1;
const LAST_SLOPE: f32 = 0.01;

/// Draws the streaming graph: `units` `[1, chunk]` in, `audio` `[1, chunk · hop]` out, `look_ahead` units late. Unit k, the padding
/// before and after an utterance, sounds like nothing: its embedding is zeros.
pub fn draw<'a>(gan: &HifiGan, window: Window, form: impl Into<Form<'a>>) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let Window { look_back, chunk, look_ahead } = window;
    let (hop, d, k) = (gan.config.hop(), gan.config.embedding_dim, gan.config.num_embeddings);
    let mut graph = Graph::new("decoder", "A unit HiFi-GAN in a sliding window of units: samples of the chunk in its middle.");
    graph.form(&form);
    let units = graph.input("units", DataType::I64, &[1, chunk]);
    let mut table = gan.embeddings()?;
    table.extend(vec![0.0; d]);
    let table = graph.table("embeddings", &table, d, precision);
    debug_assert_eq!(table.shape(), [k + 1, d]);
    let flat = graph.reshape(&units, &[chunk]);
    let new = graph.look_up(&table, &flat); // [chunk, d]
    let all = if look_back + look_ahead > 0 { super::rolling_state(&mut graph, "units", &new, look_back + look_ahead) } else { new };
    let audio = generator(&mut graph, gan, &all, precision)?; // [1, n · hop]
    let middle = graph.slice(&audio, 1, look_back * hop, (look_back + chunk) * hop);
    graph.output("audio", &middle);
    let latency_ms = 1000.0 * (look_ahead * hop) as f64 / 16_000.0;
    graph.metadata("look_back", look_back);
    graph.metadata("look_ahead", look_ahead);
    StageGraph::new(StageName::Decoder, graph, precision, chunk, latency_ms)
}

/// Draws the offline graph over exactly `count` units: `units` `[1, count]` in, `audio` `[1, count · hop]` out.
pub fn draw_offline(gan: &HifiGan, count: usize, precision: Precision) -> Result<StageGraph, WeightsError> {
    draw(gan, Window { look_back: 0, chunk: count, look_ahead: 0 }, precision)
}

/// Embeddings `[n, d]` to samples `[1, n · hop]`.
fn generator(graph: &mut Graph, gan: &HifiGan, x: &Value, precision: Precision) -> Result<Value, WeightsError> {
    let config = &gan.config;
    let (n, d) = (x.shape()[0], x.shape()[1]);
    let columns = graph.transpose(x, &[1, 0]);
    let columns = graph.reshape(&columns, &[1, d, n]);
    let mut x = convolution(graph, gan, "conv_pre", &columns, config.upsample_initial_channel, 7, 1, precision)?;
    for (i, (rate, kernel)) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).enumerate() {
        let (inputs, outputs) = (x.shape()[1], config.channels(i));
        let name = format!("ups.{i}");
        let (weight, bias) = gan.convolution(&name, [inputs, outputs, *kernel], outputs)?;
        x = graph.scope(&name, |g| {
            let active = g.leaky_relu(&x, SLOPE);
            let weight = g.kernel(&weight, &[inputs, outputs, *kernel], precision);
            let bias = g.constant_f32("bias", &[outputs], &bias);
            g.conv_transpose(&active, &weight, &bias, *rate, (kernel - rate) / 2)
        });
        let blocks = config.resblock_kernel_sizes.len();
        let mut sum: Option<Value> = None;
        for (j, (kernel, dilations)) in config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes).enumerate() {
            let y = resblock(graph, gan, i * blocks + j, &x, *kernel, dilations, precision)?;
            sum = Some(sum.map_or_else(|| y.clone(), |sum| graph.add(&sum, &y)));
        }
        let sum = sum.unwrap_or(x);
        x = graph.mul_scalar(&sum, 1.0 / blocks as f32);
    }
    let active = graph.leaky_relu(&x, LAST_SLOPE);
    let y = convolution(graph, gan, "conv_post", &active, 1, 7, 1, precision)?;
    let y = graph.tanh(&y);
    let samples = y.shape()[2];
    Ok(graph.reshape(&y, &[1, samples]))
}

fn resblock(
    graph: &mut Graph,
    gan: &HifiGan,
    number: usize,
    x: &Value,
    kernel: usize,
    dilations: &[usize],
    precision: Precision,
) -> Result<Value, WeightsError> {
    let channels = x.shape()[1];
    let mut x = x.clone();
    for (k, dilation) in dilations.iter().enumerate() {
        let active = graph.leaky_relu(&x, SLOPE);
        let y = if gan.config.resblock == "1" {
            let y = convolution(graph, gan, &format!("resblocks.{number}.convs1.{k}"), &active, channels, kernel, *dilation, precision)?;
            let y = graph.leaky_relu(&y, SLOPE);
            convolution(graph, gan, &format!("resblocks.{number}.convs2.{k}"), &y, channels, kernel, 1, precision)?
        } else {
            convolution(graph, gan, &format!("resblocks.{number}.convs.{k}"), &active, channels, kernel, *dilation, precision)?
        };
        x = graph.add(&x, &y);
    }
    Ok(x)
}

/// A convolution that keeps the length: `[1, c, T]` to `[1, outputs, T]`.
#[allow(clippy::too_many_arguments)]
fn convolution(
    graph: &mut Graph,
    gan: &HifiGan,
    name: &str,
    x: &Value,
    outputs: usize,
    kernel: usize,
    dilation: usize,
    precision: Precision,
) -> Result<Value, WeightsError> {
    let shape = [outputs, x.shape()[1], kernel];
    let (weight, bias) = gan.convolution(name, shape, outputs)?;
    Ok(graph.scope(name, |g| {
        let weight = g.kernel(&weight, &shape, precision);
        let bias = g.constant_f32("bias", &[outputs], &bias);
        g.conv_same(x, &weight, &bias, dilation)
    }))
}
