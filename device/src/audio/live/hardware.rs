//! Microphone and loudspeaker by cpal: ALSA, and with the features `pulseaudio` and `pipewire` those hosts.
//!
//! Devices are opened at their own rate, format and channel count and with a small fixed buffer (a default one means two
//! seconds on PulseAudio). A device that vanishes is opened again, at growing intervals; meanwhile the microphone hears silence.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{BufferSize, Device, ErrorKind, FromSample, Host, HostId, Sample, SampleFormat, SizedSample, Stream, StreamConfig};
use serde::Serialize;

use super::callback::{Alarm, Alarms, MicCallback, SpeakerCallback};
use super::counters::{Counters, Counts};
use super::port::{MicPort, SpeakerPort};
use super::{Duplex, FRAME, Frame, Wish};
use crate::audio::{AudioError, SAMPLE_RATE};

/// One direction of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Samples a second, channels and format that it would be opened with.
    pub rate: u32,
    pub channels: u16,
    pub format: String,
    /// Why it would be chosen; nothing if it would not.
    pub chosen: Option<&'static str>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub microphone: Option<Side>,
    pub speaker: Option<Side>,
}

/// Buffer sizes that are tried, in periods a second.
const PERIODS: [u32; 3] = [100, 50, 25];
/// A microphone that gives nothing for so long is gone.
const DEAD: Duration = Duration::from_secs(2);
/// Between two attempts to open it again: first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

fn failed(what: &str, error: &cpal::Error) -> AudioError {
    let cure = match error.kind() {
        ErrorKind::DeviceBusy => "; another program has it: close that, or use a sound server (`sa-agent devices` lists what there is)",
        ErrorKind::PermissionDenied => "; this user may not: add it to the group `audio` and log in again",
        ErrorKind::HostUnavailable => "; is the sound server running, for this user?",
        ErrorKind::DeviceNotAvailable => "; `sa-agent devices` lists what there is",
        _ => "",
    };
    AudioError::Device { message: format!("{what}: {error}{cure}") }
}

fn host(wish: &Wish) -> Result<Host, AudioError> {
    let there = cpal::available_hosts();
    let id = match &wish.host {
        None => there.first(),
        Some(name) => there.iter().find(|id| id.name().eq_ignore_ascii_case(name)),
    };
    let id: HostId = *id.ok_or_else(|| {
        let names: Vec<&str> = there.iter().map(|id| id.name()).collect();
        let asked = wish.host.as_deref().unwrap_or("any");
        AudioError::Device { message: format!("no audio host `{asked}`; there are: {}", names.join(", ")) }
    })?;
    cpal::host_from_id(id).map_err(|e| failed("cannot use the audio host", &e))
}

fn label(device: &Device) -> (String, String) {
    let id = device.id().map(|id| id.to_string()).unwrap_or_default();
    let name = device.description().map(|d| d.name().to_owned()).unwrap_or_default();
    (id, name)
}

/// The config of one direction: the device's own.
fn native(device: &Device, microphone: bool) -> Option<(StreamConfig, SampleFormat)> {
    let default = if microphone { device.default_input_config() } else { device.default_output_config() };
    let config = default.ok()?;
    Some((config.config(), config.sample_format()))
}

/// What there is, and what would be chosen.
///
/// # Errors
/// When the host of the wish is not there.
pub fn list(wish: &Wish) -> Result<Vec<Listed>, AudioError> {
    let host = host(wish)?;
    let chosen = |microphone: bool| choose(&host, wish, microphone).ok().map(|(device, why)| (label(&device).0, why));
    let (microphone, speaker) = (chosen(true), chosen(false));
    let devices = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?;
    let side = |device: &Device, id: &str, is_mic: bool, chosen: &Option<(String, &'static str)>| {
        let (config, format) = native(device, is_mic)?;
        let why = chosen.as_ref().filter(|(chosen, _)| chosen == id).map(|(_, why)| *why);
        Some(Side { rate: config.sample_rate, channels: config.channels, format: format.to_string(), chosen: why })
    };
    let mut all = Vec::new();
    for device in devices {
        let (id, name) = label(&device);
        let entry = Listed { microphone: side(&device, &id, true, &microphone), speaker: side(&device, &id, false, &speaker), id, name };
        if entry.microphone.is_some() || entry.speaker.is_some() {
            all.push(entry);
        }
    }
    Ok(all)
}

