//! Streams of every sample format.

use std::time::Instant;

use cpal::traits::DeviceTrait;
use cpal::{Device, FromSample, Sample, SampleFormat, SizedSample, Stream, StreamConfig};

use super::devices::failed;
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
    callback: (MicCallback, Instant),
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample>(
        device: &Device,
        config: StreamConfig,
        (mut callback, epoch): (MicCallback, Instant),
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError>
    where
        f32: FromSample<T>,
    {
        let data = move |data: &[T], _: &_| callback.feed(epoch.elapsed(), data, |sample| f32::from_sample(sample));
        device.build_input_stream(config, data, errors, None).map_err(|e| failed("cannot open the microphone", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}

pub(super) fn speaker_stream(
    device: &Device,
    config: StreamConfig,
    format: SampleFormat,
    callback: (SpeakerCallback, Instant),
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample + FromSample<f32>>(
        device: &Device,
        config: StreamConfig,
        (mut callback, epoch): (SpeakerCallback, Instant),
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError> {
        let data = move |data: &mut [T], _: &_| callback.fill(epoch.elapsed(), data, |sample| T::from_sample(sample));
        device.build_output_stream(config, data, errors, None).map_err(|e| failed("cannot open the speaker", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}
