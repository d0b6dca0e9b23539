//! Matrix products on slices (the `gemm` crate), and an exponential that the compiler can vectorise.

/// A matrix inside a slice: element (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` one after another.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, column: 1 }
    }

    /// The transpose of rows of `width`.
    pub fn transposed(data: &'a [f32], width: usize) -> Self {
        Self { data, row: 1, column: width }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// `out` [n, m] = scale · a [n, k] · b [k, m], added to what is there if `add`. Rows of `out` are `stride` apart.
///
/// # Panics
/// A matrix that does not lie within its slice.
#[allow(clippy::too_many_arguments)] // three sizes and three operands: a product has no fewer
pub fn multiply(n: usize, k: usize, m: usize, scale: f32, a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], stride: usize, add: bool) {
    if n == 0 || m == 0 {
        return;
    }
    assert!(a.covers(n, k) && b.covers(k, m) && (n - 1) * stride + m <= out.len(), "a matrix does not fit its slice");
    // SAFETY: all three operands lie within their slices (just asserted), and `out` is borrowed mutably, hence apart from `a` and `b`.
    unsafe {
        gemm::gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// x [n, k] · w [k, m].
pub fn project(x: &[f32], w: &[f32], n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * m];
    multiply(n, k, m, 1.0, Matrix::rows(x, k), Matrix::rows(w, m), &mut out, m, false);
    out
}

/// Backward of [`project`]: adds to `dw` [k, m] and `dx` [n, k].
#[allow(clippy::too_many_arguments)]
pub fn project_backward(x: &[f32], w: &[f32], dy: &[f32], n: usize, k: usize, m: usize, dw: &mut [f32], dx: &mut [f32], add: bool) {
    multiply(k, n, m, 1.0, Matrix::transposed(x, k), Matrix::rows(dy, m), dw, m, true);
    multiply(n, m, k, 1.0, Matrix::rows(dy, m), Matrix::transposed(w, m), dx, k, add);
}

/// e^x to about 1e-7 relative, without branches (Cephes' polynomial), for x in ±87; beyond that it stays at the border's value.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let x = x.clamp(-87.0, 87.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4; // ln 2 in two parts
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    f32::from_bits(((n as i32 + 127) << 23) as u32) * y
}

/// Sum of products, in eight lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a16.zip(b16) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Softmax of a row in place; returns the logarithm of its denominator plus the maximum (log-sum-exp).
#[inline(always)]
pub fn softmax(row: &mut [f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in row.chunks(16) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*x);
        }
    }
    let largest = lanes.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sums = [0.0f32; 16];
    for chunk in row.chunks_mut(16) {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *x = exp(*x - largest);
            *sum += *x;
        }
    }
    let sum: f32 = sums.iter().sum();
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= scale);
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_float_precision() {
        for i in -8600..8600 {
            let x = i as f32 * 0.01;
            let error = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(error < 3e-7, "{x}: {error}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_returns_log_sum_exp() {
        let logits = [1.0f32, -2.0, 0.5, 30.0, 29.0];
        let mut row = logits;
        let total = softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let expected = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        assert!((f64::from(total) - expected).abs() < 1e-5);
    }

    #[test]
    fn products_in_all_orientations() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]; // [3, 2]
        assert_eq!(project(&a, &b, 2, 3, 2), [5.0, 11.0, 14.0, 23.0]);
        let mut out = [1.0; 9]; // bᵀ as [2, 3] columns: a^T a
        multiply(3, 2, 3, 2.0, Matrix::transposed(&a, 3), Matrix::rows(&a, 3), &mut out, 3, true);
        assert_eq!(out, [35.0, 45.0, 55.0, 45.0, 59.0, 73.0, 55.0, 73.0, 91.0]);
    }
}
