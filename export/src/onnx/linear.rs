//! A linear layer in the precisions that the exporter offers.
//!
//! | precision | file | computed as |
//! |---|---|---|
//! | `fp32` | single precision | single precision |
//! | `fp16` | half precision, widened while the graph is loaded | single precision |
//! | `int8-weights` | 8 bits and a scale per output channel, widened while loading | single precision |
//! | `int8` | 8 bits and a scale per output channel | 8-bit products: the input is quantised at every step |
//! | `int4` | 4 bits and a scale per 32 inputs of an output | MatMulNBits: blocks are widened inside of the product |
//!
//! `int8` is DynamicQuantizeLinear → MatMulInteger → Cast → Mul: any engine runs it, and the runtime makes one operator of exactly this
//! shape on tract (`device/src/engine/tract/fuse.rs`). Weights are split along the outputs so that no part exceeds [`SPLIT_ELEMENTS`]:
//! a tract without that operator folds constants only up to 4 MiB, and would sum or widen the weights again at every step.
//!
//! `int4` is ONNX Runtime's MatMulNBits (domain com.microsoft), which tract reads too: symmetric, `w = (q - 8) · scale`. A layer whose
//! inputs are no multiple of the block is stored as `int8-weights` instead.

use std::collections::BTreeMap;

use super::graph::{Attribute, DataType, Graph, Value};

/// Most elements of one weight part: 2^20 stay below tract's folding limit of 4 MiB once they are i32 or f32.
pub const SPLIT_ELEMENTS: usize = 1 << 20;
/// Parts hold a multiple of this many outputs, so that the engine's tiles are full.
const SPLIT_MULTIPLE: usize = 64;

/// How the linear layers of a stage are stored and computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    Fp16,
    Int8Weights,
    Int8,
    Int4,
}

impl Precision {
    /// The name in `bundle.toml` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8Weights => "int8-weights",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }

    /// All of them.
    pub const ALL: [Self; 5] = [Self::Fp32, Self::Fp16, Self::Int8Weights, Self::Int8, Self::Int4];

    /// Bits of a weight on disk, with its share of the scale of a block.
    pub fn bits(self) -> usize {
        match self {
            Precision::Fp32 => 32,
            Precision::Fp16 => 16,
            Precision::Int8Weights | Precision::Int8 => 8,
            Precision::Int4 => 4 + 32 / BLOCK,
        }
    }

    /// Are products computed from quantised weights, and not from weights that were widened while loading?
    pub fn computes_in_fewer_bits(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }
}

/// A precision, and the layers that stay in single precision all the same.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    pub precision: Precision,
    /// Patterns of layer names, such as `model.layers.0.*`: `*` is any text, `?` any character.
    pub exclude: &'a [String],
    /// How much the inputs of each layer matter, where that was measured.
    pub importance: Option<&'a Importance>,
    /// Let the squares of each layer's inputs come out too, as `probe.LAYER`: to measure that.
    pub probe: bool,
}

/// By the name of a layer, the mean square of each of its inputs: an error in the weights of an input that is large costs more.
pub type Importance = BTreeMap<String, Vec<f32>>;

/// The names of outputs that tell a layer's inputs begin so.
pub const PROBE: &str = "probe.";

impl From<Precision> for Form<'_> {
    fn from(precision: Precision) -> Self {
        Self { precision, exclude: &[], importance: None, probe: false }
    }
}

/// Does a pattern with `*` and `?` match the whole name?
pub fn matches(pattern: &str, name: &str) -> bool {
    fn rest(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => rest(&pattern[1..], name) || (!name.is_empty() && rest(pattern, &name[1..])),
            (Some(p), Some(n)) if *p == b'?' || p == n => rest(&pattern[1..], &name[1..]),
            _ => false,
        }
    }
    rest(pattern.as_bytes(), name.as_bytes())
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Symmetric 8-bit weights of a `[rows, columns]` matrix, one scale per row: `w ≈ q · scale`, q in -127..=127.
pub fn quantise_per_channel(weight: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut scales = Vec::with_capacity(weight.len() / columns.max(1));
    let mut quantised = Vec::with_capacity(weight.len());
    for row in weight.chunks_exact(columns) {
        let peak = row.iter().fold(0.0f32, |peak, w| peak.max(w.abs()));
        let scale = if peak > 0.0 { peak / 127.0 } else { 1.0 };
        quantised.extend(row.iter().map(|w| (w / scale).round().clamp(-127.0, 127.0) as i8));
        scales.push(scale);
    }
    (quantised, scales)
}

