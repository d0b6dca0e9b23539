//! Microphone and loudspeaker by cpal: ALSA, and with the features `pulseaudio` and `pipewire` those hosts.
//!
//! Devices are opened at their own rate, format and channel count and with a small fixed buffer (a default one means two
//! seconds on PulseAudio). A device that vanishes is opened again, at growing intervals; meanwhile the microphone hears silence.

mod devices;
mod streams;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cpal::traits::StreamTrait;
use cpal::{BufferSize, Device, ErrorKind, Stream, StreamConfig};

pub use devices::{Listed, Side, list};

use super::callback::{Alarm, Alarms};
use super::counters::{Counters, Counts};
use super::port::{MicPort, SpeakerPort};
use super::{Duplex, FRAME, Frame, Wish};
use crate::audio::{AudioError, SAMPLE_RATE};
use devices::{choose, failed, host, label, native};
use streams::{mic_stream, speaker_stream};

/// Buffer sizes that are tried, in periods a second.
const PERIODS: [u32; 3] = [100, 50, 25];
/// A microphone that gives nothing for so long is gone.
const DEAD: Duration = Duration::from_secs(2);
/// How long the program waits for the devices to close when it ends.
const CLOSING: Duration = Duration::from_secs(2);
/// Between two attempts to open it again: first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Opened streams. Dropped, they stop.
struct Streams {
    _streams: (Stream, Stream),
    mic: MicPort,
    speaker: SpeakerPort,
    /// Samples of the speaker's buffer, in frames of ours.
    buffer: f64,
    opened: String,
}

/// The microphone and the speaker of this machine.
pub struct LiveDevice {
    wish: Wish,
    streams: Option<Streams>,
    counters: Arc<Counters>,
    alarms: Alarms,
    heard: Instant,
    retry: (Instant, Duration),
    notices: Vec<String>,
}

impl LiveDevice {
    /// Opens both.
    ///
    /// # Errors
    /// With what there is and the flag to use.
    pub fn open(wish: Wish) -> Result<Self, AudioError> {
        let (counters, alarms) = (Arc::new(Counters::default()), Alarms::default());
        let streams = open(&wish, &counters, &alarms)?;
        let now = Instant::now();
        Ok(Self { wish, streams: Some(streams), counters, alarms, heard: now, retry: (now, BACKOFF.0), notices: Vec::new() })
    }

    /// Asked and obtained formats, in a line each.
    pub fn opened(&self) -> &str {
        self.streams.as_ref().map_or("(nothing)", |streams| &streams.opened)
    }

    fn lost(&mut self, why: &str) {
        self.notices.push(format!("the audio device {why}; it is opened again as soon as it is there"));
        self.release();
        self.retry = (Instant::now() + BACKOFF.0, BACKOFF.0);
    }

    /// Closes the streams on a thread of its own: the driver of a device that is gone may wait for it for ever.
    fn release(&mut self) -> Option<Receiver<()>> {
        let streams = self.streams.take()?;
        let (done, closed) = channel();
        let close = move || {
            drop(streams);
            // Perhaps nobody waits.
            let _ = done.send(());
        };
        // Without a thread the closure is dropped here, and the streams with it.
        std::thread::Builder::new().name("closing".to_owned()).spawn(close).ok().map(|_| closed)
    }
}

impl Drop for LiveDevice {
    fn drop(&mut self) {
        if let Some(closed) = self.release() {
            let _ = closed.recv_timeout(CLOSING);
        }
    }
}

impl Duplex for LiveDevice {
    fn listen(&mut self, microphone: &mut Frame) -> Result<(), AudioError> {
        loop {
            if let Some(alarm) = self.alarms.dequeue().filter(|_| self.streams.is_some()) {
                self.lost(if alarm == Alarm::Gone { "is gone" } else { "was changed" });
            }
            let Some(streams) = &mut self.streams else { break };
            if streams.mic.frame(microphone) {
                self.heard = Instant::now();
                return Ok(());
            }
            if self.heard.elapsed() > DEAD {
                self.lost("gives no more sound");
                break;
            }
            // A third of a frame; the callback must not be made to wake us.
            std::thread::sleep(Duration::from_millis(3));
        }
        let (at, pause) = self.retry;
        if Instant::now() >= at {
            while self.alarms.dequeue().is_some() {}
            match open(&self.wish, &self.counters, &self.alarms) {
                Ok(streams) => {
                    self.notices.push(format!("the audio device is back: {}", streams.opened));
                    self.counters.reopened.fetch_add(1, Relaxed);
                    self.heard = Instant::now();
                    self.streams = Some(streams);
                }
                Err(_) => self.retry = (Instant::now() + pause, (pause * 2).min(BACKOFF.1)),
            }
        }
        std::thread::sleep(Duration::from_millis(10));
        self.counters.absent.fetch_add(1, Relaxed);
        microphone.fill(0.0);
        Ok(())
    }

