//! WAV in, 16 kHz mono samples out.

use std::path::Path;

use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Async, FixedAsync, Resampler, SincInterpolationParameters, SincInterpolationType, WindowFunction};

use super::Error;

/// Samples per second of everything in a corpus.
pub const SAMPLE_RATE: u32 = 16_000;

/// Reads any PCM or float WAV, mixes it to mono and resamples it to 16 kHz. `warp` ≠ 1 plays it that much faster (and higher):
/// a cheap change of the speaker's size.
///
/// # Errors
/// [`Error::Wav`] when the file is not a WAV, is truncated, or holds no samples.
pub fn read(path: &Path, warp: f64) -> Result<Vec<f32>, Error> {
    let wrong = |message: String| Error::Wav { path: path.to_owned(), message };
    let mut reader = hound::WavReader::open(path).map_err(|error| wrong(error.to_string()))?;
    let spec = reader.spec();
    let interleaved: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>(),
        hound::SampleFormat::Int => {
            let scale = 1.0 / (1i64 << (spec.bits_per_sample - 1)) as f32;
            reader.samples::<i32>().map(|sample| sample.map(|value| value as f32 * scale)).collect()
        }
    }
    .map_err(|error: hound::Error| wrong(error.to_string()))?;
    let channels = usize::from(spec.channels);
    let mono: Vec<f32> = interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32).collect();
    if mono.is_empty() {
        return Err(wrong("holds no samples".to_owned()));
    }
    resample(mono, f64::from(SAMPLE_RATE) / f64::from(spec.sample_rate) / warp).map_err(wrong)
}

/// Changes the number of samples by `ratio` (output over input) with a band-limited sinc interpolation.
fn resample(samples: Vec<f32>, ratio: f64) -> Result<Vec<f32>, String> {
    if (ratio - 1.0).abs() < 1e-9 {
        return Ok(samples);
    }
    let parameters = SincInterpolationParameters {
        sinc_len: 64,
        f_cutoff: None,
        oversampling_factor: 128,
        interpolation: SincInterpolationType::Linear,
        window: WindowFunction::BlackmanHarris2,
    };
    let mut resampler = Async::<f32>::new_sinc(ratio, 1.0, &parameters, 1024, 1, FixedAsync::Input)
        .map_err(|error| format!("cannot be resampled: {error}"))?;
    let length = samples.len();
    let input = InterleavedOwned::new_from(samples, 1, length).map_err(|error| format!("cannot be resampled: {error}"))?;
    let output = resampler.process_all(&input, length, None).map_err(|error| format!("cannot be resampled: {error}"))?;
    Ok(output.take_data())
}

/// To 16 bits, rounding, clipping at full scale.
pub fn to_i16(samples: &[f32]) -> Vec<i16> {
    samples.iter().map(|sample| (sample * 32768.0).round().clamp(-32768.0, 32767.0) as i16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_rate_width_and_channels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tone.wav");
        let spec = hound::WavSpec { channels: 2, sample_rate: 22_050, bits_per_sample: 24, sample_format: hound::SampleFormat::Int };
        let mut writer = hound::WavWriter::create(&path, spec).unwrap();
        for index in 0..22_050 {
            let value = (f64::from(index) / 22_050.0 * 440.0 * std::f64::consts::TAU).sin() * 0.5;
            for _ in 0..2 {
                writer.write_sample((value * 8_388_607.0) as i32).unwrap();
            }
        }
        writer.finalize().unwrap();
        let samples = read(&path, 1.0).unwrap();
        assert!((samples.len() as i64 - 16_000).abs() < 3, "{}", samples.len());
        let worst = samples.iter().enumerate().skip(200).take(15_000).fold(0.0f32, |worst, (index, sample)| {
            let expected = (index as f64 / 16_000.0 * 440.0 * std::f64::consts::TAU).sin() as f32 * 0.5;
            worst.max((expected - sample).abs())
        });
        // the delay taken out is a whole number of samples: up to one sample of shift stays (0.086 at the steepest)
        assert!(worst < 0.09, "{worst}");
        std::fs::write(&path, b"no wave").unwrap();
        assert!(read(&path, 1.0).is_err());
    }
}
