//! The operator for a linear layer in 8 bits: what the node group of [`super::fuse`] computes, in one go.
//!
//! tract quantises the input number by number and multiplies 8-bit vectors without the processor's dot products; both are done here in
//! [`super::products`]. The arithmetic is that of ONNX's DynamicQuantizeLinear and MatMulInteger to the last bit: one scale and one zero
//! point for the whole input.

use std::sync::Arc;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::products::{Level, MOST_INPUTS, SHIFT, products};

/// The operator's name in a rewritten graph. Inputs: `x`, then weights `[outputs, inputs]` (i8) and scales `[outputs]` of each part.
pub const NAME: &str = "SaInt8Linear";
/// Its attributes.
pub const INPUTS: &str = "inputs";
pub const OUTPUTS: &str = "outputs";

/// For tract's register of operators.
pub fn build(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let layer = Declared { inputs: node.get_attr(INPUTS)?, outputs: node.get_attr(OUTPUTS)?, parts: node.input.len() / 2 };
    Ok((expand(layer), vec![]))
}

#[derive(Debug, Clone)]
struct Declared {
    inputs: usize,
    outputs: usize,
    parts: usize,
}

impl Expansion for Declared {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(&'s self, s: &mut Solver<'r>, inputs: &'p [TensorProxy], outputs: &'p [TensorProxy]) -> InferenceResult {
        check_input_arity(inputs, 1 + 2 * self.parts)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        s.given(&inputs[0].rank, move |s, rank| {
            let last = usize::try_from(rank).ok().and_then(|rank| rank.checked_sub(1)).context("a layer's input has an axis")?;
            for axis in 0..last {
                s.equals(&inputs[0].shape[axis], &outputs[0].shape[axis])?;
            }
            s.equals(&inputs[0].shape[last], self.inputs.to_dim())?;
            s.equals(&outputs[0].shape[last], self.outputs.to_dim())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let constant = |outlet| model.outlet_fact(outlet)?.konst.clone().context("weights must be constants");
        // A file may hold such a node that nobody of ours has written.
        ensure!((1..=MOST_INPUTS).contains(&self.inputs), "a layer of {} inputs", self.inputs);
        let mut outputs = 0;
        let mut parts = Vec::with_capacity(self.parts);
        for pair in inputs[1..].chunks_exact(2) {
            let (weights, scales) = (constant(pair[0])?, constant(pair[1])?);
            let count = scales.len();
            ensure!(count > 0 && weights.shape() == [count, self.inputs], "weights {:?} and {count} scales", weights.shape());
            ensure!(scales.datum_type() == f32::datum_type() && scales.rank() == 1, "scales are single numbers");
            outputs += count;
            let plain = weights.try_as_plain_ram()?;
            let sum = |row: &[i8]| row.iter().map(|w| i32::from(*w)).sum();
            let sums = plain.as_slice::<i8>()?.chunks_exact(self.inputs).map(sum).collect();
            parts.push(Part { weights, scales, sums });
        }
        ensure!(outputs == self.outputs, "parts of {outputs} outputs in a layer of {}", self.outputs);
        let layer = Int8Linear { inputs: self.inputs, outputs: self.outputs, parts };
        model.wire_node(prefix, layer, &inputs[..1])
    }
}

/// Some of a layer's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// `[outputs, inputs]`, i8.
    weights: Arc<Tensor>,
    /// `[outputs]`, f32.
    scales: Arc<Tensor>,
    /// Of each output's weights: what the zero point of the input adds to a product that many times.
    sums: Vec<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Int8Linear {
    inputs: usize,
    outputs: usize,
    parts: Vec<Part>,
}

impl Op for Int8Linear {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Int8Linear {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let plain = input.try_as_plain_ram()?;
        let x = quantise(plain.as_slice::<f32>()?);
        let rows = x.levels.len() / self.inputs;
        let mut shape: TVec<usize> = input.shape().into();
        *shape.last_mut().context("a layer's input has an axis")? = self.outputs;
        let mut output = Tensor::zero::<f32>(&shape)?;
        let mut view = output.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<f32>()?;
        let mut sums = Vec::new();
        let mut first = 0;
        for part in &self.parts {
            let (weights, scales) = (part.weights.try_as_plain_ram()?, part.scales.try_as_plain_ram()?);
            let (count, scales) = (part.sums.len(), scales.as_slice::<f32>()?);
            sums.clear();
            sums.resize(rows * count, 0);
            products(&x.levels, weights.as_slice::<i8>()?, self.inputs, &mut sums);
            for (y, sums) in y.chunks_exact_mut(self.outputs).zip(sums.chunks_exact(count)) {
                for (((y, sum), of_weights), scale) in y[first..][..count].iter_mut().zip(sums).zip(&part.sums).zip(scales) {
                    *y = (sum - x.zero * of_weights) as f32 * (x.scale * scale);
                }
            }
            first += count;
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Int8Linear {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.clone();
        shape.set(shape.rank() - 1, self.outputs.to_dim());
        Ok(tvec!(f32::datum_type().fact(shape)))
    }

    as_op!();
}

/// `x ≈ (level - zero) · scale`.
struct Quantised {
    levels: Vec<Level>,
    scale: f32,
    zero: i32,
}

/// ONNX's DynamicQuantizeLinear: 256 levels from the smallest to the largest number, zero being one of them.
///
/// Written for vectors: a minimum in each lane, and rounding (to even) by a number so large that a float has no place for fractions beside
/// it, where `round_ties_even` is a call for each number on x86-64 without SSE 4.1.
fn quantise(x: &[f32]) -> Quantised {
    const LANES: usize = 16;
    const NO_FRACTIONS: f32 = 1.5 * (1 << 23) as f32;
    const INTEGERS: f32 = (1 << 23) as f32;
    let (mut least, mut most) = ([0.0f32; LANES], [0.0f32; LANES]);
    let mut extend = |x: &[f32]| {
        for ((least, most), x) in least.iter_mut().zip(&mut most).zip(x) {
            *least = if *x < *least { *x } else { *least };
            *most = if *x > *most { *x } else { *most };
        }
    };
    let chunks = x.chunks_exact(LANES);
    extend(chunks.remainder());
    chunks.for_each(extend);
    let (least, most) = (least.into_iter().fold(0.0, f32::min), most.into_iter().fold(0.0, f32::max));
    let scale = if least < most { (most - least) / 255.0 } else { 1.0 };
    let zero = (-least / scale).round_ties_even().clamp(0.0, 255.0);
    let level = |x: &f32| {
        // As tract has it, what is no number is zero.
        let x = if x.is_nan() { 0.0 } else { *x };
        let level = (x / scale + NO_FRACTIONS) - NO_FRACTIONS + zero;
        // The last byte of the number is the level.
        let unsigned = (level.clamp(0.0, 255.0) + INTEGERS).to_bits() as u8;
        unsigned.wrapping_sub(SHIFT as u8) as Level
    };
    Quantised { levels: x.iter().map(level).collect(), scale, zero: zero as i32 - SHIFT }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the words of the standard, number by number.
    #[test]
    fn inputs_are_quantised_as_onnx_says() {
        let nan = quantise(&[f32::NAN, -1.0, 1.0, f32::from_bits(0x7fc0_00ff)]);
        assert!([0, 3].iter().all(|i| i32::from(nan.levels[*i]) == nan.zero));
        let cases: [&[f32]; 6] = [
            &[0.0, 2.0, -3.0, -2.5, 1.34, 0.5],
            &[1.0, 2.1, 1.3, 2.5, 3.34, 4.0, 1.5, 2.6, 3.9, 4.0, 3.0, 2.345],
            &[-127.5, -0.5, 0.5, 1.5, 2.5, 127.5],
            &[-4.0, -1.0],
            &[0.0; 40],
            &std::array::from_fn::<f32, 1003, _>(|i| ((i * 7919) % 1009) as f32 * 0.37 - 200.0),
        ];
        for x in cases {
            let (least, most) = x.iter().fold((0.0f32, 0.0f32), |(a, b), x| (a.min(*x), b.max(*x)));
            let scale = if least < most { (most - least) / 255.0 } else { 1.0 };
            let zero = (-least / scale).round_ties_even();
            let found = quantise(x);
            assert_eq!((found.scale, found.zero + SHIFT), (scale, zero as i32));
            for (x, level) in x.iter().zip(&found.levels) {
                let expected = ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0);
                assert_eq!((i32::from(*level) + SHIFT) as f32, expected, "{x}");
            }
        }
    }
}
