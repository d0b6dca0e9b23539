//! A public HuBERT as a streaming tokenizer: a window of audio slides over the signal, and the network, which looks both ways, reads
//! the whole window at every step; the units of the frames in its middle come out.
//!
//! ```text
//! |<------- look-back ------->|<-- chunk -->|<- look-ahead ->|tail|        the tail is what the last frame sees beyond its hop
//!                              units of these
//! ```

use sa_device::bundle::StageName;

use super::{StageGraph, Window, nearest};
use crate::import::arrays::Array;
use crate::import::hubert::{Hubert, StemNorm};
use crate::onnx::{DataType, Form, Graph, Precision, Value};
use crate::weights::WeightsError;

/// Epsilon of PyTorch's group, layer and batch norms where no configuration names it.
const EPSILON: f32 = 1e-5;
/// Epsilon of the feature extractor's normalisation in transformers.
const AUDIO_EPSILON: f32 = 1e-7;

/// Draws the streaming graph of the first `layers` blocks with their codebook `[k, d]`: `audio` `[1, chunk · hop]` in, `units`
/// `[1, chunk]` out, which belong to the audio `look_ahead` units and a tail ago.
pub fn draw<'a>(
    hubert: &Hubert,
    layers: usize,
    codebook: &Array,
    window: Window,
    form: impl Into<Form<'a>>,
) -> Result<StageGraph, WeightsError> {
    let form = form.into();
    let precision = form.precision;
    let (hop, field) = (hubert.config.hop(), hubert.config.receptive_field());
    let samples = window.chunk * hop;
    let tail = tail(hubert);
    let total = (window.units() + tail) * hop;
    let kept = total - samples;
    let mut graph = Graph::new("tokenizer", "A HuBERT in a sliding window of audio: units of the chunk in its middle.");
    graph.form(&form);
    let audio = graph.input("audio", DataType::F32, &[1, samples]);
    let past = graph.input("state.audio", DataType::F32, &[1, kept]);
    let joined = graph.concat(&[&past, &audio], 1);
    let next = graph.slice(&joined, 1, samples, total);
    graph.output("state.audio.next", &next);
    let heard = graph.slice(&joined, 1, 0, window.units() * hop + field - hop);
    let features = features(&mut graph, hubert, layers, &heard, precision)?; // [units, d]
    let middle = graph.slice(&features, 0, window.look_back, window.look_back + window.chunk);
    let units = units(&mut graph, codebook, &middle);
    graph.output("units", &units);
    let latency_ms = 1000.0 * ((window.chunk + window.look_ahead + tail) * hop) as f64 / 16_000.0;
    graph.metadata("look_back", window.look_back);
    graph.metadata("look_ahead", window.look_ahead);
    graph.metadata("layer", layers);
    StageGraph::new(StageName::Tokenizer, graph, precision, samples, latency_ms)
}

/// Units that the last frame's receptive field reaches beyond its hop. Whole hops are kept, so that frames stand where they do offline.
pub fn tail(hubert: &Hubert) -> usize {
    let (hop, field) = (hubert.config.hop(), hubert.config.receptive_field());
    (field - hop).div_ceil(hop)
}

/// Draws the offline graph over exactly `samples` samples: `audio` `[1, samples]` in, `features` `[T, d]` out, and `units` `[1, T]`
/// where there is a codebook. What the streaming graph is held against.
pub fn draw_offline(
    hubert: &Hubert,
    layers: usize,
    codebook: Option<&Array>,
    samples: usize,
    precision: Precision,
) -> Result<StageGraph, WeightsError> {
    let mut graph = Graph::new("hubert", "A HuBERT over a whole recording.");
    let audio = graph.input("audio", DataType::F32, &[1, samples]);
    let features = features(&mut graph, hubert, layers, &audio, precision)?;
    graph.output("features", &features);
    if let Some(codebook) = codebook {
        let units = units(&mut graph, codebook, &features);
        graph.output("units", &units);
    }
    StageGraph::new(StageName::Tokenizer, graph, precision, samples, 1000.0 * samples as f64 / 16_000.0)
}

