//! WAV files: the forms that users bring, and what comes back.

use std::path::Path;

use anyhow::{Context, Result};
use hound::{SampleFormat, WavReader, WavSpec, WavWriter};

/// A form that a user's recording may have.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Sample rate as a fraction of 16 kHz.
    pub rate: (u32, u32),
    pub channels: u16,
    pub bits: u16,
    pub float: bool,
}

/// Reads a WAV as floats in -1..1, first channel only, with its specification.
pub fn read_wav(path: &Path) -> Result<(Vec<f32>, WavSpec)> {
    let mut reader = WavReader::open(path).with_context(|| format!("while opening {}", path.display()))?;
    let spec = reader.spec();
    let scale = 1.0 / (1u64 << (spec.bits_per_sample - 1)) as f32;
    let all: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>()?,
        SampleFormat::Int => reader.samples::<i32>().map(|x| x.map(|x| x as f32 * scale)).collect::<Result<_, _>>()?,
    };
    Ok((all.into_iter().step_by(spec.channels.into()).collect(), spec))
}

/// Writes mono samples in a form, at its rate; every channel carries the same.
pub fn write_wav(path: &Path, samples: &[f32], form: Form) -> Result<()> {
    let (up, down) = form.rate;
    let sample_format = if form.float { SampleFormat::Float } else { SampleFormat::Int };
    let spec = WavSpec { channels: form.channels, sample_rate: 16_000 * up / down, bits_per_sample: form.bits, sample_format };
    let mut writer = WavWriter::create(path, spec)?;
    let top = ((1u64 << (form.bits - 1)) - 1) as f32;
    for sample in resample(samples, up, down) {
        for _ in 0..form.channels {
            if form.float {
                writer.write_sample(sample)?;
            } else {
                writer.write_sample((sample.clamp(-1.0, 1.0) * top).round() as i32)?;
            }
        }
    }
    Ok(writer.finalize()?)
}

/// A 16 kHz question rewritten in a form.
pub fn question_in(form: Form, question: &Path, path: &Path) -> Result<()> {
    write_wav(path, &read_wav(question)?.0, form)
}

/// By windowed sinc: slow and plain, so that it shares nothing with the resampler under test.
fn resample(samples: &[f32], up: u32, down: u32) -> Vec<f32> {
    if up == down {
        return samples.to_vec();
    }
    let step = f64::from(down) / f64::from(up);
    let cutoff = (1.0 / step).min(1.0); // below the lower of the two Nyquist frequencies
    let reach = (24.0 / cutoff) as i64;
    let length = (samples.len() as f64 / step) as usize;
    let at = |index: usize| {
        let centre = index as f64 * step;
        let nearest = centre.round() as i64;
        let mut sum = 0.0;
        for tap in nearest - reach..=nearest + reach {
            let Some(&sample) = usize::try_from(tap).ok().and_then(|tap| samples.get(tap)) else {
                continue;
            };
            let x = tap as f64 - centre;
            let phase = std::f64::consts::PI * x * cutoff;
            let sinc = if phase.abs() < 1e-9 { 1.0 } else { phase.sin() / phase };
            let window = 0.5 + 0.5 * (std::f64::consts::PI * x / (reach as f64 + 1.0)).cos();
            sum += f64::from(sample) * sinc * window * cutoff;
        }
        sum as f32
    };
    (0..length).map(at).collect()
}

/// A sample of a voice is loud from here on, at the loudness of the samples and of a corpus.
pub const LOUD: f32 = 0.03;

/// The first loud sample; none where it is silent.
pub fn onset(voice: &[f32]) -> Option<usize> {
    voice.iter().position(|sample| sample.abs() > LOUD)
}

/// Root mean square, peak, and share of samples at full scale.
pub fn levels(samples: &[f32]) -> (f32, f32, f32) {
    let n = samples.len().max(1) as f32;
    let rms = (samples.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
    let peak = samples.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    let clipped = samples.iter().filter(|x| x.abs() >= 0.9999).count() as f32 / n;
    (rms, peak, clipped)
}
