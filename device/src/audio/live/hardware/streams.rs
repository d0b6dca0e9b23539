//! Streams of every sample format.

use cpal::traits::DeviceTrait;
use cpal::{Device, FromSample, Sample, SampleFormat, SizedSample, Stream, StreamConfig};

use super::devices::failed;
use super::priority::Caller;
use crate::audio::AudioError;
use crate::audio::live::callback::{MicCallback, SpeakerCallback};

/// Calls `$make::<T>` with the sample type of a format.
macro_rules! by_format {
    ($format:expr, $make:ident ( $($argument:expr),* )) => {
        match $format {
            SampleFormat::I8 => $make::<i8>($($argument),*),
            SampleFormat::I16 => $make::<i16>($($argument),*),
            SampleFormat::I24 => $make::<cpal::I24>($($argument),*),
            SampleFormat::I32 => $make::<i32>($($argument),*),
            SampleFormat::U8 => $make::<u8>($($argument),*),
            SampleFormat::U16 => $make::<u16>($($argument),*),
            SampleFormat::U24 => $make::<cpal::U24>($($argument),*),
            SampleFormat::U32 => $make::<u32>($($argument),*),
            SampleFormat::F32 => $make::<f32>($($argument),*),
            SampleFormat::F64 => $make::<f64>($($argument),*),
            other => Err(AudioError::Device { message: format!("the device's sample format {other} is not known here; try the sound server's") }),
        }
    };
}

pub(super) fn mic_stream(
    device: &Device,
    config: StreamConfig,
    format: SampleFormat,
    callback: (MicCallback, Caller),
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample>(
        device: &Device,
        config: StreamConfig,
        (mut callback, mut caller): (MicCallback, Caller),
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError>
    where
        f32: FromSample<T>,
    {
        let channels = usize::from(config.channels.max(1));
        let data = move |data: &[T], _: &_| callback.feed(caller.now(data.len() / channels), data, f32::from_sample);
        device.build_input_stream(config, data, errors, None).map_err(|e| failed("cannot open the microphone", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}

pub(super) fn speaker_stream(
    device: &Device,
    config: StreamConfig,
    format: SampleFormat,
    callback: (SpeakerCallback, Caller),
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample + FromSample<f32>>(
        device: &Device,
        config: StreamConfig,
        (mut callback, mut caller): (SpeakerCallback, Caller),
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError> {
        let channels = usize::from(config.channels.max(1));
        let data = move |data: &mut [T], _: &_| callback.fill(caller.now(data.len() / channels), data, T::from_sample);
        device.build_output_stream(config, data, errors, None).map_err(|e| failed("cannot open the speaker", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;
    use std::sync::Arc;
    use std::time::Duration;

    use cpal::I24;

    use super::*;
    use crate::audio::SAMPLE_RATE;
    use crate::audio::live::port::{MicPort, SpeakerPort};
    use crate::audio::live::{Counters, FRAME};

    const RATE: u32 = 44_100;

    /// 440 Hz of half the height, at `rate`.
    fn tone(rate: u32) -> impl Fn(usize) -> f32 {
        move |i| 0.5 * (TAU * 440.0 * i as f32 / rate as f32).sin()
    }

    /// The height of the 440 Hz in this, and what else there is, by correlation.
    fn height(samples: &[f32], rate: u32) -> (f32, f32) {
        let wave = |i: usize| TAU * 440.0 * i as f32 / rate as f32;
        let dot = |f: fn(f32) -> f32| samples.iter().enumerate().map(|(i, x)| x * f(wave(i))).sum::<f32>() * 2.0 / samples.len() as f32;
        let (sin, cos) = (dot(f32::sin), dot(f32::cos));
        let rest: f32 = samples.iter().enumerate().map(|(i, x)| (x - sin * wave(i).sin() - cos * wave(i).cos()).powi(2)).sum();
        (sin.hypot(cos), (rest / samples.len() as f32).sqrt())
    }

    /// A card that knows nothing but 44.1 kHz, stereo, 24 bits: what comes in and what goes out is the tone that it was.
    #[test]
    fn a_card_of_24_bits_at_44_100_hz_is_heard_and_played() {
        let counters = Arc::new(Counters::default());
        let (mut callback, mut port) = MicPort::new(RATE, 2, &counters).expect("a usual rate");
        let wave = tone(RATE);
        let input: Vec<I24> = (0..RATE as usize).flat_map(|i| [I24::from_sample(wave(i)); 2]).collect();
        let (mut frame, mut heard) = ([0.0; FRAME], Vec::new());
        for (i, period) in input.chunks(2 * 441).enumerate() {
            callback.feed(Duration::from_millis(10 * i as u64), period, f32::from_sample);
            while port.frame(&mut frame) {
                heard.extend_from_slice(&frame);
            }
        }
        let (level, rest) = height(&heard[4000..12_000], SAMPLE_RATE);
        assert!((level - 0.5).abs() < 0.002 && rest < 0.002, "heard: {level}, rest {rest}");

        let (mut callback, mut port) = SpeakerPort::new(RATE, 2, 441, &counters).expect("a usual rate");
        let wave = tone(SAMPLE_RATE);
        let (mut period, mut played) = ([I24::from_sample(0.0f32); 2 * 441], Vec::new());
        for i in 0..100usize {
            frame.iter_mut().enumerate().for_each(|(j, sample)| *sample = wave(i * FRAME + j));
            port.play(&frame, None);
            callback.fill(Duration::from_millis(10 * i as u64), &mut period, I24::from_sample);
            played.extend(period.chunks(2).map(|both| {
                assert_eq!(both[0], both[1], "both channels");
                f32::from_sample(both[0])
            }));
        }
        let (level, rest) = height(&played[10_000..30_000], RATE);
        assert!((level - 0.5).abs() < 0.002 && rest < 0.002, "played: {level}, rest {rest}");
        assert_eq!(counters.read().invented, 0);
    }
}
