//! Products of 8-bit matrices, compiled for what the processor has.
//!
//! One plain loop, which the compiler turns into dot products of 8-bit numbers (`vpdpwssd` with VNNI, `vpmaddwd` with AVX2, `sdot` with ARM's
//! dotprod, `smull` with plain NEON), and for many rows with AVX-512 VNNI one by hand. All give the same sums: nothing saturates.

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

    // Not inlined: its sums then stay in registers.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn block(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE] {
        let (x, w) = (lines(x, inputs), lines(w, inputs));
        let mut sums = [[_mm512_setzero_si512(); TILE]; TILE];
        for first in (0..inputs).step_by(WIDTH) {
            let mut columns = [_mm512_setzero_si512(); TILE];
            for (column, w) in columns.iter_mut().zip(&w) {
                *column = load(w, first);
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = load(x, first);
                for (sum, w) in sums.iter_mut().zip(&columns) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, *w);
                }
            }
        }
        // By loops over arrays: they are unrolled.
        let mut totals = [[0; TILE]; TILE];
        for (totals, sums) in totals.iter_mut().zip(&sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = _mm512_reduce_add_epi32(*sum);
            }
        }
        totals
    }

    #[inline(always)]
    fn lines<Byte>(tile: &[Byte], inputs: usize) -> [&[Byte]; TILE] {
        std::array::from_fn(|row| &tile[row * inputs..][..inputs])
    }

    struct Vnni;

    impl Tile for Vnni {
        #[inline(always)]
        fn multiply(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE] {
            // SAFETY: only the function around it names this type.
            unsafe { block(x, w, inputs) }
        }
    }

    sweep::<Vnni>(x, w, inputs, y);
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
    sweep::<Plain>(x, w, inputs, y);
}

/// How four rows are multiplied with four outputs. A trait, because closures are compiled without the vectors of the function around them.
trait Tile {
    fn multiply(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE];
}

/// Goes over all outputs once, whatever the number of rows: weights are what is large.
#[inline(always)]
fn sweep<T: Tile>(x: &[Level], w: &[i8], inputs: usize, y: &mut [i32]) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(y.len(), rows * outputs);
    for (number, w) in w.chunks(TILE * inputs).enumerate() {
        let count = w.len() / inputs;
        let tiled = if count == TILE { rows / TILE * TILE } else { 0 };
        let mut y = y.chunks_exact_mut(outputs).map(|y| &mut y[number * TILE..][..count]);
        for x in x[..tiled * inputs].chunks_exact(TILE * inputs) {
            for (sums, y) in T::multiply(x, w, inputs).iter().zip(&mut y) {
                y.copy_from_slice(sums);
            }
        }
        for (x, y) in x[tiled * inputs..].chunks_exact(inputs).zip(y) {
            for (w, y) in w.chunks_exact(inputs).zip(y) {
                *y = dot(x, w);
            }
        }
    }
}

struct Plain;

impl Tile for Plain {
    #[inline(always)]
    fn multiply(x: &[Level], w: &[i8], inputs: usize) -> [[i32; TILE]; TILE] {
        let mut sums = [[0; TILE]; TILE];
        for (x, sums) in x.chunks_exact(inputs).zip(&mut sums) {
            for (w, sum) in w.chunks_exact(inputs).zip(sums) {
                *sum = dot(x, w);
            }
        }
        sums
    }
}

// Sums that cannot overflow are told so to builds that check it: checks keep the compiler from its vectors.

#[inline(always)]
fn dot(x: &[Level], w: &[i8]) -> i32 {
    x.iter().zip(w).fold(0, |sum: i32, (x, w)| sum.wrapping_add(i32::from(*x).wrapping_mul(i32::from(*w))))
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
