//! WAV files of any rate, width and channel count → 16 kHz mono f32.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use hound::{SampleFormat, WavReader};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Async, FixedAsync, Resampler, SincInterpolationParameters, WindowFunction};

use super::{AudioError, SAMPLE_RATE};

/// Rates that are converted.
const RATES: std::ops::RangeInclusive<u32> = 2_000..=768_000;
/// Length of the resampling filter, in samples of the lower rate.
const FILTER: usize = 128;
/// The length of the data, from where on it says "not known": 4 GB less a byte (ffmpeg), 2 GB (arecord), 2 GB less a page (sox).
const OPEN_LENGTH: u32 = 0x7fff_f000;
/// Longest chunk in front of the data that is looked over: titles, pictures.
const LARGEST_CHUNK: u32 = 16 << 20;

/// Reads a file whole. Channels are averaged; samples beyond -1..1 are clipped, and what is not a number becomes 0.
///
/// # Errors
/// Nothing is read of a file that lasts longer than `limit` seconds, or that is cut off.
pub fn read_wav(path: &Path, limit: f64) -> Result<Vec<f32>, AudioError> {
    let metadata = std::fs::metadata(path).map_err(|source| AudioError::Open { path: path.to_owned(), source })?;
    if metadata.is_file() && metadata.len() == 0 {
        return Err(AudioError::Empty { path: path.to_owned() });
    }
    let not_wav = |e: hound::Error| match e {
        hound::Error::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof && source.get_ref().is_none() => {
            AudioError::Open { path: path.to_owned(), source }
        }
        e => AudioError::NotWav { path: path.to_owned(), message: e.to_string() },
    };
    let failed = |source| AudioError::Open { path: path.to_owned(), source };
    let bytes = with_length(File::open(path).map_err(failed)?, &metadata, limit).map_err(failed)?;
    let mut reader = WavReader::new(bytes).map_err(not_wav)?;
    let spec = reader.spec();
    let (channels, rate) = (usize::from(spec.channels), spec.sample_rate);
    if channels == 0 {
        return Err(AudioError::NotWav { path: path.to_owned(), message: "it has no channels".to_owned() });
    }
    if !RATES.contains(&rate) {
        return Err(AudioError::Rate { path: path.to_owned(), rate });
    }
    let width = u64::from(spec.bits_per_sample.div_ceil(8));
    let expected = u64::from(reader.duration()) * channels as u64 * width;
    if expected > metadata.len() && metadata.is_file() {
        // 44 bytes: the smallest header.
        return Err(AudioError::Truncated { path: path.to_owned(), expected, found: metadata.len().saturating_sub(44) });
    }
    let seconds = f64::from(reader.duration()) / f64::from(rate);
    if seconds > limit {
        return Err(AudioError::TooLong { path: path.to_owned(), seconds, limit });
    }
    let mut mono = Vec::with_capacity(reader.duration() as usize);
    let damaged = |e: hound::Error| match e {
        hound::Error::IoError(_) | hound::Error::FormatError(_) => {
            AudioError::Truncated { path: path.to_owned(), expected, found: metadata.len().saturating_sub(44) }
        }
        e => AudioError::NotWav { path: path.to_owned(), message: e.to_string() },
    };
    match spec.sample_format {
        SampleFormat::Float => mix(reader.samples::<f32>(), channels, &mut mono, |x| x),
        SampleFormat::Int => {
            let scale = 1.0 / (1u64 << (spec.bits_per_sample.clamp(1, 32) - 1)) as f32;
            mix(reader.samples::<i32>(), channels, &mut mono, |x| x as f32 * scale)
        }
    }
    .map_err(damaged)?;
    if mono.is_empty() {
        return Err(AudioError::NoSamples { path: path.to_owned() });
    }
    if rate == SAMPLE_RATE {
        return Ok(mono);
    }
    resample(&mono, rate).map_err(|message| AudioError::NotWav { path: path.to_owned(), message })
}

/// The bytes of a file, with the length of its data in place of one that its writer left open: who writes into a pipe cannot go back
/// to the header. What is there then counts; a little more than `limit` seconds of it is read.
fn with_length(file: File, metadata: &Metadata, limit: f64) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::new(file);
    let (mut head, frames) = head(&mut file)?;
    let Some(Frames { rate, bytes }) = frames.filter(|frames| RATES.contains(&frames.rate) && frames.bytes > 0) else {
        return Ok(Box::new(Cursor::new(head).chain(file)));
    };
    let most = ((limit + 1.0) * f64::from(rate)) as u64;
    let most = most.saturating_mul(u64::from(bytes));
    let mut data = Vec::new();
    file.take(most).read_to_end(&mut data)?;
    let there = if metadata.is_file() { metadata.len().saturating_sub(head.len() as u64) } else { data.len() as u64 };
    // Whole frames, as many as a header can tell of.
    let length = there.min(u64::from(u32::MAX)) as u32 / u32::from(bytes) * u32::from(bytes);
    let end = head.len();
    head[end - 4..].copy_from_slice(&length.to_le_bytes());
    Ok(Box::new(Cursor::new(head).chain(Cursor::new(data))))
}

