//! One transformer block, forward with what backward needs, and backward.

use super::matrix::{Matrix, dot, exp, multiply, project, project_backward, softmax};
use super::parameters::BlockParameters;

/// Sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub eps: f32,
    /// Whether a position sees those before it only.
    pub causal: bool,
}

/// Rotary tables [positions, head_dim]; positions count from the start of each sequence.
pub struct Rotation {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// What the backward pass needs of the forward pass.
pub struct Tape {
    input: Vec<f32>,
    input_normed: Vec<f32>,
    input_scale: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    /// Attention weights: heads × length² for each sequence.
    weights: Vec<f32>,
    attended: Vec<f32>,
    middle: Vec<f32>,
    middle_normed: Vec<f32>,
    middle_scale: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    gated: Vec<f32>,
}

/// y = x / rms(x) · weight by row; returns y and 1 / rms of each row.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut y = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len() / width);
    for row in x.chunks_exact(width) {
        let scale = 1.0 / (dot(row, row) / width as f32 + eps).sqrt();
        scales.push(scale);
        y.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    (y, scales)
}

/// Backward of [`rms_norm`]: adds to `dx` and `dweight`.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], scales: &[f32], dy: &[f32], dx: &mut [f32], dweight: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(scales);
    let mut weighted = vec![0.0; width];
    for (((x, dy), dx), scale) in rows {
        for i in 0..width {
            weighted[i] = dy[i] * weight[i];
            dweight[i] += dy[i] * x[i] * scale;
        }
        let shared = dot(&weighted, x) * scale * scale / width as f32;
        for i in 0..width {
            dx[i] += scale * (weighted[i] - x[i] * shared);
        }
    }
}

/// Turns every head of `row` by the angles of one position; `sign` -1 turns back.
#[inline(always)]
pub fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len() / 2;
    for head in row.chunks_exact_mut(cos.len()) {
        let (a, b) = head.split_at_mut(half);
        for i in 0..half {
            let (x, y, s) = (a[i], b[i], sign * sin[i]);
            a[i] = x * cos[i] - y * s;
            b[i] = y * cos[i] + x * s;
        }
    }
}

fn rotate_all(x: &mut [f32], width: usize, lengths: &[usize], rotation: &Rotation, head_dim: usize, sign: f32) {
    let mut rows = x.chunks_exact_mut(width);
    for &length in lengths {
        for (position, row) in rows.by_ref().take(length).enumerate() {
            let at = position * head_dim..(position + 1) * head_dim;
            rotate(row, &rotation.cos[at.clone()], &rotation.sin[at], sign);
        }
    }
}

/// silu(gate) · up.
pub fn gate(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + exp(-g)) * u).collect()
}

/// Attention of one query row over `count` keys and values laid out with `stride`: one head, into `out`.
pub fn attend_row(query: &[f32], keys: &[f32], values: &[f32], count: usize, stride: usize, weights: &mut Vec<f32>, out: &mut [f32]) {
    let head_dim = query.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    weights.clear();
    weights.extend((0..count).map(|j| dot(query, &keys[j * stride..j * stride + head_dim]) * scale));
    softmax(weights);
    out.fill(0.0);
    for (j, weight) in weights.iter().enumerate() {
        let value = &values[j * stride..j * stride + head_dim];
        out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
    }
}

impl Shape {
    fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows `x` of sequences of `lengths` → output rows, and the tape.
    pub fn forward(&self, w: &BlockParameters, x: Vec<f32>, lengths: &[usize], rotation: Option<&Rotation>) -> (Vec<f32>, Tape) {
        let (d, qw, kw) = (self.width, self.query_width(), self.key_width());
        let n = x.len() / d;
        let (input_normed, input_scale) = rms_norm(&x, &w.input_norm, self.eps);
        let mut query = project(&input_normed, &w.query, n, d, qw);
        let mut key = project(&input_normed, &w.key, n, d, kw);
        let value = project(&input_normed, &w.value, n, d, kw);
        if let Some(rotation) = rotation {
            rotate_all(&mut query, qw, lengths, rotation, self.head_dim, 1.0);
            rotate_all(&mut key, kw, lengths, rotation, self.head_dim, 1.0);
        }
        let (weights, attended) = self.attend(&query, &key, &value, lengths);
        let mut middle = x.clone();
        multiply(n, qw, d, 1.0, Matrix::rows(&attended, qw), Matrix::rows(&w.output, d), &mut middle, d, true);
        let (middle_normed, middle_scale) = rms_norm(&middle, &w.mlp_norm, self.eps);
        let gate_rows = project(&middle_normed, &w.gate, n, d, self.hidden);
        let up = project(&middle_normed, &w.up, n, d, self.hidden);
        let gated = gate(&gate_rows, &up);
        let mut output = middle.clone();
        multiply(n, self.hidden, d, 1.0, Matrix::rows(&gated, self.hidden), Matrix::rows(&w.down, d), &mut output, d, true);
        let tape = Tape {
            input: x,
            input_normed,
            input_scale,
            query,
            key,
            value,
            weights,
            attended,
            middle,
            middle_normed,
            middle_scale,
            gate: gate_rows,
            up,
            gated,
        };
        (output, tape)
    }

