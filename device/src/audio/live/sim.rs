//! A simulated microphone and loudspeaker in a simulated room, on simulated clocks.
//!
//! The callbacks, rings and resamplers are the real ones; simulated are only what calls them and what the microphone hears:
//! the user, the loudspeaker over a room with reverberation, and noise. Time goes on only in [`Duplex::listen`], as fast as the
//! program likes. The same seed gives the same samples.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::callback::{MicCallback, SpeakerCallback};
use super::counters::{Counters, Counts};
use super::port::{MicPort, SpeakerPort};
use super::{Duplex, FRAME, Frame};
use crate::audio::{AudioError, SAMPLE_RATE};

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Room {
    pub seed: u64,
    /// Samples a second of the microphone and of the speaker.
    pub mic_rate: u32,
    pub speaker_rate: u32,
    /// How much faster the speaker's clock runs, in parts per million.
    pub drift_ppm: f64,
    /// Level of the echo against what is played, in dB.
    pub echo_db: f64,
    /// How the loudspeaker distorts: it plays `tanh(d x) / d`; 0 for not at all.
    pub distortion: f64,
    /// Seconds until the echo has faded by 60 dB.
    pub reverberation: f64,
    /// Seconds from the speaker to the microphone, buffers of the device included.
    pub delay: f64,
    /// Level of the noise in dB below full scale.
    pub noise_dbfs: f64,
    /// Seconds by which a callback may come late.
    pub jitter: f64,
    /// Mean seconds between two stalls of the program; none if infinite.
    pub stall_every: f64,
    /// The longest stall in seconds.
    pub stall_longest: f64,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            seed: 1,
            mic_rate: 48_000,
            speaker_rate: 44_100,
            drift_ppm: 100.0,
            echo_db: -8.0,
            distortion: 0.0,
            reverberation: 0.25,
            delay: 0.03,
            noise_dbfs: -65.0,
            jitter: 0.001,
            stall_every: 20.0,
            stall_longest: 0.2,
        }
    }
}

/// Seconds between two callbacks.
const PERIOD: f64 = 0.01;
/// Reflections a second in the simulated reverberation ("velvet noise").
const REFLECTIONS: f64 = 2000.0;

/// See the module.
pub struct SimDevice {
    room: Room,
    random: Random,
    mic: MicPort,
    speaker: SpeakerPort,
    mic_callback: MicCallback,
    speaker_callback: SpeakerCallback,
    counters: Arc<Counters>,
    /// Callbacks so far.
    mic_periods: u64,
    speaker_periods: u64,
    /// What the speaker played, at its rate; the first of it is sample `played_from`.
    played: VecDeque<f32>,
    played_from: u64,
    /// Delays in samples at 16 kHz, and gains.
    reflections: Vec<(usize, f32)>,
    /// What the speaker played, at 16 kHz on the microphone's clock, newest last; as long as the longest reflection.
    past: VecDeque<f32>,
    /// The user's voice that is still to come, at 16 kHz.
    user: VecDeque<f32>,
    /// The last 16 kHz sample of the microphone, for the samples between.
    last: f32,
    /// Sum of squares and count of what the speaker played since [`SimDevice::take_loudness`].
    loudness: (f64, u32),
}

