//! The spectral losses of the decoder and their gradient by the waveform, written by hand on plain slices.
//!
//! At each resolution: the mean absolute difference of log-magnitudes plus the spectral convergence
//! `‖Y - X‖ / ‖Y‖` (Yamamoto et al., "Parallel WaveGAN", 2020); at the resolution of 1024 points also the mean
//! absolute difference of log-mel bands (Kong et al., "HiFi-GAN", 2020), from the same spectra. By hand because
//! real FFTs make this a few hundredths of a training step, where DFT products under autodiff take a third of it.

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use crate::audio::{hann, mel_filters};

/// Added to the power of each bin: about a step of 16-bit audio under the largest window.
const POWER_FLOOR: f32 = 1e-5;
/// Added to each mel band before the logarithm.
const MEL_FLOOR: f32 = 1e-4;
const MEL_BANDS: usize = 80;
const MEL_POINTS: usize = 1024;

/// What the loss of a batch is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpectralTerms {
    /// Mean over resolutions of spectral convergence plus log-magnitude L1.
    pub stft: f32,
    /// Log-mel L1 (natural logarithm, 80 bands), unweighted.
    pub mel: f32,
    /// `stft + mel_weight * mel`: what is differentiated.
    pub total: f32,
}

struct Resolution {
    points: usize,
    hop: usize,
    window: Vec<f32>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

/// One mel band: its first bin and its weights.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

/// Multi-resolution STFT and log-mel loss.
pub struct SpectralLoss {
    resolutions: Vec<Resolution>,
    bands: Vec<Band>,
    mel_weight: f32,
}

/// Spectra of all windows of all rows at one resolution.
struct Spectra {
    bins: Vec<Complex32>,
    magnitudes: Vec<f32>,
}

impl SpectralLoss {
    /// Windows of `resolutions` points, a hop of a quarter of each. 1024 must be among them: the mel bands use it.
    pub fn new(resolutions: &[usize], mel_weight: f32) -> Self {
        let mut planner = RealFftPlanner::new();
        SpectralLoss {
            resolutions: resolutions
                .iter()
                .map(|&points| Resolution {
                    points,
                    hop: points / 4,
                    window: hann(points),
                    forward: planner.plan_fft_forward(points),
                    inverse: planner.plan_fft_inverse(points),
                })
                .collect(),
            bands: mel_bands(MEL_POINTS, MEL_BANDS),
            mel_weight,
        }
    }

    /// The loss of `audio` against `target`, rows of `length` samples each.
    pub fn value(&self, audio: &[f32], target: &[f32], length: usize) -> SpectralTerms {
        self.evaluate(audio, target, length, None)
    }

    /// The loss and its gradient by `audio`.
    pub fn value_and_gradient(&self, audio: &[f32], target: &[f32], length: usize) -> (SpectralTerms, Vec<f32>) {
        let mut gradient = vec![0.0; audio.len()];
        let terms = self.evaluate(audio, target, length, Some(&mut gradient));
        (terms, gradient)
    }

    fn evaluate(&self, audio: &[f32], target: &[f32], length: usize, mut out: Option<&mut [f32]>) -> SpectralTerms {
        let mut terms = SpectralTerms::default();
        let share = 1.0 / self.resolutions.len() as f32;
        for resolution in &self.resolutions {
            let x = resolution.spectra(audio, length);
            let y = resolution.spectra(target, length);
            let count = x.magnitudes.len() as f32;
            let (mut difference, mut reference, mut logs) = (0.0f64, 0.0f64, 0.0f64);
            let mut by_magnitude = vec![0.0f32; x.magnitudes.len()];
            for ((&a, &b), slot) in x.magnitudes.iter().zip(&y.magnitudes).zip(&mut by_magnitude) {
                difference += f64::from((a - b) * (a - b));
                reference += f64::from(b * b);
                let ratio = (a / b).ln();
                logs += f64::from(ratio.abs());
                *slot = ratio.signum() / (a * count);
            }
            let norm = (difference.sqrt() as f32).max(1e-12);
            let reference = reference.sqrt() as f32;
            terms.stft += share * (norm / reference + (logs / f64::from(count)) as f32);
            if out.is_some() {
                let scale = 1.0 / (norm * reference);
                for ((&a, &b), slot) in x.magnitudes.iter().zip(&y.magnitudes).zip(&mut by_magnitude) {
                    *slot = share * (*slot + (a - b) * scale);
                }
            }
            if resolution.points == MEL_POINTS {
                terms.mel = self.mel(&x, &y, resolution.bins(), &mut by_magnitude);
            }
            if let Some(gradient) = out.as_deref_mut() {
                resolution.backward(&x, &by_magnitude, length, gradient);
            }
        }
        terms.total = terms.stft + self.mel_weight * terms.mel;
        terms
    }

    /// Log-mel L1; adds its weighted gradient to `by_magnitude`.
    fn mel(&self, x: &Spectra, y: &Spectra, bins: usize, by_magnitude: &mut [f32]) -> f32 {
        let frames = x.magnitudes.len() / bins;
        let count = (frames * self.bands.len()) as f32;
        let mut sum = 0.0f64;
        for t in 0..frames {
            let row = t * bins..(t + 1) * bins;
            let (a, b) = (&x.magnitudes[row.clone()], &y.magnitudes[row.clone()]);
            let by_row = &mut by_magnitude[row];
            for band in &self.bands {
                let end = band.first + band.weights.len();
                let energy =
                    |m: &[f32]| -> f32 { m[band.first..end].iter().zip(&band.weights).map(|(m, w)| m * w).sum::<f32>() + MEL_FLOOR };
                let (mine, other) = (energy(a), energy(b));
                let ratio = (mine / other).ln();
                sum += f64::from(ratio.abs());
                let slope = self.mel_weight * ratio.signum() / (mine * count);
                for (slot, w) in by_row[band.first..end].iter_mut().zip(&band.weights) {
                    *slot += slope * w;
                }
            }
        }
        (sum / f64::from(count)) as f32
    }
}

impl Resolution {
    fn bins(&self) -> usize {
        self.points / 2 + 1
    }

