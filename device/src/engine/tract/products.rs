//! Products of 8-bit matrices, compiled for what the processor has.
//!
//! One plain loop, written so that the compiler turns it into dot products of 8-bit numbers (`vpdpbusd` with AVX-512 VNNI or AVX-VNNI,
//! `vpmaddwd` with AVX2, `sdot` with ARM's dotprod, `smull` with plain NEON). All versions give the same sums: nothing saturates.

/// An input in 8 bits. ARM multiplies signed by signed numbers only, x86 unsigned by signed ones only.
#[cfg(target_arch = "aarch64")]
pub type Level = i8;
#[cfg(not(target_arch = "aarch64"))]
pub type Level = u8;

/// What is taken from an unsigned 8-bit number to make a [`Level`] of it.
pub const SHIFT: i32 = if Level::MIN == 0 { 0 } else { 128 };

/// Most inputs of a layer whose sums certainly fit 32 bits.
pub const MOST_INPUTS: usize = 1 << 16;

/// Rows and outputs that are computed together, where there are so many: each number that is read then serves four products.
const TILE: usize = 4;

/// `x · wᵀ` for `x` `[rows, inputs]` and `w` `[outputs, inputs]`, into `y` `[rows, outputs]`.
pub fn products(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    {
        let avx512 = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
        if avx512 && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { avx512_vnni(x, w, inputs, y) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
            // SAFETY: likewise.
            return unsafe { avx_vnni(x, w, inputs, y) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: likewise.
            return unsafe { avx2(x, w, inputs, y) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        // SAFETY: likewise.
        return unsafe { dotprod(x, w, inputs, y) };
    }
    plain(x, w, inputs, y);
}

/// The compiler widens numbers before it multiplies them here, which costs two thirds of the speed of many rows: tiles are written by hand.
/// Single rows wait for the memory, and for that its loop is the better one (42 GB/s against 31 by hand).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn avx512_vnni(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_maskz_loadu_epi8, _mm512_reduce_add_epi32, _mm512_setzero_si512};

    /// Numbers in a vector.
    const WIDTH: usize = 64;

    /// Numbers `first..` of a row, as many as a vector holds; zeros behind its end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load<Byte>(row: &[Byte], first: usize) -> __m512i {
        const { assert!(size_of::<Byte>() == 1) };
        let mask = u64::MAX >> (WIDTH - WIDTH.min(row.len() - first));
        // SAFETY: what the mask leaves out is not read, and it has no more bits than there are numbers from `first` on.
        unsafe { _mm512_maskz_loadu_epi8(mask, row.as_ptr().add(first).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn block(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE] {
        let mut sums = [[_mm512_setzero_si512(); TILE]; TILE];
        for first in (0..inputs).step_by(WIDTH) {
            let w: [__m512i; TILE] = std::array::from_fn(|b| load(&w[b * inputs..][..inputs], first));
            for (x, sums) in x.chunks_exact(inputs).zip(&mut sums) {
                let x = load(x, first);
                for (sum, w) in sums.iter_mut().zip(&w) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, *w);
                }
            }
        }
        // By loops: the closure of `map` would be compiled without the vectors.
        let mut totals = [[0; TILE]; TILE];
        for (totals, sums) in totals.iter_mut().zip(&sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = _mm512_reduce_add_epi32(*sum);
            }
        }
        totals
    }

    sweep(x, w, inputs, y, &|x, w| block(x, w, inputs));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
fn avx_vnni(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    plain(x, w, inputs, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    plain(x, w, inputs, y);
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "dotprod")]
fn dotprod(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    plain(x, w, inputs, y);
}

#[inline(always)]
fn plain(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    sweep(x, w, inputs, y, &|x, w| tile(x, w, inputs));
}

/// Goes over all outputs once, whatever the number of rows: weights are what is large. `tile` multiplies four rows with four outputs.
#[inline(always)]
fn sweep(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32], tile: &impl Fn(&[Level], &[i8]) -> [[i32; TILE]; TILE]) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(y.len(), rows * outputs);
    for (number, w) in w.chunks(TILE * inputs).enumerate() {
        let count = w.len() / inputs;
        let tiled = if count == TILE { rows / TILE * TILE } else { 0 };
        let mut y = y.chunks_exact_mut(outputs).map(|y| &mut y[number * TILE..][..count]);
        for (x, y) in x[..tiled * inputs].chunks_exact(TILE * inputs).flat_map(|x| tile(x, w)).zip(&mut y) {
            y.copy_from_slice(&x);
        }
        for (x, y) in x[tiled * inputs..].chunks_exact(inputs).zip(y) {
            for (w, y) in w.chunks_exact(inputs).zip(y) {
                *y = dot(x, w);
            }
        }
    }
}

// Sums that cannot overflow are told so to builds that check it: checks keep the compiler from its vectors.

#[inline(always)]
fn dot(x: &[Level], w: &[i8]) -> i32 {
    x.iter().zip(w).fold(0, |sum: i32, (x, w)| sum.wrapping_add(i32::from(*x).wrapping_mul(i32::from(*w))))
}

#[inline(always)]
fn tile(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE] {
    let x: [&[Level]; TILE] = std::array::from_fn(|a| &x[a * inputs..][..inputs]);
    let w: [&[i8]; TILE] = std::array::from_fn(|b| &w[b * inputs..][..inputs]);
    let mut sums = [[0i32; TILE]; TILE];
    for i in 0..inputs {
        for (x, sums) in x.iter().zip(&mut sums) {
            for (w, sum) in w.iter().zip(sums) {
                *sum = sum.wrapping_add(i32::from(x[i]).wrapping_mul(i32::from(w[i])));
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All versions that this processor has, for sizes on and off the tiles and vectors, with the largest numbers among them.
    #[test]
    fn every_version_sums_exactly() {
        type Version = fn(&[Level], &[i8], usize, &mut [i32]);
        let mut versions: Vec<(&str, Version)> = vec![("chosen", products), ("plain", |x, w, k, y| plain(x, w, k, y))];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it.
                versions.push(("avx2", |x, w, k, y| unsafe { avx2(x, w, k, y) }));
            }
            if is_x86_feature_detected!("avxvnni") {
                // SAFETY: likewise.
                versions.push(("avx_vnni", |x, w, k, y| unsafe { avx_vnni(x, w, k, y) }));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            // SAFETY: the processor has it.
            versions.push(("dotprod", |x, w, k, y| unsafe { dotprod(x, w, k, y) }));
        }
        for (rows, outputs, inputs) in [(1, 1, 1), (1, 7, 65), (3, 9, 130), (4, 8, 64), (6, 11, 333), (9, 4, 1000)] {
            let x: Vec<Level> = (0..rows * inputs).map(|i| if i % 3 == 0 { Level::MAX } else { (i * 37 % 251) as Level }).collect();
            let w: Vec<i8> = (0..outputs * inputs).map(|i| if i % 5 == 0 { -127 } else { (i * 91 % 255) as u8 as i8 }).collect();
            let exact =
                |r: usize, o: usize| -> i64 { (0..inputs).map(|i| i64::from(x[r * inputs + i]) * i64::from(w[o * inputs + i])).sum() };
            for (name, version) in &versions {
                let mut y = vec![0; rows * outputs];
                version(&x, &w, inputs, &mut y);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(i64::from(*y), exact(i / outputs, i % outputs), "{name}: {rows} {outputs} {inputs}, sum {i}");
                }
            }
        }
    }
}