/// Hidden states behind block `layers`, `[1, n]` samples to `[T, d]`.
fn features(graph: &mut Graph, hubert: &Hubert, layers: usize, audio: &Value, precision: Precision) -> Result<Value, WeightsError> {
    let config = &hubert.config;
    let d = config.width;
    let audio = match config.normalise {
        true => {
            let (centred, root) = centred(graph, audio, -1, AUDIO_EPSILON);
            graph.div(&centred, &root)
        }
        false => audio.clone(),
    };
    let stem = stem(graph, hubert, &audio, precision)?; // [T, c]
    let channels = stem.shape()[1];
    let norm = ["weight", "bias"].map(|field| format!("feature_projection.layer_norm.{field}"));
    let norm = match config.projection_norm {
        true => Some((hubert.tensor(&norm[0], &[channels])?, hubert.tensor(&norm[1], &[channels])?)),
        false => None,
    };
    let weight = hubert.tensor("feature_projection.projection.weight", &[d, channels])?;
    let bias = hubert.tensor("feature_projection.projection.bias", &[d])?;
    let x = graph.scope("feature_projection", |g| {
        let normed = norm.map_or_else(|| stem.clone(), |(weight, bias)| g.layer_norm(&stem, &weight, &bias, config.epsilon));
        g.linear(&normed, &weight, Some(&bias), precision)
    });
    let positions = positions(graph, hubert, &x)?;
    let mut x = graph.add(&x, &positions);
    if !config.norm_first {
        x = layer_norm(graph, hubert, "encoder.layer_norm", &x)?;
    }
    for layer in 0..layers {
        x = block(graph, hubert, layer, &x, precision)?;
    }
    // Where norms come first, the last one belongs to the whole network: `hidden_states[-1]` has it, those before do not.
    if config.norm_first && layers == config.layers {
        x = layer_norm(graph, hubert, "encoder.layer_norm", &x)?;
    }
    Ok(x)
}

/// Less its mean over an axis, and the root of its variance.
fn centred(graph: &mut Graph, x: &Value, axis: i64, epsilon: f32) -> (Value, Value) {
    let mean = graph.mean_over(x, axis);
    let centred = graph.sub(x, &mean);
    let squared = graph.mul(&centred, &centred);
    let variance = graph.mean_over(&squared, axis);
    let shifted = graph.add_scalar(&variance, epsilon);
    let root = graph.sqrt(&shifted);
    (centred, root)
}

/// The convolutions over the waveform: `[1, n]` to `[T, c]`.
fn stem(graph: &mut Graph, hubert: &Hubert, audio: &Value, precision: Precision) -> Result<Value, WeightsError> {
    let config = &hubert.config;
    let mut x = graph.reshape(audio, &[audio.shape()[1], 1]);
    for (i, layer) in config.stem.iter().enumerate() {
        let inputs = x.shape()[1];
        let name = |field: &str| format!("feature_extractor.conv_layers.{i}.{field}");
        let weight = hubert.tensor(&name("conv.weight"), &[layer.channels, inputs, layer.kernel])?;
        let bias = if config.stem_bias { Some(hubert.tensor(&name("conv.bias"), &[layer.channels])?) } else { None };
        let normed = config.stem_norm == StemNorm::Layer || i == 0;
        let norm = match normed {
            true => Some((
                hubert.tensor(&name("layer_norm.weight"), &[layer.channels])?,
                hubert.tensor(&name("layer_norm.bias"), &[layer.channels])?,
            )),
            false => None,
        };
        x = graph.scope(&format!("stem.{i}"), |g| {
            let y = g.conv_rows(&x, &weight, bias.as_deref(), [layer.channels, layer.kernel], layer.stride, precision); // [T, c]
            let y = match (norm, config.stem_norm) {
                (Some((weight, bias)), StemNorm::Group) => {
                    // Each channel is a group: over time.
                    let weight = g.constant_f32("norm_weight", &[layer.channels], &weight);
                    let bias = g.constant_f32("norm_bias", &[layer.channels], &bias);
                    let (centred, root) = centred(g, &y, 0, EPSILON);
                    let scale = g.div(&weight, &root);
                    let scaled = g.mul(&centred, &scale);
                    g.add(&scaled, &bias)
                }
                (Some((weight, bias)), StemNorm::Layer) => g.layer_norm(&y, &weight, &bias, EPSILON),
                (None, _) => y,
            };
            g.gelu(&y)
        });
    }
    Ok(x)
}