    /// Windows that lie wholly inside a row.
    fn frames(&self, length: usize) -> usize {
        if length < self.points { 0 } else { (length - self.points) / self.hop + 1 }
    }

    fn spectra(&self, audio: &[f32], length: usize) -> Spectra {
        let (frames, bins) = (self.frames(length), self.bins());
        let rows = audio.len() / length;
        let mut all = vec![Complex32::default(); rows * frames * bins];
        let mut input = self.forward.make_input_vec();
        let mut scratch = self.forward.make_scratch_vec();
        let mut slots = all.chunks_exact_mut(bins);
        for row in audio.chunks_exact(length) {
            for t in 0..frames {
                let place = &row[t * self.hop..t * self.hop + self.points];
                for ((x, a), w) in input.iter_mut().zip(place).zip(&self.window) {
                    *x = a * w;
                }
                let slot = slots.next().expect("a slot per frame was made above");
                self.forward.process_with_scratch(&mut input, slot, &mut scratch).expect("the buffers are the plan's own");
            }
        }
        let magnitudes = all.iter().map(|c| (c.norm_sqr() + POWER_FLOOR).sqrt()).collect();
        Spectra { bins: all, magnitudes }
    }

    /// Adds the gradient by the samples, given that by the magnitudes.
    fn backward(&self, x: &Spectra, by_magnitude: &[f32], length: usize, gradient: &mut [f32]) {
        let (frames, bins) = (self.frames(length), self.bins());
        let mut spectrum = self.inverse.make_input_vec();
        let mut samples = self.inverse.make_output_vec();
        let mut scratch = self.inverse.make_scratch_vec();
        let mut cells = x.bins.chunks_exact(bins).zip(x.magnitudes.chunks_exact(bins)).zip(by_magnitude.chunks_exact(bins));
        for row in gradient.chunks_exact_mut(length) {
            for t in 0..frames {
                let ((bin, magnitude), by) = cells.next().expect("as many cells as frames");
                for (((out, c), m), g) in spectrum.iter_mut().zip(bin).zip(magnitude).zip(by) {
                    // The inverse transform counts each inner bin twice.
                    *out = c * (0.5 * g / m);
                }
                for end in [0, bins - 1] {
                    spectrum[end] = Complex32::new(2.0 * spectrum[end].re, 0.0);
                }
                self.inverse
                    .process_with_scratch(&mut spectrum, &mut samples, &mut scratch)
                    .expect("the buffers are the plan's own and the end bins are real");
                let place = &mut row[t * self.hop..t * self.hop + self.points];
                for ((out, s), w) in place.iter_mut().zip(&samples).zip(&self.window) {
                    *out += s * w;
                }
            }
        }
    }
}

/// The mel filters without their zeros.
fn mel_bands(points: usize, bands: usize) -> Vec<Band> {
    let dense = mel_filters(points, bands);
    (0..bands)
        .map(|band| {
            let column: Vec<f32> = dense.iter().skip(band).step_by(bands).copied().collect();
            let first = column.iter().position(|w| *w > 0.0).unwrap_or(0);
            let last = column.iter().rposition(|w| *w > 0.0).unwrap_or(0);
            Band { first, weights: column[first..=last].to_vec() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn noise(rng: &mut impl Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-0.3..0.3)).collect()
    }

    #[test]
    fn equal_signals_cost_nothing() {
        let loss = SpectralLoss::new(&[256, 1024], 2.0);
        let audio = noise(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1), 4096);
        let terms = loss.value(&audio, &audio, 2048);
        assert!(terms.total < 1e-6, "{terms:?}");
    }

    #[test]
    fn half_the_amplitude_costs_the_logarithm_of_two() {
        let loss = SpectralLoss::new(&[1024], 2.0);
        let target = noise(&mut rand_chacha::ChaCha8Rng::seed_from_u64(2), 4096);
        let audio: Vec<f32> = target.iter().map(|x| 0.5 * x).collect();
        let terms = loss.value(&audio, &target, 4096);
        assert!((terms.mel - 2f32.ln()).abs() < 0.01, "{terms:?}");
        assert!((terms.stft - (0.5 + 2f32.ln())).abs() < 0.01, "{terms:?}");
    }

    #[test]
    fn gradient_is_that_of_differences() {
        let loss = SpectralLoss::new(&[256, 1024], 2.0);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let length = 1400;
        let (audio, target) = (noise(&mut rng, 2 * length), noise(&mut rng, 2 * length));
        let (_, gradient) = loss.value_and_gradient(&audio, &target, length);
        // Along half of the gradient at a time: the slope is then large against rounding and the kinks of |x|.
        for _ in 0..4 {
            let direction: Vec<f32> = gradient.iter().map(|g| if rng.random() { *g } else { 0.0 }).collect();
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let step = 1e-3 / direction.iter().fold(0.0, |m: f32, d| m.max(d.abs()));
            let moved = |sign: f32| -> f64 {
                let there: Vec<f32> = audio.iter().zip(&direction).map(|(a, d)| a + sign * step * d).collect();
                f64::from(loss.value(&there, &target, length).total)
            };
            let difference = (moved(1.0) - moved(-1.0)) / f64::from(2.0 * step);
            assert!((difference / slope - 1.0).abs() < 0.03, "{difference} against {slope}");
        }
    }
}
