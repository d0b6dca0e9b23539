//! k-means for the codebook: random distinct starts by k-means++ on a sample, then Lloyd iterations.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Rows that the k-means++ start looks at; more would only cost time.
const START_ROWS: usize = 20_000;
/// Rows whose distances are computed in one matrix product.
const BLOCK: usize = 8_192;

/// A codebook and how well it fits.
#[derive(Debug, Clone)]
pub struct Codebook {
    /// `[k, dim]`, row by row.
    pub centroids: Vec<f32>,
    /// Mean squared distance of a row to its centroid.
    pub distortion: f64,
    /// exp(entropy) of the use of the centroids, at most k.
    pub perplexity: f64,
}

/// Clusters `rows` (`[n, dim]`, n ≥ k) into `k` centroids; the same seed gives the same codebook.
pub fn fit(rows: &[f32], dim: usize, k: usize, iterations: usize, seed: u64, device: &Device) -> Codebook {
    let n = rows.len() / dim;
    assert!(n >= k, "{n} rows cannot make {k} clusters");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut centroids = start(rows, dim, k, &mut rng);
    let mut codebook = Codebook { centroids: Vec::new(), distortion: f64::INFINITY, perplexity: 0.0 };
    for _ in 0..iterations.max(1) {
        let (assignment, distances) = assign(rows, dim, &centroids, device);
        let mut sums = vec![0.0f64; k * dim];
        let mut counts = vec![0usize; k];
        for (row, unit) in rows.chunks_exact(dim).zip(&assignment) {
            counts[*unit] += 1;
            sums[unit * dim..][..dim].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let entropy: f64 = counts.iter().filter(|c| **c > 0).map(|c| *c as f64 / n as f64).map(|p| -p * p.ln()).sum();
        codebook.distortion = distances.iter().map(|d| f64::from(*d)).sum::<f64>() / n as f64;
        codebook.perplexity = entropy.exp();
        for (unit, count) in counts.iter().enumerate() {
            let centroid = &mut centroids[unit * dim..][..dim];
            if *count == 0 {
                // An empty cluster starts again at a row drawn anew.
                let row = rng.random_range(0..n);
                centroid.copy_from_slice(&rows[row * dim..][..dim]);
            } else {
                centroid.iter_mut().zip(&sums[unit * dim..]).for_each(|(c, sum)| *c = (sum / *count as f64) as f32);
            }
        }
    }
    codebook.centroids = centroids;
    codebook
}

/// Nearest centroid of each row, and the squared distance to it.
pub fn assign(rows: &[f32], dim: usize, centroids: &[f32], device: &Device) -> (Vec<usize>, Vec<f32>) {
    let k = centroids.len() / dim;
    let squares: Vec<f32> = centroids.chunks_exact(dim).map(|c| c.iter().map(|x| x * x).sum()).collect();
    let transposed = Tensor::<2>::from_data(TensorData::new(centroids.to_vec(), [k, dim]), device).transpose();
    let mut result = (Vec::with_capacity(rows.len() / dim), Vec::with_capacity(rows.len() / dim));
    for block in rows.chunks(BLOCK * dim) {
        let x = Tensor::<2>::from_data(TensorData::new(block.to_vec(), [block.len() / dim, dim]), device);
        let products: Vec<f32> = x.matmul(transposed.clone()).into_data().try_to_vec().expect("f32 went in");
        let nearest: Vec<(usize, f32)> = products
            .par_chunks(k)
            .zip(block.par_chunks(dim))
            .map(|(products, row)| {
                let mut best = (0, f32::INFINITY);
                for (unit, (product, square)) in products.iter().zip(&squares).enumerate() {
                    let score = square - 2.0 * product;
                    if score < best.1 {
                        best = (unit, score);
                    }
                }
                (best.0, (best.1 + row.iter().map(|x| x * x).sum::<f32>()).max(0.0))
            })
            .collect();
        result.0.extend(nearest.iter().map(|(unit, _)| *unit));
        result.1.extend(nearest.iter().map(|(_, distance)| *distance));
    }
    result
}

/// k-means++ (Arthur & Vassilvitskii 2007): each start is drawn with a probability that grows with its distance to those before.
fn start(rows: &[f32], dim: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let n = rows.len() / dim;
    let sample: Vec<&[f32]> = index::sample(rng, n, n.min(START_ROWS.max(k))).into_iter().map(|i| &rows[i * dim..][..dim]).collect();
    let mut centroids = sample[0].to_vec();
    let mut nearest = vec![f32::INFINITY; sample.len()];
    while centroids.len() < k * dim {
        let last = &centroids[centroids.len() - dim..];
        nearest.par_iter_mut().zip(&sample).for_each(|(nearest, row)| {
            *nearest = nearest.min(row.iter().zip(last).map(|(a, b)| (a - b) * (a - b)).sum());
        });
        let total: f64 = nearest.iter().map(|d| f64::from(*d)).sum();
        let mut left = rng.random::<f64>() * total;
        let chosen = nearest.iter().position(|d| {
            left -= f64::from(*d);
            left < 0.0
        });
        let chosen = chosen.unwrap_or_else(|| rng.random_range(0..sample.len()));
        centroids.extend_from_slice(sample[chosen]);
    }
    centroids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separated_clusters_are_found_and_the_seed_decides() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (k, dim) = (6, 4);
        let centres: Vec<f32> =
            (0..k * dim).map(|i| if i % dim == i / dim % dim { 10.0 * (1 + i / dim / dim) as f32 } else { 0.0 }).collect();
        let rows: Vec<f32> = (0..600)
            .flat_map(|i| centres[i % k * dim..][..dim].iter().map(|c| c + rng.random_range(-0.1..0.1)).collect::<Vec<_>>())
            .collect();
        let device = Device::flex();
        let codebook = fit(&rows, dim, k, 10, 7, &device);
        assert!(codebook.distortion < 0.05, "{}", codebook.distortion);
        assert!(codebook.perplexity > 5.9, "{}", codebook.perplexity);
        assert_eq!(codebook.centroids, fit(&rows, dim, k, 10, 7, &device).centroids);
    }
}