/// Relative positions by a grouped convolution over time: `[T, d]` to `[T, d]`.
fn positions(graph: &mut Graph, hubert: &Hubert, x: &Value) -> Result<Value, WeightsError> {
    let config = &hubert.config;
    let (t, d, taps) = (x.shape()[0], config.width, config.position_kernel);
    let mut weight = hubert.position_weight()?;
    let mut bias = hubert.tensor("encoder.pos_conv_embed.conv.bias", &[d])?;
    // The batch norm stands before the convolution, whose padding must stay zero behind it: it cannot be folded into the weights.
    let scale_and_shift = match config.position_batch_norm {
        true => {
            let field = |name: &str| hubert.tensor(&format!("encoder.pos_conv_embed.batch_norm.{name}"), &[d]);
            let (gain, offset, mean, variance) = (field("weight")?, field("bias")?, field("running_mean")?, field("running_var")?);
            let scale: Vec<f32> = gain.iter().zip(&variance).map(|(gain, variance)| gain / (variance + EPSILON).sqrt()).collect();
            let shift: Vec<f32> = offset.iter().zip(&mean).zip(&scale).map(|((offset, mean), scale)| offset - mean * scale).collect();
            Some((scale, shift))
        }
        false => None,
    };
    Ok(graph.scope("positions", |g| {
        let x = match scale_and_shift {
            Some((scale, shift)) => {
                let (scale, shift) = (g.constant_f32("scale", &[d], &scale), g.constant_f32("shift", &[d], &shift));
                let scaled = g.mul(x, &scale);
                g.add(&scaled, &shift)
            }
            None => x.clone(),
        };
        let columns = g.transpose(&x, &[1, 0]);
        let columns = g.reshape(&columns, &[1, d, t]);
        // K/2 zeros on both sides; of an even kernel's T + 1 outputs the last is dropped.
        let (before, after) = (taps / 2, taps - 1 - taps / 2);
        let zeros = |g: &mut Graph, n: usize| g.constant_f32("padding", &[1, d, n], &vec![0.0; d * n]);
        let mut parts = Vec::new();
        if before > 0 {
            parts.push(zeros(g, before));
        }
        parts.push(columns);
        if after > 0 {
            parts.push(zeros(g, after));
        }
        let padded = g.concat(&parts.iter().collect::<Vec<_>>(), 2);
        let shape = [d, d / config.position_groups, taps];
        let weight = g.constant_f32("weight", &shape, &std::mem::take(&mut weight));
        let bias = g.constant_f32("bias", &[d], &std::mem::take(&mut bias));
        let y = g.conv(&padded, &weight, Some(&bias), 1, config.position_groups);
        let y = g.gelu(&y);
        let y = g.reshape(&y, &[d, t]);
        g.transpose(&y, &[1, 0])
    }))
}

fn layer_norm(graph: &mut Graph, hubert: &Hubert, name: &str, x: &Value) -> Result<Value, WeightsError> {
    let d = hubert.config.width;
    let (weight, bias) = (hubert.tensor(&format!("{name}.weight"), &[d])?, hubert.tensor(&format!("{name}.bias"), &[d])?);
    Ok(graph.layer_norm(x, &weight, &bias, hubert.config.epsilon))
}