impl SimDevice {
    /// A quiet room.
    ///
    /// # Errors
    /// For rates that cannot be converted.
    pub fn new(room: Room) -> Result<Self, AudioError> {
        let counters = Arc::new(Counters::default());
        let (mic_callback, mic) = MicPort::new(room.mic_rate, 2, &counters)?;
        let period = (f64::from(room.speaker_rate) * PERIOD) as usize;
        let (speaker_callback, speaker) = SpeakerPort::new(room.speaker_rate, 2, period, &counters)?;
        let mut random = Random(room.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let reflections = reflections(&room, &mut random);
        let longest = reflections.iter().map(|(delay, _)| delay + 1).max().unwrap_or(1);
        Ok(Self {
            room,
            random,
            mic,
            speaker,
            mic_callback,
            speaker_callback,
            counters,
            mic_periods: 0,
            speaker_periods: 0,
            played: VecDeque::new(),
            played_from: 0,
            reflections,
            past: std::iter::repeat_n(0.0, longest).collect(),
            user: VecDeque::new(),
            last: 0.0,
            loudness: (0.0, 0),
        })
    }

    /// The user says this (16 kHz), after what is still to be said.
    pub fn say(&mut self, samples: &[f32]) {
        self.user.extend(samples);
    }

    /// Is the user speaking?
    pub fn user_speaks(&self) -> bool {
        !self.user.is_empty()
    }

    /// Simulated seconds since the beginning.
    pub fn now(&self) -> f64 {
        self.mic_periods as f64 * PERIOD
    }

    /// Root mean square of what the speaker played since the last call.
    pub fn take_loudness(&mut self) -> f64 {
        let (sum, count) = std::mem::take(&mut self.loudness);
        (sum / f64::from(count.max(1))).sqrt()
    }

    /// The next callback, whichever is due first.
    fn advance(&mut self) {
        let speaker_due = self.speaker_periods as f64 * PERIOD / (1.0 + self.room.drift_ppm / 1e6);
        if speaker_due <= self.mic_periods as f64 * PERIOD { self.speaker_period() } else { self.mic_period() }
    }

    fn speaker_period(&mut self) {
        // A period need not be a whole number of samples: at 22,050 Hz every other one is longer.
        let until = |periods: u64| (periods as f64 * f64::from(self.room.speaker_rate) * PERIOD + 1e-6) as usize;
        let frames = until(self.speaker_periods + 1) - until(self.speaker_periods);
        let mut data = vec![0.0f32; frames * 2];
        let now = self.late(self.speaker_periods as f64 * PERIOD / (1.0 + self.room.drift_ppm / 1e6));
        self.speaker_callback.fill(now, &mut data, |x| x);
        for frame in data.chunks_exact(2) {
            self.loudness.0 += f64::from(frame[0]).powi(2);
            self.loudness.1 += 1;
            self.played.push_back(frame[0]);
        }
        self.speaker_periods += 1;
    }

    /// The time that a callback sees which is due at `seconds`.
    fn late(&mut self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds + self.random.uniform().abs() * self.room.jitter)
    }

    fn mic_period(&mut self) {
        let samples = (f64::from(SAMPLE_RATE) * PERIOD) as usize;
        let per_sample = f64::from(self.room.mic_rate) / f64::from(SAMPLE_RATE);
        let noise = 10f64.powf(self.room.noise_dbfs / 20.0) * 3f64.sqrt();
        let mut data = Vec::with_capacity((samples as f64 * per_sample) as usize * 2 + 2);
        let start = self.mic_periods * samples as u64;
        for i in 0..samples {
            let sample = self.hear(start + i as u64) + self.user.pop_front().unwrap_or(0.0) + (self.random.uniform() * noise) as f32;
            // The device's samples between two at 16 kHz lie on a line.
            let first = ((start + i as u64) as f64 * per_sample).ceil() as u64;
            let end = ((start + i as u64 + 1) as f64 * per_sample).ceil() as u64;
            for position in first..end {
                let part = (position as f64 / per_sample - (start + i as u64) as f64) as f32;
                let value = (self.last + (sample - self.last) * part).clamp(-1.0, 1.0);
                data.extend([value, value]);
            }
            self.last = sample;
        }
        self.mic_periods += 1;
        let now = self.late(self.now());
        self.mic_callback.feed(now, &data, |x| x);
    }

