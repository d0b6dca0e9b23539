//! Audio constants and the log-mel front end, shared by the networks and the corpus.
//!
//! Frame t of the log-mel spectrogram sees samples `[160(t+1) - 400, 160(t+1))`: it looks back only, so the same numbers
//! come out whole or streamed.

use std::f64::consts::PI;

/// Samples a second, everywhere.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples of one unit (25 Hz).
pub const UNIT_SAMPLES: usize = 640;
/// Samples between two log-mel frames (100 Hz).
pub const HOP: usize = 160;
/// Samples of one analysis window (25 ms), also the length of its DFT.
pub const WINDOW: usize = 400;
/// Bins of that DFT.
pub const BINS: usize = WINDOW / 2 + 1;
/// Mel bands of the tokenizer.
pub const MELS: usize = 64;
/// Added to a mel power before the logarithm.
pub const LOG_FLOOR: f32 = 1e-5;

/// `(ln(power + LOG_FLOOR) + 4) / 4`: about zero mean and unit scale for speech at usual levels.
pub fn normalise_log_mel(power: f32) -> f32 {
    ((power + LOG_FLOOR).ln() + 4.0) / 4.0
}

/// Periodic Hann window.
pub fn hann(n: usize) -> Vec<f32> {
    (0..n).map(|i| (0.5 - 0.5 * (2.0 * PI * i as f64 / n as f64).cos()) as f32).collect()
}

/// Triangular HTK-mel filters from 0 to 8000 Hz for a DFT of `n_fft` points: `[n_fft/2 + 1][bands]`, row major.
pub fn mel_filters(n_fft: usize, bands: usize) -> Vec<f32> {
    let mel = |hz: f64| 2595.0 * (1.0 + hz / 700.0).log10();
    let hz = |mel: f64| 700.0 * (10f64.powf(mel / 2595.0) - 1.0);
    let top = mel(SAMPLE_RATE as f64 / 2.0);
    let edges: Vec<f64> = (0..bands + 2).map(|i| hz(top * i as f64 / (bands + 1) as f64)).collect();
    let bins = n_fft / 2 + 1;
    let mut filters = vec![0.0; bins * bands];
    for bin in 0..bins {
        let f = bin as f64 * SAMPLE_RATE as f64 / n_fft as f64;
        for band in 0..bands {
            let (low, centre, high) = (edges[band], edges[band + 1], edges[band + 2]);
            let weight = ((f - low) / (centre - low)).min((high - f) / (high - centre)).max(0.0);
            filters[bin * bands + band] = weight as f32;
        }
    }
    filters
}

/// Real DFT as a matrix, `[n][2 * (n/2 + 1)]` row major: cosines first, then negative sines; rows are multiplied by `window`.
pub fn dft_matrix(window: &[f32]) -> Vec<f32> {
    let n = window.len();
    let bins = n / 2 + 1;
    let mut matrix = vec![0.0; n * 2 * bins];
    for (t, w) in window.iter().enumerate() {
        for k in 0..bins {
            // The product is reduced first: large angles lose digits.
            let angle = 2.0 * PI * ((t * k) % n) as f64 / n as f64;
            matrix[t * 2 * bins + k] = (f64::from(*w) * angle.cos()) as f32;
            matrix[t * 2 * bins + bins + k] = (-f64::from(*w) * angle.sin()) as f32;
        }
    }
    matrix
}

/// Log-mel frames of a whole signal on the host: `[audio.len() / HOP][MELS]`, row major. The same numbers as the network's
/// own front end, by FFT.
pub struct LogMel {
    fft: std::sync::Arc<dyn realfft::RealToComplex<f32>>,
    window: Vec<f32>,
    /// Per band: first bin and the weights from there (a filter touches few bins).
    filters: Vec<(usize, Vec<f32>)>,
}

impl Default for LogMel {
    fn default() -> Self {
        let dense = mel_filters(WINDOW, MELS);
        let filters = (0..MELS)
            .map(|band| {
                let column: Vec<f32> = (0..BINS).map(|bin| dense[bin * MELS + band]).collect();
                let first = column.iter().position(|w| *w > 0.0).unwrap_or(0);
                let last = column.iter().rposition(|w| *w > 0.0).unwrap_or(0);
                (first, column[first..=last].to_vec())
            })
            .collect();
        Self { fft: realfft::RealFftPlanner::new().plan_fft_forward(WINDOW), window: hann(WINDOW), filters }
    }
}

impl LogMel {
    /// Frames of `audio`, as if silence had come before it. Samples after the last whole hop are left out.
    pub fn frames(&self, audio: &[f32]) -> Vec<f32> {
        let count = audio.len() / HOP;
        let mut output = Vec::with_capacity(count * MELS);
        let mut frame = vec![0.0; WINDOW];
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = [0.0; BINS];
        for t in 0..count {
            let end = (t + 1) * HOP;
            for (i, value) in frame.iter_mut().enumerate() {
                let at = end + i;
                *value = if at < WINDOW { 0.0 } else { audio[at - WINDOW] * self.window[i] };
            }
            self.fft.process_with_scratch(&mut frame, &mut spectrum, &mut scratch).expect("the buffers were made by this plan");
            for (p, c) in power.iter_mut().zip(&spectrum) {
                *p = c.norm_sqr();
            }
            output.extend(
                self.filters
                    .iter()
                    .map(|(first, weights)| normalise_log_mel(weights.iter().zip(&power[*first..]).map(|(w, p)| w * p).sum())),
            );
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fft_front_end_equals_the_matrix_form() {
        let audio: Vec<f32> = (0..1600).map(|i| ((i * i) as f32 * 0.001).sin() * 0.3).collect();
        let frames = LogMel::default().frames(&audio);
        assert_eq!(frames.len(), 10 * MELS);
        let (matrix, filters) = (dft_matrix(&hann(WINDOW)), mel_filters(WINDOW, MELS));
        for t in [0, 1, 2, 9] {
            let sample = |i: usize| ((t + 1) * HOP + i).checked_sub(WINDOW).map_or(0.0, |at| audio[at]);
            let bin = |k: usize| (0..WINDOW).map(|i| sample(i) * matrix[i * 2 * BINS + k]).sum::<f32>();
            let power: Vec<f32> = (0..BINS).map(|k| bin(k).powi(2) + bin(BINS + k).powi(2)).collect();
            for band in 0..MELS {
                let expected = normalise_log_mel((0..BINS).map(|k| power[k] * filters[k * MELS + band]).sum());
                let error = (frames[t * MELS + band] - expected).abs();
                assert!(error < 1e-4, "frame {t} band {band}: {error}");
            }
        }
    }

    #[test]
    fn every_mel_band_has_a_filter() {
        let filters = mel_filters(WINDOW, MELS);
        for band in 0..MELS {
            assert!((0..BINS).any(|bin| filters[bin * MELS + band] > 0.0), "band {band} is empty");
        }
    }
}
