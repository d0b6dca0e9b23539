//! The inverse STFT at the end of the decoder, with its gradient written by hand, on plain slices.
//!
//! Frame t holds log-magnitudes and phases of bins k = 0..=n_fft/2. Its spectrum is
//! `exp(min(log_magnitude, MAX_LOG_MAGNITUDE)) (cos phase + i sin phase)`; the imaginary parts of bins 0 and n_fft/2
//! are ignored. The inverse real DFT (normalised by 1/n_fft) is multiplied by a periodic Hann window
//! `w[n] = 0.5 - 0.5 cos(2π n / n_fft)` of n_fft samples and overlap-added. At a hop of n_fft/4 the squared windows
//! sum to exactly 1.5, so the sum is divided by 1.5 everywhere and there is no correction at the ends.
//!
//! **Place of a frame.** Frame t of an utterance covers the samples `[hop t - 1.5 hop, hop t + 2.5 hop)`, that is
//! `[160 t - 240, 160 t + 400)`: its centre is the centre of its own hop. Samples below 0 and samples from
//! `hop T` on (T frames in all) are cut away; an utterance of U units has exactly 640 U samples. After frame t the
//! samples below `160 (t + 1) - 240` are final, which adds 15 ms to the decoder's delay.
//!
//! Here rather than in Burn: two real FFTs a frame cost a hundredth of the dense products, and the loss reads
//! the waveform on the host anyway.

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::config::DecoderConfig;
use crate::audio::hann;

/// Log-magnitudes are held below this (e^5 ≈ 148 is a full-scale tone in one bin), so that no step can explode.
pub const MAX_LOG_MAGNITUDE: f32 = 5.0;

/// The sum of the squared windows at a hop of a quarter of the window.
const WINDOW_SUM: f32 = 1.5;

/// Inverse STFT of rows of frames, forward and backward.
pub struct Synthesis {
    n_fft: usize,
    hop: usize,
    window: Vec<f32>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    forward: Arc<dyn RealToComplex<f32>>,
}

impl Synthesis {
    pub fn new(config: &DecoderConfig) -> Self {
        let mut planner = RealFftPlanner::new();
        Synthesis {
            n_fft: config.n_fft,
            hop: config.hop,
            window: hann(config.n_fft),
            inverse: planner.plan_fft_inverse(config.n_fft),
            forward: planner.plan_fft_forward(config.n_fft),
        }
    }

    fn bins(&self) -> usize {
        self.n_fft / 2 + 1
    }

    /// Samples that `frames` overlapping frames span.
    pub fn span(&self, frames: usize) -> usize {
        if frames == 0 { 0 } else { (frames - 1) * self.hop + self.n_fft }
    }

    /// Overlap-added samples of the frames `[T, 2 bins]`, uncut: `span(T)` samples, of which the first stands
    /// 1.5 hops before the first frame's own hop.
    pub fn synthesise(&self, frames: &[f32]) -> Vec<f32> {
        let bins = self.bins();
        let count = frames.len() / (2 * bins);
        let mut audio = vec![0.0; self.span(count)];
        let mut spectrum = self.inverse.make_input_vec();
        let mut samples = self.inverse.make_output_vec();
        let mut scratch = self.inverse.make_scratch_vec();
        let gain = 1.0 / (WINDOW_SUM * self.n_fft as f32);
        for (t, frame) in frames.chunks_exact(2 * bins).enumerate() {
            let (log_magnitude, phase) = frame.split_at(bins);
            for ((bin, &lm), &p) in spectrum.iter_mut().zip(log_magnitude).zip(phase) {
                let (sin, cos) = p.sin_cos();
                *bin = Complex32::new(cos, sin) * lm.min(MAX_LOG_MAGNITUDE).exp();
            }
            spectrum[0].im = 0.0;
            spectrum[bins - 1].im = 0.0;
            self.inverse
                .process_with_scratch(&mut spectrum, &mut samples, &mut scratch)
                .expect("the buffers are the plan's own and the end bins are real");
            let place = &mut audio[t * self.hop..t * self.hop + self.n_fft];
            for ((out, &sample), &w) in place.iter_mut().zip(&samples).zip(&self.window) {
                *out += sample * w * gain;
            }
        }
        audio
    }

    /// An utterance's audio from all its frames `[T, 2 bins]`: `hop T` samples, cut as the module head says.
    pub fn utterance(&self, frames: &[f32]) -> Vec<f32> {
        let count = frames.len() / (2 * self.bins());
        let audio = self.synthesise(frames);
        let start = self.lead();
        audio[start.min(audio.len())..].iter().copied().take(self.hop * count).collect()
    }