    /// The echo at sample `position` of the microphone (16 kHz).
    fn hear(&mut self, position: u64) -> f32 {
        // On the speaker's clock, which runs faster or slower, and a period after the callback: what is heard has been asked for.
        let seconds = position as f64 / f64::from(SAMPLE_RATE) * (1.0 + self.room.drift_ppm / 1e6);
        let at = ((seconds - 1.5 * PERIOD) * f64::from(self.room.speaker_rate)).max(0.0);
        let index = at as u64;
        let part = (at - index as f64) as f32;
        while self.played_from < index && !self.played.is_empty() {
            self.played.pop_front();
            self.played_from += 1;
        }
        // Through four samples: a line between two would be a loudspeaker that distorts.
        let at = |i: usize| self.played.get(i).copied().unwrap_or(0.0);
        let [a, b, c, d] = [at(0), at(1), at(2), at(3)];
        let (slope, bend) = ((c - a) * 0.5, a - 2.5 * b + 2.0 * c - 0.5 * d);
        let twist = (d - a) * 0.5 + (b - c) * 1.5;
        self.past.pop_front();
        let sample = ((twist * part + bend) * part + slope) * part + b;
        let distortion = self.room.distortion as f32;
        self.past.push_back(if distortion > 0.0 { (distortion * sample).tanh() / distortion } else { sample });
        let newest = self.past.len() - 1;
        self.reflections.iter().map(|(delay, gain)| self.past[newest - delay] * gain).sum()
    }
}

/// A direct path and random reflections that fade; together they have the level of the echo.
fn reflections(room: &Room, random: &mut Random) -> Vec<(usize, f32)> {
    let rate = f64::from(SAMPLE_RATE);
    let mut all = vec![(room.delay * rate, 1.0)];
    for i in 0..(room.reverberation * REFLECTIONS) as usize {
        let time = (i as f64 + 0.5 + random.uniform() * 0.5) / REFLECTIONS;
        let fade = 10f64.powf(-3.0 * time / room.reverberation.max(1e-3));
        let sign = if random.uniform() < 0.0 { -1.0 } else { 1.0 };
        all.push(((room.delay + 0.003 + time) * rate, 0.15 * sign * fade));
    }
    let energy: f64 = all.iter().map(|(_, gain)| gain * gain).sum();
    let scale = 10f64.powf(room.echo_db / 20.0) / energy.sqrt();
    all.into_iter().map(|(delay, gain)| (delay as usize, (gain * scale) as f32)).collect()
}

impl Duplex for SimDevice {
    fn listen(&mut self, microphone: &mut Frame) -> Result<(), AudioError> {
        let frames_between = self.room.stall_every * f64::from(super::FRAMES_PER_SECOND);
        if self.random.uniform().abs() < 1.0 / frames_between {
            // The program is not there for a while; the device goes on.
            let until = self.now() + self.random.uniform().abs() * self.room.stall_longest;
            while self.now() < until {
                self.advance();
            }
        }
        while !self.mic.frame(microphone) {
            self.advance();
        }
        Ok(())
    }

    fn room(&mut self) -> bool {
        self.speaker.room(self.mic.heard_until())
    }

    fn play(&mut self, speaker: &Frame) {
        self.speaker.play(speaker, self.mic.heard_until());
    }

    fn take_back(&mut self, most: usize) -> usize {
        self.speaker.take_back(most)
    }

    fn latency(&self) -> f64 {
        self.speaker.waiting() * f64::from(SAMPLE_RATE) / FRAME as f64
    }

    fn counts(&self) -> Counts {
        self.counters.read()
    }
}

/// xorshift64*: the same on every machine.
struct Random(u64);

