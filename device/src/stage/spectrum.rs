//! The inverse STFT at the end of the decoder, by overlap-add, frame by frame.
//!
//! The same sums as `models/src/decoder/synthesis.rs`, which defines them: the spectrum of a frame is
//! `exp(min(log_magnitude, MAX_LOG_MAGNITUDE)) · e^(i phase)`; the inverse real DFT is multiplied by a periodic Hann
//! window, overlap-added and divided by the sum of the squared windows (1.5 at a hop of a quarter). Frame t covers the
//! samples `[hop t - lead, hop t - lead + n_fft)` with `lead = (n_fft - hop) / 2`; what lies before sample 0 is cut
//! away, and after T frames the audio ends at sample `hop T`.

use std::f32::consts::TAU;
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner};

/// Log-magnitudes are held below this, as in training.
pub const MAX_LOG_MAGNITUDE: f32 = 5.0;

/// Streaming inverse STFT.
pub struct InverseStft {
    hop: usize,
    window: Vec<f32>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    spectrum: Vec<Complex32>,
    frame: Vec<f32>,
    scratch: Vec<Complex32>,
    /// The overlapping sum, from the first sample that is not yet final: `n_fft` values.
    overlap: Vec<f32>,
    /// Samples at the front of `overlap` that lie before the audio.
    skip: usize,
}

impl InverseStft {
    /// For frames of `bins` frequencies (`n_fft = 2 (bins - 1)`) every `hop` samples.
    pub fn new(bins: usize, hop: usize) -> Self {
        let n_fft = 2 * (bins - 1);
        let inverse = RealFftPlanner::new().plan_fft_inverse(n_fft);
        let hann: Vec<f32> = (0..n_fft).map(|n| 0.5 - 0.5 * (TAU * n as f32 / n_fft as f32).cos()).collect();
        let squares: f32 = hann.iter().map(|w| w * w).sum::<f32>() / hop as f32;
        let gain = 1.0 / (squares * n_fft as f32);
        Self {
            hop,
            window: hann.iter().map(|w| w * gain).collect(),
            spectrum: inverse.make_input_vec(),
            frame: inverse.make_output_vec(),
            scratch: inverse.make_scratch_vec(),
            inverse,
            overlap: vec![0.0; n_fft],
            skip: (n_fft - hop) / 2,
        }
    }

    fn lead(&self) -> usize {
        (self.window.len() - self.hop) / 2
    }

    /// Back to before the first frame.
    pub fn reset(&mut self) {
        self.overlap.fill(0.0);
        self.skip = self.lead();
    }

    /// Takes in one frame, `[bins]` each, and appends the samples that are now final: a hop, less at the start.
    pub fn step(&mut self, log_magnitude: &[f32], phase: &[f32], samples: &mut Vec<f32>) {
        for ((bin, magnitude), phase) in self.spectrum.iter_mut().zip(log_magnitude).zip(phase) {
            let (sin, cos) = phase.sin_cos();
            *bin = Complex32::new(cos, sin) * magnitude.min(MAX_LOG_MAGNITUDE).exp();
        }
        let last = self.spectrum.len() - 1;
        self.spectrum[0].im = 0.0;
        self.spectrum[last].im = 0.0;
        self.inverse
            .process_with_scratch(&mut self.spectrum, &mut self.frame, &mut self.scratch)
            .expect("the buffers are the plan's own and the end bins are real");
        for ((sum, sample), window) in self.overlap.iter_mut().zip(&self.frame).zip(&self.window) {
            *sum += sample * window;
        }
        let skip = self.skip.min(self.hop);
        self.skip -= skip;
        samples.extend_from_slice(&self.overlap[skip..self.hop]);
        self.overlap.copy_within(self.hop.., 0);
        let kept = self.overlap.len() - self.hop;
        self.overlap[kept..].fill(0.0);
    }

    /// Appends the rest, up to `hop` times the number of frames, and resets.
    pub fn flush(&mut self, samples: &mut Vec<f32>) {
        let end = self.lead();
        // `skip` is more than 0 here only after fewer frames than the lead holds.
        samples.extend_from_slice(&self.overlap[self.skip.min(end)..end]);
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Analysis of a signal as the definition says, then synthesis, is the identity away from the ends.
    #[test]
    fn analysis_then_synthesis_is_the_identity() {
        let (bins, hop, frames) = (33, 16, 20);
        let n_fft = 2 * (bins - 1);
        let lead = (n_fft - hop) / 2;
        let signal = |i: isize| if i < 0 { 0.0 } else { ((i * i * 7 + 3 * i) % 101) as f32 / 101.0 - 0.5 };
        let forward = RealFftPlanner::new().plan_fft_forward(n_fft);
        let mut stft = InverseStft::new(bins, hop);
        let mut out = Vec::new();
        for t in 0..frames {
            let mut frame: Vec<f32> = (0..n_fft)
                .map(|n| {
                    let window = 0.5 - 0.5 * (TAU * n as f32 / n_fft as f32).cos();
                    window * signal((t * hop + n) as isize - lead as isize)
                })
                .collect();
            let mut spectrum = forward.make_output_vec();
            forward.process(&mut frame, &mut spectrum).expect("the buffers are the plan's own");
            let magnitude: Vec<f32> = spectrum.iter().map(|c| c.norm().max(1e-9).ln()).collect();
            let phase: Vec<f32> = spectrum.iter().map(|c| c.arg()).collect();
            stft.step(&magnitude, &phase, &mut out);
        }
        stft.flush(&mut out);
        assert_eq!(out.len(), frames * hop);
        for (i, sample) in out.iter().enumerate().take((frames - 2) * hop).skip(lead) {
            assert!((sample - signal(i as isize)).abs() < 1e-4, "sample {i}: {sample} against {}", signal(i as isize));
        }
    }

    #[test]
    fn reset_equals_fresh_and_short_input_has_its_length() {
        let mut used = InverseStft::new(33, 16);
        let run = |stft: &mut InverseStft, frames: usize| {
            let mut out = Vec::new();
            for t in 0..frames {
                stft.step(&[0.1; 33], &[t as f32; 33], &mut out);
            }
            stft.flush(&mut out);
            out
        };
        for frames in [0, 1, 2, 3, 9] {
            let again = run(&mut used, frames);
            assert_eq!(again.len(), frames * 16);
            assert_eq!(again, run(&mut InverseStft::new(33, 16), frames));
        }
    }
}