/// Inputs that share a scale in `int4`.
pub const BLOCK: usize = 32;

/// Symmetric 4-bit weights in blocks of [`BLOCK`] along the rows: `w ≈ (q - 8) · scale`, q in 0..=15, two to a byte (the first in the
/// low half). A scale that maps the block's largest magnitude to q = 0 uses the one value more on the negative side; around it the one is
/// taken that loses least, the square of each weight's error counted as often as `importance` (one value for each of a row's inputs)
/// says.
pub fn quantise_blocks(weight: &[f32], importance: Option<&[f32]>) -> (Vec<u8>, Vec<f32>) {
    /// Shares of the first scale that are tried.
    const SHARES: [f32; 9] = [1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 1.05];
    let mut packed = Vec::with_capacity(weight.len() / 2);
    let mut scales = Vec::with_capacity(weight.len() / BLOCK);
    for (number, block) in weight.chunks_exact(BLOCK).enumerate() {
        let counts = importance.map(|all| {
            let first = number * BLOCK % all.len();
            &all[first..first + BLOCK]
        });
        let peak = block.iter().fold(0.0f32, |peak, w| if w.abs() > peak.abs() { *w } else { peak });
        let first = if peak == 0.0 { 1.0 } else { peak / -8.0 };
        let at = |scale: f32, w: f32| (w / scale + 8.0).round().clamp(0.0, 15.0);
        let loss = |scale: f32| {
            let error = |(i, w): (usize, &f32)| counts.map_or(1.0, |counts| counts[i]) * ((at(scale, *w) - 8.0) * scale - w).powi(2);
            block.iter().enumerate().map(error).sum::<f32>()
        };
        let tried = SHARES.map(|share| (loss(first * share), first * share));
        let scale = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(first, |(_, scale)| scale);
        let level = |w: f32| at(scale, w) as u8;
        packed.extend(block.chunks_exact(2).map(|pair| level(pair[0]) | level(pair[1]) << 4));
        scales.push(scale);
    }
    (packed, scales)
}

/// The weights that [`quantise_per_channel`] stored.
fn widened_channels<'a>((quantised, scales): &'a (Vec<i8>, Vec<f32>), columns: usize) -> impl Iterator<Item = f32> + 'a {
    quantised.chunks_exact(columns).zip(scales).flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale))
}

/// The weights that [`quantise_blocks`] stored.
pub(super) fn widened_blocks<'a>((packed, scales): &'a (Vec<u8>, Vec<f32>)) -> impl Iterator<Item = f32> + 'a {
    let levels = packed.iter().flat_map(|pair| [pair & 15, pair >> 4]);
    levels.zip(scales.iter().flat_map(|scale| [*scale; BLOCK])).map(|(q, scale)| (f32::from(q) - 8.0) * scale)
}

/// ‖stored − weight‖ / ‖weight‖ of a layer.
fn storage_error(weight: &[f32], stored: impl Iterator<Item = f32>) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = stored.zip(weight).map(|(a, b)| square(a - b)).sum();
    (difference / weight.iter().map(|w| square(*w)).sum::<f64>().max(f64::MIN_POSITIVE)).sqrt()
}

/// `[rows, columns]` to `[columns, rows]`, tile by tile: column by column, each value would come from another line of the cache.
fn transposed<T: Copy>(data: &[T], rows: usize, columns: usize) -> Vec<T> {
    const TILE: usize = 32;
    let mut all = data.to_vec();
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for c in left..columns.min(left + TILE) {
                for r in top..rows.min(top + TILE) {
                    all[c * rows + r] = data[r * columns + c];
                }
            }
        }
    }
    all
}

