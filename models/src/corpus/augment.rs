//! Rooms, noises, telephones: what happens to a question between mouth and tokenizer. Everything from a seeded generator, nothing from files.

use rand::Rng;
use std::f32::consts::TAU;
use std::sync::Arc;

use super::wave::SAMPLE_RATE;

const RATE: f32 = SAMPLE_RATE as f32;

/// How much is done to an utterance; probabilities are of each step.
#[derive(Debug, Clone, PartialEq)]
pub struct Augment {
    /// Of a synthetic room (exponentially decaying noise, 0.1 to 0.5 s).
    pub reverb: f64,
    /// Of noise (white, pink, brown, hum, babble, music-like, a crowd) at `snr_db`.
    pub noise: f64,
    pub snr_db: [f32; 2],
    /// Of a narrower band (low cut 80-400 Hz, high cut 2.8-7 kHz).
    pub band: f64,
    /// Loudness ± this many dB.
    pub gain_db: f32,
    /// Up to this much silence before and after, seconds.
    pub silence: f32,
    /// Was what is behind the voice there for seconds before it, and does it go on for seconds after it, as a television does?
    pub lingers: bool,
    /// Other people's utterances: several at once are a quarter of the noises. None: there is no such noise.
    pub crowd: Crowd,
}

/// Utterances for the noise of many people who talk at once; clones share them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Crowd(Arc<Vec<Vec<f32>>>);

impl Crowd {
    /// Utterances that a crowd is drawn from: enough that nothing learns them by heart, few enough to hold in memory (16 MB).
    pub const SIZE: usize = 128;

    /// These utterances, 16 kHz; silent and empty ones are left out.
    pub fn new(utterances: impl IntoIterator<Item = Vec<f32>>) -> Self {
        let mut voices: Vec<Vec<f32>> = utterances.into_iter().filter(|samples| level(samples) > 0.0).collect();
        for samples in &mut voices {
            let scale = level(samples).sqrt().recip();
            samples.iter_mut().for_each(|sample| *sample *= scale);
        }
        Self(Arc::new(voices))
    }

    /// Which of `count` utterances to take for it.
    pub fn spread(count: usize) -> impl Iterator<Item = usize> {
        (0..Self::SIZE.min(count)).map(move |i| i * count / Self::SIZE.min(count))
    }

    /// `length` samples of three to eight of them at once, each from somewhere and again from its beginning.
    fn talk(&self, rng: &mut impl Rng, length: usize) -> Vec<f32> {
        let mut sum = vec![0.0; length];
        for _ in 0..rng.random_range(3..=8) {
            let voice = &self.0[rng.random_range(0..self.0.len())];
            let (start, height) = (rng.random_range(0..voice.len()), rng.random_range(0.4..1.0f32));
            sum.iter_mut().zip(voice.iter().cycle().skip(start)).for_each(|(sum, sample)| *sum += height * sample);
        }
        sum
    }
}

/// Seconds before and after, at most, where it [lingers](Augment::lingers): more than it takes to find the end of a question.
const LINGERS: [f32; 2] = [1.5, 3.5];

impl Default for Augment {
    fn default() -> Self {
        Self { reverb: 0.35, noise: 0.65, snr_db: [3.0, 30.0], band: 0.25, gain_db: 8.0, silence: 0.4, lingers: false, crowd: Crowd::default() }
    }
}

impl Augment {
    /// For networks that are to hear in noise: almost everything is noisy, most of it around 10 dB.
    pub fn harsh() -> Self {
        Self { noise: 0.9, snr_db: [0.0, 22.0], ..Self::default() }
    }

    /// The same among these people.
    pub fn among(self, crowd: Crowd) -> Self {
        Self { crowd, ..self }
    }

    /// Changes `samples` (16 kHz, ±1) in place; the length grows by the silence around it.
    pub fn apply(&self, rng: &mut impl Rng, samples: &mut Vec<f32>) {
        if rng.random_bool(self.reverb) {
            add_reverb(rng, samples);
        }
        if rng.random_bool(self.band) {
            limit_band(rng, samples);
        }
        surround(rng, samples, [self.silence; 2]);
        let speech = level(samples);
        if self.lingers {
            surround(rng, samples, LINGERS);
        }
        if rng.random_bool(self.noise) {
            let snr_db = rng.random_range(self.snr_db[0]..=self.snr_db[1]);
            add_noise_below(rng, samples, speech, snr_db, &self.crowd);
        } else {
            // no microphone is silent
            let floor = 10f32.powf(rng.random_range(-80.0..-55.0) / 20.0);
            samples.iter_mut().for_each(|sample| *sample += floor * rng.random_range(-1.0..1.0));
        }
        let gain = 10f32.powf(rng.random_range(-self.gain_db..=self.gain_db) / 20.0);
        samples.iter_mut().for_each(|sample| *sample = (*sample * gain).clamp(-1.0, 1.0));
    }
}