impl Random {
    /// -1 to 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(room: Room, seconds: usize) -> (SimDevice, Vec<f32>) {
        let mut device = SimDevice::new(room).expect("usual rates");
        let (mut frame, mut heard) = ([0.0; FRAME], Vec::new());
        for i in 0..seconds * 100 {
            device.listen(&mut frame).expect("never fails");
            heard.extend_from_slice(&frame);
            if device.room() {
                // Bursts of 0.2 s every second.
                let loud = if i % 100 < 20 { 0.5 } else { 0.0 };
                let tone: Vec<f32> = (0..FRAME).map(|n| loud * ((i * FRAME + n) as f32 * 0.3).sin()).collect();
                device.play(&tone.try_into().expect("a frame"));
            }
        }
        (device, heard)
    }

    fn level(samples: &[f32]) -> f32 {
        (samples.iter().map(|x| x * x).sum::<f32>() / samples.len() as f32).sqrt()
    }

    #[test]
    fn the_room_echoes_and_is_the_same_every_time() {
        let quiet = Room { stall_every: f64::INFINITY, ..Room::default() };
        let (device, heard) = run(quiet.clone(), 20);
        assert_eq!(run(quiet, 20).1, heard, "deterministic");
        let (burst, rest) = (level(&heard[16_000 * 9 + 1600..16_000 * 9 + 4000]), level(&heard[16_000 * 9 + 12_000..16_000 * 10]));
        assert!(burst > 0.03 && burst < 0.4, "an echo: {burst}");
        assert!(rest < 0.002, "that fades: {rest}");
        let counts = device.counts();
        assert_eq!((counts.dropped, counts.invented), (0, 0));
    }

    #[test]
    fn the_speaker_plays_as_many_samples_as_its_rate_says() {
        for speaker_rate in [16_000, 22_050, 44_100, 48_000] {
            let room = Room { speaker_rate, drift_ppm: 0.0, stall_every: f64::INFINITY, ..Room::default() };
            let played = run(room, 10).0.counts().played;
            assert!(played.abs_diff(u64::from(speaker_rate) * 10) < u64::from(speaker_rate) / 50, "{played} samples at {speaker_rate} Hz");
        }
    }

    #[test]
    fn stalls_are_survived_and_counted() {
        let (device, _) = run(Room { stall_every: 1.0, stall_longest: 0.3, ..Room::default() }, 60);
        let counts = device.counts();
        assert!(counts.invented > 0, "the speaker ran dry");
        assert_eq!(counts.dropped, 0, "four seconds of the microphone fit");
        assert!(device.latency() < 16.0, "the latency came back to what it gets in advance: {} frames", device.latency());
    }

    /// What is taken back is not heard, to the millisecond.
    #[test]
    fn what_is_taken_back_is_not_heard() {
        for frames in 150..170 {
            let quiet = Room { stall_every: f64::INFINITY, ..Room::default() };
            let mut device = SimDevice::new(quiet).expect("usual rates");
            let (mut frame, mut sound, mut last, mut taken_back) = ([0.0; FRAME], 0.0, 0.0f32, None);
            // A slope, so that each sample tells its place.
            let total = 170.0 * FRAME as f32;
            let slope = |frame: usize, n: usize| 0.1 + 0.4 * (frame * FRAME + n) as f32 / total;
            device.take_loudness();
            for i in 0..frames + 20 {
                device.listen(&mut frame).expect("never fails");
                assert!(device.room());
                device.play(&std::array::from_fn(|n| if i < frames { slope(i, n) } else { 0.0 }));
                if i + 1 == frames {
                    taken_back = Some(device.take_back(2 * FRAME));
                }
                sound += device.loudness.0 / 44_100.0;
                device.loudness = (0.0, 0);
                // Before the end: a filter overshoots where sound breaks off, the fade comes too late for that.
                last = device.played.iter().copied().fold(last, f32::max);
            }
            let taken_back = taken_back.expect("asked for");
            assert!((FRAME..=2 * FRAME).contains(&taken_back), "{taken_back} samples");
            let end = slope(0, frames * FRAME - taken_back);
            let samples = (last - end) * total / 0.4;
            assert!(samples.abs() < 12.0, "{samples} samples more were heard");
            let energy: f64 = (0..frames * FRAME - taken_back).map(|n| f64::from(slope(0, n)).powi(2) / 16_000.0).sum();
            assert!((sound - energy).abs() < 0.002 * f64::from(end).powi(2), "{sound} was heard of {energy}");
        }
    }

    #[test]
    fn the_user_is_heard() {
        let mut device = SimDevice::new(Room { mic_rate: 16_000, ..Room::default() }).expect("usual rates");
        device.say(&[0.25; 1600]);
        let mut frame = [0.0; FRAME];
        device.listen(&mut frame).expect("never fails");
        assert!(device.user_speaks() && (level(&frame) - 0.25).abs() < 0.02);
    }
}
