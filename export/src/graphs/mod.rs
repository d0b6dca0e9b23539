//! The four graphs of a bundle, drawn from a checkpoint's configuration and tensors.
//!
//! Each advances by one chunk; shapes are fixed; what is kept between chunks is explicit (`state.X` in,
//! `state.X.next` out; `cache.X` in, `cache.X.new` out). The contracts stand in `sa_device::bundle`.
//! Batch is 1 and is dropped inside: rows are time, columns are channels.

pub mod decoder;
pub mod head;
pub mod hifigan;
pub mod hubert;
pub mod lm;
pub mod tokenizer;
mod transformer;

use sa_device::bundle::{BundleError, BundleWriter, FileEntry, StageEntry, StageName, TensorEntry};

use crate::onnx::{DataType, Graph, Layer, OnnxFile, Precision, Value, matches};
use crate::weights::WeightsError;

/// What a sliding window holds, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub look_back: usize,
    pub chunk: usize,
    pub look_ahead: usize,
}

impl Window {
    pub fn units(self) -> usize {
        self.look_back + self.chunk + self.look_ahead
    }
}

/// A graph of the bundle and what its manifest entry says.
#[derive(Debug)]
pub struct StageGraph {
    pub stage: StageName,
    pub precision: Precision,
    /// Samples, units or positions that one run takes in.
    pub chunk: usize,
    /// Algorithmic latency.
    pub latency_ms: f64,
    pub inputs: Vec<TensorEntry>,
    pub outputs: Vec<TensorEntry>,
    /// The initial values of the `state.*` inputs one after the other, where they are not zeros.
    pub initial: Option<Vec<f32>>,
    /// The quantised layers and what their weights lost.
    pub layers: Vec<Layer>,
    /// Names of all layers that have a precision.
    pub names: Vec<String>,
    pub onnx: OnnxFile,
}

/// Layers that a report names.
const WORST_LAYERS: usize = 5;

impl StageGraph {
    /// Closes a finished graph.
    fn new(stage: StageName, mut graph: Graph, precision: Precision, chunk: usize, latency_ms: f64) -> Result<Self, WeightsError> {
        graph.metadata("stage", stage);
        graph.metadata("precision", precision);
        graph.metadata("chunk", chunk);
        let entry = |value: &Value| match value.data_type() {
            DataType::F32 => TensorEntry::f32(value.name(), value.shape()),
            DataType::I64 => TensorEntry::i64(value.name(), value.shape()),
            other => unreachable!("{} is {other:?}: only f32 and i64 cross a graph's border", value.name()),
        };
        let inputs = graph.inputs().iter().map(entry).collect();
        let outputs = graph.outputs().iter().map(entry).collect();
        let (layers, names) = (graph.layers().to_vec(), graph.drawn().iter().cloned().collect());
        let onnx = graph.encode().map_err(WeightsError::Temporary)?;
        Ok(Self { stage, precision, chunk, latency_ms, inputs, outputs, initial: None, layers, names, onnx })
    }

    /// The layers whose weights lost most, the worst first.
    pub fn worst_layers(&self) -> Vec<Layer> {
        let mut layers = self.layers.clone();
        layers.sort_by(|a, b| b.error.total_cmp(&a.error));
        layers.truncate(WORST_LAYERS);
        layers
    }

    /// Copies the graph into a bundle, and writes its initial states beside it.
    pub fn save(&self, writer: &BundleWriter) -> Result<(), BundleError> {
        let path = writer.path(&self.file());
        self.onnx.copy(&path).map_err(|source| BundleError::Write { path, source })?;
        match (self.initial_file(), &self.initial) {
            (Some(file), Some(values)) => writer.add_states(&file, values.iter().copied()),
            _ => Ok(()),
        }
    }

    /// Name of the graph's file in the bundle.
    pub fn file(&self) -> String {
        format!("{}.onnx", self.stage)
    }

    /// Name of the file of initial states, if there is one.
    pub fn initial_file(&self) -> Option<String> {
        self.initial.as_ref().map(|_| format!("{}.f32", self.stage))
    }

    /// The entry of `bundle.toml`; the bundle writer fills in size and hash.
    pub fn entry(&self) -> StageEntry {
        StageEntry {
            graph: FileEntry::named(self.file()),
            precision: self.precision.name().into(),
            chunk: self.chunk,
            latency_ms: self.latency_ms,
            initial: self.initial_file().map(FileEntry::named),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
        }
    }
}

/// Refuses patterns of layers to keep in single precision that match none of these: the names in all that is to be exported.
///
/// # Errors
/// Names the pattern and some of the layers that there are.
pub fn check_exclude(exclude: &[String], names: &[String]) -> Result<(), String> {
    match exclude.iter().find(|pattern| !names.iter().any(|name| matches(pattern, name))) {
        Some(dead) => Err(format!("--exclude {dead} matches no layer; there are {}, …", names[..names.len().min(6)].join(", "))),
        None => Ok(()),
    }
}

/// A state of the shape `[1, rows, columns]`: joins it before the rows of `x` `[n, columns]`, keeps the last `rows`
/// rows as the next state, and returns the joined rows `[rows + n, columns]`.
fn rolling_state(graph: &mut Graph, name: &str, x: &Value, rows: usize) -> Value {
    let columns = x.shape()[1];
    let state = graph.input(&format!("state.{name}"), DataType::F32, &[1, rows, columns]);
    let past = graph.reshape(&state, &[rows, columns]);
    let joined = graph.concat(&[&past, x], 0);
    let total = joined.shape()[0];
    let kept = graph.slice(&joined, 0, total - rows, total);
    let kept = graph.reshape(&kept, &[1, rows, columns]);
    graph.output(&format!("state.{name}.next"), &kept);
    joined
}

/// Valid depthwise convolution over time: `x` `[T + K - 1, D]`, `taps` `[K, D]` (oldest first) and `bias` `[D]`
/// give `[T, D]`.
fn depthwise(graph: &mut Graph, x: &Value, taps: &[f32], bias: Option<&[f32]>, precision: Precision) -> Value {
    let (rows, d) = (x.shape()[0], x.shape()[1]);
    let kernel = taps.len() / d;
    let by_channel: Vec<f32> = (0..d).flat_map(|c| (0..kernel).map(move |k| taps[k * d + c])).collect();
    let columns = graph.transpose(x, &[1, 0]);
    let columns = graph.reshape(&columns, &[1, d, rows]);
    let weight = graph.kernel(&by_channel, &[d, 1, kernel], precision);
    let bias = bias.map(|bias| graph.constant_f32("bias", &[d], bias));
    let mixed = graph.conv(&columns, &weight, bias.as_ref(), 1, d);
    let mixed = graph.reshape(&mixed, &[d, rows + 1 - kernel]);
    graph.transpose(&mixed, &[1, 0])
}

/// argmin of ‖c‖² − 2 x·c over `centroids` `[k, d]`: `[T, d]` to `[T]`. In single precision whatever the stage's precision: the
/// differences between near centroids are small.
fn nearest(graph: &mut Graph, centroids: &[f32], x: &Value) -> Value {
    let d = x.shape()[1];
    let squares: Vec<f32> = centroids.chunks_exact(d).map(|c| c.iter().map(|x| x * x).sum()).collect();
    let doubled: Vec<f32> = centroids.iter().map(|c| -2.0 * c).collect();
    let distances = graph.linear(x, &doubled, Some(&squares), Precision::Fp32); // [T, k]
    graph.arg_min(&distances)
}