/// Puts silence before and after, at most so many seconds of it.
fn surround(rng: &mut impl Rng, samples: &mut Vec<f32>, longest: [f32; 2]) {
    let [before, after] = longest.map(|longest| (rng.random_range(0.0..=longest) * RATE) as usize);
    samples.splice(0..0, std::iter::repeat_n(0.0, before));
    samples.extend(std::iter::repeat_n(0.0, after));
}

/// Kinds of noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    White,
    Pink,
    Brown,
    Hum,
    Babble,
    Music,
}

/// All kinds.
pub const NOISES: [Noise; 6] = [Noise::White, Noise::Pink, Noise::Brown, Noise::Hum, Noise::Babble, Noise::Music];

/// Mean square of the loud half of 20 ms frames: speech level that does not depend on the pauses.
pub fn level(samples: &[f32]) -> f32 {
    let mut powers: Vec<f32> =
        samples.chunks(320).map(|frame| frame.iter().map(|sample| sample * sample).sum::<f32>() / frame.len() as f32).collect();
    powers.sort_by(f32::total_cmp);
    let loud = &powers[powers.len() / 2..];
    loud.iter().sum::<f32>() / loud.len().max(1) as f32
}

/// Adds noise of a random kind, `snr_db` below the level of the speech. Silence stays as it is.
pub fn add_noise(rng: &mut impl Rng, samples: &mut [f32], snr_db: f32, crowd: &Crowd) {
    add_noise_below(rng, samples, level(samples), snr_db, crowd);
}

/// The same where more than the speech is in `samples`; `speech` is its [`level`].
fn add_noise_below(rng: &mut impl Rng, samples: &mut [f32], speech: f32, snr_db: f32, crowd: &Crowd) {
    if speech <= 0.0 {
        return;
    }
    let crowds = if crowd.0.is_empty() { 0 } else { 2 };
    let noise = match NOISES.get(rng.random_range(0..NOISES.len() + crowds)) {
        Some(kind) => noise(rng, *kind, samples.len()),
        None => unit_power(crowd.talk(rng, samples.len())),
    };
    let gain = (speech * 10f32.powf(-snr_db / 10.0)).sqrt();
    samples.iter_mut().zip(noise).for_each(|(sample, noise)| *sample += gain * noise);
}

/// `length` samples of noise with a mean square of 1.
pub fn noise(rng: &mut impl Rng, kind: Noise, length: usize) -> Vec<f32> {
    let mut white = || rng.random_range(-1.0f32..1.0);
    let samples: Vec<f32> = match kind {
        Noise::White => (0..length).map(|_| white()).collect(),
        Noise::Pink => {
            // Paul Kellet's economy filter
            let (mut a, mut b, mut c) = (0.0f32, 0.0f32, 0.0f32);
            let next = |_| {
                let white = white();
                a = 0.99765 * a + white * 0.099_046;
                b = 0.963 * b + white * 0.296_516_4;
                c = 0.57 * c + white * 1.052_691_3;
                a + b + c + white * 0.1848
            };
            (0..length).map(next).collect()
        }
        Noise::Brown => {
            let mut sum = 0.0f32;
            let next = |_| {
                sum = 0.995 * sum + white();
                sum
            };
            (0..length).map(next).collect()
        }
        Noise::Hum => {
            let mains = if rng.random_bool(0.5) { 50.0 } else { 60.0 };
            let parts: Vec<(f32, f32, f32)> =
                (1..=12).map(|part| (mains * part as f32, rng.random_range(0.1..1.0) / part as f32, rng.random_range(0.0..TAU))).collect();
            let mut sample = |index: usize| {
                let time = index as f32 / RATE;
                parts.iter().map(|(frequency, height, phase)| height * (TAU * frequency * time + phase).sin()).sum::<f32>()
                    + 0.05 * rng.random_range(-1.0..1.0)
            };
            (0..length).map(&mut sample).collect()
        }
        Noise::Babble => (0..rng.random_range(3..7)).fold(vec![0.0; length], |mut sum, _| {
            mumble(rng, &mut sum);
            sum
        }),
        Noise::Music => music(rng, length),
    };
    unit_power(samples)
}

/// `samples` with a mean square of 1; silence stays as it is.
fn unit_power(mut samples: Vec<f32>) -> Vec<f32> {
    let power = samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len().max(1) as f32;
    if power > 0.0 {
        let scale = 1.0 / power.sqrt();
        samples.iter_mut().for_each(|sample| *sample *= scale);
    }
    samples
}

