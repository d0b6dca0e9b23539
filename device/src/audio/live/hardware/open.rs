//! Opening both devices: their own formats, small buffers, and a thread of its own, because a sound server may never answer.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cpal::traits::StreamTrait;
use cpal::{BufferSize, ErrorKind, SampleFormat, Stream, StreamConfig};

use super::devices::{choose, failed, host, label, native, unusable};
use super::priority::{Caller, has_card};
use super::streams::{mic_stream, speaker_stream};
use crate::audio::AudioError;
use crate::audio::live::callback::{Alarm, Alarms};
use crate::audio::live::counters::Counters;
use crate::audio::live::port::{MicPort, SpeakerPort};
use crate::audio::live::{FRAMES_PER_SECOND, Wish};

/// Buffer sizes that are tried, in periods a second.
const PERIODS: [u32; 3] = [100, 50, 25];
/// After an error.
const REST: Duration = Duration::from_millis(1);

/// Opened streams. Dropped, they stop.
pub(super) struct Streams {
    _streams: (Stream, Stream),
    pub(super) mic: MicPort,
    pub(super) speaker: SpeakerPort,
    pub(super) alarms: Arc<Alarms>,
    /// Samples of the speaker's buffer, in frames of ours.
    pub(super) buffer: f64,
    /// Asked and obtained formats.
    pub(super) opened: String,
}

/// Begins to open them. The thread ends when the sound server answers; if nobody takes what it opened, that is closed again.
pub(super) fn start(wish: &Wish, counters: &Arc<Counters>) -> io::Result<Receiver<Result<Streams, AudioError>>> {
    let (done, opened) = channel();
    let (wish, counters) = (wish.clone(), counters.clone());
    let open = move || {
        // Perhaps nobody waits any more.
        let _ = done.send(open(&wish, &counters));
    };
    std::thread::Builder::new().name("opening".to_owned()).spawn(open).map(|_| opened)
}

fn open(wish: &Wish, counters: &Arc<Counters>) -> Result<Streams, AudioError> {
    let host = host(wish)?;
    let (epoch, alarms) = (Instant::now(), Arc::new(Alarms::default()));
    let (mic_device, _) = choose(&host, wish, true)?;
    let (speaker_device, _) = choose(&host, wish, false)?;
    let (mic_id, speaker_id) = (label(&mic_device).0, label(&speaker_device).0);
    let (mic_config, mic_format) = native(&mic_device, true).map_err(|e| unusable("the microphone", &mic_id, &e))?;
    let (speaker_config, speaker_format) = native(&speaker_device, false).map_err(|e| unusable("the speaker", &speaker_id, &e))?;
    counters.realtime.store(0, Relaxed);
    let (mic_card, speaker_card) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let caller = |config: &StreamConfig, card| Caller::new(epoch, config.sample_rate, card, counters);

    let (mic_stream, mic, mic_asked) = first(&PERIODS, |periods| {
        let (config, period) = sized(&mic_config, *periods);
        let (callback, port) = MicPort::new(config.sample_rate, config.channels.into(), counters)?;
        let stream =
            mic_stream(&mic_device, config, mic_format, (callback, caller(&config, &mic_card)), error_callback(counters, &alarms))?;
        Ok((stream, port, period))
    })?;
    let (speaker_stream, mut speaker, speaker_asked) = first(&PERIODS, |periods| {
        let (config, period) = sized(&speaker_config, *periods);
        let (callback, port) = SpeakerPort::new(config.sample_rate, config.channels.into(), period as usize, counters)?;
        let stream = speaker_stream(
            &speaker_device,
            config,
            speaker_format,
            (callback, caller(&config, &speaker_card)),
            error_callback(counters, &alarms),
        )?;
        Ok((stream, port, period))
    })?;
    let [mic_got, speaker_got] = [&mic_stream, &speaker_stream].map(|stream| stream.buffer_size().unwrap_or(0));
    speaker.takes(speaker_got as usize);
    for (card, direction) in [(mic_card, 'c'), (speaker_card, 'p')] {
        card.store(has_card(Path::new("/proc/self/fd"), direction), Relaxed);
    }
    for stream in [&mic_stream, &speaker_stream] {
        stream.play().map_err(|e| failed("cannot start the audio device", &e))?;
    }
    let opened = format!(
        "{}; {}",
        described("microphone", &mic_id, &mic_config, mic_format, (mic_asked, mic_got)),
        described("speaker", &speaker_id, &speaker_config, speaker_format, (speaker_asked, speaker_got))
    );
    let buffer = f64::from(speaker_got) / f64::from(speaker_config.sample_rate) * f64::from(FRAMES_PER_SECOND);
    Ok(Streams { _streams: (mic_stream, speaker_stream), mic, speaker, alarms, buffer, opened })
}