/// Ranges of outputs of the parts of a weight with `inputs` inputs.
fn split(outputs: usize, inputs: usize) -> Vec<std::ops::Range<usize>> {
    let fitting = SPLIT_ELEMENTS / inputs.max(1);
    // Where not even one multiple fits (more than 16,384 inputs), the limit counts more than full tiles.
    let most = if fitting >= SPLIT_MULTIPLE { fitting / SPLIT_MULTIPLE * SPLIT_MULTIPLE } else { fitting.max(1) };
    (0..outputs).step_by(most).map(|start| start..(start + most).min(outputs)).collect()
}

/// What [`Graph::linear_in_parts`] gives.
pub enum Parts {
    Joined { product: Value, width: usize },
    Apart(Vec<Value>),
}

impl Parts {
    /// One of them; cut out of the product where it is asked for.
    pub fn part(&self, graph: &mut Graph, part: usize) -> Value {
        match self {
            Self::Joined { product, width } => graph.slice(product, 1, part * width, (part + 1) * width),
            Self::Apart(products) => products[part].clone(),
        }
    }
}

impl Graph {
    /// `x · weightᵀ + bias` for `x` `[…, in]`, `weight` `[out, in]` (PyTorch's layout) and `bias` `[out]`.
    pub fn linear(&mut self, x: &Value, weight: &[f32], bias: Option<&[f32]>, precision: Precision) -> Value {
        let inputs = x.size(-1);
        let outputs = weight.len() / inputs;
        assert_eq!(weight.len(), inputs * outputs, "weight of a layer with {inputs} inputs");
        // Blocks may not end between two outputs.
        let precision = match self.precision_of("", precision) {
            Precision::Int4 if !inputs.is_multiple_of(BLOCK) => Precision::Int8Weights,
            other => other,
        };
        self.probe(x);
        let product = match precision {
            Precision::Int8 | Precision::Int8Weights => {
                let channels = quantise_per_channel(weight, inputs);
                self.record_layer(storage_error(weight, widened_channels(&channels, inputs)));
                match precision {
                    Precision::Int8 => self.linear_int8(x, &channels, outputs),
                    _ => self.linear_int8_weights(x, &channels, outputs),
                }
            }
            Precision::Int4 => {
                let blocks = quantise_blocks(weight, self.importance(inputs).as_deref());
                self.record_layer(storage_error(weight, widened_blocks(&blocks)));
                self.linear_int4(x, blocks, outputs)
            }
            _ => {
                let parts: Vec<Value> = split(outputs, inputs)
                    .into_iter()
                    .map(|range| {
                        let part = &weight[range.start * inputs..range.end * inputs];
                        let matrix = self.stored_matrix(part, range.len(), inputs, precision);
                        self.matmul(x, &matrix)
                    })
                    .collect();
                self.joined(parts, -1)
            }
        };
        match bias {
            Some(bias) => {
                let bias = self.constant_f32("bias", &[outputs], bias);
                self.add(&product, &bias)
            }
            None => product,
        }
    }

    /// `x · tableᵀ` for a row `x` `[1, in]` and a table `[out, in]` in single precision that the graph has already.
    pub fn linear_of_table(&mut self, x: &Value, table: &Value) -> Value {
        // A layer like others, by name.
        self.precision_of("", Precision::Fp32);
        self.probe(x);
        let (outputs, inputs) = (table.shape[0], table.shape[1]);
        let column = self.reshape(x, &[inputs, 1]);
        // In parts that tract folds, or it would pack the table at every step.
        let parts = split(outputs, inputs).into_iter().map(|rows| {
            let rows = if rows.len() == outputs { table.clone() } else { self.slice(table, 0, rows.start, rows.end) };
            self.matmul(&rows, &column)
        });
        let parts = parts.collect();
        let product = self.joined(parts, 0);
        self.reshape(&product, &[1, outputs])
    }