    /// Samples from the start of a frame's window to the start of its own hop.
    pub fn lead(&self) -> usize {
        (self.n_fft - self.hop) / 2
    }

    /// The gradient of a loss by the frames `[T, 2 bins]`, given its gradient by the samples of [`Self::synthesise`].
    pub fn backward(&self, frames: &[f32], by_audio: &[f32]) -> Vec<f32> {
        let bins = self.bins();
        let mut by_frames = vec![0.0; frames.len()];
        let mut windowed = self.forward.make_input_vec();
        let mut spectrum = self.forward.make_output_vec();
        let mut scratch = self.forward.make_scratch_vec();
        let gain = 1.0 / (WINDOW_SUM * self.n_fft as f32);
        for (t, (frame, out)) in frames.chunks_exact(2 * bins).zip(by_frames.chunks_exact_mut(2 * bins)).enumerate() {
            let place = &by_audio[t * self.hop..t * self.hop + self.n_fft];
            for ((x, &g), &w) in windowed.iter_mut().zip(place).zip(&self.window) {
                *x = g * w * gain;
            }
            self.forward.process_with_scratch(&mut windowed, &mut spectrum, &mut scratch).expect("the buffers are the plan's own");
            let (log_magnitude, phase) = frame.split_at(bins);
            let (by_magnitude, by_phase) = out.split_at_mut(bins);
            for k in 0..bins {
                let end = k == 0 || k == bins - 1;
                let twice = if end { 1.0 } else { 2.0 }; // an inner bin stands for its mirror too
                let by_real = spectrum[k].re * twice;
                let by_imaginary = if end { 0.0 } else { spectrum[k].im * twice };
                let (sin, cos) = phase[k].sin_cos();
                let magnitude = log_magnitude[k].min(MAX_LOG_MAGNITUDE).exp();
                if log_magnitude[k] < MAX_LOG_MAGNITUDE {
                    by_magnitude[k] = magnitude * (by_real * cos + by_imaginary * sin);
                }
                by_phase[k] = magnitude * (by_imaginary * cos - by_real * sin);
            }
        }
        by_frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn analysis_then_synthesis_is_the_identity() {
        let config = DecoderConfig::default();
        let synthesis = Synthesis::new(&config);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (n, hop, frames) = (config.n_fft, config.hop, 20);
        let audio: Vec<f32> = (0..synthesis.span(frames)).map(|_| rng.random_range(-0.5..0.5)).collect();
        let window = hann(n);
        let mut analysis = Vec::new();
        for t in 0..frames {
            let mut x: Vec<f32> = audio[t * hop..t * hop + n].iter().zip(&window).map(|(a, w)| a * w).collect();
            let mut spectrum = synthesis.forward.make_output_vec();
            synthesis.forward.process(&mut x, &mut spectrum).expect("sizes fit");
            analysis.extend(spectrum.iter().map(|c| c.norm().ln()));
            analysis.extend(spectrum.iter().map(|c| c.arg()));
        }
        let again = synthesis.synthesise(&analysis);
        // Whole only where four frames overlap.
        for i in 3 * hop..frames * hop {
            assert!((audio[i] - again[i]).abs() < 1e-5, "sample {i}: {} against {}", audio[i], again[i]);
        }
        assert_eq!(synthesis.utterance(&analysis).len(), hop * frames);
    }

    #[test]
    fn gradient_is_that_of_differences() {
        let config = DecoderConfig { n_fft: 16, hop: 4, ..DecoderConfig::default() };
        let synthesis = Synthesis::new(&config);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let width = config.head_width();
        let frames: Vec<f32> = (0..3 * width).map(|_| rng.random_range(-1.0..1.0)).collect();
        let probe: Vec<f32> = (0..synthesis.span(3)).map(|_| rng.random_range(-1.0..1.0)).collect();
        let loss =
            |frames: &[f32]| -> f64 { synthesis.synthesise(frames).iter().zip(&probe).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let gradient = synthesis.backward(&frames, &probe);
        for i in 0..frames.len() {
            let step = 1e-2;
            let (mut above, mut below) = (frames.clone(), frames.clone());
            above[i] += step;
            below[i] -= step;
            let difference = (loss(&above) - loss(&below)) / f64::from(2.0 * step);
            assert!((difference - f64::from(gradient[i])).abs() < 2e-4, "{i}: {difference} against {}", gradient[i]);
        }
    }
}