/// Rate, channels and format are the device's own; the buffer is asked for, and obtained or not.
fn described(what: &str, id: &str, config: &StreamConfig, format: SampleFormat, (asked, got): (u32, u32)) -> String {
    let got = match got {
        0 => "not told".to_owned(),
        got => got.to_string(),
    };
    format!(
        "{what} {id} at its {} Hz, {} channels, {format}, asked for {asked} samples at a time, obtained {got}",
        config.sample_rate, config.channels
    )
}

/// The first attempt that works; else the error of the first.
fn first<T>(all: &[u32], attempt: impl Fn(&u32) -> Result<T, AudioError>) -> Result<T, AudioError> {
    let mut first = None;
    for one in all {
        match attempt(one) {
            Ok(done) => return Ok(done),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(AudioError::Stopped))
}

/// With a buffer of so many periods a second, and its samples.
fn sized(config: &StreamConfig, periods: u32) -> (StreamConfig, u32) {
    let period = config.sample_rate / periods;
    (StreamConfig { buffer_size: BufferSize::Fixed(period), ..*config }, period)
}

/// Runs in the audio thread too: atomics, and a rest where there is no sound to be late with. After an error without a name cpal tries again
/// at once and without end (ALSA's way to a PulseAudio that was killed: ten million times a second).
fn error_callback(counters: &Arc<Counters>, alarms: &Arc<Alarms>) -> impl FnMut(cpal::Error) + Send + 'static {
    let (counters, alarms) = (counters.clone(), alarms.clone());
    move |error| match error.kind() {
        ErrorKind::Xrun => {
            counters.xruns.fetch_add(1, Relaxed);
        }
        ErrorKind::DeviceNotAvailable | ErrorKind::HostUnavailable => alarms.raise(Alarm::Gone),
        ErrorKind::StreamInvalidated => alarms.raise(Alarm::Changed),
        _ => {
            counters.errors.fetch_add(1, Relaxed);
            std::thread::sleep(REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two openings: what the first still tells while it is being closed is not heard by the second.
    #[test]
    fn a_late_error_is_not_the_next_streams() {
        let counters = Arc::new(Counters::default());
        let (old, new) = (Arc::new(Alarms::default()), Arc::new(Alarms::default()));
        let mut late = error_callback(&counters, &old);
        let _next = error_callback(&counters, &new);
        for kind in [ErrorKind::Xrun, ErrorKind::DeviceNotAvailable, ErrorKind::BackendError] {
            late(cpal::Error::new(kind));
        }
        assert_eq!((old.take(), new.take()), (Some(Alarm::Gone), None));
        let (before, spin) = (counters.read(), Instant::now());
        assert_eq!((before.xruns, before.errors), (1, 1));
        while spin.elapsed() < Duration::from_millis(50) {
            late(cpal::Error::new(ErrorKind::BackendError));
        }
        assert!(counters.read().errors - before.errors <= 50, "it does not spin: {}", counters.read().errors);
    }

    #[test]
    fn asked_and_obtained_are_told() {
        let config = StreamConfig { channels: 2, sample_rate: 44_100, buffer_size: BufferSize::Default };
        let text = described("speaker", "alsa:default", &config, SampleFormat::I24, (441, 512));
        assert_eq!(text, "speaker alsa:default at its 44100 Hz, 2 channels, i24, asked for 441 samples at a time, obtained 512");
    }
}