    fn attend(&self, query: &[f32], key: &[f32], value: &[f32], lengths: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (dh, qw, kw) = (self.head_dim, self.query_width(), self.key_width());
        let scale = 1.0 / (dh as f32).sqrt();
        let mut weights = vec![0.0; self.heads * lengths.iter().map(|length| length * length).sum::<usize>()];
        let mut attended = vec![0.0; query.len()];
        let (mut start, mut at) = (0, 0);
        for &length in lengths {
            for head in 0..self.heads {
                let (q, kv) = (start * qw + head * dh, start * kw + head * self.kv_heads / self.heads * dh);
                let square = &mut weights[at..at + length * length];
                multiply(
                    length,
                    dh,
                    length,
                    scale,
                    Matrix::rows(&query[q..], qw),
                    Matrix::transposed(&key[kv..], kw),
                    square,
                    length,
                    false,
                );
                for (i, row) in square.chunks_exact_mut(length).enumerate() {
                    let seen = if self.causal { i + 1 } else { length };
                    softmax(&mut row[..seen]);
                    row[seen..].fill(0.0);
                }
                multiply(
                    length,
                    length,
                    dh,
                    1.0,
                    Matrix::rows(square, length),
                    Matrix::rows(&value[kv..], kw),
                    &mut attended[q..],
                    qw,
                    false,
                );
                at += length * length;
            }
            start += length;
        }
        (weights, attended)
    }

    /// Gradient of the output rows → gradient of the input rows; adds the weights' gradients to `g`.
    pub fn backward(
        &self,
        w: &BlockParameters,
        g: &mut BlockParameters,
        tape: &Tape,
        dy: Vec<f32>,
        lengths: &[usize],
        rotation: Option<&Rotation>,
    ) -> Vec<f32> {
        let (d, qw, kw) = (self.width, self.query_width(), self.key_width());
        let n = dy.len() / d;
        let mut dgated = vec![0.0; n * self.hidden];
        project_backward(&tape.gated, &w.down, &dy, n, self.hidden, d, &mut g.down, &mut dgated, false);
        let mut dup = vec![0.0; n * self.hidden];
        let values = dgated.iter_mut().zip(&mut dup).zip(&tape.gate).zip(&tape.up);
        for (((dgated, dup), gate), up) in values {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            *dup = *dgated * gate * sigmoid;
            *dgated *= up * sigmoid * (1.0 + gate * (1.0 - sigmoid)); // from here on the gradient of the gate
        }
        let mut dnormed = vec![0.0; n * d];
        project_backward(&tape.middle_normed, &w.gate, &dgated, n, d, self.hidden, &mut g.gate, &mut dnormed, false);
        project_backward(&tape.middle_normed, &w.up, &dup, n, d, self.hidden, &mut g.up, &mut dnormed, true);
        let mut dmiddle = dy;
        rms_norm_backward(&tape.middle, &w.mlp_norm, &tape.middle_scale, &dnormed, &mut dmiddle, &mut g.mlp_norm);

        let mut dattended = vec![0.0; n * qw];
        project_backward(&tape.attended, &w.output, &dmiddle, n, qw, d, &mut g.output, &mut dattended, false);
        let (mut dquery, mut dkey, dvalue) = self.attend_backward(tape, &dattended, lengths);
        if let Some(rotation) = rotation {
            rotate_all(&mut dquery, qw, lengths, rotation, self.head_dim, -1.0);
            rotate_all(&mut dkey, kw, lengths, rotation, self.head_dim, -1.0);
        }
        project_backward(&tape.input_normed, &w.query, &dquery, n, d, qw, &mut g.query, &mut dnormed, false);
        project_backward(&tape.input_normed, &w.key, &dkey, n, d, kw, &mut g.key, &mut dnormed, true);
        project_backward(&tape.input_normed, &w.value, &dvalue, n, d, kw, &mut g.value, &mut dnormed, true);
        rms_norm_backward(&tape.input, &w.input_norm, &tape.input_scale, &dnormed, &mut dmiddle, &mut g.input_norm);
        dmiddle
    }

    fn attend_backward(&self, tape: &Tape, dattended: &[f32], lengths: &[usize]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (dh, qw, kw) = (self.head_dim, self.query_width(), self.key_width());
        let scale = 1.0 / (dh as f32).sqrt();
        let mut dquery = vec![0.0; tape.query.len()];
        let mut dkey = vec![0.0; tape.key.len()];
        let mut dvalue = vec![0.0; tape.value.len()];
        let longest = lengths.iter().max().map_or(0, |length| length * length);
        let mut square = vec![0.0; longest];
        let (mut start, mut at) = (0, 0);
        for &length in lengths {
            let dscores = &mut square[..length * length];
            for head in 0..self.heads {
                let (q, kv) = (start * qw + head * dh, start * kw + head * self.kv_heads / self.heads * dh);
                let weights = &tape.weights[at..at + length * length];
                let dout = Matrix::rows(&dattended[q..], qw);
                multiply(length, dh, length, 1.0, dout, Matrix::transposed(&tape.value[kv..], kw), dscores, length, false);
                multiply(length, length, dh, 1.0, Matrix::transposed(weights, length), dout, &mut dvalue[kv..], kw, true);
                for (dscore, weight) in dscores.chunks_exact_mut(length).zip(weights.chunks_exact(length)) {
                    let mean = dot(dscore, weight);
                    dscore.iter_mut().zip(weight).for_each(|(d, w)| *d = w * (*d - mean));
                }
                multiply(
                    length,
                    length,
                    dh,
                    scale,
                    Matrix::rows(dscores, length),
                    Matrix::rows(&tape.key[kv..], kw),
                    &mut dquery[q..],
                    qw,
                    false,
                );
                multiply(
                    length,
                    length,
                    dh,
                    scale,
                    Matrix::transposed(dscores, length),
                    Matrix::rows(&tape.query[q..], qw),
                    &mut dkey[kv..],
                    kw,
                    true,
                );
                at += length * length;
            }
            start += length;
        }
        (dquery, dkey, dvalue)
    }
}