    /// A layer over the rows of a matrix whose outputs are several things of the same width. One product, which is faster; but for 4 bits,
    /// where tract (0.23) would slice the weights in place of what the product gives, and panics: there each has its own.
    pub fn linear_in_parts(&mut self, x: &Value, weight: &[f32], bias: &[f32], parts: usize, precision: Precision) -> Parts {
        let (inputs, width) = (x.size(-1), bias.len() / parts);
        if precision != Precision::Int4 {
            return Parts::Joined { product: self.linear(x, weight, Some(bias), precision), width };
        }
        let rows = weight.chunks_exact(width * inputs).zip(bias.chunks_exact(width));
        Parts::Apart(rows.map(|(weight, bias)| self.linear(x, weight, Some(bias), precision)).collect())
    }

    /// A `[in, out]` matrix from `[out, in]` data, in single precision once loaded.
    fn stored_matrix(&mut self, weight: &[f32], outputs: usize, inputs: usize, precision: Precision) -> Value {
        let shape = [inputs, outputs];
        match precision {
            Precision::Fp16 => {
                let stored = self.constant_f16("weight", &shape, &transposed(weight, outputs, inputs));
                self.cast(&stored, DataType::F32)
            }
            _ => self.constant_f32("weight", &shape, &transposed(weight, outputs, inputs)),
        }
    }

    fn linear_int8_weights(&mut self, x: &Value, (quantised, scales): &(Vec<i8>, Vec<f32>), outputs: usize) -> Value {
        let inputs = x.size(-1);
        let mut parts = Vec::new();
        for range in split(outputs, inputs) {
            let (count, part) = (range.len(), &quantised[range.start * inputs..range.end * inputs]);
            let stored = self.constant_i8("weight", &[inputs, count], &transposed(part, count, inputs));
            let scales = self.constant_f32("weight_scale", &[1, count], &scales[range]);
            let wide = self.cast(&stored, DataType::F32);
            let matrix = self.mul(&wide, &scales);
            parts.push(self.matmul(x, &matrix));
        }
        self.joined(parts, -1)
    }

    fn linear_int8(&mut self, x: &Value, (levels, scales): &(Vec<i8>, Vec<f32>), outputs: usize) -> Value {
        let inputs = x.size(-1);
        let quantised = self.node_many(
            "DynamicQuantizeLinear",
            "quantise",
            &[x],
            &[],
            &[(DataType::U8, x.shape.clone()), (DataType::F32, vec![]), (DataType::U8, vec![])],
        );
        let [x8, x_scale, x_zero] = quantised.as_slice() else { unreachable!("node_many returns as many values as it was given shapes") };
        let mut parts = Vec::new();
        for range in split(outputs, inputs) {
            let part = &levels[range.start * inputs..range.end * inputs];
            let q = self.constant_i8("weight", &[inputs, range.len()], &transposed(part, range.len(), inputs));
            let zero = self.constant_i8("weight_zero", &[], &[0]);
            let mut shape = x.shape.clone();
            *shape.last_mut().expect("the input of a layer has an axis") = range.len();
            let product = self.node("MatMulInteger", "matmul_integer", &[x8, &q, x_zero, &zero], &[], DataType::I32, shape);
            let wide = self.cast(&product, DataType::F32);
            let scales = self.constant_f32("weight_scale", &[range.len()], &scales[range]);
            let scale = self.mul(x_scale, &scales);
            parts.push(self.mul(&wide, &scale));
        }
        self.joined(parts, -1)
    }

    fn linear_int4(&mut self, x: &Value, (packed, scales): (Vec<u8>, Vec<f32>), outputs: usize) -> Value {
        let inputs = x.size(-1);
        let packed = self.constant_u8("weight", &[outputs, inputs / BLOCK, BLOCK / 2], &packed);
        let scales = self.constant_f32("weight_scale", &[outputs * inputs / BLOCK], &scales);
        let mut shape = x.shape.clone();
        *shape.last_mut().expect("the input of a layer has an axis") = outputs;
        let attributes = [
            ("K", Attribute::Int(inputs as i64)),
            ("N", Attribute::Int(outputs as i64)),
            ("bits", Attribute::Int(4)),
            ("block_size", Attribute::Int(BLOCK as i64)),
        ];
        self.microsoft_node("MatMulNBits", "matmul_4_bits", &[x, &packed, &scales], &attributes, DataType::F32, shape)
    }