    fn room(&mut self) -> bool {
        self.streams.as_mut().is_some_and(|streams| streams.speaker.room(streams.mic.heard_until()))
    }

    fn play(&mut self, speaker: &Frame) {
        if let Some(streams) = &mut self.streams {
            streams.speaker.play(speaker, streams.mic.heard_until());
        }
    }

    fn latency(&self) -> f64 {
        self.streams.as_ref().map_or(0.0, |s| s.speaker.waiting() * f64::from(SAMPLE_RATE) / FRAME as f64 + s.buffer)
    }

    fn counts(&self) -> Counts {
        self.counters.read()
    }

    fn notice(&mut self) -> Option<String> {
        if self.notices.is_empty() { None } else { Some(self.notices.remove(0)) }
    }
}

fn open(wish: &Wish, counters: &Arc<Counters>, alarms: &Alarms) -> Result<Streams, AudioError> {
    let host = host(wish)?;
    let epoch = Instant::now();
    let (mic_device, _) = choose(&host, wish, true)?;
    let (speaker_device, _) = choose(&host, wish, false)?;
    let unusable = |what: &str, device: &Device| AudioError::Device {
        message: format!("{what} {} tells no format; `sa-agent devices` lists those that do", label(device).0),
    };
    let (mic_config, mic_format) = native(&mic_device, true).ok_or_else(|| unusable("the microphone", &mic_device))?;
    let (speaker_config, speaker_format) = native(&speaker_device, false).ok_or_else(|| unusable("the speaker", &speaker_device))?;

    let (mic_stream, mic) = first(&PERIODS, |periods| {
        let config = sized(&mic_config, *periods);
        let (callback, port) = MicPort::new(config.sample_rate, config.channels.into(), counters)?;
        let stream = mic_stream(&mic_device, config, mic_format, (callback, epoch), error_callback(counters, alarms))?;
        Ok((stream, port))
    })?;
    let (speaker_stream, speaker) = first(&PERIODS, |periods| {
        let config = sized(&speaker_config, *periods);
        let period = config.sample_rate / periods;
        let (callback, port) = SpeakerPort::new(config.sample_rate, config.channels.into(), period as usize, counters)?;
        let stream = speaker_stream(&speaker_device, config, speaker_format, (callback, epoch), error_callback(counters, alarms))?;
        Ok((stream, port))
    })?;
    for stream in [&mic_stream, &speaker_stream] {
        stream.play().map_err(|e| failed("cannot start the audio device", &e))?;
    }
    let buffers = [&mic_stream, &speaker_stream].map(|stream| stream.buffer_size().unwrap_or(0));
    let opened = format!(
        "microphone {} at {} Hz, {} channels, {mic_format}, buffer {}; speaker {} at {} Hz, {} channels, {speaker_format}, buffer {}",
        label(&mic_device).0,
        mic_config.sample_rate,
        mic_config.channels,
        buffers[0],
        label(&speaker_device).0,
        speaker_config.sample_rate,
        speaker_config.channels,
        buffers[1],
    );
    let buffer = f64::from(buffers[1]) / f64::from(speaker_config.sample_rate) * f64::from(super::FRAMES_PER_SECOND);
    Ok(Streams { _streams: (mic_stream, speaker_stream), mic, speaker, buffer, opened })
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

fn sized(config: &StreamConfig, periods: u32) -> StreamConfig {
    StreamConfig { buffer_size: BufferSize::Fixed(config.sample_rate / periods), ..*config }
}

/// Runs in the audio thread too: atomics and a queue that refuses when it is full.
fn error_callback(counters: &Arc<Counters>, alarms: &Alarms) -> impl FnMut(cpal::Error) + Send + 'static {
    let (counters, alarms) = (counters.clone(), alarms.clone());
    move |error| match error.kind() {
        ErrorKind::Xrun => {
            counters.xruns.fetch_add(1, Relaxed);
        }
        ErrorKind::DeviceNotAvailable | ErrorKind::HostUnavailable => {
            let _ = alarms.enqueue(Alarm::Gone);
        }
        ErrorKind::StreamInvalidated => {
            let _ = alarms.enqueue(Alarm::Changed);
        }
        _ => {
            counters.errors.fetch_add(1, Relaxed);
        }
    }
}