/// One voice without words: a buzz through two moving resonances, in syllables of random length.
fn mumble(rng: &mut impl Rng, sum: &mut [f32]) {
    let mut pitch = rng.random_range(80.0..260.0f32);
    let (mut phase, mut index) = (0.0f32, 0);
    let mut state = [[0.0f32; 2]; 2];
    while index < sum.len() {
        let length = (rng.random_range(0.06..0.28) * RATE) as usize;
        let voiced = rng.random_bool(0.75);
        let height = if rng.random_bool(0.15) { 0.0 } else { rng.random_range(0.2..1.0f32) };
        let formants = [rng.random_range(250.0..850.0f32), rng.random_range(900.0..2600.0f32)];
        pitch = (pitch * rng.random_range(0.9..1.1f32)).clamp(70.0, 320.0);
        let filters = formants.map(|frequency| {
            let radius = 0.97f32;
            (2.0 * radius * (TAU * frequency / RATE).cos(), -radius * radius)
        });
        for inside in 0..length.min(sum.len() - index) {
            phase = (phase + pitch / RATE).fract();
            let source = if voiced { phase - 0.5 } else { 0.3 * rng.random_range(-1.0..1.0f32) };
            let envelope = height * (std::f32::consts::PI * inside as f32 / length as f32).sin();
            for ((first, second), memory) in filters.iter().zip(&mut state) {
                let out = source * envelope + first * memory[0] + second * memory[1];
                *memory = [out, memory[0]];
                sum[index + inside] += out;
            }
        }
        index += length.max(1);
    }
}

/// Chords of decaying tones over a beat.
fn music(rng: &mut impl Rng, length: usize) -> Vec<f32> {
    let mut samples = vec![0.0f32; length];
    let beat = (rng.random_range(0.18..0.6) * RATE) as usize;
    let root = rng.random_range(80.0..220.0f32);
    let scale = [0, 2, 4, 5, 7, 9, 11, 12, 14, 16];
    let mut start = 0;
    while start < length {
        for _ in 0..rng.random_range(1..4) {
            let frequency = root * 2f32.powf(scale[rng.random_range(0..scale.len())] as f32 / 12.0 + rng.random_range(0..3) as f32);
            let (height, decay) = (rng.random_range(0.2..1.0f32), rng.random_range(1.5..6.0f32));
            let parts = rng.random_range(1..6);
            for (offset, sample) in samples[start..].iter_mut().take(4 * beat).enumerate() {
                let time = offset as f32 / RATE;
                let tone: f32 = (1..=parts).map(|part| (TAU * frequency * part as f32 * time).sin() / part as f32).sum();
                *sample += height * (-decay * time).exp() * tone;
            }
        }
        if rng.random_bool(0.5) {
            for (offset, sample) in samples[start..].iter_mut().take(1600).enumerate() {
                *sample += 0.7 * (-(offset as f32) / 300.0).exp() * rng.random_range(-1.0..1.0f32);
            }
        }
        start += beat.max(1);
    }
    samples
}

/// A room: convolution with decaying noise after the direct sound, by overlap in the frequency domain.
fn add_reverb(rng: &mut impl Rng, samples: &mut [f32]) {
    let decay = rng.random_range(0.1..0.5f32); // seconds to -60 dB
    let wet = rng.random_range(0.1..0.6f32);
    let length = (decay * 0.6 * RATE) as usize;
    let early = rng.random_range(20..120usize);
    let mut response: Vec<f32> = (0..length)
        .map(|index| if index < early { 0.0 } else { rng.random_range(-1.0..1.0f32) * (-6.9 * index as f32 / (decay * RATE)).exp() })
        .collect();
    let energy = response.iter().map(|value| value * value).sum::<f32>().max(1e-9);
    response.iter_mut().for_each(|value| *value *= wet / energy.sqrt());
    if let Some(direct) = response.first_mut() {
        *direct = 1.0;
    }
    convolve(samples, &response);
}

/// `samples` ← the first `samples.len()` values of its convolution with `response`.
fn convolve(samples: &mut [f32], response: &[f32]) {
    let size = (samples.len() + response.len()).next_power_of_two();
    let mut planner = realfft::RealFftPlanner::<f32>::new();
    let (forward, inverse) = (planner.plan_fft_forward(size), planner.plan_fft_inverse(size));
    let spectrum = |values: &[f32]| {
        let mut padded = vec![0.0; size];
        padded[..values.len()].copy_from_slice(values);
        let mut output = forward.make_output_vec();
        forward.process(&mut padded, &mut output).expect("the lengths come from the plan");
        output
    };
    let mut product = spectrum(samples);
    product.iter_mut().zip(spectrum(response)).for_each(|(value, factor)| *value *= factor / size as f32);
    // the ends of a real signal's spectrum are real; rounding may have left a trace
    product[0].im = 0.0;
    product[size / 2].im = 0.0;
    let mut output = inverse.make_output_vec();
    inverse.process(&mut product, &mut output).expect("the lengths come from the plan");
    samples.copy_from_slice(&output[..samples.len()]);
}

