//! What else happens to training speech, besides rooms and noises ([`crate::corpus::Augment`]): other speakers' sizes and tempi by
//! playing speed, other microphones by a smooth curve over the mel bands, and bands that are missing (SpecAugment, Park et al. 2019).

use std::f32::consts::PI;

use rand::Rng;

use crate::audio::MELS;

/// Share of utterances that are played at another speed, and the speeds.
const SPEED: f64 = 0.5;
const SPEEDS: [f32; 2] = [0.86, 1.16];
/// Largest swing of each part of the curve over the bands, in normalised log-mel: ±6 dB.
const SWING: f32 = 0.35;
/// Share of utterances that lack some bands, and how many at most.
const MISSING: f64 = 0.5;
const MISSING_BANDS: usize = 10;

/// Plays `samples` at another speed, sometimes: time and pitch change together, by linear interpolation.
pub fn speed(rng: &mut impl Rng, samples: &mut Vec<f32>) {
    if samples.len() < 2 || !rng.random_bool(SPEED) {
        return;
    }
    let speed = rng.random_range(SPEEDS[0]..SPEEDS[1]);
    let last = samples.len() - 1;
    let length = (last as f32 / speed) as usize;
    *samples = (0..length)
        .map(|i| {
            let at = i as f32 * speed;
            let (index, part) = ((at as usize).min(last - 1), at.fract());
            samples[index] * (1.0 - part) + samples[index + 1] * part
        })
        .collect();
}

/// Bends the bands of log-mel frames `[_, 64]` along a random smooth curve and silences some that follow one another.
pub fn colour(rng: &mut impl Rng, mel: &mut [f32]) {
    let waves: Vec<(f32, f32)> = (1..4).map(|k| (rng.random_range(-SWING..SWING) / k as f32, rng.random_range(0.0..PI))).collect();
    let curve: Vec<f32> = (0..MELS)
        .map(|band| (1..).zip(&waves).map(|(k, (height, phase))| height * (PI * (k * band) as f32 / MELS as f32 + phase).cos()).sum())
        .collect();
    let missing = if rng.random_bool(MISSING) {
        let width = rng.random_range(1..=MISSING_BANDS);
        let first = rng.random_range(0..=MELS - width);
        first..first + width
    } else {
        0..0
    };
    let mean = mel.iter().sum::<f32>() / mel.len().max(1) as f32;
    for frame in mel.chunks_exact_mut(MELS) {
        frame.iter_mut().zip(&curve).for_each(|(value, bend)| *value += bend);
        frame[missing.clone()].fill(mean);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn speed_changes_length_and_pitch_together() {
        let mut changed = 0;
        for seed in 0..40 {
            let mut samples: Vec<f32> = (0..16_000).map(|i| (2.0 * PI * 200.0 * i as f32 / 16_000.0).sin()).collect();
            speed(&mut ChaCha8Rng::seed_from_u64(seed), &mut samples);
            let crossings = samples.windows(2).filter(|pair| (pair[0] < 0.0) != (pair[1] < 0.0)).count();
            assert!((398..=401).contains(&crossings), "{crossings} zero crossings in {} samples", samples.len());
            assert!((13_790..=18_610).contains(&samples.len()));
            changed += usize::from(samples.len() != 16_000);
        }
        assert!((8..=32).contains(&changed), "{changed}");
    }

    #[test]
    fn every_frame_is_coloured_alike() {
        let mut mel = vec![0.25; 3 * MELS];
        colour(&mut ChaCha8Rng::seed_from_u64(3), &mut mel);
        assert_eq!(mel[..MELS], mel[MELS..2 * MELS]);
        assert!(mel.iter().any(|value| (value - 0.25).abs() > 0.01));
        assert!(mel.iter().all(|value| (value - 0.25).abs() < 2.0 * SWING));
    }
}