/// A frame has a sample of each channel.
struct Frames {
    /// A second.
    rate: u32,
    /// Of a frame.
    bytes: u16,
}

/// Everything before the data of a WAV file; and where the length of these is open, what they consist of. Of another file the first
/// bytes, for hound to say what is wrong with them.
fn head(file: &mut impl Read) -> io::Result<(Vec<u8>, Option<Frames>)> {
    let mut head = Vec::new();
    let mut more = |head: &mut Vec<u8>, count: u32| -> io::Result<bool> {
        let before = head.len();
        file.take(count.into()).read_to_end(head)?;
        Ok(head.len() - before == count as usize)
    };
    let number = |head: &[u8], at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    if !more(&mut head, 12)? || head[..4] != *b"RIFF" || head[8..] != *b"WAVE" {
        return Ok((head, None));
    }
    let mut form = None;
    while more(&mut head, 8)? {
        let start = head.len();
        let (kind, length) = (&head[start - 8..start - 4], number(&head, start - 4));
        if kind == b"data" {
            // 0 is open where the file's own length was not known either: else the file is empty, whatever follows.
            let open = length >= OPEN_LENGTH || (length == 0 && u64::from(number(&head, 4)) + 8 <= start as u64);
            return Ok((head, form.filter(|_| open)));
        }
        let is_format = kind == b"fmt " && length >= 16;
        if length > LARGEST_CHUNK || !more(&mut head, length)? {
            break;
        }
        if is_format {
            let bytes = u16::from_le_bytes([head[start + 12], head[start + 13]]);
            form = Some(Frames { rate: number(&head, start + 4), bytes });
        }
    }
    Ok((head, None))
}

fn mix<T>(
    samples: impl Iterator<Item = hound::Result<T>>,
    channels: usize,
    mono: &mut Vec<f32>,
    convert: impl Fn(T) -> f32,
) -> hound::Result<()> {
    let share = 1.0 / channels as f32;
    let (mut sum, mut channel) = (0.0, 0);
    for sample in samples {
        let sample = convert(sample?);
        sum += if sample.is_finite() { sample.clamp(-1.0, 1.0) } else { 0.0 };
        channel += 1;
        if channel == channels {
            mono.push(sum * share);
            (sum, channel) = (0.0, 0);
        }
    }
    Ok(())
}