    fn joined(&mut self, mut parts: Vec<Value>, axis: i64) -> Value {
        match parts.len() {
            1 => parts.remove(0),
            _ => self.concat(&parts.iter().collect::<Vec<_>>(), axis),
        }
    }

    /// An embedding table `[rows, d]` for [`Graph::look_up`], in single or half precision.
    pub fn table(&mut self, name: &str, table: &[f32], d: usize, precision: Precision) -> Value {
        let rows = table.len() / d;
        match self.precision_of(name, precision) {
            Precision::Fp32 => self.constant_f32(name, &[rows, d], table),
            _ => self.constant_f16(name, &[rows, d], table),
        }
    }

    /// Rows of an embedding table by index, in single precision. They are widened after the look-up: a table of a public vocabulary is
    /// far beyond what tract folds, and would be widened as a whole at every step.
    pub fn look_up(&mut self, table: &Value, indices: &Value) -> Value {
        let rows = self.gather(table, indices);
        match rows.data_type {
            DataType::F32 => rows,
            _ => self.cast(&rows, DataType::F32),
        }
    }

    /// Convolution over the rows of `x` `[T, in]` without padding: `weight` is `[out, in, kernel]`; `[frames, out]`. As products of matrices:
    /// rows of one stride lie side by side as they are, and nothing has to be gathered as for a `Conv` (a third of its time in tract).
    pub fn conv_rows(
        &mut self,
        x: &Value,
        weight: &[f32],
        bias: Option<&[f32]>,
        [out, kernel]: [usize; 2],
        stride: usize,
        precision: Precision,
    ) -> Value {
        let (t, width) = (x.shape[0], x.shape[1]);
        let frames = (t - kernel) / stride + 1;
        // Taps of so many strides, each behind the one before.
        let strides = kernel.div_ceil(stride);
        // A single tap of the last is a row of each stride.
        let single = kernel % stride == 1;
        let missing = ((strides + frames - 1 - usize::from(single)) * stride).saturating_sub(t);
        let x = match missing {
            0 => x.clone(),
            _ => {
                let zeros = self.constant_f32("padding", &[missing, width], &vec![0.0; missing * width]);
                self.concat(&[x, &zeros], 0)
            }
        };
        let mut sum: Option<Value> = None;
        for i in 0..strides {
            let taps = i * stride..kernel.min((i + 1) * stride);
            let rows = if taps.len() == 1 {
                self.slice_by(&x, 0, i * stride, (i + frames - 1) * stride + 1, stride)
            } else {
                let rows = self.slice(&x, 0, i * stride, (i + frames) * stride);
                let rows = self.reshape(&rows, &[frames, stride * width]);
                if taps.len() < stride { self.slice(&rows, 1, 0, taps.len() * width) } else { rows }
            };
            let at = |tap: usize, input: usize, output: usize| weight[(output * width + input) * kernel + tap];
            let taps = taps.flat_map(|tap| (0..width).flat_map(move |input| (0..out).map(move |output| (tap, input, output))));
            let matrix: Vec<f32> = taps.map(|(tap, input, output)| at(tap, input, output)).collect();
            let matrix = self.kernel(&matrix, &[rows.shape[1], out], precision);
            let product = self.matmul(&rows, &matrix);
            sum = Some(match sum {
                Some(sum) => self.add(&sum, &product),
                None => product,
            });
        }
        let sum = sum.expect("a kernel has a tap");
        match bias {
            Some(bias) => {
                let bias = self.constant_f32("bias", &[out], bias);
                self.add(&sum, &bias)
            }
            None => sum,
        }
    }

    /// Convolution weights `[out, in / groups, kernel]`, in single precision once loaded.
    pub fn kernel(&mut self, weight: &[f32], shape: &[usize], precision: Precision) -> Value {
        match self.precision_of("", precision) {
            Precision::Fp32 => self.constant_f32("weight", shape, weight),
            _ => {
                let stored = self.constant_f16("weight", shape, weight);
                self.cast(&stored, DataType::F32)
            }
        }
    }
}