/// The device of one direction, and why.
fn choose(host: &Host, wish: &Wish, microphone: bool) -> Result<(Device, &'static str), AudioError> {
    let (what, flag) = if microphone { ("microphone", "--microphone") } else { ("speaker", "--speaker") };
    let wanted = if microphone { &wish.microphone } else { &wish.speaker };
    let devices = || -> Result<Vec<Device>, AudioError> {
        let all = host.devices().map_err(|e| failed("cannot list the audio devices", &e))?;
        Ok(all.filter(|device| if microphone { device.supports_input() } else { device.supports_output() }).collect())
    };
    let missing = |problem: String, there: &[Device]| {
        let names: Vec<String> = there.iter().map(|device| label(device).0).collect();
        let there = if names.is_empty() { "there is none at all".to_owned() } else { format!("there are: {}", names.join(", ")) };
        AudioError::Device { message: format!("{problem}; {there} (choose one by {flag} NAME)") }
    };
    if let Some(wanted) = wanted {
        let there = devices()?;
        let lower = wanted.to_lowercase();
        let exact = there.iter().find(|device| label(device).0 == *wanted);
        let part = || {
            there.iter().find(|device| {
                let (id, name) = label(device);
                id.to_lowercase().contains(&lower) || name.to_lowercase().contains(&lower)
            })
        };
        return match exact.or_else(part) {
            Some(device) => Ok((device.clone(), "asked for")),
            None => Err(missing(format!("no {what} `{wanted}`"), &there)),
        };
    }
    // ALSA's `null` can always be opened, and is always silent.
    let usable = |device: &Device| native(device, microphone).is_some() && !label(device).0.ends_with(":null");
    let default = if microphone { host.default_input_device() } else { host.default_output_device() };
    if let Some(device) = default.filter(usable) {
        return Ok((device, "the system's default"));
    }
    let there = devices()?;
    match there.iter().find(|device| usable(device)) {
        Some(device) => Ok((device.clone(), "the first that can be opened")),
        None => Err(missing(format!("no {what} that can be opened"), &there)),
    }
}

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
        self.streams = None;
        self.retry = (Instant::now() + BACKOFF.0, BACKOFF.0);
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

    fn room(&self) -> bool {
        self.streams.as_ref().is_some_and(|streams| streams.speaker.room())
    }

    fn play(&mut self, speaker: &Frame) {
        if let Some(streams) = &mut self.streams {
            streams.speaker.play(speaker);
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
        let stream = mic_stream(&mic_device, config, mic_format, callback, error_callback(counters, alarms))?;
        Ok((stream, port))
    })?;
    let (speaker_stream, speaker) = first(&PERIODS, |periods| {
        let config = sized(&speaker_config, *periods);
        let period = config.sample_rate / periods;
        let (callback, port) = SpeakerPort::new(config.sample_rate, config.channels.into(), period as usize, counters)?;
        let stream = speaker_stream(&speaker_device, config, speaker_format, callback, error_callback(counters, alarms))?;
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

fn mic_stream(
    device: &Device,
    config: StreamConfig,
    format: SampleFormat,
    callback: MicCallback,
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample>(
        device: &Device,
        config: StreamConfig,
        mut callback: MicCallback,
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError>
    where
        f32: FromSample<T>,
    {
        let data = move |data: &[T], _: &_| callback.feed(data, |sample| f32::from_sample(sample));
        device.build_input_stream(config, data, errors, None).map_err(|e| failed("cannot open the microphone", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}

fn speaker_stream(
    device: &Device,
    config: StreamConfig,
    format: SampleFormat,
    callback: SpeakerCallback,
    errors: impl FnMut(cpal::Error) + Send + 'static,
) -> Result<Stream, AudioError> {
    fn make<T: SizedSample + FromSample<f32>>(
        device: &Device,
        config: StreamConfig,
        mut callback: SpeakerCallback,
        errors: impl FnMut(cpal::Error) + Send + 'static,
    ) -> Result<Stream, AudioError> {
        let data = move |data: &mut [T], _: &_| callback.fill(data, |sample| T::from_sample(sample));
        device.build_output_stream(config, data, errors, None).map_err(|e| failed("cannot open the speaker", &e))
    }
    by_format!(format, make(device, config, callback, errors))
}