/// A block on `x` `[T, d]`.
fn block(graph: &mut Graph, hubert: &Hubert, layer: usize, x: &Value, precision: Precision) -> Result<Value, WeightsError> {
    let config = &hubert.config;
    let (t, d, f, heads) = (x.shape()[0], config.width, config.feed_forward, config.heads);
    let width = d / heads;
    let name = |field: &str| format!("encoder.layers.{layer}.{field}");
    let tensor = |field: &str, shape: &[usize]| hubert.tensor(&name(field), shape);
    let dense = |field: &str, shape: [usize; 2]| -> Result<(Vec<f32>, Vec<f32>), WeightsError> {
        Ok((tensor(&format!("{field}.weight"), &shape)?, tensor(&format!("{field}.bias"), &shape[..1])?))
    };
    let scale = 1.0 / (width as f32).sqrt();
    let (mut product, mut product_bias) = dense("attention.q_proj", [d, d])?;
    product.iter_mut().chain(&mut product_bias).for_each(|w| *w *= scale);
    for part in ["attention.k_proj", "attention.v_proj"] {
        let (weight, bias) = dense(part, [d, d])?;
        product.extend(weight);
        product_bias.extend(bias);
    }
    let (output, output_bias) = dense("attention.out_proj", [d, d])?;
    let (up, up_bias) = dense("feed_forward.intermediate_dense", [f, d])?;
    let (down, down_bias) = dense("feed_forward.output_dense", [d, f])?;

    let attend = |g: &mut Graph, x: &Value| {
        g.scope(&format!("layers.{layer}.attention"), |g| {
            let qkv = g.linear_in_parts(x, &product, &product_bias, 3, precision); // [T, d] each
            let head = |g: &mut Graph, part: usize, order: &[usize]| {
                let rows = qkv.part(g, part);
                let rows = g.reshape(&rows, &[t, heads, width]);
                g.transpose(&rows, order)
            };
            let (q, k, v) = (head(g, 0, &[1, 0, 2]), head(g, 1, &[1, 2, 0]), head(g, 2, &[1, 0, 2]));
            let scores = g.matmul(&q, &k);
            let shares = g.softmax(&scores); // [H, T, T]
            let mixed = g.matmul(&shares, &v);
            let mixed = g.transpose(&mixed, &[1, 0, 2]);
            let mixed = g.reshape(&mixed, &[t, d]);
            g.scope("output", |g| g.linear(&mixed, &output, Some(&output_bias), precision))
        })
    };
    let feed_forward = |g: &mut Graph, x: &Value| {
        g.scope(&format!("layers.{layer}.feed_forward"), |g| {
            let hidden = g.scope("up", |g| g.linear(x, &up, Some(&up_bias), precision));
            let hidden = g.gelu(&hidden);
            g.scope("down", |g| g.linear(&hidden, &down, Some(&down_bias), precision))
        })
    };
    let (norm1, norm2) = (name("layer_norm"), name("final_layer_norm"));
    if config.norm_first {
        let normed = layer_norm(graph, hubert, &norm1, x)?;
        let attended = attend(graph, &normed);
        let x = graph.add(x, &attended);
        let normed = layer_norm(graph, hubert, &norm2, &x)?;
        let update = feed_forward(graph, &normed);
        return Ok(graph.add(&x, &update));
    }
    let attended = attend(graph, x);
    let x = graph.add(x, &attended);
    let x = layer_norm(graph, hubert, &norm1, &x)?;
    let update = feed_forward(graph, &x);
    let x = graph.add(&x, &update);
    layer_norm(graph, hubert, &norm2, &x)
}

/// The units of `x` `[T, d]`, `[1, T]`.
fn units(graph: &mut Graph, codebook: &Array, x: &Value) -> Value {
    let units = graph.scope("codebook", |g| nearest(g, &codebook.data, x));
    graph.reshape(&units, &[1, x.shape()[0]])
}