/// To 16 kHz. The result is as long as the input in time; the filter's delay is taken out.
fn resample(mono: &[f32], rate: u32) -> Result<Vec<f32>, String> {
    let ratio = f64::from(SAMPLE_RATE) / f64::from(rate);
    // The filter is as long in time at any rate above 16 kHz, so that its band limit is as steep.
    let length = (FILTER as f64 * (1.0 / ratio).max(1.0)).ceil() as usize;
    let parameters = SincInterpolationParameters::new(length.next_multiple_of(8), WindowFunction::BlackmanHarris2);
    let mut resampler = Async::<f32>::new_sinc(ratio, 1.0, &parameters, 1024, 1, FixedAsync::Input).map_err(|e| e.to_string())?;
    let input = InterleavedSlice::new(mono, 1, mono.len()).map_err(|e| e.to_string())?;
    let mut samples = resampler.process_all(&input, mono.len(), None).map_err(|e| e.to_string())?.take_data();
    samples.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound::{WavSpec, WavWriter};
    use std::f64::consts::TAU;
    use std::path::PathBuf;

    /// A tone of 440 Hz at half amplitude, as a file of any kind.
    fn tone(dir: &Path, rate: u32, bits: u16, channels: u16, seconds: f64) -> PathBuf {
        let path = dir.join(format!("{rate}-{bits}-{channels}.wav"));
        let sample_format = if bits == 32 { SampleFormat::Float } else { SampleFormat::Int };
        let spec = WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format };
        let mut writer = WavWriter::create(&path, spec).expect("writable");
        for i in 0..(f64::from(rate) * seconds).round() as usize {
            let value = 0.5 * (TAU * 440.0 * i as f64 / f64::from(rate)).sin();
            for _ in 0..channels {
                if bits == 32 {
                    writer.write_sample(value as f32).expect("writable");
                } else {
                    writer.write_sample((value * f64::from((1i32 << (bits - 1)) - 1)) as i32).expect("writable");
                }
            }
        }
        writer.finalize().expect("writable");
        path
    }

    #[test]
    fn any_rate_width_and_channel_count_gives_the_same_tone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for (rate, bits, channels) in [
            (16_000, 16, 1),
            (16_000, 32, 2),
            (8000, 8, 1),
            (11_025, 16, 1),
            (22_050, 24, 6),
            (44_100, 16, 2),
            (48_000, 32, 1),
            (96_000, 24, 2),
        ] {
            let samples = read_wav(&tone(dir.path(), rate, bits, channels, 0.5), 30.0).expect("readable");
            assert!(samples.len().abs_diff(8000) <= 2, "{rate}: {} samples", samples.len());
            // The tone that fits best: its size, its shift in samples, and what is left over.
            let angle = |i: usize| TAU * 440.0 * i as f64 / 16_000.0;
            let (mut sine, mut cosine) = (0.0, 0.0);
            for (i, sample) in samples.iter().enumerate().take(7200).skip(800) {
                sine += f64::from(*sample) * angle(i).sin() / 3200.0;
                cosine += f64::from(*sample) * angle(i).cos() / 3200.0;
            }
            let rest =
                (800..7200).map(|i| (f64::from(samples[i]) - sine * angle(i).sin() - cosine * angle(i).cos()).abs()).fold(0.0, f64::max);
            let shift = cosine.atan2(sine) / angle(1);
            let allowed = if bits == 8 { 0.01 } else { 0.002 };
            assert!((sine.hypot(cosine) - 0.5).abs() < allowed && rest < allowed, "{rate} Hz, {bits} bits: {sine} {cosine}, rest {rest}");
            assert!(shift.abs() < 1.5, "{rate} Hz: shifted by {shift} samples");
        }
    }

    #[test]
    fn bad_files_are_told_apart() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let good = std::fs::read(tone(dir.path(), 16_000, 16, 1, 0.1)).expect("there");
        let path = dir.path().join("bad.wav");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writable");
            read_wav(&path, 30.0).expect_err("must be refused")
        };
        assert!(matches!(read(b""), AudioError::Empty { .. }));
        assert!(matches!(read(b"hello, this is not audio at all, but text"), AudioError::NotWav { .. }));
        assert!(matches!(read(&good[..20]), AudioError::NotWav { .. }));
        assert!(matches!(read(&good[..good.len() / 2]), AudioError::Truncated { expected: 3200, .. }));
        let mut header = good[..44].to_vec();
        header[40..44].fill(0);
        assert!(matches!(read(&header), AudioError::NoSamples { .. }));
        let mut slow = good.clone();
        slow[24..28].copy_from_slice(&100u32.to_le_bytes());
        slow[28..32].copy_from_slice(&200u32.to_le_bytes());
        assert!(matches!(read(&slow), AudioError::Rate { rate: 100, .. }));
        assert!(matches!(read_wav(&dir.path().join("none.wav"), 30.0), Err(AudioError::Open { .. })));
        assert!(matches!(read_wav(dir.path(), 30.0), Err(AudioError::Open { .. })));
        // 2 hours by the header; the check comes before any reading.
        let mut long = good.clone();
        let bytes = 2 * 3600 * 32_000u32;
        long[40..44].copy_from_slice(&bytes.to_le_bytes());
        std::fs::write(&path, &long).expect("writable");
        File::options().write(true).open(&path).and_then(|f| f.set_len(44 + u64::from(bytes))).expect("sparse");
        assert!(matches!(read_wav(&path, 30.0), Err(AudioError::TooLong { seconds, .. }) if seconds == 7200.0));
    }

    /// What programs write that cannot go back to the header: `ffmpeg … -`, `arecord`, sox, and those that were stopped.
    #[test]
    fn a_length_that_was_left_open_is_what_is_there() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("piped.wav");
        let read = |bytes: &[u8], limit| {
            std::fs::write(&path, bytes).expect("writable");
            read_wav(&path, limit)
        };
        for (bits, channels) in [(16, 1), (24, 2), (32, 1)] {
            let good = std::fs::read(tone(dir.path(), 16_000, bits, channels, 0.1)).expect("there");
            let expected = read(&good, 30.0).expect("readable");
            let data = good.windows(4).position(|four| four == b"data").expect("it has data") + 4;
            let all = u32::MAX.to_le_bytes();
            for (riff, length) in [(all, all), ([0; 4], [0; 4]), (36u32.to_le_bytes(), [0; 4]), (all, 0x8000_0000u32.to_le_bytes())] {
                let mut open = good.clone();
                open[4..8].copy_from_slice(&riff);
                open[data..data + 4].copy_from_slice(&length);
                assert_eq!(read(&open, 30.0).expect("readable"), expected, "{bits} bits, {channels} channels, {length:?}");
                assert!(matches!(read(&open, 0.05), Err(AudioError::TooLong { seconds, .. }) if (seconds - 0.1).abs() < 1e-6));
                open.push(7); // part of a sample
                assert_eq!(read(&open, 30.0).expect("readable"), expected);
                open.truncate(data + 4);
                assert!(matches!(read(&open, 30.0), Err(AudioError::NoSamples { .. })));
            }
            // An empty one whose file goes on behind the data is empty.
            let mut empty = good.clone();
            empty[data..data + 4].fill(0);
            assert!(matches!(read(&empty, 30.0), Err(AudioError::NoSamples { .. })));
        }
    }

    #[test]
    fn what_is_not_a_number_becomes_silence() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("nan.wav");
        let spec = WavSpec { channels: 1, sample_rate: 16_000, bits_per_sample: 32, sample_format: SampleFormat::Float };
        let mut writer = WavWriter::create(&path, spec).expect("writable");
        for sample in [f32::NAN, f32::INFINITY, 7.0, -0.25] {
            writer.write_sample(sample).expect("writable");
        }
        writer.finalize().expect("writable");
        assert_eq!(read_wav(&path, 30.0).expect("readable"), [0.0, 0.0, 1.0, -0.25]);
    }
}
