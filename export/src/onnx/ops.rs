//! The operations that the graphs use, with their shapes worked out.
//!
//! GELU, RMSNorm and SiLU are written as the chains that tract recognises and runs as one kernel.

use super::graph::{Attribute, DataType, Graph, Value};

/// Shape of an element-wise operation under ONNX broadcasting.
fn broadcast(a: &Value, b: &Value) -> Vec<usize> {
    let rank = a.shape.len().max(b.shape.len());
    let size = |v: &Value, i: usize| (i + v.shape.len()).checked_sub(rank).map_or(1, |i| v.shape[i]);
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => panic!("{:?} of {} and {:?} of {} do not broadcast", a.shape, a.name, b.shape, b.name),
        })
        .collect()
}

impl Graph {
    fn binary(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        assert_eq!(a.data_type, b.data_type, "{op} of {} and {}", a.name, b.name);
        let shape = broadcast(a, b);
        self.node(op, &op.to_lowercase(), &[a, b], &[], a.data_type, shape)
    }

    fn unary(&mut self, op: &str, x: &Value) -> Value {
        self.node(op, &op.to_lowercase(), &[x], &[], x.data_type, x.shape.clone())
    }

    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b)
    }

    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Sub", a, b)
    }

    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b)
    }

    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Div", a, b)
    }

    /// `x + c`.
    pub fn add_scalar(&mut self, x: &Value, c: f32) -> Value {
        let c = self.scalar(c);
        self.add(x, &c)
    }

    /// `x * c`.
    pub fn mul_scalar(&mut self, x: &Value, c: f32) -> Value {
        let c = self.scalar(c);
        self.mul(x, &c)
    }

    /// `x / c`.
    pub fn div_scalar(&mut self, x: &Value, c: f32) -> Value {
        let c = self.scalar(c);
        self.div(x, &c)
    }

    pub fn sqrt(&mut self, x: &Value) -> Value {
        self.unary("Sqrt", x)
    }

    pub fn log(&mut self, x: &Value) -> Value {
        self.unary("Log", x)
    }

    pub fn relu(&mut self, x: &Value) -> Value {
        self.unary("Relu", x)
    }

    pub fn neg(&mut self, x: &Value) -> Value {
        self.unary("Neg", x)
    }

    pub fn clip(&mut self, x: &Value, low: f32, high: f32) -> Value {
        let (low, high) = (self.scalar(low), self.scalar(high));
        self.node("Clip", "clip", &[x, &low, &high], &[], x.data_type, x.shape.clone())
    }

    /// `a < b`, as booleans.
    pub fn less(&mut self, a: &Value, b: &Value) -> Value {
        let shape = broadcast(a, b);
        self.node("Less", "less", &[a, b], &[], DataType::Bool, shape)
    }

    pub fn cast(&mut self, x: &Value, to: DataType) -> Value {
        let code = match to {
            DataType::F32 => 1,
            DataType::U8 => 2,
            DataType::I8 => 3,
            DataType::I32 => 6,
            DataType::I64 => 7,
            DataType::Bool => 9,
            DataType::F16 => 10,
        };
        self.node("Cast", "cast", &[x], &[("to", Attribute::Int(code))], to, x.shape.clone())
    }

    /// Exact GELU: `(x/2) · (1 + erf(x / √2))`. ONNX Runtime makes one operator of it if it divides.
    pub fn gelu(&mut self, x: &Value) -> Value {
        self.scope("gelu", |g| {
            let scaled = g.div_scalar(x, std::f32::consts::SQRT_2);
            let erf = g.unary("Erf", &scaled);
            let shifted = g.add_scalar(&erf, 1.0);
            let half = g.mul_scalar(x, 0.5);
            g.mul(&half, &shifted)
        })
    }

    /// `x · sigmoid(x)`.
    pub fn silu(&mut self, x: &Value) -> Value {
        let sigmoid = self.unary("Sigmoid", x);
        self.mul(x, &sigmoid)
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, x: &Value) -> Value {
        self.node("Softmax", "softmax", &[x], &[("axis", Attribute::Int(-1))], x.data_type, x.shape.clone())
    }

    /// LayerNorm over the last axis.
    pub fn layer_norm(&mut self, x: &Value, weight: &[f32], bias: &[f32], epsilon: f32) -> Value {
        let d = x.size(-1);
        let weight = self.constant_f32("weight", &[d], weight);
        let bias = self.constant_f32("bias", &[d], bias);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
        let shape = x.shape.clone();
        self.node("LayerNormalization", "layer_norm", &[x, &weight, &bias], &attributes, x.data_type, shape)
    }

    /// RMSNorm over the last axis: `x / √(mean(x²) + ε) · weight`.
    pub fn rms_norm(&mut self, x: &Value, weight: &[f32], epsilon: f32) -> Value {
        self.scope("rms_norm", |g| {
            let weight = g.constant_f32("weight", &[x.size(-1)], weight);
            let squared = g.mul(x, x);
            let mean = g.reduce_mean(&squared);
            let shifted = g.add_scalar(&mean, epsilon);
            let root = g.sqrt(&shifted);
            let inverse = g.unary("Reciprocal", &root);
            let normed = g.mul(x, &inverse);
            g.mul(&normed, &weight)
        })
    }

    /// Mean over the last axis, which stays with size 1.
    pub fn reduce_mean(&mut self, x: &Value) -> Value {
        self.mean_over(x, -1)
    }

    /// Mean over an axis, which stays with size 1.
    pub fn mean_over(&mut self, x: &Value, axis: i64) -> Value {
        let mut shape = x.shape.clone();
        shape[x.axis(axis)] = 1;
        let attributes = [("axes", Attribute::Ints(&[axis])), ("keepdims", Attribute::Int(1))];
        self.node("ReduceMean", "mean", &[x], &attributes, x.data_type, shape)
    }

    /// Index of the least element of the last axis, which goes; the first of equals.
    pub fn arg_min(&mut self, x: &Value) -> Value {
        let shape = x.shape[..x.shape.len() - 1].to_vec();
        let attributes = [("axis", Attribute::Int(-1)), ("keepdims", Attribute::Int(0))];
        self.node("ArgMin", "arg_min", &[x], &attributes, DataType::I64, shape)
    }

    /// `a · b` over the last two axes; the leading axes are equal or broadcast.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        assert_eq!(a.size(-1), b.size(-2), "product of {} {:?} and {} {:?}", a.name, a.shape, b.name, b.shape);
        let lead = |v: &Value| Value { shape: v.shape[..v.shape.len() - 2].to_vec(), ..v.clone() };
        let mut shape = broadcast(&lead(a), &lead(b));
        shape.extend([a.size(-2), b.size(-1)]);
        self.node("MatMul", "matmul", &[a, b], &[], DataType::F32, shape)
    }

    pub fn reshape(&mut self, x: &Value, shape: &[usize]) -> Value {
        assert_eq!(x.shape.iter().product::<usize>(), shape.iter().product::<usize>(), "{} {:?} to {shape:?}", x.name, x.shape);
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let dims = self.constant_i64("shape", &[dims.len()], &dims);
        self.node("Reshape", "reshape", &[x, &dims], &[], x.data_type, shape.into())
    }

    pub fn transpose(&mut self, x: &Value, permutation: &[usize]) -> Value {
        assert_eq!(x.shape.len(), permutation.len(), "permutation of {}", x.name);
        let perm: Vec<i64> = permutation.iter().map(|&p| p as i64).collect();
        let shape = permutation.iter().map(|&p| x.shape[p]).collect();
        self.node("Transpose", "transpose", &[x], &[("perm", Attribute::Ints(&perm))], x.data_type, shape)
    }

    pub fn concat(&mut self, parts: &[&Value], axis: i64) -> Value {
        let at = parts[0].axis(axis);
        let mut shape = parts[0].shape.clone();
        shape[at] = 0;
        for part in parts {
            let others = |v: &Value| v.shape.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, n)| *n).collect::<Vec<_>>();
            assert_eq!(others(part), others(parts[0]), "joining {} along {at}", part.name);
            shape[at] += part.shape[at];
        }
        // Counted from the end, which is the same for any number of axes: whoever looks for a layer's parts knows the last axis by it.
        let from_end = at as i64 - shape.len() as i64;
        self.node("Concat", "concat", parts, &[("axis", Attribute::Int(from_end))], parts[0].data_type, shape)
    }

    /// Elements `start..end` of an axis.
    pub fn slice(&mut self, x: &Value, axis: i64, start: usize, end: usize) -> Value {
        self.slice_by(x, axis, start, end, 1)
    }

    /// Every `step`-th of the elements `start..end` of an axis, from the first on.
    pub fn slice_by(&mut self, x: &Value, axis: i64, start: usize, end: usize, step: usize) -> Value {
        let at = x.axis(axis);
        assert!(start < end && end <= x.shape[at], "{start}..{end} of axis {at} of {} {:?}", x.name, x.shape);
        let starts = self.constant_i64("start", &[1], &[start as i64]);
        let ends = self.constant_i64("end", &[1], &[end as i64]);
        let axes = self.constant_i64("axis", &[1], &[at as i64]);
        let mut shape = x.shape.clone();
        shape[at] = (end - start).div_ceil(step);
        let mut inputs = vec![x, &starts, &ends, &axes];
        let steps = (step > 1).then(|| self.constant_i64("step", &[1], &[step as i64]));
        inputs.extend(&steps);
        self.node("Slice", "slice", &inputs, &[], x.data_type, shape)
    }

    /// Rows of `table` (axis 0) by index.
    pub fn gather(&mut self, table: &Value, indices: &Value) -> Value {
        let shape = indices.shape.iter().chain(&table.shape[1..]).copied().collect();
        self.node("Gather", "gather", &[table, indices], &[("axis", Attribute::Int(0))], table.data_type, shape)
    }

    pub fn select(&mut self, condition: &Value, yes: &Value, no: &Value) -> Value {
        let inner = broadcast(yes, no);
        let shape = broadcast(condition, &Value { shape: inner, ..yes.clone() });
        self.node("Where", "where", &[condition, yes, no], &[], yes.data_type, shape)
    }

    /// Convolution of `x` `[1, in, T]` without padding: `weight` is `[out, in / groups, kernel]`.
    pub fn conv(&mut self, x: &Value, weight: &Value, bias: Option<&Value>, stride: usize, groups: usize) -> Value {
        let (out, kernel) = (weight.shape[0], weight.shape[2]);
        assert_eq!(x.shape[1], weight.shape[1] * groups, "channels of {}", x.name);
        let frames = (x.shape[2] - kernel) / stride + 1;
        let attributes = [
            ("kernel_shape", Attribute::Ints(&[kernel as i64])),
            ("strides", Attribute::Ints(&[stride as i64])),
            ("group", Attribute::Int(groups as i64)),
        ];
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        self.node("Conv", "conv", &inputs, &attributes, DataType::F32, vec![x.shape[0], out, frames])
    }

    /// Convolution of `x` `[1, in, T]` that keeps its length: `weight` `[out, in, K]` with odd K, zeros on both sides.
    pub fn conv_same(&mut self, x: &Value, weight: &Value, bias: &Value, dilation: usize) -> Value {
        let (out, kernel) = (weight.shape[0], weight.shape[2]);
        assert_eq!((x.shape[1], kernel % 2), (weight.shape[1], 1), "channels and kernel of {}", x.name);
        let pad = ((kernel - 1) / 2 * dilation) as i64;
        let attributes = [
            ("kernel_shape", Attribute::Ints(&[kernel as i64])),
            ("dilations", Attribute::Ints(&[dilation as i64])),
            ("pads", Attribute::Ints(&[pad, pad])),
        ];
        self.node("Conv", "conv", &[x, weight, bias], &attributes, DataType::F32, vec![x.shape[0], out, x.shape[2]])
    }

    /// Transposed convolution of `x` `[1, in, T]`, `padding` less at both ends: `weight` is `[in, out, K]`.
    pub fn conv_transpose(&mut self, x: &Value, weight: &Value, bias: &Value, stride: usize, padding: usize) -> Value {
        assert_eq!(x.shape[1], weight.shape[0], "channels of {}", x.name);
        let (out, kernel) = (weight.shape[1], weight.shape[2]);
        let length = (x.shape[2] - 1) * stride + kernel - 2 * padding;
        let attributes = [
            ("kernel_shape", Attribute::Ints(&[kernel as i64])),
            ("strides", Attribute::Ints(&[stride as i64])),
            ("pads", Attribute::Ints(&[padding as i64, padding as i64])),
        ];
        self.node("ConvTranspose", "conv_transpose", &[x, weight, bias], &attributes, DataType::F32, vec![x.shape[0], out, length])
    }

    /// `x` where positive, `slope · x` elsewhere.
    pub fn leaky_relu(&mut self, x: &Value, slope: f32) -> Value {
        self.node("LeakyRelu", "leaky_relu", &[x], &[("alpha", Attribute::Float(slope))], x.data_type, x.shape.clone())
    }

    pub fn tanh(&mut self, x: &Value) -> Value {
        self.unary("Tanh", x)
    }
}
