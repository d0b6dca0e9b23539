//! How unlike the units of a tokenizer are, by their centroids: what the device needs to find a wake phrase.

/// The file in a bundle.
pub const UNIT_DISTANCES: &str = "unit_distances.u8";
/// Most units of a tokenizer: the distances of so many take 64 MB in the bundle, and half a gigabyte while they are computed.
pub const MOST_UNITS: usize = 8192;

/// Distances of all pairs of `k` centroids (`[k, d]`), as `[k, k]` bytes: 255 for the median distance and beyond.
pub fn distances(centroids: &[f32], k: usize) -> Vec<u8> {
    let rows: Vec<&[f32]> = centroids.chunks_exact(centroids.len() / k.max(1)).collect();
    let between = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let mut all = vec![0.0; rows.len() * rows.len()];
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate().skip(i + 1) {
            let distance = between(a, b);
            all[i * rows.len() + j] = distance;
            all[j * rows.len() + i] = distance;
        }
    }
    let mut sorted = all.clone();
    let middle = sorted.len() / 2;
    let median = if sorted.is_empty() { 1.0 } else { *sorted.select_nth_unstable_by(middle, f32::total_cmp).1 };
    all.into_iter().map(|distance| (255.0 * (distance / median.max(f32::MIN_POSITIVE)).min(1.0)).round() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_centroids_have_small_distances() {
        let table = distances(&[0.0, 0.0, 0.0, 1.0, 0.0, 4.0, 4.0, 0.0], 4);
        assert_eq!(table.len(), 16);
        assert!((0..4).all(|i| table[5 * i] == 0));
        assert!(table[1] < table[2] && table[1] == table[4], "{table:?}");
        assert_eq!(table[11], 255);
    }
}