/// A cheap microphone or a telephone: second-order low and high cuts.
fn limit_band(rng: &mut impl Rng, samples: &mut [f32]) {
    let low = rng.random_range(80.0..400.0f32);
    let high = rng.random_range(2_800.0..7_000.0f32);
    for (frequency, keep_low) in [(low, false), (high, true)] {
        // RBJ cookbook biquad, Q = 0.707
        let angle = TAU * frequency / RATE;
        let (alpha, cosine) = (angle.sin() / std::f32::consts::SQRT_2, angle.cos());
        let b = if keep_low {
            [(1.0 - cosine) / 2.0, 1.0 - cosine, (1.0 - cosine) / 2.0]
        } else {
            [(1.0 + cosine) / 2.0, -1.0 - cosine, (1.0 + cosine) / 2.0]
        };
        let a = [1.0 + alpha, -2.0 * cosine, 1.0 - alpha];
        let (mut x, mut y) = ([0.0f32; 2], [0.0f32; 2]);
        for sample in samples.iter_mut() {
            let out = (b[0] * *sample + b[1] * x[0] + b[2] * x[1] - a[1] * y[0] - a[2] * y[1]) / a[0];
            (x, y) = ([*sample, x[0]], [out, y[0]]);
            *sample = out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn tone() -> Vec<f32> {
        (0..16_000).map(|index| 0.3 * (TAU * 440.0 * index as f32 / RATE).sin()).collect()
    }

    #[test]
    fn noise_has_the_asked_level() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let crowd = Crowd::new([vec![0.0; 900], tone()[..7_000].to_vec(), Vec::new(), noise(&mut rng, Noise::Babble, 3_000)]);
        assert_eq!(crowd.0.len(), 2);
        for _ in 0..24 {
            let clean = tone();
            let mut noisy = clean.clone();
            add_noise(&mut rng, &mut noisy, 10.0, &crowd);
            let error: f32 = clean.iter().zip(&noisy).map(|(clean, noisy)| (noisy - clean).powi(2)).sum::<f32>() / 16_000.0;
            let snr = 10.0 * (0.045 / error).log10();
            assert!((snr - 10.0).abs() < 0.3, "{snr}");
        }
    }

    #[test]
    fn augmentation_is_seeded_and_sane() {
        let run = |seed| {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut samples = tone();
            Augment::default().apply(&mut rng, &mut samples);
            samples
        };
        assert_eq!(run(5), run(5));
        for seed in 0..40 {
            let samples = run(seed);
            assert!(samples.len() >= 16_000 && samples.len() <= 16_000 + 12_802);
            assert!(samples.iter().all(|sample| sample.is_finite() && sample.abs() <= 1.0));
            assert!(samples.iter().any(|sample| sample.abs() > 0.01));
        }
    }

    #[test]
    fn what_lingers_is_as_loud_around_the_voice_as_under_it() {
        let around = Augment { reverb: 0.0, noise: 1.0, snr_db: [10.0; 2], band: 0.0, gain_db: 0.0, lingers: true, ..Augment::default() };
        let mut longest = 0;
        for seed in 0..40 {
            let mut samples = tone();
            around.apply(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed), &mut samples);
            longest = longest.max(samples.len());
            // Ten decibels below the tone's 0.045 over the whole length.
            let power = samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len() as f32;
            let voice = 0.045 * 16_000.0 / samples.len() as f32;
            assert!((10.0 * ((power - voice) / 0.0045).log10()).abs() < 1.0, "{power} in {} samples", samples.len());
        }
        assert!(longest > 16_000 + 48_000 && longest <= 16_000 + 12_802 + 80_002, "{longest}");
    }

    #[test]
    fn a_single_click_gives_the_response() {
        let mut samples = vec![0.0; 50];
        samples[3] = 1.0;
        convolve(&mut samples, &[1.0, 0.5, 0.25]);
        assert!(
            (samples[3] - 1.0).abs() < 1e-5
                && (samples[4] - 0.5).abs() < 1e-5
                && (samples[5] - 0.25).abs() < 1e-5
                && samples[6].abs() < 1e-5
        );
    }
}
